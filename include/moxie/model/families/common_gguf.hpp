#pragma once
// GGUF metadata to a ModelConfig, by the rules of a Family.
//
// What a file means is what llama.cpp computes from it. Keys named "moxie.*" carry what GGUF has no key for; moxie's own
// quantizer writes them where they are needed (see gguf_names.hpp), and other readers ignore them.
// Source: GGUF specification (ggml/docs/gguf.md); llama.cpp, llama-model.cpp and convert_hf_to_gguf.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_config.hpp>
#include <moxie/model/families/tensor_finder.hpp>
#include <moxie/model/fields.hpp>

namespace moxie::families {

/// Tensor names of GGUF, the same for all architectures.
inline constexpr TensorNames gguf_tensor_names{
    .layer_prefix = "blk.",
    .embedding = "token_embd.weight",
    .output_norm = "output_norm.weight",
    .output = "output.weight",
    .rope_freqs = "rope_freqs.weight",
    .attn_norm = "blk.{i}.attn_norm.weight",
    .ffn_norm = "blk.{i}.ffn_norm.weight",
    .q = "blk.{i}.attn_q.weight",
    .k = "blk.{i}.attn_k.weight",
    .v = "blk.{i}.attn_v.weight",
    .qkv = "blk.{i}.attn_qkv.weight",
    .attn_gate = "blk.{i}.attn_gate.weight",
    .o = "blk.{i}.attn_output.weight",
    .q_norm = "blk.{i}.attn_q_norm.weight",
    .k_norm = "blk.{i}.attn_k_norm.weight",
    .sinks = "blk.{i}.attn_sinks.weight",
    .q_a = "blk.{i}.attn_q_a.weight",
    .q_a_norm = "blk.{i}.attn_q_a_norm.weight",
    .q_b = "blk.{i}.attn_q_b.weight",
    .kv_a = "blk.{i}.attn_kv_a_mqa.weight",
    .kv_a_norm = "blk.{i}.attn_kv_a_norm.weight",
    .kv_b = "blk.{i}.attn_kv_b.weight",
    .k_b = "blk.{i}.attn_k_b.weight",
    .v_b = "blk.{i}.attn_v_b.weight",
    .delta_qkvz = "blk.{i}.ssm_in.weight",
    .delta_qkv = "blk.{i}.attn_qkv.weight",
    .delta_z = "blk.{i}.attn_gate.weight",
    .delta_ba = "blk.{i}.ssm_ba.weight",
    .delta_b = "blk.{i}.ssm_beta.weight",
    .delta_a = "blk.{i}.ssm_alpha.weight",
    .delta_conv = "blk.{i}.ssm_conv1d.weight",
    .delta_dt_bias = "blk.{i}.ssm_dt.bias",
    .delta_decay = "blk.{i}.ssm_a",
    .delta_norm = "blk.{i}.ssm_norm.weight",
    .delta_out = "blk.{i}.ssm_out.weight",
    .mamba_in = "blk.{i}.ssm_in.weight",
    .mamba_conv = "blk.{i}.ssm_conv1d.weight",
    .mamba_dt_bias = "blk.{i}.ssm_dt.bias",
    .mamba_decay = "blk.{i}.ssm_a",
    .mamba_d = "blk.{i}.ssm_d",
    .mamba_norm = "blk.{i}.ssm_norm.weight",
    .mamba_out = "blk.{i}.ssm_out.weight",
    .short_conv_in = "blk.{i}.shortconv.in_proj.weight",
    .short_conv = "blk.{i}.shortconv.conv.weight",
    .short_conv_out = "blk.{i}.shortconv.out_proj.weight",
    .dense_gate = "blk.{i}.ffn_gate.weight",
    .dense_up = "blk.{i}.ffn_up.weight",
    .dense_down = "blk.{i}.ffn_down.weight",
    .router = "blk.{i}.ffn_gate_inp.weight",
    .router_bias = "blk.{i}.exp_probs_b.bias",
    .latent_in = "blk.{i}.ffn_latent_down.weight",
    .latent_out = "blk.{i}.ffn_latent_up.weight",
    .expert_gate = "blk.{i}.ffn_gate.{e}.weight",
    .expert_up = "blk.{i}.ffn_up.{e}.weight",
    .expert_down = "blk.{i}.ffn_down.{e}.weight",
    .experts_gate = "blk.{i}.ffn_gate_exps.weight",
    .experts_up = "blk.{i}.ffn_up_exps.weight",
    .experts_down = "blk.{i}.ffn_down_exps.weight",
    .experts_gate_up = "blk.{i}.ffn_gate_up_exps.weight",
    .shared_gate = "blk.{i}.ffn_gate_shexp.weight",
    .shared_up = "blk.{i}.ffn_up_shexp.weight",
    .shared_down = "blk.{i}.ffn_down_shexp.weight",
    .shared_expert_gate = "blk.{i}.ffn_gate_inp_shexp.weight",
};

/// The same where the norm before the feed-forward network is called after what is before it.
inline constexpr TensorNames gguf_post_attention_norm_names = [] {
  TensorNames names = gguf_tensor_names;
  names.ffn_norm = "blk.{i}.post_attention_norm.weight";
  return names;
}();

/// The names of an architecture's tensors.
inline const TensorNames& gguf_names_of(const Family& family) noexcept {
  return family.gguf.names ? *family.gguf.names : gguf_tensor_names;
}

/// Keys of other architectures that would change the result if one of ours had them.
inline constexpr FixedOption gguf_fixed_options[] = {
    {"attn_logit_softcapping", "0"},       {"final_logit_softcapping", "0"},       {"attention.causal", "true"},
    {"attention.clamp_kqv", "0"},          {"attention.temperature_scale", "0"},   {"attention.chunk_size", "0"},
    {"rope.scaling.yarn_ext_factor", "1"}, {"rope.scaling.yarn_attn_factor", "1"}, {"rope.scaling.alpha", "0"},
    {"use_parallel_residual", "false"},
};

/// The same in families without GgufRules::rope_sections.
inline constexpr FixedOption gguf_without_sections[] = {{"rope.dimension_sections", "null"}};

/// The same in families without Family::latent_experts.
inline constexpr FixedOption gguf_without_latents[] = {{"moe_latent_size", "0"}};

/// The same in families without Family::multipliers.
inline constexpr FixedOption gguf_without_multipliers[] = {
    {"logit_scale", "1"}, {"residual_scale", "1"}, {"embedding_scale", "1"}};

/// In families with them, for which llama.cpp takes this key as whether there is a rotation; those with Mamba-2 may have none.
inline constexpr FixedOption gguf_with_multipliers[] = {{"rope.scaling.finetuned", "true"}};

/// Sections of a rotation by several positions, of which text has the same in the first three. Throws where a pair of dimensions
/// would turn by a fourth, which text does not have. (Without a fourth section, a pair that the first three leave turns by the
/// first, as in transformers; llama.cpp does not turn it. Qwen3-VL has two such pairs, which turn the slowest.)
inline void check_gguf_sections(const Fields& f, std::int64_t dims) {
  const nlohmann::json* sections = f.find("rope.dimension_sections");
  if (!sections) return;
  std::vector<std::int64_t> sizes;
  std::int64_t sum = 0;
  for (const nlohmann::json& size : sections->is_array() ? *sections : nlohmann::json::array()) {
    if (!size.is_number_integer() || size < 0 || size > max_head_dim) break;
    sum += sizes.emplace_back(size.get<std::int64_t>());
  }
  if (!sections->is_array() || sizes.size() != sections->size() || sizes.size() != 4 || sum == 0)
    f.fail("rope.dimension_sections", concat("is ", Fields::show(*sections), "; it must hold four sizes"));
  for (std::int64_t pair = 0; pair < dims / 2 && sizes[3] != 0; ++pair)
    if (const std::int64_t at = pair % sum; at >= 3 * sizes[static_cast<std::size_t>(at % 3)])
      f.unsupported("rope.dimension_sections",
                    concat("leaves pair ", pair, " of dimensions to a fourth position, which text does not have"));
}

/// `rope.dims` is set. Returns DeepSeek's factor m on the softmax scale before it is squared.
inline double read_gguf_rope(const Fields& f, const Fields& own, const Family& family, std::int64_t context_length,
                             RopeConfig& rope) {
  rope.layout = family.gguf.layout;
  rope.theta = f.number("rope.freq_base", 1.001, 1e18, 10000.0);
  const double factor = f.number("rope.scaling.factor|rope.scale_linear", 0.0, 1e6, 0.0);
  rope.factor = factor == 0.0 ? 1.0 : factor;
  const std::string kind = f.text("rope.scaling.type", factor == 0.0 ? "none" : "linear");
  const double attention_factor = f.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0);
  rope.magnitude = attention_factor;
  const double log_multiplier = f.number("rope.scaling.yarn_log_multiplier", 0.0, 100.0, 0.0);
  const bool mla = family.attention == AttentionKind::mla;
  if (!mla && log_multiplier != 0.0)
    f.unsupported("rope.scaling.yarn_log_multiplier",
                  "belongs to multi-head latent attention, which this architecture does not have");
  if (mla && attention_factor != 1.0)
    f.unsupported("rope.scaling.attn_factor", "is not 1; this architecture has yarn_log_multiplier");
  double m = 1.0;
  if (kind == "none") {
    rope.factor = 1.0;
  } else if (kind == "linear") {
    rope.scaling = RopeScaling::linear;
  } else if (kind == "yarn") {
    rope.scaling = RopeScaling::yarn;
    rope.original_context = f.integer("rope.scaling.original_context_length", 1, max_context, context_length);
    rope.beta_fast = f.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0);
    rope.beta_slow = f.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0);
    // yarn_log_multiplier is 0.1 mscale_all_dim, and mscale is taken to be the same: cos and sin keep their size
    m = yarn_mscale(rope.factor, 10.0 * log_multiplier);
    rope.magnitude = log_multiplier != 0.0 ? 1.0 : attention_factor * yarn_mscale(rope.factor, 1.0);
    rope.magnitude = own.number("rope.magnitude", 1e-6, 1e6, rope.magnitude);
    rope.truncate = own.boolean("rope.truncate", true);
  } else {
    f.unsupported("rope.scaling.type",
                  concat("is ", Fields::show(kind), "; moxie has none, linear and yarn for this architecture"));
  }
  return m;
}

