#pragma once
// Attention in whole numbers: the products q . k and p . v on 16-bit codes with exact 32-bit sums, at twice the rate of f32
// (pair_ops.hpp). The softmax between them and everything over pages is f32, in the order of attention.hpp.
//
//   q   codes of 13 bits, |code| <= 8191, one scale for each 128 dimensions of a query
//   k   codes of 13 bits, one power of two for each 32 dimensions of a key; int8 pages keep their codes and scales
//   v   codes of 12 bits, one power of two 2^e for each position
//   p   codes of 13 bits of p_j 2^e_j, relative to the largest of them in the page
//
// Sums cannot overflow: a code of k may be rounded up to 8192, one of v to 4096, and 32 * 8191 * 8192 = 64 * 8191 * 4096 < 2^31.
// They are exact, so neither the order of the products nor a key that is not seen (the code of its p is 0) can change a bit. For
// each query and page:
//
//   s_j = sum over blocks of 128: q scale * (chain over blocks of 32, low to high: k scale * whole sum), in units of log2(e)
//   t_j = e_j + s_j,  m' = the largest t_j of the page
//   code of p_j = round(8191 * 2^(t_j - m')),  sum' = sum of 2^(t_j - m') * 8191 / 2^e_j
//   o' = sum of codes of p_j times codes of v_j; pages are merged in page order as attention.hpp does.
//
// A key or value that is not a finite number makes the result NaN for the queries that see it.

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/attention.hpp>
#include <moxie/kernels/attention_codes.hpp>
#include <moxie/kernels/attention_tile.hpp>
#include <moxie/kernels/pair_ops.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/unroll.hpp>

MOXIE_KERNELS_BEGIN
namespace moxie::kernels {
namespace int16 {

inline constexpr std::int64_t group = 4;  // blocks of keys with one scale of q: 128 dimensions x 64 keys are 16 KiB of codes
inline constexpr std::int64_t q_words = group * kv_pairs;

/// Sums of the products of R rows of `pairs` pairs at `a` with V vectors at `b`, rows of 64 words.
template <class A, std::int64_t pairs, int R, int V>
MOXIE_INLINE void sum_pairs(const std::int32_t* a, std::int64_t a_stride, const std::int32_t* b, Ahead& ahead,
                            Words<A> (&sum)[R][V]) noexcept {
  using W = Words<A>;
  constexpr int steps = 16;  // written out: GCC 12 copies every sum at a loop's end
  constexpr int ask = 4;     // steps between fetches: evenly enough for few queries, seldom enough for many (RESULTS, "On Zen 5")
  static_assert(pairs % steps == 0);
  if constexpr (pairs > steps) clear(sum);
  for (std::int64_t k = 0; k < pairs; k += steps, a += steps, b += steps * kv_panel) {
    MOXIE_UNROLL
    for (int i = 0; i < steps; ++i) {
      if (i % ask == 0) ahead.fetch(ahead.bytes_due(ask * R * V));
      W x[V];
      PairOps<A>::load(b + i * kv_panel, x);
      MOXIE_UNROLL
      for (int r = 0; r < R; ++r) PairOps<A>::add(pairs == steps && i == 0, sum[r], x, W(a[r * a_stride + i]));
    }
  }
}

/// Scores of queries with 64 keys over up to 128 dimensions.
struct Scores {
  static constexpr int rows = 6;  // 6 x 2 whole and 6 x 2 f32 sums, 3 operands
  static constexpr bool whole_pages = true;
  const std::int32_t* q;          // words [queries][64]
  const float* q_scale;
  const std::int32_t* keys;  // words [blocks][16][64]
  const float* key_scale;    // [blocks][64]
  std::int64_t blocks;
  const float* start;  // [64] for all queries, or nullptr: go on from the scores
  float* scores;       // [queries][64]

