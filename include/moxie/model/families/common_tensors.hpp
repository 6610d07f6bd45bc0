#pragma once
// Finds the tensors of a decoder by name, for GGUF and Hugging Face alike, and checks shape and type of each against the
// configuration. Everything missing or misshaped is reported in one FormatError; so is a tensor of the decoder that the
// family does not have (a bias, say), because leaving it out would change the result.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie::families {

enum class Presence { absent, optional, required };

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

using Shape = std::vector<std::int64_t>;

inline std::string shape_text(const Shape& shape) {
  TensorView view;
  view.shape = shape;
  return view.shape_text();
}

/// Elements [first, first + count) of a vector.
inline TensorView slice_vector(const TensorView& view, std::int64_t first, std::int64_t count) {
  TensorView part = view;
  const std::uint64_t element = dtype_info(view.dtype).block_bytes;
  part.shape = {count};
  part.data = view.data + static_cast<std::uint64_t>(first) * element;
  part.bytes = static_cast<std::uint64_t>(count) * element;
  part.offset = view.offset + static_cast<std::uint64_t>(first) * element;
  return part;
}

/// Looks tensors up, checks them, and remembers what was wrong.
class TensorFinder {
 public:
  TensorFinder(const TensorMap& tensors, std::string file) : tensors_(tensors), file_(std::move(file)) {}

  bool has(const std::string& name) const { return tensors_.find(name) != nullptr; }
  void ignore(const std::string& name) {
    if (const TensorView* view = tensors_.find(name)) used_.insert(view);
  }

  /// A matrix, or several of them stacked, of any weight type.
  std::optional<Weight> matrix(const std::string& name, const Shape& shape, Presence presence = Presence::required) {
    const TensorView* view = find(name, shape, presence);
    if (!view || !check_shape(*view, shape)) return std::nullopt;
    if (!is_weight_type(view->dtype)) return wrong(name, "has type " + type_name(*view) + "; it must be a floating-point or quantized type");
    const DtypeInfo& info = dtype_info(view->dtype);
    if (view->columns() % info.block_elements != 0)
      return wrong(name, "has rows of " + std::to_string(view->columns()) + " elements, no multiple of the block of " + type_name(*view) + ", " + std::to_string(info.block_elements));
    if (view->bytes != static_cast<std::uint64_t>(view->rows()) * view->row_stride()) return wrong(name, "has " + std::to_string(view->bytes) + " bytes, which does not fit its shape and type");
    Weight weight{*view, std::nullopt};
    if (view->dtype == Dtype::F8_E4M3) {
      const Shape blocks{(shape[0] + 127) / 128, (shape.back() + 127) / 128};
      const TensorView* scale = find(name + "_scale_inv", blocks, Presence::required);
      if (!scale || !check_shape(*scale, blocks)) return std::nullopt;
      if (scale->dtype != Dtype::F32) return wrong(scale->name, "has type " + type_name(*scale) + "; it must be F32");
      weight.scale_inv = *scale;
    }
    return weight;
  }
  /// A vector of F32, F16 or BF16; [1, n] is taken as [n].
  std::optional<Weight> vector(const std::string& name, std::int64_t n, Presence presence = Presence::required) {
    const TensorView* view = find(name, {n}, presence);
    if (!view) return std::nullopt;
    if (!(view->shape == Shape{1, n}) && !check_shape(*view, {n})) return std::nullopt;
    if (view->dtype != Dtype::F32 && view->dtype != Dtype::F16 && view->dtype != Dtype::BF16)
      return wrong(name, "has type " + type_name(*view) + "; it must be F32, F16 or BF16");
    if (view->bytes != static_cast<std::uint64_t>(n) * dtype_info(view->dtype).block_bytes) return wrong(name, "has " + std::to_string(view->bytes) + " bytes, which does not fit its shape and type");
    Weight weight{*view, std::nullopt};
    weight.tensor.shape = {n};
    return weight;
  }

  /// So much is wrong that looking on would only cost time.
  bool hopeless() const noexcept { return count_ > 10000; }
  /// Throws FormatError when something was missing or wrong.
  void check() const {
    if (count_ == 0) return;
    std::string text = count_ == 1 ? problems_.front().second : std::to_string(count_) + (hopeless() ? " or more" : "") + " tensors are missing or wrong: ";
    if (count_ > 1) {
      for (std::size_t i = 0; i < problems_.size(); ++i) text += (i ? "; '" : "'") + problems_[i].first + "' " + problems_[i].second;
      if (count_ > problems_.size()) text += "; and " + std::to_string(count_ - problems_.size()) + " more";
    }
    throw FormatError({file_, count_ == 1 ? "tensor '" + problems_.front().first + "'" : std::string(), {}}, text);
  }
  /// Throws FormatError when the file has tensors that nobody asked for and that `belongs` says are part of the decoder.
  template <class F>
  void check_unused(const std::string& family, F&& belongs) const {
    std::string list;
    std::size_t unused = 0;
    for (const auto& [name, view] : tensors_.all()) {
      if (used_.contains(&view) || !belongs(name)) continue;
      if (++unused <= shown) list += (unused == 1 ? "'" : ", '") + name + "'";
    }
    if (unused == 0) return;
    if (unused > shown) list += ", and " + std::to_string(unused - shown) + " more";
    throw FormatError({file_, {}, {}}, "the configuration (family " + family + ") has no place for " + (unused == 1 ? "this tensor: " : "these tensors: ") + list +
                                           "; leaving them out would change the result");
  }

