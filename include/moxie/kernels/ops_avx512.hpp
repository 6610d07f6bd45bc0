#pragma once
// Primitives for AVX-512 (F, BW, VL, DQ) with VNNI. See kernels/ops.hpp.
//
// vpdpbusd adds the products of 4 unsigned and 4 signed bytes to an int32 without saturating. Signed codes become unsigned by
// an offset of 128, which joins the zero point in the start of the sums.
//
// Template on the tag, so that a test can run it through an emulation of the intrinsics.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/ops_generic.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/panel.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

template <class A>
struct Avx512Ops {
  using Bytes = __m512i;
  using Ints = __m512i;
  using F = __m512;

  MOXIE_INLINE static Bytes load_bytes(const std::byte* p) noexcept { return _mm512_loadu_si512(p); }
  MOXIE_INLINE static void store_bytes(std::byte* p, Bytes x) noexcept { _mm512_storeu_si512(p, x); }
  template <int shift, int mask>
  MOXIE_INLINE static Bytes bits(Bytes x) noexcept {  // shifted by words: what crosses bytes is masked off
    if constexpr (shift > 0) x = _mm512_srli_epi16(x, shift);
    if constexpr (shift < 0) x = _mm512_slli_epi16(x, -shift);
    return _mm512_and_si512(x, _mm512_set1_epi8(mask));
  }
  MOXIE_INLINE static Bytes merge(Bytes a, Bytes b) noexcept { return _mm512_or_si512(a, b); }

