#pragma once
// Leave-one-out advantages (RLOO: "Back to Basics", arXiv 2402.14740), as TRL's RLOOTrainer computes them: a completion is
// compared with the mean of the others of its group,
//
//   A_i = s_i - (sum_j s_j - s_i) / (n - 1),   s_i = clamp( sum_k u_k R_ik, reward_clip_range ) - beta KL_i
//
// over the n completions of the group that have a reward. normalize_advantages: (A - mean of all A) / (std of all A + 1e-4). A
// completion without any reward, or whose group has no other with one, has the advantage 0.

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include <Eigen/Core>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/option_names.hpp>
#include <moxie/grpo/rewards.hpp>

namespace moxie::grpo {

/// Names as in TRL's RLOOConfig.
struct LeaveOneOutOptions {
  std::optional<std::pair<double, double>> reward_clip_range = {};  ///< lowest, highest
  bool normalize_advantages = false;
  double beta = 0.0;  ///< coefficient of the KL in the reward
};

/// kl [rows]: sum over the tokens of x_old - x_ref in nats, needed when beta is not 0, may else be empty.
/// Throws ArgumentError where sizes or options do not fit.
inline Advantages leave_one_out_advantages(const Rewards& rewards, const LeaveOneOutOptions& options = {},
                                           const Eigen::ArrayXd& kl = {}) {
  rewards.check();
  const Index rows = rewards.values.rows(), group = rewards.num_generations;
  if (options.beta != 0.0 && kl.size() != rows)
    throw ArgumentError(
        concat("beta is not 0, so kl must have an entry for each of the ", rows, " completions; it has ", kl.size()));
  Eigen::ArrayXd sums = weighted_sum(rewards.values, rewards.reward_weights);
  if (options.reward_clip_range) {
    const auto [lowest, highest] = *options.reward_clip_range;
    check_option(lowest <= highest, "reward_clip_range", lowest, "at most the second of the range");
    sums = sums.unaryExpr([lowest = lowest, highest = highest](double s) { return std::clamp(s, lowest, highest); });
  }
  if (options.beta != 0.0) sums -= options.beta * kl;

  Eigen::ArrayXd advantages(rows), deviations(rows);
  for (Index i = 0; i < rows; i += group) {
    const NanStatistics of_group = nan_statistics(sums.segment(i, group));
    const auto s = sums.segment(i, group);
    if (group > 1)
      advantages.segment(i, group) = s - (of_group.sum - s) / (of_group.count - 1.0);
    else
      advantages.segment(i, group) = 0.0;
    deviations.segment(i, group) = scale_of(of_group, group);
  }
  if (options.normalize_advantages) {
    const NanStatistics of_batch = nan_statistics(advantages);
    advantages = (advantages - of_batch.mean) / (of_batch.std + deviation_offset);
  }
  return {advantages.unaryExpr(&or_zero), reward_metrics(rewards, deviations)};
}

}  // namespace moxie::grpo
