#pragma once
// Matrix product of packed quantized weights with int8 activations: one loop for all formats and architectures.
//
// For each output element, blocks of 32 inputs from low k to high k, acc starting at 0:
//
//   isum = sum over the block of (code - zero) * q                      exact, int32
//          (formats with halves: sc[0] * sum of the first 16 + sc[1] * sum of the last 16; below 2^24, or with float factors
//          fma(float(sum of the last 16), sc[1], float(sum of the first 16) * sc[0]))
//   acc  = fma(float(isum), scale * d, acc)                             scale of the weights' block, d of the activations'
//   acc  = fma(offset, float(sum of q) * d, acc)                        formats with an offset only
//          (and halves: fma(float(mn[0] * sum of the first 16 q + mn[1] * sum of the last 16), offset * d, acc))
//
// Formats with integer halves and no offset have one scale for the 8 blocks of a chunk, whose sums are added first:
//
//   part = fma(float(isum), d, part), from 0 on;  acc = fma(part, scale, acc) after the chunk
//
// so the bits are the same on every architecture with a fused multiply-add, for every tile.
//
// Form: a tile of rows x 1 or 2 panels (as many as the registers hold) goes over all blocks of the panels, then the next tile,
// while the panels are in cache; activations lie as the tiles read them (Int8Rows). Where unpacking would take the ports that the
// products need, stage_blocks blocks are unpacked to bytes in the first-level cache first, and all tiles run over them.

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

// How far ahead the direct path fetches, and to which cache (Tuning). A core reads 20 to 40 GB/s, so memory's latency of 100 to
// 200 ns (more when others load it) is 2 to 7 KB.
//
// AVX-512. Zen 4, 4 tokens: 2 KB takes 1.5 to 2 times as long, 4 KB 1.1 to 1.3 times, 10 and 12 KB the same; Zen 5, a decode
// step: 4 KB 0 to 9% slower, 12 KB 1 to 3%. On Zen 5 a decode step is 2 to 6% faster with the first-level cache, on Zen 4 tiles
// of 3 and 4 tokens of up to 6 bits are 15 to 30% faster with the second, and of 8 bits 10 to 15% with the first, 4 KB ahead.
// Tiles of up to Ops::unfetched tokens may do best without: a block is so few instructions that the loads of the next ones start
// by themselves, and a panel is read in the order of its bytes, which the processor's prefetchers follow. On Zen 4 the kernels
// for one token read 34 to 36 GB/s so, as much as a plain loop, and 22 to 30 with fetching 6 KB ahead.
//
// Intel, 2 cores of a Xeon (model 167), one token, Q4_K from memory, GB/s:
//
//   KB ahead                     1      2      3      4      8   none
//   second-level cache, AVX-512  29.9   32.3   33.8   31.7   29.8   28.8
//                       AVX2     26.8   30.3   30.1   28.0   26.5   26.3
//   first-level cache,  AVX-512  31.8   32.6   31.0   28.4   26.4
//                       AVX2     28.7   30.3   24.1   22.0   19.5
//
// and so for AVX-VNNI, other formats, 2 tokens and (by less) 4: a fetch to the first-level cache holds one of the few places for
// its misses until memory answers. AVX2 on Zen 3 gains nothing by other distances or caches than 8 KB and the first.
//
// What follows at the panels' end is fetched in any case.

/// Bytes of a block of 32 inputs of a panel, scales included.
template <class Format>
inline constexpr int block_bytes = Panel<Format>::chunk_bytes / (Panel<Format>::chunk / block_k);

template <class Format>
MOXIE_INLINE constexpr std::int64_t panel_bytes(std::int64_t k) noexcept {
  return (k / Panel<Format>::chunk * Panel<Format>::chunk_bytes + 63) / 64 * 64;
}

/// How a format's blocks are multiplied on an architecture; formats that agree share their compiled tiles.
template <class A, int kind_, int zero_, bool offset_, bool halves_, bool float_halves_>
struct Way {
  static constexpr int kind = kind_, zero = zero_;
  static constexpr bool offset = offset_, halves = halves_, float_halves = float_halves_;
  /// One scale for `chunk` blocks, whose sums are added before it.
  static constexpr bool chunk_scale = halves && !offset && !float_halves;
  static constexpr int chunk = 8;
  static constexpr int panels = Ops<A>::panels;
  template <bool staged>
  static constexpr int tile = Ops<A>::template tile<kind_, offset_, staged>;
  static constexpr bool fours = Ops<A>::template fours<kind_, offset_>;
  static constexpr int staged_from = Ops<A>::template staged_from<kind_, offset_>;
};
template <class A, class P>
using WayOf = Way<A, Ops<A>::template dot_kind<P>, Ops<A>::template zero<P>, P::has_offset, P::has_halves, has_float_halves<P>>;

