#pragma once
// Q5_K: superblocks of 256 codes of 5 bits, in 8 blocks of 32 with a 6-bit scale and a 6-bit minimum each. 176 bytes:
//
//   0   f16      d
//   2   f16      dmin
//   4   u8[12]   8 scales sc and 8 minimums mn of 6 bits (k_scale_min of quant/k_scales.hpp)
//   16  u8[32]   the fifth bit of element 32 b + i is bit b of byte i
//   48  u8[128]  32 bytes for each pair of blocks: block 2p in the low nibbles, block 2p + 1 in the high nibbles
//
//   x[32 b + i] = (d * sc[b]) * q[32 b + i] - dmin * mn[b]
//
// Both products are exact in f32 (11 + 6 + 5 significant bits), so a fused multiply-add gives the same bits.
// Source: ggml-quants.c. The encoder is our own search, see quant/k_search.hpp.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/k_scales.hpp>
#include <moxie/quant/k_search.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct Q5_K {
  static constexpr Dtype dtype = Dtype::Q5_K;
  static constexpr const char* name = "Q5_K";
  static constexpr int block = 256, block_bytes = 176;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src), dmin = load_f16(src + 2);
      const std::uint8_t* fifth = as_u8(src) + 16;
      for (int b = 0; b < 8; ++b) {
        const std::uint8_t* q = as_u8(src) + 48 + 32 * (b / 2);
        const KScaleMin s = k_scale_min(as_u8(src) + 4, b);
        const float block_d = d * s.scale, block_m = dmin * s.min;
        for (int i = 0; i < 32; ++i)
          dst[32 * b + i] = block_d * static_cast<float>((q[i] >> 4 * (b & 1) & 15) | (fifth[i] >> b & 1) << 4) - block_m;
      }
    }
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block, dst += block_bytes) {
      AffineSuperblock s;
      search_affine_superblock(src, 31, s);
      store_u16(dst, s.d);
      store_u16(dst + 2, s.dmin);
      store_k_scales(s.scale, s.min, as_u8(dst) + 4);
      for (int i = 0; i < 32; ++i) {
        int fifth = 0;
        for (int b = 0; b < 8; ++b) fifth |= (s.code[32 * b + i] >> 4) << b;
        as_u8(dst)[16 + i] = static_cast<std::uint8_t>(fifth);
        for (int pair = 0; pair < 4; ++pair)
          as_u8(dst)[48 + 32 * pair + i] =
              static_cast<std::uint8_t>((s.code[64 * pair + i] & 15) | (s.code[64 * pair + 32 + i] & 15) << 4);
      }
    }
  }
};

/// A superblock: d f16[16], dmin f16[16], then 8 blocks of planes (320 bytes), sc u8[16], mn u8[16].
/// 2.3% more bytes than the file, whose scales have 6 bits.
template <>
struct Panel<Q5_K> {
  static constexpr int chunk = 256, chunk_bytes = 2880;
  static constexpr Codes codes = Codes::u5;
  static constexpr int zero = 0;
  static constexpr bool has_offset = true, has_halves = false;
  static constexpr int dmin = 32, blocks = 64, block_bytes = 352, scales = blocks + 320;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    std::uint8_t low[8][256], fifth[8][64];
    for (int pair = 0; pair < 4; ++pair) panel::place_nibble_pair(rows, 48 + 32 * pair, low[2 * pair], low[2 * pair + 1]);
    panel::place_bits(rows, 16, fifth[0], 64);
    for (int b = 0; b < 8; ++b) panel::place_planes5(low[b], fifth[b], out + blocks + block_bytes * b);
    panel::place_bytes([&](int r) MOXIE_INLINE_CALL { return k_scale_min_bytes(as_u8(rows[r]) + 4); },
                       [&](int i) MOXIE_INLINE_CALL { return out + scales + block_bytes * (i & 7) + 16 * (i >> 3); });
    panel::place_halves(rows, 0, chunk_data);
    panel::place_halves(rows, 2, chunk_data + dmin);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return panel::planes<O, 5, j>(p + blocks + block_bytes * b);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int b) noexcept {
    return O::mul(O::load_f16(p), O::load_u8(p + scales + block_bytes * b));
  }
  template <class O>
  MOXIE_INLINE static typename O::F offset(const std::byte* p, int b) noexcept {
    return O::mul(O::mul(O::set1(-1), O::load_f16(p + dmin)), O::load_u8(p + scales + block_bytes * b + 16));
  }
};

}  // namespace moxie
