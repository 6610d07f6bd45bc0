// The generic kernels, as the compiler's default flags make them.
#include <moxie/kernels/kernels.hpp>

namespace test {
const moxie::kernels::Table& generic_table() { return moxie::kernels::table<moxie::kernels::Generic>(); }
}  // namespace test
