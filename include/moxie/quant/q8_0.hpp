#pragma once
// Q8_0: 32 signed 8-bit codes and one scale. 34 bytes:
//
//   0   f16     d
//   2   i8[32]  q
//
//   x[i] = d * q[i]
//
// The product of 11 and 7 significant bits is exact in f32. Encoding: d = max|x| / 127, q = x / d rounded to nearest, ties
// away from zero; the same bytes as ggml's and gguf-py's encoders. Source: ggml-quants.c.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct Q8_0 {
  static constexpr Dtype dtype = Dtype::Q8_0;
  static constexpr const char* name = "Q8_0";
  static constexpr int block = 32, block_bytes = 34;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src);
      for (int i = 0; i < 32; ++i) dst[i] = d * static_cast<float>(static_cast<std::int8_t>(src[2 + i]));
    }
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block, dst += block_bytes) {
      float largest = 0;
      for (int i = 0; i < 32; ++i) largest = std::fabs(src[i]) > largest ? std::fabs(src[i]) : largest;
      const float d = largest / 127;
      const float inverse = d != 0 ? 1 / d : 0;
      store_u16(dst, f32_to_f16(d));
      for (int i = 0; i < 32; ++i) {
        const float q = std::round(src[i] * inverse);  // not finite where 1 / d overflows: d is 0 in f16 then
        dst[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::fabs(q) <= 127 ? q : 0));
      }
    }
  }
};

/// A block: codes 512 bytes, d f16[16]. As many bytes as the file.
template <>
struct Panel<Q8_0> {
  static constexpr int chunk = 32, chunk_bytes = 544;
  static constexpr Codes codes = Codes::s8;
  static constexpr int zero = 0;
  static constexpr bool has_offset = false, has_halves = false;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    for (int half = 0; half < 2; ++half)
      panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 2 + 16 * half); }, as_u8(chunk_data) + 256 * half);
    panel::place_halves(rows, 0, chunk_data + 512);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return O::load_bytes(p + 64 * j);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p + 512);
  }
};

}  // namespace moxie
