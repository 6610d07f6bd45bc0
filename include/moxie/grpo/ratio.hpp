#pragma once
// The importance ratio of the policy that is trained to the one that generated, and its gradient.
//
//   token:     r_it = exp(x_it - x_old,it)                               [B, T]   PPO's ratio, as in GRPO, arXiv 2402.03300
//   sequence:  r_i  = exp( sum_t m_it (x_it - x_old,it) / n_i )          [B, 1]   GSPO, arXiv 2507.18071, eq. 7
//
// with n_i = max(1, sum_t m_it). TRL's `importance_sampling_level`.

#include <cmath>

#include <moxie/grpo/loss_options.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// r from the log-probabilities x and x_old, [B, T].
inline TokenArray importance_ratio(const ConstTokens& logprobs, const ConstTokens& old_logprobs, const ConstMask& mask,
                                   ImportanceSamplingLevel level) {
  if (level == ImportanceSamplingLevel::token) return (logprobs - old_logprobs).unaryExpr([](double d) { return std::exp(d); });
  TokenArray ratio(logprobs.rows(), 1);
  for (Index i = 0; i < logprobs.rows(); ++i) {
    const double sum = sum_over_row(mask, i, [&](Index t) { return logprobs(i, t) - old_logprobs(i, t); });
    ratio(i, 0) = std::exp(sum / at_least_one(row_length(mask, i)));
  }
  return ratio;
}

/// Adds to d_logprobs [B, T] what reaches x through r. d_ratio [B, T] is the derivative with respect to the ratio as each token
/// uses it, 0 where m = 0. x_old has no gradient.
inline void add_ratio_gradient(const ConstTokens& ratio, const ConstMask& mask, ImportanceSamplingLevel level,
                               const ConstTokens& d_ratio, TokenArray& d_logprobs) {
  for (Index i = 0; i < mask.rows(); ++i) {
    const bool token = level == ImportanceSamplingLevel::token;
    const double row =
        token ? 0.0
              : ratio(i, 0) / at_least_one(row_length(mask, i)) * sum_over_row(mask, i, [&](Index t) { return d_ratio(i, t); });
    for (Index t = 0; t < mask.cols(); ++t)
      if (mask(i, t)) d_logprobs(i, t) += token ? d_ratio(i, t) * ratio(i, t) : row;
  }
}

}  // namespace moxie::grpo
