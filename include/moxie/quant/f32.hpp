#pragma once
// F32: IEEE binary32, one element a block.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

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

/// The 16 rows' elements of one input beside each other.
template <>
struct Panel<F32> {
  static constexpr int chunk = 1, chunk_bytes = 64;

  template <class O>
  MOXIE_INLINE static typename O::F load(const std::byte* p) noexcept {
    return O::load(reinterpret_cast<const float*>(p));
  }
};

}  // namespace moxie
