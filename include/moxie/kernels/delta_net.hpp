#pragma once
// What a gated delta net (arXiv 2412.06464) does between its matrix products: a short causal convolution over each channel, and
// the delta rule, which carries a matrix S [k_dim, v_dim] from token to token:
//
//   S = decay S;   S += k (beta (v - S^T k))^T;   out = S^T q
//
// or, as in Mamba-2, without the subtraction.
//
// Columns of S do not depend on each other, so 32 of them, 16 KB for keys of 128, stay in the first-level cache while all tokens
// of a pass go over them: a product and 3 fused multiply-adds (2 without the subtraction) for an element and token. Token after
// token is the form of decoding; a chunked form would be products of matrices, but its bits would depend on where chunks begin.
//
// Order of summation: over k, four sums taken in turn, (0 + 1) + (2 + 3) at the end.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/elementwise.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

namespace delta {

/// Two vectors of columns, `n` of them in use, for all rows.
template <class A>
MOXIE_INLINE void columns(const DeltaRule& a, std::int64_t first, std::int64_t n) noexcept {
  using F = Floats<A>;
  constexpr int lanes = rows::lanes<A>, sums = 4;
  const bool whole = n >= 2 * lanes;
  for (std::int64_t i = 0; i < a.n_rows; ++i) {
    const std::int64_t row = a.rows[i];
    const float *q = a.q + row * a.qk_stride, *k = a.k + row * a.qk_stride, *v = a.v + row * a.v_stride + first;
    float* out = a.out + row * a.v_stride + first;
    const F decay(a.decay[row * a.gate_stride]), beta(a.beta[row * a.gate_stride]);
    float* state = a.state + first;
    F old[sums][2], change[2], seen[sums][2];
    clear(old);
    clear(seen);
    std::int64_t d = 0;
    const auto recall = [&](std::int64_t at, int t) MOXIE_INLINE_LAMBDA {
      const F key(k[at]);
      MOXIE_UNROLL
      for (int u = 0; u < 2; ++u) old[t][u] = madd(key, F::load_unaligned(state + at * delta_columns + u * lanes), old[t][u]);
    };
    for (; a.subtracts && d + sums <= a.k_dim; d += sums) {
      MOXIE_UNROLL
      for (int t = 0; t < sums; ++t) recall(d + t, t);
    }
    for (int t = 0; a.subtracts && d < a.k_dim; ++d, ++t) recall(d, t);
    MOXIE_UNROLL
    for (int u = 0; u < 2; ++u) {
      const F value = whole ? F::load_unaligned(v + u * lanes) : rows::load_part<A>(v + u * lanes, n - u * lanes, 0.0f);
      change[u] = beta * (value - decay * ((old[0][u] + old[1][u]) + (old[2][u] + old[3][u])));
    }
    const auto update = [&](std::int64_t at, int t) MOXIE_INLINE_LAMBDA {
      const F key(k[at]), query(q[at]);
      MOXIE_UNROLL
      for (int u = 0; u < 2; ++u) {
        float* const p = state + at * delta_columns + u * lanes;
        const F s = madd(key, change[u], decay * F::load_unaligned(p));
        s.store_unaligned(p);
        seen[t][u] = madd(query, s, seen[t][u]);
      }
    };
    for (d = 0; d + sums <= a.k_dim; d += sums) {
      MOXIE_UNROLL
      for (int t = 0; t < sums; ++t) update(d + t, t);
    }
    for (int t = 0; d < a.k_dim; ++d, ++t) update(d, t);
    MOXIE_UNROLL
    for (int u = 0; u < 2; ++u) {
      const F sum = (seen[0][u] + seen[1][u]) + (seen[2][u] + seen[3][u]);
      if (whole)
        sum.store_unaligned(out + u * lanes);
      else if (n > u * lanes)
        rows::store_part<A>(out + u * lanes, n - u * lanes < lanes ? n - u * lanes : lanes, sum);
    }
  }
}

}  // namespace delta

template <class A>
void delta_rule(const DeltaRule& a) noexcept {
  for (std::int64_t first = 0; first < a.columns; first += 2 * rows::lanes<A>) delta::columns<A>(a, first, a.columns - first);
}

/// y[c] = silu(sum over t of w[t][c] * x[t][c]), from the earliest t on; without `activate`, the sum. y may be w or one of x.
template <class A>
void causal_conv(const float* const* x, const float* w, std::int64_t w_stride, std::int64_t taps, std::int64_t n, bool activate,
                 float* y) noexcept {
  using F = Floats<A>;
  constexpr int lanes = rows::lanes<A>;
  for (std::int64_t c = 0; c < n; c += lanes) {
    const bool whole = n - c >= lanes;
    const auto load = [&](const float* p) MOXIE_INLINE_LAMBDA {
      return whole ? F::load_unaligned(p + c) : rows::load_part<A>(p + c, n - c, 0.0f);
    };
    F sum(0.0f);
    for (std::int64_t t = 0; t < taps; ++t) sum = madd(load(w + t * w_stride), load(x[t]), sum);
    if (activate) sum = sum / (F(1.0f) + exp_fixed(-sum));
    if (whole)
      sum.store_unaligned(y + c);
    else
      rows::store_part<A>(y + c, n - c, sum);
  }
}

/// y *= sigmoid(gate)
template <class A>
void sigmoid_gate(const float* gate, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  rows::map<A>(
      n, y, [](F g, F v) MOXIE_INLINE_LAMBDA { return v / (F(1.0f) + exp_fixed(-g)); }, gate, y);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
