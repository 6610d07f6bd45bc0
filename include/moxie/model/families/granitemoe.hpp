#pragma once
// Granite MoE (IBM's Granite 3.0 and 3.1): embeddings, q . k, branches and logits have multipliers of their own, softmax over the
// chosen experts, which is that over all of them renormalized; with a shared expert config.json calls it granitemoeshared. In GGUF
// feed_forward_length is the experts' width.
// Source: transformers, modeling_granitemoe.py and modeling_granitemoeshared.py; llama.cpp, models/granite.cpp.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames granitemoe_hf_names = [] {
  TensorNames names = hf_names_without_networks;
  names.router = "model.layers.{i}.block_sparse_moe.router.layer.weight";
  names.experts_gate_up = "model.layers.{i}.block_sparse_moe.input_linear.weight";
  names.experts_down = "model.layers.{i}.block_sparse_moe.output_linear.weight";
  names.shared_gate_up = "model.layers.{i}.shared_mlp.input_linear.weight";
  names.shared_down = "model.layers.{i}.shared_mlp.output_linear.weight";
  return names;
}();

inline constexpr Family granitemoe{
    .name = "granitemoe",
    .architecture = "granitemoe",
    .other_name = "granitemoeshared",
    .shared = SharedExperts::optional,
    .multipliers = true,
    .hf = {.names = &granitemoe_hf_names,
           .context_length = 2048,
           .bias_key = "attention_bias",
           .o_bias = true,
           .n_experts = "num_local_experts",
           .expert_width = "intermediate_size",
           .shared = "shared_intermediate_size"},
    .gguf = {.layout = RopeLayout::interleaved,
             .expert_width = "feed_forward_length",
             .shared = "expert_shared_feed_forward_length"},
};

}  // namespace moxie::families
