#pragma once
// gpt-oss (arXiv 2508.10925): attention sinks, a sliding window in every other layer, biases on all projections, the router and
// the experts, softmax over the chosen experts, and a clamped activation, (u + 1) * g * sigmoid(1.702 g).
//
// Hugging Face's folders have the experts' gate and up alternating, in BF16 transposed, or as MXFP4 with the bytes of a block
// split in two tensors and paired in another way than in GGUF. GGUF does not say that YaRN's correction dimensions are not
// rounded, and llama.cpp rounds them.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

inline constexpr TensorNames gpt_oss_hf_names = [] {
  TensorNames names = hf_names_without_networks;
  names.sinks = "model.layers.{i}.self_attn.sinks";
  names.router = "model.layers.{i}.mlp.router.weight";
  names.experts_gate_up = "model.layers.{i}.mlp.experts.gate_up_proj";
  names.experts_down = "model.layers.{i}.mlp.experts.down_proj";
  names.alternating_experts = true;
  return names;
}();
inline constexpr TensorNames gpt_oss_gguf_names = [] {
  TensorNames names = gguf_tensor_names;
  names.ffn_norm = "blk.{i}.post_attention_norm.weight";
  return names;
}();

inline constexpr FixedOption gpt_oss_fixed[] = {{"swiglu_alpha", "1.702"}};

inline constexpr Family gpt_oss{
    .name = "gpt_oss",
    .architecture = "gpt-oss",
    .scoring = RouterScoring::chosen_softmax,
    .sinks = true,
    .expert_biases = true,
    .swiglu_limit = 7.0f,
    .hf = {.names = &gpt_oss_hf_names,
           .rope_theta = 150000.0,
           .rms_norm_eps = 1e-5,
           .context_length = 131072,
           .window = HfRules::Window::alternating,
           .window_default = 128,
           .bias_key = "attention_bias",
           .bias_default = true,
           .o_bias = true,
           .n_experts = "num_local_experts|num_experts",
           .top_k = "num_experts_per_tok|experts_per_token",
           .expert_width = "intermediate_size",
           .fixed = gpt_oss_fixed,
           .quantization = "mxfp4"},
    .gguf = {.names = &gpt_oss_gguf_names, .qkv_bias = true, .o_bias = true, .window_period = 2},
};

}  // namespace moxie::families
