#pragma once
// Qwen3-MoE (arXiv 2505.09388): RMS norm on each head of q and k before the rotation, no shared expert.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen3_moe_hf_names = [] {
  TensorNames names = hf_names;
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  return names;
}();

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
