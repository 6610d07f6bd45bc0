#pragma once
// config.json of Hugging Face transformers to a ModelConfig, by the rules of a Family.
//
// Both forms are read: rope_parameters of transformers 5, rope_theta and rope_scaling of older checkpoints. Options that
// change what the model computes and that moxie does not have raise UnsupportedError.
// Source: transformers 5.24, configuration_*.py, modeling_*.py and modeling_rope_utils.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/json_parser.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_config.hpp>
#include <moxie/model/fields.hpp>

namespace moxie::families {

/// Options of other families that would change the result if one of ours had them.
inline constexpr FixedOption hf_fixed_options[] = {
    {"hidden_act", "\"silu\""},
    {"attn_logit_softcapping", "null"},
    {"final_logit_softcapping", "null"},
    {"attention_chunk_size", "null"},
    {"mlp_bias", "false"},
    {"lm_head_bias", "false"},
};

/// The same in families without Family::multipliers.
inline constexpr FixedOption hf_without_multipliers[] = {
    {"attention_multiplier", "null"}, {"residual_multiplier", "1"}, {"embedding_multiplier", "1"}, {"logits_scaling", "1"}};

/// The same in families that rotate whole heads.
inline constexpr FixedOption hf_whole_rotation[] = {{"partial_rotary_factor", "1"}};
/// The same in families without HfRules::clip_qkv.
inline constexpr FixedOption hf_without_clipping[] = {{"clip_qkv", "null"}};

/// What is read of quantized Hugging Face checkpoints: FP8 with a scale for each 128 x 128 block, and gpt-oss's MXFP4.
inline void check_hf_quantization(const Fields& f, const Family& family) {
  const nlohmann::json* object = f.find("quantization_config");
  if (!object) return;
  const Fields q(*object, f.file(), {}, "quantization_config.");
  const std::string method = q.text("quant_method", "");
  if (method != family.hf.quantization)
    q.unsupported("quant_method", concat("is ", Fields::show(method), "; moxie reads unquantized checkpoints and '",
                                         family.hf.quantization, "' (for others: convert the model to GGUF)"));
  if (method != "fp8") return;
  static constexpr FixedOption options[] = {{"weight_block_size", "[128, 128]"}, {"activation_scheme", "\"dynamic\""}};
  check_fixed(q, options);
  if (const std::string fmt = q.text("fmt", "e4m3"); fmt != "e4m3" && fmt != "float8_e4m3fn")
    q.unsupported("fmt", concat("is ", Fields::show(fmt), "; moxie has 'e4m3', also called 'float8_e4m3fn'"));
}

/// `rope.dims` is the size of a head, or of its part that may be rotated. Returns DeepSeek's factor m on the softmax scale before
/// it is squared.
inline double read_hf_rope(const Fields& f, const Family& family, std::int64_t context_length, RopeConfig& rope) {
  static const nlohmann::json none = nlohmann::json::object();
  const nlohmann::json* parameters = f.find("rope_parameters");
  const nlohmann::json* scaling = f.find("rope_scaling");
  const bool old_form = scaling != nullptr || parameters == nullptr;
  Fields r(scaling ? *scaling : parameters ? *parameters : none, f.file(), {}, old_form ? "rope_scaling." : "rope_parameters.");
  for (const char* kind : {"full_attention", "sliding_attention"})
    if (r.contains(kind))
      r.unsupported(kind, "gives one kind of layer its own rotation; moxie needs it to be the same in all layers");

  constexpr double lowest_theta = 1.001, highest_theta = 1e18, highest_factor = 1e6;
  rope.theta = r.number("rope_theta", lowest_theta, highest_theta,
                        f.number("rope_theta", lowest_theta, highest_theta, family.hf.rope_theta));
  rope.layout = family.hf.layout == HfRules::Layout::half                                                ? RopeLayout::half
                : family.hf.layout == HfRules::Layout::interleaved || f.boolean("rope_interleave", true) ? RopeLayout::interleaved
                                                                                                         : RopeLayout::half;
  if (!family.hf.partial_rotation) {
    if (r.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0)
      r.unsupported("partial_rotary_factor", "is not 1; this family rotates whole heads");
  } else {
    const auto dims = [&](double factor) { return static_cast<std::int64_t>(static_cast<double>(rope.dims) * factor); };
    if (r.contains("partial_rotary_factor"))
      rope.dims = dims(r.number("partial_rotary_factor", 0.0, 1.0));
    else if (f.contains("partial_rotary_factor") || !family.hf.rotary_dim)
      rope.dims = dims(f.number("partial_rotary_factor", 0.0, 1.0, family.hf.rotary_factor));
    else
      rope.dims = f.integer(family.hf.rotary_dim, 1, max_head_dim, dims(family.hf.rotary_factor));
  }

  const std::string kind = r.text("rope_type|type", "default");
  double softmax_mscale = 1.0;
  if (kind == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = r.number("factor", 1e-3, highest_factor);
  } else if (kind == "yarn") {
    rope.scaling = RopeScaling::yarn;
    rope.original_context = r.integer("original_max_position_embeddings", 1, max_context,
                                      f.integer("initial_context_length", 1, max_context, context_length));
    rope.factor = r.contains("factor") ? r.number("factor", 1e-3, highest_factor)
                                       : static_cast<double>(context_length) / static_cast<double>(rope.original_context);
    rope.beta_fast = r.number("beta_fast", 1e-3, 1e6, 32.0);
    rope.beta_slow = r.number("beta_slow", 1e-3, 1e6, 1.0);
    rope.truncate = r.boolean("truncate", true);
    const double mscale = r.number("mscale", 0.0, 100.0, 0.0), mscale_all_dim = r.number("mscale_all_dim", 0.0, 100.0, 0.0);
    const bool both = mscale != 0.0 && mscale_all_dim != 0.0;
    rope.magnitude = r.number(
        "attention_factor", 1e-6, 1e6,
        both ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all_dim) : yarn_mscale(rope.factor, 1.0));
    softmax_mscale = yarn_mscale(rope.factor, mscale_all_dim);
  } else if (kind == "llama3") {
    rope.scaling = RopeScaling::llama3;
    rope.factor = r.number("factor", 1e-3, highest_factor);
    rope.original_context = r.integer("original_max_position_embeddings", 1, max_context);
    rope.low_freq_factor = r.number("low_freq_factor", 1e-3, 1e6);
    rope.high_freq_factor = r.number("high_freq_factor", 1e-3, 1e6);
    r.check_missing();
    if (rope.high_freq_factor <= rope.low_freq_factor) r.fail("high_freq_factor", "must be larger than low_freq_factor");
  } else if (kind == "dynamic") {
    // NTK scaling that grows with the sequence beyond max_position_embeddings. Up to there, which is as far as a sequence goes
    // here, it is none.
    const bool by_alpha = family.hf.ntk_alpha && r.contains("alpha");
    if (!by_alpha) r.number("factor", 1e-3, highest_factor);
    const double alpha = by_alpha ? r.number("alpha", 1e-3, 1e6) : 1.0, dims = static_cast<double>(rope.dims);
    if (by_alpha && rope.dims > 2) rope.theta *= std::pow(alpha, dims / (dims - 2.0));
  } else if (kind != "default") {
    r.unsupported(r.contains("rope_type") ? "rope_type" : "type",
                  concat("is ", Fields::show(kind), "; moxie has default, linear, dynamic, yarn and llama3 for this family"));
  }
  r.check_missing();
  return softmax_mscale;
}

