#pragma once
// MoeLayer: one Mixture-of-Experts layer for use in a program of one's own, rows of an Eigen matrix in and out.
//
//   moxie::MoeLayer<moxie::Q4_K> layer(config, weights);  // float matrices, which it quantizes, or tensors that are Q4_K already
//   layer.forward(x, y);                                  // x, y [rows, hidden]
//
// The type of the experts' weights is a template parameter here. A file that mixes types, as Q4_K_M does, is make_moe_block()'s
// work.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/kernels/kernels.hpp>
#include <moxie/moe/moe_block.hpp>
#include <moxie/moe/moe_weights.hpp>
#include <moxie/moe/routing_trace.hpp>
#include <moxie/moe/scratch.hpp>

namespace moxie {

template <class Format, Activations activations = Activations::int8>
class MoeLayer {
 public:
  /// From float matrices; the experts are quantized to Format, the router and the shared experts' gate stay f32.
  /// Throws ArgumentError that names what does not fit the configuration.
  MoeLayer(const MoeConfig& config, const MoeWeights& weights, Threads threads = Threads())
      : context_{&kernels::native_table(), threads, activations},
        block_(make_moe_block(context_, config, weights, Format::dtype)) {}

  /// From tensors in a file or in memory, whose experts are of type Format. Throws ArgumentError.
  MoeLayer(const MoeConfig& config, const MoeTensors& tensors, Threads threads = Threads())
      : context_{&kernels::native_table(), threads, activations}, block_(make_moe_block(context_, config, checked(tensors))) {}

  Index hidden_size() const noexcept { return block_.hidden_size(); }
  const MoeBlock& block() const noexcept { return block_; }

  /// y = the layer's output for the rows of x; both [rows, hidden], y may be x. May be called from several threads at once.
  /// Throws ArgumentError for wrong shapes, and Error naming a row of x that is not finite (y is then unspecified).
  void forward(ConstRows x, MutRows y) const { run(x, y, {}); }

  /// The same, and `trace` becomes the routing of these rows, one layer.
  void forward_recording(ConstRows x, MutRows y, RoutingTrace& trace) const {
    RoutingTrace recorded(1, block_.n_experts(), block_.top_k());
    recorded.resize(x.rows());
    run(x, y, recorded.record(0));
    trace = std::move(recorded);
  }

  /// The same with the experts of `trace`, one layer and a token for each row. Their weights are computed from x.
  /// Throws ArgumentError when the trace does not fit.
  void forward_replaying(ConstRows x, MutRows y, const RoutingTrace& trace) const {
    trace.check_fits(1, block_.n_experts(), block_.top_k(), x.rows());
    run(x, y, {trace.ids(0).data(), nullptr, nullptr});
  }

 private:
  void run(const ConstRows& x, MutRows& y, const RoutingRows& routing) const {
    if (x.cols() != hidden_size() || y.cols() != hidden_size() || x.rows() != y.rows())
      throw ArgumentError(concat("x and y must both be [rows, ", hidden_size(), "], got [", x.rows(), ", ", x.cols(), "] and [",
                                 y.rows(), ", ", y.cols(), "]"));
    const ScratchPool::Loan scratch(*pool_);
    block_.forward(context_, x.data(), x.rows(), x.outerStride(), y.data(), y.outerStride(), *scratch, routing);
  }

  static const MoeTensors& checked(const MoeTensors& tensors) {
    const auto check = [](const FeedForwardViews& network) {
      for (const TensorView* tensor : {&network.gate, &network.up, &network.down})
        if (!tensor->shape.empty() && tensor->dtype != Format::dtype)
          throw ArgumentError(tensor->place(), concat("is ", dtype_text(tensor->dtype), ", this layer's experts are ",
                                                      Format::name, "; make_moe_block() takes experts of mixed types"));
    };
    for (const FeedForwardViews& expert : tensors.experts) check(expert);
    if (tensors.shared) check(*tensors.shared);
    return tensors;
  }

  Context context_;
  MoeBlock block_;
  std::unique_ptr<ScratchPool> pool_ = std::make_unique<ScratchPool>();
};

}  // namespace moxie
