#pragma once
// The search for good scales that encoding to Q4_K, Q5_K and Q6_K needs.

#include <cmath>
#include <cstdint>

#include <moxie/core/floats.hpp>

namespace moxie {

/// 8 blocks of 32: x[32 b + i] = d * scale[b] * code[32 b + i] - dmin * min[b]; d and dmin are f16, scale and min have 6 bits.
struct AffineSuperblock {
  std::uint16_t d, dmin;
  std::uint8_t scale[8], min[8];
  std::uint8_t code[256];
};

/// 16 blocks of 16: x[16 b + i] = d * scale[b] * (code[16 b + i] - 32); d is f16, codes have 6 bits.
struct SignedSuperblock {
  std::uint16_t d;
  std::int8_t scale[16];
  std::uint8_t code[256];
};

inline void search_affine_superblock(const float* x, int largest, AffineSuperblock& s) noexcept {
  float step[8], low[8], max_step = 0, max_low = 0;
  for (int b = 0; b < 8; ++b) {
    float lo = 0, hi = x[32 * b];
    for (int i = 0; i < 32; ++i) {
      lo = x[32 * b + i] < lo ? x[32 * b + i] : lo;
      hi = x[32 * b + i] > hi ? x[32 * b + i] : hi;
    }
    step[b] = (hi - lo) / static_cast<float>(largest);
    low[b] = -lo;
    max_step = step[b] > max_step ? step[b] : max_step;
    max_low = low[b] > max_low ? low[b] : max_low;
  }
  s.d = f32_to_f16(max_step / 63);
  s.dmin = f32_to_f16(max_low / 63);
  for (int b = 0; b < 8; ++b) {
    s.scale[b] = static_cast<std::uint8_t>(max_step > 0 ? std::round(63 * step[b] / max_step) : 0);
    s.min[b] = static_cast<std::uint8_t>(max_low > 0 ? std::round(63 * low[b] / max_low) : 0);
    const float d = f16_to_f32(s.d) * static_cast<float>(s.scale[b]), m = f16_to_f32(s.dmin) * static_cast<float>(s.min[b]);
    for (int i = 0; i < 32; ++i) {
      const float q = d > 0 ? std::round((x[32 * b + i] + m) / d) : 0;
      s.code[32 * b + i] = static_cast<std::uint8_t>(q > static_cast<float>(largest) ? static_cast<float>(largest) : q > 0 ? q : 0);
    }
  }
}

inline void search_signed_superblock(const float* x, SignedSuperblock& s) noexcept {
  float step[16], max_step = 0;
  for (int b = 0; b < 16; ++b) {
    step[b] = 0;
    for (int i = 0; i < 16; ++i) step[b] = std::fabs(x[16 * b + i]) > step[b] ? std::fabs(x[16 * b + i]) : step[b];
    max_step = step[b] > max_step ? step[b] : max_step;
  }
  s.d = f32_to_f16(max_step / (31 * 127));
  for (int b = 0; b < 16; ++b) {
    s.scale[b] = static_cast<std::int8_t>(max_step > 0 ? std::round(127 * step[b] / max_step) : 0);
    const float d = f16_to_f32(s.d) * static_cast<float>(s.scale[b]);
    for (int i = 0; i < 16; ++i) {
      const float q = d > 0 ? std::round(x[16 * b + i] / d) : 0;
      s.code[16 * b + i] = static_cast<std::uint8_t>((q > 31 ? 31 : q < -32 ? -32 : q) + 32);
    }
  }
}

}  // namespace moxie
