#pragma once
// Loops over registers: unrolled before the compiler decides what lives in registers, so that arrays of vectors do.

#include <utility>

#include <moxie/core/floats.hpp>

namespace moxie::kernels {

/// Before a loop with a known number of passes, 64 at most: written out. A compiler sees the body once before that, not as often
/// as it runs, which is half of the time that the kernels take to compile.
#if defined(__clang__)
#define MOXIE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MOXIE_UNROLL _Pragma("GCC unroll 64")
#endif

#define MOXIE_INLINE_LAMBDA __attribute__((always_inline))

/// Where indices must be constants: f(Constant<0>{}), f(Constant<1>{}), .., f(Constant<n - 1>{}), written out. f must be always
/// inlined: [&](auto i) MOXIE_INLINE_LAMBDA { .. }.
template <int i>
struct Constant {
  static constexpr int value = i;
};
template <int n, class F>
MOXIE_INLINE void unroll_constant(F&& f) noexcept {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) { (f(Constant<i>{}), ...); }
  (std::make_integer_sequence<int, n>{});
}

/// Zeros.
template <class T, int R, int V>
MOXIE_INLINE void clear(T (&x)[R][V]) noexcept {
  MOXIE_UNROLL
  for (int i = 0; i < R * V; ++i) x[i / V][i % V] = T(0);
}

}  // namespace moxie::kernels
