#pragma once
// A batch of rows made ready for matrix products: f32 padded to a multiple of 32 columns, int8 blocks, or both.
// Reusable: its memory grows to the largest batch seen.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/context.hpp>

namespace moxie {

class PreparedRows {
 public:
  /// Takes rows x [rows, k], `stride` floats apart. `int8` needs k to be a multiple of 32, as every quantized format has it.
  void assign(const Context& context, const float* x, Index rows, Index k, Index stride, bool int8, bool f32) {
    rows_ = rows;
    const auto padded = static_cast<Index>(round_up(static_cast<std::size_t>(k), kernels::block_k));
    view_ = {};
    const auto n = static_cast<std::size_t>(rows), width = static_cast<std::size_t>(padded);
    if (int8) {
      q_.resize(n * width);
      d_.resize(n * (width / 32));
      sum_.resize(n * (width / 16));
      view_.q = q_.data();
      view_.d = d_.data();
      view_.sum = sum_.data();
    }
    const bool copy = f32 && (padded != k || stride != k);
    if (copy) x_.resize(n * width);
    if (f32) view_.x = copy ? x_.data() : x;
    if (!int8 && !copy) return;
    context.threads.for_each(
        rows,
        [&](std::int64_t r, int) {
          const float* row = x + r * stride;
          if (int8)
            context.kernels->quantize(row, padded, q_.data() + r * padded, d_.data() + r * (padded / 32),
                                      sum_.data() + r * (padded / 16));
          if (copy) {
            float* to = x_.data() + r * padded;
            std::copy(row, row + k, to);
            std::fill(to + k, to + padded, 0.0f);
          }
        },
        8);
  }

  /// Valid until the next assign(); the f32 rows may be those given to it.
  const kernels::ActivationRows& view() const noexcept { return view_; }
  Index rows() const noexcept { return rows_; }
  std::size_t bytes() const noexcept {
    return x_.capacity_bytes() + q_.capacity_bytes() + d_.capacity_bytes() + sum_.capacity_bytes();
  }

 private:
  AlignedBuffer<float> x_, d_;
  AlignedBuffer<std::int8_t> q_;
  AlignedBuffer<std::int16_t> sum_;
  kernels::ActivationRows view_;
  Index rows_ = 0;
};

}  // namespace moxie
