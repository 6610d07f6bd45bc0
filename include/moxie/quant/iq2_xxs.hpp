#pragma once
// IQ2_XXS: superblocks of 256, in 8 blocks of 32 elements with a 4-bit factor each; 8 elements are one of the 256 entries of a
// grid of the values 8, 25, 43, with signs of which an even number is negative. 66 bytes:
//
//   0   f16     d
//   2   8 times, for 32 elements each:
//       u8[4]   the grid's entries of 8 elements each
//       u32     the first 7 signs of entry i in bits 7 i and up (set: negative; the eighth makes their number even),
//               the factor in bits 28..31
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
#include <moxie/quant/iq_grids.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/table_codes.hpp>

namespace moxie {

/// The values of IQ2_XXS, IQ2_XS and IQ2_S: codes are an index of a grid, and 4 for the negative ones.
MOXIE_INLINE panel::Bytes16 iq2_values() noexcept {
  return table_codes::bytes_of({8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}
/// 8 codes from an entry of a grid and their signs.
MOXIE_INLINE void store_iq2_codes(std::uint8_t* out, std::uint64_t entry, std::uint64_t signs) noexcept {
  const std::uint64_t codes = entry | signs << 2;
  std::memcpy(out, &codes, 8);
}

struct IQ2_XXS {
  static constexpr Dtype dtype = Dtype::IQ2_XXS;
  static constexpr const char* name = "IQ2_XXS";
  static constexpr int block = 256, block_bytes = 66, value_bits = 3;

  MOXIE_INLINE static panel::Bytes16 values() noexcept { return iq2_values(); }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int h) noexcept { return as_u8(src)[9 + 8 * (h / 2)] >> 4; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::byte* p = src + 2 + 8 * b;
    const std::uint32_t signs = load_u32(p + 4);
    for (int i = 0; i < 4; ++i)
      store_iq2_codes(out + 8 * i, grid::iq2_xxs_grid[as_u8(p)[i]], grid::even_signs(signs >> 7 * i & 127));
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ2_XXS>(src, dst, n);
  }
};

template <>
struct Panel<IQ2_XXS> : table_codes::Panel3 {
  using layout = IQ2_XXS;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ2_XXS>(rows, chunk); }
};

}  // namespace moxie
