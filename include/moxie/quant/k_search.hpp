#pragma once
// The search behind the encoders of Q4_K, Q5_K and Q6_K: scales, minimums and codes of a superblock of 256 weights, with a
// small sum of squared errors.
//
// 1. For each block of 32 (or 16), codes are taken on a grid of trial steps (and offsets); least squares gives the step
//    (and minimum) that fits these codes best and its error. The error as a function of step and minimum is then a quadratic.
// 2. The superblock's f16 scales are chosen among the largest step / (63, 62, ..) and the largest minimum / (63, 62, ..),
//    by the sum of these quadratics over the blocks, each at its best integers.
// 3. Each block tries the integers around its best ones with true codes; least squares over the superblock then refits
//    the f16 scales to these codes, and the step is repeated once with them.
//
// No weight counts more than another (ggml weights by magnitude when it has no importance matrix): on normal weights the error
// is 3% (Q4_K) to 6% (Q5_K, Q6_K) below that of ggml's encoder. The same input gives the same bytes for any number of
// threads; programs compiled for different instruction sets sum in different orders and may differ in a code.
//
// Input: magnitudes above the largest f16, 65504, saturate there, NaN becomes 0. Values below 2^-25 are 0: the
// smallest step is 2^-24, the smallest f16.
//
// Source: the idea of the search is that of make_qkx2_quants and make_qx_quants in ggml-quants.c.

#include <cmath>
#include <cstdint>
#include <limits>

#include <moxie/core/floats.hpp>

