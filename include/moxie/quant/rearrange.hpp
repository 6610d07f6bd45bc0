#pragma once
// Bytes and bits of 16 rows of blocks into the order of panels, 16 bytes at a time: packing is bound by memory, not by this.
//
// Portable vectors of 16 bytes (GCC's and clang's extension), so that each architecture gets its own shuffles from one source.
// Used by kernel headers: nothing here may be emitted out of line.

#include <bit>
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

using Shorts8 = std::uint16_t __attribute__((vector_size(16)));

/// Bytes shifted right by words, so that the high bits of each are another's.
MOXIE_INLINE Bytes16 shifted(Bytes16 x, int bits) noexcept { return std::bit_cast<Bytes16>(std::bit_cast<Shorts8>(x) >> bits); }
/// Bits `mask` of each byte moved down by `down` bits, or up where that is negative.
template <int down, std::uint8_t mask>
MOXIE_INLINE Bytes16 moved(Bytes16 x) noexcept {
  if constexpr (down < 0)
    return std::bit_cast<Bytes16>(std::bit_cast<Shorts8>(x) << -down) & static_cast<std::uint8_t>(mask << -down);
  else
    return shifted(x, down) & static_cast<std::uint8_t>(mask >> down);
}

// A block's planes (quant/panel.hpp) from nibbles, pairs and bits as place_nibble_pair() or place_words(), place_pairs(), and
// place_bits() or place_word_bits() make them.
MOXIE_INLINE void place_planes6(const std::uint8_t* nibbles, const std::uint8_t* pairs, std::uint8_t* out) noexcept {
  for (int at = 0; at < 64; at += 16) {
    const auto half = [&]<int n>(std::integral_constant<int, n>) MOXIE_INLINE_CALL {  // n: where its registers' nibbles lie
      const auto nibble = [&](int j) MOXIE_INLINE_CALL { return moved<n, 15 << n>(load16(nibbles + 64 * j + at)); };
      const Bytes16 high = load16(pairs + 16 * n + at), last = nibble(3) | moved<2, 192>(high);
      std::uint8_t* plane = out + 48 * n + at;
      store16(plane, nibble(0) | moved<-4, 3>(high) | moved<-6, 3>(last));
      store16(plane + 64, nibble(1) | moved<-2, 12>(high) | moved<-4, 12>(last));
      store16(plane + 128, nibble(2) | moved<0, 48>(high) | moved<-2, 48>(last));
    };
    half(std::integral_constant<int, 0>{});
    half(std::integral_constant<int, 4>{});
  }
}
MOXIE_INLINE void place_planes5(const std::uint8_t* nibbles, const std::uint8_t* bits, std::uint8_t* out) noexcept {
  for (int at = 0; at < 64; at += 16, nibbles += 16, out += 16) {
    const Bytes16 fifth = load16(bits + at), n0 = load16(nibbles), n1 = load16(nibbles + 64), n2 = load16(nibbles + 128),
                  n3 = load16(nibbles + 192);
    const Bytes16 c5 = moved<4, 240>(n1) | moved<1, 32>(fifth), c6 = moved<4, 240>(n2) | moved<2, 64>(fifth),
                  c7 = moved<4, 240>(n3) | moved<3, 128>(fifth);
    store16(out, moved<0, 15>(n0) | moved<-4, 1>(fifth) | moved<-5, 7>(c5));
    store16(out + 64, moved<0, 15>(n1) | moved<-3, 2>(fifth) | moved<-2, 8>(c7) | moved<-3, 24>(c5));
    store16(out + 128, moved<0, 15>(n2) | moved<-2, 4>(fifth) | moved<-5, 7>(c6));
    store16(out + 192, moved<0, 15>(n3) | moved<-1, 8>(fifth) | moved<-1, 16>(c7) | moved<-3, 24>(c6));
    store16(out + 256, moved<4, 240>(n0) | moved<0, 16>(fifth) | moved<-5, 7>(c7));
  }
}
MOXIE_INLINE void place_planes3(const std::uint8_t* pairs, const std::uint8_t* bits, std::uint8_t* out) noexcept {
  for (int at = 0; at < 64; at += 16, out += 16) {
    const Bytes16 a = load16(pairs + at), b = load16(pairs + 64 + at), third = load16(bits + at);
    store16(out, moved<0, 3>(a) | moved<-2, 1>(third) | moved<-1, 12>(a) | moved<-4, 2>(third) | moved<-2, 48>(b));
    store16(out + 64, moved<4, 48>(a) | moved<0, 196>(third) | moved<3, 192>(a) | moved<-2, 8>(third));
    store16(out + 128, moved<0, 3>(b) | moved<2, 16>(third) | moved<-1, 12>(b) | moved<0, 32>(third) | moved<0, 192>(b));
  }
}

/// The planes of 8 registers of 64 bytes, each a code of 3 bits.
MOXIE_INLINE void planes3_of(const std::uint8_t* registers, std::uint8_t* out) noexcept {
  for (int at = 0; at < 64; at += 16, registers += 16, out += 16) {
    const auto code = [&](int j) MOXIE_INLINE_CALL { return load16(registers + 64 * j); };
    const Bytes16 c6 = code(6), c7 = code(7);
    store16(out, code(0) | code(1) << 3 | c6 << 6);
    store16(out + 64, code(2) | code(3) << 3 | (c6 & 4) << 4 | (c7 & 4) << 5);
    store16(out + 128, code(4) | code(5) << 3 | c7 << 6);
  }
}

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
