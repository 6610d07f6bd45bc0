#pragma once
// Granite MoE hybrid (IBM's Granite 4.0 H): Granite MoE with Mamba-2 in most layers, and mostly no rotation in the others.
// Source: transformers, modeling_granitemoehybrid.py; llama.cpp, models/granite-hybrid.cpp and conversion/granite.py.

#include <moxie/model/families/common.hpp>
#include <moxie/model/families/granitemoe.hpp>

namespace moxie::families {

inline constexpr TensorNames granitemoehybrid_hf_names = [] {
  TensorNames names = granitemoe_hf_names;
  names.mamba_in = "model.layers.{i}.mamba.in_proj.weight";
  names.mamba_conv = "model.layers.{i}.mamba.conv1d.weight";
  names.mamba_dt_bias = "model.layers.{i}.mamba.dt_bias";
  names.mamba_a_log = "model.layers.{i}.mamba.A_log";
  names.mamba_d = "model.layers.{i}.mamba.D";
  names.mamba_norm = "model.layers.{i}.mamba.norm.weight";
  names.mamba_out = "model.layers.{i}.mamba.out_proj.weight";
  return names;
}();

inline constexpr FixedOption granitemoehybrid_fixed[] = {
    {"mamba_conv_bias", "true"}, {"mamba_proj_bias", "false"}, {"normalization_function", "\"rmsnorm\""}};

inline constexpr Family granitemoehybrid = [] {
  Family family = granitemoe;
  family.name = "granitemoehybrid";
  family.architecture = "granitehybrid";
  family.other_name = nullptr;
  family.mamba = true;
  family.dense_namesake = true;
  family.hf.names = &granitemoehybrid_hf_names;
  family.hf.shared_default = 1024;
  family.hf.fixed = granitemoehybrid_fixed;
  return family;
}();

}  // namespace moxie::families
