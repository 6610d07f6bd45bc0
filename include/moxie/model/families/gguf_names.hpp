#pragma once
// The way back: what a GGUF file must say for a ModelConfig, and which of its tensors holds which weight. For writing files.
//
// Metadata values have the JSON type of the GGUF type they are written as: integers are uint32, floating-point numbers
// float32, booleans bool, strings string, arrays of booleans and integers bool and int32 arrays. What GGUF has no key for is
// written as "moxie.*" keys, which describe_gguf() reads and other programs ignore; they appear only where they are needed.
// Source: llama.cpp, convert_hf_to_gguf.py.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numbers>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common_config.hpp>
#include <moxie/model/families/common_gguf.hpp>
#include <moxie/model/family.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie {

/// The family's data. Throws ArgumentError when config.family is no name of a family.
inline const families::Family& family_of(const ModelConfig& config) {
  for (const families::Family* family : families::all_families)
    if (family->name == config.family) return *family;
  throw ArgumentError({{}, "ModelConfig.family", {}},
                      concat("is '", config.family, "'; it must be one of ", families::list_families(false)));
}

/// general.architecture. Throws ArgumentError.
inline std::string gguf_architecture(const ModelConfig& config) { return family_of(config).architecture; }

/// Whether rows of q and k must be permuted, because GGUF has this architecture with interleaved pairs only.
inline bool gguf_permutes_rows(const ModelConfig& config) {
  return family_of(config).gguf.layout == RopeLayout::interleaved && config.attention.rope.layout == RopeLayout::half;
}

/// Row r of the file's tensor is row order[r] of the weight: in each of `heads` blocks of `skip + dims + rest` rows, the `dims`
/// rows after the first `skip` go from halves to interleaved pairs.
inline std::vector<std::int64_t> pairs_from_halves(std::int64_t heads, std::int64_t skip, std::int64_t dims, std::int64_t rest) {
  const std::int64_t size = skip + dims + rest;
  std::vector<std::int64_t> order(static_cast<std::size_t>(heads * size));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t i = 0; i < dims; ++i)
      order[static_cast<std::size_t>(h * size + skip + i)] = h * size + skip + (i % 2) * (dims / 2) + i / 2;
  return order;
}

/// How the rows of q (or q_b) and of k (or kv_a) are permuted, as pairs_from_halves() says it.
struct RopeRowOrders {
  std::vector<std::int64_t> q, k;  ///< empty: as they are
};

inline RopeRowOrders rope_row_orders(const AttentionConfig& a) {
  const std::int64_t dims = a.rope.dims == 0 ? a.head_dim : a.rope.dims;  // llama.cpp's converter permutes these too
  if (dims % 2 != 0) return {};
  if (a.kind == AttentionKind::gqa)
    return {pairs_from_halves(a.n_heads, 0, dims, a.head_dim - dims),
            pairs_from_halves(a.n_kv_heads, 0, dims, a.head_dim - dims)};
  return {pairs_from_halves(a.n_heads, a.qk_nope_head_dim, dims, 0), pairs_from_halves(1, a.kv_lora_rank, dims, 0)};
}

/// How rows and elements of a gated delta net's tensors lie in another form of them, which has all q, all k, all v and z apart:
/// what is at r there is at order[r] here; empty: the same.
struct DeltaNetOrders {
  std::vector<std::int64_t> qkv, z, heads, values,
      channels;  ///< rows of qkv and z; value heads; their elements; the convolution's channels
};

