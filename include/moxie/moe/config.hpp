#pragma once
// What a Mixture-of-Experts layer is: sizes and the rule by which its router chooses experts. Plain data.

#include <cstdint>

namespace moxie {

/// How router logits become scores.
enum class RouterScoring {
  softmax,        ///< over all experts
  sigmoid,        ///< of each
  chosen_softmax  ///< the logits are the scores; the weights are the softmax over the chosen experts (gpt-oss)
};
/// How the score of a group of experts is made from its experts' selection scores. Experts of dropped groups are never chosen.
enum class GroupScore {
  best,     ///< the largest (DeepSeek-V2, group_limited_greedy)
  best_two  ///< the sum of the two largest (DeepSeek-V3, noaux_tc)
};

/// Router: logits = W x; scores = scoring(logits); selection = scores (+ bias); top_k experts by selection, ties to the lower
/// index, from the topk_group best of n_group groups; weights = scores of the chosen (without the bias), renormalized, scaled.
struct RouterConfig {
  std::int64_t n_experts = 0;
  std::int64_t top_k = 0;
  RouterScoring scoring = RouterScoring::softmax;
  std::int64_t n_group = 1;
  std::int64_t topk_group = 1;
  GroupScore group_score = GroupScore::best_two;
  bool norm_topk_prob = false;         ///< divide the weights by max(their sum + norm_epsilon, norm_minimum)
  float norm_epsilon = 0.0f;           ///< 1e-20 in DeepSeek-V3
  float routed_scaling_factor = 1.0f;  ///< multiplies the weights at the end
  float norm_minimum = 0.0f;           ///< 1e-12 in ERNIE 4.5
};

/// y = sum over the chosen experts of weight * down(silu(gate(x)) * up(x)), plus the shared experts. gpt-oss: see swiglu_limit;
/// Nemotron: see gated.
struct MoeConfig {
  std::int64_t hidden_size = 0;
  std::int64_t moe_intermediate_size = 0;
  std::int64_t shared_intermediate_size = 0;  ///< width of all shared experts together; 0: none
  bool shared_expert_gate = false;            ///< the shared experts' output is multiplied by sigmoid(gate . x) (Qwen2-MoE)
  RouterConfig router;
  // gpt-oss; of the routed experts, not of shared ones
  bool biases = false;  ///< their products, and the router's logits, have biases
  /// Not 0: instead of silu(g) * u it is (u + 1) * g * sigmoid(1.702 g), with g at most this and u within plus and minus this.
  float swiglu_limit = 0.0f;
  bool gated = true;  ///< false: experts, shared ones too, have no gate: down(relu(up(x))^2)
  /// Not 0 (Nemotron 3 Super): the routed experts' x is a projection of the layer's to this size, and what they give together is
  /// projected back. Not in MoeLayer.
  std::int64_t latent_size = 0;

  /// Of the routed experts' x.
  std::int64_t expert_input() const noexcept { return latent_size != 0 ? latent_size : hidden_size; }
};

}  // namespace moxie
