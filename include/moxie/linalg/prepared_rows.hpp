#pragma once
// A batch of rows made ready for matrix products: f32 padded to a multiple of 32 columns, int8 blocks, or both.
// Reusable: its memory grows to the largest batch seen.

#include <algorithm>
#include <cstdint>

#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/context.hpp>

namespace moxie {

class PreparedRows {
 public:
  /// Takes rows x [rows, k], `stride` floats apart. `int8` needs k to be a multiple of 32, as every quantized format has it.
  void assign(const Context& context, const float* x, Index rows, Index k, Index stride, bool int8, bool f32) {
    assign(context, rows, k, int8, f32, f32 && k % kernels::block_k == 0 && stride == k ? x : nullptr,
           [&](Index r) { return x + r * stride; });
  }
  /// The same with row(r), a pointer to k floats, for row r.
  template <class Row>
  void assign_rows(const Context& context, Index rows, Index k, bool int8, bool f32, Row&& row) {
    assign(context, rows, k, int8, f32, nullptr, row);
  }
  /// Takes rows list[0..rows) of `from`, all with k inputs, in the forms asked for, which it must have.
  void gather(const kernels::ActivationRows& from, const std::int32_t* list, Index rows, Index k, bool int8, bool f32) {
    const Index padded = reserve(rows, k, int8, f32);
    for (Index r = 0; r < rows; ++r) {
      if (int8) {
        const kernels::Int8Block* block = from.q.block(list[r], 0);
        kernels::Int8Block* to = view_.q.block(r, 0);
        const Index step = from.q.step(list[r]), to_step = view_.q.step(r);
        for (Index b = 0; b < padded / kernels::block_k; ++b) {
          __builtin_prefetch(block + (b + 12) * step);  // they lie apart
          to[b * to_step] = block[b * step];
        }
      }
      if (f32) std::copy_n(from.x + list[r] * padded, padded, x_.data() + r * padded);
    }
    if (f32) view_.x = x_.data();
  }

  /// Valid until the next change; the f32 rows may be those given to assign().
  const kernels::ActivationRows& view() const noexcept { return view_; }
  Index rows() const noexcept { return rows_; }
  std::size_t bytes() const noexcept { return x_.capacity_bytes() + q_.capacity_bytes(); }

 private:
  /// The padded k.
  Index reserve(Index rows, Index k, bool int8, bool f32_copy) {
    rows_ = rows;
    const Index padded = kernels::padded(k);
    if (int8) q_.resize(static_cast<std::size_t>(kernels::Int8Rows::count(rows, padded)));
    if (f32_copy) x_.resize(static_cast<std::size_t>(rows * padded));
    view_ = {};
    if (int8) view_.q = {q_.data(), rows, padded};
    return padded;
  }

  template <class Row>
  void assign(const Context& context, Index rows, Index k, bool int8, bool f32, const float* in_place, Row&& row) {
    const bool copy = f32 && !in_place;
    const Index padded = reserve(rows, k, int8, copy);
    if (f32) view_.x = copy ? x_.data() : in_place;
    if (!int8 && !copy) return;
    context.threads.for_each(
        rows,
        [&](std::int64_t r, int) {
          const float* from = row(r);
          if (int8) context.kernels->quantize(from, padded, view_.q.block(r, 0), view_.q.step(r));
          if (copy) {
            float* to = x_.data() + r * padded;
            std::copy(from, from + k, to);
            std::fill(to + k, to + padded, 0.0f);
          }
        },
        8);
  }

  AlignedBuffer<float> x_;
  AlignedBuffer<kernels::Int8Block> q_;
  kernels::ActivationRows view_;
  Index rows_ = 0;
};

}  // namespace moxie
