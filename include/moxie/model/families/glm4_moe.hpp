#pragma once
// GLM-4.5, 4.6 and their Air forms (arXiv 2508.06471): grouped-query attention that rotates half of each head, biases on q, k and
// v, norms of q and k in the large form; DeepSeek-V3's router; a shared expert, leading dense layers.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

/// Of GLM-4.5 and dots1: Qwen3's attention over DeepSeek's networks.
inline constexpr TensorNames glm4_moe_hf_names = [] {
  TensorNames names = hf_names_with_shared_experts;
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  names.router_bias = "model.layers.{i}.mlp.gate.e_score_correction_bias";
  return names;
}();

inline constexpr Family glm4_moe{
    .name = "glm4_moe",
    .architecture = "glm4moe",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .hf = {.names = &glm4_moe_hf_names,
           .rms_norm_eps = 1e-5,
           .context_length = 131072,
           .partial_rotation = true,
           .rotary_factor = 0.5,
           .bias_key = "attention_bias",
           .qk_norm_key = "use_qk_norm",
           .n_experts = "n_routed_experts|num_local_experts",
           .shared = "n_shared_experts",
           .shared_default = 1,
           .dense = HfRules::Dense::first_k,
           .first_k_default = 1,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .groups = true},
    .gguf = {.names = &gguf_post_attention_norm_names,
             .shared = "expert_shared_count",
             .topk_norm = TopkNorm::by_key,
             .qk_norm_optional = true},
};

}  // namespace moxie::families
