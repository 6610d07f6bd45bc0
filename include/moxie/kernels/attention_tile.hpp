#pragma once
// One piece of attention for the kernels: consecutive positions of one sequence times query heads that share their keys
// and values, over all pages of the KV cache that they see.

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>

namespace moxie {

/// Elements of the KV cache. int16: the codes that attention with int8 activations multiplies, of 13 bits of keys with a power of
/// two for each 32 dimensions, of 12 bits of values with one for each position. int8: codes with a bf16 scale for each 32
/// dimensions of a position's key or value. Attention over the others is in f32.
enum class KvType { f32, f16, bf16, int16, int8 };

}  // namespace moxie

namespace moxie::kernels {

/// Positions of a page of the KV cache: 4 AVX-512 registers of f32 scores, and the unit of the softmax's partial sums.
/// Results depend on it.
inline constexpr std::int64_t kv_page = 64;

/// Elements from one value (or latent) row of a page to the next: whole AVX-512 registers.
MOXIE_INLINE constexpr std::int64_t kv_row_stride(std::int64_t dim) noexcept { return (dim + 15) / 16 * 16; }

/// Dimensions that share a scale in a page of int8, or a unit in keys of int16.
inline constexpr std::int64_t kv_block = 32;
MOXIE_INLINE constexpr std::int64_t kv_blocks(std::int64_t dim) noexcept { return (dim + kv_block - 1) / kv_block; }

/// Pages of int16 hold words of two codes: of 32 dimensions (of values: positions) word i has number i in its low half, number
/// i + 16 in its high half. So many bits of a code beside its sign let 32 products of keys, or 64 of values, fit in 31 bits.
inline constexpr int kv_key_bits = 13, kv_value_bits = 12;
/// The largest value of a position counts as this much at least, and from the bound on as not finite. So units of values are at
/// most 2^90 apart, and a probability times its unit comes out as 0 (below 2^-126) only if it is below 2^-36.
inline constexpr float kv_value_least = 0x1p-45f, kv_value_bound = 0x1p45f;
inline constexpr float kv_key_least = 0x1p-60f;
inline constexpr std::int64_t kv_pairs = kv_block / 2;      ///< words of a block of a key
inline constexpr std::int64_t kv_page_pairs = kv_page / 2;  ///< words of a page's values of one dimension
inline constexpr std::int64_t kv_panel = 64;                ///< dimensions of values that lie together
MOXIE_INLINE constexpr std::int64_t kv_panels(std::int64_t dim) noexcept { return (dim + kv_panel - 1) / kv_panel; }

MOXIE_INLINE constexpr bool kv_coded(KvType type) noexcept { return type == KvType::int16 || type == KvType::int8; }
/// Bytes of the bf16 scales (int16: units) of a page's keys or latent rows, and of its values.
MOXIE_INLINE constexpr std::int64_t kv_key_scale_bytes(KvType type, std::int64_t dim) noexcept {
  return kv_coded(type) ? kv_page * kv_blocks(dim) * 2 : 0;
}
MOXIE_INLINE constexpr std::int64_t kv_value_scale_bytes(KvType type, std::int64_t dim) noexcept {
  return type == KvType::int16 ? kv_page * 2 : kv_key_scale_bytes(type, dim);
}
MOXIE_INLINE constexpr std::int64_t kv_element_bytes(KvType type) noexcept {
  return type == KvType::f32 ? 4 : type == KvType::int8 ? 1 : 2;
}
/// Bytes of the elements of a page's keys, or of its latent rows.
MOXIE_INLINE constexpr std::int64_t kv_key_bytes(KvType type, std::int64_t dim, bool latent) noexcept {
  if (type == KvType::int16) return kv_page * kv_blocks(dim) * kv_pairs * 4;
  return kv_page * (latent ? kv_row_stride(dim) : dim) * kv_element_bytes(type);
}
/// Bytes of the elements of a page's values.
MOXIE_INLINE constexpr std::int64_t kv_value_bytes(KvType type, std::int64_t dim) noexcept {
  if (type == KvType::int16) return kv_panels(dim) * kv_page_pairs * kv_panel * 4;
  return kv_page * kv_row_stride(dim) * kv_element_bytes(type);
}

/// Query head h of row r, [k_dim], is at q + r * q_stride + h * k_dim; its result, [v_dim], goes to out + r * out_stride + h *
/// v_dim. Row r is at `position + r` and sees the keys of positions [0, position + r], of those the last `window` if that is not
/// 0.
struct AttentionTile {
  const std::byte* const* pages;  ///< page p holds positions [64 p, 64 p + 64)
  std::size_t scale_offset;       ///< bytes from a page's start to the scales of keys, then values (attention/kv_pool.hpp)
  std::size_t key_offset;         ///< to keys, or to latent rows
  std::size_t value_offset;       ///< to values; latent: not used, values are the rows' first v_dim
  KvType type;                    ///< of both
  std::int64_t k_dim, v_dim;
  std::int64_t position, rows, heads;
  std::int64_t window;  ///< 0: none
  float scale;          ///< of q . k before the softmax
  const float* q;
  std::int64_t q_stride;
  float* out;
  std::int64_t out_stride;
  float* scratch;                ///< attention_scratch(..) floats, aligned to 64 bytes
  const float* sinks = nullptr;  ///< [heads], a logit of each head that joins the softmax without a value; nullptr: none
  /// Not nullptr: only pages [page_begin, page_end) of a tile of one row, which sees them; each page's partial result goes
  /// to its attention_partial(..) floats here, for AttentionMerge. `out` is not used.
  float* partials = nullptr;
  std::int64_t page_begin = 0, page_end = 0;  ///< also of a tile with a state
  /// Not nullptr: a running state, attention_partial(state_queries, ..) floats, in which this tile's queries are those from
  /// `state_first` on. Without `starts` the tile goes on from it, without `ends` it goes there instead of a result to `out`.
  float* state = nullptr;
  std::int64_t state_queries = 0, state_first = 0;
  bool starts = true, ends = true;
};

/// What row `row` of a tile sees of a page: slots [begin, end).
struct SeenKeys {
  std::int64_t begin, end;
};
MOXIE_INLINE constexpr std::int64_t first_key(const AttentionTile& t, std::int64_t row) noexcept {
  const std::int64_t begin = t.position + row - t.window + 1;
  return t.window == 0 || begin < 0 ? 0 : begin;
}
MOXIE_INLINE constexpr SeenKeys seen_keys(const AttentionTile& t, std::int64_t page, std::int64_t row) noexcept {
  const std::int64_t base = page * kv_page, first = first_key(t, row), end = t.position + row + 1;
  return {first > base ? first - base : 0, end < base + kv_page ? end - base : kv_page};
}
/// The pages that a tile goes over, and the rows that see keys of one.
struct Span {
  std::int64_t begin, end;
};
MOXIE_INLINE constexpr Span tile_pages(const AttentionTile& t) noexcept {
  if (t.partials || t.state) return {t.page_begin, t.page_end};
  return {first_key(t, 0) / kv_page, (t.position + t.rows - 1) / kv_page + 1};
}
MOXIE_INLINE constexpr Span page_rows(const AttentionTile& t, std::int64_t page) noexcept {
  const std::int64_t base = page * kv_page;
  std::int64_t end = t.rows;
  while (seen_keys(t, page, end - 1).begin >= kv_page) --end;
  return {base > t.position ? base - t.position : 0, end};
}

/// Folds the partial results of consecutive pages into a running one, in page order: the bits of a tile done at once.
struct AttentionMerge {
  const float* partials;
  std::int64_t pages, queries, v_dim;
  std::int64_t begin, end;  ///< the queries to fold
  float* state;             ///< attention_partial(..) floats
  bool first;               ///< the state is new
  float* out;               ///< [queries, v_dim] after the last page, else nullptr
  const float* sinks;       ///< of the tile; used after the last page
  float one;                ///< what a probability of 1 counts in the partial sums
};

/// Floats of scratch memory for a tile of rows * heads queries.
MOXIE_INLINE constexpr std::int64_t attention_scratch(std::int64_t queries, std::int64_t k_dim, std::int64_t v_dim) noexcept {
  const std::int64_t lanes = (queries + 15) / 16 * 16, keys = kv_row_stride(k_dim), values = kv_row_stride(v_dim);
  return lanes * (keys + values + 2 * kv_page + 8) + kv_page * (keys > values ? keys : values);
}

/// The same for the kernels of attention_int16.hpp.
MOXIE_INLINE constexpr std::int64_t attention_int16_scratch(std::int64_t queries, std::int64_t k_dim,
                                                            std::int64_t v_dim) noexcept {
  const std::int64_t lanes = (queries + 15) / 16 * 16, blocks = kv_blocks(k_dim), panels = (v_dim + 63) / 64;
  const std::int64_t a_query = (blocks + 3) / 4 * 65 + kv_row_stride(v_dim) + kv_page + kv_page / 2 + 8;
  return lanes * a_query + blocks * 17 * kv_page + panels * 32 * 64 + 4 * kv_page;
}

/// What a probability of 1 counts in the sums of the kernels of attention_int16.hpp, the largest code; in the others it counts 1.
inline constexpr float attention_int16_one = 8191.0f;

/// Floats of a partial result: values [queries][kv_row_stride(v_dim)], then largest score and sum of each query; 64 byte
/// multiples.
MOXIE_INLINE constexpr std::int64_t attention_partial(std::int64_t queries, std::int64_t v_dim) noexcept {
  return queries * kv_row_stride(v_dim) + 2 * ((queries + 15) / 16 * 16);
}

}  // namespace moxie::kernels
