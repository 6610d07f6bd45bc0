#pragma once
// Keys and values of a page of the KV cache as 16-bit codes, for attention_int16.hpp.
//
//   codes of keys     words [blocks of 32 dimensions][16 pairs][64 keys], and f32 scales [blocks][64]
//   codes of values   words [panels of 64 dimensions][32 pairs of positions][64 dimensions]; of each position the exponent e
//                     of its codes' unit 2^e, and 8191 / 2^e
//
// A pair is of elements i and i + L, L lanes of a vector, so that pairs are made of whole vectors; every 2 L elements hold L.
// The unit is the power of two that gives the largest element of a block of keys 13 bits, of a row of values 12 bits. Elements
// that are no finite numbers make the scale, or 8191 / 2^e, NaN; their codes are then of no use, but harmless.

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

inline constexpr int key_bits = 13, value_bits = 12;
inline constexpr std::int64_t pairs_of_block = kv_block / 2, pairs_of_page = kv_page / 2, panel = 64;
inline constexpr float largest_code = attention_int16_one;  // of queries and probabilities
inline constexpr std::int32_t nan_bits = 0x7fc00000;

template <class A>
inline constexpr std::int64_t lanes = static_cast<std::int64_t>(Floats<A>::size);

/// The first element of pair i; the second is lanes<A> later.
template <class A>
MOXIE_INLINE constexpr std::int64_t first_of_pair(std::int64_t i) noexcept {
  return i / lanes<A> * 2 * lanes<A> + i % lanes<A>;
}
/// Memory that is read next, fetched into the second-level cache at a steady pace, a line for each step of the products and for
/// every other pair of vectors that becomes codes: a page is read while the one before is computed.
struct Ahead {
  const std::byte *at, *end;