MOXIE_INLINE float load_float(const std::byte* p) noexcept { return __builtin_bit_cast(float, load_u32(p)); }

/// Rows of the next tile when `rest` are left, no more than `largest`. One row alone waits for its own sums, unless those of two
/// panels are taken: 5 are 3 + 2, or a tile of their own where two panels are taken and the registers hold it. `fours`: 4 rows
/// are faster than 6, which are taken where 1 or 2 would be left.
template <int largest, int panels, bool fours>
MOXIE_INLINE int next_tile(int rest) noexcept {
  if (fours && rest != 5 && rest != 6) return rest < 4 ? rest : 4;
  if (largest >= 12 && rest >= 12) return 12;
  if (panels == 1 && largest >= 8 && rest >= 8 && rest != 9 && rest != 10) return 8;
  if (largest >= 6 && rest >= 6 && rest != 7 && rest != 8) return 6;
  if (panels > 1 && largest >= 6 && rest == 5) return 5;
  if (largest >= 4 && rest >= 4 && (panels > 1 || rest != 5)) return 4;
  const int least = largest < 3 ? largest : 3;
  return rest < least ? rest : least;
}
/// f(Constant<n>{}) for the tile height n that next_tile() gave.
template <int largest, int panels, class F>
MOXIE_INLINE void with_tile(int n, F&& f) noexcept {
  switch (n) {
    case 1:
      return f(Constant<1>{});
    case 2:
      return f(Constant<2>{});
    case 3:
      return f(Constant<(largest < 3 ? 1 : 3)>{});
    case 4:
      return f(Constant<(largest < 4 ? 1 : 4)>{});
    case 5:
      return f(Constant<(largest < 6 || panels == 1 ? 1 : 5)>{});
    case 6:
      return f(Constant<(largest < 6 ? 1 : 6)>{});
    case 8:
      return f(Constant<(largest < 8 ? 1 : 8)>{});
    default:
      return f(Constant<(largest < 12 ? 1 : 12)>{});
  }
}
/// f(row, height) for the tiles of rows [first, first + count): parts of the groups in which the rows lie.
template <int largest, int panels, bool fours, class F>
MOXIE_INLINE void for_tiles(const Int8Rows& rows, std::int64_t first, int count, F&& f) noexcept {
  for (int done = 0; done < count;) {
    const std::int64_t row = first + done, in_group = rows.step(row) - row % Int8Rows::group;
    const int height = next_tile<largest, panels, fours>(static_cast<int>(count - done < in_group ? count - done : in_group));
    f(row, height);
    done += height;
  }
}

/// n float sums of a tile, 16 columns each: in registers where there are enough of them, else in the first-level cache, where a
/// compiler would otherwise put the integer sums of the inner loop.
template <class A, int n, bool in_registers = Ops<A>::sums_in_registers>
struct TileSums {
  using O = Ops<A>;
  typename O::F acc[n];
  MOXIE_INLINE explicit TileSums(const float* from) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < n; ++i) acc[i] = from ? O::load(from + panel_rows * i) : O::set1(0);
  }
  MOXIE_INLINE typename O::F get(int i) const noexcept { return acc[i]; }
  MOXIE_INLINE void set(int i, typename O::F x) noexcept { acc[i] = x; }
};
template <class A, int n>
struct TileSums<A, n, false> {
  using O = Ops<A>;
  float* memory;
  MOXIE_INLINE explicit TileSums(float* sums) noexcept : memory(sums) {}
  MOXIE_INLINE typename O::F get(int i) const noexcept { return O::load(memory + panel_rows * i); }
  MOXIE_INLINE void set(int i, typename O::F x) noexcept {
    O::store(memory + panel_rows * i, x);
    __asm__("" ::: "memory");  // or a compiler keeps the sums in the registers that the integer sums need
  }
};

/// What a block's sums are multiplied by; of the members those that the format has.
template <class A>
struct BlockScales {
  using O = Ops<A>;
  typename O::F scale, offset = O::set1(0);
  typename O::Ints halves[2]{}, offsets[2]{};
  typename O::F float_halves[2]{};
};

