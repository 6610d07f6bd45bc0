#pragma once
// Matrix product of packed quantized weights with int8 activations: one loop for all formats and architectures.
//
// For each output element, blocks of 32 inputs from low k to high k, acc starting at 0:
//
//   isum = sum over the block of (code - zero) * q                      exact, int32
//          (formats with halves: sc[0] * sum of the first 16 + sc[1] * sum of the last 16; below 2^24)
//   acc  = fma(float(isum), scale * d, acc)                             scale of the weights' block, d of the activations'
//   acc  = fma(offset, float(sum of q) * d, acc)                        formats with an offset only
//          (and halves: fma(float(mn[0] * sum of the first 16 q + mn[1] * sum of the last 16), offset * d, acc))
//
// so the bits are the same on every architecture with a fused multiply-add, for every tile.
//
// Form: a tile of up to 12 rows (as many as the registers hold) goes over all blocks of a panel, then the next tile, while the
// panel is in cache; activations lie as the tiles read them (Int8Rows). Where unpacking would take the ports that the products
// need, stage_blocks blocks are unpacked to bytes in the first-level cache first, and all tiles run over them.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/ops.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/format_list.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

namespace int8 {

// A staged block: 8 registers of codes, scales, and offsets or two halves, or offsets, two halves and two of the offsets.
inline constexpr int staged_scale = 512, staged_extra = 576;
template <class W>
inline constexpr int staged_bytes = W::offset&& W::halves ? 896 : 704;
// 16 staged blocks (11 KB; 14 of Q2_K) stay in a first-level cache of 32 KB beside a tile of activations (12 rows x 16 blocks: 10
// KB) and its sums.
inline constexpr int stage_blocks = 16;
// Rows that share a panel in cache. Unpacking into the stage costs about as much as two rows, so with 96 rows 2%.
inline constexpr int max_tokens = 96;
// They stay in a second-level cache of 512 KB beside a panel: 96 rows of 2048 inputs are 320 KB.
inline constexpr int activation_bytes = 320 * 1024;

// How far ahead the direct path fetches into the second-level cache. A core reads 15 to 25 GB/s, so memory's latency of 100 to
// 200 ns (more when others load it) is 2 to 5 KB. Decode of a Q4_K_M file on Zen 4: 2 KB takes 1.6 times as long, 8 KB 1.03, 16
// and 32 KB 1.05 to 1.1 times.
inline constexpr int direct_ahead = 6144;

/// Bytes of a block of 32 inputs of a panel, scales included.
template <class Format>
inline constexpr int block_bytes = Panel<Format>::chunk_bytes / (Panel<Format>::chunk / block_k);

template <class Format>
MOXIE_INLINE constexpr std::int64_t panel_bytes(std::int64_t k) noexcept {
  return (k / Panel<Format>::chunk * Panel<Format>::chunk_bytes + 63) / 64 * 64;
}

/// How a format's blocks are multiplied on an architecture; formats that agree share their compiled tiles.
template <class A, int kind_, int zero_, bool offset_>
struct Way {
  static constexpr int kind = kind_, zero = zero_;
  static constexpr bool offset = offset_, halves = kind_ == Ops<A>::in_halves;
  static constexpr int tile = Ops<A>::template tile<kind_>;
};
template <class A, class P>
using WayOf = Way<A, Ops<A>::template dot_kind<P>, Ops<A>::template zero<P>, P::has_offset>;

MOXIE_INLINE float load_float(const std::byte* p) noexcept { return __builtin_bit_cast(float, load_u32(p)); }

/// Rows of the next tile when `rest` are left, no more than `largest`. One row alone waits for its own sums: 5 are 3 + 2.
template <int largest>
MOXIE_INLINE int next_tile(int rest) noexcept {
  if (largest >= 12 && rest >= 12) return 12;
  if (largest >= 8 && rest >= 8 && rest != 9 && rest != 10) return 8;
  if (largest >= 6 && rest >= 6 && rest != 7) return 6;
  if (largest >= 4 && rest >= 4 && rest != 5) return 4;
  return rest >= 3 ? 3 : rest;
}
/// f(Constant<n>{}) for the tile height n that next_tile() gave.
template <int largest, class F>
MOXIE_INLINE void with_tile(int n, F&& f) noexcept {
  switch (n) {
    case 1: return f(Constant<1>{});
    case 2: return f(Constant<2>{});
    case 3: return f(Constant<3>{});
    case 4: return f(Constant<4>{});
    case 6: return f(Constant<(largest < 6 ? 1 : 6)>{});
    case 8: return f(Constant<(largest < 8 ? 1 : 8)>{});
    default: return f(Constant<(largest < 12 ? 1 : 12)>{});
  }
}
/// f(row, height) for the tiles of rows [first, first + count): parts of the groups in which the rows lie.
template <int largest, class F>
MOXIE_INLINE void for_tiles(const Int8Rows& rows, std::int64_t first, int count, F&& f) noexcept {
  for (int done = 0; done < count;) {
    const std::int64_t row = first + done, in_group = rows.step(row) - row % Int8Rows::group;
    const int height = next_tile<largest>(static_cast<int>(count - done < in_group ? count - done : in_group));
    f(row, height);
    done += height;
  }
}

/// Float sums of a tile, [tokens][16]: in registers where there are enough of them, else in the first-level cache, where a
/// compiler would otherwise put the integer sums of the inner loop.
template <class A, int tokens, bool in_registers = Ops<A>::sums_in_registers>
struct TileSums {
  using O = Ops<A>;
  typename O::F acc[tokens];
  MOXIE_INLINE explicit TileSums(float*) noexcept {
    unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA { acc[t] = O::set1(0); });
  }
  MOXIE_INLINE typename O::F get(int t) const noexcept { return acc[t]; }
  MOXIE_INLINE void set(int t, typename O::F x) noexcept { acc[t] = x; }
};
template <class A, int tokens>
struct TileSums<A, tokens, false> {
  using O = Ops<A>;
  float* memory;
  MOXIE_INLINE explicit TileSums(float* sums) noexcept : memory(sums) {}
  MOXIE_INLINE typename O::F get(int t) const noexcept { return O::load(memory + panel_rows * t); }
  MOXIE_INLINE void set(int t, typename O::F x) noexcept {
    O::store(memory + panel_rows * t, x);
    __asm__("" ::: "memory");  // or a compiler keeps the sums in the registers that the integer sums need
  }
};