  template <class A, int R, int V>
  MOXIE_INLINE void block(std::int64_t r, std::int64_t key, Ahead& ahead) const noexcept {
    using F = Floats<A>;
    using W = Words<A>;
    F total[R][V];
    clear(total);
    for (std::int64_t b = 0; b < blocks; ++b) {
      W sum[R][V];
      sum_pairs<A, kv_pairs>(q + r * q_words + b * kv_pairs, q_words, keys + b * kv_pairs * kv_page + key, ahead, sum);
      MOXIE_UNROLL
      for (int v = 0; v < V; ++v) {
        const F scale = F::load_aligned(key_scale + b * kv_page + key + v * lanes<A>);
        MOXIE_UNROLL
        for (int i = 0; i < R; ++i) total[i][v] = madd(xsimd::to_float(sum[i][v]), scale, total[i][v]);
      }
    }
    MOXIE_UNROLL
    for (int j = 0; j < R * V; ++j) {
      const int i = j / V;
      const std::int64_t column = key + j % V * lanes<A>;
      float* to = scores + (r + i) * kv_page + column;
      madd(total[i][j % V], F(q_scale[r + i]), F::load_aligned(start ? start + column : to)).store_aligned(to);
    }
  }
};

/// Sums of values of a page for 64 dimensions, merged into `out` or stored there.
template <bool Merge>
struct Values {
  static constexpr int rows = 8;  // 8 x 2 sums: a step loads 10 operands for 16 products
  static constexpr bool whole_pages = false;
  const std::int32_t* p;          // words [queries][32]
  const std::int32_t* values;     // words [32][64]
  float* out;                     // [queries][out_stride]
  std::int64_t out_stride;
  const float *alpha, *beta;

