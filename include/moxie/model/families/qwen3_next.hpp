#pragma once
// Qwen3-Next: gated delta nets in three of four layers, attention with an output gate and partly rotated heads in the others,
// norms that multiply by 1 + weight, a shared expert with a sigmoid gate. Source: transformers, modeling_qwen3_next.py;
// llama.cpp, models/qwen3next.cpp.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>
#include <moxie/model/families/qwen2_moe.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen3_next_hf_names = [] {
  TensorNames names = qwen2_moe_hf_names;
  names.norms_minus_one = true;
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  names.delta_qkvz = "model.layers.{i}.linear_attn.in_proj_qkvz.weight";
  names.delta_ba = "model.layers.{i}.linear_attn.in_proj_ba.weight";
  names.delta_conv = "model.layers.{i}.linear_attn.conv1d.weight";
  names.delta_dt_bias = "model.layers.{i}.linear_attn.dt_bias";
  names.delta_a_log = "model.layers.{i}.linear_attn.A_log";
  names.delta_norm = "model.layers.{i}.linear_attn.norm.weight";
  names.delta_out = "model.layers.{i}.linear_attn.out_proj.weight";
  return names;
}();

inline constexpr Family qwen3_next{
    .name = "qwen3_next",
    .architecture = "qwen3next",
    .qk_norm = QkNorm::per_head,
    .shared = SharedExperts::gated,
    .output_gate = true,
    .delta_net = true,
    .hf = {.names = &qwen3_next_hf_names,
           .context_length = 32768,
           .head_dim = 256,
           .partial_rotation = true,
           .rotary_factor = 0.25,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts|num_local_experts",
           .shared = "shared_expert_intermediate_size",
           .dense = HfRules::Dense::sparse_step,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true},
    .gguf = {.names = &gguf_post_attention_norm_names, .shared = "expert_shared_feed_forward_length"},
};

}  // namespace moxie::families
