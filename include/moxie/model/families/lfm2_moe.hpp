#pragma once
// LFM2-MoE (Liquid AI's LFM2-8B-A1B and its successors): gated short convolutions in most layers, attention in the others,
// sigmoid scores with a bias for the choice of experts, tied embeddings. GGUF has the final norm under the name of a norm of
// embeddings. Source: transformers, modeling_lfm2_moe.py; llama.cpp, models/lfm2.cpp.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

inline constexpr TensorNames lfm2_moe_hf_names = [] {
  TensorNames names = hf_names_without_networks;
  names.output_norm = "model.embedding_norm.weight";
  names.attn_norm = "model.layers.{i}.operator_norm.weight";
  names.ffn_norm = "model.layers.{i}.ffn_norm.weight";
  names.o = "model.layers.{i}.self_attn.out_proj.weight";
  names.q_norm = "model.layers.{i}.self_attn.q_layernorm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_layernorm.weight";
  names.short_conv_in = "model.layers.{i}.conv.in_proj.weight";
  names.short_conv = "model.layers.{i}.conv.conv.weight";
  names.short_conv_out = "model.layers.{i}.conv.out_proj.weight";
  names.dense_gate = "model.layers.{i}.feed_forward.w1.weight";
  names.dense_up = "model.layers.{i}.feed_forward.w3.weight";
  names.dense_down = "model.layers.{i}.feed_forward.w2.weight";
  names.router = "model.layers.{i}.feed_forward.gate.weight";
  names.router_bias = "model.layers.{i}.feed_forward.expert_bias";
  names.expert_gate = "model.layers.{i}.feed_forward.experts.{e}.w1.weight";
  names.expert_up = "model.layers.{i}.feed_forward.experts.{e}.w3.weight";
  names.expert_down = "model.layers.{i}.feed_forward.experts.{e}.w2.weight";
  return names;
}();

inline constexpr TensorNames lfm2_moe_gguf_names = [] {
  TensorNames names = gguf_tensor_names;
  names.output_norm = "token_embd_norm.weight";
  return names;
}();

inline constexpr FixedOption lfm2_moe_fixed[] = {{"conv_bias", "false"}, {"use_expert_bias", "true"}};

inline constexpr Family lfm2_moe{
    .name = "lfm2_moe",
    .architecture = "lfm2moe",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-6f,
    .short_conv = true,
    .hf = {.names = &lfm2_moe_hf_names,
           .rope_theta = 1e6,
           .rms_norm_eps = 1e-5,
           .rms_norm_eps_key = "norm_eps",
           .context_length = 128000,
           .n_experts = "num_experts|num_local_experts",
           .dense = HfRules::Dense::first_k,
           .first_k_default = 2,
           .first_k_key = "num_dense_layers",
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .tied_default = true,
           .groups = true,
           .fixed = lfm2_moe_fixed},
    .gguf = {.names = &lfm2_moe_gguf_names},
};

}  // namespace moxie::families
