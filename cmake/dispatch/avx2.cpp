// moxie::dispatch, compiled with -mavx2 -mfma -mf16c.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& avx2_table(TunedFor cpu) noexcept { return table<Avx2>(cpu); }
}  // namespace moxie::kernels
