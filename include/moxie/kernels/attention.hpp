#pragma once
// Attention over pages of the KV cache (FlashAttention's running softmax, arXiv 2205.14135, one step a page).
//
// For each query and each page, in page order:
//   s_j = q . k_j * scale     one chain over the dimensions, low to high (q is scaled first), in units of log2(e)
//   p_j = 2^(s_j - m')        m' = the page's largest s
//   o'  = sum of p_j v_j      one chain over the keys that the query sees, low to high
//   m'' = max(m, m'), o = o 2^(m - m'') + o' 2^(m' - m''), and the same for the sum of p
// and at the end out = o / sum. A head's sink, if it has one, is merged after the last page like a page with this one score and
// values of 0. Keys that a query does not see take no part, whatever their memory holds. So a query's bits depend on its
// position, its window and the keys only: not on the tile's shape or on its other queries.
//
// Both products run in blocks of queries x vectors held in registers; the cache is converted to f32 once per tile and page.

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/attention_tile.hpp>
#include <moxie/kernels/elementwise.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/unroll.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {

/// c = a * b, or with factors c = alpha[row] * c + beta[row] * (a * b).
/// a [rows, depth], b [depth, columns], c [rows, columns]; columns are a multiple of 16.
struct AttentionProduct {
  const float* a;
  std::int64_t a_stride;
  const float* b;
  std::int64_t b_stride;
  float* c;
  std::int64_t c_stride;
  std::int64_t depth;
  const float *alpha, *beta;
};

/// R rows x V vectors at row r and column `column`.
template <class A, int R, int V>
MOXIE_INLINE void attention_block(const AttentionProduct& t, std::int64_t r, std::int64_t column) {
  using F = Floats<A>;
  constexpr auto lanes = static_cast<std::int64_t>(F::size);
  F sum[R][V];
  clear(sum);
  const float* a = t.a + r * t.a_stride;
  const float* b = t.b + column;
  for (std::int64_t k = 0; k < t.depth; ++k, b += t.b_stride) {
    F x[V];
    MOXIE_UNROLL
    for (int v = 0; v < V; ++v) x[v] = F::load_unaligned(b + v * lanes);
    MOXIE_UNROLL
    for (int i = 0; i < R; ++i) {
      const F y(a[i * t.a_stride + k]);
      MOXIE_UNROLL
      for (int v = 0; v < V; ++v) sum[i][v] = madd(y, x[v], sum[i][v]);
    }
  }
  MOXIE_UNROLL
  for (int j = 0; j < R * V; ++j) {
    const int i = j / V, v = j % V;
    float* c = t.c + (r + i) * t.c_stride + column + v * lanes;
    if (t.alpha)
      madd(F::load_unaligned(c), F(t.alpha[r + i]), sum[i][v] * F(t.beta[r + i])).store_unaligned(c);
    else
      sum[i][v].store_unaligned(c);
  }
}

template <class A, int R, int V>
void attention_rows(const AttentionProduct& t, std::int64_t r, std::int64_t columns) {
  constexpr auto lanes = static_cast<std::int64_t>(Floats<A>::size);
  std::int64_t column = 0;
  for (; column + V * lanes <= columns; column += V * lanes) attention_block<A, R, V>(t, r, column);
  for (; column < columns; column += lanes) attention_block<A, R, 1>(t, r, column);
}

template <class A>
void attention_product(const AttentionProduct& t, std::int64_t rows, std::int64_t columns) {
  std::int64_t r = 0;
  // 8 x 2 (2 x 4) sums fill half of 32 (16) vector registers: enough to hide a latency of 4 at 2 a cycle. A block reads few
  // columns, since b may come from the second-level cache, and many rows, which stay in the first; few rows need more columns.
  if constexpr (Floats<A>::size == 16)
    for (; r + 8 <= rows; r += 8) attention_rows<A, 8, 2>(t, r, columns);
  for (; r + 2 <= rows; r += 2) attention_rows<A, 2, 4>(t, r, columns);
  for (; r < rows; ++r) attention_rows<A, 1, 4>(t, r, columns);
}

