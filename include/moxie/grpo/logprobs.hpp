#pragma once
// grpo::logprobs: log-probabilities and entropies of given sequences, straight from hidden rows through the output matrix.
//
//   logprobs[t] = log softmax(z_t)[ids[t + 1]], entropy[t] = -sum_i p_i log p_i, p = softmax(z_t), z_t = logits_t / temperature   (nats)
//
// The same bits as the logprob that sampling reported when the token was drawn, however sequences are batched, chunked or threaded.
// Memory beside the KV pages of the sequences that run together: at most 64 MB for any number of tokens and any vocabulary (more only where the
// activations of 64 rows take more, as in DeepSeek-R1).

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/generate/forward.hpp>
#include <moxie/model/logprobs.hpp>

namespace moxie::grpo {

struct LogprobOptions {
  float temperature = 1.0f;
  std::int64_t top_n = 0;          ///< also the n most probable tokens of every position
  std::int64_t batch = 8;          ///< sequences that run together at most
  bool record_routes = false;
  /// Experts to use instead of the router's choice, one trace for each sequence; empty: none.
  std::span<const RoutingTrace> replay = {};
  std::size_t kv_budget_bytes = 0;  ///< what KV pages may take together; 0: no limit. A sequence alone must fit
  const OutputAdapter* adapter = nullptr;  ///< on the output matrix
  /// Told the number of tokens done and in all; may throw to stop.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
};

/// Scores of a sequence of T tokens.
struct SequenceLogprobs {
  std::vector<float> logprobs;                  ///< [T - 1], the t-th is that of ids[t + 1]
  std::vector<float> entropy;                   ///< [T]
  std::vector<float> lse;                       ///< [T], log sum exp of logits / temperature
  std::vector<std::vector<TokenLogprob>> top;   ///< [T] lists of top_n, most probable first; empty without top_n
  RoutingTrace routes;                          ///< when asked for
};

namespace detail {

inline void check(const Model& model, std::span<const std::vector<std::int32_t>> sequences, const LogprobOptions& options) {
  if (!(options.temperature > 0.0f)) throw ArgumentError("temperature must be above 0");
  if (options.batch < 1) throw ArgumentError("batch must be at least 1 sequence, got " + std::to_string(options.batch));
  if (options.top_n < 0) throw ArgumentError("top_n must be 0 or more, got " + std::to_string(options.top_n));
  if (!options.replay.empty() && options.replay.size() != sequences.size())
    throw ArgumentError(std::to_string(options.replay.size()) + " routing traces were given for " + std::to_string(sequences.size()) + " sequences");
  const ModelConfig& config = model.config();
  if (options.adapter) options.adapter->check(config.vocab_size, config.hidden_size);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    if (static_cast<std::int64_t>(sequences[s].size()) > config.context_length)
      throw ArgumentError("sequence " + std::to_string(s) + " has " + std::to_string(sequences[s].size()) + " tokens; the model's context is " +
                          std::to_string(config.context_length));
    for (const std::int32_t id : sequences[s])
      if (id < 0 || id >= config.vocab_size)
        throw ArgumentError("sequence " + std::to_string(s) + ": token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(config.vocab_size));
    if (!options.replay.empty())
      options.replay[s].check_fits(config.n_moe_layers(), config.moe.router.n_experts, config.moe.router.top_k, static_cast<Index>(sequences[s].size()));
  }
}

}  // namespace detail

/// Scores sequences of token ids; results are in their order. Throws ArgumentError naming the sequence, MemoryError when a sequence alone does
/// not fit the budget.
inline std::vector<SequenceLogprobs> logprobs(const Model& model, std::span<const std::vector<std::int32_t>> sequences, const LogprobOptions& options = {}) {
  detail::check(model, sequences, options);
  const KvPool pool(model.decoder().kv_shape(model.options().kv), options.kv_budget_bytes);
  const Index width = model.config().hidden_size;
  // Fewer rows a pass where their activations would take more than 32 MB, but enough to be no slower than need be.
  const auto chunk = std::min<std::int64_t>(model.options().chunk, std::max<std::int64_t>(64, (std::int64_t{32} << 20) / static_cast<std::int64_t>(model.decoder().scratch_bytes_per_row())));
  std::vector<SequenceLogprobs> results(sequences.size());
  std::int64_t total = 0, done = 0;
  for (const auto& ids : sequences) total += static_cast<std::int64_t>(ids.size());

  struct Running {
    std::size_t sequence;
    std::int64_t run = 0;
    std::unique_ptr<KvSequence> kv;
  };
  ForwardScratch scratch;
  LogprobScratch logprob_scratch;
  std::vector<Running> running;
  std::vector<DecoderRow> rows;
  std::vector<std::int32_t> targets;
  std::vector<PositionScore> scores;
  std::size_t next = 0;
  while (next < sequences.size() || !running.empty()) {
    // Sequences enter while there is room, and leave with their pages when they are done.
    while (next < sequences.size() && static_cast<std::int64_t>(running.size()) < options.batch) {
      if (sequences[next].empty()) {
        ++next;
        continue;
      }
      Running entry{next, 0, std::make_unique<KvSequence>(pool)};
      try {
        entry.kv->reserve(static_cast<std::int64_t>(sequences[next].size()));
      } catch (const MemoryError&) {
        if (running.empty()) throw;
        break;
      }
      if (options.record_routes) results[next].routes = empty_trace(model);
      running.push_back(std::move(entry));
      ++next;
    }
    if (running.empty()) break;

    rows.clear();
    targets.clear();
    std::vector<std::int64_t> taken(running.size(), 0);
    RoutingTrace replay;
    if (!options.replay.empty()) replay = empty_trace(model);
    for (std::size_t i = 0; i < running.size(); ++i) {
      const auto& ids = sequences[running[i].sequence];
      const auto length = static_cast<std::int64_t>(ids.size());
      taken[i] = std::min(chunk - static_cast<std::int64_t>(rows.size()), length - running[i].run);
      for (std::int64_t p = running[i].run; p < running[i].run + taken[i]; ++p) {
        rows.push_back({ids[static_cast<std::size_t>(p)], running[i].kv.get(), p});
        targets.push_back(p + 1 < length ? ids[static_cast<std::size_t>(p + 1)] : -1);
      }
      if (!options.replay.empty()) replay.append(options.replay[running[i].sequence], running[i].run, taken[i]);
    }
    scratch.hidden.resize(rows.size() * static_cast<std::size_t>(width));
    RoutingTrace record;
    if (options.record_routes) {
      record = empty_trace(model);
      record.resize(static_cast<Index>(rows.size()));
    }
    model.decoder().forward(model.context(), rows, scratch.hidden.data(), scratch.decoder, options.record_routes ? &record : nullptr,
                            options.replay.empty() ? nullptr : &replay);
    scores.resize(rows.size());
    score_hidden(model.context(), model.decoder().output(), scratch.hidden.data(), targets, options.temperature, options.top_n, scores, logprob_scratch,
                 {.adapter = options.adapter});

    std::size_t row = 0;
    for (std::size_t i = 0; i < running.size(); ++i) {
      SequenceLogprobs& result = results[running[i].sequence];
      if (options.record_routes) result.routes.append(record, static_cast<Index>(row), taken[i]);
      for (std::int64_t p = 0; p < taken[i]; ++p, ++row) {
        if (targets[row] >= 0) result.logprobs.push_back(scores[row].logprob);
        result.entropy.push_back(scores[row].entropy);
        result.lse.push_back(scores[row].lse);
        if (options.top_n > 0) result.top.push_back(std::move(scores[row].top));
      }
      running[i].kv->advance(taken[i]);
      running[i].run += taken[i];
    }
    done += static_cast<std::int64_t>(rows.size());
    std::erase_if(running, [&](const Running& r) { return r.run == static_cast<std::int64_t>(sequences[r.sequence].size()); });
    if (options.progress) options.progress(done, total);
  }
  return results;
}

}  // namespace moxie::grpo
