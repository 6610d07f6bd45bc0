#pragma once
// Q3_K: superblocks of 256 codes of 3 bits around 4, in 16 blocks of 16 with a 6-bit scale each. 110 bytes:
//
//   0    u8[32]  third bits: bit b of byte i is that of element 32 b + i
//   32   u8[64]  low 2 bits: 32 bytes for each half of 128; byte i of a half holds those of its elements i, i + 32, i + 64, i + 96
//                from bit 0 up
//   96   u8[12]  scales: byte j (j < 8) has the lower 4 bits of scale j (low nibble) and of scale j + 8 (high nibble), byte 8 + j
//                (j < 4) the upper 2 bits of scales j, j + 4, j + 8, j + 12 from bit 0 up
//   108  f16     d
//
//   x[16 b + i] = (d * (scale[b] - 32)) * (q[16 b + i] - 4)
//
// All products are exact in f32 (11 + 6 + 3 significant bits). Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct Q3_K {
  static constexpr Dtype dtype = Dtype::Q3_K;
  static constexpr const char* name = "Q3_K";
  static constexpr int block = 256, block_bytes = 110;

  /// The lower 4 bits of scale b of [0, 16), and its upper 2.
  MOXIE_INLINE static int scale_low(const std::byte* src, int b) noexcept { return as_u8(src)[96 + b % 8] >> 4 * (b / 8) & 15; }
  MOXIE_INLINE static int scale_high(const std::byte* src, int b) noexcept { return as_u8(src)[104 + b % 4] >> 2 * (b / 4) & 3; }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src + 108);
      for (int b = 0; b < 16; ++b) {
        const float block_d = d * static_cast<float>((scale_low(src, b) | scale_high(src, b) << 4) - 32);
        const std::uint8_t* high = as_u8(src) + 16 * (b & 1);
        const std::uint8_t* low = as_u8(src) + 32 + 32 * (b / 8) + 16 * (b & 1);
        for (int i = 0; i < 16; ++i) {
          const int q = (low[i] >> 2 * (b / 2 % 4) & 3) | (high[i] >> b / 2 & 1) << 2;
          dst[16 * b + i] = block_d * static_cast<float>(q - 4);
        }
      }
    }
  }
};

/// A superblock: d f16[16], the upper 2 bits of the scales of each block's two halves u8[4][16] (two blocks in a byte), then 8
/// blocks of planes (192 bytes), the scales' lower 4 bits u8[16] (the second half's in the high nibbles).
/// As many bytes as the file.
template <>
struct Panel<Q3_K> {
  static constexpr int chunk = 256, chunk_bytes = 1760;
  static constexpr Codes codes = Codes::u3;
  static constexpr int zero = 4;
  static constexpr bool has_offset = false, has_halves = true;
  static constexpr int high = 32, blocks = high + 64, block_bytes = 208, scales = blocks + 192;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    std::uint8_t low[8][128], third[8][64];
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 2; ++i) panel::place_pairs(rows, 32 + 32 * half + 16 * i, low[4 * half] + 64 * i, 128);
    panel::place_bits(rows, 0, third[0], 64);
    for (int b = 0; b < 8; ++b) panel::place_planes3(low[b], third[b], out + blocks + block_bytes * b);
    for (int r = 0; r < 16; ++r) {
      const auto at = [&](int b) MOXIE_INLINE_CALL {
        return Q3_K::scale_low(rows[r], 2 * b) | Q3_K::scale_low(rows[r], 2 * b + 1) << 4;
      };
      const auto high_at = [&](int b) MOXIE_INLINE_CALL {
        return Q3_K::scale_high(rows[r], 2 * b) | Q3_K::scale_high(rows[r], 2 * b + 1) << 2;
      };
      for (int b = 0; b < 8; ++b) out[scales + block_bytes * b + r] = static_cast<std::uint8_t>(at(b));
      for (int b = 0; b < 8; b += 2) out[high + 8 * b + r] = static_cast<std::uint8_t>(high_at(b) | high_at(b + 1) << 4);
    }
    panel::place_halves(rows, 108, chunk_data);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return panel::planes<O, 3, j>(p + blocks + block_bytes * b);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p);
  }
  template <class O>
  MOXIE_INLINE static typename O::Ints half(const std::byte* p, int b, int h) noexcept {
    const panel::Bytes16 lower = panel::shifted(panel::load16(p + scales + block_bytes * b), 4 * h) & 15;
    const panel::Bytes16 upper = panel::shifted(panel::load16(p + high + 16 * (b / 2)), 4 * (b % 2) + 2 * h) & 3;
    return O::halves((lower | upper << 4) - 32);
  }
};

}  // namespace moxie
