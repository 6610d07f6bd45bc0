#pragma once
// The losses of GRPO and its relatives, with gradients, as TRL 1.16's GRPOTrainer computes them (`_compute_loss`). In double.
//
//   loss = (1 / acc) sum_i c_i sum_t m_it l_it  -  entropy_coef H / G  +  router_aux_loss_coef aux_loss / G
//   l_it = w_it keep_i [H_it is high] policy_term(r_it, A_it, x_it)  +  beta KL_it
//
//   r             importance ratio of the token or of its row              ratio.hpp
//   policy_term   by loss_type                                             policy_term.hpp, vespo.hpp
//   keep, [...]   off-policy mask, entropy mask                            token_masks.hpp
//   w             correction for an external sampler; not for vespo        importance.hpp
//   KL            k3(x, x_ref), times r with use_bias_correction_kl        kl.hpp; DeepSeek-V3.2, arXiv 2512.02556
//   c, acc        by loss_type                                             normalization.hpp
//   G             gradient_accumulation_steps, 1 in evaluation
//   H             sum e H_it / max(1, sum e); e: tokens with m = 1 that the entropy mask keeps    adaptive_entropy.hpp
//   aux_loss      load-balancing loss of the router                        load_balancing.hpp
//
// Masks, w, phi, x_old, x_ref, x_s and A carry no gradient. The KL term is touched neither by the masks nor by w.

#include <moxie/core/error.hpp>
#include <moxie/grpo/adaptive_entropy.hpp>
#include <moxie/grpo/clip_metrics.hpp>
#include <moxie/grpo/kl.hpp>
#include <moxie/grpo/loss_batch.hpp>
#include <moxie/grpo/loss_options.hpp>
#include <moxie/grpo/metrics.hpp>
#include <moxie/grpo/normalization.hpp>
#include <moxie/grpo/policy_term.hpp>
#include <moxie/grpo/ratio.hpp>
#include <moxie/grpo/token_masks.hpp>
#include <moxie/grpo/tokens.hpp>
#include <moxie/grpo/vespo.hpp>

namespace moxie::grpo {

/// What a (micro-)batch gives: the scalar to minimize, its gradients, and what to log.
struct LossResult {
  double loss = 0.0;
  TokenArray d_logprobs;    ///< [B, T] d loss / d x, 0 in the padding
  TokenArray d_entropies;   ///< [B, T] d loss / d H; empty without entropy bonus
  double d_aux_loss = 0.0;  ///< d loss / d aux_loss
  Metrics metrics;          ///< under TRL's names, see Loss
  EntropySum entropy;       ///< over the tokens of the entropy bonus, for AdaptiveEntropy::add; empty sum without bonus
};

/// A loss: options in; loss, gradients and metrics of a (micro-)batch out. Metrics:
///   kl                    mean of the KL term, without beta; where beta is not 0
///   entropy               mean of H; where entropies are given
///   clip_ratio/..., cispo_clip_ratio, vespo/phi_seq_mean
///                         see clip_metrics
///   policy_loss           the loss before entropy bonus, auxiliary loss and division by acc; with entropy bonus
///   entropy_coef          with entropy bonus, in training; with AdaptiveEntropy it is what step() returns
///   aux_loss              as given
class Loss {
 public:
  /// Throws ArgumentError for options out of their range.
  explicit Loss(const LossOptions& options) : options_(options) { check(options_); }

  const LossOptions& options() const { return options_; }

  /// Throws ArgumentError where arrays are missing or do not fit; with `use_adaptive_entropy` call it with the coefficient that
  /// applies.
  LossResult operator()(const LossBatch& batch) const {
    if (options_.use_adaptive_entropy)
      throw ArgumentError(
          "use_adaptive_entropy needs the coefficient that applies: call loss(batch, AdaptiveEntropy::applied())");
    return compute(batch, options_.entropy_coef);
  }
  /// For `use_adaptive_entropy`: entropy_coef = AdaptiveEntropy::applied().
  LossResult operator()(const LossBatch& batch, double entropy_coef) const {
    if (!options_.use_adaptive_entropy)
      throw ArgumentError("a coefficient that changes needs use_adaptive_entropy; without it options have entropy_coef");
    return compute(batch, entropy_coef);
  }

 private:
  /// What the terms of all tokens are computed from.
  struct Terms {
    const TokenArray& old_logprobs;
    TokenArray ratio;        ///< r [B, T] or [B, 1]
    TokenArray phi;          ///< vespo; else empty
    TokenMask high_entropy;  ///< empty: all
    TokenMask keep;          ///< [B, T] or [B, 1]; empty: all
  };

