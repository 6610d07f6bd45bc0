#pragma once
// Finds the tensors of a decoder by name, for GGUF and Hugging Face alike, and checks shape and type of each against the
// configuration. Everything missing or misshaped is reported in one FormatError; so is a tensor of the decoder that the
// family does not have (a bias, say), because leaving it out would change the result.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/families/tensor_finder.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie::families {

/// What the file should hold beyond what the configuration says.
struct TensorRules {
  const TensorNames* names;
  Presence output = Presence::optional;
  bool tied = false;                        ///< an output matrix in the file is not used
  Presence qkv_bias = Presence::absent;     ///< of q, k, v
  Presence latent_bias = Presence::absent;  ///< of q_a and kv_a
  Presence o_bias = Presence::absent;
  bool selection_bias = false;
  std::int64_t prediction_layers = 0;  ///< layers after the last one, for multi-token prediction; not used
};

/// One walk over the decoder's tensors; find_tensors() is its interface.
class DecoderFinder {
 public:
  DecoderFinder(const ModelConfig& config, const TensorRules& rules, const TensorMap& tensors, const std::string& file)
      : c_(config), rules_(rules), n_(*rules.names), tensors_(tensors), find_(tensors, file) {}

  DecoderTensors run() {
    DecoderTensors all;
    put(all.embedding, find_.matrix(n_.embedding, {c_.vocab_size, c_.hidden_size}));
    put(all.output_norm, norm(find_.vector(n_.output_norm, c_.hidden_size)));
    if (rules_.tied) {
      find_.ignore(n_.output);
    } else {
      all.output = find_.matrix(n_.output, {c_.vocab_size, c_.hidden_size}, rules_.output);
    }
    if (n_.rope_freqs) find_.ignore(n_.rope_freqs);
    for (std::int64_t i = 0; i < c_.n_layers && !find_.hopeless(); ++i) all.layers.push_back(layer(i));
    find_.check();
    find_.check_unused(c_.family, [&](const std::string& name) { return belongs(name); });
    return all;
  }

 private:
  static void put(Weight& to, std::optional<Weight> from) {
    if (from) to = std::move(*from);
  }

  LayerTensors layer(std::int64_t i) {
    LayerTensors t;
    if (n_.attn_post_norm) t.attn_post_norm = norm(find_.vector(tensor_name(n_.attn_post_norm, i), c_.hidden_size));
    if (n_.ffn_post_norm) t.ffn_post_norm = norm(find_.vector(tensor_name(n_.ffn_post_norm, i), c_.hidden_size));
    if (c_.has_mixer(i)) t.attn_norm = norm(find_.vector(tensor_name(n_.attn_norm, i), c_.hidden_size));
    if (c_.has_feed_forward(i)) t.ffn_norm = norm(find_.vector(tensor_name(n_.ffn_norm, i), c_.hidden_size));
    if (c_.recurrent_layer(i) && c_.short_conv_kernel != 0) {
      short_conv(i, t.short_conv.emplace());
    } else if (c_.recurrent_layer(i) && c_.mamba.n_heads != 0) {
      mamba(i, t.mamba.emplace());
    } else if (c_.recurrent_layer(i)) {
      delta_net(i, t.delta_net.emplace());
    } else if (c_.has_mixer(i)) {
      attention(i, t);
    }
    if (c_.is_moe_layer[static_cast<std::size_t>(i)]) {
      mixture(i, t);
    } else if (c_.has_feed_forward(i)) {
      t.dense = feed_forward(n_.dense_gate, n_.dense_up, n_.dense_down, i, -1, c_.intermediate_size, c_.hidden_size);
    }
    return t;
  }

  /// What the file holds of a norm's weight.
  std::optional<Weight> norm(std::optional<Weight> weight) const {
    if (weight && n_.norms_minus_one) weight->stored_as = StoredAs::minus_one;
    return weight;
  }

  void attention(std::int64_t i, LayerTensors& t) {
    const AttentionConfig& a = c_.attention;
    const std::string o = tensor_name(n_.o, i);
    t.o = find_.matrix(o, {c_.hidden_size, a.n_heads * (a.kind == AttentionKind::gqa ? a.head_dim : a.v_head_dim)});
    t.o_bias = find_.vector(bias_name(o), c_.hidden_size, rules_.o_bias);
    if (a.kind == AttentionKind::gqa) {
      grouped_query(i, t);
    } else {
      latent(i, t);
    }
  }

