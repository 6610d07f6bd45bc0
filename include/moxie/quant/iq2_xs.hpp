#pragma once
// IQ2_XS: superblocks of 256, in 16 blocks of 16 elements with a 4-bit factor each; 8 elements are one of the 512 entries of a
// grid of the values 8, 25, 43, with signs of which an even number is negative. 74 bytes:
//
//   0   f16      d
//   2   u16[32]  the grid's entry of 8 elements in bits 0..8, their first 7 signs in bits 9..15 (see IQ2_XXS)
//   66  u8[8]    factors 2 i (low nibble) and 2 i + 1 (high nibble)
//
//   x[i] = (d * (0.5 + factor) * 0.25) * value[i]
//
// Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/iq2_xxs.hpp>
#include <moxie/quant/iq_grids.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/table_codes.hpp>

namespace moxie {

struct IQ2_XS {
  static constexpr Dtype dtype = Dtype::IQ2_XS;
  static constexpr const char* name = "IQ2_XS";
  static constexpr int block = 256, block_bytes = 74, value_bits = 3;

  MOXIE_INLINE static panel::Bytes16 values() noexcept { return iq2_values(); }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int h) noexcept { return as_u8(src)[66 + h / 2] >> 4 * (h % 2) & 15; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t q = load_u16(src + 2 + 2 * (4 * b + i));
      store_iq2_codes(out + 8 * i, grid::iq2_xs_grid[q & 511], grid::even_signs(q >> 9));
    }
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ2_XS>(src, dst, n);
  }
};

template <>
struct Panel<IQ2_XS> : table_codes::Panel3 {
  using layout = IQ2_XXS;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ2_XS>(rows, chunk); }
};

}  // namespace moxie
