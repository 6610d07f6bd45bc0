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

inline constexpr Family qwen3_5_moe = [] {
  Family family = qwen3_next;
  family.name = "qwen3_5_moe";
  family.architecture = "qwen35moe";
  family.other_name = "qwen3_5_moe_text";
  family.hf.names = &qwen3_5_moe_hf_names;
  family.hf.dense = HfRules::Dense::none;
  family.hf.topk_norm = TopkNorm::always;
  family.hf.text_config = true;
  family.hf.fixed = qwen3_5_moe_fixed;
  family.gguf.names = &qwen3_5_moe_gguf_names;
  family.gguf.tiled_heads = true;
  family.gguf.rope_sections = true;
  return family;
}();

}  // namespace moxie::families
