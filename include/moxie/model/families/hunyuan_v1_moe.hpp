#pragma once
// Hunyuan-A13B (Tencent's technical report of 2025): norms of q and k after the rotation, whose base grows by alpha, softmax over
// all experts, top-k always renormalized, a shared expert.
// Source: transformers, modeling_hunyuan_v1_moe.py; llama.cpp, models/hunyuan-moe.cpp.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames hunyuan_v1_moe_hf_names = [] {
  TensorNames names = hf_names;
  names.q_norm = "model.layers.{i}.self_attn.query_layernorm.weight";
  names.k_norm = "model.layers.{i}.self_attn.key_layernorm.weight";
  names.router = "model.layers.{i}.mlp.gate.wg.weight";
  names.shared_gate = "model.layers.{i}.mlp.shared_mlp.gate_proj.weight";
  names.shared_up = "model.layers.{i}.mlp.shared_mlp.up_proj.weight";
  names.shared_down = "model.layers.{i}.mlp.shared_mlp.down_proj.weight";
  return names;
}();

/// Options of Hunyuan's older checkpoints.
inline constexpr FixedOption hunyuan_v1_moe_fixed[] = {{"use_qk_norm", "true"},
                                                       {"use_cla", "false"},
                                                       {"use_mla", "false"},
                                                       {"moe_layer_num_skipped", "0"},
                                                       {"norm_topk_prob", "true"}};

inline constexpr Family hunyuan_v1_moe{
    .name = "hunyuan_v1_moe",
    .architecture = "hunyuan-moe",
    .qk_norm = QkNorm::per_head_rotated,
    .shared = SharedExperts::counted,
    .hf = {.names = &hunyuan_v1_moe_hf_names,
           .rms_norm_eps = 1e-5,
           .context_length = 2048,
           .ntk_alpha = true,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_experts",
           .top_k = "moe_topk",
           .expert_width = "intermediate_size",
           .shared = "num_shared_expert",
           .shared_default = 1,
           .fixed = hunyuan_v1_moe_fixed},
    .gguf = {.shared = "expert_shared_count", .shared_width = "expert_shared_feed_forward_length"},
};

}  // namespace moxie::families
