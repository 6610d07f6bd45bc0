#pragma once
// Instruction sequences that multiply weights with activations, each in a loop that stays in registers: what a core can do at
// most for a weight width on an architecture. 2 operations for each multiply-add.
//
//   avx512    vpdpbusd on 512 bits, any width
//   avxvnni   vpdpbusd on 256 bits, any width
//   avx2      vpmaddubsw adds pairs of products in int16; as many results are added there as cannot overflow before one vpmaddwd
//             widens them to int32: 4-bit codes 8 (8 * 2 * 15 * 127 < 2^15), 5-bit 4, 6-bit 2. Signed 8-bit codes: |w| times the
//             activation with w's sign (vpsignb) and one vpmaddwd for each; or vpmaddwd alone on codes widened to int16.
//   neon      sdot
//   generic   pmaddwd of int16 with SSE2; elsewhere a plain loop
//
// Float weights: vdpbf16ps for bf16 where the CPU has it, else fused multiply-adds of f32.

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace bench {

/// Weight widths that choose a sequence: bits of the integer codes, or these.
inline constexpr int bf16_weights = 16, f32_weights = 32;

struct Sequence {
  const char* arch;
  int bits_from, bits_to;  ///< widths it multiplies
  const char* name;
  double (*run)(std::int64_t n);  ///< n rounds; returns the operations done
  bool (*usable)();
};

namespace sequences {

inline bool always() { return true; }

#if defined(__x86_64__)

// Chains of dependent sums: an instruction takes 4 cycles and two start in each, so 8 at least; with the operands, 12 fit into
// 16 registers. AVX2's chains are hidden by the products between two sums.
inline constexpr int chains = 12;
#define BENCH_TARGET(features) __attribute__((target(features)))

BENCH_TARGET("avx512f,avx512bw,avx512vl,avx512vnni") inline double vpdpbusd_512(std::int64_t n) {
  __m512i acc[chains], w = _mm512_set1_epi8(3), a = _mm512_set1_epi8(5);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm512_setzero_si512();
  __asm__ volatile("" : "+v"(w), "+v"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm512_dpbusd_epi32(acc[c], w, a);
      __asm__ volatile("" : "+v"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 64 * 2;
}
BENCH_TARGET("avx512f,avx512bw,avx512vl,avx512bf16") inline double vdpbf16ps_512(std::int64_t n) {
  __m512 acc[chains];
  __m512i w = _mm512_setzero_si512(), a = w;
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm512_setzero_ps();
  __asm__ volatile("" : "+v"(w), "+v"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)w, (__m512bh)a);
      __asm__ volatile("" : "+v"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 32 * 2;
}
BENCH_TARGET("avx512f") inline double fma_512(std::int64_t n) {
  __m512 acc[chains], w = _mm512_set1_ps(0.5f), a = w;
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm512_setzero_ps();
  __asm__ volatile("" : "+v"(w), "+v"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm512_fmadd_ps(w, a, acc[c]);
      __asm__ volatile("" : "+v"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 16 * 2;
}

BENCH_TARGET("avx2,avxvnni") inline double vpdpbusd_256(std::int64_t n) {
  __m256i acc[chains], w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm256_setzero_si256();
  __asm__ volatile("" : "+x"(w), "+x"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm256_dpbusd_avx_epi32(acc[c], w, a);
      __asm__ volatile("" : "+x"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 32 * 2;
}

// As text, so that every compiler runs the very sequence: they would take equal products once, or copy sums between registers.
// Sums of several lanes side by side, as a tile of tokens has them.
template <int sums, bool sign>
BENCH_TARGET("avx2,fma")
double vpmaddubsw(std::int64_t n) {
  constexpr int lanes = 6;
  __m256i acc[lanes], w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 16
  for (int c = 0; c < lanes; ++c) acc[c] = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < n; ++i) {
    __m256i lane[lanes];
#pragma GCC unroll 8
    for (int j = 0; j < sums; ++j) {
#pragma GCC unroll 16
      for (int c = 0; c < lanes; ++c) {
        __m256i b = a, p;
        if constexpr (sign) __asm__ volatile("vpsignb %2, %1, %0" : "=x"(b) : "x"(a), "x"(w));
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(p) : "x"(w), "x"(b));
        if (j == 0)
          lane[c] = p;
        else
          __asm__ volatile("vpaddw %1, %0, %0" : "+x"(lane[c]) : "x"(p));
      }
    }
#pragma GCC unroll 16
    for (int c = 0; c < lanes; ++c) {
      __m256i p;
      __asm__ volatile("vpmaddwd %2, %1, %0" : "=x"(p) : "x"(lane[c]), "x"(ones));
      __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc[c]) : "x"(p));
    }
  }
  return static_cast<double>(n) * lanes * sums * 32 * 2;
}
BENCH_TARGET("avx2,fma") inline double vpmaddwd_256(std::int64_t n) {
  __m256i acc[chains], w = _mm256_set1_epi16(3), a = _mm256_set1_epi16(5);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      __m256i p;
      __asm__ volatile("vpmaddwd %2, %1, %0" : "=x"(p) : "x"(w), "x"(a));
      __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc[c]) : "x"(p));
    }
  }
  return static_cast<double>(n) * chains * 16 * 2;
}
BENCH_TARGET("avx2,fma") inline double fma_256(std::int64_t n) {
  __m256 acc[chains], w = _mm256_set1_ps(0.5f), a = w;
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm256_setzero_ps();
  __asm__ volatile("" : "+x"(w), "+x"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm256_fmadd_ps(w, a, acc[c]);
      __asm__ volatile("" : "+x"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 8 * 2;
}

inline double pmaddwd_128(std::int64_t n) {
  __m128i acc[chains], w = _mm_set1_epi16(3), a = _mm_set1_epi16(5);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm_setzero_si128();
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      __m128i p = w;
      __asm__ volatile("pmaddwd %1, %0" : "+x"(p) : "x"(a));
      __asm__ volatile("paddd %1, %0" : "+x"(acc[c]) : "x"(p));
    }
  }
  return static_cast<double>(n) * chains * 8 * 2;
}
inline double mulps_128(std::int64_t n) {
  __m128 acc[chains], w = _mm_set1_ps(0.5f), a = w;
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm_setzero_ps();
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      __m128 p = w;
      __asm__ volatile("mulps %1, %0" : "+x"(p) : "x"(a));
      __asm__ volatile("addps %1, %0" : "+x"(acc[c]) : "x"(p));
    }
  }
  return static_cast<double>(n) * chains * 4 * 2;
}
#undef BENCH_TARGET

