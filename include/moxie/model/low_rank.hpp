#pragma once
// Low-rank updates (LoRA) of a model's linear layers, merged into the weights before they are packed:
//
//   W' = W + scale * B A,   W [outputs, inputs], A [rank, inputs], B [outputs, rank]
//
// A row of W' is computed in f32: the row of W, then for k = 0 .. rank - 1 a fused fma(scale * B[o][k], A[k], row). It is stored
// in W's own type where that is F32, F16 or BF16, else (quantized weights, FP8) as BF16: its rounding, 2^-9, is below that of any
// quantized type, and a quantized type would round most of a small update away. Merged weights take that memory until they are
// packed.
//
// Updates are named by Hugging Face's modules ("model.layers.0.self_attn.q_proj", "lm_head"), for GGUF files too: rows that GGUF
// permutes are permuted, and kv_b's update is split where a file has k_b and v_b. Experts have updates of their own
// ("model.layers.0.mlp.experts.3.up_proj"), or one update for all E experts of a layer, as PEFT makes for the stacked parameters
// of transformers 5 ("model.layers.0.mlp.experts" and ".. .experts.base_layer"; which is that of gate_up_proj [E, 2 width,
// hidden] and which of down_proj [E, hidden, width] shows in their shapes):
//
//   A [E * rank, inputs], B [outputs, rank * E]:  A_e[k] = A[e * rank + k],  B_e[o][k] = B[o][k * E + e]

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/model/families/gguf_names.hpp>
#include <moxie/model/tensors.hpp>
#include <moxie/model/weights.hpp>
#include <moxie/quant/quantize.hpp>

namespace moxie {

/// An update of one linear layer: matrices of floats as they lie in a file.
struct LowRankUpdate {
  TensorView a;  ///< [rank, inputs]
  TensorView b;  ///< [outputs, rank]
};

struct LowRankAdapter {
  std::map<std::string, LowRankUpdate, std::less<>> updates;  ///< by module
  /// The scale of a module, or of a stacked parameter of it, whose update has this rank. Throws where that is not the rank it
  /// should have.
  std::function<float(const std::string& module, std::int64_t rank)> scale;
};

/// Memory of merged weights, to be kept until they are packed.
using MergedWeights = std::deque<AlignedBuffer<std::byte>>;

namespace detail {

/// One walk over a decoder's tensors; merge_low_rank() is its interface.
class LowRankMerger {
 public:
  LowRankMerger(const Context& context, const ModelConfig& config, bool gguf, DecoderTensors& tensors,
                const LowRankAdapter& adapter)
      : context_(context), config_(config), adapter_(adapter) {
    const families::Family& family = family_of(config);
    const families::TensorNames& n = *family.hf.names;
    const AttentionConfig& a = config.attention;
    Order q_order, k_order;
    // GGUF has these families' rows of q and k in interleaved pairs, Hugging Face in halves.
    if (gguf && a.kind == AttentionKind::gqa && family.gguf.layout == RopeLayout::interleaved &&
        family.hf.layout == families::HfRules::Layout::half) {
      q_order = pairs_from_halves(a.n_heads, 0, a.rope.dims, a.head_dim - a.rope.dims);
      k_order = pairs_from_halves(a.n_kv_heads, 0, a.rope.dims, a.head_dim - a.rope.dims);
    }
    if (find(n.output)) {
      if (!tensors.output) tensors.output = tensors.embedding;
      merge(n.output, *tensors.output);
    }
    for (layer_ = 0; layer_ < config.n_layers; ++layer_) {
      LayerTensors& t = tensors.layers[static_cast<std::size_t>(layer_)];
      merge(n.q, t.q, q_order);
      merge(n.k, t.k, k_order);
      merge(n.v, t.v);
      merge(n.o, t.o);
      merge(n.q_a, t.q_a);
      merge(n.q_b, t.q_b);
      merge(n.kv_a, t.kv_a);
      merge(n.kv_b, t.kv_b);
      if (!t.kv_b) merge_split(n.kv_b, t);
      feed_forward(n.dense_gate, n.dense_up, n.dense_down, t.dense);
      merge(n.router, t.router);
      merge(n.shared_expert_gate, t.shared_gate);
      feed_forward(n.shared_gate, n.shared_up, n.shared_down, t.shared);
      for (expert_ = 0; expert_ < static_cast<std::int64_t>(t.experts.size()); ++expert_)
        feed_forward(n.expert_gate, n.expert_up, n.expert_down, t.experts[static_cast<std::size_t>(expert_)]);
      expert_ = -1;
      for (const char* module :
           {"model.layers.{i}.mlp.experts", "model.layers.{i}.mlp.experts.base_layer",
            "model.layers.{i}.block_sparse_moe.experts", "model.layers.{i}.block_sparse_moe.experts.base_layer"})
        merge_stacked(families::tensor_name(module, layer_), t.experts);
    }
    check_used();
  }

