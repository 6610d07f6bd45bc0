#pragma once
// Conversions between f32 and the small float types: IEEE binary16, bfloat16, FP8 e4m3fn. Scalar and exact;
// rounding is to nearest, ties to even. Used by kernel headers too, so nothing here may be emitted out of line.

#include <bit>
#include <cstdint>

#define MOXIE_INLINE [[gnu::always_inline]] inline

namespace moxie {

/// The value rounded to f32 here: keeps a compiler from contracting a product and a later sum into one fused operation.
MOXIE_INLINE float rounded(float x) noexcept {
#if defined(__x86_64__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

MOXIE_INLINE float f16_to_f32(std::uint16_t h) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Normal: move the fields. Subnormal: the integer value times 2^-24, exact in f32.
  if (rest >= 0x400u) return std::bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
  const float value = static_cast<float>(rest) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

MOXIE_INLINE std::uint16_t f32_to_f16(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
  if (rest >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (rest < 0x38800000u) {  // subnormal or zero: adding 0.5 aligns the mantissa to units of 2^-24 and rounds to even
    const float shifted = std::bit_cast<float>(rest) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t round = 0xfffu + (rest >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rest + round - (112u << 23)) >> 13));
}

MOXIE_INLINE float bf16_to_f32(std::uint16_t h) noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

MOXIE_INLINE std::uint16_t f32_to_bf16(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// FP8 e4m3fn (OCP 8-bit floating point specification): no infinities, NaN at 0x7F and 0xFF.
MOXIE_INLINE float e4m3_to_f32(std::uint8_t c) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(c & 0x80u) << 24;
  const std::uint32_t rest = c & 0x7fu;
  if (rest == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (rest >= 8u) return std::bit_cast<float>(sign | ((rest << 20) + (120u << 23)));
  const float value = static_cast<float>(rest) * 0x1p-9f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

/// 2^(c - 128), half of an e8m0 scale (OCP Microscaling Formats); subnormal for 0 and 1, and 2^127 for NaN's 255, as in ggml.
MOXIE_INLINE float e8m0_half(std::uint8_t c) noexcept {
  const std::uint32_t half = c / 2u;  // no factor of 2^(half - 63) * 2^(c - half - 65) leaves the normal numbers
  return std::bit_cast<float>((half + 64u) << 23) * std::bit_cast<float>((c - half + 62u) << 23);
}

}  // namespace moxie
