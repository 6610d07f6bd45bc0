#pragma once
// grpo::logprob_gradients: the backward of grpo::logprobs, to the hidden rows before the output matrix and to an adapter on it.
//
// The layers below are run again and get no gradient. Rows without gradient (prompts, masked tokens) cost only their run through
// the layers. Memory beside KV pages, gradients and the weights: at most 96 MB for any number of tokens and any vocabulary
// (hidden_gradients.hpp), with the activations of a pass.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/grpo/hidden_gradients.hpp>
#include <moxie/grpo/logprob_options.hpp>
#include <moxie/grpo/sequence_passes.hpp>

namespace moxie::grpo {

/// Sums over all tokens of all sequences, where not said otherwise.
struct LogprobGradients {
  RowMatrix d_a, d_b;               ///< [rank, hidden], [vocab, rank]; empty without an adapter
  std::vector<RowMatrix> d_hidden;  ///< of each sequence [T, hidden], when asked for
};

/// Gradients of sum d_logprobs[s][t] * logprobs[s][t] + sum d_entropy[s][t] * entropy[s][t], with logprobs and entropy as
/// grpo::logprobs gives them under the same options: d_logprobs[s] has T - 1 numbers; d_entropy[s] has T, or d_entropy is empty.
/// top_n and record_routes are not used. Throws ArgumentError naming the sequence, MemoryError as grpo::logprobs does.
inline LogprobGradients logprob_gradients(const Model& model, std::span<const std::vector<std::int32_t>> sequences,
                                          std::span<const std::vector<float>> d_logprobs,
                                          std::span<const std::vector<float>> d_entropy, LogprobOptions options = {},
                                          bool want_hidden = false) {
  options.record_routes = false;
  check_sequences(model, sequences, options);
  if (!options.adapter && !want_hidden)
    throw ArgumentError("there is nothing to compute gradients of: give an adapter, or ask for those of hidden rows");
  const auto check_size = [&](std::span<const std::vector<float>> given, std::size_t less, const char* what) {
    if (given.size() != sequences.size())
      throw ArgumentError(concat(what, " of ", given.size(), " sequences were given for ", sequences.size()));
    for (std::size_t s = 0; s < given.size(); ++s)
      if (const std::size_t tokens = sequences[s].size(); given[s].size() != (tokens < less ? 0 : tokens - less))
        throw ArgumentError(
            concat("sequence ", s, ": ", given[s].size(), " numbers of ", what, " were given for ", tokens, " tokens"));
  };
  check_size(d_logprobs, 1, "d_logprobs");
  if (!d_entropy.empty()) check_size(d_entropy, 0, "d_entropy");

  const Index width = model.config().hidden_size;
  LogprobGradients result;
  GradientSinks sinks;
  if (options.adapter) {
    result.d_a = RowMatrix::Zero(options.adapter->rank(), width);
    result.d_b = RowMatrix::Zero(model.config().vocab_size, options.adapter->rank());
    sinks.d_a = &result.d_a;
    sinks.d_b = &result.d_b;
  }
  if (want_hidden)
    for (const auto& ids : sequences) result.d_hidden.push_back(RowMatrix::Zero(static_cast<Index>(ids.size()), width));

  GradientScratch scratch;
  std::vector<RowGradient> rows;
  std::vector<float> hidden, d_hidden;  // of the rows that have a gradient
  std::vector<float*> places;           // of those rows in result.d_hidden
  run_sequences(model, sequences, options, [&](const float* row, std::span<const SequencePart> parts, const RoutingTrace&) {
    rows.clear();
    hidden.clear();
    places.clear();
    for (const SequencePart& part : parts) {
      const auto& ids = sequences[part.sequence];
      for (auto t = static_cast<std::size_t>(part.first); t < static_cast<std::size_t>(part.first + part.count);
           ++t, row += width) {
        RowGradient gradient;
        if (t + 1 < ids.size()) gradient = {ids[t + 1], d_logprobs[part.sequence][t], 0.0f};
        if (!d_entropy.empty()) gradient.d_entropy = d_entropy[part.sequence][t];
        if (gradient.d_logprob == 0.0f && gradient.d_entropy == 0.0f) continue;
        rows.push_back(gradient);
        hidden.insert(hidden.end(), row, row + width);
        if (want_hidden) places.push_back(result.d_hidden[part.sequence].row(static_cast<Index>(t)).data());
      }
    }
    if (rows.empty()) return;
    if (want_hidden) {
      d_hidden.resize(hidden.size());
      sinks.d_hidden = d_hidden.data();
    }
    hidden_gradients(model.context(), model.decoder().output(), hidden.data(), rows, options.temperature, sinks, scratch,
                     {.adapter = options.adapter});
    for (std::size_t i = 0; i < places.size(); ++i) {
      const float* from = d_hidden.data() + static_cast<Index>(i) * width;
      std::copy(from, from + width, places[i]);
    }
  });
  return result;
}

}  // namespace moxie::grpo
