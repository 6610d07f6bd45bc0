#pragma once
// The tables of kernels under test: of every architecture that this CPU runs or emulates.

#include <algorithm>
#include <vector>

#include <moxie/core/cpu.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {
const Table* find_table(const char* arch) noexcept;  // of moxie::dispatch
}

namespace test {

const moxie::kernels::Table& avx512_emulated_table();  // emulated_avx512.cpp

inline std::vector<const moxie::kernels::Table*> tables() {
  std::vector<const moxie::kernels::Table*> list;
  for (const char* arch : {"generic", "avx2", "avxvnni", "avx512", "neon"})
    if (const moxie::kernels::Table* table = moxie::kernels::find_table(arch))
      if (std::find(list.begin(), list.end(), table) == list.end()) list.push_back(table);
#if defined(__x86_64__) && !defined(MOXIE_NO_SIMDE)
  if (moxie::cpu_features().avx2) list.push_back(&avx512_emulated_table());
#endif
  return list;
}

}  // namespace test
