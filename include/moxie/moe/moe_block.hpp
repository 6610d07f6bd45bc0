#pragma once
// MoeBlock: a Mixture-of-Experts layer with weights of any formats: router, experts, shared experts.
//
//   y[r] = sum over slots s, in slot order, of weight[r][s] * expert[r][s](x[r])  +  [sigmoid(shared_gate . x[r]) *] shared(x[r])
//
// or, with latent projections, the sum over experts of z[r] = latent_in x[r], through latent_out.
//
// The bits of a row depend on this row alone: not on the other rows, on how a batch is cut, or on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/moe/experts.hpp>
#include <moxie/moe/router.hpp>
#include <moxie/moe/routing_trace.hpp>
#include <moxie/moe/scratch.hpp>

namespace moxie {

/// Projections of the routed experts' inputs and of their results (MoeConfig::latent_size).
struct LatentExperts {
  Linear in, out;  ///< [latent, hidden], [hidden, latent]; or empty
};

class MoeBlock {
 public:
  /// experts [n_experts]; `shared` is all shared experts as one network; `shared_gate` [1, hidden] of type F32 or empty.
  /// Throws ArgumentError that names what does not fit.
  MoeBlock(Router router, std::vector<FeedForwardWeights> experts, std::optional<FeedForwardWeights> shared = {},
           Linear shared_gate = {}, LatentExperts latent = {})
      : router_(std::move(router)),
        experts_(std::move(experts)),
        shared_(std::move(shared)),
        shared_gate_(std::move(shared_gate)),
        latent_(std::move(latent)) {
    if (static_cast<Index>(experts_.size()) != router_.config().n_experts)
      throw ArgumentError({{}, "experts", {}},
                          concat("the router chooses from ", router_.config().n_experts, " experts, got ", experts_.size()));
    const Index expert_input = latent_.in.empty() ? hidden_size() : latent_.in.outputs();
    if (latent_.in.empty() != latent_.out.empty() ||
        (!latent_.in.empty() && (latent_.in.inputs() != hidden_size() || latent_.out.inputs() != expert_input ||
                                 latent_.out.outputs() != hidden_size())))
      throw ArgumentError({{}, "latent projections", {}}, concat("must be [", expert_input, ", ", hidden_size(), "] and [",
                                                                 hidden_size(), ", ", expert_input, "]"));
    for (std::size_t e = 0; e < experts_.size(); ++e) experts_[e].check(expert_input, concat("expert ", e));
    if (shared_) shared_->check(hidden_size(), "shared expert");
    if (shared_gate_.empty()) return;
    if (!shared_) throw ArgumentError({{}, "shared_expert_gate", {}}, "there is no shared expert that it could gate");
    if (shared_gate_.outputs() != 1 || shared_gate_.inputs() != hidden_size() || shared_gate_.dtype() != Dtype::F32)
      throw ArgumentError({{}, "shared_expert_gate", {}},
                          concat("must be F32 [1, ", hidden_size(), "], got ", dtype_info(shared_gate_.dtype()).name, " [",
                                 shared_gate_.outputs(), ", ", shared_gate_.inputs(), "]"));
  }

  const Router& router() const noexcept { return router_; }
  Index hidden_size() const noexcept { return router_.hidden_size(); }
  Index n_experts() const noexcept { return router_.config().n_experts; }
  Index top_k() const noexcept { return router_.config().top_k; }
  /// Of the packed weights.
  std::size_t bytes() const noexcept {
    std::size_t sum =
        router_.bytes() + shared_gate_.bytes() + (shared_ ? shared_->bytes() : 0) + latent_.in.bytes() + latent_.out.bytes();
    for (const FeedForwardWeights& expert : experts_) sum += expert.bytes();
    return sum;
  }

  /// x, y [rows, hidden], rows `x_stride` and `y_stride` floats apart; y may be x. `routing` records this layer's routing, or
  /// replaces its experts. A row that is not finite gives an Error that names it, as its router logits are not finite; a replayed
  /// id that is out of range or repeated gives an ArgumentError. y is then unspecified.
  void forward(const Context& context, const float* x, Index rows, Index x_stride, float* y, Index y_stride, MoeScratch& scratch,
               const RoutingRows& routing = {}) const {
    Index widest = 0;
    for (const FeedForwardWeights& expert : experts_) widest = std::max(widest, expert.width());
    const Index step = rows_at_a_time(top_k() * widest + (shared_ ? shared_->width() : 0));
    InputForms forms;
    forms.f32 = true;  // for the router
    if (latent_.in.empty())
      for (const FeedForwardWeights& expert : experts_) forms.add(expert, context.activations);
    else
      forms.int8 = latent_.in.takes_int8(context.activations);
    if (shared_) forms.add(*shared_, context.activations);
    for (Index first = 0; first < rows; first += step) {
      const Index n = std::min(step, rows - first), slots = first * top_k();
      scratch.x.assign(context, x + first * x_stride, n, hidden_size(), x_stride, forms.int8, forms.f32);
      route(context, n, routing.replay ? routing.replay + slots : nullptr, first, scratch);
      if (routing.ids) std::copy_n(scratch.ids.data(), n * top_k(), routing.ids + slots);
      if (routing.weights) std::copy_n(scratch.weights.data(), n * top_k(), routing.weights + slots);
      if (latent_.in.empty())
        run_experts(context, n, y + first * y_stride, y_stride, scratch);
      else
        run_latent_experts(context, n, y + first * y_stride, y_stride, scratch);
    }
  }

