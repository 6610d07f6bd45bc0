#pragma once
// Masks that take tokens out of the policy term: completions that are too far off-policy, and tokens of low entropy.

#include <algorithm>
#include <cmath>
#include <vector>

#include <moxie/grpo/option_names.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// Off-policy sequence mask (DeepSeek-V3.2, arXiv 2512.02556, eq. 9; TRL's `off_policy_mask_threshold`), in the shape of the
/// advantages:
///
///   keep = 1 if A >= 0 or sum_t m_it (x_s,it - x_it) / n_i <= threshold, else 0;   n_i = max(1, sum_t m_it)
///
/// x_s [B, T]: log-probabilities under the sampler, NaN counts as no difference; threshold in nats per token.
inline TokenMask off_policy_mask(const ConstTokens& advantages, const ConstTokens& logprobs, const ConstTokens& sampling_logprobs,
                                 const ConstMask& mask, double threshold) {
  TokenMask keep(advantages.rows(), advantages.cols());
  for (Index i = 0; i < keep.rows(); ++i) {
    const double sum = sum_over_row(mask, i, [&](Index t) {
      const double difference = sampling_logprobs(i, t) - logprobs(i, t);
      return std::isnan(difference) ? 0.0 : difference;
    });
    const bool near = sum / at_least_one(row_length(mask, i)) <= threshold;
    for (Index t = 0; t < keep.cols(); ++t) keep(i, t) = advantages(i, t) >= 0.0 || near;
  }
  return keep;
}

/// Tokens of the highest entropy ("Beyond the 80/20 Rule", arXiv 2506.01939; TRL's `top_entropy_quantile` q), [B, T]:
///
///   m and H >= quantile(1 - q) of all H with m = 1
///
/// with linear interpolation between neighbours; ties with the threshold stay, q = 0 keeps the largest H. As in PyTorch,
/// entropies, 1 - q and the threshold are rounded to f32: where the quantile falls on a token, the rounding of 1 - q can lift the
/// threshold over it. Throws ArgumentError unless q is in 0..1, and for a NaN among the entropies with m = 1.
inline TokenMask high_entropy_mask(const ConstTokens& entropies, const ConstMask& mask, double top_entropy_quantile) {
  check_option(top_entropy_quantile >= 0.0 && top_entropy_quantile <= 1.0, "top_entropy_quantile", top_entropy_quantile,
               "in 0..1");
  const auto as_float = [&](Index i, Index t) { return static_cast<float>(entropies(i, t)); };
  std::vector<float> sorted;
  for (Index i = 0; i < mask.rows(); ++i)
    for (Index t = 0; t < mask.cols(); ++t)
      if (mask(i, t)) sorted.push_back(as_float(i, t));
  if (sorted.empty()) return mask;
  if (std::any_of(sorted.begin(), sorted.end(), [](float h) { return std::isnan(h); }))
    throw ArgumentError("entropies are NaN where the mask is true; they have no quantile");
  std::sort(sorted.begin(), sorted.end());

  const double rank =
      static_cast<double>(static_cast<float>(1.0 - top_entropy_quantile)) * static_cast<double>(sorted.size() - 1);
  const double below = sorted[static_cast<std::size_t>(std::floor(rank))],
               above = sorted[static_cast<std::size_t>(std::ceil(rank))];
  const float threshold = static_cast<float>(below + (rank - std::floor(rank)) * (above - below));

  TokenMask keep(mask.rows(), mask.cols());
  for (Index i = 0; i < mask.rows(); ++i)
    for (Index t = 0; t < mask.cols(); ++t) keep(i, t) = mask(i, t) && as_float(i, t) >= threshold;
  return keep;
}

}  // namespace moxie::grpo