 private:
  static constexpr std::size_t shown = 10;

  static bool is_weight_type(Dtype dtype) noexcept {
    switch (dtype) {
      case Dtype::I8: case Dtype::I16: case Dtype::I32: case Dtype::I64: case Dtype::F64: case Dtype::F8_E5M2: case Dtype::U8:
      case Dtype::U16: case Dtype::U32: case Dtype::U64: case Dtype::BOOL: case Dtype::F8_E8M0: return false;
      default: return true;
    }
  }
  static std::string type_name(const TensorView& view) { return std::string(dtype_info(view.dtype).name); }

  const TensorView* find(const std::string& name, const Shape& shape, Presence presence) {
    if (presence == Presence::absent) return nullptr;
    const TensorView* view = tensors_.find(name);
    if (view) used_.insert(view);
    if (!view && presence == Presence::required) wrong(name, "is missing; it must have the shape " + shape_text(shape));
    return view;
  }
  bool check_shape(const TensorView& view, const Shape& shape) {
    if (view.shape == shape) return true;
    wrong(view.name, "has the shape " + view.shape_text() + "; it must be " + shape_text(shape));
    return false;
  }
  std::nullopt_t wrong(const std::string& name, const std::string& what) {
    if (problems_.size() < shown) problems_.emplace_back(name, what);
    ++count_;
    return std::nullopt;
  }

  const TensorMap& tensors_;
  std::string file_;
  std::unordered_set<const TensorView*> used_;
  std::vector<std::pair<std::string, std::string>> problems_;
  std::size_t count_ = 0;
};

class DecoderFinder {
 public:
  DecoderFinder(const ModelConfig& config, const TensorRules& rules, const TensorMap& tensors, const std::string& file)
      : c_(config), rules_(rules), n_(*rules.names), tensors_(tensors), find_(tensors, file) {}

  DecoderTensors run() {
    DecoderTensors all;
    put(all.embedding, find_.matrix(n_.embedding, {c_.vocab_size, c_.hidden_size}));
    put(all.output_norm, find_.vector(n_.output_norm, c_.hidden_size));
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
    put(t.attn_norm, find_.vector(tensor_name(n_.attn_norm, i), c_.hidden_size));
    put(t.ffn_norm, find_.vector(tensor_name(n_.ffn_norm, i), c_.hidden_size));
    const AttentionConfig& a = c_.attention;
    const std::string o = tensor_name(n_.o, i);
    put(t.o, find_.matrix(o, {c_.hidden_size, a.n_heads * (a.kind == AttentionKind::gqa ? a.head_dim : a.v_head_dim)}));
    t.o_bias = find_.vector(bias_name(o), c_.hidden_size, rules_.o_bias);
    if (a.kind == AttentionKind::gqa) {
      grouped_query(i, t);
    } else {
      latent(i, t);
    }
    if (c_.is_moe_layer[static_cast<std::size_t>(i)]) {
      mixture(i, t);
    } else {
      t.dense = feed_forward(n_.dense_gate, n_.dense_up, n_.dense_down, i, -1, c_.intermediate_size);
    }
    return t;
  }

  void grouped_query(std::int64_t i, LayerTensors& t) {
    const AttentionConfig& a = c_.attention;
    const std::int64_t q_rows = a.n_heads * a.head_dim, kv_rows = a.n_kv_heads * a.head_dim, h = c_.hidden_size;
    const std::string q = tensor_name(n_.q, i), k = tensor_name(n_.k, i), v = tensor_name(n_.v, i);
    const std::string qkv = n_.qkv ? tensor_name(n_.qkv, i) : std::string();
    if (!qkv.empty() && find_.has(qkv) && !find_.has(q)) {
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
      t.q = find_.matrix(q, {q_rows, h});
      t.k = find_.matrix(k, {kv_rows, h});
      t.v = find_.matrix(v, {kv_rows, h});
      t.q_bias = find_.vector(bias_name(q), q_rows, rules_.qkv_bias);
      t.k_bias = find_.vector(bias_name(k), kv_rows, rules_.qkv_bias);
      t.v_bias = find_.vector(bias_name(v), kv_rows, rules_.qkv_bias);
    }
    if (a.qk_norm == QkNorm::per_head) {
      t.q_norm = find_.vector(tensor_name(n_.q_norm, i), a.head_dim);
      t.k_norm = find_.vector(tensor_name(n_.k_norm, i), a.head_dim);
    }
  }

