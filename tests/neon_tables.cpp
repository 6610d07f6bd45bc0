// moxie::dispatch for aarch64 without the generic kernels, which would double the time that neon.cmake takes.
#include <moxie/core/cpu.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {
const Table& neon_table(TunedFor cpu) noexcept;
const Table& generic_table(TunedFor cpu) noexcept;
const Table& generic_table(TunedFor cpu) noexcept { return neon_table(cpu); }
}  // namespace moxie::kernels
