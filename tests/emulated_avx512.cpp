// All kernels of AVX-512 on a CPU with AVX2 alone: emulated intrinsics, and xsimd's vectors of 16 words written out. Compiled with
// -mavx2 -mfma -mf16c, and -Wno-psabi: vectors of 64 bytes are passed in memory here.
#include "emulated_avx512.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <xsimd/xsimd.hpp>

namespace test {

struct Simd512 {};

typedef float Vector16f __attribute__((vector_size(64), may_alias));
typedef std::int32_t Vector16i __attribute__((vector_size(64), may_alias));

/// Of 16 words: -1 or 0.
struct Mask {
  Vector16i data;
  friend Mask operator&(Mask a, Mask b) { return {a.data & b.data}; }
};

template <class T>
struct Types;
template <>
struct Types<float> {
  using Vector = Vector16f;
  using Register = simde__m512;
};
template <>
struct Types<std::int32_t> {
  using Vector = Vector16i;
  using Register = simde__m512i;
};

}  // namespace test

template <class T>
struct xsimd::batch<T, test::Simd512> {
  using Vector = typename test::Types<T>::Vector;
  using Register = typename test::Types<T>::Register;
  static constexpr std::size_t size = 16;
  Vector data;

  batch() = default;
  explicit batch(T x) : data(x - Vector{}) {}
  batch(Vector x) : data(x) {}
  batch(Register x) requires(!std::is_same_v<Register, Vector>) : data((Vector)x) {}
  operator Register() const { return (Register)data; }

  static batch load_unaligned(const T* p) {
    batch x;
    __builtin_memcpy(&x.data, p, sizeof x.data);
    return x;
  }
  static batch load_aligned(const T* p) { return load_unaligned(static_cast<const T*>(__builtin_assume_aligned(p, 64))); }
  void store_unaligned(T* p) const { __builtin_memcpy(p, &data, sizeof data); }
  void store_aligned(T* p) const { *reinterpret_cast<Vector*>(p) = data; }

  friend batch operator+(const batch& a, const batch& b) { return a.data + b.data; }
  friend batch operator-(const batch& a, const batch& b) { return a.data - b.data; }
  friend batch operator-(const batch& a) { return -a.data; }
  friend batch operator*(const batch& a, const batch& b) { return a.data * b.data; }
  friend batch operator/(const batch& a, const batch& b) { return a.data / b.data; }
  friend batch operator&(const batch& a, const batch& b) { return a.data & b.data; }
  friend batch operator|(const batch& a, const batch& b) { return a.data | b.data; }
  friend batch operator<<(const batch& a, int n) { return a.data << n; }
  friend batch operator>>(const batch& a, int n) { return a.data >> n; }
  friend test::Mask operator<(const batch& a, const batch& b) { return {a.data < b.data}; }
  friend test::Mask operator>(const batch& a, const batch& b) { return {a.data > b.data}; }
  friend test::Mask operator>=(const batch& a, const batch& b) { return {a.data >= b.data}; }
  friend test::Mask operator==(const batch& a, const batch& b) { return {a.data == b.data}; }
  batch& operator+=(const batch& b) { return *this = *this + b; }
};

namespace xsimd {

using Floats512 = batch<float, test::Simd512>;
using Words512 = batch<std::int32_t, test::Simd512>;

// Of operands of which one is NaN the instructions take the second.
template <class T>
batch<T, test::Simd512> max(const batch<T, test::Simd512>& a, const batch<T, test::Simd512>& b) {
  return a.data > b.data ? a.data : b.data;
}
template <class T>
batch<T, test::Simd512> min(const batch<T, test::Simd512>& a, const batch<T, test::Simd512>& b) {
  return a.data < b.data ? a.data : b.data;
}
inline Floats512 select(const test::Mask& mask, const Floats512& a, const Floats512& b) { return mask.data ? a.data : b.data; }
inline Floats512 fma(const Floats512& a, const Floats512& b, const Floats512& c) { return test::fmadd_ps(a, b, c); }
inline Floats512 nearbyint(const Floats512& x) {
  Floats512 out;
  for (int i = 0; i < 16; ++i) out.data[i] = std::nearbyint(x.data[i]);
  return out;
}
template <class To, class From>
To bitwise_cast(const batch<From, test::Simd512>& x) {
  return __builtin_bit_cast(decltype(To::data), x.data);
}
inline Floats512 to_float(const Words512& x) { return __builtin_convertvector(x.data, test::Vector16f); }
template <class To>
Words512 batch_cast(const Floats512& x) {
  static_assert(std::is_same_v<To, std::int32_t>);
  return __builtin_convertvector(x.data, test::Vector16i);
}

}  // namespace xsimd

#include <moxie/kernels/kernels.hpp>

namespace moxie::kernels {

struct Avx512Emulated {
  using simd = test::Simd512;
  static constexpr const char* name = "avx512 (emulated)";
};
template <>
struct Ops<Avx512Emulated> : Avx512Ops<Avx512Emulated> {};
template <class A>
struct PairOps<A, test::Simd512> : Avx512PairOps<A> {};

}  // namespace moxie::kernels

namespace test {
const moxie::kernels::Table& avx512_emulated_table();
const moxie::kernels::Table& avx512_emulated_table() { return moxie::kernels::table<moxie::kernels::Avx512Emulated>(); }
}  // namespace test
