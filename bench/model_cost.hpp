#pragma once
// What one token costs in each part of a model, from the file's own tensors, and what the machine would need at least for it:
// max(operations / peak of the weights' width, bytes that must be read / stream).
//
// Bytes are the file's bytes of every matrix that a pass reads, counted from the experts that were really routed to, and the KV
// entries of the positions before. The router and the norms count by their bytes only.

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <moxie/moxie.hpp>

#include "limits.hpp"

namespace bench {

/// Operations (a multiply-add counts 2) by weight width, and bytes, of some matrices.
struct Cost {
  std::map<int, double> operations;
  double bytes = 0.0;

  void add(const moxie::TensorView& tensor, bool int8, double times = 1.0) {
    operations[int8 ? code_bits(tensor.dtype) : f32_weights] += times * 2.0 * static_cast<double>(tensor.elements());
    bytes += times * static_cast<double>(tensor.bytes);
  }
  double all_operations() const {
    double total = 0.0;
    for (const auto& [bits, count] : operations) total += count;
    return total;
  }
  double compute_seconds(const Limits& limits) const {
    double total = 0.0;
    for (const auto& [bits, count] : operations) total += count / (limits.peak.at(bits) * 1e9);
    return total;
  }
};

/// Work of a row of the benchmark, whatever the machine.
struct Work {
  double tokens = 0.0, operations = 0.0, bytes = 0.0;
  /// Steps that depend on each other: the limit is that of each.
  struct Step {
    double tokens, output_tokens, bytes;
  };
  std::vector<Step> steps;
};

class ModelCost {
 public:
  ModelCost(const std::string& path, const moxie::Context& context) : int8_(context.activations == moxie::Activations::int8) {
    std::optional<moxie::GgufFile> file;
    std::optional<moxie::HfFolder> folder;
    moxie::TensorMap tensors;
    if (moxie::detect_model(path) == moxie::ModelFileKind::gguf) {
      file.emplace(moxie::GgufFile::open(path));
      tensors = file->tensors();
      if (moxie::is_packed(*file)) {
        moxie::PackedModel packed = moxie::read_packed(*file, *context.kernels, context.threads);
        tensors = packed.tensors;
        if (packed.folder) folder.emplace(std::move(*packed.folder));
      }
    } else {
      folder.emplace(moxie::HfFolder::open(path));
    }
    const auto description = folder ? moxie::describe_hf(folder->config, folder->tensors(), path)
                                    : moxie::describe_gguf(file->metadata(), tensors, path);
    const auto network = [this](Cost& cost, const moxie::FeedForwardTensors& t, double times = 1.0) {
      if (t.gate) cost.add(t.gate->tensor, int8_, times);
      for (const auto* w : {&t.up, &t.down}) cost.add(w->tensor, int8_, times);
    };
    for (const moxie::LayerTensors& layer : description.tensors.layers) {
      for (const auto* weight : {&layer.q, &layer.k, &layer.v, &layer.attn_gate, &layer.o, &layer.q_a, &layer.q_b, &layer.kv_a,
                                 &layer.kv_b, &layer.k_b, &layer.v_b})
        if (*weight) always_.add((*weight)->tensor, int8_);
      if (layer.delta_net) {
        const moxie::DeltaNetTensors& d = *layer.delta_net;
        for (const auto* weight : {&d.qkv, &d.out}) always_.add(weight->tensor, int8_);
        for (const auto* weight : {&d.z, &d.ba, &d.b, &d.a})
          if (*weight) always_.add((*weight)->tensor, int8_);
      }
      if (layer.mamba)
        for (const auto* weight : {&layer.mamba->in, &layer.mamba->out}) always_.add(weight->tensor, int8_);
      if (layer.short_conv)
        for (const auto* weight : {&layer.short_conv->in, &layer.short_conv->out}) always_.add(weight->tensor, int8_);
      if (layer.router) always_.bytes += static_cast<double>(layer.router->tensor.bytes);
      for (const auto* weight : {&layer.latent_in, &layer.latent_out})
        if (*weight) always_.add((*weight)->tensor, int8_);
      if (layer.dense) network(always_, *layer.dense);
      if (layer.shared) network(always_, *layer.shared);
      if (layer.experts.empty()) continue;
      expert_bytes_.emplace_back();
      for (const auto& e : layer.experts) {
        Cost one;
        network(one, e);
        expert_bytes_.back().push_back(one.bytes);
      }
      network(chosen_, layer.experts.front(), static_cast<double>(description.config.moe.router.top_k));
    }
    output_.add(description.tensors.output.value_or(description.tensors.embedding).tensor, int8_);
  }

  /// Adds a pass to `work`: `tokens` rows, of which `output_tokens` go through the output matrix, and what it reads.
  void add_pass(Work& work, double tokens, double output_tokens, const moxie::RoutingTrace& routes, double kv_bytes) const {
    double bytes = always_.bytes + (output_tokens > 0 ? output_.bytes : 0.0) + kv_bytes;
    for (moxie::Index layer = 0; layer < routes.n_layers(); ++layer) {
      std::set<std::int32_t> used;
      for (moxie::Index i = 0; i < routes.ids(layer).size(); ++i) used.insert(routes.ids(layer).data()[i]);
      for (const std::int32_t e : used) bytes += expert_bytes_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(e)];
    }
    work.steps.push_back({tokens, output_tokens, bytes});
    work.bytes += bytes;
    work.operations += tokens * (always_.all_operations() + chosen_.all_operations()) + output_tokens * output_.all_operations();
  }

  double seconds_at_limit(const Work& work, const Limits& limits) const {
    const double token = always_.compute_seconds(limits) + chosen_.compute_seconds(limits), out = output_.compute_seconds(limits);
    double total = 0.0;
    for (const Work::Step& step : work.steps)
      total += std::max(step.tokens * token + step.output_tokens * out, step.bytes / (limits.stream() * 1e9));
    return total;
  }

 private:
  bool int8_;
  Cost always_;  // attention, dense and shared networks of all layers
  Cost chosen_;  // the experts of one token in all layers (operations)
  Cost output_;
  std::vector<std::vector<double>> expert_bytes_;  // [MoE layer][expert]
};

/// Bytes of the KV entries that a row at `position` attends to, itself included, in all layers with attention.
inline double kv_bytes(const moxie::ModelConfig& config, const moxie::KvShape& shape, std::int64_t position) {
  const double entry = static_cast<double>(shape.page_bytes()) / static_cast<double>(moxie::kv_page * shape.n_layers);
  double total = 0.0;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    if (!config.has_attention(layer)) continue;
    const std::int64_t window = config.sliding_window(layer);
    total += entry * static_cast<double>(window > 0 ? std::min(window, position + 1) : position + 1);
  }
  return total;
}

}  // namespace bench