/// A number for each layer, 0 for those without what `key` is about.
inline std::vector<std::int64_t> read_gguf_by_layer(const Fields& f, const char* key, const char* about, std::int64_t most,
                                                    std::int64_t n_layers) {
  const nlohmann::json* list = f.find(key);
  const auto layers = static_cast<std::size_t>(n_layers);
  if (!list || !list->is_array() || list->size() < layers)
    f.fail(key, concat((list ? concat("is ", Fields::show(*list)) : std::string("is missing")),
                       "; it must have a number for each of the ", n_layers, " layers, 0 for those without ", about));
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < layers; ++i) {
    const nlohmann::json& n = (*list)[i];
    if (!n.is_number_integer() || n < 0 || n > most)
      f.fail(key, concat("holds ", Fields::show(n), "; it must hold integers from 0 to ", most));
    numbers.push_back(n.get<std::int64_t>());
  }
  return numbers;
}

/// The number that is not 0, the same in all layers that have one; 0 where there is none.
inline std::int64_t the_same(const Fields& f, const char* key, const char* about, const std::vector<std::int64_t>& numbers) {
  std::int64_t all = 0;
  for (const std::int64_t n : numbers) {
    if (n != 0 && all != 0 && n != all)
      f.unsupported(key, concat("differs between layers with ", about, "; moxie needs it to be the same in all"));
    if (n != 0) all = n;
  }
  return all;
}

