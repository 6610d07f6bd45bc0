#pragma once
// BF16: the upper half of a binary32, one element a block. Encoding rounds to nearest, ties to even.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct BF16 {
  static constexpr Dtype dtype = Dtype::BF16;
  static constexpr const char* name = "BF16";
  static constexpr int block = 1, block_bytes = 2;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (std::int64_t i = 0; i < n; ++i) dst[i] = bf16_to_f32(load_u16(src + 2 * i));
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (std::int64_t i = 0; i < n; ++i) store_u16(dst + 2 * i, f32_to_bf16(src[i]));
  }
};

/// The 16 rows' elements of one input beside each other.
template <>
struct Panel<BF16> {
  static constexpr int chunk = 1, chunk_bytes = 32;

  template <class O>
  MOXIE_INLINE static typename O::F load(const std::byte* p) noexcept {
    return O::load_bf16(p);
  }
};

}  // namespace moxie
