#pragma once
// Adapters: low-rank updates (LoRA, arXiv 2106.09685) of a model's linear layers, W [outputs, inputs], A [rank, inputs],
// B [outputs, rank], in one of two ways:
//
//   beside   y = W x + B (scale * (A x)). W stays as it is, quantized or not; the second term is f32 (linalg/low_rank.hpp).
//   Exact,
//            and takes the adapter's memory and time beside the model's. In multi-head latent attention kv_b is absorbed, so its
//            update becomes one for each head: k_b[h] += A^T (scale * B_k[h]^T), v_b[h] += scale * B_v[h] A.
//   merged   W' = W + scale * B A, before W is packed. A row of W' is computed in f32: the row of W, then for k = 0 .. rank - 1 a
//            fused fma(scale * B[o][k], A[k], row). It is stored in W's own type where that is F32, F16 or BF16, else (quantized
//            weights, FP8) as BF16: its rounding, 2^-9, is below that of any quantized type, and a quantized type would round
//            most of a small update away. (Routers and the shared experts' gates, which always multiply as f32, stay f32.) Merged
//            weights take that memory until they are packed. The model is then as fast as one of these types without adapter.
//
// Updates are named by Hugging Face's modules ("model.layers.0.self_attn.q_proj", "lm_head"), for GGUF files too: rows that GGUF
// permutes are permuted, and kv_b's update is split where a file has k_b and v_b. Experts have updates of their own
// ("model.layers.0.mlp.experts.3.up_proj"), or one update for all E experts of a layer, as PEFT makes for the stacked parameters
// of transformers 5 ("model.layers.0.mlp.experts" and ".. .experts.base_layer"; which is that of gate_up_proj [E, 2 width,
// hidden] and which of down_proj [E, hidden, width] shows in their shapes):
//
//   A [E * rank, inputs], B [outputs, rank * E]:  A_e[k] = A[e * rank + k],  B_e[o][k] = B[o][k * E + e]

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/low_rank.hpp>
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

enum class AdapterMode { beside, merged };

/// Memory of merged weights, to be kept until they are packed; empty for adapters beside the weights.
using MergedWeights = std::deque<AlignedBuffer<std::byte>>;

namespace detail {

/// One walk over a decoder's tensors; apply_adapter() is its interface.
class AdapterWalk {
 public:
  AdapterWalk(const Context& context, const ModelConfig& config, DecoderTensors& tensors, const LowRankAdapter& adapter,
              AdapterMode mode)
      : context_(context), config_(config), adapter_(adapter), beside_(mode == AdapterMode::beside) {
    const families::TensorNames& n = *family_of(config).hf.names;
    const RopeRowOrders order = config.permuted_rows ? rope_row_orders(config.attention) : RopeRowOrders{};
    if (find(n.output)) {
      if (!tensors.output) tensors.output = tensors.embedding;
      update(n.output, *tensors.output);
    }
    for (layer_ = 0; layer_ < config.n_layers; ++layer_) {
      LayerTensors& t = tensors.layers[static_cast<std::size_t>(layer_)];
      if (n.q) {
        update(n.q, t.q, order.q);
        update(n.k, t.k, order.k);
        update(n.v, t.v);
      } else if (t.q) {
        parts_of(n.qkv, {&*t.q, &*t.k, &*t.v});
      }
      update(n.attn_gate, t.attn_gate);
      update(n.o, t.o);
      update(n.q_a, t.q_a);
      update(n.q_b, t.q_b, order.q);
      update(n.kv_a, t.kv_a, order.k);
      if (config.attention.kind == AttentionKind::mla) update_kv_b(n.kv_b, t);
      if (t.delta_net) delta_net(n, *t.delta_net);
      if (t.mamba) {
        update(n.mamba_in, t.mamba->in);
        update(n.mamba_out, t.mamba->out);
      }
      if (t.short_conv) {
        update(n.short_conv_in, t.short_conv->in);
        update(n.short_conv_out, t.short_conv->out);
      }
      feed_forward(n.dense_gate, n.dense_up, n.dense_down, t.dense);
      stored_ = Dtype::F32;
      update(n.router, t.router);
      if (std::string_view(n.router) != router_module) update(router_module, t.router);
      update(n.shared_expert_gate, t.shared_gate);
      stored_.reset();
      update(n.latent_in, t.latent_in);
      update(n.latent_out, t.latent_out);
      feed_forward(n.shared_gate, n.shared_up, n.shared_down, t.shared);
      for (expert_ = 0; expert_ < static_cast<std::int64_t>(t.experts.size()); ++expert_)
        feed_forward(n.expert_gate, n.expert_up, n.expert_down, t.experts[static_cast<std::size_t>(expert_)]);
      expert_ = -1;
      for (const char* module :
           {"model.layers.{i}.mlp.experts", "model.layers.{i}.mlp.experts.base_layer",
            "model.layers.{i}.block_sparse_moe.experts", "model.layers.{i}.block_sparse_moe.experts.base_layer",
            "model.layers.{i}.mixer.experts", "model.layers.{i}.mixer.experts.base_layer"})
        update_stacked(families::tensor_name(module, layer_), t.experts);
    }
    check_used();
  }

