#pragma once
// Options of the losses, with the names and defaults of TRL 1.16's GRPOConfig.

#include <cmath>
#include <optional>
#include <string_view>

#include <moxie/core/matrix.hpp>
#include <moxie/grpo/option_names.hpp>

namespace moxie::grpo {

/// TRL's `loss_type`: the policy term of a token (policy_term.hpp) and what the sum of the terms is divided by
/// (normalization.hpp).
enum class LossType {
  grpo,     ///< DeepSeekMath, arXiv 2402.03300: clipped ratio; mean over the tokens of a row, then over rows
  bnpo,     ///< as grpo; mean over the tokens of the (micro-)batch
  dr_grpo,  ///< as grpo; divided by a constant length, Dr. GRPO, arXiv 2503.20783
  dapo,     ///< as grpo; mean over the tokens of all accumulated micro-batches, DAPO, arXiv 2503.14476
  cispo,    ///< clipped weight of the log-probability, MiniMax-M1, arXiv 2506.13585
  sapo,     ///< soft gate instead of a clip, arXiv 2511.20347
  luspo,    ///< as grpo; a row weighs as much as it has tokens, arXiv 2602.05261; meant for ratios of sequences
  vespo,    ///< Gamma weight of the whole sequence, arXiv 2602.10693
};

/// The value of this name, as TRL spells it. Throws ArgumentError with the possible names.
inline LossType loss_type(std::string_view name) {
  static constexpr OptionNames<LossType, 8> names{{{"grpo", LossType::grpo},
                                                   {"bnpo", LossType::bnpo},
                                                   {"dr_grpo", LossType::dr_grpo},
                                                   {"dapo", LossType::dapo},
                                                   {"cispo", LossType::cispo},
                                                   {"sapo", LossType::sapo},
                                                   {"luspo", LossType::luspo},
                                                   {"vespo", LossType::vespo}}};
  return option_value("loss_type", name, names);
}

/// TRL's `importance_sampling_level`: one ratio for each token, or one for each sequence (GSPO, arXiv 2507.18071).
enum class ImportanceSamplingLevel { token, sequence };

/// The value of this name, as TRL spells it. Throws ArgumentError with the possible names.
inline ImportanceSamplingLevel importance_sampling_level(std::string_view name) {
  static constexpr OptionNames<ImportanceSamplingLevel, 2> names{
      {{"token", ImportanceSamplingLevel::token}, {"sequence", ImportanceSamplingLevel::sequence}}};
  return option_value("importance_sampling_level", name, names);
}

/// Options of Loss; check() says what is out of range. Ratios and coefficients have no unit, entropies and thresholds are in
/// nats.
struct LossOptions {
  LossType loss_type = LossType::dapo;
  ImportanceSamplingLevel importance_sampling_level = ImportanceSamplingLevel::token;

  double epsilon = 0.2;  ///< ratios are clipped below at 1 - epsilon
  /// Ratios are clipped above at 1 + epsilon_high; none: epsilon. For cispo the bound itself, e.g. 5 (ScaleRL, arXiv 2510.13786).
  std::optional<double> epsilon_high = {};
  /// Two-sided clipping: the largest unclipped ratio (INTELLECT-2, arXiv 2505.07291); none: no bound.
  std::optional<double> delta = {};

  double beta = 0.0;                   ///< coefficient of the KL term; 0: no reference needed
  bool use_bias_correction_kl = true;  ///< KL times the ratio (DeepSeek-V3.2, arXiv 2512.02556)

  double sapo_temperature_pos = 1.0;   ///< for advantages above 0
  double sapo_temperature_neg = 1.05;  ///< for the others
  double vespo_k_pos = 2.0;            ///< for advantages of at least 0
  double vespo_lambda_pos = 3.0;
  double vespo_k_neg = 3.0;  ///< for advantages below 0
  double vespo_lambda_neg = 2.0;

  double top_entropy_quantile = 1.0;  ///< share of tokens, those of highest entropy, that have a policy term; 0..1
  std::optional<double> off_policy_mask_threshold = {};  ///< nats per token; none: no mask