/// One block of 16 rows of weights of each panel for a tile of tokens: code(p, j) and scales(p) of panel p.
template <class A, class W, int tokens, int panels, class Code, class Scales, class Sums>
MOXIE_INLINE void add_block(Code&& code, Scales&& scales, const Int8Block* x, Sums& acc) noexcept {
  using O = Ops<A>;
  typename O::F sums[panels][tokens];
  const auto half = [&](int p, int h) MOXIE_INLINE_LAMBDA {
    if constexpr (W::float_halves)
      return scales(p).float_halves[h];
    else
      return scales(p).halves[h];
  };
  O::template dot<W::kind, W::zero>(code, half, x, sums);
  BlockScales<A> s[panels];  // only now: the registers were for the sums
  if constexpr (!W::chunk_scale) {
    MOXIE_UNROLL
    for (int p = 0; p < panels; ++p) s[p] = scales(p);
  }
  MOXIE_UNROLL
  for (int t = 0; t < tokens; ++t) {
    const typename O::F d = O::set1(x[t].d);
    MOXIE_UNROLL
    for (int p = 0; p < panels; ++p) {
      const int i = panels * t + p;
      if constexpr (W::chunk_scale) {
        acc.set(i, O::fma(sums[p][t], d, acc.get(i)));
      } else {
        typename O::F y = O::fma(sums[p][t], O::mul(s[p].scale, d), acc.get(i));
        if constexpr (W::offset && W::halves)
          y = O::fma(O::offset_sums(x[t], s[p].offsets), O::mul(s[p].offset, d), y);
        else if constexpr (W::offset)
          y = O::fma(s[p].offset, O::set1(x[t].sum_d), y);
        acc.set(i, y);
      }
    }
  }
}

/// Ends a chunk: the n totals get its sums times the scale of their panel, and the sums are 0 again.
template <class A, int panels, int n, class Scale, class Sums, class Totals>
MOXIE_INLINE void end_chunk(Scale&& scale, Sums& acc, Totals& total) noexcept {
  using O = Ops<A>;
  typename O::F s[panels];
  MOXIE_UNROLL
  for (int p = 0; p < panels; ++p) s[p] = scale(p);
  MOXIE_UNROLL
  for (int i = 0; i < n; ++i) {
    total.set(i, O::fma(acc.get(i), s[i % panels], total.get(i)));
    acc.set(i, O::set1(0));
  }
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
  if constexpr (W::float_halves)
    for (int h = 0; h < 2; ++h) s.float_halves[h] = O::load(reinterpret_cast<const float*>(extra + 64 * h));
  else if constexpr (W::halves)
    for (int h = 0; h < 2; ++h) {
      s.halves[h] = O::load_ints(extra + 64 * h);
      if constexpr (W::offset) s.offsets[h] = O::load_ints(extra + 128 + 64 * h);
    }
  return s;
}

/// Staged blocks [block][panel] for a tile whose blocks are `step` apart; for each of them `ahead_step` bytes from `ahead` on are
/// brought into the second-level cache. sums [tokens][panels][16].
template <class A, class W, int tokens>
[[gnu::noinline]] void run_tile(const std::byte* staged, int blocks, const Int8Block* x, std::int64_t step, float* sums,
                                const std::byte* ahead, int ahead_step) noexcept {
  using O = Ops<A>;
  constexpr int panels = W::panels, n = tokens * panels;
  const auto run = [&](int count, auto& acc) MOXIE_INLINE_LAMBDA {
    for (int b = 0; b < count; ++b, staged += panels * staged_bytes<W>, x += step) {
      for (int i = 0; i < ahead_step; i += 64) __builtin_prefetch(ahead + i, 0, 2);
      ahead += ahead_step;
      const auto code = [&](int p, int j) MOXIE_INLINE_LAMBDA { return O::load_bytes(staged + p * staged_bytes<W> + 64 * j); };
      const auto scales = [&](int p) MOXIE_INLINE_LAMBDA { return staged_scales<A, W>(staged + p * staged_bytes<W>); };
      add_block<A, W, tokens, panels>(code, scales, x, acc);
    }
  };
  if constexpr (W::chunk_scale) {
    alignas(64) float part[O::sums_in_registers ? 1 : n * panel_rows] = {};
    TileSums<A, n> acc(O::sums_in_registers ? nullptr : part);
    TileSums<A, n, false> total(sums);
    for (int b = 0; b < blocks; b += W::chunk) {
      run(W::chunk, acc);
      const auto scale = [&](int p) MOXIE_INLINE_LAMBDA {  // beside the chunk's last block
        return O::load(reinterpret_cast<const float*>(staged + (p - panels) * staged_bytes<W> + staged_scale));
      };
      end_chunk<A, panels, n>(scale, acc, total);
    }
  } else {
    TileSums<A, n> acc(sums);
    run(blocks, acc);
    if constexpr (O::sums_in_registers) {
      MOXIE_UNROLL
      for (int i = 0; i < n; ++i) O::store(sums + panel_rows * i, acc.get(i));
    }
  }
}

