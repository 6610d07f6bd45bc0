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

/// Processors that products of weights are tuned for, where one wants what another does not:
///
/// Fetching ahead. All do it where there are many rows. With one or two, little is done with each line, and the processor's own
/// prefetchers may follow the stream of weights better alone (Zen 4 with AVX-512), or fall behind. What Zen 3 wants with AVX2,
/// the first-level cache and 8 KB, holds for the rest.
/// Staging of codes in halves (Q6_K, Q3_K, IQ1, IQ2, NVFP4), which are unpacked to bytes for all rows: from 8 rows on (Xeon: 16
/// rows from memory 7 to 17% faster, 12 rows 4 to 20%, 8 rows 2 to 7%, from the first-level cache), from 24 (Zen 5: 16 rows 9%
/// slower), or of Q3_K, IQ1 and IQ2 alone from 12 (Zen 4: of Q6_K 16 rows 10% slower, 32 rows 4%, 96 rows 1% faster; of NVFP4 12
/// rows 12% slower, 96 the same). Xeon and Zen 5: of Q6_K and Q3_K, before codes lay in planes.
enum class TunedFor {
  zen4,  ///< nothing ahead for one and two rows: 2 cores read 4- and 6-bit codes for one row at 55 GB/s so, and at 43 with it;
         ///< for three and four to the second-level cache, but 8-bit codes to the first, 4 KB ahead
  zen5,  ///< for one and two rows if codes have less than 8 bits (68 GB/s, and 59 without); to the first-level cache
  /// Always, to the second-level cache, 3 KB ahead, with AVX2 and AVX-VNNI too; staged from 8 rows on. 2 cores of a Xeon (model
  /// 207), where memory gives 22 to 30 GB/s, decode Q4_K_M at 79 to 84% of the limit so (8 KB ahead), at 72 to 80% with the
  /// first-level cache and at 51% without; Q8_0 at 90, 86 and 70%. For the distance see panel_int8.hpp.
  intel,
};

struct CpuFeatures {
  bool avx2 = false;          ///< AVX2, FMA and F16C
  bool avx_vnni = false;      ///< vpdpbusd on registers of 32 bytes without AVX-512, beside all of avx2
  bool avx512 = false;        ///< AVX-512 F, BW, VL, DQ and VNNI, beside all of avx2
  bool neon_dotprod = false;  ///< sdot and udot (FEAT_DotProd)
  /// AMD's and Hygon's up to family 25 (Zen 3 and 4) and from 26 on: zen4 and zen5; all others: intel. Of
  /// x86-64 only: kernels for others fetch as those for AVX2 do on Zen 3.
  TunedFor tuned_for = TunedFor::intel;
};

inline CpuFeatures cpu_features() noexcept {
  CpuFeatures features;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return features;
  const bool amd = c == signature_AMD_ecx || c == 0x656e6975;  // "HygonGenuine", a Zen too
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const unsigned family = (a >> 8 & 15u) + (a >> 20 & 255u);
  if (amd) features.tuned_for = family <= 25 ? TunedFor::zen4 : TunedFor::zen5;
  const auto has = [](unsigned word, int bit) { return (word >> bit & 1u) != 0; };
  const bool fma = has(c, 12), xsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
  if (!xsave || !avx) return features;
  std::uint32_t saved = 0, saved_high = 0;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(saved_high) : "c"(0));
  const bool saves_ymm = (saved & 0x6u) == 0x6u, saves_zmm = (saved & 0xe6u) == 0xe6u;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
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
