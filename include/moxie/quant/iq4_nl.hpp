#pragma once
// IQ4_NL: 32 codes of 4 bits that choose from 16 unevenly spaced values, and one scale. 18 bytes:
//
//   0   f16     d
//   2   u8[16]  elements 0..15 in the low nibbles, 16..31 in the high nibbles
//
//   x[i] = d * value[q[i]]
//
// The product is exact in f32 (11 and 7 significant bits). Source: ggml-quants.c. Not written here.

#include <bit>
#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

/// The 16 values of IQ4_NL and IQ4_XS.
MOXIE_INLINE panel::Bytes16 iq4_values() noexcept {
  using Signed16 = std::int8_t __attribute__((vector_size(16)));
  return std::bit_cast<panel::Bytes16>(Signed16{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});
}

struct IQ4_NL {
  static constexpr Dtype dtype = Dtype::IQ4_NL;
  static constexpr const char* name = "IQ4_NL";
  static constexpr int block = 32, block_bytes = 18;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    std::int8_t value[16];
    panel::store16(value, iq4_values());
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src);
      const std::uint8_t* q = as_u8(src) + 2;
      for (int i = 0; i < 16; ++i) dst[i] = d * static_cast<float>(value[q[i] & 15]);
      for (int i = 0; i < 16; ++i) dst[i + 16] = d * static_cast<float>(value[q[i] >> 4]);
    }
  }
};

/// A block: codes 256 bytes, d f16[16]. As many bytes as the file.
template <>
struct Panel<IQ4_NL> {
  static constexpr int chunk = 32, chunk_bytes = 288;
  static constexpr Codes codes = Codes::s8;
  static constexpr int zero = 0;
  static constexpr bool has_offset = false, has_halves = false;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    // the file pairs inputs i and i + 16 in a byte, as the panel does
    panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 2); }, as_u8(chunk_data));
    panel::place_halves(rows, 0, chunk_data + 256);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return O::lookup(iq4_values(), panel::nibbles<O, j>(p));
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p + 256);
  }
};

}  // namespace moxie
