#pragma once
// Keys and values of a page of the KV cache as 16-bit codes, for attention_int16.hpp.
//
//   codes of keys     words [blocks of 32 dimensions][16 pairs][64 keys], and f32 scales [blocks][64]
//   codes of values   words [panels of 64 dimensions][32 pairs of positions][64 dimensions]; of each position the exponent e
//                     of its codes' unit 2^e, and 8191 / 2^e
//
// That is how pages of int16 hold them: only their scales are converted. A pair is of numbers i and i + 16 of 32, the first in
// the low half of a word. Pages of int8 and latent rows become codes for each tile. Elements that are no finite numbers make the
// scale, or e, NaN; their codes are then of no use, but harmless.

#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/attention_tile.hpp>
#include <moxie/kernels/pair_ops.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/unroll.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels::int16 {

inline constexpr float largest_code = attention_int16_one;  // of queries and probabilities
inline constexpr std::int32_t nan_bits = 0x7fc00000;        // of a scale

template <class A>
inline constexpr std::int64_t lanes = static_cast<std::int64_t>(Floats<A>::size);

/// Memory that is read next, fetched into the second-level cache at a steady pace, so that a page is there just when the one
/// before is computed: in bursts, some of it is late or not fetched at all.
struct Ahead {
  const std::byte *at, *end;
  std::int64_t rate;  ///< sixteenths of a byte for each product of vectors

  MOXIE_INLINE std::int64_t bytes_due(std::int64_t products) const noexcept { return rate * products / 16; }
  MOXIE_INLINE void fetch(std::int64_t bytes) noexcept {
    const std::byte* next = at;
    at = end - at > bytes ? at + bytes : end;
    for (; next < at; next += 64) __builtin_prefetch(next, 0, 2);
  }
};

/// x * factor rounded to an integer, in the low half of each word: 1.5 * 2^23 has an ulp of 1.
template <class A>
MOXIE_INLINE Words<A> code(const Floats<A>& x, const Floats<A>& factor) noexcept {
  return xsimd::bitwise_cast<Words<A>>(madd(x, factor, Floats<A>(12582912.0f)));
}
template <class A>
MOXIE_INLINE Words<A> pair(const Words<A>& low, const Words<A>& high) noexcept {
  return PairOps<A>::join(low, high);
}

/// n bf16 (a multiple of 16) as f32.
template <class A>
MOXIE_INLINE void load_scales(const std::byte* scales, std::int64_t n, float* out) noexcept {
  for (std::int64_t i = 0; i < n; i += lanes<A>)
    load_bf16<A>(reinterpret_cast<const std::uint16_t*>(scales) + i).store_aligned(out + i);
}
MOXIE_INLINE float scale_at(const std::byte* scales, std::int64_t i) noexcept {
  std::uint16_t bits;
  __builtin_memcpy(&bits, scales + 2 * i, 2);
  return bf16_to_f32(bits);
}

/// Of each of 64 positions, from the unit 2^e of its values: e, or NaN if the unit is, and 8191 / 2^e, finite whatever memory
/// that nobody has written holds.
template <class A>
void value_factors(const float* units, float* exponents, float* inverses) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  for (std::int64_t j = 0; j < kv_page; j += lanes<A>) {
    const F unit = F::load_aligned(units + j);
    const W exponent = (xsimd::bitwise_cast<W>(unit) >> 23) - W(127), bounded = xsimd::max(xsimd::min(exponent, W(117)), W(-100));
    (xsimd::to_float(exponent) + (unit - unit)).store_aligned(exponents + j);
    (xsimd::bitwise_cast<F>((W(126) - bounded) << 23) * F(2.0f * largest_code)).store_aligned(inverses + j);
  }
}

/// Keys of an int8 page, [k_dim][64]; codes and scales stay.
template <class A>
void code_keys(const std::byte* keys, std::int64_t k_dim, std::int32_t* codes, Ahead& ahead) noexcept {
  using W = Words<A>;
  for (std::int64_t b = 0; b < kv_blocks(k_dim); ++b) {
    const std::int64_t n = k_dim - b * kv_block < kv_block ? k_dim - b * kv_block : kv_block;
    for (std::int64_t i = 0; i < kv_pairs; ++i) {
      ahead.fetch(64);
      const auto* from = reinterpret_cast<const std::int8_t*>(keys) + (b * kv_block + i) * kv_page;
      std::int32_t* to = codes + (b * kv_pairs + i) * kv_page;
      for (std::int64_t j = 0; j < kv_page; j += lanes<A>)
        pair<A>(i < n ? PairOps<A>::load_i8(from + j) : W(0),
                i + kv_pairs < n ? PairOps<A>::load_i8(from + kv_pairs * kv_page + j) : W(0))
            .store_aligned(to + j);
    }
  }
}