/// Whether attention rotates queries and keys.
inline bool hf_rotates(const Fields& f, const Family& family) {
  if (!family.rotates) return false;
  const std::string positions = family.mamba ? f.text("position_embedding_type", "nope") : "rope";
  if (positions != "rope" && positions != "nope")
    f.unsupported("position_embedding_type", concat("is ", Fields::show(positions), "; moxie has rope and nope"));
  return positions == "rope";
}

inline void read_hf_attention(Fields& f, const Family& family, ModelConfig& c) {
  AttentionConfig& a = c.attention;
  a.kind = family.attention;
  a.n_heads = f.integer("num_attention_heads", 1, max_heads);
  const bool rotates = hf_rotates(f, family);
  double width = 0.0;  // of a query and key
  if (a.kind == AttentionKind::gqa) {
    if (!family.hf.qk_norm_key || f.boolean(family.hf.qk_norm_key, false)) a.qk_norm = family.qk_norm;
    if (family.hf.clip_qkv) a.clip_qkv = static_cast<float>(f.number("clip_qkv", 1e-6, 1e6, 0.0));
    a.sinks = family.sinks;
    a.output_gate = family.output_gate;
    a.own_gate = family.own_gate;
    a.rotates_in_windows = family.rotates_in_windows;
    a.n_kv_heads = f.integer("num_key_value_heads", 1, max_heads, a.n_heads);
    if (!f.contains("head_dim") && family.hf.head_dim == 0 && c.hidden_size % a.n_heads != 0)
      f.fail("head_dim",
             concat("is missing, and hidden_size ", c.hidden_size, " is no multiple of num_attention_heads ", a.n_heads));
    a.head_dim = f.integer("head_dim", 1, max_head_dim, family.hf.head_dim != 0 ? family.hf.head_dim : c.hidden_size / a.n_heads);
    a.rope.dims = a.head_dim;
    width = static_cast<double>(a.head_dim);
  } else {
    a.kv_lora_rank = f.integer("kv_lora_rank", 1, max_width);
    a.q_lora_rank =
        f.mentions("q_lora_rank") ? f.integer("q_lora_rank", 1, max_width, 0) : f.integer("q_lora_rank", 1, max_width);
    a.qk_nope_head_dim = f.integer("qk_nope_head_dim", 1, max_head_dim);
    a.qk_rope_head_dim = f.integer("qk_rope_head_dim", 1, max_head_dim);
    a.v_head_dim = f.integer("v_head_dim", 1, max_head_dim);
    a.latent_norm_eps = 1e-6f;  // whatever rms_norm_eps says
    a.rope.dims = a.qk_rope_head_dim;
    width = static_cast<double>(a.qk_nope_head_dim + a.qk_rope_head_dim);
  }
  if (!rotates) a.rope.dims = 0;
  const double m = rotates ? read_hf_rope(f, family, c.context_length, a.rope) : 1.0;
  a.scale = static_cast<float>((a.kind == AttentionKind::mla ? m * m : 1.0) / std::sqrt(width));
  if (family.multipliers) a.scale = static_cast<float>(f.number("attention_multiplier", 1e-6, 1e6, 1.0));
}

