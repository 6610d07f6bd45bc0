#pragma once
// What a loss is computed from: B completions of at most T tokens. All log-probabilities and entropies are in nats, at the
// sampling temperature.

#include <optional>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// Arrays left empty are absent; `array.resize(0, 0)` empties one (to Eigen `array = {}` means all 0). TRL's names stand in
/// brackets.
struct LossBatch {
  TokenArray logprobs = {};    ///< [B, T] x, under the policy that is trained [per_token_logps]
  TokenMask mask = {};         ///< [B, T] m, true where a token counts [completion_mask, times tool_mask]; false in rows
                               ///< that mask_truncated_completions drops
  TokenArray advantages = {};  ///< [B, 1] A, or [B, T]

  /// [B, T] x_old, under the policy that generated; absent: x without gradient, so that ratios are 1 [old_per_token_logps]
  TokenArray old_logprobs = {};
  /// [B, T] x_ref, under the reference policy; needed when beta is not 0 [ref_per_token_logps]
  TokenArray ref_logprobs = {};
  /// [B, T] H, entropy of the policy at each position; needed by top_entropy_quantile and the entropy bonus
  TokenArray entropies = {};
  /// [B, T] x_s, as an external sampler reported them, NaN where it could not; absent: x_old. Only the off-policy mask reads them
  /// [sampling_per_token_logps]
  TokenArray sampling_logprobs = {};
  /// [B, T] or [B, 1] w, correction for an external sampler (importance.hpp); absent: 1
  TokenArray importance_sampling_ratio = {};

  std::optional<Index> num_items_in_batch = {};  ///< N, tokens with m = 1 in the whole generated batch; none: those in this one
  std::optional<double> aux_loss = {};           ///< load-balancing loss of the router; needed when its coefficient is not 0

  Index rows() const { return logprobs.rows(); }
  Index cols() const { return logprobs.cols(); }

  /// The micro-batch of rows [first, end), which keeps N of the whole. Throws ArgumentError.
  LossBatch middle_rows(Index first, Index end) const {
    if (first < 0 || end > rows() || first >= end)
      throw ArgumentError(concat("rows [", first, ", ", end, ") are not within a batch of ", rows(), " rows"));
    check_shapes();
    const auto cut = [&](const auto& whole) {
      using Array = std::decay_t<decltype(whole)>;
      return whole.size() == 0 ? Array() : Array(whole.middleRows(first, end - first));
    };
    return {.logprobs = cut(logprobs),
            .mask = cut(mask),
            .advantages = cut(advantages),
            .old_logprobs = cut(old_logprobs),
            .ref_logprobs = cut(ref_logprobs),
            .entropies = cut(entropies),
            .sampling_logprobs = cut(sampling_logprobs),
            .importance_sampling_ratio = cut(importance_sampling_ratio),
            .num_items_in_batch = num_items_in_batch ? *num_items_in_batch : static_cast<Index>(token_count(mask)),
            .aux_loss = aux_loss};
  }

  /// Throws ArgumentError naming the array whose shape does not fit the log-probabilities.
  void check_shapes() const {
    if (logprobs.size() == 0)
      throw ArgumentError("logprobs are empty; a loss needs [B, T] with at least one completion and one token");
    const auto check = [&](std::string_view name, const auto& array, bool needed, bool may_be_column) {
      if (array.size() == 0 && !needed) return;
      if (array.rows() == rows() && (array.cols() == cols() || (may_be_column && array.cols() == 1))) return;
      const std::string rows_text = std::to_string(rows());
      throw ArgumentError(concat(name, " are [", array.rows(), ", ", array.cols(), "], must be [", rows_text, ", ", cols(),
                                 (may_be_column ? concat("] or [", rows_text, ", 1]") : "]"), " for these logprobs"));
    };
    check("mask", mask, true, false);
    check("advantages", advantages, true, true);
    check("old_logprobs", old_logprobs, false, false);
    check("ref_logprobs", ref_logprobs, false, false);
    check("entropies", entropies, false, false);
    check("sampling_logprobs", sampling_logprobs, false, false);
    check("importance_sampling_ratio", importance_sampling_ratio, false, true);
    if (num_items_in_batch && *num_items_in_batch < 0)
      throw ArgumentError(
          concat("num_items_in_batch is ", *num_items_in_batch, ", must be the number of tokens in the generated batch"));
  }
};

}  // namespace moxie::grpo
