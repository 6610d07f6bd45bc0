#pragma once
// Primitives for AVX-VNNI (vpdpbusd on registers of 32 bytes), beside AVX2, FMA and F16C. See kernels/ops.hpp.
//
// vpdpbusd adds the products of 4 unsigned and 4 signed bytes to an int32: one instruction where AVX2 alone takes vpmaddubsw and
// an addition. Floats and codes are those of AVX2; only the dot products and the integer scales of halves are others.
//
// The instruction does not saturate: a product is at most 255 * 128 = 32640, an int16, and the sums are int32. Signed codes
// become unsigned by an offset of 128, which joins the zero point in the start of the sums. The largest values, activations at
// +-127:
//
//   codes            products in a lane   largest sum of products       largest result
//   u4, u5, u6       32                   32 *  63 * 127 =   256032     32 *  63 * 127 =   256032
//   s8 as u8         32                   32 * 255 * 127 =  1036320     32 * 128 * 127 =   520192
//   u6 in halves     16 for each          16 *  63 * 127 =   128016     2 * 128 * 16 * 32 * 127 = 16646144, below 2^24
//   s7 in halves     16 for each          16 * 192 * 127 =   390144     2 *  31 * 16 * 64 * 127 =  8062976
//
// Template on the tag, so that a test can run it through an emulation of vpdpbusd.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/ops_avx2.hpp>
#include <moxie/kernels/ops_generic.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/panel.hpp>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
namespace moxie::kernels {

template <class A>
struct AvxVnniOps : Ops<Avx2>, MinusSums {
  using MinusSums::minus_sums;
  MOXIE_INLINE static Ints halves(panel::Bytes16 bytes) noexcept {
    const auto x = (__m128i)bytes;
    return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
  }
  MOXIE_INLINE static F halves_float(Ints x) noexcept { return to_float(x); }

  enum Kind { whole, in_halves, in_float_halves };
  template <class P>
  static constexpr int dot_kind = has_float_halves<P> ? in_float_halves
                                  : P::has_halves     ? in_halves
                                                      : whole;
  template <class P>
  static constexpr int zero = P::zero + (is_signed(P::codes) ? 128 : 0);
  static constexpr int panels = 1;
  static constexpr int unfetched = 0;
  /// Of 16 registers a token takes 2 (the sums of 8 rows each); others: 2 of codes, one broadcast. 12 sums in flight also cover a
  /// latency of 5 at 2 instructions a cycle. Float sums live in cache.
  template <int kind, bool offset, bool staged>
  static constexpr int tile = 6;

  template <class P>
  MOXIE_INLINE static Bytes operand(Bytes x) noexcept {
    if constexpr (is_signed(P::codes)) {
      const __m256i offset = _mm256_set1_epi8(-128);
      return {_mm256_xor_si256(x.lo, offset), _mm256_xor_si256(x.hi, offset)};
    }
    return x;
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    const __m256i first = _mm256_set1_epi32(x.minus[1]), second = _mm256_set1_epi32(x.minus[2]);
    return to_float({_mm256_add_epi32(_mm256_mullo_epi32(first, h[0].lo), _mm256_mullo_epi32(second, h[1].lo)),
                     _mm256_add_epi32(_mm256_mullo_epi32(first, h[0].hi), _mm256_mullo_epi32(second, h[1].hi))});
  }

  template <int kind, int zero, class Code, class Half, int T>
  MOXIE_INLINE static void dot(Code&& w, Half&& half, const Int8Block* x, F (&sums)[1][T]) noexcept {
    Ints whole[T];
    const auto factor = [&](int h) MOXIE_INLINE_LAMBDA {
      if constexpr (kind == in_halves)
        return to_float(half(0, h));
      else
        return half(0, h);
    };
    if constexpr (kind != Kind::whole) {  // products of a sum and its scale are exact in f32, and so is their sum
      F low[T];
      dot_registers<0, 4, 1, zero, T>(w, x, whole);
      const F h0 = factor(0);
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) {
        low[t] = mul(to_float(whole[t]), h0);
        __asm__("" : "+m"(low[t]));  // waits in memory: the registers are for the sums of the other half
      }
      dot_registers<4, 4, 2, zero, T>(w, x, whole);
      const F h1 = factor(1);
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) sums[0][t] = fma(to_float(whole[t]), h1, low[t]);
    } else {
      dot_registers<0, 8, 0, zero, T>(w, x, whole);
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) sums[0][t] = to_float(whole[t]);
    }
  }

 private:
  /// Sums over `n` registers of codes from the first on, which start at zero * minus[part].
  template <int first, int n, int part, int zero, int T, class W>
  MOXIE_INLINE static void dot_registers(W&& w, const Int8Block* x, Ints (&sums)[T]) noexcept {
    MOXIE_UNROLL
    for (int t = 0; t < T; ++t) {
      __m256i start = _mm256_setzero_si256();
      if constexpr (zero != 0) start = _mm256_slli_epi32(_mm256_set1_epi32(x[t].minus[part]), __builtin_ctz(zero));
      sums[t] = {start, start};
    }
    MOXIE_UNROLL
    for (int j = first; j < first + n; ++j) {
      const Bytes code = w(0, j);
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) {
        std::int32_t four;
        __builtin_memcpy(&four, x[t].q + 4 * j, 4);
        const __m256i a = _mm256_set1_epi32(four);
        sums[t] = {_mm256_dpbusd_avx_epi32(sums[t].lo, code.lo, a), _mm256_dpbusd_avx_epi32(sums[t].hi, code.hi, a)};
      }
    }
  }
};

#if defined(__AVXVNNI__)
template <>
struct Ops<AvxVnni> : AvxVnniOps<AvxVnni> {};
#endif

}  // namespace moxie::kernels
#endif