/// What a block's sums are multiplied by; of the members those that the format has.
template <class A>
struct BlockScales {
  using O = Ops<A>;
  typename O::F scale, offset = O::set1(0);
  typename O::Ints halves[2]{}, offsets[2]{};
};

/// One block of 16 rows of weights for a tile of tokens.
template <class A, class W, int tokens, class Code, class Sums>
MOXIE_INLINE void add_block(Code&& code, const BlockScales<A>& s, const Int8Block* x, Sums& acc) noexcept {
  using O = Ops<A>;
  typename O::F sums[tokens];
  O::template dot<W::kind, W::zero, tokens>(code, x, s.halves, sums);
  unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA {
    const typename O::F d = O::set1(x[t].d);
    typename O::F y = O::fma(sums[t], O::mul(s.scale, d), acc.get(t));
    if constexpr (W::offset && W::halves)
      y = O::fma(O::offset_sums(x[t], s.offsets), O::mul(s.offset, d), y);
    else if constexpr (W::offset)
      y = O::fma(s.offset, O::set1(x[t].sum_d), y);
    acc.set(t, y);
  });
}

template <class A, class W>
MOXIE_INLINE BlockScales<A> staged_scales(const std::byte* staged) noexcept {
  using O = Ops<A>;
  BlockScales<A> s{O::load(reinterpret_cast<const float*>(staged + staged_scale))};
  const std::byte* extra = staged + staged_extra;
  if constexpr (W::offset) {
    s.offset = O::load(reinterpret_cast<const float*>(extra));
    extra += 64;
  }
  if constexpr (W::halves)
    for (int h = 0; h < 2; ++h) {
      s.halves[h] = O::load_ints(extra + 64 * h);
      if constexpr (W::offset) s.offsets[h] = O::load_ints(extra + 128 + 64 * h);
    }
  return s;
}

