#pragma once
// The encoders' half that Q4_0, Q4_1, Q5_0 and Q5_1 share: codes of one block of 32 by its extremes alone. The order of
// roundings is that of ggml's and gguf-py's encoders, whose bytes are the specification; the scales returned here are
// not yet rounded to f16, and the codes are taken with the unrounded scale, as there. Where 1 / d overflows (|d| up to
// 2^-128, which is 0 in f16) and for blocks with infinities or NaN all codes without a finite value are 0, as there.

#include <cmath>
#include <cstdint>

#include <moxie/core/floats.hpp>

namespace moxie {

struct ScaleMin {
  float d, m;
};

/// The whole part of y in [0, largest]; 0 for infinities and NaN.
inline std::uint8_t code_of(float y, float largest) noexcept {
  if (!(y >= 0 && std::isfinite(y))) return 0;
  return static_cast<std::uint8_t>(y < largest ? y : largest);
}

/// Codes q of [0, 2 * zero) with x = d * (q - zero); returns d.
inline float encode_signed_codes(const float* x, int zero, std::uint8_t* q) noexcept {
  float extreme = 0;  // the first element of largest magnitude, with its sign
  for (int i = 0; i < 32; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  const float d = extreme / static_cast<float>(-zero);
  const float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) {
    // exact product in f64, one rounding to f32 (what a fused multiply-add gives), then the fraction is cut off
    const auto y = static_cast<float>(static_cast<double>(x[i]) * static_cast<double>(inverse) + (zero + 0.5));
    q[i] = code_of(y, static_cast<float>(2 * zero - 1));
  }
  return d;
}

/// Codes q of [0, largest] with x = d * q + m.
inline ScaleMin encode_affine_codes(const float* x, int largest, std::uint8_t* q) noexcept {
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const auto limit = static_cast<float>(largest);
  const float d = (high - low) / limit;
  const float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < 32; ++i) q[i] = code_of(rounded((x[i] - low) * inverse) + 0.5f, limit);
  return {d, low};
}

inline std::uint32_t fifth_bits(const std::uint8_t* q) noexcept {
  std::uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<std::uint32_t>(q[i] >> 4 & 1) << i;
  return bits;
}

}  // namespace moxie
