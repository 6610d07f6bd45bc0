#pragma once
// What the operating system says of this machine and this process (Linux; elsewhere names are "unknown" and sizes 0), and a
// clock.

#include <time.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace bench {

inline double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Time that the calling thread has spent on a processor: without what others took from it.
inline double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

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
