#pragma once
// OLMoE (arXiv 2409.02060): RMS norms over all heads of q and of k together before the rotation, softmax over all experts, top-k
// renormalized if norm_topk_prob is true; clip_qkv limits q, k and v. In GGUF feed_forward_length is the experts' width.
// llama.cpp never renormalizes and never clips; files that moxie writes say in expert_weights_norm and moxie.attention.clip_qkv
// where the model does. It also needs an output matrix of its own, and as many heads of k as of q.
// Source: transformers, modeling_olmoe.py; llama.cpp, models/olmoe.cpp.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames olmoe_hf_names = [] {
  TensorNames names = hf_names;
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  return names;
}();

inline constexpr Family olmoe{
    .name = "olmoe",
    .architecture = "olmoe",
    .qk_norm = QkNorm::all_heads,
    .hf = {.names = &olmoe_hf_names,
           .rms_norm_eps = 1e-5,
           .clip_qkv = true,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts|num_local_experts",
           .expert_width = "intermediate_size",
           .topk_norm = TopkNorm::by_key},
    .gguf = {.expert_width = "feed_forward_length", .topk_norm = TopkNorm::never},
};

}  // namespace moxie::families
