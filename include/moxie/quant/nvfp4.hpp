#pragma once
// NVFP4: 64 codes of 4 bits, floating-point numbers of 1 + 2 + 1 bits (E2M1), with a scale of 4 + 3 bits (UE4M3, an E4M3 without
// sign) for each 16. 36 bytes:
//
//   0   u8[4]     e of each 16 elements
//   4   u8[4][8]  of each 16 elements: 0..7 in the low nibbles, 8..15 in the high nibbles
//
//   x[i] = (ue4m3(e) / 2) * value[q[i]]      value as MXFP4 has it, twice E2M1
//
// e = 0x7F, E4M3's NaN, is 0, as in ggml; of other values bit 7 is left out, so 0xFF is 480. All products are exact in f32 (4 and
// 4 significant bits). The scale that NVIDIA's checkpoints have for a whole tensor is another tensor of a file (".scale"), which
// moxie does not read: it refuses such files. Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/mxfp4.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/rearrange.hpp>

namespace moxie {

struct NVFP4 {
  static constexpr Dtype dtype = Dtype::NVFP4;
  static constexpr const char* name = "NVFP4";
  static constexpr int block = 64, block_bytes = 36;

  /// Without what counts for nothing.
  MOXIE_INLINE static std::uint8_t scale_bits(std::uint8_t e) noexcept {
    return e == 0x7f ? std::uint8_t{0} : static_cast<std::uint8_t>(e & 0x7f);
  }
  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    std::uint8_t value[16];
    panel::store16(value, MXFP4::values());
    for (; n > 0; n -= block, src += block_bytes)
      for (int part = 0; part < 4; ++part, dst += 16) {
        // the fields of an f16, whose exponents are 8 lower
        const float d = f16_to_f32(static_cast<std::uint16_t>(scale_bits(as_u8(src)[part]) << 7)) * 128;
        const std::uint8_t* q = as_u8(src) + 4 + 8 * part;
        for (int i = 0; i < 8; ++i) dst[i] = d * static_cast<float>(value[q[i] & 15] - 16);
        for (int i = 0; i < 8; ++i) dst[i + 8] = d * static_cast<float>(value[q[i] >> 4] - 16);
      }
  }
};

/// Two blocks of codes (256 bytes), e u8[2][16]. As many bytes as the file.
template <>
struct Panel<NVFP4> {
  static constexpr int chunk = 64, chunk_bytes = 576;
  static constexpr Codes codes = Codes::u5;
  static constexpr int zero = 16;
  static constexpr bool has_offset = false, has_halves = true, float_halves = true, few_tiles = true;
  static constexpr int block_bytes = 288, scales = 256;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    for (int b = 0; b < 2; ++b, out += block_bytes) {
      const auto row = [&](int r) MOXIE_INLINE_CALL {
        const panel::Bytes16 x = panel::load16(rows[r] + 4 + 16 * b), low = x & 15, high = x >> 4;
        return panel::interleave<8, false>(low, high) | panel::interleave<8, true>(low, high) << 4;
      };
      panel::place_words(row, out);
      for (int h = 0; h < 2; ++h)
        for (int r = 0; r < 16; ++r) out[scales + 16 * h + r] = NVFP4::scale_bits(as_u8(rows[r])[2 * b + h]);
    }
  }

  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return O::lookup(MXFP4::values(), panel::nibbles<O, j>(p + block_bytes * b));
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte*, int) noexcept {
    return O::set1(0.5f);
  }
  template <class O>
  MOXIE_INLINE static typename O::F half(const std::byte* p, int b, int h) noexcept {
    return O::load_ue4m3(p + block_bytes * b + scales + 16 * h);
  }
};

}  // namespace moxie