/// The type of a layer in `layer_types`, or in another key's value.
inline std::string hf_layer_type(const Fields& f, const nlohmann::json& types, std::int64_t n_layers, std::int64_t layer,
                                 const char* key = "layer_types") {
  if (!types.is_array() || std::ssize(types) != n_layers || !types[static_cast<std::size_t>(layer)].is_string())
    f.fail(key, concat("is ", Fields::show(types), "; it must be an array of ", n_layers, " strings, one for each layer"));
  return types[static_cast<std::size_t>(layer)].get<std::string>();
}

/// Which layers are short convolutions, and what these are.
inline void read_hf_short_conv(Fields& f, const Family& family, ModelConfig& c) {
  if (!family.short_conv) return;
  c.short_conv_kernel = f.integer("conv_L_cache", 1, max_conv_kernel, 3);
  const nlohmann::json *types = f.find("layer_types"), *attention = f.find("full_attn_idxs");
  if (!types && (!attention || !attention->is_array()))
    f.fail("layer_types", concat("is missing; it must be an array of ", c.n_layers, " strings, one for each layer"));
  if (!types)
    for (const nlohmann::json& layer : *attention)
      if (!layer.is_number_integer() || layer < 0 || layer >= c.n_layers)
        f.fail("full_attn_idxs", concat("holds ", Fields::show(layer), "; it must hold layer numbers below ", c.n_layers));
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    const std::string type = types ? hf_layer_type(f, *types, c.n_layers, i)
                             : std::find(attention->begin(), attention->end(), i) != attention->end() ? "full_attention"
                                                                                                      : "conv";
    if (type != "full_attention" && type != "conv")
      f.unsupported("layer_types", concat("names ", Fields::show(type), "; moxie has full_attention and conv for this family"));
    c.is_recurrent_layer.push_back(type == "conv");
  }
}

/// Models that give a step of Mamba-2 limits; they are none.
inline void check_hf_time_steps(const Fields& f) {
  const nlohmann::json* limits = f.find("mamba_dt_limit|time_step_limit");
  if (!limits) return;
  static const nlohmann::json infinity = parse_trusted_json("{\"__float__\": \"Infinity\"}");  // transformers 5 writes it so
  const bool two = limits->is_array() && limits->size() == 2 && (*limits)[0].is_number();
  const nlohmann::json most = two ? (*limits)[1] : nlohmann::json();
  if (!two || (*limits)[0] != 0 || !(most == infinity || (most.is_number() && most > 1e4)))
    f.unsupported("time_step_limit", concat("is ", Fields::show(*limits), "; moxie has Mamba-2 without limits, 0 and Infinity"));
}