  MergedWeights take() noexcept { return std::move(merged_); }

 private:
  using Order = std::vector<std::int64_t>;
  /// What transformers 5 calls the router's weight in most families, whatever checkpoints call it.
  static constexpr const char* router_module = "model.layers.{i}.mlp.gate.weight";

  using Entry = std::pair<const std::string, LowRankUpdate>;

  /// The update of a weight with this name pattern, or nullptr.
  const Entry* find(const char* pattern) {
    if (!pattern) return nullptr;
    std::string module = families::tensor_name(pattern, layer_, expert_);
    module.resize(module.size() - std::string_view(".weight").size());
    const Entry* entry = find_module(module);
    // transformers 5 calls the whole "model" where the checkpoints of Nemotron-H have "backbone"
    if (constexpr std::string_view other = "backbone."; !entry && module.starts_with(other))
      entry = find_module(concat("model.", module.substr(other.size())));
    return entry;
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
    update(gate, t.gate);
    update(up, t.up);
    update(down, t.down);
  }
  void update(const char* pattern, std::optional<Weight>& weight, const Order& order = {}) {
    if (weight) update(pattern, *weight, order);
  }
  /// Row r of the weight is row order[r] of the update's `rows`, column c its column columns[c]; empty: the same.
  void update(const char* pattern, Weight& weight, const Order& order = {}, const Order& columns = {}, Index rows = 0) {
    const Entry* entry = find(pattern);
    if (!entry) return;
    check_shape(entry->second, rows != 0 ? rows : weight.tensor.rows(), weight.tensor.columns());
    Matrices m = matrices(*entry);
    if (!order.empty()) {
      const RowMatrix b = m.b;
      m.b.resize(static_cast<Index>(order.size()), b.cols());
      for (Index r = 0; r < m.b.rows(); ++r) m.b.row(r) = b.row(order[static_cast<std::size_t>(r)]);
    }
    if (!columns.empty()) {
      const RowMatrix a = m.a;
      for (Index c = 0; c < a.cols(); ++c) m.a.col(c) = a.col(columns[static_cast<std::size_t>(c)]);
    }
    apply(*entry, m, weight, m.b.rows());
  }

  /// Of one module the model has several weights, whose rows follow one another in the update.
  void parts_of(const char* pattern, std::initializer_list<Weight*> weights) {
    Index rows = 0, first = 0;
    for (const Weight* weight : weights) rows += weight->tensor.rows();
    for (Weight* weight : weights) {
      Order order(static_cast<std::size_t>(weight->tensor.rows()));
      std::iota(order.begin(), order.end(), first);
      first += weight->tensor.rows();
      update(pattern, *weight, order, {}, rows);
    }
  }

  void delta_net(const families::TensorNames& n, DeltaNetTensors& t) {
    const DeltaNetConfig& d = config_.delta_net;
    const bool split = n.delta_qkvz && t.z;  // of one module the file has two tensors
    const DeltaNetOrders order = delta_net_orders(d, split, d.tiled_heads);
    if (split) {
      const Index rows = t.qkv.tensor.rows() + t.z->tensor.rows();
      update(n.delta_qkvz, t.qkv, order.qkv, {}, rows);
      update(n.delta_qkvz, *t.z, order.z, {}, rows);
    } else {
      update(n.delta_qkvz ? n.delta_qkvz : n.delta_qkv, t.qkv, order.qkv);
      update(n.delta_z, t.z, order.z);
    }
    update(n.delta_ba, t.ba);
    update(n.delta_b, t.b, order.heads);
    update(n.delta_a, t.a, order.heads);
    update(n.delta_out, t.out, {}, order.values);
  }

