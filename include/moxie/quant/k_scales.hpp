#pragma once
// The 12 bytes that Q4_K and Q5_K use for 8 scales and 8 minimums of 6 bits:
//
//   byte b      (b < 4)   scale b in bits 0..5,        the upper 2 bits of scale b + 4 in bits 6..7
//   byte 4 + b  (b < 4)   minimum b in bits 0..5,      the upper 2 bits of minimum b + 4 in bits 6..7
//   byte 8 + b  (b < 4)   the lower 4 bits of scale b + 4 in bits 0..3, those of minimum b + 4 in bits 4..7
//
// Source: ggml-quants.c. Used by kernel headers: nothing here may be emitted out of line.

#include <cstdint>

#include <moxie/core/floats.hpp>

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

MOXIE_INLINE void store_k_scales(const std::uint8_t* scale, const std::uint8_t* min, std::uint8_t* packed) noexcept {
  for (int b = 0; b < 4; ++b) {
    packed[b] = static_cast<std::uint8_t>(scale[b] | (scale[b + 4] >> 4) << 6);
    packed[b + 4] = static_cast<std::uint8_t>(min[b] | (min[b + 4] >> 4) << 6);
    packed[b + 8] = static_cast<std::uint8_t>((scale[b + 4] & 15) | (min[b + 4] & 15) << 4);
  }
}

}  // namespace moxie
