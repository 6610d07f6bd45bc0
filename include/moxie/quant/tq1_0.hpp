#pragma once
// TQ1_0: superblocks of 256 codes of 0, 1 or 2, five in a byte, and one scale. 54 bytes:
//
//   0   u8[48]  elements 32 n + i (n < 5) in byte i of the first 32, 160 + 16 n + i in byte i of the other 16
//   48  u8[4]   elements 240 + 4 n + i (n < 4) in byte i
//   52  f16     d
//
//   x[i] = d * (q[i] - 1)
//
// A byte is a fraction of 256 whose digits of base 3 are the codes: digit n is the upper byte of 3 * (byte * 3^n mod 256).
// The product is exact in f32. Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/q2_k.hpp>
#include <moxie/quant/tq2_0.hpp>

namespace moxie {

struct TQ1_0 {
  static constexpr Dtype dtype = Dtype::TQ1_0;
  static constexpr const char* name = "TQ1_0";
  static constexpr int block = 256, block_bytes = 54;

  /// The 256 codes.
  MOXIE_INLINE static void codes(const std::byte* src, std::uint8_t* out) noexcept {
    const auto digits = [&](int at, int bytes, int count) MOXIE_INLINE_CALL {
      std::uint8_t left[32];
      std::memcpy(left, src + at, static_cast<std::size_t>(bytes));
      for (int n = 0; n < count; ++n, out += bytes)
        for (int i = 0; i < bytes; ++i) {
          out[i] = static_cast<std::uint8_t>(left[i] * 3 >> 8);
          left[i] = static_cast<std::uint8_t>(left[i] * 3);
        }
    };
    digits(0, 32, 5);
    digits(32, 16, 5);
    digits(48, 4, 4);
  }
  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src + 52);
      std::uint8_t q[block];
      codes(src, q);
      for (int i = 0; i < block; ++i) dst[i] = d * static_cast<float>(q[i] - 1);
    }
  }
};

/// TQ2_0's. 55% more bytes than the file.
template <>
struct Panel<TQ1_0> : Panel<Q2_K> {
  using layout = Q2_K;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::byte blocks_of[16][TQ2_0::block_bytes];
    const std::byte* as_tq2[16];
    for (int r = 0; r < 16; ++r) {
      std::uint8_t q[TQ1_0::block];
      TQ1_0::codes(rows[r], q);
      for (int i = 0; i < 64; ++i) {
        const std::uint8_t* p = q + i / 32 * 128 + i % 32;
        blocks_of[r][i] = static_cast<std::byte>(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
      }
      std::memcpy(blocks_of[r] + 64, rows[r] + 52, 2);
      as_tq2[r] = blocks_of[r];
    }
    Panel<TQ2_0>::pack(as_tq2, chunk_data);
  }
};

}  // namespace moxie