/// Of models with short convolutions or Mamba-2: attention.head_count_kv has 0 for these layers, and for those that are
/// feed-forward networks alone, of which feed_forward_length is not 0.
inline void read_gguf_kv_heads(Fields& f, const Family& family, ModelConfig& c) {
  const auto heads = read_gguf_by_layer(f, "attention.head_count_kv", "attention", max_heads, c.n_layers);
  c.attention.n_kv_heads = std::max<std::int64_t>(
      1, the_same(f, "attention.head_count_kv", "attention", heads));  // check_config() says that there are none
  for (const std::int64_t n : heads) c.is_recurrent_layer.push_back(n == 0);
  if (!family.one_part) return;
  std::vector<std::int64_t> widths =
      read_gguf_by_layer(f, "feed_forward_length", "a feed-forward network", max_width, c.n_layers);
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const bool feed_forward = widths[i] != 0;
    if (feed_forward && heads[i] != 0)
      f.unsupported("feed_forward_length", concat("is not 0 for layer ", i, ", which has attention; moxie has one of the two"));
    c.layer_parts.push_back(feed_forward ? LayerParts::feed_forward : LayerParts::mixer);
    if (feed_forward) c.is_recurrent_layer[i] = false;
    if (!feed_forward) c.is_moe_layer[i] = false;
    if (c.is_moe_layer[i]) widths[i] = 0;
  }
  c.intermediate_size = the_same(f, "feed_forward_length", "a dense network", widths);
}

