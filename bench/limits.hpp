#pragma once
// What the machine allows, measured: operations a second of the best instruction sequence in registers for each weight width
// (peak.hpp), and the bytes a second that can be read from memory.
//
// Memory is read in order by all threads, once from small pages and once from large ones (a TLB miss every 4 KB costs up to half
// of the speed), with and without fetching ahead: the best of these is the limit.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/threads.hpp>

#include "peak.hpp"
#include "system.hpp"

namespace bench {

inline constexpr std::array<int, 6> weight_bits = {4, 5, 6, 8, bf16_weights, f32_weights};

/// The width of a weight type that chooses the instruction sequence.
inline int code_bits(moxie::Dtype dtype) {
  using moxie::Dtype;
  switch (dtype) {
    case Dtype::IQ1_S:
    case Dtype::IQ1_M:
    case Dtype::TQ1_0:
    case Dtype::TQ2_0:
    case Dtype::Q2_K:
    case Dtype::Q3_K:
    case Dtype::Q4_0:
    case Dtype::Q4_1:
    case Dtype::Q4_K:
    case Dtype::MXFP4:
    case Dtype::NVFP4:
      return 4;
    case Dtype::Q5_0:
    case Dtype::Q5_1:
    case Dtype::Q5_K:
      return 5;
    case Dtype::Q6_K:
      return 6;
    case Dtype::BF16:
      return bf16_weights;
    case Dtype::F32:
    case Dtype::F16:
    case Dtype::F8_E4M3:
      return f32_weights;
    default:
      return 8;
  }
}

/// Memory larger than the caches, written once, so that its pages exist.
class StreamMemory {
 public:
  /// 512 MB, or twice the last-level cache of a server (of one with 480 MB, 512 MB were read 6% faster than 2 GB).
  static std::size_t bytes() {
    constexpr std::size_t least = std::size_t{1} << 29, unit = std::size_t{1} << 27;
    const long cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
    return std::max(least, (2 * static_cast<std::size_t>(std::max(cache, 0L)) + unit - 1) / unit * unit);
  }

  StreamMemory(const moxie::Threads& threads, bool large_pages) {
    base_ = ::mmap(nullptr, bytes_ + large_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw moxie::MemoryError(moxie::concat(bytes_ >> 20, " MB for measuring the memory's speed are not there"));
    const auto address = (reinterpret_cast<std::uintptr_t>(base_) + large_page - 1) / large_page * large_page;
    data_ = reinterpret_cast<char*>(address);
    ::madvise(data_, bytes_, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // where there are none, both are the same
    threads.for_each(
        64, [&](std::int64_t i, int) { std::memset(data_ + static_cast<std::size_t>(i) * (bytes_ / 64), 1, bytes_ / 64); });
  }
  ~StreamMemory() { ::munmap(base_, bytes_ + large_page); }
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;

  /// Bytes a second that the threads read together, in GB/s: the best of `rounds`.
  double read(const moxie::Threads& threads, int rounds) const {
    double best = 0.0;
    for (int round = 0; round < rounds; ++round)
      for (const std::size_t ahead : {std::size_t{0}, std::size_t{4096}}) {
        const std::int64_t parts = 16 * threads.count();
        const std::size_t part = bytes_ / static_cast<std::size_t>(parts) / line * line;
        const double start = seconds();
        threads.for_each(parts, [&](std::int64_t i, int) { sum(data_ + static_cast<std::size_t>(i) * part, part, ahead); });
        best = std::max(best, static_cast<double>(part) * static_cast<double>(parts) / (seconds() - start) * 1e-9);
      }
    return best;
  }

 private:
  static constexpr std::size_t large_page = std::size_t{1} << 21, line = 64;

  // Four vectors of a line each: compilers use the widest registers they may.
  static void sum(const char* p, std::size_t n, std::size_t ahead) {
    using Line = std::uint32_t __attribute__((vector_size(line)));
    Line sums[4] = {};
    for (std::size_t j = 0; j + 4 * line <= n; j += 4 * line)
      for (std::size_t c = 0; c < 4; ++c) {
        Line x;
        std::memcpy(&x, p + j + c * line, line);
        if (ahead) __builtin_prefetch(p + j + c * line + ahead, 0, 2);
        sums[c] += x;
      }
    for (Line& s : sums) __asm__ volatile("" ::"m"(s));
  }

  const std::size_t bytes_ = bytes();
  void* base_ = nullptr;
  char* data_ = nullptr;
};

/// Operations a second of all threads together, in GOP/s: the best of `rounds`.
inline double sequence_gops(const Sequence& sequence, const moxie::Threads& threads, int rounds) {
  constexpr std::int64_t n = 1'000'000;  // some milliseconds
  double best = 0.0;
  std::vector<double> done(static_cast<std::size_t>(threads.count()));
  for (int round = 0; round < rounds; ++round) {
    const double start = seconds();
    threads.for_each(threads.count(), [&](std::int64_t i, int) { done[static_cast<std::size_t>(i)] = sequence.run(n); });
    const double taken = seconds() - start;
    double operations = 0.0;
    for (const double d : done) operations += d;
    best = std::max(best, operations / taken * 1e-9);
  }
  return best;
}

struct Limits {
  std::map<int, double> peak;                     ///< GOP/s by weight_bits
  double stream_small = 0.0, stream_large = 0.0;  ///< GB/s from pages of 4 KB and of 2 MB
  double stream() const { return std::max(stream_small, stream_large); }
  /// Of the integer sequences.
  double int8_peak() const {
    double best = 0.0;
    for (const auto& [bits, gops] : peak)
      if (bits <= 8) best = std::max(best, gops);
    return best;
  }
  void take_better(const Limits& other) {
    for (const auto& [bits, gops] : other.peak) peak[bits] = std::max(peak[bits], gops);
    stream_small = std::max(stream_small, other.stream_small);
    stream_large = std::max(stream_large, other.stream_large);
  }
};

/// Measures the limits for the kernels of an architecture, as often as asked: a shared machine's speed changes while one
/// measures.
class LimitMeter {
 public:
  /// 1 GB of memory is kept, all of it resident.
  LimitMeter(const moxie::Threads& threads, const char* arch) : threads_(threads), small_(threads, false), large_(threads, true) {
    for (const int bits : weight_bits) sequences_[bits] = sequences_for(arch, bits);
  }
  static double resident_mb() { return 2e-6 * static_cast<double>(StreamMemory::bytes()); }

  Limits measure(int rounds = 3) const {
    Limits limits;
    std::map<const char*, double> known;  // by name: some serve several widths
    for (const auto& [bits, list] : sequences_)
      for (const Sequence& s : list) {
        if (!known.contains(s.name)) known[s.name] = sequence_gops(s, threads_, rounds);
        limits.peak[bits] = std::max(limits.peak[bits], known[s.name]);
      }
    limits.stream_small = small_.read(threads_, rounds);
    limits.stream_large = large_.read(threads_, rounds);
    return limits;
  }

 private:
  moxie::Threads threads_;
  StreamMemory small_, large_;
  std::map<int, std::vector<Sequence>> sequences_;
};

}  // namespace bench
