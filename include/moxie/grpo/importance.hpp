#pragma once
// Correction for an external sampler: the rollout engine and the trainer compute slightly different log-probabilities for the
// same weights, so what was sampled is weighted by their ratio (truncated and masked importance sampling; Yao et al., "Your
// Efficient RL Framework Secretly Brings You Off-Policy RL Training", fengyao.notion.site; TRL's `vllm_importance_sampling_*`).
// It is formed once for a generated batch, before that is split.
//
//   d_it = m_it (x_old,it - x_s,it), 0 where x_s is NaN
//   token modes:     w_it = exp(d_it)            [B, T]
//   sequence modes:  w_i  = exp( sum_t d_it )    [B, 1]
//   *_truncate:      w clamped to [clip_min, clip_max]
//   *_mask:          w = 0 where w < clip_min or w > clip_max
//
// w carries no gradient. moxie's own rollouts have x_old = x_s and need none.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/metrics.hpp>
#include <moxie/grpo/option_names.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

enum class ImportanceSamplingMode { token_truncate, token_mask, sequence_truncate, sequence_mask };

/// The value of this name, as TRL spells it. Throws ArgumentError with the possible names.
inline ImportanceSamplingMode importance_sampling_mode(std::string_view name) {
  static constexpr OptionNames<ImportanceSamplingMode, 4> names{{{"token_truncate", ImportanceSamplingMode::token_truncate},
                                                                 {"token_mask", ImportanceSamplingMode::token_mask},
                                                                 {"sequence_truncate", ImportanceSamplingMode::sequence_truncate},
                                                                 {"sequence_mask", ImportanceSamplingMode::sequence_mask}}};
  return option_value("vllm_importance_sampling_mode", name, names);
}

/// Names and defaults of TRL's GRPOConfig. A bound that is not set does not act.
struct ImportanceOptions {
  ImportanceSamplingMode vllm_importance_sampling_mode = ImportanceSamplingMode::sequence_mask;
  std::optional<double> vllm_importance_sampling_clip_max = 3.0;
  std::optional<double> vllm_importance_sampling_clip_min = {};
};

/// w, which has no unit, and what TRL logs of it.
struct ImportanceCorrection {
  TokenArray ratio = {};  ///< w [B, T] or [B, 1], for LossBatch::importance_sampling_ratio
  /// sampling/sampling_logp_difference/{mean,max}: |x_old - x_s| over tokens with m = 1 and x_s not NaN;
  /// sampling/importance_sampling_ratio/{min,mean,max}: of w, over tokens with m = 1 or over all rows. 0 where there is nothing.
  Metrics metrics;
};

/// Throws ArgumentError for bounds that do not fit the mode.
inline void check(const ImportanceOptions& o) {
  const auto lowest = o.vllm_importance_sampling_clip_min, highest = o.vllm_importance_sampling_clip_max;
  const bool truncates = o.vllm_importance_sampling_mode == ImportanceSamplingMode::token_truncate ||
                         o.vllm_importance_sampling_mode == ImportanceSamplingMode::sequence_truncate;
  if (truncates && !lowest && !highest)
    throw ArgumentError(
        "a truncating vllm_importance_sampling_mode needs vllm_importance_sampling_clip_min or "
        "vllm_importance_sampling_clip_max");
  if (highest) check_option(!std::isnan(*highest), "vllm_importance_sampling_clip_max", *highest, "a number");
  if (lowest)
    check_option(!highest || *lowest < *highest, "vllm_importance_sampling_clip_min", *lowest,
                 "below vllm_importance_sampling_clip_max");
  if (lowest) check_option(!std::isnan(*lowest), "vllm_importance_sampling_clip_min", *lowest, "a number");
}

namespace detail {

/// Smallest, mean and largest of the numbers added; 0 without any.
struct Spread {
  double smallest = std::numeric_limits<double>::infinity(), largest = -std::numeric_limits<double>::infinity(), sum = 0.0,
         count = 0.0;

  void add(double value) {
    smallest = std::min(smallest, value);
    largest = std::max(largest, value);
    sum += value;
    count += 1.0;
  }
  double min() const { return count > 0.0 ? smallest : 0.0; }
  double max() const { return count > 0.0 ? largest : 0.0; }
  double mean() const { return sum / at_least_one(count); }
};

}  // namespace detail

/// w and its metrics from the trainer's and the sampler's log-probabilities of the sampled tokens, [B, T]. Throws ArgumentError.
inline ImportanceCorrection importance_correction(const ConstTokens& old_logprobs, const ConstTokens& sampling_logprobs,
                                                  const ConstMask& mask, const ImportanceOptions& options) {
  using Mode = ImportanceSamplingMode;
  check(options);
  const auto check_shape = [&](std::string_view name, Index rows, Index cols) {
    if (rows != old_logprobs.rows() || cols != old_logprobs.cols())
      throw ArgumentError(concat(name, " are [", rows, ", ", cols, "], must be [", old_logprobs.rows(), ", ", old_logprobs.cols(),
                                 "] as old_logprobs"));
  };
  check_shape("sampling_logprobs", sampling_logprobs.rows(), sampling_logprobs.cols());
  check_shape("mask", mask.rows(), mask.cols());
  const Mode mode = options.vllm_importance_sampling_mode;
  const bool by_row = mode == Mode::sequence_truncate || mode == Mode::sequence_mask;
  const bool masks = mode == Mode::token_mask || mode == Mode::sequence_mask;
  const double lowest = options.vllm_importance_sampling_clip_min.value_or(-std::numeric_limits<double>::infinity());
  const double highest = options.vllm_importance_sampling_clip_max.value_or(std::numeric_limits<double>::infinity());
  const auto bounded = [&](double log_ratio) {
    const double ratio = std::exp(log_ratio);
    if (masks) return ratio < lowest || ratio > highest ? 0.0 : ratio;
    return std::clamp(ratio, lowest, highest);
  };

  ImportanceCorrection correction{TokenArray::Zero(mask.rows(), by_row ? 1 : mask.cols()), {}};
  detail::Spread difference, ratio;
  for (Index i = 0; i < mask.rows(); ++i) {
    double sum = 0.0;
    for (Index t = 0; t < mask.cols(); ++t) {
      double d = mask(i, t) ? old_logprobs(i, t) - sampling_logprobs(i, t) : 0.0;
      if (std::isnan(d))
        d = 0.0;
      else if (mask(i, t))
        difference.add(std::abs(d));
      sum += d;
      if (!by_row) correction.ratio(i, t) = bounded(d);
      if (!by_row && mask(i, t)) ratio.add(correction.ratio(i, t));
    }
    if (by_row) ratio.add(correction.ratio(i, 0) = bounded(sum));
  }
  correction.metrics = {{"sampling/sampling_logp_difference/mean", difference.mean()},
                        {"sampling/sampling_logp_difference/max", difference.max()},
                        {"sampling/importance_sampling_ratio/min", ratio.min()},
                        {"sampling/importance_sampling_ratio/mean", ratio.mean()},
                        {"sampling/importance_sampling_ratio/max", ratio.max()}};
  return correction;
}

}  // namespace moxie::grpo
