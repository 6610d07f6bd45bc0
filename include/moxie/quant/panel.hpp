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
//   float_halves                                        optional, true: the factors are floats of up to 4 significant bits
//   code<O, j>(chunk, b), scale<O>, offset<O>, half<O>, half_offset<O>      parts of block b of 32 inputs
//   few_tiles                optional, true: kernels have fewer shapes of tiles, at most 4 rows, and so take less to compile
//   layout                   optional: a format with panels of the same form, whose kernels read these too
//
// and of float formats
//   load<O>(chunk, k)        16 floats: input k of the 16 rows
//
// Codes of a block are 8 registers of 64 bytes: register j, byte 4 r + i is input 4 j + i of row r, as vpdpbusd wants it.
// Used by kernel headers: nothing here may be emitted out of line.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/rearrange.hpp>

namespace moxie {

/// The range of codes: unsigned of 2 to 6 bits, or signed bytes of 7 or 8 bits.
enum class Codes { u2, u3, u4, u5, u6, s7, s8 };
constexpr bool is_signed(Codes codes) noexcept { return codes == Codes::s7 || codes == Codes::s8; }

template <class Format>
struct Panel;

/// The format whose kernels read a format's panels: Panel<Format>::layout, or itself.
template <class Format>
struct LayoutOf {
  using type = Format;
};
template <class Format>
requires requires { typename Panel<Format>::layout; }
struct LayoutOf<Format> {
  using type = typename Panel<Format>::layout;
};

template <class Panel>
inline constexpr bool has_float_halves = [] {
  if constexpr (requires { Panel::float_halves; }) return Panel::float_halves;
  return false;
}();
template <class Panel>
inline constexpr bool has_few_tiles = [] {
  if constexpr (requires { Panel::few_tiles; }) return Panel::few_tiles;
  return false;
}();

namespace panel {

inline constexpr int rows = 16;

// Layouts of packed bits, as the functions of quant/rearrange.hpp make them and those below read them:
//
//   nibbles     256 bytes: byte i of register p in the low nibble of byte 64 p + i, of register p + 4 in the high one
//   pairs       128 bytes: two bits of byte i of register j in bits 2 (j % 4) and up of byte 64 (j / 4) + i
//   planes      64 bytes for each bit of a code: a plane's bytes have whole codes of one register, two of 3 bits, from bit 0 up,
//               and above them a part of a code of one of the last registers. That takes 18 instructions of AVX-512 for a block
//               of 6 bits, 19 of 5 and 17 of 3, where nibbles or pairs with their other bits beside them take 26, 27 and 29.

template <class O, int j>
MOXIE_INLINE typename O::Bytes nibbles(const std::byte* packed) noexcept {
  return O::template bits<(j < 4 ? 0 : 4), 15>(O::load_bytes(packed + 64 * (j % 4)));
}
template <class O, int j>
MOXIE_INLINE typename O::Bytes pairs(const std::byte* packed) noexcept {
  return O::template bits<2 * (j % 4), 3>(O::load_bytes(packed + 64 * (j / 4)));
}
template <class O, int plane, int shift, int mask>
MOXIE_INLINE typename O::Bytes part_of_plane(const std::byte* packed) noexcept {
  return O::template bits<shift, mask>(O::load_bytes(packed + 64 * plane));
}
/// Register j of the planes of codes of 3, 5 or 6 bits.
template <class O, int width, int j>
MOXIE_INLINE typename O::Bytes planes(const std::byte* p) noexcept {
  static_assert(width == 3 || width == 5 || width == 6);
  if constexpr (width == 6 && j % 4 < 3)
    return part_of_plane<O, j / 4 * 3 + j % 4, 0, 63>(p);
  else if constexpr (width == 6)
    return O::merge(O::merge(part_of_plane<O, j / 4 * 3, 6, 3>(p), part_of_plane<O, j / 4 * 3 + 1, 4, 12>(p)),
                    part_of_plane<O, j / 4 * 3 + 2, 2, 48>(p));
  else if constexpr (width == 5 && j < 5)
    return part_of_plane<O, j, 0, 31>(p);
  else if constexpr (width == 5 && j < 7)
    return O::merge(part_of_plane<O, 2 * j - 10, 5, 7>(p), part_of_plane<O, 2 * j - 9, 3, 24>(p));
  else if constexpr (width == 5)
    return O::merge(O::merge(part_of_plane<O, 4, 5, 7>(p), part_of_plane<O, 1, 2, 8>(p)), part_of_plane<O, 3, 1, 16>(p));
  else if constexpr (j < 6)
    return part_of_plane<O, j / 2, 3 * (j % 2), 7>(p);
  else
    return O::merge(part_of_plane<O, 2 * j - 12, 6, 3>(p), part_of_plane<O, 1, j - 2, 4>(p));
}

}  // namespace panel
}  // namespace moxie