 private:
  void route(const Context& context, Index rows, const std::int32_t* replay, Index first_row, MoeScratch& scratch) const {
    scratch.scores.resize(static_cast<std::size_t>(rows * n_experts()));
    scratch.ids.resize(static_cast<std::size_t>(rows * top_k()));
    scratch.weights.resize(static_cast<std::size_t>(rows * top_k()));
    router_.route(context, scratch.x, replay, scratch.scores.data(), scratch.ids.data(), scratch.weights.data(), first_row);
    scratch.dispatch.assign(scratch.ids.data(), rows, top_k(), n_experts());
    if (shared_gate_.empty()) return;
    scratch.shared_scale.resize(static_cast<std::size_t>(rows));
    float* scale = scratch.shared_scale.data();
    const StageScope stage(context.profile(), Stage::router);
    shared_gate_.forward(context, scratch.x, scale, 1);
    for (Index r = 0; r < rows; ++r) scale[r] = 1.0f / (1.0f + std::exp(-scale[r]));
  }

  void run_experts(const Context& context, Index rows, float* y, Index y_stride, MoeScratch& scratch) const {
    FeedForwardPass pass(context, scratch.networks);
    add_routed(pass, scratch.dispatch);
    if (shared_) pass.add(*shared_, nullptr, rows);
    pass.run(scratch.x.view(), [&](const float* results, Index stride, Index begin, Index end) {
      for (Index r = 0; r < rows; ++r) {
        float* to = y + r * y_stride + begin;
        combine_routed(context, scratch, r, results, stride, end - begin, to);
        if (shared_) add_shared(context, scratch, r, results + (scratch.dispatch.size() + r) * stride, end - begin, to);
      }
    });
  }

  void run_latent_experts(const Context& context, Index rows, float* y, Index y_stride, MoeScratch& scratch) const {
    const Index width = latent_.in.outputs(), hidden = hidden_size();
    scratch.latent.resize(static_cast<std::size_t>(rows * width));
    float* const latent = scratch.latent.data();
    {
      const StageScope stage(context.profile(), Stage::projections);
      latent_.in.forward(context, scratch.x, latent, width);
    }
    InputForms forms;
    for (const FeedForwardWeights& expert : experts_) forms.add(expert, context.activations);
    scratch.latent_x.assign(context, latent, rows, width, width, forms.int8, forms.f32);
    FeedForwardPass routed(context, scratch.networks);
    add_routed(routed, scratch.dispatch);
    routed.run(scratch.latent_x.view(), [&](const float* results, Index stride, Index begin, Index end) {
      for (Index r = 0; r < rows; ++r)
        combine_routed(context, scratch, r, results, stride, end - begin, latent + r * width + begin);
    });
    // All of x is read before y, which may be x, is written.
    if (shared_) {
      FeedForwardPass pass(context, scratch.networks);
      pass.add(*shared_, nullptr, rows);
      pass.run(scratch.x.view(), [&](const float* results, Index stride, Index begin, Index end) {
        for (Index r = 0; r < rows; ++r) {
          std::fill_n(y + r * y_stride + begin, end - begin, 0.0f);
          add_shared(context, scratch, r, results + r * stride, end - begin, y + r * y_stride + begin);
        }
      });
      scratch.projected.resize(static_cast<std::size_t>(rows * hidden));
    }
    scratch.latent_x.assign(context, latent, rows, width, width, latent_.out.takes_int8(context.activations),
                            latent_.out.takes_f32(context.activations));
    const StageScope stage(context.profile(), Stage::projections);
    latent_.out.forward(context, scratch.latent_x, shared_ ? scratch.projected.data() : y, shared_ ? hidden : y_stride);
    if (!shared_) return;
    context.threads.for_each(
        rows, [&](std::int64_t r, int) { context.kernels->add(scratch.projected.data() + r * hidden, hidden, y + r * y_stride); },
        16);
  }

  void add_routed(FeedForwardPass& pass, const Dispatch& dispatch) const {
    for (Index e = 0; e < n_experts(); ++e)
      if (dispatch.count(e) > 0) pass.add(experts_[static_cast<std::size_t>(e)], dispatch.rows(e), dispatch.count(e));
  }
  /// n columns of row r: the weighted sum of its experts' results.
  void combine_routed(const Context& context, const MoeScratch& scratch, Index r, const float* results, Index stride, Index n,
                      float* to) const {
    std::fill_n(to, n, 0.0f);
    for (Index s = r * top_k(); s < (r + 1) * top_k(); ++s)
      context.kernels->axpy(scratch.weights.data()[s], results + scratch.dispatch.positions()[s] * stride, n, to);
  }
  void add_shared(const Context& context, const MoeScratch& scratch, Index r, const float* shared, Index n, float* to) const {
    shared_gate_.empty() ? context.kernels->add(shared, n, to)
                         : context.kernels->axpy(scratch.shared_scale.data()[r], shared, n, to);
  }

  Router router_;
  std::vector<FeedForwardWeights> experts_;
  std::optional<FeedForwardWeights> shared_;
  Linear shared_gate_;
  LatentExperts latent_;
};

}  // namespace moxie
