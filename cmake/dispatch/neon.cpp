// moxie::dispatch on aarch64, compiled with -march=armv8.2-a+dotprod.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& neon_table(TunedFor cpu) noexcept { return table<Neon>(cpu); }
}  // namespace moxie::kernels