template <class A, class Format>
MOXIE_INLINE BlockScales<A> scales_of(const std::byte* chunk, int b) noexcept {
  using O = Ops<A>;
  using P = Panel<Format>;
  BlockScales<A> s;
  s.scale = P::template scale<O>(chunk, b);
  if constexpr (P::has_offset) s.offset = P::template offset<O>(chunk, b);
  if constexpr (P::has_offset && P::has_halves) s.offset = O::mul(s.offset, O::set1(-1));  // of minus the sums
  if constexpr (has_float_halves<P>)
    for (int h = 0; h < 2; ++h) s.float_halves[h] = P::template half<O>(chunk, b, h);
  else if constexpr (P::has_halves)
    for (int h = 0; h < 2; ++h) {
      s.halves[h] = P::template half<O>(chunk, b, h);
      if constexpr (P::has_offset) s.offsets[h] = P::template half_offset<O>(chunk, b, h);
    }
  return s;
}
/// Register j of a block's codes. j is known where loops over it are written out.
template <class A, class Format>
MOXIE_INLINE typename Ops<A>::Bytes codes_of(const std::byte* chunk, int b, int j) noexcept {
  using O = Ops<A>;
  using P = Panel<Format>;
  switch (j) {
    case 0:
      return P::template code<O, 0>(chunk, b);
    case 1:
      return P::template code<O, 1>(chunk, b);
    case 2:
      return P::template code<O, 2>(chunk, b);
    case 3:
      return P::template code<O, 3>(chunk, b);
    case 4:
      return P::template code<O, 4>(chunk, b);
    case 5:
      return P::template code<O, 5>(chunk, b);
    case 6:
      return P::template code<O, 6>(chunk, b);
    default:
      return P::template code<O, 7>(chunk, b);
  }
}
template <class A, class Format>
MOXIE_INLINE typename Ops<A>::Bytes operand_of(const std::byte* chunk, int b, int j) noexcept {
  return Ops<A>::template operand<Panel<Format>>(codes_of<A, Format>(chunk, b, j));
}

struct Nothing {
  MOXIE_INLINE void operator()(const std::byte*) const noexcept {}
};
/// f(chunk, b, i) for each of `blocks` blocks of a panel from block `first` on, block i in `chunk` as its block b, and end(chunk)
/// after those of a chunk.
template <class Format, class Fn, class End = Nothing>
MOXIE_INLINE void for_blocks(const std::byte* panel, std::int64_t first, int blocks, Fn&& f, End&& end = {}) noexcept {
  constexpr int per_chunk = Panel<Format>::chunk / block_k;
  const std::byte* chunk = panel + first / per_chunk * Panel<Format>::chunk_bytes;
  for (int i = 0; i < blocks; i += per_chunk, chunk += Panel<Format>::chunk_bytes) {
    for (int b = 0; b < per_chunk; ++b) f(chunk, b, i + b);
    end(chunk);
  }
}

/// Blocks of a panel, `step` bytes apart in `staged`.
template <class A, class Format>
[[gnu::noinline]] void stage(const std::byte* panel, std::int64_t first, int blocks, std::byte* staged, int step) noexcept {
  using O = Ops<A>;
  using W = WayOf<A, Panel<Format>>;
  for_blocks<Format>(panel, first, blocks, [&](const std::byte* chunk, int b, int i) MOXIE_INLINE_LAMBDA {
    std::byte* out = staged + i * step;
    MOXIE_UNROLL
    for (int j = 0; j < 8; ++j) O::store_bytes(out + 64 * j, operand_of<A, Format>(chunk, b, j));
    const BlockScales<A> s = scales_of<A, Format>(chunk, b);
    O::store(reinterpret_cast<float*>(out + staged_scale), s.scale);
    out += staged_extra;
    if constexpr (W::offset) {
      O::store(reinterpret_cast<float*>(out), s.offset);
      out += 64;
    }
    if constexpr (W::float_halves)
      for (int h = 0; h < 2; ++h) O::store(reinterpret_cast<float*>(out + 64 * h), s.float_halves[h]);
    else if constexpr (W::halves)
      for (int h = 0; h < 2; ++h) {
        O::store_ints(out + 64 * h, s.halves[h]);
        if constexpr (W::offset) O::store_ints(out + 128 + 64 * h, s.offsets[h]);
      }
  });
}

