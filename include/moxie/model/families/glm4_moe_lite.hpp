#pragma once
// GLM-4.7-Flash: a DeepSeek-V3 with other defaults, without groups of experts; its GGUF files are deepseek2's.
// Source: transformers, modeling_glm4_moe_lite.py.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/deepseek_v3.hpp>

namespace moxie::families {

inline constexpr Family glm4_moe_lite = [] {
  Family family = deepseek_v3;
  family.name = "glm4_moe_lite";
  family.other_name = nullptr;
  family.same_as = deepseek_v3.name;
  family.hf.rms_norm_eps = 1e-5;
  family.hf.context_length = 202752;
  family.hf.first_k_default = 1;
  family.hf.scaling_default = 1.8;
  family.hf.n_group_default = family.hf.topk_group_default = 1;
  return family;
}();

}  // namespace moxie::families
