#pragma once
// Solar Open (Upstage's Solar Open 100B): GLM-4.5 with whole heads rotated, no norms of q and k and no dense layers, which
// config.json does not say; GGUF files of both have one architecture. Source: transformers, modeling_solar_open.py.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/glm4_moe.hpp>

namespace moxie::families {

inline constexpr Family solar_open = [] {
  Family family = glm4_moe;
  family.name = "solar_open";
  family.same_as = glm4_moe.name;
  family.qk_norm = QkNorm::none;
  family.hf.rope_theta = 1e6;
  family.hf.head_dim = 128;
  family.hf.rotary_factor = 1.0;
  family.hf.qk_norm_key = nullptr;
  family.hf.dense = HfRules::Dense::none;
  return family;
}();

}  // namespace moxie::families
