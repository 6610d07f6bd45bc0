#pragma once
// The 12 bytes that Q4_K and Q5_K use for 8 scales and 8 minimums of 6 bits:
//
//   byte b      (b < 4)   scale b in bits 0..5,        the upper 2 bits of scale b + 4 in bits 6..7
//   byte 4 + b  (b < 4)   minimum b in bits 0..5,      the upper 2 bits of minimum b + 4 in bits 6..7
//   byte 8 + b  (b < 4)   the lower 4 bits of scale b + 4 in bits 0..3, those of minimum b + 4 in bits 4..7
//
// Source: ggml-quants.c. Used by kernel headers: nothing here may be emitted out of line.

#include <bit>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/rearrange.hpp>

namespace moxie {

struct KScaleMin {
  float scale, min;  ///< integers of [0, 63]
};

/// Scale and minimum of block b of [0, 8).
MOXIE_INLINE KScaleMin k_scale_min(const std::uint8_t* packed, int b) noexcept {
  if (b < 4) return {static_cast<float>(packed[b] & 63), static_cast<float>(packed[b + 4] & 63)};
  return {static_cast<float>((packed[b + 4] & 15) | (packed[b - 4] >> 6) << 4),
          static_cast<float>((packed[b + 4] >> 4) | (packed[b] >> 6) << 4)};
}

/// The 8 scales, then the 8 minimums.
MOXIE_INLINE panel::Bytes16 k_scale_min_bytes(const std::uint8_t* packed) noexcept {
  const std::uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  constexpr std::uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, high2 = 0x30303030;
  return std::bit_cast<panel::Bytes16>(
      panel::Words4{a & low6, (c & low4) | (a >> 2 & high2), b & low6, (c >> 4 & low4) | (b >> 2 & high2)});
}

MOXIE_INLINE void store_k_scales(const std::uint8_t* scale, const std::uint8_t* min, std::uint8_t* packed) noexcept {
  for (int b = 0; b < 4; ++b) {
    packed[b] = static_cast<std::uint8_t>(scale[b] | (scale[b + 4] >> 4) << 6);
    packed[b + 4] = static_cast<std::uint8_t>(min[b] | (min[b + 4] >> 4) << 6);
    packed[b + 8] = static_cast<std::uint8_t>((scale[b + 4] & 15) | (min[b + 4] & 15) << 4);
  }
}

}  // namespace moxie