  void latent(std::int64_t i, LayerTensors& t) {
    const AttentionConfig& a = c_.attention;
    const std::int64_t q_rows = a.n_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim), kv_rows = a.kv_lora_rank + a.qk_rope_head_dim;
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

  std::optional<FeedForwardTensors> feed_forward(const char* gate, const char* up, const char* down, std::int64_t i, std::int64_t e, std::int64_t width) {
    auto g = find_.matrix(tensor_name(gate, i, e), {width, c_.hidden_size});
    auto u = find_.matrix(tensor_name(up, i, e), {width, c_.hidden_size});
    auto d = find_.matrix(tensor_name(down, i, e), {c_.hidden_size, width});
    if (!g || !u || !d) return std::nullopt;
    return FeedForwardTensors{std::move(*g), std::move(*u), std::move(*d)};
  }

  void mixture(std::int64_t i, LayerTensors& t) {
    const MoeConfig& moe = c_.moe;
    const std::int64_t h = c_.hidden_size, experts = moe.router.n_experts;
    t.router = find_.matrix(tensor_name(n_.router, i), {experts, h});
    if (rules_.selection_bias) t.router_bias = find_.vector(tensor_name(n_.router_bias, i), experts);
    if (moe.shared_intermediate_size != 0) t.shared = feed_forward(n_.shared_gate, n_.shared_up, n_.shared_down, i, -1, moe.shared_intermediate_size);
    if (moe.shared_expert_gate) t.shared_gate = find_.vector(tensor_name(n_.shared_expert_gate, i), h);

    const std::int64_t width = moe.moe_intermediate_size;
    const bool fused = n_.experts_gate_up && find_.has(tensor_name(n_.experts_gate_up, i));
    const bool single = n_.expert_gate && find_.has(tensor_name(n_.expert_gate, i, 0));
    if (!fused && (single || !n_.experts_gate)) {
      for (std::int64_t e = 0; e < experts && !find_.hopeless(); ++e)
        if (auto expert = feed_forward(n_.expert_gate, n_.expert_up, n_.expert_down, i, e, width)) t.experts.push_back(std::move(*expert));
      return;
    }
    const auto down = find_.matrix(tensor_name(n_.experts_down, i), {experts, h, width});
    const auto gate_up = fused ? find_.matrix(tensor_name(n_.experts_gate_up, i), {experts, 2 * width, h}) : std::nullopt;
    const auto gate = fused ? std::nullopt : find_.matrix(tensor_name(n_.experts_gate, i), {experts, width, h});
    const auto up = fused ? std::nullopt : find_.matrix(tensor_name(n_.experts_up, i), {experts, width, h});
    if (!down || !(fused ? gate_up.has_value() : gate && up)) return;
    t.experts.resize(static_cast<std::size_t>(experts));
    for (std::int64_t e = 0; e < experts; ++e) {
      FeedForwardTensors& expert = t.experts[static_cast<std::size_t>(e)];
      expert.down.tensor = down->tensor.slice(e);
      expert.gate.tensor = fused ? gate_up->tensor.slice(e).slice_rows(0, width) : gate->tensor.slice(e);
      expert.up.tensor = fused ? gate_up->tensor.slice(e).slice_rows(width, width) : up->tensor.slice(e);
    }
  }

  /// Whether a tensor that nobody asked for is part of the decoder: all of GGUF's; of Hugging Face's those of the model and the
  /// output matrix, but the rotation's frequencies, which are computed. Layers for multi-token prediction are left out.
  bool belongs(std::string_view name) const {
    const std::string_view prefix = n_.layer_prefix;
    const bool gguf = !prefix.starts_with("model.");
    if (name.starts_with(prefix)) {
      std::int64_t layer = 0;
      std::size_t i = prefix.size();
      for (; i < name.size() && i < prefix.size() + 6 && name[i] >= '0' && name[i] <= '9'; ++i) layer = 10 * layer + (name[i] - '0');
      if (layer >= c_.n_layers && (layer < c_.n_layers + rules_.prediction_layers || predicts(layer))) return false;
    }
    if (name.ends_with("rotary_emb.inv_freq")) return false;
    return gguf || name.starts_with("model.") || name.starts_with("lm_head.");
  }
  bool predicts(std::int64_t layer) const {
    const std::string prefix = n_.layer_prefix + std::to_string(layer);
    return tensors_.find(prefix + ".eh_proj.weight") || tensors_.find(prefix + ".nextn.eh_proj.weight");
  }

  const ModelConfig& c_;
  const TensorRules& rules_;
  const TensorNames& n_;
  const TensorMap& tensors_;
  TensorFinder find_;
};

/// Throws FormatError that lists what is missing, misshaped or of the wrong type.
inline DecoderTensors find_tensors(const ModelConfig& config, const TensorRules& rules, const TensorMap& tensors, const std::string& file) {
  return DecoderFinder(config, rules, tensors, file).run();
}

}  // namespace moxie::families