/// Panels that are multiplied together, `step` bytes apart; 0: there is one alone, whose products may be taken twice.
struct Group {
  const std::byte* panel;
  std::int64_t step;
};

/// What a tile fetches ahead.
struct Ahead {
  static constexpr int follow = -1, follow_few = -2;
  // With `lines` for each block, from `next` on, into the second-level cache: a part of the group that comes next, of which every
  // tile brings one. With `follow`, of the only tile over a panel: what lies `distance` further, and at the end what lies
  // `jump` bytes further still; with `follow_few` also for tiles that do without.
  int lines;
  const std::byte* next;
  const std::byte* end;
  std::ptrdiff_t distance, jump;
  bool second_level;  // where what follows goes; else to the first-level cache

  /// For a tile over `panels` panels, at a block.
  template <class A, class Format, int tokens, int panels>
  MOXIE_INLINE void fetch(const std::byte* at) noexcept {
    constexpr bool may_follow = panels == 1;           // `lines` can be negative
    constexpr bool few = tokens <= Ops<A>::unfetched;  // it may do without, but for the panels' end
    if (may_follow && __builtin_expect(lines < 0, 1)) {
      at += distance;
      if (few && lines == follow && __builtin_expect(at < end, 1)) return;
      at += at < end ? 0 : jump;
      __asm__("" : "+r"(at));  // one address of all lines
      const auto bring = [at](auto locality) MOXIE_INLINE_LAMBDA {
        MOXIE_UNROLL
        for (int i = 0; i < (block_bytes<Format> + 63) / 64; ++i) __builtin_prefetch(at + 64 * i, 0, locality.value);
      };
      second_level ? bring(Constant<2>{}) : bring(Constant<3>{});
    } else {
      for (int i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, 2);
    }
  }
};

/// A tile over a group of panels, unpacked in registers. Row t goes to out + t * out_stride, 16 floats of each panel.
template <class A, class Format, int tokens, int panels>
[[gnu::noinline]] void run_direct(const Group& group, int blocks, const Int8Block* x, std::int64_t step, float* out,
                                  std::int64_t out_stride, const Ahead& ahead_of) noexcept {
  using O = Ops<A>;
  using W = WayOf<A, Panel<Format>>;
  static_assert(!W::chunk_scale || Panel<Format>::chunk == W::chunk * block_k);
  constexpr int n = tokens * panels;
  Ahead ahead = ahead_of;
  const std::int64_t panel_step = group.step;
  constexpr bool total_in_registers = O::sums_in_registers && n <= 4;
  alignas(64) float memory[O::sums_in_registers ? 1 : n * panel_rows] = {}, totals[n * panel_rows] = {};
  TileSums<A, n> acc(O::sums_in_registers ? nullptr : memory);
  TileSums<A, W::chunk_scale ? n : 1, total_in_registers> total(total_in_registers ? nullptr : totals);
  const auto add = [&](const std::byte* chunk, int b, int) MOXIE_INLINE_LAMBDA {
    ahead.template fetch<A, Format, tokens, panels>(chunk + b * block_bytes<Format>);
    const auto code = [&](int p, int j) MOXIE_INLINE_LAMBDA {
      // One panel's codes are read from memory in order: with some of the last three planes loaded early, as compilers would,
      // that is up to a fifth slower.
      if (panels == 1 && Panel<Format>::codes == Codes::u6 && j == 4) __asm__("" ::: "memory");
      return operand_of<A, Format>(chunk + p * panel_step, b, j);
    };
    const auto scales = [&](int p) MOXIE_INLINE_LAMBDA { return scales_of<A, Format>(chunk + p * panel_step, b); };
    add_block<A, W, tokens, panels>(code, scales, x, acc);
    x += step;
  };
  for_blocks<Format>(group.panel, 0, blocks, add, [&](const std::byte* chunk) MOXIE_INLINE_LAMBDA {
    if constexpr (W::chunk_scale) {
      const auto scale = [&](int p) MOXIE_INLINE_LAMBDA { return Panel<Format>::template scale<O>(chunk + p * panel_step, 0); };
      end_chunk<A, panels, n>(scale, acc, total);
    }
  });
  MOXIE_UNROLL
  for (int i = 0; i < n; ++i)
    O::store(out + i / panels * out_stride + i % panels * panel_rows, W::chunk_scale ? total.get(i) : acc.get(i));
}