/// `by_key_head`: qkv has the rows of q, k, v, z of each key head together here. `tile`: value heads are tiled there and not here
/// (DeltaNetConfig::tiled_heads).
inline DeltaNetOrders delta_net_orders(const DeltaNetConfig& d, bool by_key_head, bool tile) {
  DeltaNetOrders orders;
  if (!by_key_head && !tile) return orders;
  const std::int64_t group = d.n_v_heads / d.n_k_heads, dk = d.k_head_dim, dv = d.v_head_dim, step = 2 * (dk + group * dv);
  const auto add = [](std::vector<std::int64_t>& order, std::int64_t first, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) order.push_back(first + i);
  };
  for (std::int64_t p = 0; p < d.n_v_heads; ++p) {
    const std::int64_t h = tile ? p % d.n_k_heads * group + p / d.n_k_heads : p;
    orders.heads.push_back(h);
    add(orders.values, h * dv, dv);
    add(orders.z, by_key_head ? h / group * step + 2 * dk + (group + h % group) * dv : h * dv, dv);
  }
  for (const std::int64_t part : {0, 1})
    for (std::int64_t h = 0; h < d.n_k_heads; ++h)
      add(orders.qkv, by_key_head ? h * step + part * dk : (part * d.n_k_heads + h) * dk, dk);
  add(orders.channels, 0, 2 * d.n_k_heads * dk);
  for (const std::int64_t h : orders.heads) {
    add(orders.qkv, by_key_head ? h / group * step + 2 * dk + h % group * dv : 2 * d.n_k_heads * dk + h * dv, dv);
    add(orders.channels, 2 * d.n_k_heads * dk + h * dv, dv);
  }
  if (!tile) orders.heads = orders.values = orders.channels = {};
  return orders;
}

