#pragma once
// Q6_K: superblocks of 256 codes of 6 bits around 32, in 16 blocks of 16 with a signed 8-bit scale each. 210 bytes:
//
//   0    u8[128]  low 4 bits: 64 bytes for each half h of 128; byte i of a half holds element i (low nibble) and i + 64 (high)
//   128  u8[64]   high 2 bits: 32 bytes for each half; byte i holds those of elements i, i + 32, i + 64, i + 96 from bit 0 up
//   192  i8[16]   scales sc
//   208  f16      d
//
//   x[16 b + i] = (d * sc[b]) * (q[16 b + i] - 32)
//
// All products are exact in f32 (11 + 7 + 5 significant bits). Source: ggml-quants.c. The encoder is our own search, see
// quant/k_search.hpp.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/k_search.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct Q6_K {
  static constexpr Dtype dtype = Dtype::Q6_K;
  static constexpr const char* name = "Q6_K";
  static constexpr int block = 256, block_bytes = 210;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src + 208);
      for (int b = 0; b < 16; ++b) {  // block b: 16 elements of the quarter (b / 2) % 4 of the half b / 8
        const int half = b / 8, quarter = b / 2 % 4;
        const std::uint8_t* low = as_u8(src) + 64 * half + 32 * (quarter & 1) + 16 * (b & 1);
        const std::uint8_t* high = as_u8(src) + 128 + 32 * half + 16 * (b & 1);
        const float block_d = d * static_cast<float>(static_cast<std::int8_t>(src[192 + b]));
        for (int i = 0; i < 16; ++i) {
          const int q = (low[i] >> 4 * (quarter >> 1) & 15) | (high[i] >> 2 * quarter & 3) << 4;
          dst[16 * b + i] = block_d * static_cast<float>(q - 32);
        }
      }
    }
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block, dst += block_bytes) {
      SignedSuperblock s;
      search_signed_superblock(src, s);
      std::uint8_t* out = as_u8(dst);
      for (int half = 0; half < 2; ++half) {
        const std::uint8_t* q = s.code + 128 * half;
        for (int i = 0; i < 64; ++i) out[64 * half + i] = static_cast<std::uint8_t>((q[i] & 15) | (q[i + 64] & 15) << 4);
        for (int i = 0; i < 32; ++i)
          out[128 + 32 * half + i] =
              static_cast<std::uint8_t>(q[i] >> 4 | (q[i + 32] >> 4) << 2 | (q[i + 64] >> 4) << 4 | (q[i + 96] >> 4) << 6);
      }
      for (int b = 0; b < 16; ++b) out[192 + b] = static_cast<std::uint8_t>(s.scale[b]);
      store_u16(out + 208, s.d);
    }
  }
};

/// A superblock: d f16[16], then 8 blocks of planes (384 bytes), sc i8[2][16]. As many bytes as the file.
template <>
struct Panel<Q6_K> {
  static constexpr int chunk = 256, chunk_bytes = 3360;
  static constexpr Codes codes = Codes::u6;
  static constexpr int zero = 32;
  static constexpr bool has_offset = false, has_halves = true;
  static constexpr int blocks = 32, block_bytes = 416, scales = blocks + 384;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    for (int half = 0; half < 2; ++half) {  // block b: 32 elements of the quarter b % 4 of the half b / 4
      std::uint8_t low[4][256], high[4][128];
      for (int b = 0; b < 2; ++b) panel::place_nibble_pair(rows, 64 * half + 32 * b, low[b], low[b + 2]);
      for (int i = 0; i < 2; ++i) panel::place_pairs(rows, 128 + 32 * half + 16 * i, high[0] + 64 * i, 128);
      for (int b = 0; b < 4; ++b) panel::place_planes6(low[b], high[b], out + blocks + block_bytes * (4 * half + b));
    }
    panel::place_bytes([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 192); },
                       [&](int i) MOXIE_INLINE_CALL { return out + scales + block_bytes * (i / 2) + 16 * (i % 2); });
    panel::place_halves(rows, 208, chunk_data);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return panel::planes<O, 6, j>(p + blocks + block_bytes * b);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p);
  }
  template <class O>
  MOXIE_INLINE static typename O::Ints half(const std::byte* p, int b, int h) noexcept {
    return O::halves(panel::load16(p + scales + block_bytes * b + 16 * h));
  }
};

}  // namespace moxie
