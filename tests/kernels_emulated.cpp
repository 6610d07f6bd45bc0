// The panels of AVX-512 and of AVX-VNNI on a CPU with AVX2 alone, through emulated intrinsics. Compiled with -mavx2 -mfma -mf16c,
// and -Wno-psabi: vectors of 64 bytes are passed in memory here.
#include "kernels_emulated.hpp"

#include "simde_avx512.hpp"

#include <moxie/kernels/ops_avx512.hpp>
#include <moxie/kernels/ops_avxvnni.hpp>

namespace moxie::kernels {

struct Avx512Emulated : Avx2 {};
template <>
struct Ops<Avx512Emulated> : Avx512Ops<Avx512Emulated> {};

struct AvxVnniEmulated : Avx2 {};
template <>
struct Ops<AvxVnniEmulated> : AvxVnniOps<AvxVnniEmulated> {};

}  // namespace moxie::kernels

namespace test {
const moxie::kernels::Table& avx512_emulated_table() {
  static const TableOf<moxie::kernels::Avx512Emulated, true> table("avx512 (emulated)", *moxie::kernels::find_table("avx2"));
  return table.get();
}
const moxie::kernels::Table& avxvnni_emulated_table() {
  static const TableOf<moxie::kernels::AvxVnniEmulated, false> table("avxvnni (emulated)", *moxie::kernels::find_table("avx2"));
  return table.get();
}
}  // namespace test