/// rope_freqs.weight: what frequencies are divided by, [dims / 2]; empty: no such tensor. Llama 3.1's scaling is written this
/// way.
inline std::vector<float> gguf_rope_freqs(const ModelConfig& config) {
  const RopeConfig& r = config.attention.rope;
  if (r.scaling != RopeScaling::llama3) return r.freq_factors;
  std::vector<float> factors;
  const auto context = static_cast<double>(r.original_context);
  for (std::int64_t i = 0; i < r.dims / 2; ++i) {
    const double wavelength =
        2.0 * std::numbers::pi * std::pow(r.theta, 2.0 * static_cast<double>(i) / static_cast<double>(r.dims));
    const double smooth = (context / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
    const double factor = smooth >= 1.0 ? 1.0 : smooth <= 0.0 ? r.factor : 1.0 / ((1.0 - smooth) / r.factor + smooth);
    factors.push_back(static_cast<float>(factor) * (r.freq_factors.empty() ? 1.0f : r.freq_factors[static_cast<std::size_t>(i)]));
  }
  return factors;
}

namespace families {

inline void write_gguf_rope(const ModelConfig& c, const std::string& a, nlohmann::json& out) {
  const AttentionConfig& attention = c.attention;
  const RopeConfig& r = attention.rope;
  const bool mla = attention.kind == AttentionKind::mla;
  out[concat(a, "rope.dimension_count")] = r.dims == 0 ? attention.head_dim : r.dims;
  out[concat(a, "rope.freq_base")] = r.theta;
  if (c.mamba.n_heads != 0) out[concat(a, "rope.scaling.finetuned")] = r.dims != 0;
  double m = 1.0, magnitude = 1.0;  // as describe_gguf() will derive them
  if (r.scaling == RopeScaling::linear) {
    out[concat(a, "rope.scaling.type")] = "linear";
    out[concat(a, "rope.scaling.factor")] = r.factor;
  } else if (r.scaling == RopeScaling::yarn) {
    out[concat(a, "rope.scaling.type")] = "yarn";
    out[concat(a, "rope.scaling.factor")] = r.factor;
    out[concat(a, "rope.scaling.original_context_length")] = r.original_context;
    out[concat(a, "rope.scaling.yarn_beta_fast")] = r.beta_fast;
    out[concat(a, "rope.scaling.yarn_beta_slow")] = r.beta_slow;
    magnitude = yarn_mscale(r.factor, 1.0);
    const double plain = 1.0 / std::sqrt(static_cast<double>(attention.qk_nope_head_dim + attention.qk_rope_head_dim));
    if (mla && r.factor > 1.0 && static_cast<double>(attention.scale) > plain * (1.0 + 1e-6)) {
      m = std::sqrt(static_cast<double>(attention.scale) / plain);
      magnitude = 1.0;
      out[concat(a, "rope.scaling.yarn_log_multiplier")] = (m - 1.0) / std::log(r.factor);
    }
    if (!r.truncate) out["moxie.rope.truncate"] = false;
  }
  if (std::abs(r.magnitude - magnitude) > 1e-7 * magnitude) {
    if (mla) {
      out["moxie.rope.magnitude"] = r.magnitude;
    } else {
      out[concat(a, "rope.scaling.attn_factor")] = r.magnitude / magnitude;
    }
  }
  const double width = static_cast<double>(mla ? attention.qk_nope_head_dim + attention.qk_rope_head_dim : attention.head_dim);
  const double scale = m * m / std::sqrt(width);
  if (std::abs(static_cast<double>(attention.scale) - scale) > 1e-6 * scale)
    out[concat(a, "attention.scale")] = static_cast<double>(attention.scale);
}

/// The step s with which layer i from `leading` on is a MoE layer where i + 1 is a multiple of s; 0 where there is none.
inline std::int64_t moe_layer_step(const std::vector<bool>& is_moe_layer, std::int64_t leading) {
  const std::int64_t n = std::ssize(is_moe_layer);
  for (std::int64_t step = 1; step <= n; ++step) {
    bool fits = true;
    for (std::int64_t i = leading; i < n; ++i) fits = fits && is_moe_layer[static_cast<std::size_t>(i)] == ((i + 1) % step == 0);
    if (fits) return step;
  }
  return 0;
}

}  // namespace families

/// Metadata that describe_gguf() turns back into `config` (general.architecture, general.name, the keys of the architecture).
/// `split_kv_b`: the file has attn_k_b and attn_v_b rather than attn_kv_b. Throws ArgumentError for an unknown family,
/// UnsupportedError for what GGUF cannot say.
inline nlohmann::json gguf_metadata(const ModelConfig& config, bool split_kv_b) {
  const families::Family& family = family_of(config);
  const AttentionConfig& attention = config.attention;
  const MoeConfig& moe = config.moe;
  const RouterConfig& router = moe.router;
  const std::string a = concat(family.architecture, ".");
  nlohmann::json out = nlohmann::json::object();
  out["general.architecture"] = family.architecture;
  if (!config.name.empty()) out["general.name"] = config.name;
  out[concat(a, "block_count")] = config.n_layers;
  out[concat(a, "context_length")] = config.context_length;
  out[concat(a, "embedding_length")] = config.hidden_size;
  out[concat(a, "vocab_size")] = config.vocab_size;
  out[concat(a, "feed_forward_length")] = config.intermediate_size;
  if (family.one_part) {
    nlohmann::json widths = nlohmann::json::array();
    for (std::int64_t i = 0; i < config.n_layers; ++i)
      widths.push_back(!config.has_feed_forward(i)                        ? 0
                       : config.is_moe_layer[static_cast<std::size_t>(i)] ? moe.moe_intermediate_size
                                                                          : config.intermediate_size);
    out[concat(a, "feed_forward_length")] = widths;
    out[concat(a, "attention.layer_norm_epsilon")] = static_cast<double>(config.rms_norm_eps);  // llama.cpp asks for it too
  }
  out[concat(a, "attention.layer_norm_rms_epsilon")] = static_cast<double>(config.rms_norm_eps);
  out[concat(a, "attention.head_count")] = attention.n_heads;
  if (attention.kind == AttentionKind::gqa) {
    out[concat(a, "attention.head_count_kv")] = attention.n_kv_heads;
    if (config.short_conv_kernel != 0 || config.mamba.n_heads != 0) {
      nlohmann::json heads = nlohmann::json::array();
      for (std::int64_t i = 0; i < config.n_layers; ++i) heads.push_back(config.has_attention(i) ? attention.n_kv_heads : 0);
      out[concat(a, "attention.head_count_kv")] = heads;
    }
    if (config.short_conv_kernel != 0) out[concat(a, "shortconv.l_cache")] = config.short_conv_kernel;
    out[concat(a, "attention.key_length")] = attention.head_dim;
    out[concat(a, "attention.value_length")] = attention.head_dim;
    if (attention.clip_qkv != 0.0f) out["moxie.attention.clip_qkv"] = static_cast<double>(attention.clip_qkv);
  } else {
    const std::int64_t qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim;
    out[concat(a, "attention.head_count_kv")] = split_kv_b ? 1 : attention.n_heads;
    out[concat(a, "attention.key_length")] = split_kv_b ? attention.kv_lora_rank + attention.qk_rope_head_dim : qk;
    out[concat(a, "attention.value_length")] = split_kv_b ? attention.kv_lora_rank : attention.v_head_dim;
    if (split_kv_b) {
      out[concat(a, "attention.key_length_mla")] = qk;
      out[concat(a, "attention.value_length_mla")] = attention.v_head_dim;
    }
    out[concat(a, "attention.q_lora_rank")] = attention.q_lora_rank;  // 0 too: llama.cpp asks for the key in most models
    out[concat(a, "attention.kv_lora_rank")] = attention.kv_lora_rank;
    if (attention.latent_norm_eps != config.rms_norm_eps)
      out["moxie.attention.latent_norm_epsilon"] = static_cast<double>(attention.latent_norm_eps);
  }
  families::write_gguf_rope(config, a, out);
  if (family.multipliers) {
    out[concat(a, "embedding_scale")] = static_cast<double>(config.embedding_multiplier);
    out[concat(a, "residual_scale")] = static_cast<double>(config.residual_multiplier);
    out[concat(a, "logit_scale")] = static_cast<double>(config.logits_scaling);
  }
  if (family.root_embeddings && config.embedding_multiplier != families::root_of_width(config))
    out["moxie.embedding_scale"] = static_cast<double>(config.embedding_multiplier);
  // In the other families the architecture says it.
  if (family.hf.layout == families::HfRules::Layout::by_key && (gguf_permutes_rows(config) || config.permuted_rows))
    out["moxie.rope.permuted_rows"] = true;
  std::int64_t window = 0, leading = 0;
  nlohmann::json pattern = nlohmann::json::array();
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    window = std::max(window, config.sliding_window(i));
    pattern.push_back(config.sliding_window(i) != 0);
  }
  if (window != 0) out[concat(a, "attention.sliding_window")] = window;
  const std::int64_t period = family.gguf.window_period;  // of what a file says without it
  bool implied = period != 0;
  for (std::int64_t i = 0; i < config.n_layers && implied; ++i)
    implied = (config.sliding_window(i) == 0) == ((i + 1) % period == 0);
  if (period != 0 ? window != 0 && !implied : !config.layer_windows.empty())
    out[concat(a, "attention.sliding_window_pattern")] = pattern;

  if (const MambaConfig& m = config.mamba; m.n_heads != 0) {
    out[concat(a, "ssm.conv_kernel")] = m.conv_kernel;
    out[concat(a, "ssm.state_size")] = m.state_dim;
    out[concat(a, "ssm.group_count")] = m.n_groups;
    out[concat(a, "ssm.time_step_rank")] = m.n_heads;
    out[concat(a, "ssm.inner_size")] = m.width();
  }
  if (const DeltaNetConfig& d = config.delta_net; d.n_k_heads != 0) {
    out[concat(a, "ssm.conv_kernel")] = d.conv_kernel;
    out[concat(a, "ssm.state_size")] = d.k_head_dim;
    out[concat(a, "ssm.group_count")] = d.n_k_heads;
    out[concat(a, "ssm.time_step_rank")] = d.n_v_heads;
    out[concat(a, "ssm.inner_size")] = d.n_v_heads * d.v_head_dim;
    const auto first_full = std::find(config.is_recurrent_layer.begin(), config.is_recurrent_layer.end(), false);
    const std::int64_t interval = first_full - config.is_recurrent_layer.begin() + 1;
    bool regular = true;
    for (std::int64_t i = 0; i < config.n_layers; ++i)
      regular = regular && config.recurrent_layer(i) == ((i + 1) % interval != 0);
    if (regular) out[concat(a, "full_attention_interval")] = interval;
    out[concat(a, "attention.recurrent_layers")] = config.is_recurrent_layer;
  }
  if (family.gguf
          .rope_sections)  // which are those of the models does not matter to text; together they are half of the dimensions
    out[concat(a, "rope.dimension_sections")] = [&] {
      const std::int64_t half = attention.rope.dims / 2, third = half / 3;
      return nlohmann::json::array({half - 2 * third - (half % 3 == 2), third + (half % 3 == 2), third, 0});
    }();

  out[concat(a, "expert_count")] = router.n_experts;
  out[concat(a, "expert_used_count")] = router.top_k;
  out[a + family.gguf.expert_width] = moe.moe_intermediate_size;
  if (family.shared == families::SharedExperts::counted)
    out[a + family.gguf.shared] = moe.shared_intermediate_size / moe.moe_intermediate_size;
  if (family.gguf.shared_width)
    out[a + family.gguf.shared_width] =
        family.gguf.shared_width_of_each ? moe.moe_intermediate_size : moe.shared_intermediate_size;
  if (family.shared == families::SharedExperts::gated ||
      (family.shared == families::SharedExperts::optional && moe.shared_intermediate_size != 0))
    out[a + family.gguf.shared] = moe.shared_intermediate_size;
  if (router.norm_topk_prob != (family.gguf.topk_norm == families::TopkNorm::always))
    out[concat(a, "expert_weights_norm")] = router.norm_topk_prob;
  if (family.hf.groups || router.routed_scaling_factor != 1.0f)
    out[concat(a, "expert_weights_scale")] = static_cast<double>(router.routed_scaling_factor);
  if (family.hf.groups || router.scoring == RouterScoring::sigmoid)
    out[concat(a, "expert_gating_func")] = families::gguf_gating(router.scoring);
  if (router.norm_minimum != family.norm_minimum) out["moxie.expert_norm_minimum"] = static_cast<double>(router.norm_minimum);
  using Dense = families::HfRules::Dense;
  if (family.hf.dense == Dense::first_k || family.hf.dense == Dense::outside_range) {
    while (leading < config.n_layers && !config.is_moe_layer[static_cast<std::size_t>(leading)]) ++leading;
    out[concat(a, "leading_dense_block_count")] = leading;
    if (family.gguf.moe_layer_step) {
      const std::int64_t step = families::moe_layer_step(config.is_moe_layer, leading);
      if (step == 0)
        throw UnsupportedError(
            "GGUF files of this family cannot say which layers are dense: after the first ones, MoE layers are those of "
            "each n-th layer, which is not so here");
      out[a + family.gguf.moe_layer_step] = step;
    }
  }
  if (moe.latent_size != 0) out[concat(a, "moe_latent_size")] = moe.latent_size;
  if (router.n_group > 1) {
    out[concat(a, "expert_group_count")] = router.n_group;
    out[concat(a, "expert_group_used_count")] = router.topk_group;
    if (router.group_score == GroupScore::best) out["moxie.expert_group_score"] = "best";
  }
  if (moe.swiglu_limit != family.swiglu_limit) out["moxie.swiglu_limit"] = static_cast<double>(moe.swiglu_limit);
  return out;
}

