// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma -mf16c.
#include <moxie/kernels/kernels.hpp>

namespace test {
const moxie::kernels::Table& avx512_table() { return moxie::kernels::table<moxie::kernels::Avx512>(); }
}  // namespace test
