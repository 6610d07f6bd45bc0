#pragma once
// Element types of tensors in files, with the ids that GGUF uses (ggml_type), and the types that only safetensors has.
//
// A quantized type stores `block_elements` consecutive elements of a row in `block_bytes` bytes.
// Source of ids and sizes: ggml.h and the GGUF specification; safetensors README for the others.

#include <cstdint>
#include <string_view>

namespace moxie {

enum class Dtype : std::uint32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q8_1 = 9,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, Q8_K = 15,
  IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22, IQ4_XS = 23,
  I8 = 24, I16 = 25, I32 = 26, I64 = 27, F64 = 28, IQ1_M = 29, BF16 = 30,
  TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39, NVFP4 = 40,
  // not in GGUF: element types of safetensors
  F8_E4M3 = 1000, F8_E5M2 = 1001, U8 = 1002, U16 = 1003, U32 = 1004, U64 = 1005, BOOL = 1006, F8_E8M0 = 1007,
};

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};

inline constexpr DtypeInfo dtype_table[] = {
    {Dtype::F32, "F32", 1, 4},          {Dtype::F16, "F16", 1, 2},
    {Dtype::Q4_0, "Q4_0", 32, 18},      {Dtype::Q4_1, "Q4_1", 32, 20},
    {Dtype::Q5_0, "Q5_0", 32, 22},      {Dtype::Q5_1, "Q5_1", 32, 24},
    {Dtype::Q8_0, "Q8_0", 32, 34},      {Dtype::Q8_1, "Q8_1", 32, 36},
    {Dtype::Q2_K, "Q2_K", 256, 84},     {Dtype::Q3_K, "Q3_K", 256, 110},
    {Dtype::Q4_K, "Q4_K", 256, 144},    {Dtype::Q5_K, "Q5_K", 256, 176},
    {Dtype::Q6_K, "Q6_K", 256, 210},    {Dtype::Q8_K, "Q8_K", 256, 292},
    {Dtype::IQ2_XXS, "IQ2_XXS", 256, 66}, {Dtype::IQ2_XS, "IQ2_XS", 256, 74},
    {Dtype::IQ3_XXS, "IQ3_XXS", 256, 98}, {Dtype::IQ1_S, "IQ1_S", 256, 50},
    {Dtype::IQ4_NL, "IQ4_NL", 32, 18},  {Dtype::IQ3_S, "IQ3_S", 256, 110},
    {Dtype::IQ2_S, "IQ2_S", 256, 82},   {Dtype::IQ4_XS, "IQ4_XS", 256, 136},
    {Dtype::I8, "I8", 1, 1},            {Dtype::I16, "I16", 1, 2},
    {Dtype::I32, "I32", 1, 4},          {Dtype::I64, "I64", 1, 8},
    {Dtype::F64, "F64", 1, 8},          {Dtype::IQ1_M, "IQ1_M", 256, 56},
    {Dtype::BF16, "BF16", 1, 2},        {Dtype::TQ1_0, "TQ1_0", 256, 54},
    {Dtype::TQ2_0, "TQ2_0", 256, 66},   {Dtype::MXFP4, "MXFP4", 32, 17},
    {Dtype::NVFP4, "NVFP4", 64, 36},
    {Dtype::F8_E4M3, "F8_E4M3", 1, 1},  {Dtype::F8_E5M2, "F8_E5M2", 1, 1},
    {Dtype::U8, "U8", 1, 1},            {Dtype::U16, "U16", 1, 2},
    {Dtype::U32, "U32", 1, 4},          {Dtype::U64, "U64", 1, 8},
    {Dtype::BOOL, "BOOL", 1, 1},        {Dtype::F8_E8M0, "F8_E8M0", 1, 1},
};

/// nullptr where the id is unknown.
constexpr const DtypeInfo* find_dtype(std::uint32_t id) noexcept {
  for (const DtypeInfo& info : dtype_table)
    if (static_cast<std::uint32_t>(info.dtype) == id) return &info;
  return nullptr;
}
constexpr const DtypeInfo* find_dtype(std::string_view name) noexcept {
  for (const DtypeInfo& info : dtype_table)
    if (info.name == name) return &info;
  return nullptr;
}
constexpr const DtypeInfo& dtype_info(Dtype dtype) noexcept { return *find_dtype(static_cast<std::uint32_t>(dtype)); }

/// Bytes of a row of `elements`, a multiple of the type's block.
constexpr std::uint64_t row_bytes(Dtype dtype, std::uint64_t elements) noexcept {
  return elements / dtype_info(dtype).block_elements * dtype_info(dtype).block_bytes;
}

}  // namespace moxie
