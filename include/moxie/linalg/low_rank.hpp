#pragma once
// LowRank: a low-rank part beside the matrix W of a linear layer (LoRA, arXiv 2106.09685), in f32 whatever the format of W:
//
//   y = W x + b u,   u = scale * (a x),   a [rank, inputs], b [outputs, rank]
//
// x is the layer's input as floats, also where W multiplies it rounded to int8. Order of operations: a x by panels of f32
// (kernels/panel_f32.hpp); then y[o] = fma(u[k], b[o][k], y[o]) for k = 0 .. rank - 1. It is the same however rows are batched
// and outputs are cut, so that the bits of y depend on its row alone. A b of zeros adds nothing.
//
// Memory: 4 bytes for each element, the rows of a padded to a multiple of 16.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/prepared_rows.hpp>

namespace moxie {

class LowRank {
 public:
  LowRank() = default;

  /// a [rank, inputs], b [outputs, rank]. Throws ArgumentError when they do not fit together or the scale is not finite.
  LowRank(const Context& context, const RowMatrix& a, const RowMatrix& b, float scale)
      : table_(context.kernels),
        kernels_(context.kernels->find(Dtype::F32)),
        rank_(a.rows()),
        inputs_(a.cols()),
        scale_(scale),
        b_(b.transpose()) {
    if (a.rows() < 1 || a.cols() < 1 || b.rows() < 1 || b.cols() != a.rows())
      throw ArgumentError(concat("a low-rank part needs a [rank, inputs] and b [outputs, rank], got a [", a.rows(), ", ",
                                 a.cols(), "] and b [", b.rows(), ", ", b.cols(), "]"));
    if (!std::isfinite(scale)) throw ArgumentError("the scale of a low-rank part must be finite");
    a_.resize(panel_bytes() * static_cast<std::size_t>(panels()));
    for (Index p = 0; p < panels(); ++p) {
      std::array<const std::byte*, kernels::panel_rows> rows{};
      for (Index i = 0; i < std::min<Index>(kernels::panel_rows, rank_ - p * kernels::panel_rows); ++i)
        rows[static_cast<std::size_t>(i)] = reinterpret_cast<const std::byte*>(a.row(p * kernels::panel_rows + i).data());
      kernels_->pack(rows.data(), inputs_, panel(p));
    }
  }

  bool empty() const noexcept { return rank_ == 0; }
  Index rank() const noexcept { return rank_; }
  Index inputs() const noexcept { return inputs_; }
  Index outputs() const noexcept { return b_.cols(); }
  float scale() const noexcept { return scale_; }
  /// b transposed, [rank, outputs].
  const RowMatrix& b() const noexcept { return b_; }
  std::size_t bytes() const noexcept { return a_.capacity_bytes() + static_cast<std::size_t>(b_.size()) * sizeof(float); }

  /// A copy of a, [rank, inputs].
  RowMatrix a() const {
    RowMatrix rows(rank_, inputs_);
    constexpr Index together = 8 * kernels::block_k;  // inputs
    alignas(memory_alignment) float part[together * kernels::panel_rows];
    for (Index p = 0; p < panels(); ++p)
      for (Index k = 0; k < inputs_; k += together) {
        const Index blocks = std::min(together, padded_inputs() - k) / kernels::block_k;
        kernels_->unpack(panel(p), padded_inputs(), k / kernels::block_k, static_cast<int>(blocks), part, kernels::panel_rows);
        for (Index i = 0; i < std::min<Index>(kernels::panel_rows, rank_ - p * kernels::panel_rows); ++i)
          for (Index j = 0; j < std::min(together, inputs_ - k); ++j)
            rows(p * kernels::panel_rows + i, k + j) = part[j * kernels::panel_rows + i];
      }
    return rows;
  }

  /// u [n_rows, rank] = scale * (a x) of rows [first_row, first_row + n_rows), or of those that a list has at these places;
  /// their f32 form is read. From any thread.
  void project(const kernels::ActivationRows& x, Index first_row, Index n_rows, float* u,
               const std::int32_t* list = nullptr) const noexcept {
    kernels_->f32({a_.data(), rank_, padded_inputs(), 0, panels(), x, first_row, n_rows, u, rank_, list});
    for (Index i = 0; i < n_rows * rank_; ++i) u[i] *= scale_;
  }

  /// The same for all rows, shared out to the threads.
  void project(const Context& context, const PreparedRows& x, float* u) const {
    constexpr Index together = 32;  // rows that share a panel while it is in the first-level cache
    const Index items = (x.rows() + together - 1) / together;
    context.threads.for_each(
        items,
        [&](std::int64_t item, int) {
          const Index first = item * together;
          project(x.view(), first, std::min(together, x.rows() - first), u + first * rank_);
        },
        x.rows() * rank_ * inputs_ < worth_a_team ? items : 1);
  }

  /// Adds b u to outputs [begin, end) of a row, `y` being output `begin`; u [rank] from project().
  void add(const float* u, Index begin, Index end, float* y) const noexcept {
    table_->axpy_rows(u, b_.data() + begin, rank_, b_.cols(), end - begin, y);
  }

  /// Adds b u to outputs [begin, end) of rows as Linear::multiply() writes them: row i at out + i * out_stride, output 0 at its
  /// start. u [n_rows, rank].
  void add(const float* u, Index n_rows, Index begin, Index end, float* out, Index out_stride) const noexcept {
    for (Index r = 0; r < n_rows; ++r) add(u + r * rank_, begin, end, out + r * out_stride + begin);
  }

 private:
  Index panels() const noexcept { return (rank_ + kernels::panel_rows - 1) / kernels::panel_rows; }
  Index padded_inputs() const noexcept { return kernels::padded(inputs_); }
  std::size_t panel_bytes() const noexcept { return static_cast<std::size_t>(kernels_->panel_bytes(padded_inputs())); }
  const std::byte* panel(Index p) const noexcept { return a_.data() + static_cast<std::size_t>(p) * panel_bytes(); }
  std::byte* panel(Index p) noexcept { return a_.data() + static_cast<std::size_t>(p) * panel_bytes(); }

  const kernels::Table* table_ = nullptr;
  const kernels::FormatKernels* kernels_ = nullptr;
  Index rank_ = 0, inputs_ = 0;
  float scale_ = 1.0f;
  AlignedBuffer<std::byte> a_;  // panels
  RowMatrix b_;                 // [rank, outputs]
};

}  // namespace moxie