/// Staged blocks for a tile whose blocks are `step` apart; for each of them `ahead_step` bytes from `ahead` on are brought into the
/// second-level cache.
template <class A, class W, int tokens>
[[gnu::noinline]] void run_tile(const std::byte* staged, int blocks, const Int8Block* x, std::int64_t step, float* sums,
                                const std::byte* ahead, int ahead_step) noexcept {
  using O = Ops<A>;
  TileSums<A, tokens, false> acc(sums);
  for (int b = 0; b < blocks; ++b, staged += staged_bytes<W>, x += step) {
    for (int i = 0; i < ahead_step; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    ahead += ahead_step;
    const auto code = [&](auto j) MOXIE_INLINE_LAMBDA { return O::load_bytes(staged + 64 * j.value); };
    add_block<A, W, tokens>(code, staged_scales<A, W>(staged), x, acc);
  }
}

template <class A, class Format>
MOXIE_INLINE BlockScales<A> scales_of(const std::byte* chunk, int b) noexcept {
  using O = Ops<A>;
  using P = Panel<Format>;
  BlockScales<A> s{P::template scale<O>(chunk, b)};
  if constexpr (P::has_offset) s.offset = P::template offset<O>(chunk, b);
  if constexpr (P::has_offset && P::has_halves) s.offset = O::mul(s.offset, O::set1(-1));  // of minus the sums
  if constexpr (P::has_halves)
    for (int h = 0; h < 2; ++h) {
      s.halves[h] = P::template half<O>(chunk, b, h);
      if constexpr (P::has_offset) s.offsets[h] = P::template half_offset<O>(chunk, b, h);
    }
  return s;
}
template <class A, class Format, int j>
MOXIE_INLINE typename Ops<A>::Bytes operand_of(const std::byte* chunk, int b) noexcept {
  return Ops<A>::template operand<Panel<Format>>(Panel<Format>::template code<Ops<A>, j>(chunk, b));
}

/// f(chunk, b, i) for each of `blocks` blocks of a panel from block `first` on; block i lies in `chunk` as its block b.
template <class Format, class Fn>
MOXIE_INLINE void for_blocks(const std::byte* panel, std::int64_t first, int blocks, Fn&& f) noexcept {
  constexpr int per_chunk = Panel<Format>::chunk / block_k;
  const std::byte* chunk = panel + first / per_chunk * Panel<Format>::chunk_bytes;
  for (int i = 0; i < blocks; i += per_chunk, chunk += Panel<Format>::chunk_bytes)
    for (int b = 0; b < per_chunk; ++b) f(chunk, b, i + b);
}

template <class A, class Format>
[[gnu::noinline]] void stage(const std::byte* panel, std::int64_t first, int blocks, std::byte* staged) noexcept {
  using O = Ops<A>;
  using W = WayOf<A, Panel<Format>>;
  for_blocks<Format>(panel, first, blocks, [&](const std::byte* chunk, int b, int i) MOXIE_INLINE_LAMBDA {
    std::byte* out = staged + i * staged_bytes<W>;
    unroll_constant<8>([&](auto j)
                           MOXIE_INLINE_LAMBDA { O::store_bytes(out + 64 * j.value, operand_of<A, Format, j.value>(chunk, b)); });
    const BlockScales<A> s = scales_of<A, Format>(chunk, b);
    O::store(reinterpret_cast<float*>(out + staged_scale), s.scale);
    out += staged_extra;
    if constexpr (W::offset) {
      O::store(reinterpret_cast<float*>(out), s.offset);
      out += 64;
    }
    if constexpr (W::halves)
      for (int h = 0; h < 2; ++h) {
        O::store_ints(out + 64 * h, s.halves[h]);
        if constexpr (W::offset) O::store_ints(out + 128 + 64 * h, s.offsets[h]);
      }
  });
}

/// Where memory is read: panels up to `end`, then what lies `jump` bytes further than what would follow them.
struct Ahead {
  const std::byte* end;
  std::ptrdiff_t jump;

  MOXIE_INLINE Ahead(const std::byte* end_of_panels, const std::byte* then) noexcept
      : end(end_of_panels), jump(then ? then - end_of_panels : -direct_ahead) {}
  /// Fetches a block that lies direct_ahead after the one at `at`.
  template <int bytes>
  MOXIE_INLINE void fetch(const std::byte* at) const noexcept {
    at += direct_ahead;
    at += at < end ? 0 : jump;
    unroll<(bytes + 63) / 64>([&](int i) MOXIE_INLINE_LAMBDA { __builtin_prefetch(at + 64 * i, 0, 2); });
  }
};

/// A tile over a panel, unpacked in registers. Row t goes to out + t * out_stride.
template <class A, class Format, int tokens>
[[gnu::noinline]] void run_direct(const std::byte* panel, int blocks, const Int8Block* x, std::int64_t step, float* out,
                                  std::int64_t out_stride, const Ahead& ahead_of) noexcept {
  const Ahead ahead = ahead_of;
  using O = Ops<A>;
  alignas(64) float memory[O::sums_in_registers ? 1 : tokens * panel_rows] = {};
  TileSums<A, tokens> acc(memory);
  for_blocks<Format>(panel, 0, blocks, [&](const std::byte* chunk, int b, int) MOXIE_INLINE_LAMBDA {
    ahead.fetch<block_bytes<Format>>(chunk + b * block_bytes<Format>);
    const auto code = [&](auto j) MOXIE_INLINE_LAMBDA { return operand_of<A, Format, j.value>(chunk, b); };
    add_block<A, WayOf<A, Panel<Format>>, tokens>(code, scales_of<A, Format>(chunk, b), x, acc);
    x += step;
  });
  unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA { O::store(out + t * out_stride, acc.get(t)); });
}