  LossResult compute(const LossBatch& batch, double entropy_coef) const {
    check_needs(batch);
    const LossOptions& o = options_;
    const TokenArray& old_logprobs = batch.old_logprobs.size() > 0 ? batch.old_logprobs : batch.logprobs;
    Terms terms{
        old_logprobs, importance_ratio(batch.logprobs, old_logprobs, batch.mask, o.importance_sampling_level), {}, {}, {}};
    if (o.loss_type == LossType::vespo)
      terms.phi = vespo_weight(o, batch.logprobs, old_logprobs, batch.mask, batch.importance_sampling_ratio, batch.advantages);
    if (o.top_entropy_quantile < 1.0) terms.high_entropy = high_entropy_mask(batch.entropies, batch.mask, o.top_entropy_quantile);
    if (o.off_policy_mask_threshold)
      terms.keep = off_policy_mask(batch.advantages, batch.logprobs,
                                   batch.sampling_logprobs.size() > 0 ? batch.sampling_logprobs : old_logprobs, batch.mask,
                                   *o.off_policy_mask_threshold);
    LossResult result;
    add_tokens(batch, terms, result);
    if (o.has_entropy_bonus()) add_entropy_bonus(batch, terms, entropy_coef, result);
    if (o.router_aux_loss_coef != 0.0) {
      result.d_aux_loss = o.router_aux_loss_coef / o.accumulation();
      result.loss += result.d_aux_loss * *batch.aux_loss;
      result.metrics["aux_loss"] = *batch.aux_loss;
    }
    if (batch.entropies.size() > 0) result.metrics["entropy"] = masked_mean(batch.entropies, batch.mask);
    result.metrics.merge(clip_metrics(o, terms.ratio, terms.phi, batch.advantages, batch.mask));
    return result;
  }

  /// What the policy term of a token is multiplied by: its masks and the correction for the sampler.
  double factor(const LossBatch& batch, const Terms& terms, Index i, Index t) const {
    if (terms.keep.size() > 0 && !at(terms.keep, i, t)) return 0.0;
    if (terms.high_entropy.size() > 0 && !terms.high_entropy(i, t)) return 0.0;
    const bool corrects = batch.importance_sampling_ratio.size() > 0 && options_.loss_type != LossType::vespo;
    return corrects ? at(batch.importance_sampling_ratio, i, t) : 1.0;
  }

  /// KL with its derivatives.
  TokenTerm kl_term(double ratio, const KlEstimate& kl) const {
    if (!options_.use_bias_correction_kl) return {kl.value, 0.0, kl.d_logprob};
    return {ratio * kl.value, kl.value, ratio * kl.d_logprob};
  }

  /// The policy and KL terms: their share of the loss, the gradient, and the metrics of both.
  void add_tokens(const LossBatch& batch, const Terms& terms, LossResult& result) const {
    const Normalization normal = normalization(options_, batch);
    TokenArray d_ratio = TokenArray::Zero(batch.rows(), batch.cols());
    TokenArray kl = TokenArray::Zero(batch.rows(), batch.cols());
    result.d_logprobs = TokenArray::Zero(batch.rows(), batch.cols());
    double policy_loss = 0.0;
    for (Index i = 0; i < batch.rows(); ++i) {
      const double weight = normal.row_weight[i];
      const double row_sum = sum_over_row(batch.mask, i, [&](Index t) {
        const double r = at(terms.ratio, i, t), x = batch.logprobs(i, t);
        const double phi = terms.phi.size() > 0 ? at(terms.phi, i, t) : 0.0;
        TokenTerm l = factor(batch, terms, i, t) * policy_term(options_, r, at(batch.advantages, i, t), x, phi);
        if (options_.beta != 0.0) {
          const TokenTerm divergence = kl_term(r, k3(x, batch.ref_logprobs(i, t)));
          kl(i, t) = divergence.value;
          l += options_.beta * divergence;
        }
        result.d_logprobs(i, t) = weight / normal.accumulation * l.d_logprob;
        d_ratio(i, t) = weight / normal.accumulation * l.d_ratio;
        return l.value;
      });
      policy_loss += weight * row_sum;
    }
    add_ratio_gradient(terms.ratio, batch.mask, options_.importance_sampling_level, d_ratio, result.d_logprobs);
    result.loss = policy_loss / normal.accumulation;
    if (options_.has_entropy_bonus()) result.metrics["policy_loss"] = policy_loss;
    if (options_.beta != 0.0) result.metrics["kl"] = masked_mean(kl, batch.mask);
  }

  void add_entropy_bonus(const LossBatch& batch, const Terms& terms, double entropy_coef, LossResult& result) const {
    const TokenMask& effective = terms.high_entropy.size() > 0 ? terms.high_entropy : batch.mask;
    result.entropy.tokens = token_count(effective);
    for (Index i = 0; i < batch.rows(); ++i)
      result.entropy.sum += sum_over_row(effective, i, [&](Index t) { return batch.entropies(i, t); });
    const double coefficient = entropy_coef / options_.accumulation();
    result.loss -= coefficient * result.entropy.mean();
    result.d_entropies = effective.cast<double>() * (-coefficient / at_least_one(result.entropy.tokens));
    if (options_.training && !options_.use_adaptive_entropy) result.metrics["entropy_coef"] = entropy_coef;
  }

  void check_needs(const LossBatch& batch) const {
    batch.check_shapes();
    if (options_.beta != 0.0 && batch.ref_logprobs.size() == 0)
      throw ArgumentError("beta is not 0, so the loss needs ref_logprobs, or beta = 0 for a loss without KL term");
    if (options_.needs_entropies() && batch.entropies.size() == 0)
      throw ArgumentError("top_entropy_quantile below 1 and the entropy bonus need entropies");
    if (options_.router_aux_loss_coef != 0.0 && !batch.aux_loss)
      throw ArgumentError("router_aux_loss_coef is not 0, so the loss needs aux_loss (load_balancing_loss)");
    if (options_.loss_type == LossType::vespo && batch.importance_sampling_ratio.cols() != batch.cols() &&
        batch.importance_sampling_ratio.size() > 0)
      throw ArgumentError(
          "vespo takes an importance_sampling_ratio for each token: a vllm_importance_sampling_mode of token_truncate or "
          "token_mask");
  }

  LossOptions options_;
};

}  // namespace moxie::grpo
