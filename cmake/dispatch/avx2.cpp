// moxie::dispatch, compiled with -mavx2 -mfma -mf16c.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& avx2_table() noexcept { return table<Avx2>(); }
}  // namespace moxie::kernels
