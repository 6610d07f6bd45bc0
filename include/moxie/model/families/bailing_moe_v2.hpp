#pragma once
// Ling 2.0 (Ant Group's Ling and Ring, mini to 1T, arXiv 2510.22115): one matrix for q, k and v, norms of q and k, half of each
// head rotated; DeepSeek-V3's router with groups, a shared expert, leading dense layers. Its checkpoints call themselves
// bailing_moe as those of Ling 1 do, which have no norms of q and k. Source: modeling_bailing_moe_v2.py beside the checkpoints;
// llama.cpp, models/bailingmoe2.cpp.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

inline constexpr TensorNames bailing_moe_v2_hf_names = [] {
  TensorNames names = hf_names_with_shared_experts;
  names.embedding = "model.word_embeddings.weight";
  names.q = names.k = names.v = nullptr;
  names.qkv = "model.layers.{i}.attention.query_key_value.weight";
  names.o = "model.layers.{i}.attention.dense.weight";
  names.q_norm = "model.layers.{i}.attention.query_layernorm.weight";
  names.k_norm = "model.layers.{i}.attention.key_layernorm.weight";
  names.router_bias = "model.layers.{i}.mlp.gate.expert_bias";
  return names;
}();

inline constexpr TensorNames bailing_moe_v2_gguf_names = [] {
  TensorNames names = gguf_tensor_names;
  names.q = names.k = names.v = nullptr;  // llama.cpp asks for attn_qkv
  return names;
}();

inline constexpr FixedOption bailing_moe_v2_fixed[] = {
    {"score_function", "\"sigmoid\""}, {"use_qk_norm", "true"}, {"moe_router_enable_expert_bias", "true"},
    {"use_qkv_bias", "false"},         {"use_bias", "false"},   {"norm_head", "false"}};

inline constexpr Family bailing_moe_v2{
    .name = "bailing_moe_v2",
    .architecture = "bailingmoe2",
    .other_name = "bailing_moe",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .hf = {.names = &bailing_moe_v2_hf_names,
           .context_length = 32768,
           .partial_rotation = true,
           .rotary_factor = 0.5,
           .n_experts = "num_experts|num_local_experts",
           .shared = "num_shared_experts",
           .shared_default = 1,
           .dense = HfRules::Dense::first_k,
           .first_k_default = 1,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .groups = true,
           .scaling_default = 2.5,
           .n_group_default = 8,
           .topk_group_default = 4,
           .fixed = bailing_moe_v2_fixed},
    .gguf = {.names = &bailing_moe_v2_gguf_names,
             .shared = "expert_shared_count",
             .shared_width = "expert_shared_feed_forward_length",
             .shared_width_of_each = true,
             .topk_norm = TopkNorm::by_key},
};

}  // namespace moxie::families