namespace moxie {

/// 8 blocks of 32: x[32 b + i] = d * scale[b] * code[32 b + i] - dmin * min[b]; d and dmin are f16, scale and min have 6 bits.
struct AffineSuperblock {
  std::uint16_t d, dmin;
  std::uint8_t scale[8], min[8];
  std::uint8_t code[256];
};

/// 16 blocks of 16: x[16 b + i] = d * scale[b] * (code[16 b + i] - 32); d is f16, codes have 6 bits.
struct SignedSuperblock {
  std::uint16_t d;
  std::int8_t scale[16];
  std::uint8_t code[256];
};

namespace k_search {

inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// y = x within +-65504, 0 for NaN. Returns the largest magnitude.
inline float bounded(const float* x, float* y) noexcept {
  float top = 0;
  for (int i = 0; i < 256; ++i) {
    const float v = x[i] >= -65504 ? x[i] : x[i] < 0 ? -65504.0f : 0.0f;
    y[i] = v <= 65504 ? v : 65504.0f;
    top = std::fabs(y[i]) > top ? std::fabs(y[i]) : top;
  }
  return top;
}

/// The nearest f16, but 0 only for 0.
inline float f16_step(float v) noexcept {
  const float near = f16_to_f32(f32_to_f16(v));
  return near != 0 || v == 0 ? near : std::copysign(0x1p-24f, v);
}

inline int clamped(int v, int low, int high) noexcept {
  v = v < low ? low : v;
  return v > high ? high : v;
}
/// v, within int, to the nearest integer of [0, high].
inline int nearest(float v, int high) noexcept { return clamped(static_cast<int>(v + 0.5f), 0, high); }
/// The same for any v.
inline int saturated(float v, int high) noexcept { return v < static_cast<float>(high) ? nearest(v > 0 ? v : 0, high) : high; }

/// What a superblock's blocks are measured by: steps that are tiny beside the weights are as good as zero, and limiting the
/// inverse keeps codes within int before they are clamped (|x + low| <= 17 top).
struct Magnitude {
  float top;
  bool matters(float v) const noexcept { return v > 1e-8f * top; }
  float inverse(float step) const noexcept {
    if (step == 0) return 0;
    const float largest = 1e8f / top, inverse = 1 / step;
    return std::fabs(inverse) < largest ? inverse : std::copysign(largest, step);
  }
};

// ---- Q4_K and Q5_K ----

/// One block of 32: step and low (x = step * q - low) of least error for codes with these sums.
/// Other values cost error + sqq * ds^2 - 2 * sq * ds * dl + 32 * dl^2, where ds and dl are the differences.
struct AffineFit {
  float step, low, sq, sqq, error;
};

struct AffineSums {
  float q, qq, qx;
};

inline AffineSums affine_sums(const float* x, float inverse, float offset, int largest) noexcept {
  float sq = 0, sqq = 0, sqx = 0;
#pragma omp simd reduction(+ : sq, sqq, sqx)
  for (int i = 0; i < 32; ++i) {
    const auto q = static_cast<float>(clamped(static_cast<int>(x[i] * inverse + offset + 0.5f), 0, largest));
    sq += q;
    sqq += q * q;
    sqx += q * x[i];
  }
  return {sq, sqq, sqx};
}

/// Any step and minimum.
inline AffineFit fit_affine(const float* x, int largest, Magnitude magnitude) noexcept {
  float low = x[0], high = x[0], mean = 0;
  for (int i = 0; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    mean += x[i];
  }
  mean /= 32;
  float y[32], yy = 0;  // around the mean, so that a block far from zero loses no digits
#pragma omp simd reduction(+ : yy)
  for (int i = 0; i < 32; ++i) {
    y[i] = x[i] - mean;
    yy += y[i] * y[i];
  }
  AffineFit best{0, -mean, 0, 0, yy};
  const float width = high - low;
  if (!magnitude.matters(width)) return best;
  low -= mean;

  // A trial spreads `span` steps over the block's width, centered on the codes but for `shift` steps. It must be better by
  // more than rounding: of several exact fits (blocks of few levels) the first stays, with codes at the ends of the range.
  float best_span = 0, best_shift = 0;
  const auto consider = [&](float span, float shift) {
    const float inverse = span / width;
    const AffineSums s = affine_sums(y, inverse, 0.5f * (static_cast<float>(largest) - span) + shift - low * inverse, largest);
    const float variance = s.qq - s.q * s.q / 32;
    if (!(variance > 0)) return;
    const float step = s.qx / variance, error = yy - step * s.qx;
    if (!(error < best.error - 2e-7f * yy)) return;
    best = {step, step * s.q / 32 - mean, s.q, s.qq, error};
    best_span = span;
    best_shift = shift;
  };
  consider(static_cast<float>(largest), 0);
  // Coarse: narrower steps cut the ends off, wider ones leave codes unused. Then finer around the best.
  for (int a = -1; a <= 1; ++a)
    for (int b = -6; b <= 2; ++b)
      consider(static_cast<float>(largest) + 0.4f * static_cast<float>(b), 0.33f * static_cast<float>(a));
  const float span = best_span, shift = best_shift;
  for (int a = -1; a <= 1; ++a)
    for (int b = -1; b <= 1; ++b) consider(span + 0.13f * static_cast<float>(b), shift + 0.11f * static_cast<float>(a));
  return best;
}

/// A block whose minimum would have the wrong sign: without a minimum.
inline AffineFit fit_from_zero(const float* x, int largest, Magnitude magnitude) noexcept {
  float high = 0, xx = 0;
  for (int i = 0; i < 32; ++i) {
    high = x[i] > high ? x[i] : high;
    xx += x[i] * x[i];
  }
  AffineFit best{0, 0, 0, 0, xx};
  if (!magnitude.matters(high)) return best;
  for (int a = -6; a <= 4; ++a) {
    const AffineSums s = affine_sums(x, (static_cast<float>(largest) + 0.2f * static_cast<float>(a)) / high, 0, largest);
    const float step = s.qx / s.qq, error = xx - step * s.qx;
    if (error < best.error) best = {step, 0, s.q, s.qq, error};
  }
  return best;
}

struct AffineScales {
  float d, dmin;
};

/// Stage 2: d and dmin, f16 values.
inline AffineScales choose_affine_scales(const AffineFit (&fits)[8]) noexcept {
  constexpr int n_d = 8, n_dmin = 16;  // the minimum matters more: it shifts 32 weights, an error of the step only the outer ones
  float step[8], low[8], sq[8], sqq[8], max_step = 0, max_low = 0;
  for (int b = 0; b < 8; ++b) {
    step[b] = fits[b].step;
    low[b] = fits[b].low;
    sq[b] = fits[b].sq;
    sqq[b] = fits[b].sqq;
    max_step = step[b] > max_step ? step[b] : max_step;
    max_low = std::fabs(low[b]) > std::fabs(max_low) ? low[b] : max_low;
  }
  if (std::fabs(max_low) < 0x1p-12f * max_step) max_low = 0;
  float dmin[n_dmin], inverse_dmin[n_dmin];
  for (int v = 0; v < n_dmin; ++v) {
    dmin[v] = f16_step(max_low / static_cast<float>(63 - v));
    inverse_dmin[v] = dmin[v] != 0 ? 1 / dmin[v] : 0;
  }
  AffineScales best{0, 0};
  float best_error = infinity;
  for (int u = 0; u < n_d; ++u) {
    const float d = f16_step(max_step / static_cast<float>(63 - u)), inverse_d = d != 0 ? 1 / d : 0;
    // of the nearest integer scale and its neighbors: step - ideal step, and the best minimum for it
    float difference[3][8], target[3][8];
    for (int k = 0; k < 3; ++k)
#pragma omp simd
      for (int b = 0; b < 8; ++b) {
        const int scale = clamped(nearest(step[b] * inverse_d, 63) + k - 1, 0, 63);
        difference[k][b] = static_cast<float>(scale) * d - step[b];
        target[k][b] = low[b] + difference[k][b] * sq[b] * (1.0f / 32);
      }
    for (int v = 0; v < n_dmin; ++v) {
      float error[8];
      for (int b = 0; b < 8; ++b) error[b] = infinity;
      for (int k = 0; k < 3; ++k)
#pragma omp simd
        for (int b = 0; b < 8; ++b) {
          const float ds = difference[k][b];
          const float dl = static_cast<float>(nearest(target[k][b] * inverse_dmin[v], 63)) * dmin[v] - low[b];
          const float e = ds * (sqq[b] * ds - 2 * sq[b] * dl) + 32 * dl * dl;
          error[b] = e < error[b] ? e : error[b];
        }
      const float sum = ((error[0] + error[4]) + (error[2] + error[6])) + ((error[1] + error[5]) + (error[3] + error[7]));
      if (sum < best_error) {
        best_error = sum;
        best = {d, dmin[v]};
      }
    }
  }
  return best;
}

/// Sum of squared errors of a block with its best codes.
inline float affine_error(const float* x, float step, float low, int largest, Magnitude magnitude) noexcept {
  const float inverse = magnitude.inverse(step);
  float error = 0;
#pragma omp simd reduction(+ : error)
  for (int i = 0; i < 32; ++i) {
    const float y = x[i] + low;
    const float r = step * static_cast<float>(clamped(static_cast<int>(y * inverse + 0.5f), 0, largest)) - y;
    error += r * r;
  }
  return error;
}

}  // namespace k_search

/// The best superblock found for 256 weights, with codes of [0, largest].
inline void search_affine_superblock(const float* weights, int largest, AffineSuperblock& s) noexcept {
  using namespace k_search;
  float x[256];
  const Magnitude magnitude{bounded(weights, x)};
  s = {};
  if (magnitude.top < 0x1p-25f) return;

  AffineFit fits[8];
  bool all_above_zero = true;  // then dmin is negative; else a block above zero does without a minimum
  for (int b = 0; b < 8; ++b) {
    fits[b] = fit_affine(x + 32 * b, largest, magnitude);
    all_above_zero = all_above_zero && fits[b].low <= 0;
  }
  for (int b = 0; b < 8; ++b)
    if (!all_above_zero && fits[b].low < 0) fits[b] = fit_from_zero(x + 32 * b, largest, magnitude);

  AffineScales scales = choose_affine_scales(fits);
  float best_error = infinity;
  for (int round = 0; round < 2; ++round) {
    const auto [d, dmin] = scales;
    const float inverse_d = d != 0 ? 1 / d : 0, inverse_dmin = dmin != 0 ? 1 / dmin : 0;
    std::uint8_t scale[8] = {}, min[8] = {};
    float error = 0;
    for (int b = 0; b < 8; ++b) {
      const AffineFit& fit = fits[b];
      const int middle = round == 0 ? nearest(fit.step * inverse_d, 63) : s.scale[b];
      float block_error = infinity;
      for (int i = middle - 1; i <= middle + 1; ++i) {
        if (i < 0 || i > 63) continue;
        const float step = d * static_cast<float>(i);
        const int best_min = saturated((fit.low + (step - fit.step) * fit.sq * (1.0f / 32)) * inverse_dmin, 63);
        for (int j = best_min - 1; j <= best_min + 1; ++j) {
          if (j < 0 || j > 63) continue;
          const float e = affine_error(x + 32 * b, step, dmin * static_cast<float>(j), largest, magnitude);
          if (!(e < block_error)) continue;
          block_error = e;
          scale[b] = static_cast<std::uint8_t>(i);
          min[b] = static_cast<std::uint8_t>(j);
        }
      }
      error += block_error;
    }
    if (!(error < best_error)) return;
    best_error = error;
    s.d = f32_to_f16(d);
    s.dmin = f32_to_f16(dmin);

    // codes, and the sums of the least squares problem x = d * (scale * code) - dmin * min
    double aa = 0, am = 0, mm = 0, ax = 0, mx = 0;
    for (int b = 0; b < 8; ++b) {
      s.scale[b] = scale[b];
      s.min[b] = min[b];
      const float low = dmin * min[b], inverse = magnitude.inverse(d * scale[b]);
      for (int i = 32 * b; i < 32 * b + 32; ++i) {
        const int q = nearest((x[i] + low) * inverse, largest);
        s.code[i] = static_cast<std::uint8_t>(q);
        const double a = scale[b] * q, m = min[b];
        aa += a * a;
        am += a * m;
        mm += m * m;
        ax += a * static_cast<double>(x[i]);
        mx += m * static_cast<double>(x[i]);
      }
    }
    const double determinant = aa * mm - am * am;
    if (!(determinant > 0)) return;
    const double refit_d = (mm * ax - am * mx) / determinant, refit_dmin = (am * ax - aa * mx) / determinant;
    // far from any solution only where the problem is singular but for rounding
    if (!(refit_d > 0 && refit_d < static_cast<double>(magnitude.top) &&
          std::fabs(refit_dmin) < 0.25 * static_cast<double>(magnitude.top)))
      return;
    scales = {f16_step(static_cast<float>(refit_d)), f16_step(static_cast<float>(refit_dmin))};
  }
}

// ---- Q6_K ----

namespace k_search {

inline int signed_code(float x, float inverse) noexcept { return clamped(static_cast<int>(x * inverse + 32.5f), 0, 63) - 32; }

struct SignedFit {
  float step, kk;  ///< x = step * k; another step costs kk * difference^2 more
};

inline SignedFit fit_signed(const float* x, Magnitude magnitude) noexcept {
  float extreme = 0;
  for (int i = 0; i < 16; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  SignedFit best{0, 0};
  if (!magnitude.matters(std::fabs(extreme))) return best;
  float best_gain = 0, best_span = 0;
  const auto consider = [&](float span) {
    const float inverse = span / extreme;
    float kk = 0, kx = 0;
#pragma omp simd reduction(+ : kk, kx)
    for (int i = 0; i < 16; ++i) {
      const auto k = static_cast<float>(signed_code(x[i], inverse));
      kk += k * k;
      kx += k * x[i];
    }
    // Better by more than rounding: of two steps that are exact, the first stays.
    if (!(kx * kx > best_gain * kk * 1.000001f)) return;
    best_gain = kx * kx / kk;
    best = {kx / kk, kk};
    best_span = span;
  };
  // The extreme gets the code -32 first (a power of two keeps what is exact), then +-26 .. +-32.4.
  consider(-32);
  for (int a = 0; a <= 8; ++a) {
    consider(26 + 0.8f * static_cast<float>(a));
    consider(-26 - 0.8f * static_cast<float>(a));
  }
  const float span = best_span;
  consider(span - 0.1f);
  consider(span + 0.1f);
  return best;
}

inline float signed_error(const float* x, float step, Magnitude magnitude) noexcept {
  const float inverse = magnitude.inverse(step);
  float error = 0;
#pragma omp simd reduction(+ : error)
  for (int i = 0; i < 16; ++i) {
    const float r = step * static_cast<float>(signed_code(x[i], inverse)) - x[i];
    error += r * r;
  }
  return error;
}

inline int signed_scale(float v) noexcept { return clamped(static_cast<int>(v + 128.5f) - 128, -128, 127); }

inline float choose_signed_scale(const SignedFit (&fits)[16]) noexcept {
  constexpr int n_d = 16;
  float step[16], kk[16], extreme = 0;
  for (int b = 0; b < 16; ++b) {
    step[b] = fits[b].step;
    kk[b] = fits[b].kk;
    extreme = std::fabs(step[b]) > std::fabs(extreme) ? step[b] : extreme;
  }
  float best = 0, best_error = infinity;
  for (int u = 0; u < n_d; ++u) {  // the block of largest step gets the scale -128, -127, ..
    const float d = f16_step(extreme / static_cast<float>(u - 128)), inverse = d != 0 ? 1 / d : 0;
    float error = 0;
#pragma omp simd reduction(+ : error)
    for (int b = 0; b < 16; ++b) {
      const float difference = static_cast<float>(signed_scale(step[b] * inverse)) * d - step[b];
      error += kk[b] * difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best = d;
    }
  }
  return best;
}

}  // namespace k_search

/// The best superblock found for 256 weights.
inline void search_signed_superblock(const float* weights, SignedSuperblock& s) noexcept {
  using namespace k_search;
  float x[256];
  const Magnitude magnitude{bounded(weights, x)};
  s = {};
  if (magnitude.top < 0x1p-25f) return;

  SignedFit fits[16];
  for (int b = 0; b < 16; ++b) fits[b] = fit_signed(x + 16 * b, magnitude);

  float d = choose_signed_scale(fits), best_error = infinity;
  for (int round = 0; round < 2; ++round) {
    const float inverse_d = d != 0 ? 1 / d : 0;
    std::int8_t scale[16] = {};
    float error = 0;
    for (int b = 0; b < 16; ++b) {
      const int middle = round == 0 ? signed_scale(fits[b].step * inverse_d) : s.scale[b];
      float block_error = infinity;
      for (int i = middle - 1; i <= middle + 1; ++i) {
        if (i < -128 || i > 127) continue;
        const float e = signed_error(x + 16 * b, d * static_cast<float>(i), magnitude);
        if (!(e < block_error)) continue;
        block_error = e;
        scale[b] = static_cast<std::int8_t>(i);
      }
      error += block_error;
    }
    if (!(error < best_error)) return;
    best_error = error;
    s.d = f32_to_f16(d);
    double aa = 0, ax = 0;
    for (int b = 0; b < 16; ++b) {
      s.scale[b] = scale[b];
      const float inverse = magnitude.inverse(d * static_cast<float>(scale[b]));
      for (int i = 16 * b; i < 16 * b + 16; ++i) {
        const int k = signed_code(x[i], inverse);
        s.code[i] = static_cast<std::uint8_t>(k + 32);
        const double a = scale[b] * k;
        aa += a * a;
        ax += a * static_cast<double>(x[i]);
      }
    }
    if (!(aa > 0)) return;
    d = f16_step(static_cast<float>(ax / aa));
  }
}

}  // namespace moxie
