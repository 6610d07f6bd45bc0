#pragma once
// IQ3_XXS: superblocks of 256, in 8 blocks of 32 elements with a 4-bit factor each; 4 elements are one of the 256 entries of a
// grid of 8 values, with signs of which an even number of 8 is negative. 98 bytes:
//
//   0   f16     d
//   2   u8[64]  the grid's entries of 4 elements each
//   66  u32[8]  of 32 elements: the first 7 signs of each 8 in bits 7 i and up (see IQ2_XXS), the factor in bits 28..31
//
//   x[i] = (d * (0.5 + factor) * 0.5) * value[i]       value = 4, 12, 20, 28, 36, 44, 52, 62
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

/// 8 codes from two entries of a grid of IQ3_XXS or IQ3_S and their signs: the entries' indices, and 8 for negative ones.
MOXIE_INLINE void store_iq3_codes(std::uint8_t* out, std::uint32_t first, std::uint32_t second, std::uint64_t signs) noexcept {
  const std::uint64_t codes = first | static_cast<std::uint64_t>(second) << 32 | signs << 3;
  std::memcpy(out, &codes, 8);
}

struct IQ3_XXS {
  static constexpr Dtype dtype = Dtype::IQ3_XXS;
  static constexpr const char* name = "IQ3_XXS";
  static constexpr int block = 256, block_bytes = 98, value_bits = 4;

  MOXIE_INLINE static panel::Bytes16 values() noexcept {
    return table_codes::bytes_of({4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62});
  }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int b) noexcept { return as_u8(src)[69 + 4 * b] >> 4; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::uint8_t* q = as_u8(src) + 2 + 8 * b;
    const std::uint32_t seven = load_u32(src + 66 + 4 * b);
    for (int i = 0; i < 4; ++i)
      store_iq3_codes(out + 8 * i, grid::iq3_xxs_grid[q[2 * i]], grid::iq3_xxs_grid[q[2 * i + 1]],
                      grid::even_signs(seven >> 7 * i & 127));
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ3_XXS>(src, dst, n);
  }
};

template <>
struct Panel<IQ3_XXS> : table_codes::Panel4 {
  using layout = IQ3_XXS;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ3_XXS>(rows, chunk); }
};

}  // namespace moxie