  void delta_net(std::int64_t i, DeltaNetTensors& t) {
    const DeltaNetConfig& d = c_.delta_net;
    const std::int64_t h = c_.hidden_size, values = d.n_v_heads * d.v_head_dim;
    const auto has = [&](const char* pattern) { return pattern && find_.has(tensor_name(pattern, i)); };
    const auto matrix = [&](const char* pattern, const Shape& shape) { return find_.matrix(tensor_name(pattern, i), shape); };
    if (n_.delta_qkvz && (has(n_.delta_qkvz) || !n_.delta_qkv)) {
      put(t.qkv, matrix(n_.delta_qkvz, {d.channels() + values, h}));
    } else {
      put(t.qkv, matrix(n_.delta_qkv, {d.channels(), h}));
      t.z = matrix(n_.delta_z, {values, h});
    }
    if (n_.delta_ba && (has(n_.delta_ba) || !has(n_.delta_b))) {
      t.ba = matrix(n_.delta_ba, {2 * d.n_v_heads, h});
    } else {
      t.b = matrix(n_.delta_b, {d.n_v_heads, h});
      t.a = matrix(n_.delta_a, {d.n_v_heads, h});
    }
    put(t.conv, convolution(tensor_name(n_.delta_conv, i), d.channels(), d.conv_kernel));
    put(t.dt_bias, find_.vector(tensor_name(n_.delta_dt_bias, i), d.n_v_heads));
    put(t.decay, find_.vector(tensor_name(n_.delta_a_log ? n_.delta_a_log : n_.delta_decay, i), d.n_v_heads));
    if (n_.delta_a_log) t.decay.stored_as = StoredAs::log_of_minus;
    put(t.norm, find_.vector(tensor_name(n_.delta_norm, i), d.v_head_dim));
    put(t.out, matrix(n_.delta_out, {h, values}));
  }

  void mamba(std::int64_t i, MambaTensors& t) {
    const MambaConfig& m = c_.mamba;
    const std::int64_t h = c_.hidden_size, width = m.width(), heads = m.n_heads;
    const std::string conv = tensor_name(n_.mamba_conv, i);
    put(t.in, find_.matrix(tensor_name(n_.mamba_in, i), {width + m.channels() + heads, h}));
    put(t.conv, convolution(conv, m.channels(), m.conv_kernel));
    put(t.conv_bias, find_.vector(bias_name(conv), m.channels()));
    put(t.dt_bias, find_.vector(tensor_name(n_.mamba_dt_bias, i), heads));
    put(t.decay, find_.vector(tensor_name(n_.mamba_a_log ? n_.mamba_a_log : n_.mamba_decay, i), heads));
    if (n_.mamba_a_log) t.decay.stored_as = StoredAs::log_of_minus;
    put(t.skip, find_.vector(tensor_name(n_.mamba_d, i), heads));
    put(t.norm, find_.vector(tensor_name(n_.mamba_norm, i), width, Presence::required, m.n_groups));
    put(t.out, find_.matrix(tensor_name(n_.mamba_out, i), {h, width}));
  }

  /// [channels, kernel], or [channels, 1, kernel], as Conv1d has it.
  std::optional<Weight> convolution(const std::string& name, std::int64_t channels, std::int64_t kernel) {
    const TensorView* found = tensors_.find(name);
    const bool three = found && found->shape.size() == 3;
    return find_.floats(name, three ? Shape{channels, 1, kernel} : Shape{channels, kernel});
  }

  void short_conv(std::int64_t i, ShortConvTensors& t) {
    const std::int64_t h = c_.hidden_size;
    put(t.in, find_.matrix(tensor_name(n_.short_conv_in, i), {3 * h, h}));
    put(t.conv, convolution(tensor_name(n_.short_conv, i), h, c_.short_conv_kernel));
    put(t.out, find_.matrix(tensor_name(n_.short_conv_out, i), {h, h}));
  }

