// moxie::dispatch: the best table that this CPU runs. Compiled with the compiler's default flags, as generic.cpp.
#include <moxie/core/cpu.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {

const Table& generic_table() noexcept;
const Table& avx2_table() noexcept;
const Table& avx512_table() noexcept;
const Table& native_table() noexcept;

const Table& native_table() noexcept {
#if defined(__x86_64__)
  static const CpuFeatures cpu = cpu_features();
  if (cpu.avx512) return avx512_table();
  if (cpu.avx2) return avx2_table();
#endif
  return generic_table();
}

}  // namespace moxie::kernels
