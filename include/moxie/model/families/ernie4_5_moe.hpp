#pragma once
// ERNIE 4.5 (Baidu's technical report of 2025): interleaved rotation, softmax scores with a bias for the choice of experts,
// weights divided by no less than a small number, shared experts, leading dense layers.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames ernie4_5_moe_hf_names = [] {
  TensorNames names = hf_names_with_shared_experts;
  names.router_bias = "model.layers.{i}.mlp.moe_statics.e_score_correction_bias";
  return names;
}();

inline constexpr FixedOption ernie4_5_moe_fixed[] = {{"use_bias", "false"}};

inline constexpr Family ernie4_5_moe{
    .name = "ernie4_5_moe",
    .architecture = "ernie4_5-moe",
    .selection_bias = true,
    .norm_minimum = 1e-12f,
    .shared = SharedExperts::counted,
    .hf = {.names = &ernie4_5_moe_hf_names,
           .rope_theta = 5e5,
           .rms_norm_eps = 1e-5,
           .context_length = 131072,
           .layout = HfRules::Layout::interleaved,
           .n_experts = "moe_num_experts",
           .top_k = "moe_k",
           .shared = "moe_num_shared_experts",
           .shared_default = 2,
           .dense = HfRules::Dense::outside_range,
           .norm_minimum = "moe_norm_min",
           .tied_default = true,
           .fixed = ernie4_5_moe_fixed},
    .gguf = {.layout = RopeLayout::interleaved,
             .shared = "expert_shared_count",
             .shared_width = "expert_shared_feed_forward_length",
             .moe_layer_step = "interleave_moe_layer_step"},
};

}  // namespace moxie::families