/// n elements (a multiple of 16) that are not codes, as f32: where they are, or converted into `scratch`.
template <class A>
const float* attention_floats(const std::byte* data, KvType type, std::int64_t n, float* scratch) {
  constexpr auto lanes = static_cast<std::int64_t>(Floats<A>::size);
  if (type == KvType::f32) return reinterpret_cast<const float*>(data);
  const auto* p = reinterpret_cast<const std::uint16_t*>(data);
  if (type == KvType::f16)
    for (std::int64_t i = 0; i < n; i += lanes) load_f16<A>(p + i).store_aligned(scratch + i);
  else
    for (std::int64_t i = 0; i < n; i += lanes) load_bf16<A>(p + i).store_aligned(scratch + i);
  return scratch;
}

/// The codes of both halves of a vector of words.
template <class A>
struct CodePair {
  Floats<A> low, high;

  MOXIE_INLINE explicit CodePair(const std::byte* words) noexcept {
    using W = xsimd::batch<std::int32_t, typename A::simd>;
    const W both = W::load_unaligned(reinterpret_cast<const std::int32_t*>(words));
    low = xsimd::to_float((both << 16) >> 16);
    high = xsimd::to_float(both >> 16);
  }
};

/// Keys of a page as f32, [k_dim][64]: where they are, or converted into `scratch`.
template <class A>
const float* attention_keys(const std::byte* data, const std::byte* scale_bytes, KvType type, std::int64_t k_dim,
                            float* scratch) {
  using F = Floats<A>;
  constexpr auto lanes = static_cast<std::int64_t>(F::size);
  if (!kv_coded(type)) return attention_floats<A>(data, type, kv_page * k_dim, scratch);
  const auto* scales = reinterpret_cast<const std::uint16_t*>(scale_bytes);
  for (std::int64_t b = 0; b < kv_blocks(k_dim); ++b)
    for (std::int64_t j = 0; j < kv_page; j += lanes) {
      const F scale = load_bf16<A>(scales + b * kv_page + j);
      const std::int64_t n = k_dim - b * kv_block < kv_block ? k_dim - b * kv_block : kv_block;
      float* to = scratch + b * kv_block * kv_page + j;
      if (type == KvType::int8)
        for (std::int64_t d = 0; d < n; ++d)
          (load_i8<A>(reinterpret_cast<const std::int8_t*>(data) + (b * kv_block + d) * kv_page + j) * scale)
              .store_aligned(to + d * kv_page);
      else
        for (std::int64_t i = 0; i < kv_pairs && i < n; ++i) {
          const CodePair<A> codes(data + 4 * ((b * kv_pairs + i) * kv_page + j));
          (codes.low * scale).store_aligned(to + i * kv_page);
          if (i + kv_pairs < n) (codes.high * scale).store_aligned(to + (i + kv_pairs) * kv_page);
        }
    }
  return scratch;
}

/// Values of a page as f32, [64][kv_row_stride(dim)], or latent rows.
template <class A>
const float* attention_values(const std::byte* data, const std::byte* scales, KvType type, std::int64_t dim, bool latent,
                              float* scratch) {
  using F = Floats<A>;
  constexpr auto lanes = static_cast<std::int64_t>(F::size);
  const std::int64_t stride = kv_row_stride(dim), blocks = kv_blocks(dim);
  if (!kv_coded(type)) return attention_floats<A>(data, type, kv_page * stride, scratch);
  const auto scale = [&](std::int64_t i)
                         MOXIE_INLINE_LAMBDA { return F(bf16_to_f32(reinterpret_cast<const std::uint16_t*>(scales)[i])); };
  if (type == KvType::int8) {
    for (std::int64_t j = 0; j < kv_page; ++j)
      for (std::int64_t d = 0; d < stride; d += lanes)
        (load_i8<A>(reinterpret_cast<const std::int8_t*>(data) + j * stride + d) * scale(j * blocks + d / kv_block))
            .store_aligned(scratch + j * stride + d);
  } else if (latent) {
    for (std::int64_t j = 0; j < kv_page; ++j)
      for (std::int64_t i = 0; i < blocks * kv_pairs; i += lanes) {
        const CodePair<A> codes(data + 4 * (j * blocks * kv_pairs + i));
        const F unit = scale(j * blocks + i / kv_pairs);
        float* to = scratch + j * stride + i / kv_pairs * kv_block + i % kv_pairs;
        (codes.low * unit).store_aligned(to);
        if (i / kv_pairs * kv_block + kv_pairs < stride) (codes.high * unit).store_aligned(to + kv_pairs);
      }
  } else {
    for (std::int64_t i = 0; i < kv_page_pairs; ++i) {
      const std::int64_t j = i / kv_pairs * kv_block + i % kv_pairs;
      const F low = scale(j), high = scale(j + kv_pairs);
      for (std::int64_t d = 0; d < stride; d += lanes) {
        const CodePair<A> codes(data + 4 * ((d / kv_panel * kv_page_pairs + i) * kv_panel + d % kv_panel));
        (codes.low * low).store_aligned(scratch + j * stride + d);
        (codes.high * high).store_aligned(scratch + (j + kv_pairs) * stride + d);
      }
    }
  }
  return scratch;
}