inline bool has_vnni() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl"); }
inline bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
// Not by name: compilers' __builtin_cpu_supports learned these at different times. CPUID leaf 7.1, EAX bits 4 and 5.
inline bool leaf_7_1(int bit) {
  unsigned a = 7, b = 0, c = 1, d = 0;
  if (__builtin_cpu_supports("avx2")) __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return __builtin_cpu_supports("avx2") && (a >> bit & 1u) != 0;
}
inline bool has_avxvnni() { return leaf_7_1(4); }
inline bool has_bf16() { return has_avx512() && leaf_7_1(5); }

#else

inline double plain(std::int64_t n) {
  std::int32_t acc[16] = {};
  std::int8_t a[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  for (std::int64_t i = 0; i < n; ++i)
    for (int j = 0; j < 16; ++j) {
      __asm__ volatile("" : "+m"(a[j]));
      acc[j] += a[j] * 3;
    }
  __asm__ volatile("" ::"m"(acc));
  return static_cast<double>(n) * 32;
}
#if defined(__ARM_FEATURE_DOTPROD)
inline double sdot(std::int64_t n) {
  constexpr int chains = 16;
  int32x4_t acc[chains];
  int8x16_t w = vdupq_n_s8(3), a = vdupq_n_s8(5);
  for (int c = 0; c < chains; ++c) acc[c] = vdupq_n_s32(0);
  __asm__ volatile("" : "+w"(w), "+w"(a));
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = vdotq_s32(acc[c], w, a);
      __asm__ volatile("" : "+w"(acc[c]));
    }
  }
  return static_cast<double>(n) * chains * 16 * 2;
}
#endif
#endif

}  // namespace sequences

/// All sequences that this program has.
inline const std::vector<Sequence>& all_sequences() {
  using namespace sequences;
  static const std::vector<Sequence> list = {
#if defined(__x86_64__)
    {"avx512", 4, 8, "vpdpbusd, 512 bits", vpdpbusd_512, has_vnni},
    {"avx512", bf16_weights, bf16_weights, "vdpbf16ps, 512 bits", vdpbf16ps_512, has_bf16},
    {"avx512", bf16_weights, f32_weights, "vfmadd, 512 bits", fma_512, has_avx512},
    {"avxvnni", 4, 8, "vpdpbusd, 256 bits", vpdpbusd_256, has_avxvnni},
    {"avxvnni", bf16_weights, f32_weights, "vfmadd, 256 bits", fma_256, has_avxvnni},
    {"avx2", 4, 4, "8 vpmaddubsw, vpmaddwd", vpmaddubsw<8, false>, has_avx2},
    {"avx2", 5, 5, "4 vpmaddubsw, vpmaddwd", vpmaddubsw<4, false>, has_avx2},
    {"avx2", 6, 6, "2 vpmaddubsw, vpmaddwd", vpmaddubsw<2, false>, has_avx2},
    {"avx2", 8, 8, "vpsignb, vpmaddubsw, vpmaddwd", vpmaddubsw<1, true>, has_avx2},
    {"avx2", 8, 8, "vpmaddwd", vpmaddwd_256, has_avx2},
    {"avx2", bf16_weights, f32_weights, "vfmadd, 256 bits", fma_256, has_avx2},
    {"generic", 4, 8, "pmaddwd", pmaddwd_128, always},
    {"generic", bf16_weights, f32_weights, "mulps, addps", mulps_128, always},
#else
    {"generic", 4, f32_weights, "plain loop", plain, always},
#if defined(__ARM_FEATURE_DOTPROD)
    {"neon", 4, 8, "sdot", sdot, always},
#endif
#endif
  };
  return list;
}

/// Those that multiply weights of `bits` on an architecture, and that this CPU runs.
inline std::vector<Sequence> sequences_for(const char* arch, int bits) {
  std::vector<Sequence> found;
  for (const Sequence& s : all_sequences())
    if (std::strcmp(s.arch, arch) == 0 && s.bits_from <= bits && bits <= s.bits_to && s.usable()) found.push_back(s);
  return found;
}

}  // namespace bench
