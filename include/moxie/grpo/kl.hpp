#pragma once
// The k3 estimate of KL(policy || reference) from one sampled token (J. Schulman, "Approximating KL Divergence",
// joschu.net/blog/kl-approx.html; used by GRPO, arXiv 2402.03300, eq. 4). Nats.

#include <cmath>

namespace moxie::grpo {

/// An estimate in nats with its gradient.
struct KlEstimate {
  double value;
  double d_logprob;  ///< derivative with respect to x
};

/// k3 = exp(x_ref - x) - (x_ref - x) - 1, never below 0; x, x_ref: log-probabilities of the token under the policy and the
/// reference.
inline KlEstimate k3(double logprob, double ref_logprob) {
  const double difference = ref_logprob - logprob;
  const double excess = std::expm1(difference);
  return {excess - difference, -excess};
}

}  // namespace moxie::grpo
