#pragma once
// Q2_K: superblocks of 256 codes of 2 bits, in 16 blocks of 16 with a 4-bit scale and a 4-bit minimum each. 84 bytes:
//
//   0   u8[16]  scale sc (low nibble) and minimum mn (high nibble) of each block
//   16  u8[64]  codes: 32 bytes for each half of 128; byte i of a half holds those of its elements i, i + 32, i + 64, i + 96 from
//               bit 0 up
//   80  f16     d
//   82  f16     dmin
//
//   x[16 b + i] = (d * sc[b]) * q[16 b + i] - dmin * mn[b]
//
// Both products are exact in f32 (11 + 4 + 2 significant bits). Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct Q2_K {
  static constexpr Dtype dtype = Dtype::Q2_K;
  static constexpr const char* name = "Q2_K";
  static constexpr int block = 256, block_bytes = 84;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src + 80), dmin = load_f16(src + 82);
      for (int b = 0; b < 16; ++b) {
        const int scales = as_u8(src)[b];
        const float block_d = d * static_cast<float>(scales & 15), block_min = dmin * static_cast<float>(scales >> 4);
        const std::uint8_t* q = as_u8(src) + 16 + 32 * (b / 8) + 16 * (b & 1);
        for (int i = 0; i < 16; ++i)
          dst[16 * b + i] = block_d * static_cast<float>(q[i] >> 2 * (b / 2 % 4) & 3) - block_min;
      }
    }
  }
};

/// A superblock: d f16[16], dmin f16[16], then 8 blocks of codes (128 bytes), sc and mn of its two halves u8[2][16]. As many
/// bytes as the file.
template <>
struct Panel<Q2_K> {
  static constexpr int chunk = 256, chunk_bytes = 1344;
  static constexpr Codes codes = Codes::u2;
  static constexpr int zero = 0;
  static constexpr bool has_offset = true, has_halves = true;
  static constexpr int dmin = 32, blocks = 64, block_bytes = 160, scales = blocks + 128;

  /// The 64 bytes of codes that lie at `at` in the rows' blocks.
  MOXIE_INLINE static void pack_codes(const std::byte* const* rows, int at, std::byte* chunk_data) noexcept {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 2; ++i)
        panel::place_pairs(rows, at + 32 * half + 16 * i, as_u8(chunk_data) + blocks + block_bytes * 4 * half + 64 * i,
                           block_bytes);
  }
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    pack_codes(rows, 16, chunk_data);
    panel::place_bytes([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r]); },
                       [&](int i) MOXIE_INLINE_CALL { return out + scales + block_bytes * (i / 2) + 16 * (i % 2); });
    panel::place_halves(rows, 80, chunk_data);
    panel::place_halves(rows, 82, chunk_data + dmin);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return panel::pairs<O, j>(p + blocks + block_bytes * b);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p);
  }
  template <class O>
  MOXIE_INLINE static typename O::Ints half(const std::byte* p, int b, int h) noexcept {
    return O::halves(panel::load16(p + scales + block_bytes * b + 16 * h) & 15);
  }
  template <class O>
  MOXIE_INLINE static typename O::F offset(const std::byte* p, int) noexcept {
    return O::mul(O::set1(-1), O::load_f16(p + dmin));
  }
  template <class O>
  MOXIE_INLINE static typename O::Ints half_offset(const std::byte* p, int b, int h) noexcept {
    return O::halves(panel::load16(p + scales + block_bytes * b + 16 * h) >> 4);
  }
};

}  // namespace moxie
