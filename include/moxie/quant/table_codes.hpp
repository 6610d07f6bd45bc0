#pragma once
// What the formats of iq_grids.hpp have in common: superblocks of 256 codes that choose from a table of 8 or 16 values, with one
// scale and 4-bit factors,
//
//   x[i] = (unit * d * (1 + 2 * factor)) * value[code[i]]
//
// where `unit`, a power of two, makes all values integers. All products are exact in f32: 11, 5 and 6 significant bits.
//
// A file has entries of a grid, 8 or 4 elements each. A block of 32 inputs x 16 rows would take 64 or 128 lookups, of
// which a core does two or three a cycle, and more to bring what they find into registers, where the products of a row take 8
// cycles on AVX-512. So panels hold the codes of elements, in 2 to 4 bits each: more than the file has, but from memory one row's
// block takes no longer than one of Q4_K (34 cycles of Zen 4).
//
// A format has
//
//   value_bits             of the indices into `values`: 3 or 4
//   values()               the 8 or 16 values, in [-64, 63], with Panel2 in [-16, 15]
//   d(block)               the scale, as f16
//   factor(block, h)       of [0, 15], of the h-th 16 elements (with 3 bits), or of the h-th 32 (with 4)
//   codes(block, b, out)   32 bytes: the codes of the b-th 32 elements
//
// Used by kernel headers: nothing here may be emitted out of line.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>
#include <moxie/quant/rearrange.hpp>

namespace moxie {

namespace table_codes {

MOXIE_INLINE panel::Bytes16 bytes_of(const std::int8_t (&values)[16]) noexcept { return panel::load16(values); }

/// The unit, and how many elements have one factor, by value_bits.
MOXIE_INLINE constexpr float unit_of(int value_bits) noexcept { return value_bits == 3 ? 0.125f : 0.25f; }
template <class Format>
inline constexpr int run = Format::value_bits == 3 ? 16 : 32;

template <class Format>
MOXIE_INLINE void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
  std::int8_t value[16];
  panel::store16(value, Format::values());
  for (; n > 0; n -= Format::block, src += Format::block_bytes) {
    const float d = unit_of(Format::value_bits) * f16_to_f32(Format::d(src));
    for (int b = 0; b < 8; ++b, dst += 32) {
      std::uint8_t code[32];
      Format::codes(src, b, code);
      for (int i = 0; i < 32; i += run<Format>) {
        const float scale = d * static_cast<float>(1 + 2 * Format::factor(src, (32 * b + i) / run<Format>));
        for (int j = i; j < i + run<Format>; ++j) dst[j] = scale * static_cast<float>(value[code[j]]);
      }
    }
  }
}

/// Codes of block b of 16 rows as the 8 registers of a panel's block, unpacked.
template <class Format>
MOXIE_INLINE void place(const std::byte* const* rows, int b, std::uint8_t* registers) noexcept {
  std::uint8_t code[16][32];
  for (int r = 0; r < 16; ++r) Format::codes(rows[r], b, code[r]);
  for (int half = 0; half < 2; ++half)
    panel::place_words([&](int r) MOXIE_INLINE_CALL { return panel::load16(code[r] + 16 * half); }, registers + 256 * half);
}
/// Factors of runs 2 i and 2 i + 1 of 16 rows, as low and high nibbles, for i of [0, n).
template <class Format>
MOXIE_INLINE void place_factors(const std::byte* const* rows, int n, std::uint8_t* out) noexcept {
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < 16; ++r)
      out[16 * i + r] = static_cast<std::uint8_t>(Format::factor(rows[r], 2 * i) | Format::factor(rows[r], 2 * i + 1) << 4);
}

/// What Panel2 and Panel3 share: one factor for each 16 inputs.
struct PanelOfHalves {
  static constexpr int chunk = 256;
  static constexpr bool has_offset = false, has_halves = true, few_tiles = true;
  static constexpr int values = 32, factors = 64, after_factors = factors + 128;

  template <class Format>
  MOXIE_INLINE static void pack_scales(const std::byte* const* rows, std::uint8_t zero, std::uint8_t* out) noexcept {
    for (int r = 0; r < 16; ++r) store_u16(out + 2 * r, Format::d(rows[r]));
    panel::store16(out + values, Format::values() + zero);
    panel::store16(out + values + 16, panel::Bytes16{});
    place_factors<Format>(rows, 8, out + factors);
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int) noexcept {
    return O::mul(O::set1(unit_of(3)), O::load_f16(p));
  }
  template <class O>
  MOXIE_INLINE static typename O::Ints half(const std::byte* p, int b, int h) noexcept {
    const panel::Bytes16 factor = panel::shifted(panel::load16(p + factors + 16 * b), 4 * h) & 15;
    return O::halves(factor + factor + 1);
  }
};

