#pragma once
// CPU architectures that kernels are written for, as tags. `simd` is the xsimd architecture of their float vectors.
// Code compiled per architecture is always inlined or a template on such a tag, so that no symbol is shared between them.

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>

// Around code that uses vector intrinsics: GCC 12 warns of the undefined operand inside its own AVX-512 intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#define MOXIE_KERNELS_BEGIN                                                            \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define MOXIE_KERNELS_END _Pragma("GCC diagnostic pop")
#else
#define MOXIE_KERNELS_BEGIN
#define MOXIE_KERNELS_END
#endif

// The compiler's flags allow what Avx512 needs. (A test that defines MOXIE_AVX512_EMULATED has emulated those intrinsics.)
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define MOXIE_AVX512
#endif

namespace moxie::kernels {

/// Whatever xsimd finds in the compiler's flags (SSE2 on plain x86-64, NEON on aarch64).
struct Generic {
  using simd = xsimd::default_arch;
  static constexpr const char* name = "generic";
};

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct Avx2 {
  using simd = xsimd::fma3<xsimd::avx2>;
  static constexpr const char* name = "avx2";
};
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
/// vpdpbusd on registers of 32 bytes.
struct AvxVnni {
  using simd = xsimd::fma3<xsimd::avx2>;
  static constexpr const char* name = "avxvnni";
};
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
/// NEON with the dot products of Armv8.2 (sdot).
struct Neon {
  using simd = xsimd::neon64;
  static constexpr const char* name = "neon";
};
#endif

#if defined(MOXIE_AVX512)
struct Avx512 {
  using simd = xsimd::avx512bw;
  static constexpr const char* name = "avx512";
};
using Native = Avx512;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
using Native = AvxVnni;
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
using Native = Neon;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
using Native = Avx2;
#else
using Native = Generic;
#endif

/// Vector of f32 of an architecture.
template <class A>
using Floats = xsimd::batch<float, typename A::simd>;

}  // namespace moxie::kernels
