// moxie::dispatch, compiled with the flags of avx2.cpp and -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni.
#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {
const Table& avx512_table(TunedFor cpu) noexcept { return table<Avx512>(cpu); }
}  // namespace moxie::kernels
