#pragma once
// Group-relative advantages (GRPO: DeepSeekMath, arXiv 2402.03300).

#include <cmath>
#include <string>

#include <Eigen/Core>

#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>

namespace moxie::grpo {

/// advantages = (reward - mean of its group) / (standard deviation of its group + 1e-4), groups being `group_size` neighbours; the deviation is
/// the one with n - 1, as in TRL (`scale_rewards="group"`). Throws ArgumentError unless the rewards fill whole groups of at least 2.
inline Eigen::ArrayXd group_advantages(const Eigen::Ref<const Eigen::ArrayXd>& rewards, Index group_size) {
  if (group_size < 2 || rewards.size() % group_size != 0)
    throw ArgumentError(std::to_string(rewards.size()) + " rewards do not fill groups of " + std::to_string(group_size) + "; a group has at least 2");
  Eigen::ArrayXd advantages(rewards.size());
  for (Index g = 0; g < rewards.size(); g += group_size) {
    const auto group = rewards.segment(g, group_size);
    const double mean = group.mean();
    const double deviation = std::sqrt((group - mean).square().sum() / static_cast<double>(group_size - 1));
    advantages.segment(g, group_size) = (group - mean) / (deviation + 1e-4);
  }
  return advantages;
}

}  // namespace moxie::grpo
