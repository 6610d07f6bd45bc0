// The limits of this machine: int8 peak in registers for each weight width, and stream read.
//
//   roofline [THREADS]

#include <cstdlib>

#include "limits.hpp"

int main(int argc, char** argv) {
  const moxie::Threads threads(argc > 1 ? std::atoi(argv[1]) : 0);
  const bench::Limits limits(threads);
  std::printf("%s, %d threads\n", bench::cpu_name().c_str(), threads.count());
  for (const int bits : {4, 5, 6, 8}) std::printf("int8 peak, %d-bit weights  %7.0f GOP/s\n", bits, limits.peak[bits]);
  std::printf("stream read               %7.1f GB/s\n", limits.stream);
}
