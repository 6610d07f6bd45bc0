#pragma once
// MXFP4: 32 codes of 4 bits, floating-point numbers of 1 + 2 + 1 bits (E2M1), and one power of two. 17 bytes:
//
//   0   u8      e
//   1   u8[16]  elements 0..15 in the low nibbles, 16..31 in the high nibbles
//
//   x[i] = 2^(e - 128) * value[q[i]]      value = 0, 1, 2, 3, 4, 6, 8, 12, then the same negative: twice E2M1
//
// The product is exact in f32 unless it overflows. ggml reads e = 255, which the standard keeps for NaN, as 2^127.
// Sources: OCP Microscaling Formats (MX) specification 1.0; ggml-quants.c. Not written here.

#include <bit>
#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct MXFP4 {
  static constexpr Dtype dtype = Dtype::MXFP4;
  static constexpr const char* name = "MXFP4";
  static constexpr int block = 32, block_bytes = 17;

  /// value + 16: codes of 5 bits around 16.
  MOXIE_INLINE static panel::Bytes16 values() noexcept {
    return panel::Bytes16{16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
  }
  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    std::uint8_t value[16];
    panel::store16(value, values());
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = e8m0_half(as_u8(src)[0]);
      const std::uint8_t* q = as_u8(src) + 1;
      for (int i = 0; i < 16; ++i) dst[i] = d * static_cast<float>(value[q[i] & 15] - 16);
      for (int i = 0; i < 16; ++i) dst[i + 16] = d * static_cast<float>(value[q[i] >> 4] - 16);
    }
  }
};

/// A block: codes 256 bytes, e u8[16]. As many bytes as the file.
template <>
struct Panel<MXFP4> {
  static constexpr int chunk = 32, chunk_bytes = 272;
  static constexpr Codes codes = Codes::u5;
  static constexpr int zero = 16;
  static constexpr bool has_offset = false, has_halves = false;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    // the file pairs inputs i and i + 16 in a byte, as the panel does
    panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 1); }, as_u8(chunk_data));
    for (int r = 0; r < 16; ++r) {
      // Zeros, which have e = 0 in files, get an ordinary scale: with subnormal numbers CPUs take ten times as long.
      const auto magnitudes = std::bit_cast<panel::Words4>(panel::load16(rows[r] + 1) & 0x77);
      const bool all_zero = (magnitudes[0] | magnitudes[1] | magnitudes[2] | magnitudes[3]) == 0;
      chunk_data[256 + r] = all_zero ? std::byte{127} : rows[r][0];
    }
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return O::lookup(MXFP4::values(), panel::nibbles<O, j>(p));
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_e8m0_half(p + 256);
  }
};

}  // namespace moxie