  template <class A, int R, int V>
  MOXIE_INLINE void block(std::int64_t r, std::int64_t column, Ahead& ahead) const noexcept {
    using F = Floats<A>;
    using W = Words<A>;
    W sum[R][V];
    sum_pairs<A, kv_page_pairs>(p + r * kv_page_pairs, kv_page_pairs, values + column, ahead, sum);
    MOXIE_UNROLL
    for (int j = 0; j < R * V; ++j) {
      const int i = j / V;
      float* to = out + (r + i) * out_stride + column + j % V * lanes<A>;
      const F x = xsimd::to_float(sum[i][j % V]);
      if constexpr (Merge)
        madd(F::load_aligned(to), F(alpha[r + i]), x * F(beta[r + i])).store_aligned(to);
      else
        x.store_aligned(to);
    }
  }
};

template <class A, int R, int V, class Product>
void product_rows(const Product& t, std::int64_t r, std::int64_t columns, Ahead& ahead) noexcept {
  std::int64_t column = 0;
  for (; column + V * lanes<A> <= columns; column += V * lanes<A>) t.template block<A, R, V>(r, column, ahead);
  if constexpr (!Product::whole_pages)
    for (; column < columns; column += lanes<A>) t.template block<A, R, 1>(r, column, ahead);
}
/// Queries [begin, end) and the first `columns` of 64. (4 x 2 sums would take as many loads as 2 x 4.)
template <class A, class Product>
void product(const Product& t, std::int64_t begin, std::int64_t end, std::int64_t columns, Ahead& ahead) noexcept {
  std::int64_t r = begin;
  if constexpr (lanes<A> == 16)
    for (; r + Product::rows <= end; r += Product::rows) product_rows<A, Product::rows, 2>(t, r, columns, ahead);
  for (; r + 2 <= end; r += 2) product_rows<A, 2, 4>(t, r, columns, ahead);
  for (; r < end; ++r) product_rows<A, 1, 4>(t, r, columns, ahead);
}

/// Codes of n floats (a multiple of 32), 128 at a time to words [64] that are 64 * stride apart, and their scales times `factor`,
/// `stride` apart.
template <class A>
void code_query(const float* q, std::int64_t n, float factor, std::int32_t* codes, float* scales, std::int64_t stride) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  for (std::int64_t begin = 0; begin < n; begin += group * kv_block) {
    const std::int64_t end = begin + group * kv_block < n ? begin + group * kv_block : n;
    W bits(0);  // of |q|, ordered as their values
    for (std::int64_t d = begin; d < end; d += lanes<A>)
      bits = xsimd::max(bits, xsimd::bitwise_cast<W>(F::load_aligned(q + d)) & W(0x7fffffff));
    alignas(64) std::int32_t each[lanes<A>];
    bits.store_aligned(each);
    std::int32_t largest = 0;
    for (const std::int32_t b : each) largest = b > largest ? b : largest;
    const float most = __builtin_bit_cast(float, largest);
    const float inverse = most >= 0x1p-100f ? largest_code / most : 0.0f;
    scales[begin / (group * kv_block) * stride] =
        most <= 0x1p120f ? most / largest_code * factor : __builtin_bit_cast(float, nan_bits);
    for (std::int64_t block = begin; block < end; block += kv_block)
      for (std::int64_t i = 0; i < kv_pairs; i += lanes<A>)
        pair<A>(code<A>(F::load_aligned(q + block + i), F(inverse)),
                code<A>(F::load_aligned(q + block + kv_pairs + i), F(inverse)))
            .store_aligned(codes + begin / 2 * stride + (block - begin) / 2 + i);
  }
}

/// What a query does not see of a page becomes a score of minus infinity, and so a probability of 0.
MOXIE_INLINE void hide(float* scores, const SeenKeys& seen) noexcept {
  for (std::int64_t j = 0; j < seen.begin; ++j) scores[j] = -__builtin_inff();
  for (std::int64_t j = seen.end; j < kv_page; ++j) scores[j] = -__builtin_inff();
}

/// Probabilities of n queries, at most L: from scores [n][64] to words [n][32], the largest score and the sum of each. For each
/// of them `due` bytes are fetched ahead.
template <class A>
MOXIE_INLINE void softmax(const float* scores, std::int64_t n, const float* inverses, std::int32_t* codes, float* max, float* sum,
                          std::int64_t due, Ahead& ahead) noexcept {
  using F = Floats<A>;
  using W = Words<A>;
  constexpr std::int64_t L = lanes<A>, vectors = kv_page / L, halves = kv_pairs / L;
  const auto reduce = [](const W(&x)[L], auto op, float* out) MOXIE_INLINE_LAMBDA {
    xsimd::bitwise_cast<F>(PairOps<A>::reduce(x, [&](const W& a, const W& b) MOXIE_INLINE_LAMBDA {
      return xsimd::bitwise_cast<W>(op(xsimd::bitwise_cast<F>(a), xsimd::bitwise_cast<F>(b)));
    })).store_aligned(out);
  };
  W x[L];
  for (std::int64_t i = 0; i < L; ++i) {
    F most(-__builtin_inff());
    if (i < n)
      for (std::int64_t v = 0; v < vectors; ++v) most = xsimd::max(most, F::load_aligned(scores + i * kv_page + v * L));
    x[i] = xsimd::bitwise_cast<W>(most);
  }
  alignas(64) float largest[L], sums[L];
  reduce(
      x, [](const F& a, const F& b) MOXIE_INLINE_LAMBDA { return xsimd::max(a, b); }, largest);

  for (std::int64_t i = 0; i < L; ++i) {
    F total(0.0f);
    if (i < n) {
      ahead.fetch(due);
      const float* s = scores + i * kv_page;
      const F most(largest[i]);
      for (std::int64_t w = 0; w < vectors / 2; ++w) {  // vectors of words
        F p[2];
        MOXIE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const std::int64_t v = w / halves * 2 * halves + w % halves + half * halves;
          p[half] = exp2_fixed(F::load_aligned(s + v * L) - most);
          total = madd(p[half], F::load_aligned(inverses + v * L), total);
        }
        pair<A>(code<A>(p[0], F(largest_code)), code<A>(p[1], F(largest_code))).store_aligned(codes + i * kv_page_pairs + w * L);
      }
    }
    x[i] = xsimd::bitwise_cast<W>(total);
  }
  reduce(
      x, [](const F& a, const F& b) MOXIE_INLINE_LAMBDA { return a + b; }, sums);
  for (std::int64_t i = 0; i < n; ++i) max[i] = largest[i], sum[i] = sums[i];
}

