#pragma once
// Running rows of sequences through a model in chunks, shared by Session, Batch and scoring.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <moxie/core/memory.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/model/log_softmax.hpp>
#include <moxie/model/output_adapter.hpp>

namespace moxie {

/// Reusable memory of forward passes and of logits.
struct ForwardScratch {
  DecoderScratch decoder;
  PreparedRows prepared;
  AlignedBuffer<float> hidden;   // [rows, hidden]
  AlignedBuffer<float> logits;   // [rows, vocab]
  AlignedBuffer<float> adapted;  // [rows, rank]
};

/// Logits [rows, vocab] of hidden rows [rows, hidden], valid until the next call. `adapter` fits the model
/// (OutputAdapter::check).
inline const float* compute_logits(const Model& model, const float* hidden, Index rows, ForwardScratch& scratch,
                                   const OutputAdapter* adapter = nullptr) {
  const Context& context = model.context();
  const Linear& output = model.decoder().output();
  const Index vocab = output.outputs();
  const bool int8 = output.takes_int8(context.activations);
  scratch.prepared.assign(context, hidden, rows, output.inputs(), output.inputs(), int8,
                          adapter || output.takes_f32(context.activations));
  scratch.logits.resize(static_cast<std::size_t>(rows * vocab));
  float* logits = scratch.logits.data();
  const StageScope stage(context.profile(), Stage::output);
  output.forward(context, scratch.prepared, logits, vocab);
  if (!adapter) return logits;
  const Index rank = adapter->rank();
  scratch.adapted.resize(static_cast<std::size_t>(rows * rank));
  adapter->project(context, scratch.prepared, scratch.adapted.data());
  // Ranges of 8 tiles, 16 KB of logits, stay in the first-level cache while all k are added.
  constexpr Index range = 8 * vocabulary_tile;
  const Index ranges = (vocab + range - 1) / range;
  context.threads.for_each(
      rows * ranges,
      [&](std::int64_t item, int) {
        const Index row = item / ranges, begin = item % ranges * range;
        adapter->add(scratch.adapted.data() + row * rank, begin, std::min(vocab, begin + range), logits + row * vocab + begin);
      },
      rows * vocab * rank < worth_a_team ? rows * ranges : 1);
  return logits;
}

/// A trace of no tokens with the model's sizes.
inline RoutingTrace empty_trace(const Model& model) {
  const ModelConfig& config = model.config();
  return {config.n_moe_layers(), config.moe.router.n_experts, config.moe.router.top_k};
}

}  // namespace moxie