inline void read_gguf_attention(Fields& f, const Fields& own, const Family& family, const TensorMap& tensors, ModelConfig& c) {
  AttentionConfig& a = c.attention;
  a.kind = family.attention;
  a.n_heads = f.uniform("attention.head_count", 1, max_heads);
  double width = 0.0;  // of a query and key
  if (a.kind == AttentionKind::gqa) {
    if (!family.gguf.qk_norm_optional || tensors.find(tensor_name(gguf_tensor_names.q_norm, 0))) a.qk_norm = family.qk_norm;
    a.clip_qkv = static_cast<float>(own.number("attention.clip_qkv", 5e-7, 1e6, 0.0));
    a.sinks = family.sinks;
    a.output_gate = family.output_gate;
    a.own_gate = family.own_gate;
    if (family.short_conv || family.mamba)
      read_gguf_kv_heads(f, family, c);
    else
      a.n_kv_heads = f.uniform("attention.head_count_kv", 1, max_heads, a.n_heads);
    if (!f.contains("attention.key_length") && c.hidden_size % a.n_heads != 0)
      f.fail("attention.key_length",
             concat("is missing, and embedding_length ", c.hidden_size, " is no multiple of head_count ", a.n_heads));
    a.head_dim = f.integer("attention.key_length", 1, max_head_dim, c.hidden_size / a.n_heads);
    if (const std::int64_t v = f.integer("attention.value_length", 1, max_head_dim, a.head_dim); v != a.head_dim)
      f.unsupported("attention.value_length", concat("is ", v, " and key_length ", a.head_dim, "; moxie needs them to be equal"));
    a.rope.dims = f.integer("rope.dimension_count", 1, max_head_dim, a.head_dim);
    width = static_cast<double>(a.head_dim);
  } else {
    a.kv_lora_rank = f.integer("attention.kv_lora_rank", 1, max_width);
    a.q_lora_rank = f.integer("attention.q_lora_rank", 0, max_width, 0);
    a.qk_rope_head_dim = f.integer("rope.dimension_count", 1, max_head_dim);
    // files with an unsplit kv_b have the heads' sizes in key_length and value_length
    const std::int64_t qk = f.integer("attention.key_length_mla|attention.key_length", 1, max_head_dim);
    a.v_head_dim = f.integer("attention.value_length_mla|attention.value_length", 1, max_head_dim);
    f.check_missing();
    if (qk <= a.qk_rope_head_dim)
      f.fail("attention.key_length_mla",
             concat("is ", qk, "; it must be larger than rope.dimension_count, ", a.qk_rope_head_dim));
    a.qk_nope_head_dim = qk - a.qk_rope_head_dim;
    a.rope.dims = a.qk_rope_head_dim;
    a.latent_norm_eps =
        static_cast<float>(own.number("attention.latent_norm_epsilon", 1e-20, 1.0, static_cast<double>(c.rms_norm_eps)));
    width = static_cast<double>(qk);
  }
  if (!family.rotates) a.rope.dims = 0;
  const double m = family.rotates ? read_gguf_rope(f, own, family, c.context_length, a.rope) : 1.0;
  const double plain = m * m / std::sqrt(width);
  const double given = f.number("attention.scale", 0.0, 1e6, 0.0);
  a.scale = static_cast<float>(given == 0.0 ? plain : given);

  const std::int64_t window = family.rotates_in_windows ? f.integer("attention.sliding_window", 1, max_context)
                                                        : f.integer("attention.sliding_window", 0, max_context, 0);
  std::vector<std::int64_t> windows(static_cast<std::size_t>(c.n_layers), window);
  const nlohmann::json* pattern = f.find("attention.sliding_window_pattern");
  // A number n: of each n layers the last one has none, or all have one (0), as llama.cpp reads it.
  const bool is_period = pattern && pattern->is_number_integer() && *pattern >= 0 && *pattern <= max_layers;
  const std::int64_t period = is_period ? pattern->get<std::int64_t>() : family.gguf.window_period;
  for (std::int64_t i = period; period != 0 && i <= c.n_layers; i += period) windows[static_cast<std::size_t>(i - 1)] = 0;
  if (pattern && !is_period && window != 0) {
    if (!pattern->is_array() || std::ssize(*pattern) != c.n_layers)
      f.fail("attention.sliding_window_pattern",
             concat("is ", Fields::show(*pattern), "; it must be a number of layers, or have a boolean for each of the ",
                    c.n_layers, " layers"));
    for (std::size_t i = 0; i < windows.size(); ++i) {
      if (!(*pattern)[i].is_boolean())
        f.fail("attention.sliding_window_pattern", concat("holds ", Fields::show((*pattern)[i]), "; it must hold booleans"));
      windows[i] = (*pattern)[i].get<bool>() ? window : 0;
    }
  }
  c.set_sliding_windows(windows);
  a.rotates_in_windows = family.rotates_in_windows;
}

