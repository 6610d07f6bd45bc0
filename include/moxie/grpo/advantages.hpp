#pragma once
// Group-relative advantages (GRPO: DeepSeekMath, arXiv 2402.03300), as TRL's GRPOTrainer computes them. R [rows, functions]:
// rewards, NaN where absent; u: weights; std with n - 1; means and deviations leave NaN out.
//
//   sum_then_normalize, s_i = sum_k u_k R_ik:
//     scale_rewards = group   A = (s - mean of group) / (std of group + 1e-4)
//     scale_rewards = batch   A = (s - mean of group) / (std of all s + 1e-4)       "Tricks or Traps?", arXiv 2508.08221
//     scale_rewards = none    A =  s - mean of group                                Dr. GRPO, arXiv 2503.20783
//   normalize_then_sum        v_i = sum_k u_k (R_ik - mean of group) / (std of group + 1e-4)
//                             A = (v - mean of all v) / (std of all v + 1e-4)       GDPO, arXiv 2601.05242
//
// A completion without any reward has the advantage 0 and counts in no mean or deviation. What comes out NaN, as in a group with
// a single reward under `group`, is 0 as well.

#include <string>
#include <string_view>

#include <Eigen/Core>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/option_names.hpp>
#include <moxie/grpo/rewards.hpp>

namespace moxie::grpo {

/// TRL's `scale_rewards`.
enum class ScaleRewards { group, batch, none };

/// The value of this name, as TRL spells it. Throws ArgumentError with the possible names.
inline ScaleRewards scale_rewards(std::string_view name) {
  static constexpr OptionNames<ScaleRewards, 3> names{
      {{"group", ScaleRewards::group}, {"batch", ScaleRewards::batch}, {"none", ScaleRewards::none}}};
  return option_value("scale_rewards", name, names);
}

/// TRL's `multi_objective_aggregation`.
enum class MultiObjectiveAggregation { sum_then_normalize, normalize_then_sum };

/// The value of this name, as TRL spells it. Throws ArgumentError with the possible names.
inline MultiObjectiveAggregation multi_objective_aggregation(std::string_view name) {
  static constexpr OptionNames<MultiObjectiveAggregation, 2> names{
      {{"sum_then_normalize", MultiObjectiveAggregation::sum_then_normalize},
       {"normalize_then_sum", MultiObjectiveAggregation::normalize_then_sum}}};
  return option_value("multi_objective_aggregation", name, names);
}

/// Names and defaults of TRL's GRPOConfig.
struct AdvantageOptions {
  ScaleRewards scale_rewards = ScaleRewards::group;  ///< not read by normalize_then_sum
  MultiObjectiveAggregation multi_objective_aggregation = MultiObjectiveAggregation::sum_then_normalize;
};

namespace detail {

inline Advantages sum_then_normalize(const Rewards& rewards, const AdvantageOptions& options) {
  const Eigen::ArrayXd sums = weighted_sum(rewards.values, rewards.reward_weights);
  const Index rows = sums.size(), group = rewards.num_generations;
  const double of_batch = scale_of(nan_statistics(sums), rows);
  Eigen::ArrayXd advantages(rows), deviations(rows);
  for (Index i = 0; i < rows; i += group) {
    const NanStatistics of_group = nan_statistics(sums.segment(i, group));
    const double deviation = options.scale_rewards == ScaleRewards::batch ? of_batch : scale_of(of_group, group);
    const double divisor = options.scale_rewards == ScaleRewards::none ? 1.0 : deviation + deviation_offset;
    advantages.segment(i, group) = (sums.segment(i, group) - of_group.mean) / divisor;
    deviations.segment(i, group) = deviation;
  }
  return {advantages, reward_metrics(rewards, deviations)};
}

inline Advantages normalize_then_sum(const Rewards& rewards) {
  const Index rows = rewards.values.rows(), group = rewards.num_generations;
  TokenArray normalized(rows, rewards.values.cols());
  for (Index k = 0; k < rewards.values.cols(); ++k)
    for (Index i = 0; i < rows; i += group) {
      const auto of_function = rewards.values.col(k).segment(i, group);
      const NanStatistics of_group = nan_statistics(of_function);
      normalized.col(k).segment(i, group) = (of_function - of_group.mean) / (scale_of(of_group, group) + deviation_offset);
    }
  Eigen::ArrayXd sums = weighted_sum(normalized, rewards.reward_weights);
  // A reward whose group has no deviation counts as 0; only a completion without any reward stays without a sum.
  for (Index i = 0; i < rows; ++i)
    if (!rewards.values.row(i).isNaN().all()) sums[i] = or_zero(sums[i]);
  const NanStatistics of_batch = nan_statistics(sums);
  const double deviation = scale_of(of_batch, rows);
  return {(sums - of_batch.mean) / (deviation + deviation_offset),
          reward_metrics(rewards, Eigen::ArrayXd::Constant(rows, deviation))};
}

}  // namespace detail

/// Throws ArgumentError where the sizes of the rewards do not fit.
inline Advantages advantages(const Rewards& rewards, const AdvantageOptions& options = {}) {
  rewards.check();
  Advantages result = options.multi_objective_aggregation == MultiObjectiveAggregation::sum_then_normalize
                          ? detail::sum_then_normalize(rewards, options)
                          : detail::normalize_then_sum(rewards);
  result.advantages = result.advantages.unaryExpr(&or_zero);
  return result;
}

/// Advantages of one reward for each completion, groups being `group_size` neighbours, scaled by group. Throws ArgumentError
/// unless the rewards fill whole groups of at least 2.
inline Eigen::ArrayXd group_advantages(const Eigen::Ref<const Eigen::ArrayXd>& rewards, Index group_size) {
  if (group_size < 2 || rewards.size() % group_size != 0)
    throw ArgumentError(concat(rewards.size(), " rewards do not fill groups of ", group_size, "; a group has at least 2"));
  return advantages({.values = rewards, .num_generations = group_size}).advantages;
}

}  // namespace moxie::grpo
