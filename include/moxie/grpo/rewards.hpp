#pragma once
// Rewards of completions: one row for each completion, the completions of a prompt together, one column for each reward function,
// NaN where a function gave no reward.

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <Eigen/Core>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/metrics.hpp>
#include <moxie/grpo/nan_statistics.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// The rewards of a generated batch.
struct Rewards {
  TokenArray values = {};                   ///< R [rows, functions]
  Index num_generations = 8;                ///< completions of a prompt; rows are a multiple of it
  std::vector<double> reward_weights = {};  ///< u, one for each function; empty: all 1
  std::vector<std::string> names = {};      ///< of the functions, for the metrics; empty: f0, f1, ...

  /// Throws ArgumentError unless all sizes fit.
  void check() const {
    if (num_generations < 1) throw ArgumentError(concat("num_generations is ", num_generations, ", must be at least 1"));
    if (values.size() == 0 || values.rows() % num_generations != 0)
      throw ArgumentError(
          concat("rewards are [", values.rows(), ", ", values.cols(),
                 "], must be [rows, functions] with rows in whole groups of num_generations = ", num_generations));
    const auto check_size = [&](const char* name, std::size_t size) {
      if (size != 0 && static_cast<Index>(size) != values.cols())
        throw ArgumentError(concat(name, " of rewards have ", size, " entries, must have one for each of the ", values.cols(),
                                   " reward functions"));
    };
    check_size("reward_weights", reward_weights.size());
    check_size("names", names.size());
  }
};

/// s_i = sum_k u_k R_ik over the rewards that are not NaN; NaN where a row has none. weights: u, empty: all 1.
inline Eigen::ArrayXd weighted_sum(const ConstTokens& rewards, const std::vector<double>& weights) {
  Eigen::ArrayXd sums = Eigen::ArrayXd::Constant(rewards.rows(), std::numeric_limits<double>::quiet_NaN());
  for (Index i = 0; i < rewards.rows(); ++i)
    for (Index k = 0; k < rewards.cols(); ++k)
      if (!std::isnan(rewards(i, k)))
        sums[i] = (std::isnan(sums[i]) ? 0.0 : sums[i]) +
                  (weights.empty() ? 1.0 : weights[static_cast<std::size_t>(k)]) * rewards(i, k);
  return sums;
}

/// What TRL adds to a standard deviation before dividing by it.
inline constexpr double deviation_offset = 1e-4;

/// Standard deviation for scaling: that of a single number is 0, which happens in evaluation only.
inline double scale_of(const NanStatistics& statistics, Index size) { return size > 1 ? statistics.std : 0.0; }

/// 0 for what has no advantage: completions without any reward, groups with less than two rewards.
inline double or_zero(double advantage) { return std::isnan(advantage) ? 0.0 : advantage; }

/// rewards/NAME/{mean,std} of each function, reward and reward_std of the weighted sums, frac_reward_zero_std: share of rows
/// whose deviation is within 1e-8 of 0.
inline Metrics reward_metrics(const Rewards& rewards, const Eigen::ArrayXd& deviations) {
  Metrics metrics;
  for (Index k = 0; k < rewards.values.cols(); ++k) {
    const std::string name = rewards.names.empty() ? concat("f", k) : rewards.names[static_cast<std::size_t>(k)];
    const NanStatistics of_function = nan_statistics(rewards.values.col(k));
    metrics[concat("rewards/", name, "/mean")] = of_function.mean;
    metrics[concat("rewards/", name, "/std")] = of_function.std;
  }
  const NanStatistics of_sums = nan_statistics(weighted_sum(rewards.values, rewards.reward_weights));
  metrics["reward"] = of_sums.mean;
  metrics["reward_std"] = of_sums.std;
  metrics["frac_reward_zero_std"] = (deviations.abs() <= 1e-8).cast<double>().mean();
  return metrics;
}

/// Advantages, in the order of the rewards' rows, and what TRL logs with them.
struct Advantages {
  Eigen::ArrayXd advantages;  ///< [rows] A
  Metrics metrics;            ///< reward_metrics
};

}  // namespace moxie::grpo
