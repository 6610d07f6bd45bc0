// moxie::dispatch on aarch64, compiled with -march=armv8.2-a+dotprod.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& neon_table() noexcept { return table<Neon>(); }
}  // namespace moxie::kernels
