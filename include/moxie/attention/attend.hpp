#pragma once
// Attention of a batch of rows over their sequences' KV pages: softmax(q . k * scale) v for every row and head.
//
// A head may have a sink (gpt-oss): a logit that joins its softmax without a value, so that the weights sum to less than 1.
// The batch is cut into tiles, consecutive positions of one sequence times heads that share keys (a group of query heads
// of one kv head; for the latent form any heads), which the threads take dynamically. Where a few long sequences are
// decoded, with fewer tiles than threads, pages are shared out too; where sequences hold the same pages, as forks of a prompt do,
// these are gone over once for all of them. How it is cut changes no bits (kernels/attention.hpp).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/attention/config.hpp>
#include <moxie/attention/kv_cache.hpp>
#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/attention_tile.hpp>
#include <moxie/linalg/context.hpp>

namespace moxie {

/// A row of the batch: its query is at `position` of `sequence`, whose pages hold the keys and values of [0, position].
struct AttendRow {
  const KvSequence* sequence = nullptr;
  std::int64_t position = 0;
};

/// Reusable memory of attention.
struct AttentionScratch {
  struct Tile {
    std::int64_t row, rows, head, heads;
  };
  /// Pages [begin, end) of a tile.
  struct Piece {
    std::int64_t tile, begin, end;
    float* partials;
  };
  /// Rows [row, row + rows) of different sequences that hold the same first pages.
  struct Share {
    std::int64_t row, rows, pages;
    float* state;  // of all heads
  };
  std::vector<Tile> tiles;
  std::vector<Share> shares;
  std::vector<Piece> pieces;
  AlignedBuffer<float> floats;  // one slot for each thread
  AlignedBuffer<float> partials, states;
};

namespace detail {

/// The kernel of a batch that passed check_attention(), and the queries of a full tile. These hide the conversion of a page, and
/// their scratch memory stays in the second-level cache: to make 16-bit codes of a page costs as much as 5 to 10 queries, to make
/// f32 as much as 1.
struct AttentionKernel {
  void (*run)(const kernels::AttentionTile&) = nullptr;
  bool int16 = false;
  std::int64_t queries = 64;
};
inline AttentionKernel attention_kernel(const Context& context, bool latent, std::span<const AttendRow> rows) {
  if (context.kernels == nullptr) throw ArgumentError("the context has no kernels");
  const auto int16 = latent ? context.kernels->attend_mla_int16 : context.kernels->attend_gqa_int16;
  const bool coded = !rows.empty() && kernels::kv_coded(rows.front().sequence->shape().type);
  if (context.activations == Activations::int8 && int16 != nullptr && coded) return {int16, true, latent ? 192 : 256};
  return {latent ? context.kernels->attend_mla : context.kernels->attend_gqa, false, 64};
}

/// Cuts the batch into tiles of about `most` queries, or down to 16 where that would leave threads without work.
/// `group` heads share keys; with `split` a group may be cut too.
inline void cut_attention(std::span<const AttendRow> rows, std::int64_t heads, std::int64_t group, bool split, int threads,
                          std::int64_t most, std::vector<AttentionScratch::Tile>& tiles) {
  const auto n = static_cast<std::int64_t>(rows.size());
  for (std::int64_t queries = most; queries >= 16; queries /= 2) {
    const std::int64_t tile_heads = split ? std::min(group, queries) : group;
    const std::int64_t tile_rows = std::max<std::int64_t>(1, queries / tile_heads);
    tiles.clear();
    for (std::int64_t row = 0; row < n;) {
      const AttendRow& first = rows[static_cast<std::size_t>(row)];
      std::int64_t count = 1;
      while (count < tile_rows && row + count < n && rows[static_cast<std::size_t>(row + count)].sequence == first.sequence &&
             rows[static_cast<std::size_t>(row + count)].position == first.position + count)
        ++count;
      for (std::int64_t head = 0; head < heads; head += tile_heads)
        tiles.push_back({row, count, head, std::min(tile_heads, heads - head)});
      row += count;
    }
    if (static_cast<std::int64_t>(tiles.size()) >= 4 * threads) return;
  }
}

inline void check_attention(const AttentionConfig& config, const KvShape& wanted, std::int64_t layer,
                            std::span<const AttendRow> rows) {
  if (config.sliding_window < 0)
    throw ArgumentError({{}, "AttentionConfig.sliding_window", {}},
                        concat("must be 0 (none) or positive, got ", config.sliding_window));
  for (const AttendRow& row : rows) {
    if (row.sequence == nullptr) throw ArgumentError("a row has no sequence");
    const KvShape& shape = row.sequence->shape();
    if (shape.n_heads != wanted.n_heads || shape.k_dim != wanted.k_dim || shape.v_dim != wanted.v_dim)
      throw ArgumentError(concat("the KV cache has ", shape.n_heads, " heads of ", shape.k_dim, " and ", shape.v_dim,
                                 " elements, but the model needs ", wanted.n_heads, " of ", wanted.k_dim, " and ", wanted.v_dim));
    if (shape.type != rows.front().sequence->shape().type)  // a row's kernel, and so its bits, would depend on the others
      throw ArgumentError("the rows' KV caches have different element types; attend to those of one type at a time");
    if (layer < 0 || layer >= shape.n_layers)
      throw ArgumentError(concat("layer ", layer, " does not exist; the KV cache has ", shape.n_layers));
    if (row.position < 0 || row.position >= row.sequence->reserved())
      throw ArgumentError(
          concat("position ", row.position, " is not in its sequence, which has room for ", row.sequence->reserved()));
  }
}

/// Tiles of one row each, their pages shared out in pieces: partial results of a stretch of pages at once, then merged in
/// page order by queries. A stretch's partial results take at most 1 MiB for each thread, so that they are merged out of the
/// cache.
template <class TileOf>
void attend_by_pages(const Context& context, const TileOf& tile_of, const AttentionKernel& kernel,
                     std::span<const AttendRow> rows, std::int64_t window, std::int64_t v_dim, std::int64_t queries,
                     AttentionScratch& scratch) {
  const auto n = static_cast<std::int64_t>(scratch.tiles.size());
  const std::int64_t size = kernels::attention_partial(queries, v_dim), threads = context.threads.count();
  std::int64_t longest = 0;
  const auto pages_of = [&](std::int64_t i) {
    const std::int64_t position = rows[static_cast<std::size_t>(scratch.tiles[static_cast<std::size_t>(i)].row)].position;
    const std::int64_t first = window == 0 ? 0 : std::max<std::int64_t>(0, position - window + 1);
    return std::pair(first / kv_page, position / kv_page + 1);
  };
  for (std::int64_t i = 0; i < n; ++i) longest = std::max(longest, pages_of(i).second - pages_of(i).first);
  const std::int64_t stretch = std::clamp<std::int64_t>((threads << 18) / (size * n), 1, longest);
  const std::int64_t piece = (stretch * n + 4 * threads - 1) / (4 * threads);  // four for each thread, for an even load
  const std::int64_t shares = (threads + n - 1) / n;                           // of a tile's queries
  scratch.partials.resize(static_cast<std::size_t>(n * (stretch + 1) * size));
  float* states = scratch.partials.data() + n * stretch * size;

  for (std::int64_t done = 0; done < longest; done += stretch) {
    scratch.pieces.clear();
    for (std::int64_t i = 0; i < n; ++i) {
      const auto [first, last] = pages_of(i);
      const std::int64_t start = first + done, end = std::min(last, start + stretch);
      const std::int64_t own_size = kernels::attention_partial(scratch.tiles[static_cast<std::size_t>(i)].heads, v_dim);
      for (std::int64_t begin = start; begin < end; begin += piece)
        scratch.pieces.push_back(
            {i, begin, std::min(end, begin + piece), scratch.partials.data() + i * stretch * size + (begin - start) * own_size});
    }
    context.threads.for_each(static_cast<std::int64_t>(scratch.pieces.size()), [&](std::int64_t p, int thread) {
      const AttentionScratch::Piece& part = scratch.pieces[static_cast<std::size_t>(p)];
      kernels::AttentionTile tile = tile_of(part.tile, thread);
      tile.partials = part.partials;
      tile.page_begin = part.begin;
      tile.page_end = part.end;
      kernel.run(tile);
    });
    context.threads.for_each(n * shares, [&](std::int64_t share, int thread) {
      const std::int64_t i = share / shares, at = share % shares;
      const auto [first, last] = pages_of(i);
      const std::int64_t pages = std::min(last - first - done, stretch);
      if (pages <= 0) return;
      const kernels::AttentionTile tile = tile_of(i, thread);
      context.kernels->merge_attention({.partials = scratch.partials.data() + i * stretch * size,
                                        .pages = pages,
                                        .queries = tile.heads,
                                        .v_dim = v_dim,
                                        .begin = tile.heads * at / shares,
                                        .end = tile.heads * (at + 1) / shares,
                                        .state = states + i * size,
                                        .first = done == 0,
                                        .out = first + done + pages == last ? tile.out : nullptr,
                                        .sinks = tile.sinks,
                                        .one = kernel.int16 ? kernels::attention_int16_one : 1.0f});
    });
  }
}

/// Neighbours, rows of a sequence each, that share so many pages (forks of a prompt do) that it is worth it to attend to these
/// together; no more of them than `most`.
inline void find_shares(std::span<const AttendRow> rows, std::int64_t most, std::vector<AttentionScratch::Share>& shares) {
  constexpr std::int64_t worth = 2;
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto shared = [&](std::int64_t a, std::int64_t b) {
    const AttendRow &x = rows[static_cast<std::size_t>(a)], &y = rows[static_cast<std::size_t>(b)];
    const std::int64_t full = (std::min(x.position, y.position) + 1) / kv_page;  // pages that both see whole
    const std::byte* const* end = x.sequence->pages() + full;
    return std::mismatch(x.sequence->pages(), end, y.sequence->pages()).first - x.sequence->pages();
  };
  shares.clear();
  for (std::int64_t row = 0; row < n;) {
    const std::int64_t pages = row + 1 < n ? shared(row, row + 1) : 0;
    std::int64_t count = 1;
    if (pages >= worth)
      while (count < most && row + count < n && shared(row, row + count) >= pages) ++count;
    if (count > 1) shares.push_back({row, count, pages, nullptr});
    row += count;
  }
}

/// Tiles of one row each, [row][heads], of which neighbours share pages: first the shared pages for all rows of a share together,
/// then the rest of each row from the state that this left. The pages come in the same order as for each row alone.
template <class TileOf>
void attend_shares(const Context& context, const TileOf& tile_of, const AttentionKernel& kernel, std::span<const AttendRow> rows,
                   std::int64_t v_dim, AttentionScratch& scratch) {
  const auto n = static_cast<std::int64_t>(scratch.tiles.size()), n_rows = static_cast<std::int64_t>(rows.size());
  const std::int64_t parts = n / n_rows;  // tiles of a row
  const auto n_shares = static_cast<std::int64_t>(scratch.shares.size());
  const auto with_state = [&](kernels::AttentionTile& tile, const AttentionScratch::Share& share, std::int64_t part) {
    const std::int64_t heads = scratch.tiles.front().heads;  // the last part may have fewer
    tile.state = share.state + part * kernels::attention_partial(share.rows * heads, v_dim);
    tile.state_queries = share.rows * tile.heads;
  };
  std::int64_t floats = 0;
  const auto state_size = [&](const AttentionScratch::Share& share) {
    return parts * kernels::attention_partial(share.rows * scratch.tiles.front().heads, v_dim);
  };
  for (const AttentionScratch::Share& share : scratch.shares) floats += state_size(share);
  scratch.states.resize(static_cast<std::size_t>(floats));
  float* next = scratch.states.data();
  for (AttentionScratch::Share& share : scratch.shares) {
    share.state = next;
    next += state_size(share);
  }
  context.threads.for_each(n_shares * parts, [&](std::int64_t i, int thread) {
    const AttentionScratch::Share& share = scratch.shares[static_cast<std::size_t>(i / parts)];
    kernels::AttentionTile tile = tile_of(share.row * parts + i % parts, thread);
    with_state(tile, share, i % parts);
    tile.rows = share.rows;
    tile.position = share.pages * kv_page - 1;  // every row sees the shared pages whole
    tile.page_end = share.pages;
    tile.ends = false;
    kernel.run(tile);
  });
  context.threads.for_each(n, [&](std::int64_t i, int thread) {
    kernels::AttentionTile tile = tile_of(i, thread);
    const std::int64_t row = i / parts;
    for (const AttentionScratch::Share& share : scratch.shares) {
      if (row < share.row || row >= share.row + share.rows) continue;
      with_state(tile, share, i % parts);
      tile.state_first = (row - share.row) * tile.heads;
      tile.page_begin = share.pages;
      tile.page_end = tile.position / kv_page + 1;
      tile.starts = false;
    }
    kernel.run(tile);
  });
}

/// `wanted`: heads and dimensions of the cache. `v_dim`: width of a head's result. `sinks` [n_heads] or nullptr.
inline void attend(const Context& context, const AttentionConfig& config, const KvShape& wanted, std::int64_t v_dim,
                   std::int64_t layer, const float* q, Index q_stride, std::span<const AttendRow> rows, float* out,
                   Index out_stride, AttentionScratch& scratch, const float* sinks = nullptr) {
  check_attention(config, wanted, layer, rows);
  const bool latent = wanted.latent();
  const AttentionKernel kernel = attention_kernel(context, latent, rows);
  const std::int64_t group = config.n_heads / wanted.n_heads;
  cut_attention(rows, config.n_heads, group, latent, context.threads.count(), kernel.queries, scratch.tiles);
  std::int64_t queries = 0;
  for (const AttentionScratch::Tile& tile : scratch.tiles) queries = std::max(queries, tile.rows * tile.heads);
  const auto n = static_cast<std::int64_t>(scratch.tiles.size());
  const bool single_rows =
      std::all_of(scratch.tiles.begin(), scratch.tiles.end(), [](const auto& tile) { return tile.rows == 1; });
  scratch.shares.clear();
  if (single_rows && config.sliding_window == 0 && n >= context.threads.count()) {
    const std::int64_t fair = n / context.threads.count();  // rows, so that every thread gets a share
    find_shares(rows, std::min(fair, kernel.queries / queries), scratch.shares);
    for (const AttentionScratch::Share& share : scratch.shares)
      queries = std::max(queries, share.rows * scratch.tiles.front().heads);
  }
  const std::int64_t slot = kernel.int16 ? kernels::attention_int16_scratch(queries, wanted.k_dim, v_dim)
                                         : kernels::attention_scratch(queries, wanted.k_dim, v_dim);
  scratch.floats.resize(static_cast<std::size_t>(slot * context.threads.count()));

  const auto tile_of = [&](std::int64_t i, int thread) {
    const AttentionScratch::Tile& tile = scratch.tiles[static_cast<std::size_t>(i)];
    const AttendRow& row = rows[static_cast<std::size_t>(tile.row)];
    const KvShape& shape = row.sequence->shape();
    const std::int64_t kv_head = latent ? 0 : tile.head / group;
    return kernels::AttentionTile{.pages = row.sequence->pages(),
                                  .scale_offset = shape.scale_offset(layer, kv_head),
                                  .key_offset = shape.key_offset(layer, kv_head),
                                  .value_offset = shape.value_offset(layer, kv_head),
                                  .type = shape.type,
                                  .k_dim = shape.k_dim,
                                  .v_dim = v_dim,
                                  .position = row.position,
                                  .rows = tile.rows,
                                  .heads = tile.heads,
                                  .window = config.sliding_window,
                                  .scale = config.scale,
                                  .q = q + tile.row * q_stride + tile.head * shape.k_dim,
                                  .q_stride = q_stride,
                                  .out = out + tile.row * out_stride + tile.head * v_dim,
                                  .out_stride = out_stride,
                                  .scratch = scratch.floats.data() + slot * thread,
                                  .sinks = sinks ? sinks + tile.head : nullptr};
  };
  std::int64_t keys = 0;  // that all rows see together
  for (const AttendRow& row : rows)
    keys += config.sliding_window == 0 ? row.position + 1 : std::min(row.position + 1, config.sliding_window);
  const bool several_pages = std::any_of(rows.begin(), rows.end(), [](const auto& row) { return row.position >= kv_page; });
  if (n < context.threads.count() && single_rows && several_pages)
    attend_by_pages(context, tile_of, kernel, rows, config.sliding_window, v_dim, queries, scratch);
  else if (!scratch.shares.empty())
    attend_shares(context, tile_of, kernel, rows, v_dim, scratch);
  else
    context.threads.for_each(
        n, [&](std::int64_t i, int thread) { kernel.run(tile_of(i, thread)); },
        keys * config.n_heads * (wanted.k_dim + v_dim) < worth_a_team ? std::max<std::int64_t>(1, n) : 1);
}

}  // namespace detail

/// Grouped-query attention. q [rows, n_heads * head_dim] is rotated already; out has the same shape. `sinks` [n_heads], not
/// scaled, or nullptr. Throws ArgumentError when shapes, positions or the layer do not fit the rows' sequences, or these hold
/// elements of several types.
inline void attend_gqa(const Context& context, const AttentionConfig& config, std::int64_t layer, const float* q, Index q_stride,
                       std::span<const AttendRow> rows, float* out, Index out_stride, AttentionScratch& scratch,
                       const float* sinks = nullptr) {
  if (config.n_kv_heads < 1 || config.n_heads < 1 || config.n_heads % config.n_kv_heads != 0)
    throw ArgumentError({{}, "AttentionConfig.n_heads", {}},
                        concat("must be a multiple of n_kv_heads, got ", config.n_heads, " and ", config.n_kv_heads));
  const KvShape wanted{.n_heads = config.n_kv_heads, .k_dim = config.head_dim, .v_dim = config.head_dim};
  detail::attend(context, config, wanted, config.head_dim, layer, q, q_stride, rows, out, out_stride, scratch, sinks);
}

/// Multi-head latent attention in its absorbed form. q [rows, n_heads * (kv_lora_rank + qk_rope_head_dim)]: per head the
/// query taken into the latent space, then its rotated part; out [rows, n_heads * kv_lora_rank]: per head a sum of latents.
/// Throws as attend_gqa.
inline void attend_mla(const Context& context, const AttentionConfig& config, std::int64_t layer, const float* q, Index q_stride,
                       std::span<const AttendRow> rows, float* out, Index out_stride, AttentionScratch& scratch) {
  if (config.n_heads < 1)
    throw ArgumentError({{}, "AttentionConfig.n_heads", {}}, concat("must be positive, got ", config.n_heads));
  const KvShape wanted{.n_heads = 1, .k_dim = config.kv_lora_rank + config.qk_rope_head_dim, .v_dim = 0};
  detail::attend(context, config, wanted, config.kv_lora_rank, layer, q, q_stride, rows, out, out_stride, scratch);
}

}  // namespace moxie