  /// Where the next n steps begin; past the end always there.
  MOXIE_INLINE const std::byte* take(std::int64_t n) noexcept {
    const std::byte* first = at;
    at = end - at > n * 64 ? at + n * 64 : end;
    return first;
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

template <KvType type>
struct TypeConstant {
  static constexpr KvType value = type;
};

/// Elements of pages of one type. `Raw` holds the bits of |element| of the two 16-bit types, which are ordered as their values.
template <class A, KvType type>
struct Elements {
  static constexpr int bytes = 2, mantissa = type == KvType::f16 ? 10 : 7, bias = type == KvType::f16 ? 15 : 127;
  static constexpr std::int32_t not_finite = (type == KvType::f16 ? 31 : 255) << mantissa;

  MOXIE_INLINE static Floats<A> load(const std::byte* p, std::int64_t i) noexcept {
    const auto* raw = reinterpret_cast<const std::uint16_t*>(p) + i;
    if constexpr (type == KvType::f16)
      return load_f16<A>(raw);
    else
      return load_bf16<A>(raw);
  }
  /// |2 L elements| from element i.
  MOXIE_INLINE static Words<A> load_raw(const std::byte* p, std::int64_t i) noexcept {
    return Words<A>::load_unaligned(reinterpret_cast<const std::int32_t*>(p + 2 * i)) & Words<A>(0x7fff7fff);
  }
  /// The larger of the halves of each word.
  MOXIE_INLINE static Words<A> fold(const Words<A>& raw) noexcept {
    return PairOps<A>::max_u16(raw, raw >> 16) & Words<A>(0xffff);
  }
};

/// From the bits of the largest element: what elements are multiplied by to get codes of `bits` bits, 2^(bits - 1 - E) with
/// 2^E <= largest < 2^(E + 1), and the exponent E - bits + 1 of the codes' unit. (f16 subnormals: E = -15 is a bound.) E is
/// at least -60: smaller elements lose bits.
template <class A, int bits, class Type>
MOXIE_INLINE Words<A> unit_exponent(const Words<A>& raw) noexcept {
  return xsimd::max((raw >> Type::mantissa) - Words<A>(Type::bias), Words<A>(-60)) - Words<A>(bits - 1);
}
template <class A>
MOXIE_INLINE Floats<A> power_of_two(const Words<A>& exponent) noexcept {
  return xsimd::bitwise_cast<Floats<A>>((exponent + Words<A>(127)) << 23);
}
/// x, or a NaN. (xsimd 8.1's select of integers does not compile for AVX-512 without optimization.)
template <class A, class Type>
MOXIE_INLINE Floats<A> nan_where_not_finite(const Words<A>& raw, const Floats<A>& x) noexcept {
  const Words<A> not_finite = ~((raw - Words<A>(Type::not_finite)) >> 31);  // all bits, or none
  return xsimd::bitwise_cast<Floats<A>>(xsimd::bitwise_cast<Words<A>>(x) | (not_finite & Words<A>(nan_bits)));
}
MOXIE_INLINE std::uint16_t scale_bits(const std::byte* scales, std::int64_t i) noexcept {
  std::uint16_t bits;
  __builtin_memcpy(&bits, scales + 2 * i, 2);
  return bits;
}

/// Keys [k_dim][64].
template <class A, KvType type>
void code_keys(const std::byte* keys, std::int64_t k_dim, std::int32_t* codes, float* scales, Ahead& ahead) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  using Type = Elements<A, type>;
  constexpr std::int64_t L = lanes<A>;
  for (std::int64_t b = 0; b < kv_blocks(k_dim); ++b) {
    const std::int64_t n = k_dim - b * kv_block < kv_block ? k_dim - b * kv_block : kv_block;
    alignas(64) std::int32_t largest[kv_page];
    if constexpr (type != KvType::int8) {
      const std::byte* block = keys + b * kv_block * kv_page * 2;
      alignas(64) std::uint16_t raw[kv_page];
      constexpr int vectors = static_cast<int>(kv_page / (2 * L));
      W most[vectors];
      unroll<vectors>([&](int v) MOXIE_INLINE_LAMBDA { most[v] = W(0); });
      for (std::int64_t d = 0; d < n; ++d)
        unroll<vectors>([&](int v) MOXIE_INLINE_LAMBDA {
          most[v] = PairOps<A>::max_u16(most[v], Type::load_raw(block, d * kv_page + v * 2 * L));
        });
      unroll<vectors>([&](int v)
                          MOXIE_INLINE_LAMBDA { most[v].store_aligned(reinterpret_cast<std::int32_t*>(raw + v * 2 * L)); });
      for (std::int64_t j = 0; j < kv_page; ++j) largest[j] = raw[j];
    }
    for (std::int64_t v = 0; v < kv_page; v += L) {
      F factor(1.0f);
      if constexpr (type == KvType::int8) {
        load_bf16<A>(reinterpret_cast<const std::uint16_t*>(keys + k_dim * kv_page) + b * kv_page + v)
            .store_aligned(scales + b * kv_page + v);
      } else {
        const W raw = W::load_aligned(largest + v), unit = unit_exponent<A, key_bits, Type>(raw);
        factor = power_of_two<A>(-unit);
        nan_where_not_finite<A, Type>(raw, power_of_two<A>(unit)).store_aligned(scales + b * kv_page + v);
      }
      const auto element = [&](std::int64_t d) MOXIE_INLINE_LAMBDA {
        const std::int64_t i = (b * kv_block + d) * kv_page + v;
        if constexpr (type == KvType::int8)
          return PairOps<A>::load_i8(reinterpret_cast<const std::int8_t*>(keys) + i);
        else
          return code<A>(Type::load(keys, i), factor);
      };
      std::int32_t* to = codes + b * pairs_of_block * kv_page + v;
      constexpr std::int64_t steps = 4;
      if (n == kv_block)
        for (std::int64_t i = 0; i < pairs_of_block; i += steps) {
          const std::byte* next = ahead.take(steps / 2);
          unroll<steps>([&](int s) MOXIE_INLINE_LAMBDA {
            if (s % 2 == 0) __builtin_prefetch(next + 32 * s, 0, 2);
            const std::int64_t d = first_of_pair<A>(i) + s;
            pair<A>(element(d), element(d + L)).store_aligned(to + (i + s) * kv_page);
          });
        }
      else
        for (std::int64_t i = 0; i < pairs_of_block; ++i) {
          const std::int64_t d = first_of_pair<A>(i);
          pair<A>(d < n ? element(d) : W(0), d + L < n ? element(d + L) : W(0)).store_aligned(to + i * kv_page);
        }
    }
  }
}

/// The bits of the largest of |elements [begin, end)| of L rows, one each in the lanes; begin and end are multiples of 16.
template <class A, KvType type>
MOXIE_INLINE Words<A> largest_of_rows(const std::byte* rows, std::int64_t stride, std::int64_t begin, std::int64_t end) noexcept {
  using W = Words<A>;
  using Type = Elements<A, type>;
  constexpr std::int64_t L = lanes<A>;
  W x[L];
  unroll<static_cast<int>(L)>([&](int j) MOXIE_INLINE_LAMBDA { x[j] = W(0); });
  std::int64_t d = begin;
  for (; d + 2 * L <= end; d += 2 * L)
    unroll<static_cast<int>(L)>(
        [&](int j) MOXIE_INLINE_LAMBDA { x[j] = PairOps<A>::max_u16(x[j], Type::load_raw(rows + j * stride * 2, d)); });
  if (d < end)  // 16 elements that are half a vector
    unroll<static_cast<int>(L)>([&](int j) MOXIE_INLINE_LAMBDA {
      alignas(64) std::int32_t rest[L] = {};
      __builtin_memcpy(rest, rows + (j * stride + d) * 2, 32);
      x[j] = PairOps<A>::max_u16(x[j], W::load_aligned(rest) & W(0x7fff7fff));
    });
  return Type::fold(PairOps<A>::reduce(x, [](const W& a, const W& b) MOXIE_INLINE_LAMBDA { return PairOps<A>::max_u16(a, b); }));
}

/// Values, rows of `stride` elements and of them the first `columns`, a multiple of 16; scales [64][blocks] of int8 rows.
template <class A, KvType type>
void code_values(const std::byte* rows, std::int64_t stride, std::int64_t columns, const std::byte* scales, std::int64_t blocks,
                 std::int32_t* codes, float* exponents, float* inverses, Ahead& ahead) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  using Type = Elements<A, type == KvType::int8 ? KvType::bf16 : type>;
  constexpr std::int64_t L = lanes<A>;
  alignas(64) float factors[kv_page];
  for (std::int64_t j = 0; j < kv_page; j += L) {
    W raw;
    if constexpr (type == KvType::int8) {  // 127 times the largest scale is a bound
      alignas(64) std::int32_t bits[L];
      for (std::int64_t r = 0; r < L; ++r) {
        std::uint16_t most = 0;
        for (std::int64_t b = 0; b < kv_blocks(columns); ++b) {
          const std::uint16_t scale = scale_bits(scales, (j + r) * blocks + b);
          most = scale > most ? scale : most;
        }
        bits[r] = __builtin_bit_cast(std::int32_t, 127.0f * bf16_to_f32(most)) >> 16;
      }
      raw = W::load_aligned(bits);
    } else {
      raw = largest_of_rows<A, type>(rows + j * stride * 2, stride, 0, columns);
    }
    const W unit = unit_exponent<A, value_bits, Type>(raw);
    const F factor = power_of_two<A>(-unit);
    factor.store_aligned(factors + j);
    xsimd::to_float(unit).store_aligned(exponents + j);
    nan_where_not_finite<A, Type>(raw, factor * F(largest_code)).store_aligned(inverses + j);
  }
  for (std::int64_t i = 0; i < pairs_of_page; ++i) {
    const std::int64_t j = first_of_pair<A>(i);
    const auto element = [&](std::int64_t r, std::int64_t d) MOXIE_INLINE_LAMBDA {
      if constexpr (type == KvType::int8)
        return code<A>(load_i8<A>(reinterpret_cast<const std::int8_t*>(rows) + r * stride + d),
                       F(factors[r] * bf16_to_f32(scale_bits(scales, r * blocks + d / kv_block))));
      else
        return code<A>(Type::load(rows, r * stride + d), F(factors[r]));
    };
    const std::byte* next = ahead.take(columns / (2 * L));
    for (std::int64_t d = 0; d < columns; d += L) {
      __builtin_prefetch(next + d / L * 32, 0, 2);
      pair<A>(element(j, d), element(j + L, d)).store_aligned(codes + (d / panel * pairs_of_page + i) * panel + d % panel);
    }
  }
}