/// Codes of a page's keys or values, where they lie in it or made into `scratch`, with f32 scales of keys [blocks][64], or units
/// of values [64].
template <class A>
const std::int32_t* page_keys(const AttentionTile& t, bool latent, std::int64_t page, std::int32_t* scratch, float* scales,
                              Ahead& ahead) noexcept {
  const std::byte *keys = t.pages[page] + t.key_offset, *stored = t.pages[page] + t.scale_offset;
  const std::int64_t blocks = kv_blocks(t.k_dim);
  if (latent) {
    const std::int64_t row_bytes = kv_key_bytes(t.type, t.k_dim, true) / kv_page;
    if (t.type == KvType::int16)
      code_key_rows(Rows<A, KvType::int16>{keys, row_bytes, stored, blocks}, scratch, scales);
    else
      code_key_rows(Rows<A, KvType::int8>{keys, row_bytes, stored, blocks}, scratch, scales);
    return scratch;
  }
  load_scales<A>(stored, blocks * kv_page, scales);
  if (t.type == KvType::int16) return reinterpret_cast<const std::int32_t*>(keys);
  code_keys<A>(keys, t.k_dim, scratch, ahead);
  return scratch;
}
template <class A>
const std::int32_t* page_values(const AttentionTile& t, bool latent, std::int64_t page, std::int32_t* scratch, float* units,
                                Ahead& ahead) noexcept {
  const std::byte* values = t.pages[page] + (latent ? t.key_offset : t.value_offset);
  const std::int64_t dim = latent ? t.k_dim : t.v_dim,
                     bytes = latent ? kv_key_bytes(t.type, dim, true) : kv_value_bytes(t.type, dim);
  const std::byte* stored = t.pages[page] + t.scale_offset + (latent ? 0 : kv_key_scale_bytes(t.type, t.k_dim));
  if (t.type == KvType::int8) {
    code_values(Rows<A, KvType::int8>{values, bytes / kv_page, stored, kv_blocks(dim)}, kv_row_stride(t.v_dim), scratch, units,
                ahead);
    return scratch;
  }
  if (latent) {
    code_values(Rows<A, KvType::int16>{values, bytes / kv_page, stored, kv_blocks(dim)}, kv_row_stride(t.v_dim), scratch, units,
                ahead);
    return scratch;
  }
  load_scales<A>(stored, kv_page, units);
  return reinterpret_cast<const std::int32_t*>(values);
}

}  // namespace int16