/// Whether the name of a layer's kind means a recurrent layer, or attention.
inline bool hf_means_recurrent(std::string_view kind) { return kind == "mamba" || kind == "linear_attention"; }
inline bool hf_means_attention(std::string_view kind) { return kind == "attention" || kind == "full_attention"; }

/// The kinds of layers of Nemotron-H, by layers_block_type or the letters of older files.
inline std::vector<std::string> hf_block_types(const Fields& f) {
  std::vector<std::string> kinds;
  if (const nlohmann::json* types = f.find("layers_block_type|layer_types")) {
    for (const nlohmann::json& type : types->is_array() ? *types : nlohmann::json::array())
      kinds.push_back(type.is_string() ? type.get<std::string>() : Fields::show(type));
    if (kinds.empty())
      f.fail("layers_block_type", concat("is ", Fields::show(*types), "; it must be an array of strings, one for each layer"));
  } else {
    for (const char letter : f.text("hybrid_override_pattern", ""))
      kinds.push_back(letter == 'M'   ? "mamba"
                      : letter == '*' ? "attention"
                      : letter == 'E' ? "moe"
                      : letter == '-' ? "mlp"
                                      : std::string(1, letter));
  }
  if (kinds.empty())
    f.fail("layers_block_type", "is missing, as is hybrid_override_pattern; one of them must say what each layer is");
  if (kinds.size() > static_cast<std::size_t>(max_layers))
    f.fail("layers_block_type", concat("names ", kinds.size(), " layers; moxie takes at most ", max_layers));
  return kinds;
}

/// Which layers are Mamba-2, attention, experts or dense networks, one of these each, and what Mamba-2 is.
inline void read_hf_one_part(Fields& f, ModelConfig& c) {
  MambaConfig& m = c.mamba;
  m.n_heads = f.integer("mamba_num_heads", 1, max_heads, 128);
  m.n_groups = f.integer("mamba_n_groups|n_groups", 1, max_heads, 8);
  m.state_dim = f.integer("ssm_state_size", 1, max_head_dim, 128);
  m.conv_kernel = f.integer("mamba_d_conv|conv_kernel", 1, max_conv_kernel, 4);
  m.head_dim = f.integer("mamba_head_dim", 1, max_head_dim, 64);
  check_hf_time_steps(f);
  const std::vector<std::string> kinds = hf_block_types(f);
  c.n_layers = std::ssize(kinds);  // whatever num_hidden_layers says, as in transformers
  bool any_dense = false;
  for (const std::string& kind : kinds) {
    const bool recurrent = hf_means_recurrent(kind), attention = hf_means_attention(kind), dense = kind == "mlp";
    if (!recurrent && !attention && !dense && kind != "moe")
      f.unsupported("layers_block_type", concat("names ", Fields::show(kind), "; moxie has mamba, attention, mlp and moe"));
    any_dense = any_dense || dense;
    if (dense && c.intermediate_size == 0) f.fail("intermediate_size", "is missing; dense layers have this width");
    c.is_recurrent_layer.push_back(recurrent);
    c.layer_parts.push_back(recurrent || attention ? LayerParts::mixer : LayerParts::feed_forward);
    c.is_moe_layer.push_back(kind == "moe");
  }
  if (!any_dense) c.intermediate_size = 0;  // files have one all the same
  if (c.n_moe_layers() == 0)
    f.unsupported("layers_block_type", "names no moe: a dense model; moxie runs Mixture-of-Experts models");
}

