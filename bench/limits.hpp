#pragma once
// What the machine allows, measured: the int8 peak of the best instruction sequence in registers for each weight width, and the
// stream read.
//
// The peak counts 2 operations for each multiply-add. AVX-512 VNNI: vpdpbusd, any width. AVX2 has no such instruction; vpmaddubsw
// adds pairs in int16, and as many of its results are added there as cannot overflow before one vpmaddwd widens them:
//   4-bit 8 sums, 5-bit 4, 6-bit 2; signed 8-bit weights take vpsignb for a, |w| for w, and one sum.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <moxie/core/dtype.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/threads.hpp>

namespace bench {

inline double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Bits of the codes of a weight type, which choose the instruction sequence; 0 for float types.
inline int code_bits(moxie::Dtype dtype) {
  using moxie::Dtype;
  switch (dtype) {
    case Dtype::Q4_0:
    case Dtype::Q4_1:
    case Dtype::Q4_K:
      return 4;
    case Dtype::Q5_0:
    case Dtype::Q5_1:
    case Dtype::Q5_K:
      return 5;
    case Dtype::Q6_K:
      return 6;
    case Dtype::Q8_0:
      return 8;
    default:
      return 0;
  }
}

namespace detail {

// Keeps a value in a register and hides it from the optimizer.
template <class T>
inline void hide(T& x) {
  __asm__ volatile("" : "+x"(x));
}

#if defined(__AVX512VNNI__)
using Register = __m512i;
constexpr int chains = 12;  // latency 4, 2 a cycle: at least 8; the other registers hold operands
template <int Bits>
inline double run(std::int64_t n) {
  Register acc[chains], w = _mm512_set1_epi8(3), a = _mm512_set1_epi8(5);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm512_setzero_si512();
  hide(w);
  hide(a);
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      acc[c] = _mm512_dpbusd_epi32(acc[c], w, a);
      hide(acc[c]);
    }
  }
  return static_cast<double>(n) * chains * 64 * 2;
}
#elif defined(__AVX2__)
using Register = __m256i;
constexpr int chains = 6;
template <int Bits>
inline double run(std::int64_t n) {
  constexpr int sums = Bits == 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
  Register acc[chains], w = _mm256_set1_epi8(3), a = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 16
  for (int c = 0; c < chains; ++c) acc[c] = _mm256_setzero_si256();
  hide(w);
  hide(a);
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < chains; ++c) {
      Register s = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int j = 0; j < sums; ++j) {
        Register b = a;
        if constexpr (Bits == 8) b = _mm256_sign_epi8(b, w);
        Register p = _mm256_maddubs_epi16(w, b);
        hide(p);
        s = j == 0 ? p : _mm256_add_epi16(s, p);
      }
      acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(s, ones));
      hide(acc[c]);
    }
  }
  return static_cast<double>(n) * chains * sums * 32 * 2;
}
#else
template <int Bits>
inline double run(std::int64_t n) {  // no instruction to speak of: a plain loop
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
#endif

}  // namespace detail

/// int8 operations a second of all threads together, in GOP/s; the best of three.
template <int Bits>
double int8_peak(const moxie::Threads& threads) {
  double best = 0.0;
  for (int round = 0; round < 3; ++round) {
    double operations = 0.0;
    const double start = seconds();
    std::vector<double> done(static_cast<std::size_t>(threads.count()));
    threads.for_each(threads.count(),
                     [&](std::int64_t i, int) { done[static_cast<std::size_t>(i)] = detail::run<Bits>(4'000'000); });
    for (const double d : done) operations += d;
    best = std::max(best, operations / (seconds() - start) * 1e-9);
  }
  return best;
}

/// Bytes a second that all threads read together from memory much larger than the caches, in GB/s; the best of five.
inline double stream_read(const moxie::Threads& threads, std::size_t bytes = std::size_t{1} << 30) {
  moxie::AlignedBuffer<float> memory(bytes / sizeof(float));
  threads.for_each(64, [&](std::int64_t i, int) {
    const std::size_t part = memory.size() / 64;
    std::fill_n(memory.data() + static_cast<std::size_t>(i) * part, part, 1.0f);
  });
  double best = 0.0;
  for (int round = 0; round < 5; ++round) {
    const double start = seconds();
    threads.for_each(threads.count() * 8, [&](std::int64_t i, int) {
      const std::size_t part = memory.size() / static_cast<std::size_t>(threads.count() * 8);
      const float* p = memory.data() + static_cast<std::size_t>(i) * part;
#if defined(__AVX512F__)
      __m512 sum[4] = {};
      for (std::size_t j = 0; j + 64 <= part; j += 64)
        for (std::size_t c = 0; c < 4; ++c) sum[c] = _mm512_add_ps(sum[c], _mm512_load_ps(p + j + 16 * c));
#elif defined(__AVX__)
      __m256 sum[4] = {};
      for (std::size_t j = 0; j + 32 <= part; j += 32)
        for (std::size_t c = 0; c < 4; ++c) sum[c] = _mm256_add_ps(sum[c], _mm256_load_ps(p + j + 8 * c));
#else
      __m128 sum[4] = {};
      for (std::size_t j = 0; j + 16 <= part; j += 16)
        for (std::size_t c = 0; c < 4; ++c) sum[c] = _mm_add_ps(sum[c], _mm_load_ps(p + j + 4 * c));
#endif
      for (auto& s : sum) detail::hide(s);
    });
    best = std::max(best, static_cast<double>(bytes) / (seconds() - start) * 1e-9);
  }
  return best;
}

struct Limits {
  double peak[9] = {};  ///< GOP/s by code bits: 4, 5, 6, 8
  double stream = 0.0;  ///< GB/s

  explicit Limits(const moxie::Threads& threads) : stream(stream_read(threads)) {
    peak[4] = int8_peak<4>(threads);
    peak[5] = int8_peak<5>(threads);
    peak[6] = int8_peak<6>(threads);
    peak[8] = int8_peak<8>(threads);
  }
};

/// Peak resident memory of this process since reset_peak_resident(), MB (10^6 bytes).
inline void reset_peak_resident() {
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", file);
    std::fclose(file);
  }
}
inline double peak_resident_mb() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  char line[256];
  double kb = 0.0;
  while (file && std::fgets(line, sizeof line, file)) std::sscanf(line, "VmHWM: %lf", &kb);
  if (file) std::fclose(file);
  return kb * 1024e-6;
}

/// The processor's name, as the system has it.
inline std::string cpu_name() {
  std::FILE* file = std::fopen("/proc/cpuinfo", "r");
  char line[512];
  std::string name = "unknown";
  while (file && std::fgets(line, sizeof line, file)) {
    const std::string text(line);
    if (!text.starts_with("model name")) continue;
    name = text.substr(text.find(':') + 2);
    while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
    break;
  }
  if (file) std::fclose(file);
  return name;
}

}  // namespace bench