/// The size of each of `heads` heads of a recurrent layer.
inline std::int64_t read_gguf_inner_size(Fields& f, std::int64_t heads) {
  const std::int64_t width = f.integer("ssm.inner_size", 1, max_heads * max_head_dim);
  f.check_missing();
  if (width % heads != 0 || width / heads > max_head_dim)
    f.fail("ssm.inner_size", concat("is ", width, "; it must be a multiple of ssm.time_step_rank, ", heads, ", at most ",
                                    max_head_dim, " times it"));
  return width / heads;
}

/// What is in place of attention in the layers that read_gguf_kv_heads() found.
inline void read_gguf_short_conv(Fields& f, const Family& family, ModelConfig& c) {
  if (family.short_conv) c.short_conv_kernel = f.integer("shortconv.l_cache", 1, max_conv_kernel);
}
inline void read_gguf_mamba(Fields& f, const Family& family, ModelConfig& c) {
  if (!family.mamba) return;
  MambaConfig& m = c.mamba;
  m.n_heads = f.integer("ssm.time_step_rank", 1, max_heads);
  m.n_groups = f.integer("ssm.group_count", 1, max_heads);
  m.state_dim = f.integer("ssm.state_size", 1, max_head_dim);
  m.conv_kernel = f.integer("ssm.conv_kernel", 1, max_conv_kernel);
  m.head_dim = read_gguf_inner_size(f, m.n_heads);
  if (family.rotates && !f.boolean("rope.scaling.finetuned", true))
    c.attention.rope = {.dims = 0, .layout = c.attention.rope.layout};
}

