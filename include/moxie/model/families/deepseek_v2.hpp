#pragma once
// DeepSeek-V2 and V2-Lite (arXiv 2405.04434): multi-head latent attention, softmax scores that are never renormalized,
// leading dense layers, shared experts. GGUF has one architecture, "deepseek2", for V2 and V3; expert_gating_func tells them
// apart.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

/// Of V2 and V3.
inline constexpr TensorNames deepseek_hf_names = [] {
  TensorNames names = hf_names_with_shared_experts;
  names.k = names.v = nullptr;
  names.q_a = "model.layers.{i}.self_attn.q_a_proj.weight";
  names.q_a_norm = "model.layers.{i}.self_attn.q_a_layernorm.weight";
  names.q_b = "model.layers.{i}.self_attn.q_b_proj.weight";
  names.kv_a = "model.layers.{i}.self_attn.kv_a_proj_with_mqa.weight";
  names.kv_a_norm = "model.layers.{i}.self_attn.kv_a_layernorm.weight";
  names.kv_b = "model.layers.{i}.self_attn.kv_b_proj.weight";
  names.router_bias = "model.layers.{i}.mlp.gate.e_score_correction_bias";
  return names;
}();

inline constexpr FixedOption deepseek_v2_fixed[] = {{"moe_layer_freq", "1"}, {"scoring_func", "\"softmax\""}};

inline constexpr Family deepseek_v2{
    .name = "deepseek_v2",
    .architecture = "deepseek2",
    .attention = AttentionKind::mla,
    .group_score = GroupScore::best,
    .shared = SharedExperts::counted,
    .hf = {.names = &deepseek_hf_names,
           .context_length = 2048,
           .layout = HfRules::Layout::interleaved,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "n_routed_experts|num_experts",
           .shared = "n_shared_experts",
           .shared_default = 2,
           .dense = HfRules::Dense::first_k,
           .topk_norm = TopkNorm::never,
           .groups = true,
           .group_method = "group_limited_greedy",
           .fixed = deepseek_v2_fixed},
    .gguf = {.layout = RopeLayout::interleaved, .shared = "expert_shared_count", .topk_norm = TopkNorm::by_key},
};

}  // namespace moxie::families
