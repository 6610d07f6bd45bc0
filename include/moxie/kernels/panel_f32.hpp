#pragma once
// Matrix product of packed weights of any format with f32 activations: the reference path, and the path of float weights.
//
// For each output element, blocks of 32 inputs from low k to high k: the block's sum is 32 fused multiply-adds from low to high,
// starting at 0; then acc += sum. A weight is what the format's decode() gives, bit for bit. The same bits for every tile
// and chunk, on every architecture with a fused multiply-add.
//
// Form: for each panel, stage_blocks blocks are unpacked to f32 [32][16] in the first-level cache, and tiles of rows run over
// them. Float weights for few rows are unpacked in registers, so that memory is read all the time.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/ops.hpp>
#include <moxie/kernels/panel_int8.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/format_list.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

namespace f32 {

inline constexpr int block_floats = block_k * panel_rows;
// 8 blocks of 2 KB are half of a first-level cache of 32 KB.
inline constexpr int stage_blocks = 8;
inline constexpr int max_tokens = 64;
// 8 independent chains hide the latency of a fused multiply-add (4 cycles, 1 or 2 a cycle).
inline constexpr int tile = 8;

template <class Format>
concept FloatPanel = Panel<Format>::chunk == 1;

/// Scales of an F8_E4M3 panel: one for each 128 inputs.
template <class Format>
inline constexpr bool has_block_scales = Format::dtype == Dtype::F8_E4M3;
inline constexpr int scale_inputs = 128;

template <class Format>
MOXIE_INLINE constexpr std::int64_t panel_bytes(std::int64_t k) noexcept {
  if constexpr (!FloatPanel<Format>) {
    return int8::panel_bytes<Format>(k);
  } else {
    const std::int64_t scales = has_block_scales<Format> ? (k + scale_inputs - 1) / scale_inputs * 4 : 0;
    return (k * Panel<Format>::chunk_bytes + scales + 63) / 64 * 64;
  }
}

/// The 16 weights of an input of a panel of floats.
template <class A, class Format>
MOXIE_INLINE typename Ops<A>::F weights_of(const std::byte* panel, [[maybe_unused]] std::int64_t k, std::int64_t input) noexcept {
  using O = Ops<A>;
  using P = Panel<Format>;
  typename O::F w = P::template load<O>(panel + input * P::chunk_bytes);
  if constexpr (has_block_scales<Format>)
    w = O::mul(w, O::set1(int8::load_float(panel + k * P::chunk_bytes + input / scale_inputs * 4)));
  return w;
}

/// Blocks [first, first + blocks) of a panel as f32 [blocks * 32][16], rows `stride` apart.
template <class A, class Format>
[[gnu::noinline]] void unpack(const std::byte* panel, [[maybe_unused]] std::int64_t k, std::int64_t first, int blocks, float* out,
                              std::int64_t stride) noexcept {
  using O = Ops<A>;
  using P = Panel<Format>;
  if constexpr (FloatPanel<Format>) {
    for (int b = 0; b < blocks; ++b)
      for (int i = 0; i < block_k; ++i, out += stride) O::store(out, weights_of<A, Format>(panel, k, (first + b) * block_k + i));
  } else {
    int8::for_blocks<Format>(panel, first, blocks, [&](const std::byte* chunk, int b, int n) MOXIE_INLINE_LAMBDA {
      float* to = out + n * block_k * stride;
      const int8::BlockScales<A> s = int8::scales_of<A, Format>(chunk, b);
      typename O::F scale[2], offset[2];  // of both halves
      for (int h = 0; h < 2; ++h) {
        scale[h] = s.scale;
        if constexpr (has_float_halves<P>)
          scale[h] = O::mul(s.scale, s.float_halves[h]);
        else if constexpr (P::has_halves)
          scale[h] = O::mul(s.scale, O::halves_float(s.halves[h]));
        offset[h] = s.offset;
        if constexpr (P::has_offset && P::has_halves)  // of minus the sums
          offset[h] = O::mul(O::mul(s.offset, O::set1(-1)), O::halves_float(s.offsets[h]));
      }
      for (int j = 0; j < 8; ++j) {  // as fast as written out
        const auto code = int8::codes_of<A, Format>(chunk, b, j);
        unroll_constant<4>([&](auto i) MOXIE_INLINE_LAMBDA {
          typename O::F w = O::template code_floats<i.value, is_signed(P::codes)>(code);
          if constexpr (P::zero != 0) w = O::add(w, O::set1(-P::zero));
          w = O::mul(w, scale[j / 4]);  // exact, so a compiler that fuses it with the next addition changes nothing
          if constexpr (P::has_offset) w = O::add(w, offset[j / 4]);
          O::store(to + stride * (4 * j + i.value), w);
        });
      }
    });
  }
}

template <class A, int tokens>
[[gnu::noinline]] void run_tile(const float* w, int blocks, const float* const* x, float* sums) noexcept {
  using O = Ops<A>;
  typename O::F acc[tokens];
  MOXIE_UNROLL
  for (int t = 0; t < tokens; ++t) acc[t] = O::load(sums + panel_rows * t);
  const float* row[tokens];
  for (int t = 0; t < tokens; ++t) row[t] = x[t];
  for (int b = 0; b < blocks; ++b, w += block_floats) {
    typename O::F sum[tokens];
    MOXIE_UNROLL
    for (int t = 0; t < tokens; ++t) sum[t] = O::set1(0);
    for (int i = 0; i < block_k; ++i) {
      const typename O::F wi = O::load(w + panel_rows * i);
      MOXIE_UNROLL
      for (int t = 0; t < tokens; ++t) sum[t] = O::fma(wi, O::set1(row[t][i]), sum[t]);
    }
    MOXIE_UNROLL
    for (int t = 0; t < tokens; ++t) {
      acc[t] = O::add(acc[t], sum[t]);
      row[t] += block_k;
    }
  }
  MOXIE_UNROLL
  for (int t = 0; t < tokens; ++t) O::store(sums + panel_rows * t, acc[t]);
}

template <class A>
void run_tiles(const float* w, int blocks, const float* const* x, int tokens, float* sums) noexcept {
  int t = 0;
  for (; tokens - t >= tile; t += tile) run_tile<A, tile>(w, blocks, x + t, sums + panel_rows * t);
  for (; tokens - t >= 4; t += 4) run_tile<A, 4>(w, blocks, x + t, sums + panel_rows * t);
  for (; tokens - t >= 2; t += 2) run_tile<A, 2>(w, blocks, x + t, sums + panel_rows * t);
  if (t < tokens) run_tile<A, 1>(w, blocks, x + t, sums + panel_rows * t);
}

MOXIE_INLINE void fetch(const std::byte* at, std::int64_t bytes) noexcept {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

/// Rows up to which float weights are unpacked in registers: where these hold the sums of 4 (AVX2, 4 rows: 20% slower so).
template <class A>
inline constexpr int few_tokens = Ops<A>::sums_in_registers ? 4 : 2;

/// A panel of floats for few rows, sums [tokens][16]; what lies `ahead` bytes further is brought into the second-level cache, 0:
/// nothing is.
template <class A, class Format, int tokens>
[[gnu::noinline]] void run_few(const std::byte* panel, std::int64_t k, const float* const* x, float* sums, int ahead) noexcept {
  using O = Ops<A>;
  constexpr int block_bytes = block_k * Panel<Format>::chunk_bytes;
  typename O::F acc[tokens];
  MOXIE_UNROLL
  for (int t = 0; t < tokens; ++t) acc[t] = O::set1(0);
  const float* row[tokens];
  for (int t = 0; t < tokens; ++t) row[t] = x[t];
  for (std::int64_t input = 0; input < k; input += block_k) {
    typename O::F sum[tokens];
    MOXIE_UNROLL
    for (int t = 0; t < tokens; ++t) sum[t] = O::set1(0);
    if (ahead != 0) fetch(panel + input * Panel<Format>::chunk_bytes + ahead, block_bytes);
    for (int i = 0; i < block_k; ++i) {
      const typename O::F w = weights_of<A, Format>(panel, k, input + i);
      MOXIE_UNROLL
      for (int t = 0; t < tokens; ++t) sum[t] = O::fma(w, O::set1(row[t][input + i]), sum[t]);
    }
    MOXIE_UNROLL
    for (int t = 0; t < tokens; ++t) acc[t] = O::add(acc[t], sum[t]);
  }
  MOXIE_UNROLL
  for (int t = 0; t < tokens; ++t) O::store(sums + panel_rows * t, acc[t]);
}

using Unpack = void (*)(const std::byte* panel, std::int64_t k, std::int64_t first, int blocks, float* out, std::int64_t stride);
using RunFew = void (*)(const std::byte* panel, std::int64_t k, const float* const* x, float* sums, int ahead);

/// run_few() for so many rows; nothing of formats of integer codes.
template <class A, class Format>
constexpr RunFew few_of(int tokens) noexcept {
  if constexpr (FloatPanel<Format>) {
    constexpr int most = few_tokens<A>;
    if (tokens > most) return nullptr;
    return tokens == 1   ? &run_few<A, Format, 1>
           : tokens == 2 ? &run_few<A, Format, 2>
           : tokens == 3 ? &run_few<A, Format, (most < 3 ? 1 : 3)>
                         : &run_few<A, Format, (most < 4 ? 1 : 4)>;
  }
  return nullptr;
}

/// Panels of `bytes`; `unpack` is nullptr where they hold f32.
template <class A>
[[gnu::noinline]] void multiply(const MatmulArgs& m, std::int64_t bytes, Unpack unpack, RunFew (*few_of)(int tokens)) noexcept {
  alignas(64) float unpacked[stage_blocks * block_floats];
  alignas(64) float sums[max_tokens * panel_rows];
  const std::int64_t k_blocks = m.k / block_k;
  const int ahead = m.tuning.float_distance;
  for (std::int64_t first_row = 0; first_row < m.n_rows; first_row += max_tokens) {
    const int tokens = static_cast<int>(m.n_rows - first_row < max_tokens ? m.n_rows - first_row : max_tokens);
    const RunFew few = few_of(tokens);
    for (std::int64_t p = m.panel_begin; p < m.panel_end; ++p) {
      const std::byte* panel = m.panels + p * bytes;
      const float* x[max_tokens];
      for (int t = 0; t < tokens; ++t) {
        const std::int64_t row = m.first_row + first_row + t;
        x[t] = m.a.x + (m.list ? m.list[row] : row) * m.k;
      }
      if (few) {
        few(panel, m.k, x, sums, ahead);
      } else {
        for (int i = 0; i < tokens * panel_rows; ++i) sums[i] = 0;
        for (std::int64_t first = 0; first < k_blocks; first += stage_blocks) {
          const int blocks = static_cast<int>(k_blocks - first < stage_blocks ? k_blocks - first : stage_blocks);
          const float* w = reinterpret_cast<const float*>(panel) + first * block_floats;
          if (unpack) {
            const int step = ahead != 0 ? 1 : blocks;  // fetched all at once, they would be waited for
            for (int b = 0; b < blocks; b += step) {
              if (ahead != 0) fetch(panel + (first + b) * bytes / k_blocks + ahead, bytes / k_blocks);
              unpack(panel, m.k, first + b, step, unpacked + b * block_floats, panel_rows);
            }
            w = unpacked;
          }
          run_tiles<A>(w, blocks, x, tokens, sums);
          for (int t = 0; t < tokens; ++t) x[t] += blocks * block_k;
        }
      }
      float* out = m.out + first_row * m.out_stride + p * panel_rows;
      const std::int64_t left = m.n - p * panel_rows;
      const auto columns = static_cast<std::size_t>(left < panel_rows ? left : panel_rows);
      for (int t = 0; t < tokens; ++t) __builtin_memcpy(out + t * m.out_stride, sums + panel_rows * t, columns * sizeof(float));
    }
  }
}

}  // namespace f32

template <class A, class Format>
void matmul_f32(const MatmulArgs& m) noexcept {
  f32::multiply<A>(m, f32::panel_bytes<Format>(m.k), Format::dtype == Dtype::F32 ? nullptr : &f32::unpack<A, Format>,
                   &f32::few_of<A, Format>);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