/// Scores s[64] of one query become p_j = 2^(s_j - max) for j in [begin, end), 0 for the others.
template <class A>
MOXIE_INLINE void attention_softmax(float* s, std::int64_t begin, std::int64_t end, float& max, float& sum) {
  using F = Floats<A>;
  constexpr auto lanes = static_cast<std::int64_t>(F::size);
  constexpr auto vectors = kv_page / lanes;
  alignas(64) float index[F::size];
  for (std::int64_t i = 0; i < lanes; ++i) index[i] = static_cast<float>(i);
  const F iota = F::load_aligned(index), none(-__builtin_inff());
  F x[vectors], largest = none;
  for (std::int64_t v = 0; v < vectors; ++v) {
    const F j = iota + F(static_cast<float>(v * lanes));
    x[v] = xsimd::select((j >= F(static_cast<float>(begin))) & (j < F(static_cast<float>(end))), F::load_aligned(s + v * lanes),
                         none);
    largest = xsimd::max(largest, x[v]);
  }
  max = reduce_max(largest);
  F total(0.0f);
  for (std::int64_t v = 0; v < vectors; ++v) {
    const F p = exp2_fixed(x[v] - F(max));
    p.store_aligned(s + v * lanes);
    total = total + p;
  }
  sum = reduce_sum(total);
}

/// Brings the running maximum and sum of n queries up to date with a page's, and gives the factors of both.
template <class A>
void attention_merge(std::int64_t n, const float* page_max, const float* page_sum, float* max, float* sum, float* alpha,
                     float* beta) {
  using F = Floats<A>;
  constexpr auto lanes = static_cast<std::int64_t>(F::size);
  alignas(64) float m[F::size], l[F::size];
  for (std::int64_t i = 0; i < n; i += lanes) {  // reads past n, and writes past n only factors, which this page does not use
    const F old = F::load_unaligned(max + i), page = F::load_unaligned(page_max + i), merged = xsimd::max(old, page);
    const F a = exp2_fixed(old - merged), b = exp2_fixed(page - merged);
    a.store_unaligned(alpha + i);
    b.store_unaligned(beta + i);
    merged.store_aligned(m);
    madd(F::load_unaligned(sum + i), a, F::load_unaligned(page_sum + i) * b).store_aligned(l);
    for (std::int64_t j = 0; j < lanes && i + j < n; ++j) max[i + j] = m[j], sum[i + j] = l[j];
  }
}

/// Merges the sinks of n queries, query i that of head i % heads, into their running maximum and sum, in which a probability of 1
/// counts `one`, and gives the factors of their results. `score` and `count` are scratch.
template <class A>
void attention_sinks(const float* sinks, std::int64_t heads, float one, std::int64_t n, float* score, float* count, float* max,
                     float* sum, float* alpha, float* beta) {
  for (std::int64_t i = 0; i < n; ++i) score[i] = sinks[i % heads] * 1.44269504088896341f, count[i] = one;
  attention_merge<A>(n, score, count, max, sum, alpha, beta);
}

/// A query's result, [dim], from its sums over all pages: o / sum, with a sink o * *alpha / sum.
template <class A>
MOXIE_INLINE void attention_result(const float* o, float sum, const float* alpha, std::int64_t dim, float* out) noexcept {
  using F = Floats<A>;
  const F divisor(sum), factor(alpha ? *alpha : 1.0f);
  if (alpha)
    rows::map<A>(
        dim, out, [&](F x) MOXIE_INLINE_LAMBDA { return x * factor / divisor; }, o);
  else
    rows::map<A>(
        dim, out, [&](F x) MOXIE_INLINE_LAMBDA { return x / divisor; }, o);
}

