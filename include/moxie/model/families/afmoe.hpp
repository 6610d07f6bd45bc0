#pragma once
// AFMoE (Arcee's Trinity): norms before and after attention and networks, sliding windows in all but each 4th layer, which does
// not rotate, attention with an output gate, a router with sigmoid scores and a bias for the choice, shared experts, leading
// dense layers. Source: transformers, modeling_afmoe.py; llama.cpp, models/afmoe.cpp, which rotates in all but each 4th layer
// whatever the windows are, and always multiplies embeddings.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

inline constexpr TensorNames afmoe_hf_names = [] {
  TensorNames names = hf_names_with_shared_experts;
  names.attn_post_norm = "model.layers.{i}.post_attention_layernorm.weight";
  names.ffn_norm = "model.layers.{i}.pre_mlp_layernorm.weight";
  names.ffn_post_norm = "model.layers.{i}.post_mlp_layernorm.weight";
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  names.attn_gate = "model.layers.{i}.self_attn.gate_proj.weight";
  names.router = "model.layers.{i}.mlp.router.gate.weight";
  names.router_bias = "model.layers.{i}.mlp.expert_bias";
  return names;
}();

inline constexpr TensorNames afmoe_gguf_names = [] {
  TensorNames names = gguf_tensor_names;
  names.attn_post_norm = "blk.{i}.post_attention_norm.weight";
  names.ffn_post_norm = "blk.{i}.post_ffw_norm.weight";
  return names;
}();

inline constexpr FixedOption afmoe_fixed[] = {
    {"score_func", "\"sigmoid\""}, {"route_norm", "true"}, {"n_group", "1"}, {"topk_group", "1"}};

inline constexpr Family afmoe{
    .name = "afmoe",
    .architecture = "afmoe",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .own_gate = true,
    .rotates_in_windows = true,
    .root_embeddings = true,
    .hf = {.names = &afmoe_hf_names,
           .rms_norm_eps = 1e-5,
           .context_length = 16384,
           .head_dim = 128,
           .window = HfRules::Window::periodic,
           .window_default = 1024,
           .window_period = "global_attn_every_n_layers",
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts|num_local_experts",
           .shared = "num_shared_experts",
           .shared_default = 2,
           .dense = HfRules::Dense::first_k,
           .first_k_default = 1,
           .first_k_key = "num_dense_layers",
           .groups = true,
           .scaling = "route_scale",
           .fixed = afmoe_fixed},
    .gguf = {.names = &afmoe_gguf_names, .shared = "expert_shared_count", .topk_norm = TopkNorm::by_key, .window_period = 4},
};

}  // namespace moxie::families
