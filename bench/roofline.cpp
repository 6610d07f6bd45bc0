// The limits of this machine: operations a second of each instruction sequence in registers, of every architecture that this CPU
// has, and the speed of reading memory. With 1 thread and with all.
//
//   roofline [THREADS]

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "limits.hpp"

namespace {

void print(int n) {
  const moxie::Threads threads(n);
  std::printf("\n%d %s\n", threads.count(), threads.count() == 1 ? "thread" : "threads");
  for (const bench::Sequence& s : bench::all_sequences()) {
    if (!s.usable()) continue;
    std::printf("  %-8s %2d", s.arch, s.bits_from);
    s.bits_from == s.bits_to ? std::printf("        ") : std::printf(" to %2d  ", s.bits_to);
    std::printf("%-32s %7.0f GOP/s\n", s.name, bench::sequence_gops(s, threads, 5));
  }
  for (const bool large : {false, true})
    std::printf("  stream read, pages of %-30s %6.1f GB/s\n", large ? "2 MB" : "4 KB",
                bench::StreamMemory(threads, large).read(threads, 5));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int all = moxie::Threads(argc > 1 ? std::atoi(argv[1]) : 0).count();
    std::printf("%s\narchitecture, bits of a weight (%d: bf16, %d: f32), instructions\n", bench::cpu_name().c_str(),
                bench::bf16_weights, bench::f32_weights);
    print(1);
    if (all > 1) print(all);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