/// Which layers are Mamba-2, and what these are.
inline void read_hf_mamba(Fields& f, const Family& family, ModelConfig& c) {
  if (!family.mamba) return;
  if (family.one_part) return read_hf_one_part(f, c);
  check_hf_time_steps(f);
  MambaConfig& m = c.mamba;
  m.n_heads = f.integer("mamba_n_heads", 1, max_heads, 128);
  m.n_groups = f.integer("mamba_n_groups", 1, max_heads, 1);
  m.state_dim = f.integer("mamba_d_state", 1, max_head_dim, 256);
  m.conv_kernel = f.integer("mamba_d_conv", 1, max_conv_kernel, 4);
  const std::int64_t width = f.integer("mamba_expand", 1, 64, 2) * c.hidden_size;
  const nlohmann::json* size = f.find("mamba_d_head");
  m.head_dim = size && size->is_string() && *size == "auto" ? width / m.n_heads
                                                            : f.integer("mamba_d_head", 1, max_head_dim, width / m.n_heads);
  if (m.head_dim * m.n_heads != width)
    f.fail("mamba_n_heads", concat("is ", m.n_heads, ", with heads of ", m.head_dim,
                                   "; together they must be mamba_expand * hidden_size, ", width, ", wide"));
  const nlohmann::json* types = f.find("layer_types|layers_block_type");
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    const std::string type = types ? hf_layer_type(f, *types, c.n_layers, i) : "mamba";
    const bool attention = hf_means_attention(type);
    if (!attention && !hf_means_recurrent(type))
      f.unsupported("layer_types", concat("names ", Fields::show(type), "; moxie has attention and mamba for this family"));
    c.is_recurrent_layer.push_back(!attention);
  }
}

/// Which layers are gated delta nets, and what these are.
inline void read_hf_delta_net(Fields& f, const Family& family, ModelConfig& c) {
  if (!family.delta_net) return;
  DeltaNetConfig& d = c.delta_net;
  d.n_k_heads = f.integer("linear_num_key_heads", 1, max_heads, 16);
  d.n_v_heads = f.integer("linear_num_value_heads", 1, max_heads, 32);
  d.k_head_dim = f.integer("linear_key_head_dim", 1, max_head_dim, 128);
  d.v_head_dim = f.integer("linear_value_head_dim", 1, max_head_dim, 128);
  d.conv_kernel = f.integer("linear_conv_kernel_dim", 1, max_conv_kernel, 4);
  const std::int64_t interval = f.integer("full_attention_interval", 1, max_layers, default_full_attention_interval);
  const nlohmann::json* types = f.find("layer_types");
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    const std::string type = types                     ? hf_layer_type(f, *types, c.n_layers, i)
                             : (i + 1) % interval == 0 ? "full_attention"
                                                       : "linear_attention";
    if (type != "full_attention" && type != "linear_attention")
      f.unsupported("layer_types",
                    concat("names ", Fields::show(type), "; moxie has full_attention and linear_attention for this family"));
    c.is_recurrent_layer.push_back(type == "linear_attention");
  }
}

inline void read_hf_windows(const Fields& f, const Family& family, ModelConfig& c) {
  using Window = HfRules::Window;
  const Window rule = family.hf.window;
  const nlohmann::json* types = f.find("layer_types");
  const auto type_of = [&](std::int64_t layer) { return hf_layer_type(f, *types, c.n_layers, layer); };
  if (rule == Window::none) {
    if (f.boolean("use_sliding_window", false)) f.unsupported("use_sliding_window", "is true; this family has no sliding window");
    if (family.delta_net || family.mamba || family.short_conv) return;  // the types have been read
    for (std::int64_t i = 0; types && i < c.n_layers; ++i)
      if (const std::string type = type_of(i); type != "full_attention")
        f.unsupported("layer_types", concat("names ", Fields::show(type), "; this family has only full_attention"));
    return;
  }
  const bool alternating = rule == Window::alternating, late = rule == Window::late, periodic = rule == Window::periodic;
  const bool in_use = rule == Window::everywhere || alternating || late || periodic || f.boolean("use_sliding_window", false);
  const bool absent = !f.mentions("sliding_window") && rule != Window::everywhere;
  const std::int64_t fallback = !absent ? 0 : family.hf.window_default;
  const std::int64_t period = periodic && !types ? f.integer(family.hf.window_period, 1, max_layers, 4) : 1;
  const std::int64_t window = in_use ? f.integer("sliding_window", 0, max_context, fallback) : 0;
  if (family.rotates_in_windows && window == 0)
    f.fail("sliding_window", "is null or 0; this family needs it, as the layers without a window do not rotate");
  const std::int64_t max_window_layers = f.integer("max_window_layers", 0, max_context, late ? 62 : 28);
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    bool sliding = in_use;
    if (rule == Window::by_layer_type && !types) sliding = in_use && i % 2 == 0 && i < max_window_layers;
    if (alternating && !types) sliding = i % 2 == 0;
    if (late && !types) sliding = i >= max_window_layers;
    if (periodic && !types) sliding = (i + 1) % period != 0;
    if (types) {
      const std::string type = type_of(i);
      if (type != "sliding_attention" && type != "full_attention")
        f.unsupported("layer_types",
                      concat("names ", Fields::show(type), "; moxie has full_attention and sliding_attention for this family"));
      if (rule == Window::by_layer_type || alternating || late || periodic) sliding = type == "sliding_attention";
      if (sliding != (type == "sliding_attention") && window != 0)
        f.unsupported("layer_types", "disagrees with sliding_window, which this family uses in all layers or none");
    }
    windows.push_back(sliding ? window : 0);
  }
  c.set_sliding_windows(windows);
}

