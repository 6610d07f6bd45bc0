#pragma once
// The intrinsics of kernels/ that AVX-512 and AVX-VNNI add, emulated for a CPU with AVX2 alone: by SIMDe, or here where SIMDe
// 0.7.4 lacks one. To be included before moxie's headers.

#define MOXIE_AVX512_EMULATED

#include <immintrin.h>
#include <simde/x86/avx512.h>

namespace test {

template <class From>
simde__m512i widened(From values) {
  simde__m512i_private out;
  for (int i = 0; i < 16; ++i) out.i32[i] = values(i);
  return simde__m512i_from_private(out);
}
template <class T>
struct Lanes {
  alignas(32) T v[32 / sizeof(T)];
};
inline Lanes<std::uint16_t> words(__m256i x) {
  Lanes<std::uint16_t> lanes;
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes.v), x);
  return lanes;
}
inline Lanes<std::uint8_t> bytes(__m128i x) {
  Lanes<std::uint8_t> lanes;
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes.v), x);
  return lanes;
}
inline simde__m512i cvtepu16_epi32(__m256i x) {
  return widened([&](int i) { return static_cast<int>(words(x).v[i]); });
}
inline simde__m512i cvtepu8_epi32(__m128i x) {
  return widened([&](int i) { return static_cast<int>(bytes(x).v[i]); });
}
inline simde__m512i cvtepi8_epi32(__m128i x) {
  return widened([&](int i) { return static_cast<int>(static_cast<signed char>(bytes(x).v[i])); });
}
inline simde__m512i srai_epi32(simde__m512i x, unsigned n) {
  const simde__m512i_private in = simde__m512i_to_private(x);
  return widened([&](int i) { return in.i32[i] >> n; });
}
inline simde__m512 cvtepi32_ps(simde__m512i x) {
  const simde__m512i_private in = simde__m512i_to_private(x);
  simde__m512_private out;
  for (int i = 0; i < 16; ++i) out.f32[i] = static_cast<float>(in.i32[i]);
  return simde__m512_from_private(out);
}
inline simde__m512 cvtph_ps(__m256i x) {
  alignas(32) float lanes[16];
  _mm256_store_ps(lanes, _mm256_cvtph_ps(_mm256_castsi256_si128(x)));
  _mm256_store_ps(lanes + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
  return simde_mm512_loadu_ps(lanes);
}
/// SIMDe's own may be a product and a sum.
inline simde__m512 fmadd_ps(simde__m512 a, simde__m512 b, simde__m512 c) {
  const simde__m512_private x = simde__m512_to_private(a), y = simde__m512_to_private(b), z = simde__m512_to_private(c);
  simde__m512_private out;
  for (int i = 0; i < 2; ++i) out.m256[i] = _mm256_fmadd_ps(x.m256[i], y.m256[i], z.m256[i]);
  return simde__m512_from_private(out);
}

template <unsigned mask>
simde__m512i blend_epi16(simde__m512i a, simde__m512i b) {
  const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
  simde__m512i_private out;
  for (unsigned i = 0; i < 32; ++i) out.i16[i] = (mask >> i & 1) != 0 ? y.i16[i] : x.i16[i];
  return simde__m512i_from_private(out);
}

/// Called, not inlined: SIMDe's many operations at each use would take a compiler a minute.
[[gnu::noinline]] inline simde__m512i dpbusd_epi32(simde__m512i sum, simde__m512i a, simde__m512i b) {
  return simde_mm512_dpbusd_epi32(sum, a, b);
}
[[gnu::noinline]] inline simde__m512i dpwssd_epi32(simde__m512i sum, simde__m512i a, simde__m512i b) {
  return simde_mm512_dpwssd_epi32(sum, a, b);
}
[[gnu::noinline]] inline __m256i dpbusd_epi32(__m256i sum, __m256i a, __m256i b) { return simde_mm256_dpbusd_epi32(sum, a, b); }

}  // namespace test

#define __m512i simde__m512i
#define __m512 simde__m512
#define _mm512_loadu_si512(p) simde_mm512_loadu_si512(p)
#define _mm512_storeu_si512(p, x) simde_mm512_storeu_si512(p, x)
#define _mm512_loadu_ps(p) simde_mm512_loadu_ps(p)
#define _mm512_storeu_ps(p, x) simde_mm512_storeu_ps(p, x)
#define _mm512_setzero_si512() simde_mm512_setzero_si512()
#define _mm512_set1_epi8(x) simde_mm512_set1_epi8(x)
#define _mm512_set1_epi32(x) simde_mm512_set1_epi32(x)
#define _mm512_set1_ps(x) simde_mm512_set1_ps(x)
#define _mm512_srli_epi16(x, n) simde_mm512_srli_epi16(x, n)
#define _mm512_slli_epi16(x, n) simde_mm512_slli_epi16(x, n)
#define _mm512_srli_epi32(x, n) simde_mm512_srli_epi32(x, n)
#define _mm512_slli_epi32(x, n) simde_mm512_slli_epi32(x, n)
#define _mm512_srai_epi32(x, n) test::srai_epi32(x, n)
#define _mm512_and_si512(a, b) simde_mm512_and_si512(a, b)
#define _mm512_or_si512(a, b) simde_mm512_or_si512(a, b)
#define _mm512_shuffle_epi8(a, b) simde_mm512_shuffle_epi8(a, b)
#define _mm512_broadcast_i32x4(x) simde_mm512_broadcast_i32x4(x)
#define _mm512_add_epi32(a, b) simde_mm512_add_epi32(a, b)
#define _mm512_sub_epi32(a, b) simde_mm512_sub_epi32(a, b)
#define _mm512_xor_si512(a, b) simde_mm512_xor_si512(a, b)
#define _mm512_dpbusd_epi32(s, a, b) test::dpbusd_epi32(s, a, b)
#define _mm512_add_ps(a, b) simde_mm512_add_ps(a, b)
#define _mm512_mul_ps(a, b) simde_mm512_mul_ps(a, b)
#define _mm512_fmadd_ps(a, b, c) test::fmadd_ps(a, b, c)
#define _mm512_castsi512_ps(x) simde_mm512_castsi512_ps(x)
#define _mm512_cvtepi32_ps(x) test::cvtepi32_ps(x)
#define _mm512_cvtph_ps(x) test::cvtph_ps(x)
#define _mm512_cvtepu16_epi32(x) test::cvtepu16_epi32(x)
#define _mm512_cvtepu8_epi32(x) test::cvtepu8_epi32(x)
#define _mm512_cvtepi8_epi32(x) test::cvtepi8_epi32(x)
#define _mm512_mask_blend_epi16(mask, a, b) test::blend_epi16<mask>(a, b)
#define _mm512_unpacklo_epi32(a, b) simde_mm512_unpacklo_epi32(a, b)
#define _mm512_unpackhi_epi32(a, b) simde_mm512_unpackhi_epi32(a, b)
#define _mm512_unpacklo_epi64(a, b) simde_mm512_unpacklo_epi64(a, b)
#define _mm512_unpackhi_epi64(a, b) simde_mm512_unpackhi_epi64(a, b)
#undef _mm512_shuffle_i32x4  // a macro of clang
#define _mm512_shuffle_i32x4(a, b, c) simde_mm512_shuffle_i32x4(a, b, c)
#define _mm512_dpwssd_epi32(s, a, b) test::dpwssd_epi32(s, a, b)
#define _mm256_dpbusd_avx_epi32(s, a, b) test::dpbusd_epi32(s, a, b)