/// A tile's sums [queries][values], maxima and totals from its state, or into it.
template <bool Store>
MOXIE_INLINE void attention_state(const AttentionTile& t, float* sums, float* max, float* total) noexcept {
  const std::int64_t queries = t.rows * t.heads, values = kv_row_stride(t.v_dim);
  float* maxima = t.state + t.state_queries * values + t.state_first;
  float* totals = maxima + (t.state_queries + 15) / 16 * 16;
  const auto copy = [](float* state, float* own, std::int64_t n) MOXIE_INLINE_LAMBDA {
    __builtin_memcpy(Store ? state : own, Store ? own : state, static_cast<std::size_t>(n) * sizeof(float));
  };
  copy(t.state + t.state_first * values, sums, queries * values);
  copy(maxima, max, queries);
  copy(totals, total, queries);
}

template <class A>
void attend_pages(const AttentionTile& t, bool latent) {
  const std::int64_t queries = t.rows * t.heads, lanes = (queries + 15) / 16 * 16;
  const std::int64_t value_stride = latent ? kv_row_stride(t.k_dim) : kv_row_stride(t.v_dim);
  const std::int64_t values = kv_row_stride(t.v_dim);  // columns of the result, padding included
  float* q = t.scratch;                                // [queries][k_dim], latent: [k_dim][lanes]
  float* out = q + lanes * kv_row_stride(t.k_dim);     // [queries][values]
  float* scores = out + lanes * values;                // [queries][64]
  float* transposed = scores + lanes * kv_page;        // latent: [64][lanes]
  float* max = transposed + lanes * kv_page;
  float *sum = max + lanes, *page_max = sum + lanes, *page_sum = page_max + lanes, *alpha = page_sum + lanes,
        *beta = alpha + lanes;
  float* floats = max + 8 * lanes;  // a page's keys or values

  for (std::int64_t i = 0; i < queries; ++i) {
    const float* from = t.q + i / t.heads * t.q_stride + i % t.heads * t.k_dim;
    for (std::int64_t d = 0; d < t.k_dim; ++d)
      q[latent ? d * lanes + i : i * t.k_dim + d] = from[d] * (t.scale * 1.44269504088896341f);
  }
  if (latent)
    for (std::int64_t d = 0; d < t.k_dim; ++d)
      for (std::int64_t i = queries; i < lanes; ++i) q[d * lanes + i] = 0.0f;
  for (std::int64_t i = 0; i < queries * values; ++i) out[i] = 0.0f;
  for (std::int64_t i = 0; i < lanes; ++i) max[i] = -__builtin_inff(), sum[i] = 0.0f, page_max[i] = 0.0f, page_sum[i] = 0.0f;
  if (t.state && !t.starts) attention_state<false>(t, out, max, sum);

  const bool split = t.partials != nullptr;
  const Span pages = tile_pages(t);
  for (std::int64_t page = pages.begin; page < pages.end; ++page) {
    const Span seeing = page_rows(t, page);
    const std::int64_t begin = seeing.begin * t.heads, end = seeing.end * t.heads;

    const std::byte *stored = t.pages[page] + t.key_offset, *scales = t.pages[page] + t.scale_offset;
    const float* keys = latent ? attention_values<A>(stored, scales, t.type, t.k_dim, true, floats)
                               : attention_keys<A>(stored, scales, t.type, t.k_dim, floats);
    if (latent) {
      attention_product<A>({keys, value_stride, q, lanes, transposed, lanes, t.k_dim, nullptr, nullptr}, kv_page, lanes);
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = 0; j < kv_page; ++j) scores[i * kv_page + j] = transposed[j * lanes + i];
    } else {
      attention_product<A>(
          {q + begin * t.k_dim, t.k_dim, keys, kv_page, scores + begin * kv_page, kv_page, t.k_dim, nullptr, nullptr},
          end - begin, kv_page);
    }
    float* partial = split ? t.partials + (page - pages.begin) * attention_partial(queries, t.v_dim) : nullptr;
    float* largest = split ? partial + queries * values : page_max;
    float* total = split ? largest + lanes : page_sum;
    for (std::int64_t i = begin; i < end; ++i) {
      const SeenKeys seen = seen_keys(t, page, i / t.heads);
      attention_softmax<A>(scores + i * kv_page, seen.begin, seen.end, largest[i], total[i]);
    }
    if (!split)
      attention_merge<A>(end - begin, page_max + begin, page_sum + begin, max + begin, sum + begin, alpha + begin, beta + begin);

    const float* v = latent ? keys
                            : attention_values<A>(t.pages[page] + t.value_offset, scales + kv_key_scale_bytes(t.type, t.k_dim),
                                                  t.type, t.v_dim, false, floats);
    for (std::int64_t row = seeing.begin; row < seeing.end;) {  // neighbours that see the same keys together
      const std::int64_t i = row * t.heads;
      const auto [from, to] = seen_keys(t, page, row);
      while (row < seeing.end && seen_keys(t, page, row).begin == from && seen_keys(t, page, row).end == to) ++row;
      const AttentionProduct product{scores + i * kv_page + from,
                                     kv_page,
                                     v + from * value_stride,
                                     value_stride,
                                     (split ? partial : out) + i * values,
                                     values,
                                     to - from,
                                     split ? nullptr : alpha + i,
                                     beta + i};
      attention_product<A>(product, row * t.heads - i, values);
    }
  }
  if (split) return;
  if (t.state && !t.ends) return attention_state<true>(t, out, max, sum);
  if (t.sinks) attention_sinks<A>(t.sinks, t.heads, 1.0f, queries, page_max, page_sum, max, sum, alpha, beta);
  for (std::int64_t i = 0; i < queries; ++i)
    attention_result<A>(out + i * values, sum[i], t.sinks ? alpha + i : nullptr, t.v_dim,
                        t.out + i / t.heads * t.out_stride + i % t.heads * t.v_dim);
}
template <class A, bool Latent>
void attend(const AttentionTile& t) {
  attend_pages<A>(t, Latent);
}