/// Which layers are gated delta nets, and what these are.
inline void read_gguf_delta_net(Fields& f, const Family& family, ModelConfig& c) {
  if (!family.delta_net) return;
  DeltaNetConfig& d = c.delta_net;
  d.n_k_heads = f.integer("ssm.group_count", 1, max_heads);
  d.n_v_heads = f.integer("ssm.time_step_rank", 1, max_heads);
  d.k_head_dim = f.integer("ssm.state_size", 1, max_head_dim);
  d.conv_kernel = f.integer("ssm.conv_kernel", 1, max_conv_kernel);
  d.tiled_heads = family.gguf.tiled_heads;
  d.v_head_dim = read_gguf_inner_size(f, d.n_v_heads);
  const std::int64_t interval = f.integer("full_attention_interval", 1, max_layers, default_full_attention_interval);
  const nlohmann::json* layers = f.find("attention.recurrent_layers");
  if (layers && (!layers->is_array() || std::ssize(*layers) < c.n_layers))
    f.fail("attention.recurrent_layers",
           concat("is ", Fields::show(*layers), "; it must have a boolean for each of the ", c.n_layers, " layers"));
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    const nlohmann::json recurrent = layers ? (*layers)[static_cast<std::size_t>(i)] : nlohmann::json((i + 1) % interval != 0);
    if (!recurrent.is_boolean())
      f.fail("attention.recurrent_layers", concat("holds ", Fields::show(recurrent), "; it must hold booleans"));
    c.is_recurrent_layer.push_back(recurrent.get<bool>());
  }
}

/// expert_gating_func.
inline std::int64_t gguf_gating(RouterScoring scoring) noexcept {
  return scoring == RouterScoring::softmax ? 1 : scoring == RouterScoring::sigmoid ? 2 : 3;
}

inline void read_gguf_moe(Fields& f, const Fields& own, const Family& family, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  RouterConfig& router = moe.router;
  moe.hidden_size = c.hidden_size;
  if (f.integer("expert_count", 0, max_experts, 0) == 0 && family.dense_namesake) {
    c.is_moe_layer.assign(static_cast<std::size_t>(c.n_layers), false);
    return;
  }
  moe.moe_intermediate_size = f.uniform(family.gguf.expert_width, 1, max_width);
  router.n_experts = f.integer("expert_count", 1, max_experts);
  router.top_k = f.integer("expert_used_count", 1, max_experts);
  router.scoring = family.scoring;
  const std::int64_t gating = gguf_gating(family.scoring);
  constexpr const char* names[] = {"softmax", "sigmoid", "softmax over the chosen"};
  if (const std::int64_t found = f.integer("expert_gating_func", 0, 1000, gating); found != gating && found != 0)
    f.unsupported("expert_gating_func",
                  concat("is ", found, "; moxie has ", gating, " (", names[gating - 1], ") for this architecture"));
  router.norm_topk_prob = f.boolean("expert_weights_norm", family.gguf.topk_norm == TopkNorm::always);
  router.norm_epsilon = family.norm_epsilon;
  router.norm_minimum = static_cast<float>(own.number("expert_norm_minimum", 0.0, 1.0, static_cast<double>(family.norm_minimum)));
  const double scale = f.number("expert_weights_scale", 0.0, 1e6, 0.0);
  router.routed_scaling_factor = scale == 0.0 ? 1.0f : static_cast<float>(scale);
  router.n_group = std::max<std::int64_t>(1, f.integer("expert_group_count", 0, max_experts, 1));
  router.topk_group = std::max<std::int64_t>(1, f.integer("expert_group_used_count", 0, max_experts, 1));
  const std::string group_score = own.text("expert_group_score", "best_two");
  if (group_score != "best_two" && group_score != "best")
    own.fail("expert_group_score", concat("is ", Fields::show(group_score), "; it must be 'best_two' or 'best'"));
  router.group_score = group_score == "best" ? GroupScore::best : GroupScore::best_two;
  moe.biases = family.expert_biases;
  moe.gated = family.gated;
  if (family.latent_experts) moe.latent_size = f.integer("moe_latent_size", 0, max_width, 0);
  if (family.swiglu_limit != 0.0f)
    moe.swiglu_limit = static_cast<float>(own.number("swiglu_limit", 1e-3, 1e6, static_cast<double>(family.swiglu_limit)));
  if (family.shared == SharedExperts::counted) {
    const std::int64_t n = f.integer(family.gguf.shared, 0, 1024, 0), width = moe.moe_intermediate_size;
    moe.shared_intermediate_size = !family.gguf.shared_width ? n * width
                                   : family.gguf.shared_width_of_each
                                       ? n * f.integer(family.gguf.shared_width, 0, max_width, width)
                                       : f.integer(family.gguf.shared_width, 0, max_width, n * width);
  }
  if (family.shared == SharedExperts::gated) {
    moe.shared_intermediate_size = f.integer(family.gguf.shared, 1, max_width);
    moe.shared_expert_gate = true;
  }
  if (family.shared == SharedExperts::optional) moe.shared_intermediate_size = f.integer(family.gguf.shared, 0, max_width, 0);
}

