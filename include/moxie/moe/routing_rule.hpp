#pragma once
// The rule by which router logits become expert ids and weights, for one row.
//
//   scores    = softmax(logits) over all experts, or sigmoid(logits), or the logits themselves
//   selection = scores + bias
//   groups    the experts lie in n_group groups of neighbours; the topk_group groups of the highest group score stay
//   ids       the top_k highest selection scores of the groups that stay, highest first; ties to the lower index, groups too
//   weights   = scores of the chosen, / max(their sum in slot order + norm_epsilon, norm_minimum), * routed_scaling_factor
//               where the logits are the scores: softmax over the chosen, its sum in slot order, * routed_scaling_factor
//
// All in f32, as Hugging Face transformers computes it; the two sums are taken in f64, in index and slot order.
// transformers gives the experts of dropped groups the selection score 0 (DeepSeek-V2) or minus infinity (DeepSeek-V3). Here they
// are never chosen. For DeepSeek-V2 that is the same output: its scores are softmax, so 0 ties only with an expert of weight 0.
// Sources: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437), transformers' modeling_deepseek_v2.py and _v3.py.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/moe/config.hpp>
#include <moxie/moe/top_k.hpp>

namespace moxie {

/// True for neither NaN nor infinity; looks at the bits, so that it holds under -ffast-math too.
inline bool is_finite(float x) noexcept { return (std::bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

class RoutingRule {
 public:
  static constexpr std::int64_t max_groups = 256;

  /// `bias` [n_experts] or empty. Throws ArgumentError that names the number that does not fit.
  explicit RoutingRule(const RouterConfig& config, Vector bias = {}) : config_(config), bias_(std::move(bias)) {
    const auto need = [](bool holds, const std::string& message) {
      if (!holds) throw ArgumentError({{}, "router", {}}, message);
    };
    const std::string experts = std::to_string(config.n_experts);
    need(config.n_experts >= 1 && config.n_experts <= std::numeric_limits<std::int32_t>::max(),
         concat("n_experts must be 1 to ", std::numeric_limits<std::int32_t>::max(), ", got ", experts));
    need(config.top_k >= 1 && config.top_k <= config.n_experts,
         concat("top_k must be 1 to n_experts (", experts, "), got ", config.top_k));
    need(config.n_group >= 1 && config.n_group <= max_groups && config.n_experts % config.n_group == 0,
         concat("n_group must divide n_experts (", experts, ") and be at most ", max_groups, ", got ", config.n_group));
    need(config.topk_group >= 1 && config.topk_group <= config.n_group,
         concat("topk_group must be 1 to n_group (", config.n_group, "), got ", config.topk_group));
    const std::int64_t group_size = config.n_experts / config.n_group;
    need(config.top_k <= config.topk_group * group_size, concat("top_k must be at most the experts of topk_group groups (",
                                                                config.topk_group * group_size, "), got ", config.top_k));
    need(config.n_group == 1 || config.group_score != GroupScore::best_two || group_size >= 2,
         concat("groups scored by their two best experts need at least 2 experts each, n_group ", config.n_group, " leaves 1"));
    need(is_finite(config.norm_epsilon) && config.norm_epsilon >= 0, "norm_epsilon must be finite and not negative");
    need(is_finite(config.norm_minimum) && config.norm_minimum >= 0, "norm_minimum must be finite and not negative");
    need(is_finite(config.routed_scaling_factor), "routed_scaling_factor must be finite");
    need(bias_.size() == 0 || bias_.size() == config.n_experts,
         concat("the selection bias must have n_experts (", experts, ") elements, got ", bias_.size()));
    for (Index e = 0; e < bias_.size(); ++e)
      need(is_finite(bias_[e]), concat("the selection bias of expert ", e, " is not finite"));
  }

  const RouterConfig& config() const noexcept { return config_; }

  /// Chooses the experts of one row. logits [n_experts] become the scores; ids, weights [top_k] are written.
  /// Throws Error when a logit is not finite.
  void choose(float* logits, std::int32_t* ids, float* weights) const {
    score(logits);
    const float* bias = bias_.size() ? bias_.data() : nullptr;
    const auto selection = [&](Index e) { return bias ? logits[e] + bias[e] : logits[e]; };
    if (config_.topk_group == config_.n_group) {
      stable_top_k(config_.n_experts, config_.top_k, selection, ids, weights);
    } else {
      const Index group_size = config_.n_experts / config_.n_group;
      float group_scores[max_groups], top_groups[max_groups];
      std::int32_t chosen[max_groups];
      for (Index g = 0; g < config_.n_group; ++g) {
        std::int32_t unused[2];
        float best[2] = {0.0f, 0.0f};
        const Index n = config_.group_score == GroupScore::best_two ? 2 : 1;
        stable_top_k(
            group_size, n, [&](Index i) { return selection(g * group_size + i); }, unused, best);
        group_scores[g] = best[0] + best[1];
      }
      stable_top_k(
          config_.n_group, config_.topk_group, [&](Index g) { return group_scores[g]; }, chosen, top_groups);
      std::sort(chosen, chosen + config_.topk_group);
      stable_top_k(
          config_.topk_group * group_size, config_.top_k,
          [&](Index i) { return selection(chosen[i / group_size] * group_size + i % group_size); }, ids, weights);
      for (Index s = 0; s < config_.top_k; ++s)
        ids[s] = static_cast<std::int32_t>(chosen[ids[s] / group_size] * group_size + ids[s] % group_size);
    }
    weigh(logits, ids, weights);
  }

  /// The weights of given ids [top_k] by the same rule. logits [n_experts] become the scores; weights [top_k] are written.
  /// Throws ArgumentError when an id is out of range or repeated, Error when a logit is not finite.
  void replay(float* logits, const std::int32_t* ids, float* weights) const {
    for (Index s = 0; s < config_.top_k; ++s) {
      if (ids[s] < 0 || ids[s] >= config_.n_experts)
        throw ArgumentError(concat("expert id ", ids[s], " is out of range, the layer has experts 0 to ", config_.n_experts - 1));
      if (std::find(ids, ids + s, ids[s]) != ids + s) throw ArgumentError(concat("expert id ", ids[s], " occurs twice in a row"));
    }
    score(logits);
    weigh(logits, ids, weights);
  }

 private:
  void score(float* logits) const {
    const Index n = config_.n_experts;
    for (Index e = 0; e < n; ++e)
      if (!is_finite(logits[e]))
        throw Error(concat("the router logit of expert ", e,
                           " is not finite: the layer's input or its router weights hold NaN or infinity, or are too large"));
    if (config_.scoring == RouterScoring::chosen_softmax) return;
    if (config_.scoring == RouterScoring::sigmoid) {
      for (Index e = 0; e < n; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
      return;
    }
    const float max = *std::max_element(logits, logits + n);
    double sum = 0.0;
    for (Index e = 0; e < n; ++e) sum += logits[e] = std::exp(logits[e] - max);
    const auto total = static_cast<float>(sum);
    for (Index e = 0; e < n; ++e) logits[e] /= total;
  }

  void weigh(const float* scores, const std::int32_t* ids, float* weights) const {
    double sum = 0.0;
    if (config_.scoring == RouterScoring::chosen_softmax) {
      float max = scores[ids[0]];
      for (Index s = 1; s < config_.top_k; ++s) max = std::max(max, scores[ids[s]]);
      for (Index s = 0; s < config_.top_k; ++s) sum += weights[s] = std::exp(scores[ids[s]] - max);
      for (Index s = 0; s < config_.top_k; ++s) weights[s] /= static_cast<float>(sum);
    } else {
      for (Index s = 0; s < config_.top_k; ++s) sum += weights[s] = scores[ids[s]];
    }
    if (config_.norm_topk_prob && config_.scoring != RouterScoring::chosen_softmax) {
      // Every chosen score may be 0 (far below the largest logit, chosen by bias or replay); their weights are then 0, not NaN.
      const float divisor = std::max(static_cast<float>(sum) + config_.norm_epsilon, config_.norm_minimum);
      if (divisor > 0.0f)
        for (Index s = 0; s < config_.top_k; ++s) weights[s] /= divisor;
    }
    for (Index s = 0; s < config_.top_k; ++s) weights[s] *= config_.routed_scaling_factor;
  }

  RouterConfig config_;
  Vector bias_;
};

}  // namespace moxie