/// Pages of int16 or int8; of latent ones the values are the begin of the keys.
template <class A>
void attend_int16_pages(const AttentionTile& t, bool latent) {
  using namespace int16;
  const std::int64_t queries = t.rows * t.heads, all = (queries + 15) / 16 * 16;
  const std::int64_t values = kv_row_stride(t.v_dim), blocks = kv_blocks(t.k_dim), groups = (blocks + group - 1) / group;
  const auto words = [](float* p) { return reinterpret_cast<std::int32_t*>(p); };
  float* out = t.scratch;                                                 // [queries][values]
  float* scores = out + all * values;                                     // [queries][64]
  std::int32_t* p = words(scores + all * kv_page);                        // [queries][32]
  std::int32_t* q = p + all * kv_page_pairs;                              // [groups][all][64]
  float* q_scale = reinterpret_cast<float*>(q + groups * all * q_words);  // [groups][all]
  float* max = q_scale + groups * all;
  float *sum = max + all, *page_max = sum + all, *page_sum = page_max + all, *alpha = page_sum + all, *beta = alpha + all;
  std::int32_t* key_codes = words(max + 8 * all);  // [blocks][16][64]
  float* key_scale = reinterpret_cast<float*>(key_codes + blocks * kv_pairs * kv_page);
  std::int32_t* value_codes = words(key_scale + blocks * kv_page);  // [panels][32][64]
  float* exponents = reinterpret_cast<float*>(value_codes + kv_panels(t.v_dim) * kv_page_pairs * kv_panel);
  float *inverses = exponents + kv_page, *units = inverses + kv_page;

  for (std::int64_t i = 0; i < queries; ++i) {
    const float* from = t.q + i / t.heads * t.q_stride + i % t.heads * t.k_dim;
    float* padded = reinterpret_cast<float*>(key_codes);  // not used yet, and 32 times as large
    __builtin_memcpy(padded, from, static_cast<std::size_t>(t.k_dim) * sizeof(float));
    for (std::int64_t d = t.k_dim; d < blocks * kv_block; ++d) padded[d] = 0.0f;
    code_query<A>(padded, blocks * kv_block, t.scale * 1.44269504088896341f, q + i * q_words, q_scale + i, all);
  }
  for (std::int64_t i = 0; i < queries * values; ++i) out[i] = 0.0f;
  for (std::int64_t i = 0; i < all; ++i) max[i] = -__builtin_inff(), sum[i] = 0.0f, page_max[i] = 0.0f, page_sum[i] = 0.0f;
  if (t.state && !t.starts) attention_state<false>(t, out, max, sum);

  const bool split = t.partials != nullptr;
  const Span pages = tile_pages(t);
  const std::int64_t page_bytes = static_cast<std::int64_t>((latent ? t.key_offset : t.value_offset) - t.scale_offset) +
                                  (latent ? kv_key_bytes(t.type, t.k_dim, true) : kv_value_bytes(t.type, t.v_dim));
  // Products of vectors of a query and a page, and those that would take as long as its softmax, about the same part of them
  // everywhere (cycles beside those of the products: Zen 4 86 and 512, Zen 5 48 and 256): the next page is fetched in that time.
  const std::int64_t products = (kv_blocks(t.k_dim) * kv_pairs * kv_page + values * kv_page_pairs) / lanes<A>;
  const std::int64_t as_softmax = products * 3 / 16, rate = page_bytes * 16 / (queries * (products + as_softmax)) + 1;
  for (std::int64_t page = pages.begin; page < pages.end; ++page) {
    const Span rows = page_rows(t, page);
    const std::int64_t begin = rows.begin * t.heads, end = rows.end * t.heads;
    const std::byte* next = t.pages[page + 1 < pages.end ? page + 1 : page] + t.scale_offset;
    Ahead ahead{next, next + (page + 1 < pages.end ? page_bytes : 0), rate};
    const std::int32_t* keys = page_keys<A>(t, latent, page, key_codes, key_scale, ahead);
    const std::int32_t* page_codes = page_values<A>(t, latent, page, value_codes, units, ahead);
    value_factors<A>(units, exponents, inverses);

    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t first = g * group, n = blocks - first < group ? blocks - first : group;
      product<A>(Scores{q + g * all * q_words, q_scale + g * all, keys + first * kv_pairs * kv_page, key_scale + first * kv_page,
                        n, g == 0 ? exponents : nullptr, scores},
                 begin, end, kv_page, ahead);
    }
    float* partial = split ? t.partials + (page - pages.begin) * attention_partial(queries, t.v_dim) : nullptr;
    float* largest = split ? partial + queries * values : page_max;
    float* total = split ? largest + all : page_sum;
    const bool all_seen = seen_keys(t, page, rows.begin).end == kv_page && seen_keys(t, page, rows.end - 1).begin == 0;
    for (std::int64_t row = rows.begin; row < rows.end && !all_seen; ++row)
      for (std::int64_t head = 0; head < t.heads; ++head)
        hide(scores + (row * t.heads + head) * kv_page, seen_keys(t, page, row));
    for (std::int64_t i = begin; i < end; i += lanes<A>)
      softmax<A>(scores + i * kv_page, end - i < lanes<A> ? end - i : lanes<A>, inverses, p + i * kv_page_pairs, largest + i,
                 total + i, ahead.bytes_due(as_softmax), ahead);
    if (!split)
      attention_merge<A>(end - begin, page_max + begin, page_sum + begin, max + begin, sum + begin, alpha + begin, beta + begin);
    for (std::int64_t column = 0; column < values; column += kv_panel) {
      const std::int64_t columns = values - column < kv_panel ? values - column : kv_panel;
      const std::int32_t* codes = page_codes + column * kv_page_pairs;
      if (split)
        product<A>(Values<false>{p, codes, partial + column, values, nullptr, nullptr}, begin, end, columns, ahead);
      else
        product<A>(Values<true>{p, codes, out + column, values, alpha, beta}, begin, end, columns, ahead);
    }
  }
  if (split) return;
  if (t.state && !t.ends) return attention_state<true>(t, out, max, sum);
  if (t.sinks) attention_sinks<A>(t.sinks, t.heads, largest_code, queries, page_max, page_sum, max, sum, alpha, beta);
  for (std::int64_t i = 0; i < queries; ++i)
    attention_result<A>(out + i * values, sum[i], t.sinks ? alpha + i : nullptr, t.v_dim,
                        t.out + i / t.heads * t.out_stride + i % t.heads * t.v_dim);
}
template <class A, bool Latent>
void attend_int16(const AttentionTile& t) {
  attend_int16_pages<A>(t, Latent);
}

}  // namespace moxie::kernels
MOXIE_KERNELS_END
