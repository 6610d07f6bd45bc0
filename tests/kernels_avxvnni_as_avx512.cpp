// The panels of AVX-VNNI with the instruction that AVX-512 has for registers of 32 bytes: the same arithmetic in another
// encoding. Compiled with the flags of AVX-512.
#include "kernels_table_of.hpp"

#define _mm256_dpbusd_avx_epi32(sum, a, b) _mm256_dpbusd_epi32(sum, a, b)
#include <moxie/kernels/ops_avxvnni.hpp>

namespace moxie::kernels {

struct AvxVnniAsAvx512 : Avx2 {};
template <>
struct Ops<AvxVnniAsAvx512> : AvxVnniOps<AvxVnniAsAvx512> {};

}  // namespace moxie::kernels

namespace test {
const moxie::kernels::Table& avxvnni_as_avx512_table() {
  static const TableOf<moxie::kernels::AvxVnniAsAvx512> table("avxvnni (with AVX-512's instruction)",
                                                              *moxie::kernels::find_table("avx2"));
  return table.get();
}
}  // namespace test
