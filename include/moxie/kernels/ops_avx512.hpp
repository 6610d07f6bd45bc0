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
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_128(p))); }
  MOXIE_INLINE static Ints load_halves(const std::byte* p) noexcept { return _mm512_cvtepi8_epi32(load_128(p)); }
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
  enum Kind { plain, with_start, halves };
  template <class P>
  static constexpr bool needs_start = P::zero != 0 || P::codes == Codes::s8;
  template <class P>
  static constexpr int dot_kind = P::has_halves    ? halves
                                  : needs_start<P> ? with_start
                                                   : plain;
  /// Of 32 registers a token takes 2 (integer and float sums), or 3 with halves; others: codes, scale, offset (or 2 halves), one
  /// product.
  template <int kind>
  static constexpr int tile = kind == halves ? 8 : 12;

  template <class P>
  MOXIE_INLINE static Bytes operand(Bytes x) noexcept {
    if constexpr (P::codes == Codes::s8) return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
    return x;
  }
  template <class P>
  MOXIE_INLINE static void start_words(const std::int8_t*, const std::int16_t* sum, std::int32_t (&x)[2]) noexcept {
    constexpr int zero = P::zero + (P::codes == Codes::s8 ? 128 : 0);
    x[0] = -zero * (P::has_halves ? sum[0] : sum[0] + sum[1]);
    x[1] = -zero * sum[1];
  }

  template <int kind, bool start, int T, class W>
  MOXIE_INLINE static void dot(W&& w, const std::byte* q, const std::byte* x, const Ints (&h)[2], Ints (&sums)[T]) noexcept {
    unroll<T>([&](int t) MOXIE_INLINE_LAMBDA { sums[t] = start ? broadcast(x + 4 * t) : _mm512_setzero_si512(); });
    const auto add_register = [&](Bytes codes, int j, Ints(&to)[T]) MOXIE_INLINE_LAMBDA {
      unroll<T>([&](int t) MOXIE_INLINE_LAMBDA { to[t] = _mm512_dpbusd_epi32(to[t], codes, broadcast(q + 32 * t + 4 * j)); });
    };
    if constexpr (kind == halves) {
      unroll_constant<4>([&](auto j) MOXIE_INLINE_LAMBDA { add_register(w(j), j.value, sums); });
      Ints second[T];
      unroll<T>([&](int t) MOXIE_INLINE_LAMBDA { second[t] = broadcast(x + 4 * (T + t)); });
      unroll_constant<4>([&](auto j) MOXIE_INLINE_LAMBDA { add_register(w(Constant<j.value + 4>{}), j.value + 4, second); });
      unroll<T>([&](int t) MOXIE_INLINE_LAMBDA {
        sums[t] = _mm512_add_epi32(_mm512_mullo_epi32(sums[t], h[0]), _mm512_mullo_epi32(second[t], h[1]));
      });
    } else {
      unroll_constant<8>([&](auto j) MOXIE_INLINE_LAMBDA { add_register(w(j), j.value, sums); });
    }
  }

 private:
  MOXIE_INLINE static __m128i load_128(const std::byte* p) noexcept {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  MOXIE_INLINE static __m256i load_256(const std::byte* p) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MOXIE_INLINE static Ints broadcast(const std::byte* p) noexcept { return _mm512_set1_epi32(static_cast<int>(load_u32(p))); }
};

#if defined(__AVX512VNNI__)
template <>
struct Ops<Avx512> : Avx512Ops<Avx512> {};
#endif

}  // namespace moxie::kernels

MOXIE_KERNELS_END
