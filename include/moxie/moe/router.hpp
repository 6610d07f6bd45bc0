#pragma once
// Router: logits = W x [+ b] in f32, whatever the activations of the experts are, then RoutingRule for each row.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/moe/routing_rule.hpp>
#include <moxie/moe/routing_trace.hpp>

namespace moxie {

class Router {
 public:
  /// weight [n_experts, hidden] of type F32. `bias`, for the choice only, and `logit_bias`: [n_experts] or empty. Throws
  /// ArgumentError.
  Router(const RouterConfig& config, Linear weight, Vector bias = {}, Vector logit_bias = {})
      : rule_(config, std::move(bias)), weight_(std::move(weight)), logit_bias_(std::move(logit_bias)) {
    if (weight_.dtype() != Dtype::F32)
      throw ArgumentError({{}, "router", {}}, concat("the weight must be packed as F32, got ", dtype_info(weight_.dtype()).name));
    if (weight_.outputs() != config.n_experts)
      throw ArgumentError({{}, "router", {}},
                          concat("the weight must have n_experts (", config.n_experts, ") rows, got ", weight_.outputs()));
    if (logit_bias_.size() != 0 && logit_bias_.size() != config.n_experts)
      throw ArgumentError({{}, "router", {}}, concat("the bias of the logits must have n_experts (", config.n_experts,
                                                     ") elements, got ", logit_bias_.size()));
  }

  const RouterConfig& config() const noexcept { return rule_.config(); }
  const RoutingRule& rule() const noexcept { return rule_; }
  Index hidden_size() const noexcept { return weight_.inputs(); }
  std::size_t bytes() const noexcept { return weight_.bytes(); }

  /// Routes the rows of x, which have their f32 form. ids, weights [rows, top_k] are written; with `replay` [rows, top_k] these
  /// experts are used, but in rows of router_chooses. `scores` [rows, n_experts] is scratch. Errors are those of RoutingRule,
  /// with the row counted from `first_row`.
  void route(const Context& context, const PreparedRows& x, const std::int32_t* replay, float* scores, std::int32_t* ids,
             float* weights, Index first_row = 0) const {
    const Index n = config().n_experts, k = config().top_k;
    const StageScope stage(context.profile(), Stage::router);
    weight_.forward(context, x, scores, n);
    context.threads.for_each(
        x.rows(),
        [&](std::int64_t r, int) {
          if (logit_bias_.size() != 0) context.kernels->add(logit_bias_.data(), n, scores + r * n);
          const auto place = [&] { return Place{{}, concat("router, row ", first_row + r), {}}; };
          try {
            const std::int32_t* given = replay ? replay + r * k : nullptr;
            if (given && std::any_of(given, given + k, [](std::int32_t id) { return id != router_chooses; })) {
              rule_.replay(scores + r * n, given, weights + r * k);
              std::copy_n(given, k, ids + r * k);
            } else {
              rule_.choose(scores + r * n, ids + r * k, weights + r * k);
            }
          } catch (const ArgumentError& error) {
            throw ArgumentError(place(), error.what());
          } catch (const Error& error) {
            throw Error(place(), error.what());
          }
        },
        16);  // a row takes about a microsecond, a fraction of what waking a thread takes
  }

 private:
  RoutingRule rule_;
  Linear weight_;
  Vector logit_bias_;
};

}  // namespace moxie
