// moxie::dispatch, compiled with the flags of avx2.cpp and -mavxvnni.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& avxvnni_table() noexcept { return table<AvxVnni>(); }
}  // namespace moxie::kernels
