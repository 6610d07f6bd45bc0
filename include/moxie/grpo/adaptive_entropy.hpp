#pragma once
// Adaptive entropy control (Skywork-OR1, arXiv 2505.22312; TRL's `use_adaptive_entropy`): the coefficient of the entropy bonus
// follows the entropy that was measured over the micro-batches of the last optimizer step, H = sum e H / max(1, sum e):
//
//   H <= entropy_target:  coef = min(coef + entropy_coef_delta, entropy_coef_max)
//   else:                 coef = max(coef - entropy_coef_delta, entropy_coef_min)
//
// The coefficient acts from the next step on, and only while the H measured last is at most the target; before the first step it
// does not act.

#include <algorithm>
#include <limits>

#include <moxie/grpo/loss_options.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// Sum of entropies (nats) over the tokens that an entropy bonus acts on, and their number.
struct EntropySum {
  double sum = 0.0;
  double tokens = 0.0;

  double mean() const { return sum / at_least_one(tokens); }
};

/// The coefficient of the entropy bonus over a run: applied() before a step's micro-batches, add() for each, step() after them.
class AdaptiveEntropy {
 public:
  /// What a checkpoint keeps, between two optimizer steps; TRL's entropy_ctrl_state.json has the same two numbers.
  struct State {
    double entropy_coef;
    double last_world_entropy = std::numeric_limits<double>::infinity();  ///< infinite before the first step
  };

  /// Throws ArgumentError for options out of their range.
  explicit AdaptiveEntropy(const LossOptions& options) : AdaptiveEntropy(options, {options.entropy_coef}) {}
  /// Goes on from a checkpoint.
  AdaptiveEntropy(const LossOptions& options, const State& state) : options_(options), state_(state) { check(options); }

  /// The coefficient that the micro-batches of this step use.
  double applied() const { return state_.last_world_entropy <= options_.entropy_target ? state_.entropy_coef : 0.0; }
  const State& state() const { return state_; }

  /// Counts a micro-batch of training (LossResult::entropy) in the measurement of this step.
  void add(const EntropySum& entropy) {
    window_.sum += entropy.sum;
    window_.tokens += entropy.tokens;
  }

  /// Ends an optimizer step: the new coefficient, which TRL logs as `entropy_coef`.
  double step() {
    state_.last_world_entropy = window_.mean();
    window_ = {};
    if (state_.last_world_entropy <= options_.entropy_target)
      state_.entropy_coef = std::min(state_.entropy_coef + options_.entropy_coef_delta, options_.entropy_coef_max);
    else
      state_.entropy_coef = std::max(state_.entropy_coef - options_.entropy_coef_delta, options_.entropy_coef_min);
    return state_.entropy_coef;
  }

 private:
  LossOptions options_;
  State state_;
  EntropySum window_;
};

}  // namespace moxie::grpo
