#pragma once
// A low-rank adapter (LoRA, arXiv 2106.09685) on the output matrix W [vocab, hidden]:
//
//   logits = W h + scale * b (a h),   a [rank, hidden], b [vocab, rank], scale = lora_alpha / rank
//
// Order of operations: u = scale * (a h) in f32, by the panels of Linear; then, for k = 0 .. rank - 1, logits[v] = fma(u[k],
// b[v][k], logits[v]). It is the same however rows are batched and the vocabulary is cut, so sampling (all logits at once) and
// scoring (a tile at a time) give the same bits. A b of zeros changes no probability.

#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/linear.hpp>
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
      throw ArgumentError("an adapter needs sizes of at least 1, got hidden " + std::to_string(hidden) + ", vocabulary " +
                          std::to_string(vocab) + ", rank " + std::to_string(rank));
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
      throw ArgumentError("an adapter needs a [rank, hidden] and b [vocab, rank], got a [" + std::to_string(a.rows()) + ", " +
                          std::to_string(a.cols()) + "] and b [" + std::to_string(b.rows()) + ", " + std::to_string(b.cols()) +
                          "]");
    if (!std::isfinite(scale)) throw ArgumentError("the scale of an adapter must be finite");
    packed_a_ = Linear::from_rows(context, Dtype::F32, a);
    packed_b_ = b.transpose();
    packed_scale_ = scale;
  }

  /// Throws ArgumentError unless it is packed and fits an output matrix [vocab, hidden].
  void check(Index vocab, Index hidden) const {
    if (packed_a_.empty()) throw ArgumentError("the adapter is not packed: call pack() after filling or changing it");
    if (packed_a_.inputs() != hidden || packed_b_.cols() != vocab)
      throw ArgumentError("the adapter has a [rank, " + std::to_string(packed_a_.inputs()) + "] and b [" +
                          std::to_string(packed_b_.cols()) + ", rank]; the output matrix is [" + std::to_string(vocab) + ", " +
                          std::to_string(hidden) + "]");
  }

  /// u [rows, rank] = scale * (a h) for prepared hidden rows (their f32 form is read).
  void project(const Context& context, const PreparedRows& hidden, float* u) const {
    packed_a_.forward(context, hidden, u, rank());
    for (Index i = 0; i < hidden.rows() * rank(); ++i) u[i] *= packed_scale_;
  }

  /// b as it was packed, transposed: [rank, vocab].
  const RowMatrix& packed_b() const noexcept { return packed_b_; }
  float packed_scale() const noexcept { return packed_scale_; }

  /// Adds the adapter's part to logits [begin, end) of a row, `logits` being that of token `begin`; u [rank] from project().
  void add(const kernels::Table& kernels, const float* u, Index begin, Index end, float* logits) const noexcept {
    for (Index k = 0; k < packed_b_.rows(); ++k)
      kernels.axpy(u[k], packed_b_.data() + k * packed_b_.cols() + begin, end - begin, logits);
  }

 private:
  Linear packed_a_;
  RowMatrix packed_b_;  // [rank, vocab]
  float packed_scale_ = 1.0f;
};

}  // namespace moxie
