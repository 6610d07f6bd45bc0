#pragma once
// Loops over registers: unrolled before the compiler decides what lives in registers, so that arrays of vectors do.

#include <utility>

#include <moxie/core/floats.hpp>

namespace moxie::kernels {

/// f(0), f(1), .., f(n - 1), written out. f takes an int, and must be always inlined: [&](int i) MOXIE_INLINE_LAMBDA { .. }.
template <int n, class F>
MOXIE_INLINE void unroll(F&& f) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) { (f(i), ...); }
  (std::make_integer_sequence<int, n>{});
}

/// The same with compile-time indices: f(Constant<0>{}), ..
template <int i>
struct Constant {
  static constexpr int value = i;
};
template <int n, class F>
MOXIE_INLINE void unroll_constant(F&& f) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) { (f(Constant<i>{}), ...); }
  (std::make_integer_sequence<int, n>{});
}

#define MOXIE_INLINE_LAMBDA __attribute__((always_inline))

/// Zeros.
template <class T, int R, int V>
MOXIE_INLINE void clear(T (&x)[R][V]) noexcept {
  unroll<R * V>([&](int i) MOXIE_INLINE_LAMBDA { x[i / V][i % V] = T(0); });
}

}  // namespace moxie::kernels