/// Keys that lie in rows [64][stride], as latent ones do.
template <class A, KvType type>
void code_key_rows(const std::byte* rows, std::int64_t stride, const std::byte* row_scales, std::int64_t blocks,
                   std::int32_t* codes, float* scales) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  using Type = Elements<A, type == KvType::int8 ? KvType::bf16 : type>;
  constexpr std::int64_t L = lanes<A>;
  constexpr std::int64_t size = type == KvType::int8 ? 1 : 2;
  for (std::int64_t j = 0; j < kv_page; j += L)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t begin = b * kv_block, end = begin + kv_block < stride ? begin + kv_block : stride;
      const std::byte* first = rows + j * stride * size;
      alignas(64) float factors[L] = {};
      if constexpr (type == KvType::int8) {
        for (std::int64_t r = 0; r < L; ++r)
          scales[b * kv_page + j + r] = bf16_to_f32(scale_bits(row_scales, (j + r) * blocks + b));
      } else {
        const W raw = largest_of_rows<A, type>(first, stride, begin, end), unit = unit_exponent<A, key_bits, Type>(raw);
        power_of_two<A>(-unit).store_aligned(factors);
        nan_where_not_finite<A, Type>(raw, power_of_two<A>(unit)).store_aligned(scales + b * kv_page + j);
      }
      __asm__(""
              : "+m"(factors));  // else compilers take them from the register, lane by lane, instead of broadcasting from memory
      const std::byte* from = first + begin * size;
      std::int64_t row_bytes = stride * size;
      alignas(64) std::byte padded[L * kv_block * size];  // of a block that is cut off, with zeros behind
      if (end - begin < kv_block) {
        for (std::int64_t r = 0; r < L; ++r) {
          __builtin_memset(padded + r * kv_block * size, 0, static_cast<std::size_t>(kv_block * size));
          __builtin_memcpy(padded + r * kv_block * size, from + r * row_bytes, static_cast<std::size_t>((end - begin) * size));
        }
        from = padded;
        row_bytes = kv_block * size;
      }
      for (std::int64_t i = 0; i < pairs_of_block; i += L) {
        W x[L];
        unroll<static_cast<int>(L)>([&](int r) MOXIE_INLINE_LAMBDA {
          const std::byte* row = from + r * row_bytes;
          const auto element = [&](std::int64_t d) MOXIE_INLINE_LAMBDA {
            if constexpr (type == KvType::int8)
              return PairOps<A>::load_i8(reinterpret_cast<const std::int8_t*>(row) + d);
            else
              return code<A>(Type::load(row, d), F(factors[r]));
          };
          x[r] = pair<A>(element(2 * i), element(2 * i + L));
        });
        PairOps<A>::transpose(x);
        unroll<static_cast<int>(L)>(
            [&](int p) MOXIE_INLINE_LAMBDA { x[p].store_aligned(codes + (b * pairs_of_block + i + p) * kv_page + j); });
      }
    }
}

}  // namespace moxie::kernels::int16
MOXIE_KERNELS_END