/// One panel for rows [first, first + count), row by row to out + i * out_stride.
template <class A, class Format>
void run_panel(const std::byte* panel, const Int8Rows& rows, std::int64_t first, int count, float* out, std::int64_t out_stride,
               const Ahead& ahead) noexcept {
  using W = WayOf<A, Panel<Format>>;
  const auto k_blocks = static_cast<int>(rows.k / block_k);
  if constexpr (Ops<A>::stages) {
    if (count > 4) {
      alignas(64) std::byte staged[stage_blocks * staged_bytes<W>];
      alignas(64) float sums[max_tokens * panel_rows];
      __builtin_memset(sums, 0, static_cast<std::size_t>(count) * panel_rows * sizeof(float));
      for (int b = 0; b < k_blocks; b += stage_blocks) {
        const int n = k_blocks - b < stage_blocks ? k_blocks - b : stage_blocks;
        stage<A, Format>(panel, b, n, staged);
        // The first tile fetches the panel's next blocks, which would wait for memory when they are staged.
        const std::byte* next = panel + (b + n) * block_bytes<Format>;
        int next_step = block_bytes<Format>;
        for_tiles<W::tile>(rows, first, count, [&](std::int64_t row, int height) MOXIE_INLINE_LAMBDA {
          with_tile<W::tile>(height, [&](auto tokens) MOXIE_INLINE_LAMBDA {
            run_tile<A, W, tokens.value>(staged, n, rows.block(row, b), rows.step(row), sums + panel_rows * (row - first), next,
                                         next_step);
          });
          next_step = 0;
        });
      }
      for (int t = 0; t < count; ++t)
        __builtin_memcpy(out + t * out_stride, sums + panel_rows * t, panel_rows * sizeof(float));
      return;
    }
  }
  constexpr int largest = Ops<A>::stages ? 4 : W::tile;
  for_tiles<largest>(rows, first, count, [&](std::int64_t row, int height) MOXIE_INLINE_LAMBDA {
    with_tile<largest>(height, [&](auto tokens) MOXIE_INLINE_LAMBDA {
      run_direct<A, Format, tokens.value>(panel, k_blocks, rows.block(row, 0), rows.step(row), out + (row - first) * out_stride,
                                          out_stride, ahead);
    });
  });
}

using RunPanel = void (*)(const std::byte* panel, const Int8Rows& rows, std::int64_t first, int count, float* out,
                          std::int64_t out_stride, const Ahead& ahead) noexcept;

/// The rows in pieces that stay in cache, each over all panels of `bytes`.
template <class A>
[[gnu::noinline]] void multiply(const MatmulArgs& m, std::int64_t bytes, RunPanel run) noexcept {
  const std::int64_t row_bytes = m.k / block_k * static_cast<std::int64_t>(sizeof(Int8Block));
  const std::int64_t fit = activation_bytes / row_bytes / Int8Rows::group * Int8Rows::group;
  const std::int64_t most = fit < Int8Rows::group ? Int8Rows::group : fit < max_tokens ? fit : max_tokens;
  for (std::int64_t row = 0; row < m.n_rows; row += most) {
    const int count = static_cast<int>(m.n_rows - row < most ? m.n_rows - row : most);
    const bool last = row + most >= m.n_rows;
    const Ahead ahead(m.panels + m.panel_end * bytes, last ? m.then : m.panels + m.panel_begin * bytes);
    for (std::int64_t p = m.panel_begin; p < m.panel_end; ++p) {
      float* out = m.out + row * m.out_stride + p * panel_rows;
      const std::int64_t columns = m.n - p * panel_rows;
      if (columns >= panel_rows) {
        run(m.panels + p * bytes, m.a.q, m.first_row + row, count, out, m.out_stride, ahead);
      } else {  // a matrix's last panel
        alignas(64) float all[max_tokens * panel_rows];
        run(m.panels + p * bytes, m.a.q, m.first_row + row, count, all, panel_rows, ahead);
        for (int t = 0; t < count; ++t)
          __builtin_memcpy(out + t * m.out_stride, all + panel_rows * t, static_cast<std::size_t>(columns) * sizeof(float));
      }
    }
  }
}

}  // namespace int8

template <class A, class Format>
void matmul_int8(const MatmulArgs& m) noexcept {
  int8::multiply<A>(m, int8::panel_bytes<Format>(m.k), &int8::run_panel<A, Format>);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
