#pragma once
// dots.llm1 (arXiv 2506.05767): Qwen3's attention with as many key-value heads as heads, DeepSeek-V3's router, shared experts,
// leading dense layers.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/glm4_moe.hpp>

namespace moxie::families {

inline constexpr Family dots1{
    .name = "dots1",
    .architecture = "dots1",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .hf = {.names = &glm4_moe_hf_names,
           .context_length = 2048,
           .window = HfRules::Window::late,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "n_routed_experts|num_local_experts",
           .shared = "n_shared_experts",
           .dense = HfRules::Dense::first_k,
           .topk_norm = TopkNorm::by_key,
           .groups = true},
    .gguf = {.shared = "expert_shared_count", .topk_norm = TopkNorm::by_key},
};

}  // namespace moxie::families
