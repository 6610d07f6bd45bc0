#pragma once
// Matrix product of packed quantized weights with int8 activations: one loop for all formats and architectures.
//
// For each output element, blocks of 32 inputs from low k to high k, acc starting at 0:
//
//   isum = sum over the block of (code - zero) * q                      exact, int32
//          (formats with halves: sc[0] * sum of the first 16 + sc[1] * sum of the last 16; below 2^24)
//   acc  = fma(float(isum), scale * d, acc)                             scale of the weights' block, d of the activations'
//   acc  = fma(offset, float(sum of q) * d, acc)                        formats with an offset only
//
// so the bits are the same on every architecture with a fused multiply-add, for every tile, chunk and list of rows.
//
// Form: up to max_tokens rows are copied, a chunk of K at a time, into tiles whose bytes one pointer walks through. Then for
// each panel: stage_blocks blocks are unpacked to bytes in the first-level cache, and all tiles run over them. Up to 4 rows
// are one tile that skips the staging and unpacks in registers: it reads the panels once, at the speed of memory.

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

// A token's block in a tile: 32 codes, d, and two words: the start of the integer sums, or float(sum of q) * d for an offset.
inline constexpr int token_block_bytes = 32 + 3 * 4;
// A staged block: 8 registers of codes, scales, and offsets or two halves.
inline constexpr int staged_scale = 512, staged_extra = 576, staged_bytes = 704;
// 16 staged blocks (11 KB) stay in a first-level cache of 32 KB beside a tile of activations (12 tokens x 16 blocks: 8 KB) and
// its sums.
inline constexpr int stage_blocks = 16;
// Rows that share an unpacked block: unpacking costs about as much as two rows, so with 96 rows 2%.
inline constexpr int max_tokens = 96;
// 96 rows x 16 blocks: 66 KB, a small part of a second-level cache; also 24 rows of 2048 inputs, whose panels are then read in
// one sweep.
inline constexpr int activation_bytes = max_tokens * stage_blocks * token_block_bytes;

// How far ahead the direct path fetches into the second-level cache. A core reads 15 to 25 GB/s, so memory's latency of 100 to
// 200 ns (more when others load it) is 2 to 5 KB; 8 KB was the best of 1, 2, 4 and 8 for Q4_K, Q5_K and Q8_0 and 1, 2 and 4 rows
// on a loaded Zen 4.
inline constexpr int direct_ahead = 8192;

/// Bytes of a block of 32 inputs of a panel, scales included.
template <class Format>
inline constexpr int block_bytes = Panel<Format>::chunk_bytes / (Panel<Format>::chunk / block_k);

template <class Format>
MOXIE_INLINE constexpr std::int64_t panel_bytes(std::int64_t k) noexcept {
  return (k / Panel<Format>::chunk * Panel<Format>::chunk_bytes + 63) / 64 * 64;
}

/// How a format's blocks are multiplied on an architecture; formats that agree share their compiled tiles.
template <class A, int kind_, bool start_, bool offset_>
struct Way {
  static constexpr int kind = kind_;
  static constexpr bool start = start_, offset = offset_, halves = kind_ == Ops<A>::halves;
  static constexpr int tile = Ops<A>::template tile<kind_>;
};
template <class A, class P>
using WayOf = Way<A, Ops<A>::template dot_kind<P>, Ops<A>::template needs_start<P>, P::has_offset>;

/// The outputs of a panel for one row; all but a matrix's last panel have 16.
MOXIE_INLINE void copy_columns(float* to, const float* from, std::size_t columns) noexcept {
  if (columns == panel_rows)
    __builtin_memcpy(to, from, panel_rows * sizeof(float));
  else
    __builtin_memcpy(to, from, columns * sizeof(float));
}

MOXIE_INLINE float load_float(const std::byte* p) noexcept { return __builtin_bit_cast(float, load_u32(p)); }

/// Tokens of the next tile when `rest` are left.
template <int largest>
MOXIE_INLINE int next_tile(int rest) noexcept {
  if (rest >= largest) return largest;
  if (largest > 8 && rest >= 8) return 8;
  return rest >= 4 ? 4 : rest;
}

