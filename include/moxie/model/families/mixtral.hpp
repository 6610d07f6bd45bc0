#pragma once
// Mixtral (arXiv 2401.04088): grouped-query attention, softmax over all experts, top-k always renormalized.
// GGUF calls it "llama" (with experts) and has the rows of q and k permuted from halves to interleaved pairs.

#include <moxie/model/families/common.hpp>

namespace moxie::families {

inline constexpr TensorNames mixtral_hf_names = [] {
  TensorNames names = hf_names_without_networks;
  names.router = "model.layers.{i}.block_sparse_moe.gate.weight";
  names.expert_gate = "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight";
  names.expert_up = "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight";
  names.expert_down = "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight";
  return names;
}();

inline constexpr FixedOption mixtral_fixed[] = {{"attention_bias", "false"}};

inline constexpr Family mixtral{
    .name = "mixtral",
    .architecture = "llama",
    .dense_namesake = true,
    .hf = {.names = &mixtral_hf_names,
           .rope_theta = 1e6,
           .rms_norm_eps = 1e-5,
           .context_length = 131072,
           .window = HfRules::Window::everywhere,
           .n_experts = "num_local_experts|num_experts",
           .expert_width = "intermediate_size",
           .fixed = mixtral_fixed},
    .gguf = {.layout = RopeLayout::interleaved, .expert_width = "feed_forward_length"},
};

}  // namespace moxie::families
