#pragma once
// What panels of all formats have in common. A panel holds 16 rows of a weight matrix so that 16 outputs are computed at
// once; a format's panel lies beside its block in quant/<format>.hpp, as `struct Panel<Format>`:
//
//   chunk, chunk_bytes       inputs and bytes of one piece of a panel; pieces follow each other from low k to high k, and kernels
//                            read them in the order of their bytes, so that memory sees one stream
//   pack(rows, chunk)        fills a piece from 16 blocks of the file
//
// of formats that multiply int8 activations also (O: the primitives of an architecture, kernels/ops.hpp)
//   codes, zero, has_offset, has_halves                 w = scale * (code - zero) + offset; see Codes. With halves, scale and
//                                                       offset have an integer factor for each 16 inputs
//   code<O, j>(chunk, b), scale<O>, offset<O>, half<O>, half_offset<O>      parts of block b of 32 inputs
//
// and of float formats
//   load<O>(chunk, k)        16 floats: input k of the 16 rows
//
// Codes of a block are 8 registers of 64 bytes: register j, byte 4 r + i is input 4 j + i of row r, as vpdpbusd wants it.
// Used by kernel headers: nothing here may be emitted out of line.

#include <bit>
#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/rearrange.hpp>

namespace moxie {

/// The range of codes: unsigned of 2 to 6 bits, or signed bytes.
enum class Codes { u2, u3, u4, u5, u6, s8 };

template <class Format>
struct Panel;

namespace panel {

inline constexpr int rows = 16;

// Layouts of packed bits, as the functions of quant/rearrange.hpp make them and those below read them:
//
//   nibbles     256 bytes: byte i of register p in the low nibble of byte 64 p + i, of register p + 4 in the high one
//   fifth bits  64 bytes: bit 4 of byte i of register j in bit j of byte i
//   pairs       128 bytes: two bits of byte i of register j in bits 2 (j % 4) and up of byte 64 (j / 4) + i

template <class O, int j>
MOXIE_INLINE typename O::Bytes nibbles(const std::byte* packed) noexcept {
  return O::template bits<(j < 4 ? 0 : 4), 15>(O::load_bytes(packed + 64 * (j % 4)));
}
template <class O, int j>
MOXIE_INLINE typename O::Bytes with_fifth_bits(const std::byte* packed, const std::byte* fifth) noexcept {
  return O::merge(nibbles<O, j>(packed), O::template bits<j - 4, 16>(O::load_bytes(fifth)));
}
template <class O, int j>
MOXIE_INLINE typename O::Bytes pairs(const std::byte* packed) noexcept {
  return O::template bits<2 * (j % 4), 3>(O::load_bytes(packed + 64 * (j / 4)));
}
/// Pairs as bits 4 and 5.
template <class O, int j>
MOXIE_INLINE typename O::Bytes with_high_pairs(const std::byte* packed, const std::byte* high) noexcept {
  return O::merge(nibbles<O, j>(packed), O::template bits<2 * (j % 4) - 4, 48>(O::load_bytes(high + 64 * (j / 4))));
}

/// Bytes shifted right by words, so that the high bits of each are another's.
MOXIE_INLINE Bytes16 shifted(Bytes16 x, int bits) noexcept {
  using Shorts8 = std::uint16_t __attribute__((vector_size(16)));
  return std::bit_cast<Bytes16>(std::bit_cast<Shorts8>(x) >> bits);
}

}  // namespace panel
}  // namespace moxie
