#pragma once
// Bytes and bits of 16 rows of blocks into the order of panels, 16 bytes at a time: packing is bound by memory, not by this.
//
// Portable vectors of 16 bytes (GCC's and clang's extension), so that each architecture gets its own shuffles from one source.
// Used by kernel headers: nothing here may be emitted out of line.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <moxie/core/floats.hpp>

/// Of a lambda whose calls are always inlined.
#define MOXIE_INLINE_CALL __attribute__((always_inline))

namespace moxie::panel {

using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Words4 = std::uint32_t __attribute__((vector_size(16)));

MOXIE_INLINE Bytes16 load16(const void* p) noexcept {
  Bytes16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
MOXIE_INLINE void store16(void* p, V v) noexcept {
  std::memcpy(p, &v, sizeof v);
}

/// Elements of `size` bytes of a and b in turn, from their low halves or their high ones.
template <int size, bool high>
MOXIE_INLINE Bytes16 interleave(Bytes16 a, Bytes16 b) noexcept {
  return [&]<int... i>(std::integer_sequence<int, i...>) MOXIE_INLINE_CALL {
    return __builtin_shufflevector(a, b, (i / size / 2 * size + i % size + (high ? 8 : 0) + i / size % 2 * 16)...);
  }
  (std::make_integer_sequence<int, 16>{});
}

/// The n vectors as one sequence of elements of `size` bytes, its halves interleaved: an index's highest bit becomes its lowest.
template <int size, int n>
MOXIE_INLINE void interleave_halves(Bytes16 (&v)[n]) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) MOXIE_INLINE_CALL {
    const Bytes16 w[n] = {(i % 2 == 0 ? interleave<size, false>(v[i / 2], v[i / 2 + n / 2])
                                      : interleave<size, true>(v[i / 2], v[i / 2 + n / 2]))...};
    ((v[i] = w[i]), ...);
  }
  (std::make_integer_sequence<int, n>{});
}
/// n vectors, one a row, of elements of `size` bytes: afterwards element 0 of all rows, then element 1 of all rows, ..
template <int size, int n>
MOXIE_INLINE void transpose(Bytes16 (&v)[n]) noexcept {
  static_assert(n == 4 || n == 16);
  interleave_halves<size>(v);
  interleave_halves<size>(v);
  if constexpr (n == 16) {
    interleave_halves<size>(v);
    interleave_halves<size>(v);
  }
}

/// 16 bytes of each of 16 rows: the four of word p of row r go to out + 64 p + 4 r. row(r) gives the 16 bytes.
template <class Row>
MOXIE_INLINE void place_words(Row&& row, std::uint8_t* out) noexcept {
  for (int r = 0; r < 16; r += 4) {
    Bytes16 v[4] = {row(r), row(r + 1), row(r + 2), row(r + 3)};
    transpose<4>(v);
    for (int p = 0; p < 4; ++p) store16(out + 64 * p + 4 * r, v[p]);
  }
}

/// 32 bytes of each of 16 rows, two blocks of 32 codes of 4 bits, as K-quants have them, the first in the low nibbles: each as
/// 256 bytes in the order of quant/panel.hpp's nibbles. rows[r] + at are the 32 bytes.
MOXIE_INLINE void place_nibble_pair(const std::byte* const* rows, int at, std::uint8_t* first, std::uint8_t* second) noexcept {
  for (int r = 0; r < 16; r += 4) {
    Bytes16 low[4], high[4];
    for (int i = 0; i < 4; ++i) {
      const Bytes16 a = load16(rows[r + i] + at), b = load16(rows[r + i] + at + 16);
      low[i] = (a & 15) | (b << 4);
      high[i] = (a >> 4) | (b & 240);
    }
    transpose<4>(low);
    transpose<4>(high);
    for (int p = 0; p < 4; ++p) {
      store16(first + 64 * p + 4 * r, low[p]);
      store16(second + 64 * p + 4 * r, high[p]);
    }
  }
}

/// Bits `mask << shift` of each byte of a change places with bits `mask` of b.
template <int shift, std::uint8_t mask>
MOXIE_INLINE void exchange(Bytes16& a, Bytes16& b) noexcept {
  const Bytes16 t = ((a >> shift) ^ b) & mask;
  b ^= t;
  a ^= t << shift;
}

/// 16 bytes at `at` of each of 16 rows, four fields of 2 bits a byte: field f of the four bytes of word j of row r to bits 2 j
/// and up of the four bytes at out + f * stride + 4 r.
MOXIE_INLINE void place_pairs(const std::byte* const* rows, int at, std::uint8_t* out, int stride) noexcept {
  for (int r = 0; r < 16; r += 4) {
    Bytes16 v[4] = {load16(rows[r] + at), load16(rows[r + 1] + at), load16(rows[r + 2] + at), load16(rows[r + 3] + at)};
    transpose<4>(v);
    for (int j = 0; j < 2; ++j) exchange<4, 0x0f>(v[j], v[j + 2]);
    for (int j = 0; j < 4; j += 2) exchange<2, 0x33>(v[j], v[j + 1]);
    for (int f = 0; f < 4; ++f) store16(out + f * stride + 4 * r, v[f]);
  }
}

