#pragma once
// F32: IEEE binary32, one element a block.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>

namespace moxie {

struct F32 {
  static constexpr Dtype dtype = Dtype::F32;
  static constexpr const char* name = "F32";
  static constexpr int block = 1, block_bytes = 4;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
  }
};

}  // namespace moxie