/// A superblock: d f16[16], the values + 16 u8[16], 16 bytes that fill the cache line (zeros), the factors (of both halves of a
/// block in a byte) u8[8][16], the upper bits of codes, which are the same for 8 inputs (of blocks 2 i and 2 i + 1 in a byte)
/// u8[4][16], then 8 blocks of pairs (128 bytes). 2.5 bits for an element.
struct Panel2 : PanelOfHalves {
  static constexpr Codes codes = Codes::u5;  // values from -16 to 15 around 16
  static constexpr int zero = 16;
  static constexpr int uppers = after_factors, blocks = uppers + 64, block_bytes = 128, chunk_bytes = blocks + 8 * block_bytes;

  template <class Format>
  MOXIE_INLINE static void pack_as(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    pack_scales<Format>(rows, zero, out);
    __builtin_memset(out + uppers, 0, 64);
    for (int b = 0; b < 8; ++b) {
      std::uint8_t registers[512];
      place<Format>(rows, b, registers);
      for (int i = 0; i < block_bytes; i += 16) {
        const std::uint8_t* code = registers + 256 * (i / 64) + i % 64;
        const auto lower = [&](int j) MOXIE_INLINE_CALL { return panel::load16(code + 64 * j) & 3; };
        panel::store16(out + blocks + block_bytes * b + i, lower(0) | lower(1) << 2 | lower(2) << 4 | lower(3) << 6);
      }
      for (int g = 0; g < 4; ++g)
        for (int r = 0; r < 16; ++r)
          out[uppers + 16 * (b / 2) + r] |= static_cast<std::uint8_t>((registers[128 * g + 4 * r] >> 2) << (4 * (b % 2) + g));
    }
  }
  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    const auto upper = O::spread(panel::shifted(panel::load16(p + uppers + 16 * (b / 2)), 4 * (b % 2)));
    return O::lookup(panel::load16(p + values),
                     O::merge(panel::pairs<O, j>(p + blocks + block_bytes * b), O::template bits<j / 2 - 2, 4>(upper)));
  }
};

/// A superblock: d f16[16], the values i8[16], 16 bytes that fill the cache line (zeros), the factors (of both halves of a
/// block in a byte) u8[8][16], then 8 blocks of planes (192 bytes). 3.375 bits for an element.
struct Panel3 : PanelOfHalves {
  static constexpr Codes codes = Codes::s7;
  static constexpr int zero = 0;
  static constexpr int blocks = after_factors, block_bytes = 192, chunk_bytes = blocks + 8 * block_bytes;

  template <class Format>
  MOXIE_INLINE static void pack_as(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    pack_scales<Format>(rows, zero, out);
    for (int b = 0; b < 8; ++b) {
      std::uint8_t registers[512];
      place<Format>(rows, b, registers);
      panel::planes3_of(registers, out + blocks + block_bytes * b);
    }
  }
  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return O::lookup(panel::load16(p + values), panel::planes<O, 3, j>(p + blocks + block_bytes * b));
  }
};

/// A superblock: d f16[16], the values i8[16], 16 bytes that fill the line (zeros), the factors (blocks 2 i and 2 i + 1 in a
/// byte) u8[4][16], then 8 blocks of nibbles (256 bytes). 4.25 bits for an element.
struct Panel4 {
  static constexpr int chunk = 256, chunk_bytes = 2176;
  static constexpr Codes codes = Codes::s7;
  static constexpr int zero = 0;
  static constexpr bool has_offset = false, has_halves = false, few_tiles = true;
  static constexpr int values = 32, factors = 64, blocks = factors + 64, block_bytes = 256;

  template <class Format>
  MOXIE_INLINE static void pack_as(const std::byte* const* rows, std::byte* chunk_data) noexcept {
    std::uint8_t* out = as_u8(chunk_data);
    for (int r = 0; r < 16; ++r) store_u16(out + 2 * r, Format::d(rows[r]));
    panel::store16(out + values, Format::values());
    panel::store16(out + values + 16, panel::Bytes16{});
    place_factors<Format>(rows, 4, out + factors);
    for (int b = 0; b < 8; ++b) {
      std::uint8_t registers[512];
      place<Format>(rows, b, registers);
      for (int i = 0; i < block_bytes; i += 16)
        panel::store16(out + blocks + block_bytes * b + i,
                       panel::load16(registers + i) | panel::load16(registers + block_bytes + i) << 4);
    }
  }
  template <class O, int j>
  MOXIE_INLINE static typename O::Bytes code(const std::byte* p, int b) noexcept {
    return O::lookup(panel::load16(p + values), panel::nibbles<O, j>(p + blocks + block_bytes * b));
  }
  template <class O>
  MOXIE_INLINE static typename O::F scale(const std::byte* p, int b) noexcept {
    const panel::Bytes16 factor = panel::shifted(panel::load16(p + factors + 16 * (b / 2)), 4 * (b % 2)) & 15;
    return O::mul(O::mul(O::set1(unit_of(4)), O::load_f16(p)), O::halves_float(O::halves(factor + factor + 1)));
  }
};

}  // namespace table_codes
}  // namespace moxie
