#pragma once
// What the CPU can do, and the operating system lets it do (it must save the wide registers): x86-64, and aarch64 with Linux;
// nothing elsewhere.
//
// Sources: Intel Software Developer's Manual, volume 2, CPUID and XGETBV; Linux, Documentation/arm64/elf_hwcaps.rst.

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace moxie {

/// Which weights a product of one or two rows is to fetch ahead; others do in any case. Little is done with each line then, and
/// the processor's own prefetchers may follow the stream of weights better alone, or fall behind.
enum class FetchFew { none, narrow, all };

struct CpuFeatures {
  bool avx2 = false;          ///< AVX2, FMA and F16C
  bool avx_vnni = false;      ///< vpdpbusd on registers of 32 bytes without AVX-512, beside all of avx2
  bool avx512 = false;        ///< AVX-512 F, BW, VL, DQ and VNNI, beside all of avx2
  bool neon_dotprod = false;  ///< sdot and udot (FEAT_DotProd)
  /// AMD's family 25 (Zen 4) none: 2 cores read 4- and 6-bit codes for one row at 43 GB/s so, and at 55 without. Family 26 (Zen
  /// 5) those narrower than 8 bits: 68 GB/s, and 59 without. All others all: an Intel Xeon, whose cores read no more than 11 to
  /// 15 GB/s, decodes Q4_K_M and Q8_0 at 74 and 86% of the limit so, and at 51 and 70% without.
  FetchFew fetch_few = FetchFew::all;
};

inline CpuFeatures cpu_features() noexcept {
  CpuFeatures features;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return features;
  const bool amd = c == signature_AMD_ecx;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const unsigned family = (a >> 8 & 15u) + (a >> 20 & 255u);
  const auto has = [](unsigned word, int bit) { return (word >> bit & 1u) != 0; };
  const bool fma = has(c, 12), xsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
  if (!xsave || !avx) return features;
  std::uint32_t saved = 0, saved_high = 0;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
  const bool saves_ymm = (saved & 0x6u) == 0x6u, saves_zmm = (saved & 0xe6u) == 0xe6u;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  if (amd && family == 25) features.fetch_few = FetchFew::none;
  if (amd && family == 26) features.fetch_few = FetchFew::narrow;
  features.avx2 = saves_ymm && fma && f16c && has(b, 5);
  features.avx512 = features.avx2 && saves_zmm && has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31) && has(c, 11);
  const unsigned last_subleaf = a;
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) features.avx_vnni = features.avx2 && has(a, 4);
#elif defined(__aarch64__) && defined(__linux__)
  features.neon_dotprod = (getauxval(AT_HWCAP) >> 20 & 1u) != 0;  // HWCAP_ASIMDDP
#endif
  return features;
}

}  // namespace moxie