  MOXIE_INLINE static Bytes lookup(panel::Bytes16 table, Bytes x) noexcept {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)table), x);
  }

  MOXIE_INLINE static Bytes spread(panel::Bytes16 x) noexcept {
    constexpr std::uint32_t row[16] = {0x00000000, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505,
                                       0x06060606, 0x07070707, 0x08080808, 0x09090909, 0x0a0a0a0a, 0x0b0b0b0b,
                                       0x0c0c0c0c, 0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f};
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4((__m128i)x), _mm512_loadu_si512(row));
  }

  MOXIE_INLINE static F load(const float* p) noexcept { return _mm512_loadu_ps(p); }
  MOXIE_INLINE static void store(float* p, F x) noexcept { _mm512_storeu_ps(p, x); }
  MOXIE_INLINE static F set1(float x) noexcept { return _mm512_set1_ps(x); }
  MOXIE_INLINE static F add(F a, F b) noexcept { return _mm512_add_ps(a, b); }
  MOXIE_INLINE static F mul(F a, F b) noexcept { return _mm512_mul_ps(a, b); }
  MOXIE_INLINE static F fma(F a, F b, F c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  MOXIE_INLINE static F to_float(Ints x) noexcept { return _mm512_cvtepi32_ps(x); }
  MOXIE_INLINE static F load_f16(const std::byte* p) noexcept { return _mm512_cvtph_ps(load_256(p)); }
  MOXIE_INLINE static F load_bf16(const std::byte* p) noexcept {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(p)), 16));
  }
  /// As f16 with 8 times smaller exponent base: the same fields moved, 2^-8 of the value. NaN is the code 0x7F.
  MOXIE_INLINE static F load_e4m3(const std::byte* p) noexcept {
    const __m256i code = _mm256_cvtepu8_epi16(load_128(p)), rest = _mm256_and_si256(code, _mm256_set1_epi16(0x7f));
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(rest, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
    const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), code), 8);
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(rest, 7))),
                         _mm512_set1_ps(256));
  }
  MOXIE_INLINE static F load_ue4m3(const std::byte* p) noexcept {
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load_128(p)), 7)), _mm512_set1_ps(256));
  }
  MOXIE_INLINE static F load_e8m0_half(const std::byte* p) noexcept {
    const __m512i c = _mm512_cvtepu8_epi32(load_128(p)), half = _mm512_srli_epi32(c, 1);
    const auto power = [](__m512i e, int bias) MOXIE_INLINE_LAMBDA {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(bias)), 23));
    };
    return _mm512_mul_ps(power(half, 64), power(_mm512_sub_epi32(c, half), 62));
  }
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_128(p))); }
  MOXIE_INLINE static Ints halves(panel::Bytes16 x) noexcept { return _mm512_cvtepi8_epi32((__m128i)x); }
  MOXIE_INLINE static F halves_float(Ints x) noexcept { return _mm512_cvtepi32_ps(x); }
  MOXIE_INLINE static Ints load_ints(const std::byte* p) noexcept { return _mm512_loadu_si512(p); }
  MOXIE_INLINE static void store_ints(std::byte* p, Ints x) noexcept { _mm512_storeu_si512(p, x); }
  template <int i, bool is_signed>
  MOXIE_INLINE static F code_floats(Bytes x) noexcept {
    if constexpr (i < 3) x = _mm512_slli_epi32(x, 24 - 8 * i);
    if constexpr (is_signed)
      return _mm512_cvtepi32_ps(_mm512_srai_epi32(x, 24));
    else
      return _mm512_cvtepi32_ps(_mm512_srli_epi32(x, 24));
  }

  static constexpr bool sums_in_registers = true;
  enum Kind { plain, in_halves, in_float_halves };
  static constexpr bool halved(int kind) noexcept { return kind != plain; }
  /// The zero point of Q6_K, with which the sums of halves lie in an Int8Block: it saves two shifts a token.
  static constexpr int halves_zero = 32;
  template <class P>
  static constexpr int dot_kind = has_float_halves<P> ? in_float_halves
                                  : P::has_halves     ? in_halves
                                                      : plain;
  template <class P>
  static constexpr int zero = P::zero + (is_signed(P::codes) ? 128 : 0);
  /// Of 32 registers a token takes 4, the integer and float sums of 2 panels, for which it is loaded once; others: codes, scales
  /// and offsets of 2 panels, a mask, a token's inputs. 12 tokens with one panel share the unpacking of codes and minimums, which
  /// costs Zen 4 more than the loads. With halves a token takes 6, or the scaled sums of the first wait in memory: 4 tokens.
  static constexpr int panels = 2;
  template <int kind, bool offset, bool staged>
  static constexpr int tile = halved(kind) ? (staged ? 4 : 6)
                              : offset     ? 12
                                           : 6;
  template <int kind, bool offset>
  static constexpr bool fours = halved(kind) && !offset;
  static constexpr int unfetched = 2;
  /// Unpacking takes shifts and masks, which mostly run beside the products: only of codes in halves they are so many that it may
  /// be worth it to keep unpacked bytes. On a Xeon it is, from 8 tokens on, on Zen 4 only for Q3_K, IQ1 and IQ2
  /// (TunedFor).
  template <int kind, bool offset>
  static constexpr int staged_from = !halved(kind) || offset ? 1 << 20 : 8;

  template <class P>
  MOXIE_INLINE static Bytes operand(Bytes x) noexcept {
    if constexpr (is_signed(P::codes)) return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
    return x;
  }
  MOXIE_INLINE static void minus_sums(const std::int8_t*, std::int32_t low, std::int32_t high, std::int32_t (&x)[3]) noexcept {
    x[0] = -(low + high);
    x[1] = -halves_zero * low;
    x[2] = -halves_zero * high;
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    const F unit = _mm512_set1_ps(1.0f / halves_zero);  // of `minus`; all products are exact
    const F h0 = _mm512_mul_ps(_mm512_cvtepi32_ps(h[0]), unit), h1 = _mm512_mul_ps(_mm512_cvtepi32_ps(h[1]), unit);
    const F first = _mm512_cvtepi32_ps(_mm512_set1_epi32(x.minus[1])), second = _mm512_cvtepi32_ps(_mm512_set1_epi32(x.minus[2]));
    return _mm512_fmadd_ps(second, h1, _mm512_mul_ps(first, h0));
  }

  template <int kind, int zero, class Code, class Half, int P, int T>
  MOXIE_INLINE static void dot(Code&& code, Half&& half, const Int8Block* x, F (&sums)[P][T]) noexcept {
    Ints to[P][T];
    const auto add_registers = [&](int part, int first, int end) MOXIE_INLINE_LAMBDA {
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) {
        Ints s = zero == 0 ? _mm512_setzero_si512() : _mm512_set1_epi32(x[t].minus[part]);
        if constexpr (zero != 0 && !halved(kind)) s = _mm512_slli_epi32(s, __builtin_ctz(zero));
        if constexpr (zero != 0 && halved(kind) && zero < halves_zero)
          s = _mm512_srai_epi32(s, __builtin_ctz(halves_zero / zero));
        if constexpr (halved(kind) && zero > halves_zero) s = _mm512_slli_epi32(s, __builtin_ctz(zero / halves_zero));
        MOXIE_UNROLL
        for (int p = 0; p < P; ++p) to[p][t] = s;
      }
      MOXIE_UNROLL
      for (int j = first; j < end; ++j) {
        Bytes codes[P];
        MOXIE_UNROLL
        for (int p = 0; p < P; ++p) codes[p] = code(p, j);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          const std::int8_t* q = x[t].q + 4 * j;
          if constexpr (P == 1) {
            to[0][t] = add_broadcast(to[0][t], codes[0], q);
          } else {
            const Ints four = broadcast(q);
            MOXIE_UNROLL
            for (int p = 0; p < P; ++p) {
              to[p][t] = _mm512_dpbusd_epi32(to[p][t], codes[p], four);
              if constexpr (halved(kind)) keep_order(to[p][t]);
            }
          }
        }
      }
    };
    const auto factor = [&](int p, int h) MOXIE_INLINE_LAMBDA {
      if constexpr (kind == in_halves)
        return _mm512_cvtepi32_ps(half(p, h));
      else
        return half(p, h);
    };
    if constexpr (halved(kind)) {
      // Products of a sum and its scale are exact in f32, as is their sum: below 2 * 128 * 16 * 32 * 127 < 2^24 (Q6_K), and
      // 2 * 31 * 16 * 64 * 127 of 7-bit codes from a table (quant/table_codes.hpp).
      F low[P][T];
      add_registers(1, 0, 4);
      MOXIE_UNROLL
      for (int p = 0; p < P; ++p) {
        const F h0 = factor(p, 0);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          low[p][t] = _mm512_mul_ps(_mm512_cvtepi32_ps(to[p][t]), h0);
          if constexpr (P * T > 8) __asm__("" : "+m"(low[p][t]));
        }
      }
      add_registers(2, 4, 8);
      MOXIE_UNROLL
      for (int p = 0; p < P; ++p) {
        const F h1 = factor(p, 1);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) sums[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(to[p][t]), h1, low[p][t]);
      }
    } else {
      add_registers(0, 0, 8);
      MOXIE_UNROLL
      for (int p = 0; p < P; ++p) {
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) sums[p][t] = _mm512_cvtepi32_ps(to[p][t]);
      }
    }
  }

 private:
  MOXIE_INLINE static __m128i load_128(const std::byte* p) noexcept {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  MOXIE_INLINE static __m256i load_256(const std::byte* p) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MOXIE_INLINE static Ints broadcast(const std::int8_t* p) noexcept {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  /// Products stay in the order in which they are written: else GCC takes all of a sum's together, and keeps broadcasts and codes
  /// for the other sums in memory.
  MOXIE_INLINE static void keep_order([[maybe_unused]] Ints& sum) noexcept {
#if defined(MOXIE_AVX512)
    __asm__("" : "+v"(sum));
#endif
  }
  /// The product with its operand broadcast by the same instruction, which GCC does not do by itself: 16 instructions instead of
  /// 24 for a row's block of Q4_K, 12 x 1; on a Xeon 2.8 ns instead of 2.9, or 3.2 instead of 4.2 while its other hyperthread
  /// works.
  MOXIE_INLINE static Ints add_broadcast(Ints sum, Bytes codes, const std::int8_t* p) noexcept {
#if defined(MOXIE_AVX512)
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const std::int8_t(*)[4]>(p)));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, codes, broadcast(p));  // emulated
#endif
  }
};

#if defined(MOXIE_AVX512)
template <>
struct Ops<Avx512> : Avx512Ops<Avx512> {};
#endif

}  // namespace moxie::kernels

MOXIE_KERNELS_END
