#pragma once
// What may lie between hidden rows and logits beside the output matrix W:
//
//   z = (W h + adapter + bias) * logit_scale;   logits = softcap * tanh(z / softcap) where there is a softcap
//
// W h includes the low-rank part that the matrix itself may have (Linear::low_rank), of a model loaded with an adapter.
// Softcap as in Gemma 2 (arXiv 2408.00118), logit_scale as in Cohere's models.

#include <cmath>
#include <span>
#include <string>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/output_adapter.hpp>

namespace moxie {

struct OutputHead {
  const OutputAdapter* adapter = nullptr;  ///< packed
  std::span<const float> bias = {};        ///< [vocab], or empty
  float logit_scale = 1.0f;
  float softcap = 0.0f;  ///< 0: none

  /// Throws ArgumentError unless it fits the output matrix.
  void check(const Linear& output) const {
    if (adapter) adapter->check(output.outputs(), output.inputs());
    if (!bias.empty() && static_cast<Index>(bias.size()) != output.outputs())
      throw ArgumentError(concat("a bias of ", bias.size(), " entries was given for a vocabulary of ", output.outputs()));
    if (!std::isfinite(logit_scale) || logit_scale == 0.0f) throw ArgumentError("logit_scale must be finite and not 0");
    if (!std::isfinite(softcap) || softcap < 0.0f) throw ArgumentError("softcap must be above 0, or 0 for none");
  }

  bool bends() const noexcept { return softcap != 0.0f; }

  /// From products with the output matrix to logits, in place: columns [begin, end) of a row, `z` being that of token `begin`.
  /// u [rank] is OutputAdapter::project() of the row, where there is an adapter.
  void apply(const kernels::Table& kernels, const float* u, Index begin, Index end, float* z) const noexcept {
    if (adapter) adapter->add(u, begin, end, z);
    if (!bias.empty()) kernels.add(bias.data() + begin, end - begin, z);
    if (logit_scale == 1.0f && !bends()) return;
    Eigen::Map<Eigen::ArrayXf> values(z, end - begin);
    values *= logit_scale;
    if (bends()) values = (values / softcap).tanh() * softcap;
  }

  /// From dL/dlogits to dL/d(W h), in place; `logits` as apply() left them: [n] of one row.
  void apply_gradient(const float* logits, Index n, float* gradient) const noexcept {
    if (logit_scale == 1.0f && !bends()) return;
    Eigen::Map<Eigen::ArrayXf> values(gradient, n);
    values *= logit_scale;
    if (bends()) values *= 1.0f - (Eigen::Map<const Eigen::ArrayXf>(logits, n) / softcap).square();
  }
};

}  // namespace moxie