  /// kv_b [heads * (nope + v), kv_lora], which the file may have as k_b [heads, kv_lora, nope] (transposed) and v_b [heads, v,
  /// kv_lora].
  void update_kv_b(const char* pattern, LayerTensors& t) {
    const Entry* entry = find(pattern);
    if (!entry) return;
    const Index heads = config_.attention.n_heads, nope = config_.attention.qk_nope_head_dim, v = config_.attention.v_head_dim,
                latent = config_.attention.kv_lora_rank;
    check_shape(entry->second, heads * (nope + v), latent);
    const Matrices m = matrices(*entry);
    if (beside_) {
      t.kv_b_low_rank = low_rank(*entry, m);
      return;
    }
    if (t.kv_b) {
      apply(*entry, m, *t.kv_b, heads * (nope + v));
      return;
    }
    const RowMatrix b = m.b * m.scale, b_transposed = b.transpose();
    replace(*entry, *t.k_b, heads * latent, [&](Index r, float* row) {
      for (Index k = 0; k < m.a.rows(); ++k)
        context_.kernels->axpy(m.a(k, r % latent), b_transposed.row(k).data() + r / latent * (nope + v), nope, row);
    });
    replace(*entry, *t.v_b, heads * v, [&](Index r, float* row) {
      for (Index k = 0; k < m.a.rows(); ++k)
        context_.kernels->axpy(b(r / v * (nope + v) + nope + r % v, k), m.a.row(k).data(), latent, row);
    });
  }

  /// An update for all experts of a layer at once.
  void update_stacked(const std::string& module, std::vector<FeedForwardTensors>& experts) {
    const Entry* entry = experts.empty() ? nullptr : find_module(module);
    if (!entry) return;
    const LowRankUpdate& update = entry->second;
    if (family_of(config_).hf.names->alternating_experts)
      throw UnsupportedError(update.a.place(), concat("updates the experts of a model of the family ", config_.family,
                                                      ", whose stacked matrices are transposed and alternate gate and up; moxie "
                                                      "has no adapters for them, only for attention, routers and lm_head"));
    const auto n = static_cast<Index>(experts.size());
    const Index width = config_.moe.moe_intermediate_size, hidden = config_.moe.expert_input(), ranks = update.a.rows();
    const Index inner = config_.moe.gated ? 2 * width : width;
    const char* projection = config_.moe.gated ? "gate_up_proj" : "up_proj";
    if (inner == width && width == hidden)
      throw UnsupportedError(update.a.place(), concat("updates experts as wide as the model, ", width,
                                                      ", without a gate: its shape does not tell up_proj from down_proj"));
    const bool down = update.a.columns() == width && update.b.rows() == hidden;
    if (!down && (update.a.columns() != hidden || update.b.rows() != inner))
      throw FormatError(update.a.place(), concat("has shape ", update.a.shape_text(), " beside a B of ", update.b.shape_text(),
                                                 "; for the experts' ", projection, " they must be [.., ", hidden, "] and [",
                                                 inner, ", ..], for their down_proj [.., ", width, "] and [", hidden, ", ..]"));
    if (update.b.columns() != ranks || ranks % n != 0)
      throw FormatError(update.a.place(),
                        concat("has shape ", update.a.shape_text(), " beside a B of ", update.b.shape_text(),
                               "; the inner sizes must be the same multiple of ", n, ", the number of experts"));
    const Index rank = ranks / n;
    std::string parameter = module;
    if (constexpr std::string_view nested = ".base_layer"; parameter.ends_with(nested))
      parameter.resize(parameter.size() - nested.size());
    const RowMatrix all_a = values(update.a), all_b = values(update.b);
    const float scale = adapter_.scale(concat(parameter, ".", (down ? "down_proj" : projection)), rank);
    for (Index e = 0; e < n; ++e) {
      FeedForwardTensors& expert = experts[static_cast<std::size_t>(e)];
      const auto part = [&](Weight& weight, Index first, Index rows) {
        Matrices m{all_a.middleRows(e * rank, rank), RowMatrix(rows, rank), scale};
        for (Index k = 0; k < rank; ++k) m.b.col(k) = all_b.col(k * n + e).segment(first, rows);
        apply(*entry, m, weight, rows);
      };
      if (down) {
        part(expert.down, 0, hidden);
      } else {
        if (expert.gate) part(*expert.gate, 0, width);
        part(expert.up, inner - width, width);
      }
    }
  }

  /// An update of one weight: a [rank, inputs], b [outputs, rank].
  struct Matrices {
    RowMatrix a, b;
    float scale;
  };
  Matrices matrices(const Entry& entry) const {
    Matrices m{values(entry.second.a), values(entry.second.b), 0.0f};
    m.scale = adapter_.scale(entry.first, m.a.rows());
    return m;
  }
  static RowMatrix values(const TensorView& tensor) {
    RowMatrix matrix(tensor.rows(), tensor.columns());
    dequantize(tensor, matrix.data());
    if (!matrix.allFinite()) throw FormatError(tensor.place(), "holds numbers that are not finite");
    return matrix;
  }

