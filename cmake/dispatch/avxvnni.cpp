// moxie::dispatch, compiled with the flags of avx2.cpp and -mavxvnni.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& avxvnni_table(TunedFor cpu) noexcept { return table<AvxVnni>(cpu); }
}  // namespace moxie::kernels