  MergedWeights take() noexcept { return std::move(merged_); }

 private:
  using Order = std::vector<std::int64_t>;

  using Entry = std::pair<const std::string, LowRankUpdate>;

  /// The update of a weight with this name pattern, or nullptr.
  const Entry* find(const char* pattern) {
    if (!pattern) return nullptr;
    std::string module = families::tensor_name(pattern, layer_, expert_);
    module.resize(module.size() - std::string_view(".weight").size());
    return find_module(module);
  }
  const Entry* find_module(const std::string& module) {
    const auto it = adapter_.updates.find(module);
    if (it == adapter_.updates.end()) return nullptr;
    used_.insert(module);
    return &*it;
  }

  void feed_forward(const char* gate, const char* up, const char* down, std::optional<FeedForwardTensors>& t) {
    if (t) feed_forward(gate, up, down, *t);
  }
  void feed_forward(const char* gate, const char* up, const char* down, FeedForwardTensors& t) {
    merge(gate, t.gate);
    merge(up, t.up);
    merge(down, t.down);
  }
  void merge(const char* pattern, std::optional<Weight>& weight, const Order& order = {}) {
    if (weight) merge(pattern, *weight, order);
  }
  /// Row r of the weight is row order[r] of the update; empty: the same.
  void merge(const char* pattern, Weight& weight, const Order& order = {}) {
    const auto* entry = find(pattern);
    if (!entry) return;
    const LowRankUpdate& update = entry->second;
    const Index rows = weight.tensor.rows(), columns = weight.tensor.columns();
    check_shape(update, rows, columns);
    const RowMatrix a = values(update.a);
    const RowMatrix b = values(update.b) * adapter_.scale(entry->first, a.rows());
    replace(entry->first, update, weight, {rows, columns}, [&](Index r, float* row) {
      const Index of = order.empty() ? r : order[static_cast<std::size_t>(r)];
      for (Index k = 0; k < a.rows(); ++k) context_.kernels->axpy(b(of, k), a.row(k).data(), columns, row);
    });
  }

  /// kv_b [heads * (nope + v), kv_lora] where the file has it as k_b [heads, kv_lora, nope] (transposed) and v_b [heads, v,
  /// kv_lora].
  void merge_split(const char* pattern, LayerTensors& t) {
    const auto* entry = config_.attention.kind == AttentionKind::mla ? find(pattern) : nullptr;
    if (!entry) return;
    const LowRankUpdate& update = entry->second;
    const Index heads = config_.attention.n_heads, nope = config_.attention.qk_nope_head_dim, v = config_.attention.v_head_dim,
                latent = config_.attention.kv_lora_rank;
    check_shape(update, heads * (nope + v), latent);
    const RowMatrix a = values(update.a);
    const RowMatrix b = values(update.b) * adapter_.scale(entry->first, a.rows()), b_transposed = b.transpose();
    replace(entry->first, update, *t.k_b, {heads, latent, nope}, [&](Index r, float* row) {
      for (Index k = 0; k < a.rows(); ++k)
        context_.kernels->axpy(a(k, r % latent), b_transposed.row(k).data() + r / latent * (nope + v), nope, row);
    });
    replace(entry->first, update, *t.v_b, {heads, v, latent}, [&](Index r, float* row) {
      for (Index k = 0; k < a.rows(); ++k)
        context_.kernels->axpy(b(r / v * (nope + v) + nope + r % v, k), a.row(k).data(), latent, row);
    });
  }

  /// An update for all experts of a layer at once.
  void merge_stacked(const std::string& module, std::vector<FeedForwardTensors>& experts) {
    const Entry* entry = experts.empty() ? nullptr : find_module(module);
    if (!entry) return;
    const LowRankUpdate& update = entry->second;
    const auto n = static_cast<Index>(experts.size());
    const Index width = config_.moe.moe_intermediate_size, hidden = config_.hidden_size, ranks = update.a.rows();
    const bool down = update.a.columns() == width && update.b.rows() == hidden;
    if (!down && (update.a.columns() != hidden || update.b.rows() != 2 * width))
      throw FormatError(update.a.place(), "has shape " + update.a.shape_text() + " beside a B of " + update.b.shape_text() +
                                              "; for the experts' gate_up_proj they must be [.., " + std::to_string(hidden) +
                                              "] and [" + std::to_string(2 * width) + ", ..], for their down_proj [.., " +
                                              std::to_string(width) + "] and [" + std::to_string(hidden) + ", ..]");
    if (update.b.columns() != ranks || ranks % n != 0)
      throw FormatError(update.a.place(), "has shape " + update.a.shape_text() + " beside a B of " + update.b.shape_text() +
                                              "; the inner sizes must be the same multiple of " + std::to_string(n) +
                                              ", the number of experts");
    const Index rank = ranks / n;
    std::string parameter = module;
    if (constexpr std::string_view nested = ".base_layer"; parameter.ends_with(nested))
      parameter.resize(parameter.size() - nested.size());
    const RowMatrix a = values(update.a);
    const RowMatrix b = values(update.b) * adapter_.scale(parameter + (down ? ".down_proj" : ".gate_up_proj"), rank);
    for (Index e = 0; e < n; ++e) {
      FeedForwardTensors& expert = experts[static_cast<std::size_t>(e)];
      const auto part = [&](Weight& weight, Index first, Index rows, Index columns) {
        replace(module, update, weight, {rows, columns}, [&](Index r, float* row) {
          for (Index k = 0; k < rank; ++k)
            context_.kernels->axpy(b(first + r, k * n + e), a.row(e * rank + k).data(), columns, row);
        });
      };
      if (down) {
        part(expert.down, 0, hidden, width);
      } else {
        part(expert.gate, 0, width, hidden);
        part(expert.up, width, width, hidden);
      }
    }
  }

