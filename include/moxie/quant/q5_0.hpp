#pragma once
// Q5_0: 32 codes of 5 bits around 16, and one scale. 22 bytes:
//
//   0   f16     d
//   2   u32     the fifth bit of element i is bit i
//   6   u8[16]  elements 0..15 in the low nibbles, 16..31 in the high nibbles
//
//   x[i] = d * (q[i] - 16)
//
// The product is exact in f32 (11 and 5 significant bits). Encoding: d = m / -16, where m is the element of largest
// magnitude; the same bytes as ggml's and gguf-py's encoders. Source: ggml-quants.c.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/uniform.hpp>

namespace moxie {

struct Q5_0 {
  static constexpr Dtype dtype = Dtype::Q5_0;
  static constexpr const char* name = "Q5_0";
  static constexpr int block = 32, block_bytes = 22;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src);
      const std::uint32_t high = load_u32(src + 2);
      const std::uint8_t* q = as_u8(src) + 6;
      for (int i = 0; i < 16; ++i) dst[i] = d * static_cast<float>(static_cast<int>((q[i] & 15u) | (high >> i & 1u) << 4) - 16);
      for (int i = 0; i < 16; ++i)
        dst[i + 16] = d * static_cast<float>(static_cast<int>((q[i] >> 4) | (high >> (i + 16) & 1u) << 4) - 16);
    }
  }
  static void encode(const float* src, std::byte* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block, dst += block_bytes) {
      std::uint8_t q[32];
      store_u16(dst, f32_to_f16(encode_signed_codes(src, 16, q)));
      store_u32(dst + 2, fifth_bits(q));
      for (int i = 0; i < 16; ++i) as_u8(dst)[6 + i] = static_cast<std::uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4);
    }
  }
};

/// A block: planes 320 bytes, d f16[16]. As many bytes as the file.
template <>
struct Panel<Q5_0> {
  static constexpr int chunk = 32, chunk_bytes = 352;
  static constexpr Codes codes = Codes::u5;
  static constexpr int zero = 16;
  static constexpr bool has_offset = false, has_halves = false;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    // the file pairs inputs i and i + 16 in a byte, as nibbles do
    std::uint8_t low[256], fifth[64];
    panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(rows[r] + 6); }, low);
    panel::place_word_bits(rows, 2, fifth);
    panel::place_planes5(low, fifth, as_u8(chunk_data));
    panel::place_halves(rows, 0, chunk_data + 320);
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int) noexcept {
    return panel::planes<O, 5, j>(p);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::load_f16(p + 320);
  }
};

}  // namespace moxie
