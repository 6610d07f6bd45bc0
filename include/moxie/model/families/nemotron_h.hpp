#pragma once
// Nemotron-H with experts (NVIDIA's Nemotron 3 Nano): each layer is Mamba-2, attention without rotation, or a network of experts;
// these have no gate, are chosen as in DeepSeek-V3, and may see a projection of the layer's input (Nemotron 3 Super). A step of
// Mamba-2 has no least size, as in NVIDIA's code and llama.cpp (transformers' class raises steps to time_step_min, 0.001).
// Source: transformers, modeling_nemotron_h.py; llama.cpp, models/nemotron-h.cpp and conversion/nemotron.py. (llama.cpp does not
// load models that have dense networks beside experts.)

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>

namespace moxie::families {

inline constexpr TensorNames nemotron_h_hf_names{
    .layer_prefix = "backbone.layers.",
    .embedding = "backbone.embeddings.weight",
    .output_norm = "backbone.norm_f.weight",
    .output = "lm_head.weight",
    .attn_norm = "backbone.layers.{i}.norm.weight",
    .ffn_norm = "backbone.layers.{i}.norm.weight",
    .q = "backbone.layers.{i}.mixer.q_proj.weight",
    .k = "backbone.layers.{i}.mixer.k_proj.weight",
    .v = "backbone.layers.{i}.mixer.v_proj.weight",
    .o = "backbone.layers.{i}.mixer.o_proj.weight",
    .mamba_in = "backbone.layers.{i}.mixer.in_proj.weight",
    .mamba_conv = "backbone.layers.{i}.mixer.conv1d.weight",
    .mamba_dt_bias = "backbone.layers.{i}.mixer.dt_bias",
    .mamba_a_log = "backbone.layers.{i}.mixer.A_log",
    .mamba_d = "backbone.layers.{i}.mixer.D",
    .mamba_norm = "backbone.layers.{i}.mixer.norm.weight",
    .mamba_out = "backbone.layers.{i}.mixer.out_proj.weight",
    .dense_up = "backbone.layers.{i}.mixer.up_proj.weight",
    .dense_down = "backbone.layers.{i}.mixer.down_proj.weight",
    .router = "backbone.layers.{i}.mixer.gate.weight",
    .router_bias = "backbone.layers.{i}.mixer.gate.e_score_correction_bias",
    .latent_in = "backbone.layers.{i}.mixer.fc1_latent_proj.weight",
    .latent_out = "backbone.layers.{i}.mixer.fc2_latent_proj.weight",
    .expert_up = "backbone.layers.{i}.mixer.experts.{e}.up_proj.weight",
    .expert_down = "backbone.layers.{i}.mixer.experts.{e}.down_proj.weight",
    .shared_up = "backbone.layers.{i}.mixer.shared_experts.up_proj.weight",
    .shared_down = "backbone.layers.{i}.mixer.shared_experts.down_proj.weight",
};

inline constexpr TensorNames nemotron_h_gguf_names = [] {
  TensorNames names = gguf_tensor_names;
  names.ffn_norm = names.attn_norm;
  names.dense_gate = names.expert_gate = names.experts_gate = names.experts_gate_up = names.shared_gate = nullptr;
  return names;
}();

inline constexpr FixedOption nemotron_h_fixed[] = {
    {"mlp_hidden_act", "\"relu2\""}, {"mamba_hidden_act", "\"silu\""}, {"mamba_conv_bias|use_conv_bias", "true"},
    {"use_bias", "false"},           {"mamba_proj_bias", "false"},     {"attention_bias", "false"}};

inline constexpr Family nemotron_h{
    .name = "nemotron_h",
    .architecture = "nemotron_h_moe",
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::optional,
    .mamba = true,
    .gated = false,
    .latent_experts = true,
    .rotates = false,
    .one_part = true,
    .hf = {.names = &nemotron_h_hf_names,
           .rms_norm_eps = 1e-5,
           .rms_norm_eps_key = "layer_norm_epsilon",
           .head_dim = 128,
           .partial_rotation = true,
           .n_experts = "n_routed_experts|num_local_experts",
           .shared = "moe_shared_expert_intermediate_size",
           .shared_default = 7688,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .groups = true,
           .fixed = nemotron_h_fixed},
    .gguf = {.names = &nemotron_h_gguf_names, .shared = "expert_shared_feed_forward_length", .topk_norm = TopkNorm::by_key},
};

}  // namespace moxie::families
