#pragma once
// DeepSeek-V3 and R1 (arXiv 2412.19437), Moonlight, Kimi K2: V2 with sigmoid scores, a bias for the choice of experts, and groups
// scored by their two best experts.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/deepseek_v2.hpp>

namespace moxie::families {

inline constexpr FixedOption deepseek_v3_fixed[] = {
    {"moe_layer_freq", "1"}, {"scoring_func", "\"sigmoid\""}, {"topk_method", "\"noaux_tc\""}};

inline constexpr Family deepseek_v3{
    .name = "deepseek_v3",
    .architecture = "deepseek2",
    .other_name = "kimi_k2",
    .attention = AttentionKind::mla,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .hf = {.names = &deepseek_hf_names,
           .layout = HfRules::Layout::by_key,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "n_routed_experts|num_local_experts",
           .shared = "n_shared_experts",
           .shared_default = 1,
           .dense = HfRules::Dense::first_k,
           .first_k_default = 3,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .groups = true,
           .scaling_default = 2.5,
           .n_group_default = 8,
           .topk_group_default = 4,
           .fixed = deepseek_v3_fixed},
    .gguf = {.layout = RopeLayout::interleaved, .shared = "expert_shared_count", .topk_norm = TopkNorm::by_key},
};

}  // namespace moxie::families
