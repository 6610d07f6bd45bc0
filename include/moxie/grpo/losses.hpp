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

#include <algorithm>

#include <moxie/core/error.hpp>
#include <moxie/grpo/adaptive_entropy.hpp>
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

struct LossResult {
  double loss = 0.0;
  TokenArray d_logprobs;    ///< [B, T] d loss / d x, 0 in the padding
  TokenArray d_entropies;   ///< [B, T] d loss / d H; empty without entropy bonus
  double d_aux_loss = 0.0;  ///< d loss / d aux_loss
  Metrics metrics;          ///< under TRL's names, see Loss
  EntropySum entropy;       ///< over the tokens of the entropy bonus, for AdaptiveEntropy::add; empty sum without bonus
};

/// A loss: options in, loss, gradients and metrics of a (micro-)batch out. Metrics, where mean is over tokens with m = 1, and
/// over rows for what has one value for a row (ratios of sequences):
///   kl                                    mean of the KL term without beta; with beta
///   entropy                               mean of H; where entropies are given
///   clip_ratio/{low,high,region}_mean     share clipped at the lower bound (A < 0), at the upper bound (A > 0), at either;
///   losses with a clip clip_ratio/{low_min,high_max}         smallest and largest share in a row cispo_clip_ratio share with r >
///   epsilon_high and A > 0; cispo vespo/phi_seq_mean                    mean of phi; vespo policy_loss the loss before entropy
///   bonus, auxiliary loss and division by acc; with entropy bonus entropy_coef                          with entropy bonus in
///   training; with AdaptiveEntropy it is what step() returns aux_loss                              as given
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
          "use_adaptive_entropy needs the coefficient that applies: call loss(batch, control.applied()) of an AdaptiveEntropy "
          "control");
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
    add_clip_metrics(batch, terms, result.metrics);
    return result;
  }

  /// The policy and KL terms: their share of the loss, the gradient, and the metrics of both.
  void add_tokens(const LossBatch& batch, const Terms& terms, LossResult& result) const {
    const LossOptions& o = options_;
    const Normalization normal = normalization(o, batch);
    const bool corrects = batch.importance_sampling_ratio.size() > 0 && o.loss_type != LossType::vespo;
    TokenArray d_ratio = TokenArray::Zero(batch.rows(), batch.cols());
    TokenArray kl = TokenArray::Zero(batch.rows(), batch.cols());
    result.d_logprobs = TokenArray::Zero(batch.rows(), batch.cols());
    double policy_loss = 0.0;
    for (Index i = 0; i < batch.rows(); ++i) {
      const double weight = normal.row_weight[i];
      policy_loss += weight * sum_over_row(batch.mask, i, [&](Index t) {
                       const double r = at(terms.ratio, i, t), x = batch.logprobs(i, t);
                       const double phi = terms.phi.size() > 0 ? at(terms.phi, i, t) : 0.0;
                       PolicyTerm l = policy_term(o, r, at(batch.advantages, i, t), x, phi);
                       double factor = corrects ? at(batch.importance_sampling_ratio, i, t) : 1.0;
                       if (terms.keep.size() > 0 && !at(terms.keep, i, t)) factor = 0.0;
                       if (terms.high_entropy.size() > 0 && !terms.high_entropy(i, t)) factor = 0.0;
                       l = {factor * l.value, factor * l.d_ratio, factor * l.d_logprob};
                       if (o.beta != 0.0) {
                         const KlEstimate k = k3(x, batch.ref_logprobs(i, t));
                         const double correction = o.use_bias_correction_kl ? r : 1.0;
                         kl(i, t) = correction * k.value;
                         l.value += o.beta * kl(i, t);
                         l.d_logprob += o.beta * correction * k.d_logprob;
                         if (o.use_bias_correction_kl) l.d_ratio += o.beta * k.value;
                       }
                       result.d_logprobs(i, t) = weight / normal.accumulation * l.d_logprob;
                       d_ratio(i, t) = weight / normal.accumulation * l.d_ratio;
                       return l.value;
                     });
    }
    add_ratio_gradient(terms.ratio, batch.mask, o.importance_sampling_level, d_ratio, result.d_logprobs);
    result.loss = policy_loss / normal.accumulation;
    if (o.has_entropy_bonus()) result.metrics["policy_loss"] = policy_loss;
    if (o.beta != 0.0) result.metrics["kl"] = masked_mean(kl, batch.mask);
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

  void add_clip_metrics(const LossBatch& batch, const Terms& terms, Metrics& metrics) const {
    if (options_.loss_type == LossType::sapo) return;
    if (options_.loss_type == LossType::vespo) {
      metrics["vespo/phi_seq_mean"] = masked_mean(terms.phi, batch.mask);
      return;
    }
    const Clip clip(options_);
    const auto flags = [&](auto&& is_clipped) {
      TokenArray flag(batch.rows(), std::max(terms.ratio.cols(), batch.advantages.cols()));
      for (Index i = 0; i < flag.rows(); ++i)
        for (Index t = 0; t < flag.cols(); ++t)
          flag(i, t) = is_clipped(at(terms.ratio, i, t), at(batch.advantages, i, t)) ? 1.0 : 0.0;
      return flag;
    };
    if (options_.loss_type == LossType::cispo) {
      metrics["cispo_clip_ratio"] =
          masked_mean(flags([&](double r, double a) { return r > options_.clip_high() && a > 0.0; }), batch.mask);
      return;
    }
    const TokenArray low = flags([&](double r, double a) { return clip.is_low(r, a); });
    const TokenArray high = flags([&](double r, double a) { return clip.is_high(r, a); });
    metrics["clip_ratio/low_mean"] = masked_mean(low, batch.mask);
    metrics["clip_ratio/high_mean"] = masked_mean(high, batch.mask);
    metrics["clip_ratio/region_mean"] = masked_mean(low + high, batch.mask);
    metrics["clip_ratio/low_min"] = row_mean_range(low, batch.mask).smallest;
    metrics["clip_ratio/high_max"] = row_mean_range(high, batch.mask).largest;
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
