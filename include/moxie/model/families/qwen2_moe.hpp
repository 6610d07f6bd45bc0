#pragma once
// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): biases on q, k and v; a shared expert with a sigmoid gate.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen2_moe_hf_names = [] {
  TensorNames names = hf_names;
  names.shared_gate = "model.layers.{i}.mlp.shared_expert.gate_proj.weight";
  names.shared_up = "model.layers.{i}.mlp.shared_expert.up_proj.weight";
  names.shared_down = "model.layers.{i}.mlp.shared_expert.down_proj.weight";
  names.shared_expert_gate = "model.layers.{i}.mlp.shared_expert_gate.weight";
  return names;
}();

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
