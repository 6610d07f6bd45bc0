#pragma once
// A low-rank adapter (LoRA, arXiv 2106.09685) on the output matrix W [vocab, hidden]:
//
//   logits = W h + scale * b (a h),   a [rank, hidden], b [vocab, rank], scale = lora_alpha / rank
//
// in the order of operations of LowRank, which is the same however rows are batched and the vocabulary is cut: sampling (all
// logits at once) and scoring (a tile at a time) give the same bits. A b of zeros changes no probability.

#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/low_rank.hpp>
#include <moxie/linalg/prepared_rows.hpp>

namespace moxie {

class OutputAdapter {
 public:
  RowMatrix a;         ///< [rank, hidden]
  RowMatrix b;         ///< [vocab, rank]
  float scale = 1.0f;  ///< lora_alpha / rank

  /// A new adapter as PEFT makes it: a uniform in +-1 / sqrt(hidden) (kaiming_uniform with sqrt(5)), b zero; call pack() before
  /// use. Throws ArgumentError for sizes below 1.
  static OutputAdapter create(Index hidden, Index vocab, Index rank, float alpha, std::uint64_t seed) {
    if (hidden < 1 || vocab < 1 || rank < 1)
      throw ArgumentError(
          concat("an adapter needs sizes of at least 1, got hidden ", hidden, ", vocabulary ", vocab, ", rank ", rank));
    OutputAdapter adapter;
    std::mt19937_64 random(seed);
    const double bound = 1.0 / std::sqrt(static_cast<double>(hidden));
    adapter.a = RowMatrix::NullaryExpr(
        rank, hidden, [&] { return static_cast<float>((static_cast<double>(random() >> 11) * 0x1p-52 - 1.0) * bound); });
    adapter.b = RowMatrix::Zero(vocab, rank);
    adapter.scale = alpha / static_cast<float>(rank);
    return adapter;
  }

  Index rank() const noexcept { return a.rows(); }

  /// Takes over a, b and scale as they are now; call it again after changing them. Throws ArgumentError when they do not fit
  /// together.
  void pack(const Context& context) {
    if (a.rows() < 1 || a.cols() < 1 || b.rows() < 1 || b.cols() != a.rows())
      throw ArgumentError(concat("an adapter needs a [rank, hidden] and b [vocab, rank], got a [", a.rows(), ", ", a.cols(),
                                 "] and b [", b.rows(), ", ", b.cols(), "]"));
    packed_ = LowRank(context, a, b, scale);
  }

  /// Throws ArgumentError unless it is packed and fits an output matrix [vocab, hidden].
  void check(Index vocab, Index hidden) const {
    if (packed_.empty()) throw ArgumentError("the adapter is not packed: call pack() after filling or changing it");
    if (packed_.inputs() != hidden || packed_.outputs() != vocab)
      throw ArgumentError(concat("the adapter has a [rank, ", packed_.inputs(), "] and b [", packed_.outputs(),
                                 ", rank]; the output matrix is [", vocab, ", ", hidden, "]"));
  }

  /// u [rows, rank] = scale * (a h) for prepared hidden rows (their f32 form is read).
  void project(const Context& context, const PreparedRows& hidden, float* u) const { packed_.project(context, hidden, u); }

  /// b as it was packed, transposed: [rank, vocab].
  const RowMatrix& packed_b() const noexcept { return packed_.b(); }
  float packed_scale() const noexcept { return packed_.scale(); }

  /// Adds the adapter's part to logits [begin, end) of a row, `logits` being that of token `begin`; u [rank] from project().
  void add(const float* u, Index begin, Index end, float* logits) const noexcept { packed_.add(u, begin, end, logits); }

 private:
  LowRank packed_;
};

}  // namespace moxie
