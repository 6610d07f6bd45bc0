// moxie::dispatch for aarch64 without the generic kernels, which would double the time that neon.cmake takes.
#include <moxie/kernels/table.hpp>

namespace moxie::kernels {
const Table& neon_table() noexcept;
const Table& generic_table() noexcept;
const Table& generic_table() noexcept { return neon_table(); }
}  // namespace moxie::kernels
