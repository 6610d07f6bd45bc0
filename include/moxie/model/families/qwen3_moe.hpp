#pragma once
// Qwen3-MoE (arXiv 2505.09388): RMS norm on each head of q and k before the rotation, no shared expert.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen3_moe_hf_names{
    .layer_prefix = "model.layers.",
    .embedding = "model.embed_tokens.weight",
    .output_norm = "model.norm.weight",
    .output = "lm_head.weight",
    .attn_norm = "model.layers.{i}.input_layernorm.weight",
    .ffn_norm = "model.layers.{i}.post_attention_layernorm.weight",
    .q = "model.layers.{i}.self_attn.q_proj.weight",
    .k = "model.layers.{i}.self_attn.k_proj.weight",
    .v = "model.layers.{i}.self_attn.v_proj.weight",
    .o = "model.layers.{i}.self_attn.o_proj.weight",
    .q_norm = "model.layers.{i}.self_attn.q_norm.weight",
    .k_norm = "model.layers.{i}.self_attn.k_norm.weight",
    .dense_gate = "model.layers.{i}.mlp.gate_proj.weight",
    .dense_up = "model.layers.{i}.mlp.up_proj.weight",
    .dense_down = "model.layers.{i}.mlp.down_proj.weight",
    .router = "model.layers.{i}.mlp.gate.weight",
    .expert_gate = "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    .expert_up = "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    .expert_down = "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
};

inline constexpr Family qwen3_moe{
    .name = "qwen3_moe",
    .architecture = "qwen3moe",
    .qk_norm = QkNorm::per_head,
    .hf = {.names = &qwen3_moe_hf_names,
           .context_length = 32768,
           .window = HfRules::Window::switched,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts|num_local_experts",
           .dense = HfRules::Dense::sparse_step,
           .topk_norm = TopkNorm::by_key},
    .gguf = {},
};

}  // namespace moxie::families
