#pragma once
// Row operations between the matrix products, on vectors of the architecture. Every result has one order of operations, fixed by
// the row's length alone: a tail goes through the same vector operations, padded with neutral elements; sums are kept in
// 4 vectors taken in turn, each of whose lanes are added from low to high in f64 at the end, then the four.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

namespace rows {

template <class A>
inline constexpr int lanes = static_cast<int>(Floats<A>::size);

template <class A>
MOXIE_INLINE Floats<A> load_part(const float* p, std::int64_t n, float neutral) noexcept {
  alignas(64) float part[lanes<A>];
  for (int i = 0; i < lanes<A>; ++i) part[i] = i < n ? p[i] : neutral;
  return Floats<A>::load_aligned(part);
}
template <class A>
MOXIE_INLINE void store_part(float* p, std::int64_t n, Floats<A> x) noexcept {
  alignas(64) float part[lanes<A>];
  x.store_aligned(part);
  for (std::int64_t i = 0; i < n; ++i) p[i] = part[i];
}

/// y[i] = f(x[i]...) for vectors of all inputs at once.
template <class A, class Fn, class... In>
MOXIE_INLINE void map(std::int64_t n, float* y, Fn&& f, const In*... in) noexcept {
  std::int64_t i = 0;
  for (; i + lanes<A> <= n; i += lanes<A>) f(Floats<A>::load_unaligned(in + i)...).store_unaligned(y + i);
  if (i < n) store_part<A>(y + i, n - i, f(load_part<A>(in + i, n - i, 0)...));
}

/// f(vector, turn) for each vector of x; turn goes through 0, 1, 2, 3. Padded with `neutral`.
template <class A, class Fn>
MOXIE_INLINE void each(const float* x, std::int64_t n, float neutral, Fn&& f) noexcept {
  constexpr int step = 4 * lanes<A>;
  std::int64_t i = 0;
  for (; i + step <= n; i += step) {
    MOXIE_UNROLL
    for (int t = 0; t < 4; ++t) f(Floats<A>::load_unaligned(x + i + t * lanes<A>), t);
  }
  if (i == n) return;
  MOXIE_UNROLL
  for (int t = 0; t < 4; ++t) {
    const std::int64_t rest = n - i - t * lanes<A>;
    f(rest >= lanes<A> ? Floats<A>::load_unaligned(x + i + t * lanes<A>) : load_part<A>(x + i + t * lanes<A>, rest, neutral), t);
  }
}

template <class A>
MOXIE_INLINE double sum(const Floats<A> (&parts)[4]) noexcept {
  alignas(64) float values[4][lanes<A>];
  MOXIE_UNROLL
  for (int t = 0; t < 4; ++t) parts[t].store_aligned(values[t]);
  double total[4] = {};
  for (int i = 0; i < lanes<A>; ++i) {  // four chains of additions beside each other
    MOXIE_UNROLL
    for (int t = 0; t < 4; ++t) total[t] += static_cast<double>(values[t][i]);
  }
  return (total[0] + total[1]) + (total[2] + total[3]);
}

}  // namespace rows

template <class A>
void rms_norm(const float* x, const float* w, float eps, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  F parts[4] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f)};
  rows::each<A>(x, n, 0, [&](F v, int t) MOXIE_INLINE_LAMBDA { parts[t] = madd(v, v, parts[t]); });
  const double mean = rows::sum<A>(parts) / static_cast<double>(n);
  const F factor(static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(eps))));
  if (w)
    rows::map<A>(
        n, y, [&](F v, F weight) MOXIE_INLINE_LAMBDA { return v * factor * weight; }, x, w);
  else
    rows::map<A>(
        n, y, [&](F v) MOXIE_INLINE_LAMBDA { return v * factor; }, x);
}

template <class A>
void swiglu(const float* gate, const float* up, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  rows::map<A>(
      n, y, [](F g, F u) MOXIE_INLINE_LAMBDA { return g / (F(1.0f) + exp_fixed(-g)) * u; }, gate, up);
}

/// A gate or up that is NaN stays NaN.
template <class A>
void clamped_swiglu(const float* gate, const float* up, float limit, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  const F most(limit), least(-limit);
  rows::map<A>(
      n, y,
      [&](F g, F u) MOXIE_INLINE_LAMBDA {
        g = xsimd::select(g > most, most, g);
        u = xsimd::select(u > most, most, xsimd::select(u < least, least, u));
        return (u + F(1.0f)) * (g / (F(1.0f) + exp_fixed(g * F(-1.702f))));
      },
      gate, up);
}

/// NaN stays NaN.
template <class A>
void relu_squared(const float* x, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  rows::map<A>(
      n, y, [](F v) MOXIE_INLINE_LAMBDA { return xsimd::select(v < F(0.0f), F(0.0f), v * v); }, x);
}

template <class A>
void axpy(float a, const float* x, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  const F factor(a);
  rows::map<A>(
      n, y, [&](F v, F sum) MOXIE_INLINE_LAMBDA { return madd(factor, v, sum); }, x, y);
}

