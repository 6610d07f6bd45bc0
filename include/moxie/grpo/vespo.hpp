#pragma once
// VESPO's weight of a sequence (Variational Sequence-Level Soft Policy Optimization, arXiv 2602.10693; TRL's `vespo_k_pos`,
// `vespo_lambda_pos`, `vespo_k_neg`, `vespo_lambda_neg`):
//
//   log w_i = clamp( sum_t m_it clamp(x_it - x_old,it, -20, 20) + sum_t clamp(log u_it, log 1e-8, 20), log 1e-8, 20 )
//   phi_i   = exp( lambda + k log w_i - lambda w_i )
//
// with (k, lambda) = (vespo_k_pos, vespo_lambda_pos) where A >= 0, else (vespo_k_neg, vespo_lambda_neg), lambda at least 1e-4, so
// that phi is 1 at w = 1. u is the correction for an external sampler: its sum runs over all columns, and a masked ratio 0 counts
// as log 1e-8. What is not finite becomes 0. phi carries no gradient.

#include <algorithm>
#include <cmath>

#include <moxie/grpo/loss_options.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// phi, in the shape of the advantages, [B, 1] or [B, T]. sampler_ratio: u [B, T], or empty.
inline TokenArray vespo_weight(const LossOptions& o, const ConstTokens& logprobs, const ConstTokens& old_logprobs,
                               const ConstMask& mask, const ConstTokens& sampler_ratio, const ConstTokens& advantages) {
  const double lowest = std::log(1e-8), highest = 20.0;
  TokenArray phi(advantages.rows(), advantages.cols());
  for (Index i = 0; i < phi.rows(); ++i) {
    double log_w = sum_over_row(mask, i, [&](Index t) { return std::clamp(logprobs(i, t) - old_logprobs(i, t), -20.0, 20.0); });
    for (Index t = 0; t < sampler_ratio.cols(); ++t) log_w += std::clamp(std::log(sampler_ratio(i, t)), lowest, highest);
    log_w = std::clamp(log_w, lowest, highest);
    for (Index t = 0; t < phi.cols(); ++t) {
      const bool positive = advantages(i, t) >= 0.0;
      const double k = positive ? o.vespo_k_pos : o.vespo_k_neg;
      const double lambda = std::max(positive ? o.vespo_lambda_pos : o.vespo_lambda_neg, 1e-4);
      const double value = std::exp(lambda + k * log_w - lambda * std::exp(log_w));
      phi(i, t) = std::isfinite(value) ? value : 0.0;
    }
  }
  return phi;
}

}  // namespace moxie::grpo