/// Rows of a page that become codes: of int8, its values or latent rows, or latent ones of int16.
template <class A, KvType type>
struct Rows {
  static_assert(type == KvType::int8 || type == KvType::int16);
  const std::byte* data;
  std::int64_t row_bytes;
  const std::byte* scales;  // bf16 [64][blocks]
  std::int64_t blocks;

  MOXIE_INLINE float scale(std::int64_t r, std::int64_t b) const noexcept { return scale_at(scales, r * blocks + b); }
  /// Words of block b of row r, from pair i on.
  MOXIE_INLINE Words<A> pairs(std::int64_t r, std::int64_t b, std::int64_t i) const noexcept {
    const std::byte* row = data + r * row_bytes;
    if constexpr (type == KvType::int16) {
      return Words<A>::load_unaligned(reinterpret_cast<const std::int32_t*>(row) + b * kv_pairs + i);
    } else {
      const auto* codes = reinterpret_cast<const std::int8_t*>(row) + b * kv_block + i;
      const bool whole = b * kv_block + kv_pairs < row_bytes;  // rows are padded to 16
      return pair<A>(PairOps<A>::load_i8(codes), whole ? PairOps<A>::load_i8(codes + kv_pairs) : Words<A>(0));
    }
  }
};

/// Keys that lie in rows; codes and scales stay.
template <class A, KvType type>
void code_key_rows(const Rows<A, type>& rows, std::int32_t* codes, float* scales) noexcept {
  constexpr std::int64_t L = lanes<A>;
  for (std::int64_t j = 0; j < kv_page; j += L)
    for (std::int64_t b = 0; b < rows.blocks; ++b) {
      for (std::int64_t r = 0; r < L; ++r) scales[b * kv_page + j + r] = rows.scale(j + r, b);
      for (std::int64_t i = 0; i < kv_pairs; i += L) {
        Words<A> x[L];
        MOXIE_UNROLL
        for (int r = 0; r < static_cast<int>(L); ++r) x[r] = rows.pairs(j + r, b, i);
        PairOps<A>::transpose(x);
        MOXIE_UNROLL
        for (int p = 0; p < static_cast<int>(L); ++p) x[p].store_aligned(codes + (b * kv_pairs + i + p) * kv_page + j);
      }
    }
}

/// Values: the first `columns` of rows, a multiple of 16. The unit of a row's codes gives a bound of its largest element 12 bits.
template <class A, KvType type>
void code_values(const Rows<A, type>& rows, std::int64_t columns, std::int32_t* codes, float* units, Ahead& ahead) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  constexpr float largest = type == KvType::int8 ? 127.0f : 8191.0f;  // but for one that was rounded up to 2^13
  const std::int64_t used = kv_blocks(columns);
  for (std::int64_t r = 0; r < kv_page; ++r) {
    float most = kv_value_least;
    for (std::int64_t b = 0; b < used; ++b) {
      const float bound = largest * rows.scale(r, b);
      most = bound <= most ? most : bound;  // NaN if the last one is
      if (!(most < kv_value_bound)) break;
    }
    const std::int32_t exponent = __builtin_bit_cast(std::int32_t, most) & 0x7f800000;
    units[r] = most < kv_value_bound ? __builtin_bit_cast(float, exponent) * 0x1p-11f : __builtin_bit_cast(float, nan_bits);
  }
  static_assert(kv_value_bits == 12);
  for (std::int64_t i = 0; i < kv_page_pairs; ++i) {
    const std::int64_t j = i / kv_pairs * kv_block + i % kv_pairs;
    const float inverse = 1.0f / units[j], inverse2 = 1.0f / units[j + kv_pairs];
    for (std::int64_t b = 0; b < used; ++b) {
      const F factor(rows.scale(j, b) * inverse), factor2(rows.scale(j + kv_pairs, b) * inverse2);
      for (std::int64_t k = 0; k < kv_pairs; k += lanes<A>) {
        ahead.fetch(64);
        const W x = rows.pairs(j, b, k), y = rows.pairs(j + kv_pairs, b, k);
        const std::int64_t d = b * kv_block + k;
        const auto store = [&](std::int64_t at, const W& low, const W& high) MOXIE_INLINE_LAMBDA {
          pair<A>(code<A>(xsimd::to_float(low), factor), code<A>(xsimd::to_float(high), factor2))
              .store_aligned(codes + (at / kv_panel * kv_page_pairs + i) * kv_panel + at % kv_panel);
        };
        store(d, (x << 16) >> 16, (y << 16) >> 16);
        if (b * kv_block + kv_pairs < columns) store(d + kv_pairs, x >> 16, y >> 16);
      }
    }
  }
}

}  // namespace moxie::kernels::int16
MOXIE_KERNELS_END