inline void read_hf_moe(Fields& f, const Family& family, ModelConfig& c) {
  const HfRules& hf = family.hf;
  MoeConfig& moe = c.moe;
  RouterConfig& router = moe.router;
  moe.hidden_size = c.hidden_size;
  if (const nlohmann::json* n = f.find(hf.n_experts); n && *n == 0) {
    const std::string_view keys = hf.n_experts;
    f.unsupported(keys.substr(0, keys.find('|')), "is 0: a dense model; moxie runs Mixture-of-Experts models");
  }
  moe.moe_intermediate_size = f.integer(hf.expert_width, 1, max_width);
  router.n_experts = f.uniform(hf.n_experts, 1, max_experts);
  router.top_k = f.uniform(hf.top_k, 1, max_experts);
  router.scoring = family.scoring;
  router.norm_topk_prob =
      hf.topk_norm == TopkNorm::always || (hf.topk_norm == TopkNorm::by_key && f.boolean("norm_topk_prob", hf.topk_norm_default));
  router.norm_epsilon = family.norm_epsilon;
  router.norm_minimum = family.norm_minimum;
  if (hf.norm_minimum)
    router.norm_minimum = static_cast<float>(f.number(hf.norm_minimum, 0.0, 1.0, static_cast<double>(family.norm_minimum)));
  router.group_score = family.group_score;
  moe.biases = family.expert_biases;
  moe.gated = family.gated;
  if (family.latent_experts) moe.latent_size = f.integer("moe_latent_size", 1, max_width, 0);
  if (family.swiglu_limit != 0.0f)
    moe.swiglu_limit = static_cast<float>(f.number("swiglu_limit", 1e-3, 1e6, static_cast<double>(family.swiglu_limit)));
  if (hf.groups) {
    router.routed_scaling_factor = static_cast<float>(f.number(hf.scaling, 1e-6, 1e6, hf.scaling_default));
    bool groups = true;
    if (hf.group_method) {
      const std::string method = f.text("topk_method", "greedy");
      groups = method == hf.group_method;
      if (!groups && method != "greedy")
        f.unsupported("topk_method", concat("is ", Fields::show(method), "; this family has greedy and ", hf.group_method));
    }
    if (groups) {
      router.n_group = f.integer("n_group", 1, max_experts, f.mentions("n_group") ? 1 : hf.n_group_default);
      router.topk_group = f.integer("topk_group", 1, max_experts, f.mentions("topk_group") ? 1 : hf.topk_group_default);
    }
  }
  if (family.shared == SharedExperts::counted)
    moe.shared_intermediate_size = f.uniform(hf.shared, 0, 1024, hf.shared_default) * moe.moe_intermediate_size;
  if (family.shared == SharedExperts::gated) {
    moe.shared_intermediate_size = f.integer(hf.shared, 1, max_width);
    moe.shared_expert_gate = true;
  }
  if (family.shared == SharedExperts::optional)
    moe.shared_intermediate_size = f.integer(hf.shared, 0, max_width, hf.shared_default);

  if (family.one_part) return;  // the layers' kinds have been read
  c.is_moe_layer.assign(static_cast<std::size_t>(c.n_layers), true);
  if (hf.dense == HfRules::Dense::first_k) {
    const std::int64_t k = f.integer(hf.first_k_key, 0, max_layers, hf.first_k_default);
    for (std::int64_t i = 0; i < std::min(k, c.n_layers); ++i) c.is_moe_layer[static_cast<std::size_t>(i)] = false;
  }
  if (const nlohmann::json* types = f.find("mlp_layer_types")) {  // transformers 5 says it so, whatever older keys there are
    for (std::int64_t i = 0; i < c.n_layers; ++i) {
      const std::string type = hf_layer_type(f, *types, c.n_layers, i, "mlp_layer_types");
      if (type != "dense" && type != "sparse")
        f.unsupported("mlp_layer_types", concat("names ", Fields::show(type), "; moxie has dense and sparse"));
      if (type == "dense" && !hf.names->dense_gate)
        f.unsupported("mlp_layer_types", "names dense; this family has no such layers");
      if (type == "dense" && c.intermediate_size == 0) f.fail("intermediate_size", "is missing; dense layers have this width");
      c.is_moe_layer[static_cast<std::size_t>(i)] = type == "sparse";
    }
    return;
  }
  if (hf.dense == HfRules::Dense::outside_range) {
    const std::int64_t first = f.integer("moe_layer_start_index", 0, max_layers, 1),
                       last = f.integer("moe_layer_end_index", -1, max_layers, -1),
                       interval = f.integer("moe_layer_interval", 1, max_layers, 1);
    for (std::int64_t i = 0; i < c.n_layers; ++i)
      if (i < first || (last >= 0 && i > last) || (i + 1) % interval != 0) c.is_moe_layer[static_cast<std::size_t>(i)] = false;
  }
  if (hf.dense == HfRules::Dense::sparse_step) {
    const std::int64_t step = f.integer("decoder_sparse_step", 1, max_layers, 1);
    for (std::int64_t i = 0; i < c.n_layers; ++i)
      if ((i + 1) % step != 0) c.is_moe_layer[static_cast<std::size_t>(i)] = false;
    if (const nlohmann::json* only = f.find("mlp_only_layers")) {
      if (!only->is_array())
        f.fail("mlp_only_layers", concat("is ", Fields::show(*only), "; it must be an array of layer numbers"));
      for (const nlohmann::json& layer : *only) {
        if (!layer.is_number_integer())
          f.fail("mlp_only_layers", concat("holds ", Fields::show(layer), "; it must hold layer numbers"));
        const std::int64_t i = layer.get<std::int64_t>();
        if (i >= 0 && i < c.n_layers) c.is_moe_layer[static_cast<std::size_t>(i)] = false;
      }
    }
  }
}

