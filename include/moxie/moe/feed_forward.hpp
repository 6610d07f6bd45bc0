#pragma once
// FeedForward: a dense feed-forward layer y = down(silu(gate x) * up x), or down(relu(up x)^2), as layers without experts have
// it.

#include <algorithm>
#include <cstddef>
#include <utility>

#include <moxie/core/matrix.hpp>
#include <moxie/linalg/prepared_rows.hpp>
#include <moxie/moe/experts.hpp>
#include <moxie/moe/scratch.hpp>

namespace moxie {

class FeedForward {
 public:
  /// gate (or empty), up [width, hidden]; down [hidden, width]. Throws ArgumentError.
  explicit FeedForward(FeedForwardWeights weights) : weights_(std::move(weights)) {
    weights_.check(weights_.hidden_size(), "feed-forward");
  }

  Index hidden_size() const noexcept { return weights_.hidden_size(); }
  std::size_t bytes() const noexcept { return weights_.bytes(); }

  /// x, y [rows, hidden], rows `x_stride` and `y_stride` floats apart; y may be x. The bits of a row depend on this row alone.
  void forward(const Context& context, const float* x, Index rows, Index x_stride, float* y, Index y_stride,
               MoeScratch& scratch) const {
    const Index hidden = hidden_size(), step = rows_at_a_time(weights_.width());
    InputForms forms;
    forms.add(weights_, context.activations);
    for (Index first = 0; first < rows; first += step) {
      const Index n = std::min(step, rows - first);
      scratch.x.assign(context, x + first * x_stride, n, hidden, x_stride, forms.int8, forms.f32);
      FeedForwardPass pass(context, scratch.networks);
      pass.add(weights_, nullptr, n);
      pass.run(scratch.x.view(), [&](const float* results, Index stride, Index begin, Index end) {
        for (Index r = 0; r < n; ++r) std::copy_n(results + r * stride, end - begin, y + (first + r) * y_stride + begin);
      });
    }
  }

 private:
  FeedForwardWeights weights_;
};

}  // namespace moxie
