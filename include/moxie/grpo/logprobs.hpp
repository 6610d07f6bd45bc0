#pragma once
// grpo::logprobs: log-probabilities and entropies of given sequences, straight from hidden rows through the output matrix.
//
//   logprobs[t] = log softmax(z_t)[ids[t + 1]], entropy[t] = -sum_i p_i log p_i, p = softmax(z_t), z_t = logits_t / temperature
//   (nats)
//
// The same bits as the logprob that sampling reported when the token was drawn, however sequences are batched, chunked or
// threaded. Memory beside the KV pages of the sequences that run together: at most 64 MB for any number of tokens and any
// vocabulary (more only where the activations of 16 rows take more).

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <moxie/grpo/logprob_options.hpp>
#include <moxie/grpo/sequence_passes.hpp>
#include <moxie/model/logprobs.hpp>

namespace moxie::grpo {

/// Scores of a sequence of T tokens.
struct SequenceLogprobs {
  std::vector<float> logprobs;                 ///< [T - 1], the t-th is that of ids[t + 1]
  std::vector<float> entropy;                  ///< [T]
  std::vector<float> lse;                      ///< [T], log sum exp of logits / temperature
  std::vector<std::vector<TokenLogprob>> top;  ///< [T] lists of top_n, most probable first; empty without top_n
  RoutingTrace routes;                         ///< when asked for
};

/// Scores sequences of token ids; results are in their order. Throws ArgumentError naming the sequence, MemoryError when a
/// sequence alone does not fit the budget.
inline std::vector<SequenceLogprobs> logprobs(const Model& model, std::span<const std::vector<std::int32_t>> sequences,
                                              const LogprobOptions& options = {}) {
  check_sequences(model, sequences, options);
  std::vector<SequenceLogprobs> results(sequences.size());
  LogprobScratch scratch;
  std::vector<std::int32_t> targets;
  std::vector<PositionScore> scores;
  run_sequences(
      model, sequences, options, [&](const float* hidden, std::span<const SequencePart> parts, const RoutingTrace& routes) {
        targets.clear();
        for (const SequencePart& part : parts) {
          const auto& ids = sequences[part.sequence];
          for (auto p = static_cast<std::size_t>(part.first); p < static_cast<std::size_t>(part.first + part.count); ++p)
            targets.push_back(p + 1 < ids.size() ? ids[p + 1] : -1);
        }
        scores.resize(targets.size());
        score_hidden(model.context(), model.decoder().output(), hidden, targets, options.temperature, options.top_n, scores,
                     scratch, {.adapter = options.adapter});
        std::size_t row = 0;
        for (const SequencePart& part : parts) {
          SequenceLogprobs& result = results[part.sequence];
          if (options.record_routes) {
            if (part.first == 0) result.routes = empty_trace(model);
            result.routes.append(routes, static_cast<Index>(row), part.count);
          }
          for (std::int64_t i = 0; i < part.count; ++i, ++row) {
            if (targets[row] >= 0) result.logprobs.push_back(scores[row].logprob);
            result.entropy.push_back(scores[row].entropy);
            result.lse.push_back(scores[row].lse);
            if (options.top_n > 0) result.top.push_back(std::move(scores[row].top));
          }
        }
      });
  return results;
}

}  // namespace moxie::grpo
