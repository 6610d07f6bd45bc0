// The panels of AVX-VNNI on a CPU with AVX2 alone, through an emulated intrinsic. Compiled with -mavx2 -mfma -mf16c.
#include "emulated_avx512.hpp"
#include "kernels_table_of.hpp"

#include <moxie/kernels/ops_avxvnni.hpp>

namespace moxie::kernels {

struct AvxVnniEmulated : Avx2 {};
template <>
struct Ops<AvxVnniEmulated> : AvxVnniOps<AvxVnniEmulated> {};

}  // namespace moxie::kernels

namespace test {
const moxie::kernels::Table& avxvnni_emulated_table() {
  static const TableOf<moxie::kernels::AvxVnniEmulated> table("avxvnni (emulated)", *moxie::kernels::find_table("avx2"));
  return table.get();
}
}  // namespace test
