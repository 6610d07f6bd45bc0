#pragma once
// Options of scoring sequences, and what sequences, routes and adapter must satisfy.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/model/output_adapter.hpp>
#include <moxie/model/token_ids.hpp>
#include <moxie/moe/routing_trace.hpp>

namespace moxie::grpo {

/// How sequences are scored; batch and kv_budget_bytes change no bit.
struct LogprobOptions {
  float temperature = 1.0f;  ///< logits are divided by it, as TRL does
  std::int64_t top_n = 0;    ///< also the n most probable tokens of every position
  std::int64_t batch = 8;    ///< sequences that run together at most
  bool record_routes = false;
  /// Experts to use instead of the router's choice, one trace for each sequence; empty: none.
  std::span<const RoutingTrace> replay = {};
  std::size_t kv_budget_bytes = 0;         ///< what KV pages and states may take together; 0: no limit. A sequence alone must fit
  const OutputAdapter* adapter = nullptr;  ///< on the output matrix
  /// Told the number of tokens done and in all; may throw to stop.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
};

/// Throws ArgumentError naming the option or the sequence.
inline void check_sequences(const Model& model, std::span<const std::vector<std::int32_t>> sequences,
                            const LogprobOptions& options) {
  if (!(options.temperature > 0.0f)) throw ArgumentError("temperature must be above 0");
  if (options.batch < 1) throw ArgumentError(concat("batch must be at least 1 sequence, got ", options.batch));
  if (options.top_n < 0) throw ArgumentError(concat("top_n must be 0 or more, got ", options.top_n));
  if (!options.replay.empty() && options.replay.size() != sequences.size())
    throw ArgumentError(concat(options.replay.size(), " routing traces were given for ", sequences.size(), " sequences"));
  const ModelConfig& config = model.config();
  if (options.adapter) options.adapter->check(config.vocab_size, config.hidden_size);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    if (static_cast<std::int64_t>(sequences[s].size()) > config.context_length)
      throw ArgumentError(
          concat("sequence ", s, " has ", sequences[s].size(), " tokens; the model's context is ", config.context_length));
    const std::string where = concat("sequence ", s, ": ");
    for (const std::int32_t id : sequences[s]) check_token_id(id, config.vocab_size, where);
    if (!options.replay.empty())
      options.replay[s].check_fits(config.n_moe_layers(), config.moe.router.n_experts, config.moe.router.top_k,
                                   static_cast<Index>(sequences[s].size()));
  }
}

}  // namespace moxie::grpo
