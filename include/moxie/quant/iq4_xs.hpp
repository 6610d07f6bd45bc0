#pragma once
// IQ4_XS: superblocks of 256 codes of 4 bits that choose from the values of IQ4_NL, in 8 blocks of 32 with a 6-bit scale each.
// 136 bytes:
//
//   0  f16      d
//   2  u16      the upper 2 bits of scale b in bits 2 b and 2 b + 1
//   4  u8[4]    the lower 4 bits of scales 2 i (low nibble) and 2 i + 1 (high nibble)
//   8  u8[128]  16 bytes for each block: its elements 0..15 in the low nibbles, 16..31 in the high nibbles
//
//   x[32 b + i] = (d * (scale[b] - 32)) * value[q[32 b + i]]
//
// All products are exact in f32 (11 + 6 + 7 significant bits). Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/iq4_nl.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct IQ4_XS {
  static constexpr Dtype dtype = Dtype::IQ4_XS;
  static constexpr const char* name = "IQ4_XS";
  static constexpr int block = 256, block_bytes = 136;

  /// Scale of block b of [0, 8), in [-32, 31].
  MOXIE_INLINE static std::int8_t scale(const std::byte* src, int b) noexcept {
    const int low = as_u8(src)[4 + b / 2] >> 4 * (b % 2) & 15, high = load_u16(src + 2) >> 2 * b & 3;
    return static_cast<std::int8_t>((low | high << 4) - 32);
  }
  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    std::int8_t value[16];
    panel::store16(value, iq4_values());
    for (; n > 0; n -= block, src += block_bytes) {
      const float super_d = load_f16(src);
      for (int b = 0; b < 8; ++b, dst += 32) {
        const float d = super_d * static_cast<float>(scale(src, b));
        const std::uint8_t* q = as_u8(src) + 8 + 16 * b;
        for (int i = 0; i < 16; ++i) dst[i] = d * static_cast<float>(value[q[i] & 15]);
        for (int i = 0; i < 16; ++i) dst[i + 16] = d * static_cast<float>(value[q[i] >> 4]);
      }
    }
  }
};

/// A superblock: d f16[16], then 8 blocks of codes (256 bytes), scale i8[16]. 1.5% more bytes than the file, whose scales have
/// 6 bits.
template <>
struct Panel<IQ4_XS> {
  static constexpr int chunk = 256, chunk_bytes = 2208;
  static constexpr Codes codes = Codes::s8;
  static constexpr int zero = 0;
  static constexpr bool has_offset = false, has_halves = false;
  static constexpr int blocks = 32, block_bytes = 272, scales = blocks + 256;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    for (int b = 0; b < 8; ++b) {
      panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 8 + 16 * b); },
                         as_u8(chunk_data) + blocks + block_bytes * b);
      for (int r = 0; r < 16; ++r) chunk_data[scales + block_bytes * b + r] = static_cast<std::byte>(IQ4_XS::scale(rows[r], b));
    }
    panel::place_halves(rows, 0, chunk_data);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return O::lookup(iq4_values(), panel::nibbles<O, j>(p + blocks + block_bytes * b));
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int b) noexcept {
    return O::mul(O::load_f16(p), O::halves_float(O::halves(panel::load16(p + scales + block_bytes * b))));
  }
};

}  // namespace moxie