/// run_group() in pieces of stage_blocks blocks, unpacked for all rows; then comes the group at `then`.
template <class A, class Format>
MOXIE_INLINE void run_staged(const Group& group, const Int8Rows& rows, std::int64_t first, int count, float* out,
                             std::int64_t out_stride, const std::byte* then) noexcept {
  using W = WayOf<A, Panel<Format>>;
  constexpr int panels = W::panels, tile = W::template tile<true>, most = stage_blocks / panels, columns = panels * panel_rows;
  const auto k_blocks = static_cast<int>(rows.k / block_k);
  alignas(64) std::byte staged[stage_blocks * staged_bytes<W>];
  alignas(64) float sums[max_tokens * columns];
  // The tiles fetch the panels' next blocks in equal parts, each of one panel.
  const int tiles = count < tile * panels ? 1 : count / (tile * panels);
  const int lines = (block_bytes<Format> + 64 * tiles - 1) / (64 * tiles);
  __builtin_memset(sums, 0, static_cast<std::size_t>(count) * columns * sizeof(float));
  for (int b = 0; b < k_blocks; b += most) {
    const int n = k_blocks - b < most ? k_blocks - b : most;
    for (int p = 0; p < panels; ++p)
      stage<A, Format>(group.panel + p * group.step, b, n, staged + p * staged_bytes<W>, panels * staged_bytes<W>);
    const std::byte* next = b + n < k_blocks ? group.panel + (b + n) * block_bytes<Format> : then;
    int i = 0;
    for_tiles<tile, panels, false>(rows, first, count, [&](std::int64_t row, int height) MOXIE_INLINE_LAMBDA {
      const int at = i / panels * n * 64 * lines;
      with_tile<tile, panels>(height, [&](auto tokens) MOXIE_INLINE_LAMBDA {
        run_tile<A, W, tokens.value>(staged, n, rows.block(row, b), rows.step(row), sums + columns * (row - first),
                                     next + i % panels * group.step + at, at < n * block_bytes<Format> ? 64 * lines : 0);
      });
      ++i;
    });
  }
  for (int t = 0; t < count; ++t) __builtin_memcpy(out + t * out_stride, sums + columns * t, columns * sizeof(float));
}

/// run_group() in tiles that unpack in registers.
template <class A, class Format>
MOXIE_INLINE void run_unstaged(const Group& group, const Int8Rows& rows, std::int64_t first, int count, float* out,
                               std::int64_t out_stride, Ahead ahead) noexcept {
  using W = WayOf<A, Panel<Format>>;
  const auto k_blocks = static_cast<int>(rows.k / block_k);
  constexpr int least = W::staged_from;
  constexpr int panels = W::panels, tile = W::template tile<false>;
  constexpr bool few_tiles = has_few_tiles<Panel<Format>>;
  constexpr int most = few_tiles && tile > 4 ? 4 : tile, largest = least < most ? least - 1 : most;
  constexpr int rows_a_pass = largest < 12 ? largest : largest / panels;                    // over all panels
  const int passes = W::fours ? (count + 1) / 4 : (count + rows_a_pass - 1) / rows_a_pass;  // fours: of more than 4 rows
  constexpr int alone = few_tiles ? 2 : 4;  // rows up to which panels are read one by one
  const bool few = panels == 1 ? passes == 1 : count <= alone;
  if (!few) ahead.lines = (panels * block_bytes<Format> + 64 * passes - 1) / (64 * passes);
  for_tiles<largest, panels, W::fours>(rows, first, count, [&](std::int64_t row, int height) MOXIE_INLINE_LAMBDA {
    float* to = out + (row - first) * out_stride;
    with_tile<largest, panels>(height, [&](auto tokens) MOXIE_INLINE_LAMBDA {
      const auto pass = [&](auto n, const Group& some, float* columns) MOXIE_INLINE_LAMBDA {
        run_direct<A, Format, tokens.value, n.value>(some, k_blocks, rows.block(row, 0), rows.step(row), columns, out_stride,
                                                     ahead);
        if (!few) ahead.next += 64 * ahead.lines * k_blocks;
      };
      if constexpr (panels == 1 || (tokens.value >= 3 && tokens.value < 12)) {
        if (panels == 1 || !few) return pass(Constant<panels>{}, group, to);
      }
      // Few rows wait for memory, which is read faster from one panel than from two.
      if constexpr (panels > 1 && (tokens.value <= alone || tokens.value >= 12))
        for (int p = 0; p < (group.step == 0 ? 1 : panels); ++p)
          pass(Constant<1>{}, {group.panel + p * group.step, 0}, to + p * panel_rows);
    });
  });
}

