#pragma once
// Vector primitives that xsimd 8.1 does not have, or not with fixed bits: a fused multiply-add on every architecture that
// has one (xsimd's falls back to a product and a sum on AVX-512), vectors of f32 from f16 and bf16, and an exponential
// whose every step is written as a fused operation, so that no compiler option changes its result.

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

/// n lanes as compilers have them.
template <class T, int n>
using Lanes __attribute__((vector_size(n * sizeof(T)))) = T;

/// x * y + z, rounded once where the architecture has a fused multiply-add, else twice.
template <class S>
MOXIE_INLINE xsimd::batch<float, S> madd(const xsimd::batch<float, S>& x, const xsimd::batch<float, S>& y,
                                         const xsimd::batch<float, S>& z) noexcept {
#if defined(__AVX512F__) || defined(MOXIE_AVX512_EMULATED)
  if constexpr (xsimd::batch<float, S>::size == 16) return _mm512_fmadd_ps(x, y, z);
#endif
  return xsimd::fma(x, y, z);
}

/// Sum and maximum over the lanes, halves first: ((0 + h) + ..), h = size() / 2. One order on every architecture.
template <class S, class Op>
MOXIE_INLINE float reduce_halves(const xsimd::batch<float, S>& x, Op op) noexcept {
  constexpr int lanes = static_cast<int>(xsimd::batch<float, S>::size);
  alignas(64) float values[lanes];
  x.store_aligned(values);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] = op(values[i], values[i + half]);
  return values[0];
}
template <class S>
MOXIE_INLINE float reduce_sum(const xsimd::batch<float, S>& x) noexcept {
  return reduce_halves(x, [](float a, float b) { return a + b; });
}
template <class S>
MOXIE_INLINE float reduce_max(const xsimd::batch<float, S>& x) noexcept {
  return reduce_halves(x, [](float a, float b) { return a < b ? b : a; });
}

/// size() consecutive f16 as f32; `p` needs no alignment.
template <class A>
MOXIE_INLINE Floats<A> load_f16(const std::uint16_t* p) noexcept {
#if defined(__AVX512F__) || defined(MOXIE_AVX512_EMULATED)
  if constexpr (Floats<A>::size == 16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
#if defined(__F16C__)
  if constexpr (Floats<A>::size == 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
#if defined(__aarch64__)
  if constexpr (Floats<A>::size == 4) return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#endif
  alignas(64) float values[Floats<A>::size];
  for (std::size_t i = 0; i < Floats<A>::size; ++i) values[i] = f16_to_f32(p[i]);
  return Floats<A>::load_aligned(values);
}

/// size() consecutive bf16 as f32; `p` needs no alignment.
template <class A>
MOXIE_INLINE Floats<A> load_bf16(const std::uint16_t* p) noexcept {
#if defined(__AVX512F__) || defined(MOXIE_AVX512_EMULATED)
  if constexpr (Floats<A>::size == 16)
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#endif
#if defined(__AVX2__)
  if constexpr (Floats<A>::size == 8)
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#endif
#if defined(__aarch64__)
  if constexpr (Floats<A>::size == 4) return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
#endif
  alignas(64) float values[Floats<A>::size];
  for (std::size_t i = 0; i < Floats<A>::size; ++i) values[i] = bf16_to_f32(p[i]);
  return Floats<A>::load_aligned(values);
}

/// size() consecutive int8 as f32; `p` needs no alignment.
template <class A>
MOXIE_INLINE Floats<A> load_i8(const std::int8_t* p) noexcept {
#if defined(__AVX512F__) || defined(MOXIE_AVX512_EMULATED)
  if constexpr (Floats<A>::size == 16)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
#if defined(__AVX2__)
  if constexpr (Floats<A>::size == 8)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
  alignas(64) float values[Floats<A>::size];
  for (std::size_t i = 0; i < Floats<A>::size; ++i) values[i] = static_cast<float>(p[i]);
  return Floats<A>::load_aligned(values);
}

/// 2^x for x <= 0, within 2 units in the last place; exactly 0 below -126, 1 at 0; NaN stays NaN.
/// x = n + f with |f| <= 1/2; 2^f by the polynomial of degree 5 with the least relative error (9.2e-8) that is 1 at 0.
template <class S>
MOXIE_INLINE xsimd::batch<float, S> exp2_fixed(const xsimd::batch<float, S>& x) noexcept {
  using F = xsimd::batch<float, S>;
  using I = xsimd::batch<std::int32_t, S>;
  const F shift(12582912.0f), shifted = x + shift, f = x - (shifted - shift);  // 1.5 * 2^23, as in exp_fixed
  F p(0.0013264727262274794f);
  p = madd(p, f, F(0.009671512710403996f));
  p = madd(p, f, F(0.05550733743741496f));
  p = madd(p, f, F(0.24022242084293743f));
  p = madd(p, f, F(0.6931469775985022f));
  p = madd(p, f, F(1.0f));
  const I exponent = (xsimd::bitwise_cast<I>(shifted) + I(127)) << 23;
  return xsimd::select(x < F(-126.0f), F(0.0f), p * xsimd::bitwise_cast<F>(exponent));
}

/// e^x within 2 units in the last place for x in [-87, 88]; exactly 0 below and infinity above; 1 at 0; NaN stays NaN.
/// x = n ln 2 + r with |r| <= ln(2) / 2, e^r by its Taylor polynomial of degree 7 (relative error 6e-9).
template <class S>
MOXIE_INLINE xsimd::batch<float, S> exp_fixed(const xsimd::batch<float, S>& x) noexcept {
  using F = xsimd::batch<float, S>;
  using I = xsimd::batch<std::int32_t, S>;
  // 1.5 * 2^23 has an ulp of 1: the sum is rounded to an integer, whose low bits are those of n
  const F shift(12582912.0f), shifted = madd(x, F(1.44269504088896341f), shift), n = shifted - shift;
  F r = madd(n, F(-0.693359375f), x);  // ln 2 in two parts: 355/512 is short, so the product is exact
  r = madd(n, F(2.12194440054690583e-4f), r);
  F p(1.0f / 5040.0f);
  p = madd(p, r, F(1.0f / 720.0f));
  p = madd(p, r, F(1.0f / 120.0f));
  p = madd(p, r, F(1.0f / 24.0f));
  p = madd(p, r, F(1.0f / 6.0f));
  p = madd(p, r, F(0.5f));
  p = madd(p, r, F(1.0f));
  p = madd(p, r, F(1.0f));
  const I exponent = (xsimd::bitwise_cast<I>(shifted) + I(127)) << 23;  // n is in [-126, 127] where it counts
  F y = p * xsimd::bitwise_cast<F>(exponent);
  y = xsimd::select(x < F(-87.0f), F(0.0f), y);
  return xsimd::select(x > F(88.0f), F(__builtin_inff()), y);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
