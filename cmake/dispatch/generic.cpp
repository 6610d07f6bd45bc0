// moxie::dispatch, compiled with the compiler's default flags.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& generic_table(TunedFor cpu) noexcept { return table<Generic>(cpu); }
}  // namespace moxie::kernels