  static RowMatrix values(const TensorView& tensor) {
    RowMatrix matrix(tensor.rows(), tensor.columns());
    dequantize(tensor, matrix.data());
    return matrix;
  }

  static void check_shape(const LowRankUpdate& update, Index rows, Index columns) {
    const auto needed = [](Index first, Index second) {
      return "; it must be [" + std::to_string(first) + ", " + std::to_string(second) + "] for this model";
    };
    const Index rank = update.a.rows();
    if (update.a.columns() != columns)
      throw FormatError(update.a.place(), "has shape " + update.a.shape_text() + needed(rank, columns));
    if (update.b.rows() != rows || update.b.columns() != rank)
      throw FormatError(update.b.place(), "has shape " + update.b.shape_text() + needed(rows, rank));
  }

  /// Weight := decoded rows after add(r, row), in a type of its own.
  template <class Add>
  void replace(const std::string& module, const LowRankUpdate& update, Weight& weight, std::vector<std::int64_t> shape,
               Add&& add) {
    const Dtype type = weight.tensor.dtype;
    const Dtype stored = type == Dtype::F32 || type == Dtype::F16 ? type : Dtype::BF16;
    Weight matrix = weight;
    const Index columns = shape.back(), rows = weight.tensor.elements() / columns;
    matrix.tensor.shape = {rows, columns};
    const auto stride = static_cast<std::size_t>(row_bytes(stored, static_cast<std::uint64_t>(columns)));
    AlignedBuffer<std::byte>& bytes = merged_.emplace_back(stride * static_cast<std::size_t>(rows));
    constexpr Index together = 16;
    context_.threads.for_each((rows + together - 1) / together, [&](std::int64_t item, int) {
      const Index first = item * together, count = std::min(together, rows - first);
      RowMatrix part = load_rows(matrix, first, count);
      for (Index r = 0; r < count; ++r) add(first + r, part.row(r).data());
      try {
        encode_rows(stored, part, bytes.data() + static_cast<std::size_t>(first) * stride);
      } catch (const ArgumentError& error) {
        throw FormatError({update.b.file, "module '" + module + "'", {}},
                          std::string("the merged weights cannot be stored: ") + error.what());
      }
    });
    weight.tensor.dtype = stored;
    weight.tensor.shape = std::move(shape);
    weight.tensor.data = bytes.data();
    weight.tensor.bytes = bytes.size();
    weight.scale_inv.reset();
  }

  void check_used() const {
    std::string unknown;
    std::size_t count = 0;
    const LowRankUpdate* first = nullptr;
    for (const auto& [module, update] : adapter_.updates) {
      if (used_.count(module) != 0) continue;
      if (!first) first = &update;
      if (++count <= 3) unknown += (count > 1 ? ", '" : "'") + module + "'";
    }
    if (first)
      throw FormatError({first->a.file, {}, {}},
                        "updates " + unknown + (count > 3 ? " and " + std::to_string(count - 3) + " more" : "") +
                            ", which this model (" + config_.family +
                            ") does not have or moxie cannot update; it can update lm_head, the projections of attention, "
                            "routers and the feed-forward networks");
  }

  const Context& context_;
  const ModelConfig& config_;
  const LowRankAdapter& adapter_;
  std::int64_t layer_ = -1, expert_ = -1;
  std::set<std::string, std::less<>> used_;
  MergedWeights merged_;
};

}  // namespace detail

/// Merges an adapter into the tensors of a model, which refer to the result's memory then. `gguf`: they come from a GGUF file.
/// Throws FormatError when an update fits no layer of the model, or not its shape, or makes weights that are not finite.
[[nodiscard]] inline MergedWeights merge_low_rank(const Context& context, const ModelConfig& config, bool gguf,
                                                  DecoderTensors& tensors, const LowRankAdapter& adapter) {
  return detail::LowRankMerger(context, config, gguf, tensors, adapter).take();
}

}  // namespace moxie
