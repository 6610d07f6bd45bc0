#pragma once
// IQ3_S: superblocks of 256, in 8 blocks of 32 elements with a 4-bit factor each; 4 elements are one of the 512 entries of a grid
// of 8 values, with any signs. 110 bytes:
//
//   0    f16     d
//   2    u8[64]  the lower 8 bits of the grid's entries of 4 elements each
//   66   u8[8]   their ninth bits, that of entry 8 b + i in bit i of byte b
//   74   u8[32]  signs, that of element 8 i + j in bit j of byte i (set: negative)
//   106  u8[4]   factors 2 i (low nibble) and 2 i + 1 (high nibble)
//
//   x[i] = (d * (1 + 2 * factor)) * value[i]       value = 1, 3, 5, 7, 9, 11, 13, 15
//
// Source: ggml-quants.c. Not written here.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/iq3_xxs.hpp>
#include <moxie/quant/iq_grids.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/table_codes.hpp>

namespace moxie {

struct IQ3_S {
  static constexpr Dtype dtype = Dtype::IQ3_S;
  static constexpr const char* name = "IQ3_S";
  static constexpr int block = 256, block_bytes = 110, value_bits = 4;

  /// Four times the values, as table_codes.hpp has them.
  MOXIE_INLINE static panel::Bytes16 values() noexcept {
    return table_codes::bytes_of({4, 12, 20, 28, 36, 44, 52, 60, -4, -12, -20, -28, -36, -44, -52, -60});
  }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int b) noexcept { return as_u8(src)[106 + b / 2] >> 4 * (b % 2) & 15; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::uint8_t *q = as_u8(src) + 2 + 8 * b, *signs = as_u8(src) + 74 + 4 * b;
    const std::uint32_t ninth = as_u8(src)[66 + b];
    const auto entry = [&](int i) MOXIE_INLINE_CALL { return grid::iq3_s_grid[q[i] | (ninth >> i & 1) << 8]; };
    for (int i = 0; i < 4; ++i) store_iq3_codes(out + 8 * i, entry(2 * i), entry(2 * i + 1), grid::signs[signs[i]]);
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ3_S>(src, dst, n);
  }
};

template <>
struct Panel<IQ3_S> : table_codes::Panel4 {
  using layout = IQ3_XXS;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ3_S>(rows, chunk); }
};

}  // namespace moxie
