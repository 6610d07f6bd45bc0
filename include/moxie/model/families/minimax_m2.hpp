#pragma once
// MiniMax-M2: norms over all heads of q and of k, a part of each head rotated, sigmoid scores with a bias for the choice of
// experts.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/mixtral.hpp>

namespace moxie::families {

inline constexpr TensorNames minimax_m2_hf_names = [] {
  TensorNames names = mixtral_hf_names;
  names.q_norm = "model.layers.{i}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{i}.self_attn.k_norm.weight";
  names.router_bias = "model.layers.{i}.block_sparse_moe.e_score_correction_bias";
  return names;
}();

inline constexpr FixedOption minimax_m2_fixed[] = {{"attention_bias", "false"},       {"scoring_func", "\"sigmoid\""},
                                                   {"use_routing_bias", "true"},      {"use_qk_norm", "true"},
                                                   {"shared_intermediate_size", "0"}, {"qk_norm_type", "\"per_layer\""}};

inline constexpr Family minimax_m2{
    .name = "minimax_m2",
    .architecture = "minimax-m2",
    .qk_norm = QkNorm::all_heads,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .hf = {.names = &minimax_m2_hf_names,
           .rope_theta = 5e6,
           .context_length = 196608,
           .partial_rotation = true,
           .rotary_dim = "rotary_dim",
           .n_experts = "num_local_experts|num_experts",
           .expert_width = "intermediate_size",
           .fixed = minimax_m2_fixed},
    .gguf = {},
};

}  // namespace moxie::families