  double entropy_coef = 0.0;          ///< of the entropy bonus; with `use_adaptive_entropy` the coefficient of the first step
  bool use_adaptive_entropy = false;  ///< adaptive_entropy.hpp
  double entropy_target = 0.2;        ///< nats per token
  double entropy_coef_delta = 0.005;
  double entropy_coef_min = 0.0;
  double entropy_coef_max = 1.0;

  double router_aux_loss_coef = 0.0;  ///< of the router's load-balancing loss (load_balancing.hpp)

  Index max_completion_length = 256;               ///< tokens; the constant of dr_grpo
  Index gradient_accumulation_steps = 1;           ///< micro-batches of an optimizer step
  std::optional<Index> steps_per_generation = {};  ///< micro-batches of a generated batch; none: as many as of an optimizer step
  bool training = true;                            ///< false: evaluation, where a batch is neither split nor accumulated

  double clip_high() const { return epsilon_high.value_or(epsilon); }
  double accumulation() const { return training ? static_cast<double>(gradient_accumulation_steps) : 1.0; }
  bool has_entropy_bonus() const { return entropy_coef != 0.0 || use_adaptive_entropy; }
  bool needs_entropies() const { return has_entropy_bonus() || top_entropy_quantile < 1.0; }
};

/// Throws ArgumentError for a value outside its range.
inline void check(const LossOptions& o) {
  const auto finite = [](double value) { return std::isfinite(value); };
  check_option(finite(o.epsilon) && o.epsilon >= 0.0, "epsilon", o.epsilon, "0 or more");
  check_option(finite(o.clip_high()) && o.clip_high() >= 0.0, "epsilon_high", o.clip_high(), "0 or more");
  if (o.delta)
    check_option(finite(*o.delta) && *o.delta > 0.0, "delta", *o.delta, "above 0, and should be above 1 + epsilon_high");
  check_option(finite(o.beta), "beta", o.beta, "finite");
  check_option(finite(o.sapo_temperature_pos) && o.sapo_temperature_pos > 0.0, "sapo_temperature_pos", o.sapo_temperature_pos,
               "above 0");
  check_option(finite(o.sapo_temperature_neg) && o.sapo_temperature_neg > 0.0, "sapo_temperature_neg", o.sapo_temperature_neg,
               "above 0");
  check_option(finite(o.vespo_k_pos), "vespo_k_pos", o.vespo_k_pos, "finite");
  check_option(finite(o.vespo_k_neg), "vespo_k_neg", o.vespo_k_neg, "finite");
  check_option(finite(o.vespo_lambda_pos), "vespo_lambda_pos", o.vespo_lambda_pos, "finite");
  check_option(finite(o.vespo_lambda_neg), "vespo_lambda_neg", o.vespo_lambda_neg, "finite");
  check_option(o.top_entropy_quantile >= 0.0 && o.top_entropy_quantile <= 1.0, "top_entropy_quantile", o.top_entropy_quantile,
               "in 0..1");
  if (o.off_policy_mask_threshold)
    check_option(!std::isnan(*o.off_policy_mask_threshold), "off_policy_mask_threshold", *o.off_policy_mask_threshold,
                 "a number (nats per token)");
  check_option(finite(o.entropy_coef), "entropy_coef", o.entropy_coef, "finite");
  if (o.use_adaptive_entropy) {
    check_option(!std::isnan(o.entropy_target), "entropy_target", o.entropy_target, "a number (nats per token)");
    check_option(finite(o.entropy_coef_delta) && o.entropy_coef_delta >= 0.0, "entropy_coef_delta", o.entropy_coef_delta,
                 "0 or more");
    check_option(o.entropy_coef_min <= o.entropy_coef_max, "entropy_coef_min", o.entropy_coef_min, "at most entropy_coef_max");
  }
  check_option(finite(o.router_aux_loss_coef), "router_aux_loss_coef", o.router_aux_loss_coef, "finite");
  check_option(o.max_completion_length >= 1, "max_completion_length", static_cast<double>(o.max_completion_length),
               "at least 1 token");
  check_option(o.gradient_accumulation_steps >= 1, "gradient_accumulation_steps",
               static_cast<double>(o.gradient_accumulation_steps), "at least 1");
  if (o.steps_per_generation)
    check_option(*o.steps_per_generation >= 1, "steps_per_generation", static_cast<double>(*o.steps_per_generation),
                 "at least 1");
}

}  // namespace moxie::grpo
