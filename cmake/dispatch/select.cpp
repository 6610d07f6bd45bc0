// moxie::dispatch: the tables that this CPU runs, the best one first. Compiled with the compiler's default flags, as generic.cpp.
#include <cstring>

#include <moxie/core/cpu.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {

const Table& generic_table(TunedFor cpu) noexcept;
const Table& avx2_table(TunedFor cpu) noexcept;
const Table& avxvnni_table(TunedFor cpu) noexcept;
const Table& avx512_table(TunedFor cpu) noexcept;
const Table& neon_table(TunedFor cpu) noexcept;
const Table& native_table() noexcept;
const Table* find_table(const char* arch) noexcept;

namespace {
/// f(table) for each one that this CPU runs, the best first, until it is true.
template <class F>
const Table* first_table(F&& f) noexcept {
  static const CpuFeatures cpu = cpu_features();
  const Table* found = nullptr;
  const auto offer = [&](bool runs, const Table& (*table_for)(TunedFor)) {
    if (!found && runs && f(table_for(cpu.tuned_for))) found = &table_for(cpu.tuned_for);
  };
#if defined(__x86_64__)
  offer(cpu.avx512, avx512_table);
  offer(cpu.avx_vnni, avxvnni_table);
  offer(cpu.avx2, avx2_table);
#elif defined(__aarch64__)
  offer(cpu.neon_dotprod, neon_table);
#endif
  offer(true, generic_table);
  return found;
}
}  // namespace

const Table& native_table() noexcept {
  return *first_table([](const Table&) { return true; });
}
const Table* find_table(const char* arch) noexcept {
  return first_table([arch](const Table& table) { return std::strcmp(table.arch, arch) == 0; });
}

}  // namespace moxie::kernels