/// 32 bytes at `at` of each of 16 rows: bit f of the four bytes of word j of row r to bit j of the four bytes at out + f * stride
/// + 4 r.
MOXIE_INLINE void place_bits(const std::byte* const* rows, int at, std::uint8_t* out, int stride) noexcept {
  for (int r = 0; r < 16; r += 4) {
    Bytes16 low[4], high[4];
    for (int i = 0; i < 4; ++i) {
      low[i] = load16(rows[r + i] + at);
      high[i] = load16(rows[r + i] + at + 16);
    }
    transpose<4>(low);
    transpose<4>(high);
    for (int j = 0; j < 4; ++j) exchange<4, 0x0f>(low[j], high[j]);
    for (int j = 0; j < 2; ++j) {
      exchange<2, 0x33>(low[j], low[j + 2]);
      exchange<2, 0x33>(high[j], high[j + 2]);
    }
    for (int j = 0; j < 4; j += 2) {
      exchange<1, 0x55>(low[j], low[j + 1]);
      exchange<1, 0x55>(high[j], high[j + 1]);
    }
    for (int f = 0; f < 4; ++f) {
      store16(out + f * stride + 4 * r, low[f]);
      store16(out + (f + 4) * stride + 4 * r, high[f]);
    }
  }
}

/// Bits whose index has bit p clear and bit q set change places with those that have them the other way round.
template <int p, int q>
MOXIE_INLINE Words4 swap_index_bits(Words4 x) noexcept {
  constexpr std::uint32_t mask = [] {
    std::uint32_t bits = 0;
    for (unsigned i = 0; i < 32; ++i) bits |= static_cast<std::uint32_t>((i >> p & 1u) == 0 && (i >> q & 1u) == 1) << i;
    return bits;
  }();
  constexpr int shift = (1 << p) - (1 << q);
  const Words4 t = ((x >> shift) ^ x) & mask;
  return x ^ t ^ (t << shift);
}
/// The 32 bits at `at` of each of 16 rows, bit 4 j + i for input 4 j + i: to bit j of byte 4 r + i of out.
MOXIE_INLINE void place_word_bits(const std::byte* const* rows, int at, std::uint8_t* out) noexcept {
  for (int r = 0; r < 16; r += 4) {
    std::uint32_t words[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&words[i], rows[r + i] + at, 4);
    // index bits from j2 j1 j0 i1 i0 to i1 i0 j2 j1 j0
    Words4 x = {words[0], words[1], words[2], words[3]};
    x = swap_index_bits<4, 1>(x);
    x = swap_index_bits<3, 0>(x);
    x = swap_index_bits<2, 1>(x);
    x = swap_index_bits<1, 0>(x);
    store16(out + 4 * r, x);
  }
}

/// The planes (quant/panel.hpp) of a block's codes of `width` bits. code(j, at) gives 16 codes of register j, from byte `at` on.
template <int width, class Code>
MOXIE_INLINE void place_planes(Code&& code, std::uint8_t* out) noexcept {
  for (int at = 0; at < 64; at += 16) {
    Bytes16 c[8];
    for (int j = 0; j < 8; ++j) c[j] = code(j, at);
    const auto plane = [&](int p, Bytes16 x) MOXIE_INLINE_CALL { store16(out + 64 * p + at, x); };
    if constexpr (width == 6) {
      for (int half = 0; half < 2; ++half)
        for (int p = 0; p < 3; ++p) plane(3 * half + p, c[4 * half + p] | (c[4 * half + 3] >> 2 * p) << 6);
    } else if constexpr (width == 5) {
      plane(0, c[0] | c[5] << 5);
      plane(1, c[1] | (c[7] >> 3 & 1) << 5 | (c[5] >> 3) << 6);
      plane(2, c[2] | c[6] << 5);
      plane(3, c[3] | (c[7] >> 4) << 5 | (c[6] >> 3) << 6);
      plane(4, c[4] | c[7] << 5);
    } else {
      static_assert(width == 3);
      plane(0, c[0] | c[1] << 3 | c[6] << 6);
      plane(1, c[2] | c[3] << 3 | (c[6] >> 2) << 6 | (c[7] >> 2) << 7);
      plane(2, c[4] | c[5] << 3 | c[7] << 6);
    }
  }
}
/// 16 codes of register j, from byte `at` on, of what place_nibble_pair() or place_words() made, or place_pairs(), or
/// place_bits() or place_word_bits().
MOXIE_INLINE Bytes16 nibble_codes(const std::uint8_t* nibbles, int j, int at) noexcept {
  return load16(nibbles + 64 * (j % 4) + at) >> (j < 4 ? 0 : 4) & 15;
}
MOXIE_INLINE Bytes16 pair_codes(const std::uint8_t* pairs, int j, int at) noexcept {
  return load16(pairs + 64 * (j / 4) + at) >> 2 * (j % 4) & 3;
}
MOXIE_INLINE Bytes16 bit_codes(const std::uint8_t* bits, int j, int at) noexcept { return load16(bits + at) >> j & 1; }

/// Byte i of 16 bytes of row r to out(i) + r. row(r) gives the 16 bytes.
template <class Row, class Out>
MOXIE_INLINE void place_bytes(Row&& row, Out&& out) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) MOXIE_INLINE_CALL {
    Bytes16 v[16] = {row(i)...};
    transpose<1>(v);
    (store16(out(i), v[i]), ...);
  }
  (std::make_integer_sequence<int, 16>{});
}

/// 16 bytes of each of 16 rows, elements of `size` bytes: the 16 rows' elements 0 beside each other, then elements 1, ..
template <int size, class Row>
MOXIE_INLINE void place_rows(Row&& row, std::byte* out) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) MOXIE_INLINE_CALL {
    Bytes16 v[16] = {row(i)...};
    transpose<size>(v);
    (store16(out + 16 * i, v[i]), ...);
  }
  (std::make_integer_sequence<int, 16>{});
}

/// The two bytes at `at` of each row beside each other.
MOXIE_INLINE void place_halves(const std::byte* const* rows, int at, std::byte* out) noexcept {
  for (int r = 0; r < 16; ++r) std::memcpy(out + 2 * r, rows[r] + at, 2);
}

}  // namespace moxie::panel
