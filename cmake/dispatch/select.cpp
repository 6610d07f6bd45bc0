// moxie::dispatch: the tables that this CPU runs, the best one first. Compiled with the compiler's default flags, as generic.cpp.
#include <cstring>

#include <moxie/core/cpu.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {

const Table& generic_table() noexcept;
const Table& avx2_table() noexcept;
const Table& avxvnni_table() noexcept;
const Table& avx512_table(TunedFor cpu) noexcept;
const Table& neon_table() noexcept;
const Table& native_table() noexcept;
const Table* find_table(const char* arch) noexcept;

namespace {
/// f(table) for each one that this CPU runs, the best first, until it is true.
template <class F>
const Table* first_table(F&& f) noexcept {
#if defined(__x86_64__)
  static const CpuFeatures cpu = cpu_features();
  if (cpu.avx512)
    if (const Table& avx512 = avx512_table(cpu.tuned_for); f(avx512)) return &avx512;
  if (cpu.avx_vnni && f(avxvnni_table())) return &avxvnni_table();
  if (cpu.avx2 && f(avx2_table())) return &avx2_table();
#elif defined(__aarch64__)
  static const CpuFeatures cpu = cpu_features();
  if (cpu.neon_dotprod && f(neon_table())) return &neon_table();
#endif
  return f(generic_table()) ? &generic_table() : nullptr;
}
}  // namespace

const Table& native_table() noexcept {
  return *first_table([](const Table&) { return true; });
}
const Table* find_table(const char* arch) noexcept {
  return first_table([arch](const Table& table) { return std::strcmp(table.arch, arch) == 0; });
}

}  // namespace moxie::kernels
