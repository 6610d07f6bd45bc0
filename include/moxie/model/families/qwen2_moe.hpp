#pragma once
// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): biases on q, k and v; a shared expert with a sigmoid gate.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen2_moe_hf_names{
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
    .dense_gate = "model.layers.{i}.mlp.gate_proj.weight",
    .dense_up = "model.layers.{i}.mlp.up_proj.weight",
    .dense_down = "model.layers.{i}.mlp.down_proj.weight",
    .router = "model.layers.{i}.mlp.gate.weight",
    .expert_gate = "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    .expert_up = "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    .expert_down = "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
    .shared_gate = "model.layers.{i}.mlp.shared_expert.gate_proj.weight",
    .shared_up = "model.layers.{i}.mlp.shared_expert.up_proj.weight",
    .shared_down = "model.layers.{i}.mlp.shared_expert.down_proj.weight",
    .shared_expert_gate = "model.layers.{i}.mlp.shared_expert_gate.weight",
};

inline constexpr Family qwen2_moe{
    .name = "qwen2_moe",
    .architecture = "qwen2moe",
    .shared = SharedExperts::gated,
    .hf = {.names = &qwen2_moe_hf_names,
           .context_length = 32768,
           .window = HfRules::Window::by_layer_type,
           .bias_key = "qkv_bias",
           .bias_default = true,
           .n_experts = "num_experts|num_local_experts",
           .shared = "shared_expert_intermediate_size",
           .dense = HfRules::Dense::sparse_step,
           .topk_norm = TopkNorm::by_key},
    .gguf = {.shared = "expert_shared_feed_forward_length", .topk_norm = TopkNorm::never, .qkv_bias = true},
};

}  // namespace moxie::families