/// The factors of rope_freqs.weight, [dims / 2], where the file has it: frequencies are divided by them (Llama 3.1's scaling).
inline std::vector<float> read_rope_freqs(const TensorMap& tensors, const ModelConfig& c) {
  const TensorView* view = tensors.find(gguf_tensor_names.rope_freqs);
  if (!view) return {};
  const std::int64_t n = c.attention.rope.dims / 2;
  if (n == 0) return {};
  if (view->shape != Shape{n} || view->dtype != Dtype::F32 || view->bytes != static_cast<std::uint64_t>(n) * sizeof(float))
    throw FormatError(view->place(), concat("has type ", dtype_info(view->dtype).name, " and shape ", view->shape_text(),
                                            "; it must be F32 ", shape_text({n})));
  std::vector<float> factors(static_cast<std::size_t>(n));
  std::memcpy(factors.data(), view->data, view->bytes);
  for (const float factor : factors)
    if (!(factor > 0.0f && factor < 1e30f)) throw FormatError(view->place(), "holds a factor that is not positive and finite");
  return factors;
}

/// Layers at the end that only predict further tokens (nextn_predict_layers): their tensors say so, or are not there.
inline std::int64_t count_prediction_layers(const Fields& f, const TensorMap& tensors, std::int64_t blocks) {
  const std::int64_t most = std::min(blocks - 1, f.integer("nextn_predict_layers", 0, max_layers, 0));
  std::int64_t n = 0;
  while (n < most && (tensors.find(concat("blk.", blocks - 1 - n, ".nextn.eh_proj.weight")) ||
                      !tensors.find(tensor_name(gguf_tensor_names.attn_norm, blocks - 1 - n))))
    ++n;
  return n;
}

/// Which layers have experts: after the leading dense ones all, but those that hold a dense feed-forward layer and no router.
inline std::vector<bool> find_moe_layers(const Fields& f, const Family& family, const TensorMap& tensors, std::int64_t n_layers) {
  const std::int64_t leading = f.integer("leading_dense_block_count", 0, max_layers, 0);
  std::vector<bool> layers(static_cast<std::size_t>(n_layers));
  for (std::int64_t i = 0; i < n_layers; ++i) {
    const TensorNames& names = gguf_tensor_names;
    const bool dense = tensors.find(tensor_name(family.gated ? names.dense_gate : names.dense_up, i)) &&
                       !tensors.find(tensor_name(names.router, i));
    layers[static_cast<std::size_t>(i)] = i >= leading && !dense;
  }
  return layers;
}