template <class A>
void merge_attention(const AttentionMerge& t) {
  using F = Floats<A>;
  constexpr auto step = static_cast<std::int64_t>(F::size);
  const std::int64_t lanes = (t.queries + 15) / 16 * 16, values = kv_row_stride(t.v_dim),
                     size = attention_partial(t.queries, t.v_dim);
  float *maxima = t.state + t.queries * values, *sums = maxima + lanes;
  for (std::int64_t begin = t.begin; begin < t.end; begin += step) {
    const std::int64_t n = t.end - begin < step ? t.end - begin : step;
    alignas(64) float max[F::size], sum[F::size], page_max[F::size] = {}, page_sum[F::size] = {}, alpha[F::size], beta[F::size];
    for (std::int64_t i = 0; i < step; ++i) max[i] = -__builtin_inff(), sum[i] = 0.0f;
    if (!t.first)
      for (std::int64_t i = 0; i < n; ++i) max[i] = maxima[begin + i], sum[i] = sums[begin + i];
    for (std::int64_t page = 0; page < t.pages; ++page) {
      const float* partial = t.partials + page * size;
      for (std::int64_t i = 0; i < n; ++i)
        page_max[i] = partial[t.queries * values + begin + i], page_sum[i] = partial[t.queries * values + lanes + begin + i];
      attention_merge<A>(n, page_max, page_sum, max, sum, alpha, beta);
      for (std::int64_t i = 0; i < n; ++i) {
        const float* from = partial + (begin + i) * values;
        float* to = t.state + (begin + i) * values;
        for (std::int64_t d = 0; d < values; d += step) {
          const F old = t.first && page == 0 ? F(0.0f) : F::load_unaligned(to + d);
          madd(old, F(alpha[i]), F::load_unaligned(from + d) * F(beta[i])).store_unaligned(to + d);
        }
      }
    }
    for (std::int64_t i = 0; i < n; ++i) maxima[begin + i] = max[i], sums[begin + i] = sum[i];
    if (t.out) {
      if (t.sinks) attention_sinks<A>(t.sinks + begin, n, t.one, n, page_max, page_sum, max, sum, alpha, beta);
      for (std::int64_t i = 0; i < n; ++i)
        attention_result<A>(t.state + (begin + i) * values, sum[i], t.sinks ? alpha + i : nullptr, t.v_dim,
                            t.out + (begin + i) * t.v_dim);
    }
  }
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