  static void check_shape(const LowRankUpdate& update, Index rows, Index columns) {
    const auto needed = [](Index first, Index second) {
      return concat("; it must be [", first, ", ", second, "] for this model");
    };
    const Index rank = update.a.rows();
    if (update.a.columns() != columns)
      throw FormatError(update.a.place(), concat("has shape ", update.a.shape_text(), needed(rank, columns)));
    if (update.b.rows() != rows || update.b.columns() != rank)
      throw FormatError(update.b.place(), concat("has shape ", update.b.shape_text(), needed(rows, rank)));
  }

  std::shared_ptr<const LowRank> low_rank(const Entry& entry, const Matrices& m) const {
    if (!std::isfinite(m.scale)) throw FormatError(entry.second.a.place(), "has a scale that is not finite");
    return std::make_shared<const LowRank>(context_, m.a, m.b, m.scale);
  }

  /// Puts an update beside a weight of this many rows, or merges it.
  void apply(const Entry& entry, const Matrices& m, Weight& weight, Index rows) {
    if (!updated_.insert(&weight).second)
      throw FormatError(entry.second.a.place(), "is a second update of a weight that the adapter has under another name, too");
    if (beside_) {
      weight.low_rank = low_rank(entry, m);
      return;
    }
    const RowMatrix b = m.b * m.scale;
    replace(entry, weight, rows, [&](Index r, float* row) {
      for (Index k = 0; k < m.a.rows(); ++k) context_.kernels->axpy(b(r, k), m.a.row(k).data(), m.a.cols(), row);
    });
  }

  /// Weight := decoded rows after add(r, row), in a type of its own.
  template <class Add>
  void replace(const Entry& entry, Weight& weight, Index rows, Add&& add) {
    if (weight.tensor.panel_bytes != 0)
      throw UnsupportedError(weight.tensor.place(),
                             "lies packed in the file, so that nothing can be merged into it; run the adapter "
                             "beside the weights, or merge it into the model that was packed");
    const Dtype type = weight.tensor.dtype;
    const Dtype stored = stored_.value_or(type == Dtype::F32 || type == Dtype::F16 ? type : Dtype::BF16);
    Weight matrix = weight;
    const Index columns = weight.tensor.elements() / rows;
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
        throw FormatError({entry.second.b.file, concat("module '", entry.first, "'"), {}},
                          std::string("the merged weights cannot be stored: ") + error.what());
      }
    });
    weight.tensor.dtype = stored;
    weight.tensor.data = bytes.data();
    weight.tensor.bytes = bytes.size();
    weight.scale_inv.reset();
    weight.strided.reset();
  }

  void check_used() const {
    std::string unknown;
    std::size_t count = 0;
    const LowRankUpdate* first = nullptr;
    for (const auto& [module, update] : adapter_.updates) {
      if (used_.count(module) != 0) continue;
      if (!first) first = &update;
      if (++count <= 3) unknown += concat((count > 1 ? ", '" : "'"), module, "'");
    }
    if (first)
      throw FormatError({first->a.file, {}, {}},
                        concat("updates ", unknown, (count > 3 ? concat(" and ", count - 3, " more") : ""),
                               ", which this model (", config_.family,
                               ") does not have or moxie cannot update; it can update lm_head, the projections of attention and "
                               "of recurrent layers, "
                               "routers and the feed-forward networks"));
  }

  const Context& context_;
  const ModelConfig& config_;
  const LowRankAdapter& adapter_;
  const bool beside_;
  std::optional<Dtype> stored_;  ///< type of merged weights; none: by their own
  std::int64_t layer_ = -1, expert_ = -1;
  std::set<std::string, std::less<>> used_;
  std::set<const Weight*> updated_;
  MergedWeights merged_;
};

}  // namespace detail

/// Puts an adapter beside the weights of a model, or merges it into them; the tensors refer to the result's memory then. Throws
/// FormatError when an update fits no layer of the model, or not its shape, or holds or makes numbers that are not finite, or
/// when two are of the same weight.
[[nodiscard]] inline MergedWeights apply_adapter(const Context& context, const ModelConfig& config, DecoderTensors& tensors,
                                                 const LowRankAdapter& adapter, AdapterMode mode) {
  return detail::AdapterWalk(context, config, tensors, adapter, mode).take();
}

}  // namespace moxie