/// y stays in registers while the rows are added. Four vectors of it hide the latency of a fused multiply-add.
template <class A>
void axpy_rows(const float* a, const float* x, std::int64_t n_rows, std::int64_t stride, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  constexpr int lanes = rows::lanes<A>, step = 4 * lanes;
  std::int64_t i = 0;
  for (; i + step <= n; i += step) {
    F sums[4];
    MOXIE_UNROLL
    for (int t = 0; t < 4; ++t) sums[t] = F::load_unaligned(y + i + t * lanes);
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const F factor(a[r]);
      const float* row = x + r * stride + i;
      MOXIE_UNROLL
      for (int t = 0; t < 4; ++t) sums[t] = madd(factor, F::load_unaligned(row + t * lanes), sums[t]);
    }
    MOXIE_UNROLL
    for (int t = 0; t < 4; ++t) sums[t].store_unaligned(y + i + t * lanes);
  }
  if (i == n) return;
  for (std::int64_t r = 0; r < n_rows; ++r) axpy<A>(a[r], x + r * stride + i, n - i, y + i);
}

template <class A>
void add(const float* x, std::int64_t n, float* y) noexcept {
  using F = Floats<A>;
  rows::map<A>(
      n, y, [](F v, F sum) MOXIE_INLINE_LAMBDA { return sum + v; }, x, y);
}

/// As f32_to_bf16(), of x and of what that leaves of it.
template <class A>
void split_bf16(const float* x, std::int64_t n, std::uint16_t* high, std::uint16_t* low) noexcept {
  using F = Floats<A>;
  using W = xsimd::batch<std::int32_t, typename A::simd>;
  constexpr int lanes = rows::lanes<A>;
  const auto rounded = [](const F& v) MOXIE_INLINE_LAMBDA {
    const W bits = xsimd::bitwise_cast<W>(v), nearest = bits + W(0x7fff) + ((bits >> 16) & W(1)), nan = bits | W(0x400000);
    return xsimd::bitwise_cast<W>(xsimd::select(v == v, xsimd::bitwise_cast<F>(nearest), xsimd::bitwise_cast<F>(nan))) >> 16;
  };
  const auto store = [](const W& words, std::uint16_t* to) MOXIE_INLINE_LAMBDA {
    const auto halves =
        __builtin_convertvector(__builtin_bit_cast(Lanes<std::int32_t, lanes>, words), Lanes<std::uint16_t, lanes>);
    __builtin_memcpy(to, &halves, sizeof halves);
  };
  for (std::int64_t i = 0; i < n; i += lanes) {
    const F v = F::load_unaligned(x + i);
    const W h = rounded(v);
    store(h, high + i);
    store(rounded(v - xsimd::bitwise_cast<F>(h << 16)), low + i);
  }
}

/// A logit of -infinity has probability 0; when all have, max is -infinity and the sums are 0. A NaN makes the sums NaN, and max
/// what it may: which of two operands a vector's maximum takes differs between architectures.
template <class A>
SoftmaxPartial softmax_partial(const float* logits, std::int64_t n, float temperature) noexcept {
  using F = Floats<A>;
  const float lowest = -__builtin_inff();
  const F divisor(temperature);
  F most[4] = {F(lowest), F(lowest), F(lowest), F(lowest)};
  rows::each<A>(logits, n, lowest, [&](F v, int t) MOXIE_INLINE_LAMBDA { most[t] = xsimd::max(most[t], v); });
  alignas(64) float values[rows::lanes<A>];
  xsimd::max(xsimd::max(most[0], most[1]), xsimd::max(most[2], most[3])).store_aligned(values);
  float max = lowest;
  for (const float v : values) max = v > max ? v : max;
  max /= temperature;
  const F top(max == lowest ? 0.0f : max);  // every exponential is then 0, or NaN
  F sums[4] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f)}, weighted[4] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f)};
  rows::each<A>(logits, n, lowest, [&](F v, int t) MOXIE_INLINE_LAMBDA {
    const F z = v / divisor - top, e = exp_fixed(z);
    sums[t] += e;
    weighted[t] = madd(e, xsimd::select(z == F(lowest), F(0.0f), z), weighted[t]);
  });
  return {max, static_cast<float>(rows::sum<A>(sums)), static_cast<float>(rows::sum<A>(weighted))};
}

template <class A>
void softmax_gradient(const float* logits, std::int64_t n, float temperature, float max, float log_sum, float entropy, float g,
                      float e, float* out) noexcept {
  using F = Floats<A>;
  const F divisor(temperature), top(max), rest(log_sum), middle(entropy), of_logprob(g), of_entropy(e), zero(0.0f);
  rows::map<A>(
      n, out,
      [&](F z) MOXIE_INLINE_LAMBDA {
        const F log_p = (z / divisor - top) - rest, p = exp_fixed(log_p);
        return xsimd::select(p == zero, zero, -p * madd(of_entropy, log_p + middle, of_logprob) / divisor);
      },
      logits);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