  void grouped_query(std::int64_t i, LayerTensors& t) {
    const AttentionConfig& a = c_.attention;
    const std::int64_t q_rows = (a.output_gate ? 2 : 1) * a.n_heads * a.head_dim, kv_rows = a.n_kv_heads * a.head_dim,
                       h = c_.hidden_size;
    const std::string qkv = n_.qkv ? tensor_name(n_.qkv, i) : std::string();
    if (!n_.q || (n_.qkv && find_.has(qkv) && !find_.has(tensor_name(n_.q, i)))) {
      if (const auto all = find_.matrix(qkv, {q_rows + 2 * kv_rows, h})) {
        t.q = Weight{all->tensor.slice_rows(0, q_rows), std::nullopt};
        t.k = Weight{all->tensor.slice_rows(q_rows, kv_rows), std::nullopt};
        t.v = Weight{all->tensor.slice_rows(q_rows + kv_rows, kv_rows), std::nullopt};
      }
      if (const auto all = find_.vector(bias_name(qkv), q_rows + 2 * kv_rows, rules_.qkv_bias)) {
        t.q_bias = Weight{slice_vector(all->tensor, 0, q_rows), std::nullopt};
        t.k_bias = Weight{slice_vector(all->tensor, q_rows, kv_rows), std::nullopt};
        t.v_bias = Weight{slice_vector(all->tensor, q_rows + kv_rows, kv_rows), std::nullopt};
      }
    } else {
      const std::string q = tensor_name(n_.q, i), k = tensor_name(n_.k, i), v = tensor_name(n_.v, i);
      t.q = find_.matrix(q, {q_rows, h});
      t.k = find_.matrix(k, {kv_rows, h});
      t.v = find_.matrix(v, {kv_rows, h});
      t.q_bias = find_.vector(bias_name(q), q_rows, rules_.qkv_bias);
      t.k_bias = find_.vector(bias_name(k), kv_rows, rules_.qkv_bias);
      t.v_bias = find_.vector(bias_name(v), kv_rows, rules_.qkv_bias);
    }
    if (a.qk_norm != QkNorm::none) {
      const bool per_head = a.qk_norm != QkNorm::all_heads;
      t.q_norm = norm(find_.vector(tensor_name(n_.q_norm, i), per_head ? a.head_dim : q_rows));
      t.k_norm = norm(find_.vector(tensor_name(n_.k_norm, i), per_head ? a.head_dim : kv_rows));
    }
    if (a.own_gate) t.attn_gate = find_.matrix(tensor_name(n_.attn_gate, i), {q_rows, h});
    if (a.sinks) t.sinks = find_.vector(tensor_name(n_.sinks, i), a.n_heads);
  }