/// `blocks` blocks from block `first` on of `tokens` rows into one tile.
template <class A, class P>
MOXIE_INLINE void copy_tile(const ActivationRows& a, const std::int32_t* rows, std::int64_t first_row, int tokens, std::int64_t k,
                            std::int64_t first, int blocks, std::byte* tile) noexcept {
  for (int t = 0; t < tokens; ++t) {
    const std::int64_t row = rows ? rows[first_row + t] : first_row + t;
    const std::int8_t* q = a.q + row * k + first * block_k;
    const float* d = a.d + row * (k / block_k) + first;
    const std::int16_t* sum = a.sum + row * (k / 16) + 2 * first;
    std::byte* out = tile;
    for (int b = 0; b < blocks; ++b, q += block_k, sum += 2, out += tokens * token_block_bytes) {
      __builtin_memcpy(out + 32 * t, q, 32);
      std::byte* words = out + 32 * tokens + 4 * t;
      __builtin_memcpy(words, d + b, 4);
      if constexpr (P::has_offset) {
        const float s = static_cast<float>(sum[0] + sum[1]) * d[b];
        __builtin_memcpy(words + 4 * tokens, &s, 4);
      } else if constexpr (Ops<A>::template needs_start<P>) {
        std::int32_t start[2];
        Ops<A>::template start_words<P>(q, sum, start);
        __builtin_memcpy(words + 4 * tokens, &start[0], 4);
        __builtin_memcpy(words + 8 * tokens, &start[1], 4);
      }
    }
  }
}

/// Float sums of a tile, [tokens][16]: in registers where there are enough of them, else in the first-level cache, where a
/// compiler would otherwise put the integer sums of the inner loop.
template <class A, int tokens, bool in_registers = Ops<A>::sums_in_registers>
struct TileSums {
  using O = Ops<A>;
  typename O::F acc[tokens];
  float* memory;
  MOXIE_INLINE explicit TileSums(float* sums) noexcept : memory(sums) {
    unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA { acc[t] = O::load(memory + panel_rows * t); });
  }
  MOXIE_INLINE typename O::F get(int t) const noexcept { return acc[t]; }
  MOXIE_INLINE void set(int t, typename O::F x) noexcept { acc[t] = x; }
  MOXIE_INLINE void finish() noexcept {
    unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA { O::store(memory + panel_rows * t, acc[t]); });
  }
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
  MOXIE_INLINE void finish() noexcept {}
};

/// One block of 16 rows of weights for a tile of tokens.
template <class A, class W, int tokens, class Code>
MOXIE_INLINE void add_block(Code&& code, typename Ops<A>::F scale, typename Ops<A>::F offset,
                            const typename Ops<A>::Ints (&halves)[2], const std::byte* tile, TileSums<A, tokens>& acc) noexcept {
  using O = Ops<A>;
  typename O::Ints sums[tokens];
  const std::byte* d = tile + 32 * tokens;
  O::template dot<W::kind, W::start, tokens>(code, tile, d + 4 * tokens, halves, sums);
  unroll<tokens>([&](int t) MOXIE_INLINE_LAMBDA {
    typename O::F x = O::fma(O::to_float(sums[t]), O::mul(scale, O::set1(load_float(d + 4 * t))), acc.get(t));
    if constexpr (W::offset) x = O::fma(offset, O::set1(load_float(d + 4 * (tokens + t))), x);
    acc.set(t, x);
  });
}

