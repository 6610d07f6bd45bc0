#pragma once
// EXAONE MoE (LG's K-EXAONE): sliding windows in all but each 4th layer, which does not rotate; norms of q and k; DeepSeek-V3's
// router, a shared expert, leading dense layers. Source: transformers, modeling_exaone_moe.py; llama.cpp, models/exaone-moe.cpp.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/glm4_moe.hpp>

namespace moxie::families {

inline constexpr TensorNames exaone_moe_hf_names = [] {
  TensorNames names = glm4_moe_hf_names;
  names.router_bias = "model.layers.{i}.mlp.e_score_correction_bias";
  return names;
}();

inline constexpr Family exaone_moe{
    .name = "exaone_moe",
    .architecture = "exaone-moe",
    .qk_norm = QkNorm::per_head,
    .scoring = RouterScoring::sigmoid,
    .selection_bias = true,
    .norm_epsilon = 1e-20f,
    .shared = SharedExperts::counted,
    .rotates_in_windows = true,
    .hf = {.names = &exaone_moe_hf_names,
           .rms_norm_eps = 1e-5,
           .context_length = 2048,
           .window = HfRules::Window::periodic,
           .window_period = "sliding_window_pattern",
           .n_experts = "num_experts|num_local_experts",
           .shared = "num_shared_experts",
           .shared_default = 1,
           .dense = HfRules::Dense::first_k,
           .first_k_default = 1,
           .topk_norm = TopkNorm::by_key,
           .topk_norm_default = true,
           .groups = true,
           .scaling_default = 2.5},
    .gguf = {.shared = "expert_shared_count",
             .shared_width = "expert_shared_feed_forward_length",
             .topk_norm = TopkNorm::by_key,
             .window_period = 4},
};

}  // namespace moxie::families
