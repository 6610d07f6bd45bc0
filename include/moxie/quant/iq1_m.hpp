#pragma once
// IQ1_M: superblocks of 256, in 16 blocks of 16 elements with a 3-bit factor each; 8 elements are one of the 2048 entries of the
// grid of IQ1_S, with a delta of 1/8 or -1/8. 56 bytes:
//
//   0   u8[32]  the lower 8 bits of the grid's entry of 8 elements each
//   32  u8[16]  a nibble for each entry: its upper 3 bits, bit 3 where delta is -1/8; entry 2 i in the low nibble of byte i
//   48  u16[4]  factors 4 i .. 4 i + 3 in bits 0..11, 3 bits each; in bits 12..15 the i-th nibble of d (f16), the lowest first
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
#include <moxie/quant/iq1_s.hpp>
#include <moxie/quant/iq_grids.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/table_codes.hpp>

namespace moxie {

struct IQ1_M {
  static constexpr Dtype dtype = Dtype::IQ1_M;
  static constexpr const char* name = "IQ1_M";
  static constexpr int block = 256, block_bytes = 56, value_bits = 3;

  MOXIE_INLINE static panel::Bytes16 values() noexcept { return iq1_values(); }
  MOXIE_INLINE static std::uint16_t d(const std::byte* src) noexcept {
    int bits = 0;
    for (int i = 0; i < 4; ++i) bits |= (load_u16(src + 48 + 2 * i) >> 12) << 4 * i;
    return static_cast<std::uint16_t>(bits);
  }
  MOXIE_INLINE static int factor(const std::byte* src, int h) noexcept {
    return load_u16(src + 48 + 2 * (h / 4)) >> 3 * (h % 4) & 7;
  }
  MOXIE_INLINE static void codes(const std::byte* src, int b, std::uint8_t* out) noexcept {
    const std::uint32_t high = load_u16(src + 32 + 2 * b);
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t nibble = high >> 4 * i;
      store_iq1_codes(out + 8 * i, grid::iq1_s_grid[as_u8(src)[4 * b + i] | (nibble & 7) << 8], nibble & 8);
    }
  }

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    table_codes::decode<IQ1_M>(src, dst, n);
  }
};

template <>
struct Panel<IQ1_M> : table_codes::Panel2 {
  using layout = IQ1_S;
  MOXIE_INLINE static void pack(const std::byte* const* rows, std::byte* chunk) noexcept { pack_as<IQ1_M>(rows, chunk); }
};

}  // namespace moxie