/// Staged blocks for a tile; for each of them `ahead_step` bytes from `ahead` on are brought into the second-level cache.
template <class A, class W, int tokens>
[[gnu::noinline]] void run_tile(const std::byte* staged, int blocks, const std::byte* tile, float* sums, const std::byte* ahead,
                                int ahead_step) noexcept {
  using O = Ops<A>;
  TileSums<A, tokens> acc(sums);
  for (int b = 0; b < blocks; ++b, staged += staged_bytes, tile += tokens * token_block_bytes) {
    for (int i = 0; i < ahead_step; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    ahead += ahead_step;
    const auto code = [&](auto j) MOXIE_INLINE_LAMBDA { return O::load_bytes(staged + 64 * j.value); };
    typename O::F offset = O::set1(0);
    typename O::Ints halves[2]{};
    if constexpr (W::offset) offset = O::load(reinterpret_cast<const float*>(staged + staged_extra));
    if constexpr (W::halves) {
      halves[0] = O::load_ints(staged + staged_extra);
      halves[1] = O::load_ints(staged + staged_extra + 64);
    }
    add_block<A, W, tokens>(code, O::load(reinterpret_cast<const float*>(staged + staged_scale)), offset, halves, tile, acc);
  }
  acc.finish();
}

/// All tiles of `tokens` rows over the staged blocks; a tile's blocks begin `skipped` blocks after its start. The first tile
/// fetches the panel's next blocks, which would wait for memory when they are staged.
template <class A, class W>
void run_tiles(const std::byte* staged, int blocks, const std::byte* tiles, int tile_blocks, int skipped, int tokens, float* sums,
               const std::byte* ahead, int ahead_step) noexcept {
  for (int t = 0; t < tokens;) {
    const int size = next_tile<W::tile>(tokens - t);
    const std::byte* tile =
        tiles + (static_cast<std::ptrdiff_t>(t) * tile_blocks + static_cast<std::ptrdiff_t>(size) * skipped) * token_block_bytes;
    float* to = sums + panel_rows * t;
    const int step = t == 0 ? ahead_step : 0;
    if (size == W::tile)
      run_tile<A, W, W::tile>(staged, blocks, tile, to, ahead, step);
    else if (W::tile > 8 && size == 8)
      run_tile<A, W, (W::tile > 8 ? 8 : 1)>(staged, blocks, tile, to, ahead, step);
    else if (size == 4)
      run_tile<A, W, 4>(staged, blocks, tile, to, ahead, step);
    else if (size == 3)
      run_tile<A, W, 3>(staged, blocks, tile, to, ahead, step);
    else if (size == 2)
      run_tile<A, W, 2>(staged, blocks, tile, to, ahead, step);
    else
      run_tile<A, W, 1>(staged, blocks, tile, to, ahead, step);
    t += size;
  }
}

template <class A, class Format>
MOXIE_INLINE typename Ops<A>::F offset_of(const std::byte* chunk, int b) noexcept {
  if constexpr (Panel<Format>::has_offset)
    return Panel<Format>::template offset<Ops<A>>(chunk, b);
  else
    return Ops<A>::set1(0);
}
template <class A, class Format>
MOXIE_INLINE void halves_of(const std::byte* chunk, int b, typename Ops<A>::Ints (&halves)[2]) noexcept {
  if constexpr (Panel<Format>::has_halves) {
    halves[0] = Panel<Format>::template half<Ops<A>>(chunk, b, 0);
    halves[1] = Panel<Format>::template half<Ops<A>>(chunk, b, 1);
  }
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
  for_blocks<Format>(panel, first, blocks, [&](const std::byte* chunk, int b, int i) MOXIE_INLINE_LAMBDA {
    std::byte* out = staged + i * staged_bytes;
    unroll_constant<8>([&](auto j)
                           MOXIE_INLINE_LAMBDA { O::store_bytes(out + 64 * j.value, operand_of<A, Format, j.value>(chunk, b)); });
    O::store(reinterpret_cast<float*>(out + staged_scale), Panel<Format>::template scale<O>(chunk, b));
    if constexpr (Panel<Format>::has_offset)
      O::store(reinterpret_cast<float*>(out + staged_extra), offset_of<A, Format>(chunk, b));
    if constexpr (Panel<Format>::has_halves) {
      typename O::Ints halves[2];
      halves_of<A, Format>(chunk, b, halves);
      O::store_ints(out + staged_extra, halves[0]);
      O::store_ints(out + staged_extra + 64, halves[1]);
    }
  });
}

/// A tile of few tokens over a panel, unpacked in registers.
template <class A, class Format, int tokens>
[[gnu::noinline]] void run_direct(const std::byte* panel, std::int64_t first, int blocks, const std::byte* tile,
                                  float* sums) noexcept {
  using O = Ops<A>;
  TileSums<A, tokens> acc(sums);
  for_blocks<Format>(panel, first, blocks, [&](const std::byte* chunk, int b, int) MOXIE_INLINE_LAMBDA {
    for (int i = 0; i < block_bytes<Format>; i += 64)
      __builtin_prefetch(chunk + b * block_bytes<Format> + direct_ahead + i, 0, 2);
    const auto code = [&](auto j) MOXIE_INLINE_LAMBDA { return operand_of<A, Format, j.value>(chunk, b); };
    typename O::Ints halves[2]{};
    halves_of<A, Format>(chunk, b, halves);
    add_block<A, WayOf<A, Panel<Format>>, tokens>(code, Panel<Format>::template scale<O>(chunk, b),
                                                  offset_of<A, Format>(chunk, b), halves, tile, acc);
    tile += tokens * token_block_bytes;
  });
  acc.finish();
}

}  // namespace int8