inline ModelConfig read_hf_config(Fields& f, const Family& family) {
  check_fixed(f, hf_fixed_options);
  if (!family.multipliers) check_fixed(f, hf_without_multipliers);
  if (!family.hf.partial_rotation) check_fixed(f, hf_whole_rotation);
  if (!family.hf.clip_qkv) check_fixed(f, hf_without_clipping);
  check_fixed(f, family.hf.fixed);
  check_hf_quantization(f, family);
  ModelConfig c;
  c.family = family.same_as ? family.same_as : family.name;
  c.name = f.text("_name_or_path", "");
  c.vocab_size = f.integer("vocab_size", 1, max_vocab);
  c.hidden_size = f.integer("hidden_size", 1, max_width);
  if (!family.one_part) c.n_layers = f.integer("num_hidden_layers", 1, max_layers);
  c.context_length = f.integer("max_position_embeddings", 1, max_context, family.hf.context_length);
  // only of dense layers, but where it is that of experts
  const bool no_dense_layers =
      family.hf.dense == HfRules::Dense::none && family.hf.expert_width != std::string_view("intermediate_size");
  c.intermediate_size =
      no_dense_layers ? f.integer("intermediate_size", 0, max_width, 0) : f.integer("intermediate_size", 1, max_width);
  c.rms_norm_eps = static_cast<float>(f.number(family.hf.rms_norm_eps_key, 1e-20, 1.0, family.hf.rms_norm_eps));
  if (family.root_embeddings && f.boolean("mup_enabled", false)) c.embedding_multiplier = root_of_width(c);
  if (family.multipliers) {
    c.embedding_multiplier = static_cast<float>(f.number("embedding_multiplier", 1e-6, 1e6, 1.0));
    c.residual_multiplier = static_cast<float>(f.number("residual_multiplier", 1e-6, 1e6, 1.0));
    c.logits_scaling = static_cast<float>(f.number("logits_scaling", 1e-6, 1e6, 1.0));
  }
  read_hf_attention(f, family, c);
  read_hf_delta_net(f, family, c);
  read_hf_mamba(f, family, c);
  read_hf_short_conv(f, family, c);
  read_hf_windows(f, family, c);
  read_hf_moe(f, family, c);
  f.check_missing();
  check_config(c, f);
  return c;
}

}  // namespace moxie::families
