#pragma once
// TQ2_0: superblocks of 256 codes of 2 bits, of which files use three, and one scale. 66 bytes:
//
//   0   u8[64]  32 bytes for each half of 128; byte i of a half holds elements i, i + 32, i + 64, i + 96 from bit 0 up
//   64  f16     d
//
//   x[i] = d * (q[i] - 1)
//
// The product is exact in f32. Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/q2_k.hpp>

namespace moxie {

struct TQ2_0 {
  static constexpr Dtype dtype = Dtype::TQ2_0;
  static constexpr const char* name = "TQ2_0";
  static constexpr int block = 256, block_bytes = 66;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (; n > 0; n -= block, src += block_bytes, dst += block) {
      const float d = load_f16(src + 64);
      for (int i = 0; i < block; ++i)
        dst[i] = d * static_cast<float>((as_u8(src)[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3) - 1);
    }
  }
};

/// Q2_K's, with factors of 1: d * q - d. 27% more bytes than the file.
template <>
struct Panel<TQ2_0> : Panel<Q2_K> {
  using layout = Q2_K;

  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    pack_codes(rows, 0, chunk_data);
    std::uint8_t* out = as_u8(chunk_data);
    for (int b = 0; b < 8; ++b)
      for (int i = 0; i < 32; ++i) out[scales + block_bytes * b + i] = 0x11;
    panel::place_halves(rows, 64, chunk_data);
    panel::place_halves(rows, 64, chunk_data + dmin);
  }
};

}  // namespace moxie