template <class A, class Format>
void matmul_int8(const MatmulArgs& m) noexcept {
  using namespace int8;
  using W = WayOf<A, Panel<Format>>;
  alignas(64) std::byte tiles[activation_bytes];
  alignas(64) std::byte staged[stage_blocks * staged_bytes];
  alignas(64) float sums[max_tokens * panel_rows];

  const std::int64_t k_blocks = m.k / block_k, bytes = panel_bytes<Format>(m.k);
  for (std::int64_t row = 0; row < m.n_rows; row += max_tokens) {
    const int tokens = static_cast<int>(m.n_rows - row < max_tokens ? m.n_rows - row : max_tokens);
    const int most = activation_bytes / token_block_bytes / tokens / stage_blocks * stage_blocks;  // blocks at a time
    for (std::int64_t first = 0; first < k_blocks; first += most) {
      const int blocks = static_cast<int>(k_blocks - first < most ? k_blocks - first : most);
      for (int t = 0; t < tokens;) {
        const int size = next_tile<W::tile>(tokens - t);
        copy_tile<A, Panel<Format>>(m.a, m.rows, row + t, size, m.k, first, blocks,
                                    tiles + static_cast<std::ptrdiff_t>(t) * blocks * token_block_bytes);
        t += size;
      }
      for (std::int64_t p = m.panel_begin; p < m.panel_end; ++p) {
        const std::byte* panel = m.panels + p * bytes;
        float* out = m.out + row * m.out_stride + p * panel_rows;
        const std::int64_t left = m.n - p * panel_rows;
        const auto columns = static_cast<std::size_t>(left < panel_rows ? left : panel_rows);
        if (first == 0)
          __builtin_memset(sums, 0, static_cast<std::size_t>(tokens) * panel_rows * sizeof(float));
        else
          for (int t = 0; t < tokens; ++t) {
            if (columns < panel_rows) __builtin_memset(sums + panel_rows * t, 0, panel_rows * sizeof(float));
            copy_columns(sums + panel_rows * t, out + t * m.out_stride, columns);
          }
        if (tokens == 1) {
          run_direct<A, Format, 1>(panel, first, blocks, tiles, sums);
        } else if (tokens == 2) {
          run_direct<A, Format, 2>(panel, first, blocks, tiles, sums);
        } else if (tokens == 3) {
          run_direct<A, Format, 3>(panel, first, blocks, tiles, sums);
        } else if (tokens == 4) {
          run_direct<A, Format, 4>(panel, first, blocks, tiles, sums);
        } else {
          for (int skipped = 0; skipped < blocks; skipped += stage_blocks) {
            const int n = blocks - skipped < stage_blocks ? blocks - skipped : stage_blocks;
            stage<A, Format>(panel, first + skipped, n, staged);
            const std::byte* ahead = panel + (first + skipped + n) * block_bytes<Format>;
            run_tiles<A, W>(staged, n, tiles, blocks, skipped, tokens, sums, ahead, block_bytes<Format>);
          }
        }
        for (int t = 0; t < tokens; ++t) copy_columns(out + t * m.out_stride, sums + panel_rows * t, columns);
      }
    }
  }
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