/// One tensor of a GGUF file.
struct GgufTensor {
  std::string name;
  std::vector<const Weight*> parts;        ///< whose rows follow one another
  bool stacked = false;                    ///< one for each expert, along a new first dimension
  std::vector<std::int64_t> row_order;     ///< row r of the tensor is row row_order[r] of the weight; empty: the same
  std::vector<std::int64_t> column_order;  ///< the same of columns, of a vector elements
  std::vector<std::int64_t> given_shape = {};  ///< of one weight, where that of the weight has dimensions of 1 that GGUF has not

  /// [rows.., columns] of one weight, two dimensions of which are those of a matrix.
  std::vector<std::int64_t> shape() const {
    std::vector<std::int64_t> shape = given_shape.empty() ? parts.front()->tensor.shape : given_shape;
    for (std::size_t i = 1; i < parts.size() && !stacked; ++i) shape[0] += parts[i]->tensor.shape[0];
    if (!row_order.empty()) shape[0] = static_cast<std::int64_t>(row_order.size());
    if (stacked) shape.insert(shape.begin(), static_cast<std::int64_t>(parts.size()));
    return shape;
  }
};

/// All weights of `tensors`, which must outlive the result, with the names and the order of rows that GGUF wants. kv_b stays
/// unsplit where it is; rope_freqs.weight is apart (gguf_rope_freqs). Throws ArgumentError for an unknown family.
inline std::vector<GgufTensor> gguf_tensors(const ModelConfig& config, const DecoderTensors& tensors) {
  const families::TensorNames& n = families::gguf_names_of(family_of(config));
  std::vector<GgufTensor> out;
  std::int64_t layer = -1;
  const auto put = [&](const char* pattern, const Weight* weight, std::vector<std::int64_t> order = {},
                       std::vector<std::int64_t> column_order = {}) {
    if (weight)
      out.push_back({families::tensor_name(pattern, layer), {weight}, false, std::move(order), std::move(column_order)});
  };
  const auto reshaped = [&](const char* pattern, const Weight& weight, std::vector<std::int64_t> shape,
                            std::vector<std::int64_t> order = {}) {
    put(pattern, &weight, std::move(order));
    out.back().given_shape = std::move(shape);
  };
  const auto maybe = [](const std::optional<Weight>& weight) { return weight ? &*weight : nullptr; };
  const auto bias = [&](const char* pattern, const std::optional<Weight>& weight, std::vector<std::int64_t> order = {}) {
    if (weight)
      out.push_back({families::bias_name(families::tensor_name(pattern, layer)), {&*weight}, false, {}, std::move(order)});
  };
  const auto feed_forward = [&](const char* gate, const char* up, const char* down, const std::optional<FeedForwardTensors>& t) {
    if (!t) return;
    put(gate, maybe(t->gate));
    put(up, &t->up);
    put(down, &t->down);
  };
  const auto stack = [&](const char* pattern, const std::vector<FeedForwardTensors>& experts, auto&& part) {
    if (experts.empty() || !part(experts.front())) return;
    GgufTensor all{families::tensor_name(pattern, layer), {}, true, {}, {}};
    for (const FeedForwardTensors& expert : experts) all.parts.push_back(part(expert));
    out.push_back(std::move(all));
  };

  const auto delta_net = [&](const DeltaNetTensors& t) {
    const DeltaNetConfig& d = config.delta_net;
    const bool tile = family_of(config).gguf.tiled_heads && !d.tiled_heads;
    DeltaNetOrders order = delta_net_orders(d, !t.z, tile);
    put(n.delta_qkv, &t.qkv, std::move(order.qkv));
    put(n.delta_z, t.z ? &*t.z : &t.qkv, std::move(order.z));
    put(n.delta_ba, maybe(t.ba));
    put(n.delta_b, maybe(t.b), order.heads);
    put(n.delta_a, maybe(t.a), order.heads);
    reshaped(n.delta_conv, t.conv, {d.channels(), d.conv_kernel}, std::move(order.channels));
    put(n.delta_dt_bias, &t.dt_bias, {}, order.heads);
    put(n.delta_decay, &t.decay, {}, order.heads);
    put(n.delta_norm, &t.norm);
    put(n.delta_out, &t.out, {}, std::move(order.values));
  };

  const auto mamba = [&](const MambaTensors& t) {
    const MambaConfig& m = config.mamba;
    put(n.mamba_in, &t.in);
    reshaped(n.mamba_conv, t.conv, {m.channels(), m.conv_kernel});
    out.push_back({families::bias_name(families::tensor_name(n.mamba_conv, layer)), {&t.conv_bias}, false, {}, {}});
    put(n.mamba_dt_bias, &t.dt_bias);
    reshaped(n.mamba_decay, t.decay, {m.n_heads, 1});
    reshaped(n.mamba_d, t.skip, {m.n_heads, 1});
    reshaped(n.mamba_norm, t.norm, {m.n_groups, m.width() / m.n_groups});
    put(n.mamba_out, &t.out);
  };

  const RopeRowOrders order = gguf_permutes_rows(config) ? rope_row_orders(config.attention) : RopeRowOrders{};

  put(n.embedding, &tensors.embedding);
  put(n.output_norm, &tensors.output_norm);
  put(n.output, maybe(tensors.output));
  for (const LayerTensors& t : tensors.layers) {
    ++layer;
    put(n.attn_norm, maybe(t.attn_norm));
    put(n.attn_post_norm, maybe(t.attn_post_norm));
    put(n.attn_gate, maybe(t.attn_gate));
    if (n.q) {
      put(n.q, maybe(t.q), order.q);
      bias(n.q, t.q_bias, order.q);
      put(n.k, maybe(t.k), order.k);
      bias(n.k, t.k_bias, order.k);
      put(n.v, maybe(t.v));
      bias(n.v, t.v_bias);
    } else if (t.q) {
      out.push_back({families::tensor_name(n.qkv, layer), {&*t.q, &*t.k, &*t.v}, false, {}, {}});
    }
    put(n.q_norm, maybe(t.q_norm));
    put(n.k_norm, maybe(t.k_norm));
    put(n.sinks, maybe(t.sinks));
    put(n.q_a, maybe(t.q_a));
    bias(n.q_a, t.q_a_bias);
    put(n.q_a_norm, maybe(t.q_a_norm));
    put(n.q_b, maybe(t.q_b), order.q);
    put(n.kv_a, maybe(t.kv_a), order.k);
    bias(n.kv_a, t.kv_a_bias, order.k);
    put(n.kv_a_norm, maybe(t.kv_a_norm));
    put(n.kv_b, maybe(t.kv_b));
    put(n.k_b, maybe(t.k_b));
    put(n.v_b, maybe(t.v_b));
    put(n.o, maybe(t.o));
    bias(n.o, t.o_bias);
    if (t.delta_net) delta_net(*t.delta_net);
    if (t.mamba) mamba(*t.mamba);
    if (t.short_conv) {
      put(n.short_conv_in, &t.short_conv->in);
      reshaped(n.short_conv, t.short_conv->conv, {config.hidden_size, config.short_conv_kernel});
      put(n.short_conv_out, &t.short_conv->out);
    }
    put(n.ffn_norm, maybe(t.ffn_norm));
    put(n.ffn_post_norm, maybe(t.ffn_post_norm));
    feed_forward(n.dense_gate, n.dense_up, n.dense_down, t.dense);
    put(n.router, maybe(t.router));
    bias(n.router, t.router_logit_bias);
    put(n.router_bias, maybe(t.router_bias));
    put(n.latent_in, maybe(t.latent_in));
    put(n.latent_out, maybe(t.latent_out));
    stack(n.experts_gate, t.experts, [&](const FeedForwardTensors& expert) { return maybe(expert.gate); });
    stack(n.experts_up, t.experts, [](const FeedForwardTensors& expert) { return &expert.up; });
    stack(n.experts_down, t.experts, [](const FeedForwardTensors& expert) { return &expert.down; });
    bias(n.experts_gate, t.experts_gate_bias);
    bias(n.experts_up, t.experts_up_bias);
    bias(n.experts_down, t.experts_down_bias);
    feed_forward(n.shared_gate, n.shared_up, n.shared_down, t.shared);
    put(n.shared_expert_gate, maybe(t.shared_gate));
  }
  return out;
}

}  // namespace moxie
