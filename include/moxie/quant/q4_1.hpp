#pragma once
// Q4_1: 32 codes of 4 bits, a scale and a minimum. 20 bytes:
//
//   0   f16     d
//   2   f16     m
//   4   u8[16]  elements 0..15 in the low nibbles, 16..31 in the high nibbles
//
//   x[i] = d * q[i] + m
//
// The product is exact in f32 (11 and 4 significant bits), so a fused multiply-add gives the same bits. Encoding:
// m = min x, d = (max x - min x) / 15; the same bytes as ggml's and gguf-py's encoders. Source: ggml-quants.c.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/uniform.hpp>

namespace moxie {

struct Q4_1 {
  static constexpr Dtype dtype = Dtype::Q4_1;
  static constexpr const char* name = "Q4_1";
  static constexpr int block = 32, block_bytes = 20;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src), m = load_f16(src + 2);
      const std::uint8_t* q = as_u8(src) + 4;
      for (int i = 0; i < 16; ++i) dst[i] = d * static_cast<float>(q[i] & 15) + m;
      for (int i = 0; i < 16; ++i) dst[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
    }
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block, dst += block_bytes) {
      std::uint8_t q[32];
      const ScaleMin s = encode_affine_codes(src, 15, q);
      store_u16(dst, f32_to_f16(s.d));
      store_u16(dst + 2, f32_to_f16(s.m));
      for (int i = 0; i < 16; ++i) as_u8(dst)[4 + i] = static_cast<std::uint8_t>(q[i] | q[i + 16] << 4);
    }
  }
};

/// A block: codes 256 bytes, d f16[16], m f16[16]. As many bytes as the file.
template <>
struct Panel<Q4_1> {
  static constexpr int chunk = 32, chunk_bytes = 320;
  static constexpr Codes codes = Codes::u4;
  static constexpr int zero = 0;
  static constexpr bool has_offset = true, has_halves = false, few_tiles = true;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    // the file pairs inputs i and i + 16 in a byte, as the panel does
    panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 4); }, as_u8(chunk_data));
    panel::place_halves(rows, 0, chunk_data + 256);
    panel::place_halves(rows, 2, chunk_data + 288);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return panel::nibbles<O, j>(p);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p + 256);
  }
  template <class O>
  MOXIE_INLINE static typename O::F offset(const std::byte* p, int) noexcept {
    return O::load_f16(p + 288);
  }
};

}  // namespace moxie
