// The AVX-512 panels on a CPU with AVX2 alone, through emulated intrinsics. Compiled with -mavx2 -mfma -mf16c, and
// -Wno-psabi: vectors of 64 bytes are passed in memory here.
#include <moxie/kernels/kernels.hpp>

#include "simde_avx512.hpp"

#include <moxie/kernels/ops_avx512.hpp>

namespace moxie::kernels {

struct Avx512Emulated {
  using simd = xsimd::fma3<xsimd::avx2>;
  static constexpr const char* name = "avx512 (emulated)";
};
template <>
struct Ops<Avx512Emulated> : Avx512Ops<Avx512Emulated> {};

}  // namespace moxie::kernels

namespace test {
const moxie::kernels::Table& emulated_table() { return moxie::kernels::table<moxie::kernels::Avx512Emulated>(); }
}  // namespace test