/// `f` reads the keys of the architecture, `own` those of moxie, `all` the whole metadata.
inline ModelConfig read_gguf_config(Fields& f, const Fields& own, const Fields& all, const Family& family,
                                    const TensorMap& tensors) {
  check_fixed(f, gguf_fixed_options);
  if (!family.multipliers)
    check_fixed(f, gguf_without_multipliers);
  else if (!family.mamba)
    check_fixed(f, gguf_with_multipliers);
  if (!family.gguf.rope_sections) check_fixed(f, gguf_without_sections);
  if (!family.latent_experts) check_fixed(f, gguf_without_latents);
  ModelConfig c;
  c.family = family.name;
  c.name = all.text("general.name", "");
  const std::int64_t blocks = f.integer("block_count", 1, max_layers);
  c.n_layers = blocks - count_prediction_layers(f, tensors, blocks);
  c.context_length = f.integer("context_length", 1, max_context);
  c.hidden_size = f.integer("embedding_length", 1, max_width);
  // the hidden size says the most about a file: where a norm contradicts it, that is the defect, whatever else may be missing
  if (const TensorView* norm = tensors.find(tensor_name(gguf_tensor_names.attn_norm, 0));
      norm && norm->shape != Shape{c.hidden_size})
    throw FormatError(norm->place(), concat("has the shape ", norm->shape_text(), "; by embedding_length it must be ",
                                            shape_text({c.hidden_size})));
  const TensorView* embedding = tensors.find(gguf_tensor_names.embedding);
  const std::int64_t rows = embedding && embedding->shape.size() == 2 && embedding->shape[0] > 0 ? embedding->shape[0] : 1;
  c.vocab_size = f.integer("vocab_size", 1, max_vocab, std::min(rows, max_vocab));
  c.rms_norm_eps = static_cast<float>(f.number("attention.layer_norm_rms_epsilon", 1e-20, 1.0));
  c.is_moe_layer = find_moe_layers(f, family, tensors, c.n_layers);
  bool dense = family.gguf.expert_width == std::string_view("feed_forward_length");
  for (const bool moe : c.is_moe_layer) dense = dense || !moe;
  // Files of models without dense layers may leave it out.
  if (!family.one_part)
    c.intermediate_size =
        dense ? f.uniform("feed_forward_length", 1, max_width) : f.uniform("feed_forward_length", 0, max_width, 0);
  if (family.root_embeddings)
    c.embedding_multiplier = static_cast<float>(own.number("embedding_scale", 1e-6, 1e6, static_cast<double>(root_of_width(c))));
  if (family.multipliers) {
    const auto multiplier = [&](const char* key) {  // 0: none, as in llama.cpp
      const double value = f.number(key, 0.0, 1e6, 1.0);
      return value == 0.0 ? 1.0f : static_cast<float>(value);
    };
    c.embedding_multiplier = multiplier("embedding_scale");
    c.residual_multiplier = multiplier("residual_scale");
    c.logits_scaling = multiplier("logit_scale");
  }
  read_gguf_attention(f, own, family, tensors, c);
  if (family.gguf.rope_sections) check_gguf_sections(f, c.attention.rope.dims);
  read_gguf_delta_net(f, family, c);
  read_gguf_mamba(f, family, c);
  read_gguf_short_conv(f, family, c);
  c.permuted_rows = own.boolean("rope.permuted_rows",
                                family.gguf.layout == RopeLayout::interleaved && family.hf.layout == HfRules::Layout::half);
  read_gguf_moe(f, own, family, c);
  f.check_missing();
  check_config(c, f);
  c.attention.rope.freq_factors = read_rope_freqs(tensors, c);
  return c;
}

}  // namespace moxie::families
