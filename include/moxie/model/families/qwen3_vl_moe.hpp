#pragma once
// Qwen3-VL-MoE, models for text and images: the text model is run, which is Qwen3-MoE with other defaults. Its rotation has
// sections for height and width, which text gives the same position. Checkpoints have all experts of a layer in two tensors,
// which may be transposed. Source: transformers, modeling_qwen3_vl_moe.py; llama.cpp, models/qwen3vlmoe.cpp.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/qwen3_moe.hpp>

namespace moxie::families {

inline constexpr TensorNames qwen3_vl_moe_hf_names = [] {
  TensorNames names = qwen3_moe_hf_names;
  names.experts_gate_up = "model.layers.{i}.mlp.experts.gate_up_proj";
  names.experts_down = "model.layers.{i}.mlp.experts.down_proj";
  names.experts_may_be_transposed = true;
  return names;
}();

inline constexpr FixedOption qwen3_vl_moe_fixed[] = {{"norm_topk_prob", "true"}};

inline constexpr Family qwen3_vl_moe = [] {
  Family family = qwen3_moe;
  family.name = "qwen3_vl_moe";
  family.architecture = "qwen3vlmoe";
  family.other_name = "qwen3_vl_moe_text";
  family.hf.names = &qwen3_vl_moe_hf_names;
  family.hf.rope_theta = 500000.0;
  family.hf.context_length = 128000;
  family.hf.window = HfRules::Window::none;
  family.hf.topk_norm = TopkNorm::always;
  family.hf.text_config = true;
  family.hf.fixed = qwen3_vl_moe_fixed;
  family.gguf.rope_sections = true;
  return family;
}();

}  // namespace moxie::families
