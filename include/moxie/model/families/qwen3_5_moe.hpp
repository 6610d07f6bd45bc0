#pragma once
// Qwen3.5-MoE and Qwen3.6-MoE: Qwen3-Next with projections of their own for q k v, z, b and a. Checkpoints are those of a model
// for text and images; the text model is run. Its rotation has sections for height and width, which text gives the same position.
// In GGUF the value heads of a key head do not follow each other: head h uses key head h % n_k_heads.
// Source: transformers, modeling_qwen3_5_moe.py; llama.cpp, models/qwen35moe.cpp and conversion/qwen.py.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/qwen3_next.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen3_5_moe_hf_names = [] {
  TensorNames names = qwen3_next_hf_names;
  names.delta_qkvz = names.delta_ba = nullptr;
  names.delta_qkv = "model.layers.{i}.linear_attn.in_proj_qkv.weight";
  names.delta_z = "model.layers.{i}.linear_attn.in_proj_z.weight";
  names.delta_b = "model.layers.{i}.linear_attn.in_proj_b.weight";
  names.delta_a = "model.layers.{i}.linear_attn.in_proj_a.weight";
  names.experts_gate_up = "model.layers.{i}.mlp.experts.gate_up_proj";
  names.experts_down = "model.layers.{i}.mlp.experts.down_proj";
  return names;
}();

inline constexpr TensorNames qwen3_5_moe_gguf_names = [] {
  TensorNames names = gguf_post_attention_norm_names;
  names.delta_qkvz = names.delta_ba = nullptr;
  return names;
}();

inline constexpr FixedOption qwen3_5_moe_fixed[] = {
    {"attn_output_gate", "true"}, {"mlp_only_layers", "[]"}, {"norm_topk_prob", "true"}, {"decoder_sparse_step", "1"}};

inline constexpr Family qwen3_5_moe{
    .name = "qwen3_5_moe",
    .architecture = "qwen35moe",
    .other_name = "qwen3_5_moe_text",
    .qk_norm = QkNorm::per_head,
    .shared = SharedExperts::gated,
    .output_gate = true,
    .delta_net = true,
    .hf = {.names = &qwen3_5_moe_hf_names,
           .context_length = 32768,
           .head_dim = 256,
           .partial_rotation = true,
           .rotary_factor = 0.25,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts|num_local_experts",
           .shared = "shared_expert_intermediate_size",
           .text_config = true,
           .fixed = qwen3_5_moe_fixed},
    .gguf = {.names = &qwen3_5_moe_gguf_names,
             .shared = "expert_shared_feed_forward_length",
             .tiled_heads = true,
             .rope_sections = true},
};

}  // namespace moxie::families
