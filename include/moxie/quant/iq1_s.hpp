#pragma once
// IQ1_S: superblocks of 256, in 8 blocks of 32 elements with a 3-bit factor and a delta of 1/8 or -1/8 each; 8 elements are one
// of the 2048 entries of a grid of -1, 0, 1. 50 bytes:
//
//   0   f16     d
//   2   u8[32]  the lower 8 bits of the grid's entry of 8 elements each
//   34  u16[8]  of 32 elements: the upper 3 bits of its 4 entries in bits 0..11, the factor in bits 12..14, bit 15: delta is -1/8
//
//   x[i] = (d * (1 + 2 * factor)) * (value[i] + delta)
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

/// The values of IQ1_S and IQ1_M, 8 times those of the formats: codes are an index of the grid, and 4 for a delta of -1/8.
MOXIE_INLINE panel::Bytes16 iq1_values() noexcept {
  return table_codes::bytes_of({-7, 1, 9, 0, -9, -1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}
/// 8 codes from an entry of the grid.
MOXIE_INLINE void store_iq1_codes(std::uint8_t* out, std::uint64_t entry, bool negative_delta) noexcept {
  const std::uint64_t codes = entry | (negative_delta ? 0x0404040404040404u : 0u);
  std::memcpy(out, &codes, 8);
}

struct IQ1_S {
  static constexpr Dtype dtype = Dtype::IQ1_S;
  static constexpr const char* name = "IQ1_S";
  static constexpr int block = 256, block_bytes = 50, value_bits = 3;

  MOXIE_INLINE static panel::Bytes16 values() noexcept { return iq1_values(); }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept { return load_u16(src); }
  MOXIE_INLINE static int factor(const std::byte* src, int h) noexcept { return as_u8(src)[35 + 2 * (h / 2)] >> 4 & 7; }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::uint32_t high = load_u16(src + 34 + 2 * b);
    for (int i = 0; i < 4; ++i)
      store_iq1_codes(out + 8 * i, grid::iq1_s_grid[as_u8(src)[2 + 4 * b + i] | (high >> 3 * i & 7) << 8], high >> 15);
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ1_S>(src, dst, n);
  }
};

template <>
struct Panel<IQ1_S> : table_codes::Panel2 {
  using layout = IQ1_S;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ1_S>(rows, chunk); }
};

}  // namespace moxie
