#pragma once
// Which type each tensor of a quantized GGUF file gets, as llama.cpp's quantizer decides without an importance matrix.
//
// A mix is named after the type of most matrices. Block formats get more bits where errors cost the most: the output matrix Q6_K,
// in K-quants some layers of attn_v and ffn_down, and in models of 8 experts all of attn_k and attn_v. Rows that are no multiple
// of a type's block fall back to a type with blocks of 32, or to F16. Norms, biases, routers, convolutions and everything with
// one dimension are F32. Source: llama.cpp, llama-quant.cpp.

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

struct QuantizeMix {
  std::string_view name;
  Dtype dtype;                                                   ///< of most matrices
  std::uint32_t file_type;                                       ///< general.file_type, as llama.cpp numbers it
  enum class Extra { none, small, medium } extra = Extra::none;  ///< how many matrices of a K-quant get more bits
};

inline constexpr QuantizeMix quantize_mixes[] = {
    {"F32", Dtype::F32, 0},
    {"F16", Dtype::F16, 1},
    {"BF16", Dtype::BF16, 32},
    {"Q8_0", Dtype::Q8_0, 7},
    {"Q4_0", Dtype::Q4_0, 2},
    {"Q4_1", Dtype::Q4_1, 3},
    {"Q5_0", Dtype::Q5_0, 8},
    {"Q5_1", Dtype::Q5_1, 9},
    {"Q4_K_S", Dtype::Q4_K, 14, QuantizeMix::Extra::small},
    {"Q4_K_M", Dtype::Q4_K, 15, QuantizeMix::Extra::medium},
    {"Q5_K_S", Dtype::Q5_K, 16, QuantizeMix::Extra::small},
    {"Q5_K_M", Dtype::Q5_K, 17, QuantizeMix::Extra::medium},
    {"Q6_K", Dtype::Q6_K, 18},
};

inline std::string quantize_mix_names() {
  std::string names;
  for (const QuantizeMix& mix : quantize_mixes) (names += names.empty() ? "" : ", ") += mix.name;
  return names;
}

/// The mix called `name`, in upper or lower case; Q4_K and Q5_K mean Q4_K_M and Q5_K_M. Throws ArgumentError that lists the
/// names.
inline const QuantizeMix& quantize_mix(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (upper == "Q4_K" || upper == "Q5_K") upper += "_M";
  for (const QuantizeMix& mix : quantize_mixes)
    if (mix.name == upper) return mix;
  throw ArgumentError(concat("there is no type \"", name, "\" to quantize to; there are ", quantize_mix_names()));
}

/// What the choice depends on beside the tensor.
struct QuantizedModel {
  std::int64_t n_layers = 0, n_experts = 0;
  bool has_output = true;  ///< an output matrix of its own, not the embedding
};

namespace detail {

/// The number after "blk."; -1 where there is none.
inline std::int64_t layer_of(std::string_view name) {
  std::int64_t layer = -1;
  if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

inline Dtype with_more_bits(const QuantizeMix& mix, const QuantizedModel& model, std::string_view name) {
  using Extra = QuantizeMix::Extra;
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  const std::int64_t layer = layer_of(name), n = model.n_layers;
  const bool chosen = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
  const bool k4 = mix.dtype == Dtype::Q4_K;
  if (has("attn_v.weight")) {
    if (model.n_experts == 8) return Dtype::Q8_0;
    if (mix.extra == Extra::medium && chosen) return Dtype::Q6_K;
    if (mix.extra == Extra::small && k4 && layer < 4) return Dtype::Q5_K;
  } else if (has("attn_k.weight")) {
    if (model.n_experts == 8) return Dtype::Q8_0;
  } else if (has("ffn_down")) {
    if (mix.extra == Extra::medium && chosen) return Dtype::Q6_K;
    if (mix.extra == Extra::small && k4 && layer < n / 8) return Dtype::Q5_K;
  } else if (has("attn_output.weight")) {
    if (model.n_experts == 8 && k4) return Dtype::Q5_K;
  } else if (has("attn_qkv.weight")) {
    if (mix.extra == Extra::medium) return k4 ? Dtype::Q5_K : Dtype::Q6_K;
  }
  return mix.dtype;
}

}  // namespace detail

/// Whether a tensor stays in F32: norms, biases, routers, convolutions, and everything with one dimension.
inline bool stays_f32(std::string_view name, std::span<const std::int64_t> shape) {
  const auto matrix_dims = std::count_if(shape.begin(), shape.end(), [](std::int64_t n) { return n > 1; });
  return matrix_dims < 2 || !name.ends_with("weight") || name.find("_norm.weight") != std::string_view::npos ||
         name.find("ffn_gate_inp") != std::string_view::npos || name.find("ssm_conv1d") != std::string_view::npos ||
         name.find("shortconv.conv") != std::string_view::npos;
}

/// The type of a tensor of a GGUF file, its shape with the fastest dimension last. `pure`: no tensor gets more bits than the
/// others.
inline Dtype quantized_type(const QuantizeMix& mix, bool pure, const QuantizedModel& model, std::string_view name,
                            std::span<const std::int64_t> shape) {
  if (stays_f32(name, shape)) return Dtype::F32;
  const auto fits = [&](Dtype dtype) { return shape.back() % dtype_info(dtype).block_elements == 0; };
  Dtype dtype = mix.dtype;
  if (!pure && dtype_info(dtype).block_elements > 1) {
    if (name == "output.weight" || (!model.has_output && name == "token_embd.weight")) {
      dtype = fits(dtype) && dtype != Dtype::Q8_0 ? Dtype::Q6_K : Dtype::Q8_0;
    } else {
      dtype = detail::with_more_bits(mix, model, name);
    }
  }
  if (!fits(dtype)) dtype = dtype == Dtype::Q4_K ? Dtype::Q5_0 : dtype == Dtype::Q5_K ? Dtype::Q5_1 : Dtype::Q8_0;
  return fits(dtype) ? dtype : Dtype::F16;
}

}  // namespace moxie
