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
#include <moxie/quant/q4_0.hpp>

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

/// Q4_0's, with other meanings of the codes.
template <>
struct Panel<IQ4_NL> : Panel<Q4_0> {
  static_assert(IQ4_NL::block_bytes == Q4_0::block_bytes);
  static constexpr Codes codes = Codes::s8;
  static constexpr int zero = 0;

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return O::lookup(iq4_values(), panel::nibbles<O, j>(p));
  }
};

}  // namespace moxie
