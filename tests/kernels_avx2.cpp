// Compiled with -mavx2 -mfma -mf16c.
#include <moxie/kernels/kernels.hpp>

namespace test {
const moxie::kernels::Table& avx2_table() { return moxie::kernels::table<moxie::kernels::Avx2>(); }
}  // namespace test
