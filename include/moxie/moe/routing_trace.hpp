#pragma once
// RoutingTrace: which experts every token went to and with which weights, [MoE layer][token][top_k].
//
// Recorded by one pass, it can be replayed by another: the ids are taken from the trace, the weights are computed anew from
// that pass's router logits by the family's rule. A pass that replays its own trace gives the same bits.
// A use is GRPO: scoring with the experts of the rollout (rollout routing replay, arXiv 2510.11370).

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>

namespace moxie {

/// In the ids of a token to be replayed: all its top_k ids are this, and the router chooses. For tokens that the recording pass
/// did not run.
inline constexpr std::int32_t router_chooses = -1;

/// The routing of one layer for the rows of one pass. All [rows, top_k], nullptr where not wanted.
struct RoutingRows {
  const std::int32_t* replay = nullptr;  ///< experts to use instead of the router's choice
  std::int32_t* ids = nullptr;           ///< receives the experts used, in slot order
  float* weights = nullptr;              ///< receives their weights
};

class RoutingTrace {
 public:
  RoutingTrace() = default;
  /// A trace of 0 tokens. Throws ArgumentError for a size below 1.
  RoutingTrace(Index n_layers, Index n_experts, Index top_k) : n_experts_(n_experts), top_k_(top_k) {
    if (n_layers < 1 || n_experts < 1 || top_k < 1 || top_k > n_experts)
      throw ArgumentError({{}, "routing trace", {}}, concat("needs at least one layer and 1 <= top_k <= n_experts, got ",
                                                            n_layers, " layers, ", n_experts, " experts, top_k ", top_k));
    layers_.resize(static_cast<std::size_t>(n_layers));
  }

  Index n_layers() const noexcept { return static_cast<Index>(layers_.size()); }  ///< MoE layers
  Index n_experts() const noexcept { return n_experts_; }
  Index top_k() const noexcept { return top_k_; }
  Index tokens() const noexcept { return tokens_; }

  /// Experts of layer `layer` in slot order, [tokens, top_k].
  Eigen::Map<const RowIds> ids(Index layer) const { return {at(layer).ids.data(), tokens_, top_k_}; }
  Eigen::Map<RowIds> ids(Index layer) { return {at(layer).ids.data(), tokens_, top_k_}; }
  /// Their weights, after renormalization and scaling, [tokens, top_k].
  Eigen::Map<const RowMatrix> weights(Index layer) const { return {at(layer).weights.data(), tokens_, top_k_}; }
  Eigen::Map<RowMatrix> weights(Index layer) { return {at(layer).weights.data(), tokens_, top_k_}; }

  /// Keeps the first `tokens` tokens; new ones are zeros, to be recorded.
  void resize(Index tokens) {
    if (tokens < 0)
      throw ArgumentError({{}, "routing trace", {}}, concat("the number of tokens must not be negative, got ", tokens));
    for (Layer& layer : layers_) {
      layer.ids.resize(static_cast<std::size_t>(tokens * top_k_));
      layer.weights.resize(static_cast<std::size_t>(tokens * top_k_));
    }
    tokens_ = tokens;
  }

  /// Adds tokens [begin, begin + count) of `other`. Throws ArgumentError when it is of another shape or has fewer tokens.
  void append(const RoutingTrace& other, Index begin, Index count) {
    other.check_model(n_layers(), n_experts_, top_k_);
    if (begin < 0 || count < 0 || begin > other.tokens_ || count > other.tokens_ - begin)
      throw ArgumentError({{}, "routing trace", {}},
                          concat("tokens ", begin, " to ", begin + count, " were asked for, the trace has ", other.tokens_));
    const Index old = tokens_;
    resize(old + count);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      std::copy_n(other.layers_[l].ids.data() + begin * top_k_, count * top_k_, layers_[l].ids.data() + old * top_k_);
      std::copy_n(other.layers_[l].weights.data() + begin * top_k_, count * top_k_, layers_[l].weights.data() + old * top_k_);
    }
  }

  /// Where layer `layer` records the tokens from `first` on.
  RoutingRows record(Index layer, Index first = 0) {
    return {nullptr, at(layer).ids.data() + first * top_k_, at(layer).weights.data() + first * top_k_};
  }

  /// Throws ArgumentError, saying what does not fit, unless the trace is of a model with these sizes.
  void check_model(Index n_layers, Index n_experts, Index top_k) const {
    check("MoE layers", this->n_layers(), n_layers);
    check("experts", n_experts_, n_experts);
    check("experts per token", top_k_, top_k);
  }
  /// The same, and unless it has exactly this many tokens.
  void check_fits(Index n_layers, Index n_experts, Index top_k, Index tokens) const {
    check_model(n_layers, n_experts, top_k);
    check("tokens", tokens_, tokens);
  }

 private:
  struct Layer {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
  };
  static void check(const char* what, Index has, Index needs) {
    if (has != needs) throw ArgumentError({{}, "routing trace", {}}, concat("has ", has, " ", what, ", ", needs, " are needed"));
  }
  const Layer& at(Index layer) const {
    if (layer < 0 || layer >= n_layers())
      throw ArgumentError({{}, "routing trace", {}}, concat("layer ", layer, " was asked for, the trace has ", n_layers()));
    return layers_[static_cast<std::size_t>(layer)];
  }
  Layer& at(Index layer) { return const_cast<Layer&>(std::as_const(*this).at(layer)); }

  std::vector<Layer> layers_;
  Index n_experts_ = 0, top_k_ = 0, tokens_ = 0;
};

}  // namespace moxie
