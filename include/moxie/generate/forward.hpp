#pragma once
// Running rows of sequences through a model in chunks, shared by Session, Batch and scoring.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <moxie/core/memory.hpp>
#include <moxie/generate/model.hpp>

namespace moxie {

/// Reusable memory of forward passes and of logits.
struct ForwardScratch {
  DecoderScratch decoder;
  PreparedRows prepared;
  AlignedBuffer<float> hidden;  // [rows, hidden]
  AlignedBuffer<float> logits;  // [rows, vocab]
};

/// Logits [rows, vocab] of hidden rows [rows, hidden], valid until the next call.
inline const float* compute_logits(const Model& model, const float* hidden, Index rows, ForwardScratch& scratch) {
  const Linear& output = model.decoder().output();
  const bool int8 = output.takes_int8(model.context().activations);
  scratch.prepared.assign(model.context(), hidden, rows, output.inputs(), output.inputs(), int8, !int8);
  scratch.logits.resize(static_cast<std::size_t>(rows * output.outputs()));
  output.forward(model.context(), scratch.prepared, scratch.logits.data(), output.outputs());
  return scratch.logits.data();
}

/// A trace of no tokens with the model's sizes.
inline RoutingTrace empty_trace(const Model& model) {
  const ModelConfig& config = model.config();
  return {config.n_moe_layers(), config.moe.router.n_experts, config.moe.router.top_k};
}

}  // namespace moxie
