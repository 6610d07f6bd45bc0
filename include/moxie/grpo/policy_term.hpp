#pragma once
// The policy term l of one token, and its derivatives. r: importance ratio, A: advantage, x: log-probability.

#include <algorithm>
#include <cmath>
#include <optional>

#include <moxie/grpo/loss_options.hpp>

namespace moxie::grpo {

/// A term of one token's loss with its derivatives.
struct TokenTerm {
  double value = 0.0;
  double d_ratio = 0.0;    ///< dl/dr
  double d_logprob = 0.0;  ///< dl/dx where x occurs beside the ratio

  TokenTerm& operator+=(const TokenTerm& other) {
    value += other.value;
    d_ratio += other.d_ratio;
    d_logprob += other.d_logprob;
    return *this;
  }
  friend TokenTerm operator*(double factor, const TokenTerm& l) {
    return {factor * l.value, factor * l.d_ratio, factor * l.d_logprob};
  }
};

/// PPO's clip with asymmetric bounds (DAPO's clip-higher, arXiv 2503.14476) and an upper bound delta on the unclipped branch
/// (INTELLECT-2, arXiv 2505.07291):
///
///   l = -min(r1 A, r2 A),  r1 = min(r, delta),  r2 = clamp(r, 1 - epsilon, 1 + epsilon_high)
///
/// A bound passes the gradient of what lies on it; where both branches are equal each takes half of it.
struct Clip {
  explicit Clip(const LossOptions& o) : low(1.0 - o.epsilon), high(1.0 + o.clip_high()), delta(o.delta) {}

  double capped(double ratio) const { return delta ? std::min(ratio, *delta) : ratio; }
  /// Clipped at the lower or upper bound, as metrics count it.
  bool is_low(double ratio, double advantage) const { return capped(ratio) < low && advantage < 0.0; }
  bool is_high(double ratio, double advantage) const { return capped(ratio) > high && advantage > 0.0; }

  TokenTerm term(double ratio, double advantage) const {
    const double free = capped(ratio) * advantage, clipped = std::clamp(ratio, low, high) * advantage;
    const double d_free = delta && ratio > *delta ? 0.0 : advantage;
    const double d_clipped = ratio < low || ratio > high ? 0.0 : advantage;
    const double share = free < clipped ? 1.0 : free == clipped ? 0.5 : 0.0;
    return {-std::min(free, clipped), -(share * d_free + (1.0 - share) * d_clipped), 0.0};
  }

  double low, high;
  std::optional<double> delta;
};

/// l = -stop(weight) A x: the policy gradient with a constant weight.
inline TokenTerm weighted_logprob(double weight, double advantage, double logprob) {
  return {-weight * advantage * logprob, 0.0, -weight * advantage};
}

/// CISPO (MiniMax-M1, arXiv 2506.13585; the bound as in ScaleRL, arXiv 2510.13786): the weight of x is min(r, epsilon_high); no
/// lower bound.
inline double cispo_weight(double ratio, double epsilon_high) { return std::min(ratio, epsilon_high); }

/// SAPO (arXiv 2511.20347): l = -A (4 / tau) sigmoid(tau (r - 1)); tau = sapo_temperature_pos where A > 0, else
/// sapo_temperature_neg.
inline TokenTerm sapo_term(const LossOptions& o, double ratio, double advantage) {
  const double tau = advantage > 0.0 ? o.sapo_temperature_pos : o.sapo_temperature_neg;
  const double gate = 1.0 / (1.0 + std::exp(-tau * (ratio - 1.0)));
  return {-advantage * 4.0 / tau * gate, -advantage * 4.0 * gate * (1.0 - gate), 0.0};
}

/// l for any loss type; phi: VESPO's weight (vespo.hpp), not read by the others.
inline TokenTerm policy_term(const LossOptions& o, double ratio, double advantage, double logprob, double phi) {
  switch (o.loss_type) {
    case LossType::cispo:
      return weighted_logprob(cispo_weight(ratio, o.clip_high()), advantage, logprob);
    case LossType::vespo:
      return weighted_logprob(phi, advantage, logprob);
    case LossType::sapo:
      return sapo_term(o, ratio, advantage);
    default:
      return Clip(o).term(ratio, advantage);
  }
}

}  // namespace moxie::grpo
