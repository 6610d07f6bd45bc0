#pragma once
// IQ2_S: superblocks of 256, in 16 blocks of 16 elements with a 4-bit factor each; 8 elements are one of the 1024 entries of a
// grid of the values 8, 25, 43, with any signs. 82 bytes:
//
//   0   f16     d
//   2   u8[32]  the lower 8 bits of the grid's entry of 8 elements each
//   34  u8[32]  their signs, that of element i in bit i (set: negative)
//   66  u8[8]   the upper 2 bits of entries 4 i .. 4 i + 3 from bit 0 up
//   74  u8[8]   factors 2 i (low nibble) and 2 i + 1 (high nibble)
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

struct IQ2_S {
  static constexpr Dtype dtype = Dtype::IQ2_S;
  static constexpr const char* name = "IQ2_S";
  static constexpr int block = 256, block_bytes = 82, value_bits = 3;

  MOXIE_INLINE static panel::Bytes16 values() noexcept { return iq2_values(); }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int h) noexcept { return as_u8(src)[74 + h / 2] >> 4 * (h % 2) & 15; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::uint8_t* q = as_u8(src) + 2 + 4 * b;
    const std::uint32_t high = as_u8(src)[66 + b];
    for (int i = 0; i < 4; ++i)
      store_iq2_codes(out + 8 * i, grid::iq2_s_grid[q[i] | (high >> 2 * i & 3) << 8], grid::signs[q[32 + i]]);
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ2_S>(src, dst, n);
  }
};

template <>
struct Panel<IQ2_S> : table_codes::Panel3 {
  using layout = IQ2_XXS;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ2_S>(rows, chunk); }
};

}  // namespace moxie