/// A group of panels for rows [first, first + count), row by row to out + i * out_stride.
template <class A, class Format>
void run_group(const Group& group, const Int8Rows& rows, std::int64_t first, int count, float* out, std::int64_t out_stride,
               const Ahead& ahead, int stage_from) noexcept {
  constexpr int least = WayOf<A, Panel<Format>>::staged_from;
  if constexpr (least < max_tokens) {
    if (least <= 1 || (count >= least && count >= stage_from))
      return run_staged<A, Format>(group, rows, first, count, out, out_stride, ahead.next);
  }
  if constexpr (least > 1) run_unstaged<A, Format>(group, rows, first, count, out, out_stride, ahead);
}

using RunGroup = void (*)(const Group& group, const Int8Rows& rows, std::int64_t first, int count, float* out,
                          std::int64_t out_stride, const Ahead& ahead, int stage_from) noexcept;

/// The rows in pieces that stay in cache, each over all panels of `bytes`.
template <class A>
[[gnu::noinline]] void multiply(const MatmulArgs& m, std::int64_t bytes, RunGroup run) noexcept {
  constexpr int panels = Ops<A>::panels, columns = panels * panel_rows;
  const std::int64_t row_bytes = m.k / block_k * static_cast<std::int64_t>(sizeof(Int8Block));
  const std::int64_t fit = activation_bytes / row_bytes / Int8Rows::group * Int8Rows::group;
  const std::int64_t most = fit < Int8Rows::group ? Int8Rows::group : fit < max_tokens ? fit : max_tokens;
  const std::byte *begin = m.panels + m.panel_begin * bytes, *end = m.panels + m.panel_end * bytes;
  for (std::int64_t row = 0; row < m.n_rows; row += most) {
    const int count = static_cast<int>(m.n_rows - row < most ? m.n_rows - row : most);
    const std::byte* then = row + most < m.n_rows ? begin : m.then;
    const std::ptrdiff_t distance = m.tuning.fetch_distance;
    Ahead ahead{m.tuning.fetch_few ? Ahead::follow_few : Ahead::follow,
                nullptr,
                end,
                distance,
                then ? then - end : -distance,
                m.tuning.fetch_second_level};
    for (std::int64_t p = m.panel_begin; p < m.panel_end; p += panels) {
      const bool alone = m.panel_end - p < panels;  // the last of an odd number
      const Group group{m.panels + p * bytes, alone ? 0 : bytes};
      ahead.next = m.panel_end - p > panels ? group.panel + panels * bytes : then ? then : begin;
      float* out = m.out + row * m.out_stride + p * panel_rows;
      const std::int64_t left = alone && m.n - p * panel_rows > panel_rows ? panel_rows : m.n - p * panel_rows;
      if (left >= columns) {
        run(group, m.a.q, m.first_row + row, count, out, m.out_stride, ahead, m.tuning.stage_from);
      } else {  // not all of the columns are wanted
        alignas(64) float all[max_tokens * columns];
        run(group, m.a.q, m.first_row + row, count, all, columns, ahead, m.tuning.stage_from);
        for (int t = 0; t < count; ++t)
          __builtin_memcpy(out + t * m.out_stride, all + columns * t, static_cast<std::size_t>(left) * sizeof(float));
      }
    }
  }
}

}  // namespace int8

template <class A, class Format>
void matmul_int8(const MatmulArgs& m) noexcept {
  int8::multiply<A>(m, int8::panel_bytes<Format>(m.k), &int8::run_group<A, Format>);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