  void latent(std::int64_t i, LayerTensors& t) {
    const AttentionConfig& a = c_.attention;
    const std::int64_t q_rows = a.n_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim),
                       kv_rows = a.kv_lora_rank + a.qk_rope_head_dim;
    if (a.q_lora_rank == 0) {
      t.q = find_.matrix(tensor_name(n_.q, i), {q_rows, c_.hidden_size});
    } else {
      const std::string q_a = tensor_name(n_.q_a, i);
      t.q_a = find_.matrix(q_a, {a.q_lora_rank, c_.hidden_size});
      t.q_a_bias = find_.vector(bias_name(q_a), a.q_lora_rank, rules_.latent_bias);
      t.q_a_norm = find_.vector(tensor_name(n_.q_a_norm, i), a.q_lora_rank);
      t.q_b = find_.matrix(tensor_name(n_.q_b, i), {q_rows, a.q_lora_rank});
    }
    const std::string kv_a = tensor_name(n_.kv_a, i), kv_b = tensor_name(n_.kv_b, i);
    t.kv_a = find_.matrix(kv_a, {kv_rows, c_.hidden_size});
    t.kv_a_bias = find_.vector(bias_name(kv_a), kv_rows, rules_.latent_bias);
    t.kv_a_norm = find_.vector(tensor_name(n_.kv_a_norm, i), a.kv_lora_rank);
    const bool split = n_.k_b && (find_.has(tensor_name(n_.k_b, i)) || !find_.has(kv_b));
    if (split) {
      t.k_b = find_.matrix(tensor_name(n_.k_b, i), {a.n_heads, a.kv_lora_rank, a.qk_nope_head_dim});
      t.v_b = find_.matrix(tensor_name(n_.v_b, i), {a.n_heads, a.v_head_dim, a.kv_lora_rank});
      find_.ignore(kv_b);  // some files hold both forms
    } else {
      t.kv_b = find_.matrix(kv_b, {a.n_heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank});
    }
  }

  std::optional<FeedForwardTensors> feed_forward(const char* gate, const char* up, const char* down, std::int64_t i,
                                                 std::int64_t e, std::int64_t width, std::int64_t h) {
    auto g = gate ? find_.matrix(tensor_name(gate, i, e), {width, h}) : std::nullopt;
    auto u = find_.matrix(tensor_name(up, i, e), {width, h});
    auto d = find_.matrix(tensor_name(down, i, e), {h, width});
    if ((gate && !g) || !u || !d) return std::nullopt;
    return FeedForwardTensors{std::move(g), std::move(*u), std::move(*d)};
  }

  std::optional<FeedForwardTensors> shared_experts(std::int64_t i, std::int64_t width) {
    if (!n_.shared_gate_up) return feed_forward(n_.shared_gate, n_.shared_up, n_.shared_down, i, -1, width, c_.hidden_size);
    auto both = find_.matrix(tensor_name(n_.shared_gate_up, i), {2 * width, c_.hidden_size});
    auto down = find_.matrix(tensor_name(n_.shared_down, i), {c_.hidden_size, width});
    if (!both || !down) return std::nullopt;
    if (both->scale_inv) return find_.several_in_fp8(std::string(both->tensor.name));
    return FeedForwardTensors{Weight{both->tensor.slice_rows(0, width), std::nullopt},
                              Weight{both->tensor.slice_rows(width, width), std::nullopt}, std::move(*down)};
  }

  void mixture(std::int64_t i, LayerTensors& t) {
    const MoeConfig& moe = c_.moe;
    const std::int64_t experts = moe.router.n_experts, h = moe.expert_input();
    t.router = find_.matrix(tensor_name(n_.router, i), {experts, c_.hidden_size});
    if (moe.latent_size != 0) {
      t.latent_in = find_.matrix(tensor_name(n_.latent_in, i), {moe.latent_size, c_.hidden_size});
      t.latent_out = find_.matrix(tensor_name(n_.latent_out, i), {c_.hidden_size, moe.latent_size});
    }
    if (rules_.selection_bias) t.router_bias = find_.vector(tensor_name(n_.router_bias, i), experts);
    if (moe.shared_intermediate_size != 0) t.shared = shared_experts(i, moe.shared_intermediate_size);
    if (moe.shared_expert_gate) t.shared_gate = find_.vector(tensor_name(n_.shared_expert_gate, i), c_.hidden_size);

    const std::int64_t width = moe.moe_intermediate_size;
    if (moe.biases) {
      t.router_logit_bias = find_.vector(bias_name(tensor_name(n_.router, i)), experts);
      expert_biases(i, t);
    }
    if (n_.alternating_experts || transposed_experts(i)) {
      stacked_experts(i, t);
      return;
    }
    const bool fused =
        n_.experts_gate_up && (find_.has(tensor_name(n_.experts_gate_up, i)) || (!n_.experts_gate && !n_.expert_gate));
    const bool single = n_.expert_down && find_.has(tensor_name(n_.expert_down, i, 0));
    if (!fused && (single || !n_.experts_up)) {
      for (std::int64_t e = 0; e < experts && !find_.hopeless(); ++e)
        if (auto expert = feed_forward(n_.expert_gate, n_.expert_up, n_.expert_down, i, e, width, h))
          t.experts.push_back(std::move(*expert));
      return;
    }
    const auto down = find_.matrix(tensor_name(n_.experts_down, i), {experts, h, width});
    const auto gate_up = fused ? find_.matrix(tensor_name(n_.experts_gate_up, i), {experts, 2 * width, h}) : std::nullopt;
    const bool gated = !fused && n_.experts_gate;
    const auto gate = gated ? find_.matrix(tensor_name(n_.experts_gate, i), {experts, width, h}) : std::nullopt;
    const auto up = fused ? std::nullopt : find_.matrix(tensor_name(n_.experts_up, i), {experts, width, h});
    if (!down || !(fused ? gate_up.has_value() : (gate || !gated) && up)) return;
    t.experts.resize(static_cast<std::size_t>(experts));
    for (std::int64_t e = 0; e < experts; ++e) {
      FeedForwardTensors& expert = t.experts[static_cast<std::size_t>(e)];
      expert.down.tensor = down->tensor.slice(e);
      if (fused || gated) expert.gate = Weight{fused ? gate_up->tensor.slice(e).slice_rows(0, width) : gate->tensor.slice(e)};
      expert.up.tensor = fused ? gate_up->tensor.slice(e).slice_rows(width, width) : up->tensor.slice(e);
    }
  }

  /// [experts, width] in every `step`-th column, from `first` on, of [experts, all columns].
  static Weight columns_of(const Weight& all, std::int64_t width, std::int64_t first, std::int64_t step) {
    Weight weight;
    weight.strided = std::make_shared<const StridedBlocks>(StridedBlocks{all.tensor, {}, first, all.tensor.columns(), step});
    describe(weight, {all.tensor.shape[0], width}, all.tensor.dtype);
    return weight;
  }
  /// Says of a strided weight what it is.
  static void describe(Weight& weight, const Shape& shape, Dtype dtype) {
    weight.tensor = weight.strided->tensor;
    weight.tensor.dtype = dtype;
    weight.tensor.shape = shape;
    weight.tensor.data = nullptr;
    weight.tensor.bytes = static_cast<std::uint64_t>(weight.tensor.rows()) * weight.tensor.row_stride();
  }

  void expert_biases(std::int64_t i, LayerTensors& t) {
    const std::int64_t experts = c_.moe.router.n_experts, width = c_.moe.moe_intermediate_size, h = c_.hidden_size;
    const auto name = [&](const char* pattern) {
      const std::string weight = tensor_name(pattern, i);
      return n_.alternating_experts ? concat(weight, "_bias") : bias_name(weight);
    };
    if (n_.alternating_experts || find_.has(name(n_.experts_gate_up))) {
      if (const auto both = find_.floats(name(n_.experts_gate_up), {experts, 2 * width})) {
        const std::int64_t step = n_.alternating_experts ? 2 : 1;
        t.experts_gate_bias = columns_of(*both, width, 0, step);
        t.experts_up_bias = columns_of(*both, width, step == 2 ? 1 : width, step);
      }
    } else {
      t.experts_gate_bias = find_.floats(name(n_.experts_gate), {experts, width});
      t.experts_up_bias = find_.floats(name(n_.experts_up), {experts, width});
    }
    t.experts_down_bias = find_.floats(name(n_.experts_down), {experts, h});
  }

  /// Whether the experts are transposed where both ways are possible. Where one tensor's sizes leave it open, the other's decide.
  /// (transformers would take that one as it is.)
  bool transposed_experts(std::int64_t i) const {
    const std::int64_t experts = c_.moe.router.n_experts, h = c_.hidden_size, width = c_.moe.moe_intermediate_size;
    const auto is_transposed = [&](const char* pattern, std::int64_t outputs, std::int64_t inputs) {
      const TensorView* found = tensors_.find(tensor_name(pattern, i));
      return found && outputs != inputs && found->shape == Shape{experts, inputs, outputs};
    };
    return n_.experts_may_be_transposed &&
           (is_transposed(n_.experts_gate_up, 2 * width, h) || is_transposed(n_.experts_down, h, width));
  }

  /// The matrices of all experts in one tensor, [experts, inputs, outputs], or as MXFP4.
  struct StackedExperts {
    Weight tensor;
    std::optional<TensorView> exponents;
    std::int64_t outputs, inputs;

    /// `count` outputs first, first + step, .. of expert e.
    Weight matrix(std::int64_t e, std::int64_t first, std::int64_t step, std::int64_t count) const {
      StridedBlocks from{tensor.tensor.slice(e), {}, first, step, outputs};
      if (exponents) {
        const std::int64_t blocks = inputs / 32;
        from = {tensor.tensor.slice(e), exponents->slice(e), first * blocks, step * blocks, 1};
      }
      Weight weight;
      weight.strided = std::make_shared<const StridedBlocks>(std::move(from));
      describe(weight, {count, inputs}, exponents ? Dtype::MXFP4 : tensor.tensor.dtype);
      return weight;
    }
  };
  std::optional<StackedExperts> find_stacked(const std::string& name, std::int64_t outputs, std::int64_t inputs) {
    const std::int64_t experts = c_.moe.router.n_experts;
    const std::string blocks = concat(name, "_blocks"), scales = concat(name, "_scales");
    if (find_.has(name) || !(find_.has(blocks) || find_.has(scales))) {
      auto all = find_.floats(name, {experts, inputs, outputs});
      if (!all) return std::nullopt;
      return StackedExperts{std::move(*all), {}, outputs, inputs};
    }
    if (inputs % 32 != 0) {
      find_.wrong(blocks, concat("cannot hold rows of ", inputs, " elements, no multiple of the block of MXFP4, 32"));
      return std::nullopt;
    }
    const auto codes = find_.bytes(blocks, {experts, outputs, inputs / 32, 16});
    const auto exponents = find_.bytes(scales, {experts, outputs, inputs / 32});
    if (!codes || !exponents) return std::nullopt;
    return StackedExperts{Weight{*codes}, *exponents, outputs, inputs};
  }
  void stacked_experts(std::int64_t i, LayerTensors& t) {
    const std::int64_t width = c_.moe.moe_intermediate_size, h = c_.hidden_size;
    const auto gate_up = find_stacked(tensor_name(n_.experts_gate_up, i), 2 * width, h);
    const auto down = find_stacked(tensor_name(n_.experts_down, i), h, width);
    if (!gate_up || !down) return;
    const std::int64_t step = n_.alternating_experts ? 2 : 1, up = n_.alternating_experts ? 1 : width;
    for (std::int64_t e = 0; e < c_.moe.router.n_experts; ++e)
      t.experts.push_back({gate_up->matrix(e, 0, step, width), gate_up->matrix(e, up, step, width), down->matrix(e, 0, 1, h)});
  }

  /// Whether a tensor that nobody asked for is part of the decoder: all of GGUF's; of Hugging Face's those of the model and the
  /// output matrix, but the rotation's frequencies, which are computed. What is for multi-token prediction (layers, or
  /// "model.mtp_..") is left out.
  bool belongs(std::string_view name) const {
    const std::string_view prefix = n_.layer_prefix;
    const std::string_view model = prefix.substr(0, prefix.find('.') + 1);  // of Hugging Face's files
    const bool gguf = model == "blk.";
    if (name.starts_with(prefix)) {
      std::int64_t layer = 0;
      std::size_t i = prefix.size();
      for (; i < name.size() && i < prefix.size() + 6 && name[i] >= '0' && name[i] <= '9'; ++i)
        layer = 10 * layer + (name[i] - '0');
      if (layer >= c_.n_layers && (layer < c_.n_layers + rules_.prediction_layers || predicts(layer))) return false;
    }
    if (name.ends_with("rotary_emb.inv_freq") || name.starts_with("model.mtp_")) return false;
    return gguf || name.starts_with(model) || name.starts_with("lm_head.");
  }
  bool predicts(std::int64_t layer) const {
    const std::string prefix = concat(n_.layer_prefix, layer);
    return tensors_.find(concat(prefix, ".eh_proj.weight")) || tensors_.find(concat(prefix, ".nextn.eh_proj.weight"));
  }

  const ModelConfig& c_;
  const TensorRules& rules_;
  const TensorNames& n_;
  const TensorMap& tensors_;
  TensorFinder find_;
};

/// Throws FormatError that lists what is missing, misshaped or of the wrong type.
inline DecoderTensors find_tensors(const ModelConfig& config, const TensorRules& rules, const TensorMap& tensors,
                                   const std::string& file) {
  return DecoderFinder(config, rules, tensors, file).run();
}

}  // namespace moxie::families
