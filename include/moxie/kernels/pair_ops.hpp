#pragma once
// Primitives of products of 16-bit codes: vectors of 32-bit words, each a pair of codes (the low half first), exact 32-bit sums.
//
//   add(first, sum, x, y)   sum[v] + x[v].low * y.low + x[v].high * y.high for V vectors; `first`: without sum
//   load(p, x)       V consecutive vectors
//   load_i8(p)       consecutive int8, one a word
//   join(low, high)  words of the low halves of both
//   reduce(x, op)    word i is op over all words of vector i, in one order, for as many vectors as a vector has words
//   transpose(x)     of a square of words: word j of vector i with word i of vector j
//
// On these architectures a 16-bit product and sum takes half to two thirds of an f32 multiply-add: AVX-512 VNNI has vpdpwssd; on
// AVX2 vpmaddwd and vpaddd go to four pipes, of which multiply-adds can use two. Elsewhere there are none, and attention stays
// f32.

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/unroll.hpp>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

template <class A>
using Words = xsimd::batch<std::int32_t, typename A::simd>;

/// By the architecture's vectors.
template <class A, class Simd = typename A::simd>
struct PairOps {
  static constexpr bool available = false;
};

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
template <class A>
struct PairOps<A, xsimd::fma3<xsimd::avx2>> {
  static constexpr bool available = true;
  using W = Words<A>;

  template <int V>
  MOXIE_INLINE static void load(const std::int32_t* p, W (&x)[V]) noexcept {
    MOXIE_UNROLL
    for (int v = 0; v < V; ++v) {
      __m256i y = W::load_aligned(p + 8 * v);
      __asm__("" : "+x"(y));  // else compilers load it for each product, and loads are as dear as products
      x[v] = y;
    }
  }
  template <int V>
  MOXIE_INLINE static void add(bool first, W (&sum)[V], const W (&x)[V], const W& y) noexcept {
    // Two products, then two sums: on Zen 3 the loop of attention is 3% faster so than in turns.
    constexpr int together = V < 2 ? V : 2;
    static_assert(V % together == 0);
    MOXIE_UNROLL
    for (int g = 0; g < V / together; ++g) {
      __m256i product[together];
      MOXIE_UNROLL
      for (int i = 0; i < together; ++i) {
        product[i] = _mm256_madd_epi16(x[together * g + i], y);
        if (!first) __asm__("" : "+x"(product[i]));
      }
      MOXIE_UNROLL
      for (int i = 0; i < together; ++i) {
        __m256i total = product[i];
        if (!first) {
          total = _mm256_add_epi32(sum[together * g + i], total);
          __asm__("" : "+x"(total));  // or compilers balance a sum's additions into a tree, whose leaves no register holds
        }
        sum[together * g + i] = total;
      }
    }
  }
  MOXIE_INLINE static W join(const W& low, const W& high) noexcept {
    const __m256i even = low, odd = _mm256_slli_epi32(high, 16);  // without optimization the blend is a macro that casts
    return _mm256_blend_epi16(even, odd, 0xaa);
  }
  MOXIE_INLINE static W load_i8(const std::int8_t* p) noexcept {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  template <class Op>
  MOXIE_INLINE static W reduce(const W (&x)[8], Op op) noexcept {
    W y[4], z[2];
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i)
      y[i] = op(W(_mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1])), W(_mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1])));
    MOXIE_UNROLL
    for (int i = 0; i < 2; ++i)
      z[i] = op(W(_mm256_unpacklo_epi64(y[2 * i], y[2 * i + 1])), W(_mm256_unpackhi_epi64(y[2 * i], y[2 * i + 1])));
    return op(W(_mm256_permute2x128_si256(z[0], z[1], 0x20)), W(_mm256_permute2x128_si256(z[0], z[1], 0x31)));
  }
  MOXIE_INLINE static void transpose(W (&x)[8]) noexcept {
    __m256i a[8], b[8];
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) {
      a[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
      a[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    MOXIE_UNROLL
    for (int i = 0; i < 2; ++i) {
      MOXIE_UNROLL
      for (int j = 0; j < 2; ++j) {
        b[4 * i + 2 * j] = _mm256_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
      }
    }
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
      x[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
  }
};
#endif

#if defined(MOXIE_AVX512) || defined(MOXIE_AVX512_EMULATED)
template <class A>
struct Avx512PairOps {
  static constexpr bool available = true;
  using W = Words<A>;

  template <int V>
  MOXIE_INLINE static void load(const std::int32_t* p, W (&x)[V]) noexcept {
    MOXIE_UNROLL
    for (int v = 0; v < V; ++v) x[v] = W::load_aligned(p + 16 * v);
  }
  template <int V>
  MOXIE_INLINE static void add(bool first, W (&sum)[V], const W (&x)[V], const W& y) noexcept {
    MOXIE_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = _mm512_dpwssd_epi32(first ? W(0) : sum[v], x[v], y);
  }
  MOXIE_INLINE static W join(const W& low, const W& high) noexcept {
    const __m512i even = low, odd = _mm512_slli_epi32(high, 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, odd);
  }
  MOXIE_INLINE static W load_i8(const std::int8_t* p) noexcept {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <class Op>
  MOXIE_INLINE static W reduce(const W (&x)[16], Op op) noexcept {
    W y[8], z[4];
    MOXIE_UNROLL
    for (int i = 0; i < 8; ++i)
      y[i] = op(W(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1])), W(_mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1])));
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i)
      z[i] = op(W(_mm512_unpacklo_epi64(y[2 * i], y[2 * i + 1])), W(_mm512_unpackhi_epi64(y[2 * i], y[2 * i + 1])));
    const auto halve = [&](const W& a, const W& b) MOXIE_INLINE_LAMBDA {
      return op(W(_mm512_shuffle_i32x4(a, b, 0x88)), W(_mm512_shuffle_i32x4(a, b, 0xdd)));
    };
    return halve(halve(z[0], z[1]), halve(z[2], z[3]));
  }
  MOXIE_INLINE static void transpose(W (&x)[16]) noexcept {
    __m512i a[16], b[16];
    MOXIE_UNROLL
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
      a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) {  // b[4 i + c], quarter q: word 4 q + c of vectors 4 i .. 4 i + 3
      MOXIE_UNROLL
      for (int j = 0; j < 2; ++j) {
        b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
      }
    }
    MOXIE_UNROLL
    for (int c = 0; c < 4; ++c) {
      const __m512i low = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), high = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
      const __m512i low1 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd), high1 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
      x[c] = _mm512_shuffle_i32x4(low, high, 0x88);
      x[8 + c] = _mm512_shuffle_i32x4(low, high, 0xdd);
      x[4 + c] = _mm512_shuffle_i32x4(low1, high1, 0x88);
      x[12 + c] = _mm512_shuffle_i32x4(low1, high1, 0xdd);
    }
  }
};
#endif
#if defined(MOXIE_AVX512)
template <class A>
struct PairOps<A, xsimd::avx512bw> : Avx512PairOps<A> {};
#endif

}  // namespace moxie::kernels
MOXIE_KERNELS_END
