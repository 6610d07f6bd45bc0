#pragma once
// The weights of a MoE layer as a user has them, float matrices or tensors of a file, and their way into a MoeBlock.
// Every size is checked against the configuration; the ArgumentError names the matrix, its shape and the right one.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/moe/config.hpp>
#include <moxie/moe/moe_block.hpp>
#include <moxie/quant/formats.hpp>
#include <moxie/quant/quantize.hpp>

namespace moxie {

/// One network in float.
struct FeedForwardMatrices {
  RowMatrix gate, up;  ///< [width, hidden]; no gate without MoeConfig::gated
  RowMatrix down;      ///< [hidden, width]
  Vector gate_bias = {}, up_bias = {}, down_bias = {};  ///< of experts with MoeConfig::biases
};

/// A MoE layer in float.
struct MoeWeights {
  RowMatrix router;                           ///< [n_experts, hidden]
  Vector router_bias;                         ///< [n_experts], added to the scores for the choice only; or empty
  Vector router_logit_bias;                   ///< [n_experts], with MoeConfig::biases; or empty
  std::vector<FeedForwardMatrices> experts;   ///< [n_experts], width moe_intermediate_size
  std::optional<FeedForwardMatrices> shared;  ///< width shared_intermediate_size
  Vector shared_expert_gate;                  ///< [hidden], with MoeConfig::shared_expert_gate; or empty
};

/// The same as tensors of a file, or of memory in a file's layout. The bytes must live until the layer is built, not longer.
struct FeedForwardViews {
  TensorView gate, up;  ///< [width, hidden]; a gate without shape and data without MoeConfig::gated
  TensorView down;      ///< [hidden, width]
  std::optional<TensorView> gate_bias = {}, up_bias = {}, down_bias = {};  ///< of experts with MoeConfig::biases
};

struct MoeTensors {
  TensorView router;                      ///< [n_experts, hidden], of any format
  std::optional<TensorView> router_bias;  ///< n_experts elements
  std::optional<TensorView> router_logit_bias;
  std::vector<FeedForwardViews> experts;  ///< [n_experts]; from stacked tensors: split_experts()
  std::optional<FeedForwardViews> shared;
  std::optional<TensorView> shared_expert_gate;  ///< hidden elements
};

/// The experts of stacked tensors: gate (or without a shape: there is none), up [n_experts, width, hidden]; down [n_experts,
/// hidden, width]. Throws ArgumentError.
inline std::vector<FeedForwardViews> split_experts(const TensorView& gate, const TensorView& up, const TensorView& down) {
  const bool gated = !gate.shape.empty();
  for (const TensorView* tensor : {gated ? &gate : &up, &up, &down}) {
    if (tensor->shape.size() != 3 || tensor->shape[0] < 1)
      throw ArgumentError(tensor->place(),
                          concat("stacked experts [n_experts, rows, columns] are needed, got shape ", tensor->shape_text()));
    if (tensor->shape[0] != up.shape[0])
      throw ArgumentError(tensor->place(), concat("has ", tensor->shape[0], " experts, '", up.name, "' has ", up.shape[0]));
  }
  std::vector<FeedForwardViews> experts;
  for (std::int64_t e = 0; e < up.shape[0]; ++e)
    experts.push_back({gated ? gate.slice(e) : TensorView(), up.slice(e), down.slice(e)});
  return experts;
}

namespace detail {

inline void check_moe_config(const MoeConfig& config) {
  constexpr std::int64_t most = std::int64_t{1} << 28;
  const auto need = [most](const char* name, std::int64_t size, std::int64_t least) {
    if (size < least || size > most) throw ArgumentError(concat(name, " must be ", least, " to ", most, ", got ", size));
  };
  need("hidden_size", config.hidden_size, 1);
  need("moe_intermediate_size", config.moe_intermediate_size, 1);
  need("shared_intermediate_size", config.shared_intermediate_size, 0);
  if (!(config.swiglu_limit >= 0.0f && config.swiglu_limit <= std::numeric_limits<float>::max()))
    throw ArgumentError(concat("swiglu_limit must be finite and not negative, got ", config.swiglu_limit));
  if (config.latent_size != 0) throw ArgumentError("latent_size must be 0: these layers have no projection of experts' inputs");
  if (!config.gated && (config.biases || config.swiglu_limit != 0.0f))
    throw ArgumentError("experts without a gate have neither biases nor swiglu_limit");
  if (config.shared_expert_gate && config.shared_intermediate_size == 0)
    throw ArgumentError("shared_expert_gate needs shared experts, but shared_intermediate_size is 0");
}

inline std::string expert_name(std::size_t e) { return concat("expert ", e); }

/// Checks that optional parts are there exactly where the configuration says so, and the number of experts.
inline void check_moe_parts(const MoeConfig& config, std::size_t n_experts, bool shared, bool shared_gate) {
  if (static_cast<std::int64_t>(n_experts) != config.router.n_experts)
    throw ArgumentError({{}, "experts", {}}, concat("n_experts is ", config.router.n_experts, ", got ", n_experts));
  if (shared != (config.shared_intermediate_size > 0))
    throw ArgumentError({{}, "shared expert", {}},
                        shared ? "is given, but shared_intermediate_size is 0"
                               : concat("is missing, shared_intermediate_size is ", config.shared_intermediate_size));
  if (shared_gate != config.shared_expert_gate)
    throw ArgumentError({{}, "shared_expert_gate", {}}, shared_gate ? "is given, but the configuration has none" : "is missing");
}

/// Checks that a part has all of its biases, or none.
inline void check_biases(bool wanted, const std::string& name, std::initializer_list<bool> present) {
  for (const bool bias : present)
    if (bias != wanted)
      throw ArgumentError({{}, name, {}},
                          bias ? "has biases, but can have none by the configuration" : "needs biases, by the configuration");
}

inline void check_matrix(const std::string& name, Index rows, Index cols, Index need_rows, Index need_cols) {
  if (rows != need_rows || cols != need_cols)
    throw ArgumentError({{}, name, {}}, concat("must be [", need_rows, ", ", need_cols, "], got [", rows, ", ", cols, "]"));
}

inline Linear encode_matrix(const Context& context, Dtype dtype, const RowMatrix& matrix, const std::string& name, Index rows,
                            Index cols) {
  check_matrix(name, matrix.rows(), matrix.cols(), rows, cols);
  const float limit = largest_encodable(dtype);
  if (!(matrix.array().abs() <= limit).all())
    throw ArgumentError({{}, name, {}},
                        concat("holds NaN, infinity or a magnitude above ", limit, ", the largest of ", dtype_text(dtype)));
  if (cols % dtype_info(dtype).block_elements != 0)
    throw ArgumentError({{}, name, {}}, concat("rows of ", cols, " elements cannot be ", dtype_text(dtype),
                                               ", the length must be a multiple of ", dtype_info(dtype).block_elements));
  return Linear::from_rows(context, dtype, matrix);
}

/// Checks that a network has a gate exactly where the configuration says so.
inline void check_gate(bool wanted, bool present, const std::string& name) {
  if (wanted != present)
    throw ArgumentError({{}, concat(name, " gate"), {}},
                        wanted ? "is missing" : "is given, but the configuration says that there is none (gated is false)");
}

inline FeedForwardWeights encode_network(const Context& context, Dtype dtype, const MoeConfig& config,
                                         const FeedForwardMatrices& m, const std::string& name, Index width) {
  const Index hidden = config.hidden_size;
  check_gate(config.gated, m.gate.size() != 0, name);
  return {config.gated ? encode_matrix(context, dtype, m.gate, concat(name, " gate"), width, hidden) : Linear(),
          encode_matrix(context, dtype, m.up, concat(name, " up"), width, hidden),
          encode_matrix(context, dtype, m.down, concat(name, " down"), hidden, width)};
}

inline FeedForwardWeights encode_expert(const Context& context, Dtype dtype, const MoeConfig& config,
                                        const FeedForwardMatrices& m, const std::string& name) {
  check_biases(config.biases, name, {m.gate_bias.size() != 0, m.up_bias.size() != 0, m.down_bias.size() != 0});
  FeedForwardWeights expert = encode_network(context, dtype, config, m, name, config.moe_intermediate_size);
  expert.gate_bias = m.gate_bias;
  expert.up_bias = m.up_bias;
  expert.down_bias = m.down_bias;
  expert.swiglu_limit = config.swiglu_limit;
  return expert;
}

inline void check_tensor(const TensorView& tensor, const std::string& role, Index rows, Index cols) {
  if (tensor.shape != std::vector<std::int64_t>{rows, cols})
    throw ArgumentError(tensor.place(), concat(role, " must be [", rows, ", ", cols, "], got ", tensor.shape_text()));
  if (!is_format(tensor.dtype) || cols % dtype_info(tensor.dtype).block_elements != 0)
    throw ArgumentError(tensor.place(), concat(role, " cannot be of type ", dtype_text(tensor.dtype)));
  const std::uint64_t bytes = static_cast<std::uint64_t>(rows) * tensor.row_stride();
  if (tensor.bytes != bytes || tensor.data == nullptr)
    throw ArgumentError(tensor.place(), concat(role, " must have ", bytes, " bytes, got ",
                                               (tensor.data ? std::to_string(tensor.bytes) : "none")));
}

inline FeedForwardWeights pack_network(const Context& context, const MoeConfig& config, const FeedForwardViews& views,
                                       const std::string& name, Index width, const TensorMap* source) {
  const Index hidden = config.hidden_size;
  check_gate(config.gated, !views.gate.shape.empty(), name);
  if (config.gated) check_tensor(views.gate, concat(name, " gate"), width, hidden);
  check_tensor(views.up, concat(name, " up"), width, hidden);
  check_tensor(views.down, concat(name, " down"), hidden, width);
  return {config.gated ? Linear::pack(context, views.gate, source) : Linear(), Linear::pack(context, views.up, source),
          Linear::pack(context, views.down, source)};
}

/// A tensor of rows * cols elements (whatever its shape) as f32.
inline RowMatrix decode_matrix(TensorView tensor, const std::string& role, Index rows, Index cols) {
  if (rows == 1 && tensor.shape.size() == 1) tensor.shape.insert(tensor.shape.begin(), 1);
  check_tensor(tensor, role, rows, cols);
  RowMatrix matrix(rows, cols);
  dequantize(tensor, matrix.data());
  return matrix;
}

inline FeedForwardWeights pack_expert(const Context& context, const MoeConfig& config, const FeedForwardViews& views,
                                      const std::string& name, const TensorMap* source) {
  check_biases(config.biases, name, {views.gate_bias.has_value(), views.up_bias.has_value(), views.down_bias.has_value()});
  const Index hidden = config.hidden_size, width = config.moe_intermediate_size;
  FeedForwardWeights expert = pack_network(context, config, views, name, width, source);
  if (config.biases) {
    expert.gate_bias = decode_matrix(*views.gate_bias, concat(name, " gate_bias"), 1, width).row(0);
    expert.up_bias = decode_matrix(*views.up_bias, concat(name, " up_bias"), 1, width).row(0);
    expert.down_bias = decode_matrix(*views.down_bias, concat(name, " down_bias"), 1, hidden).row(0);
  }
  expert.swiglu_limit = config.swiglu_limit;
  return expert;
}

}  // namespace detail

/// Encodes the experts of float weights as `dtype`; the router and the shared experts' gate stay F32.
inline MoeBlock make_moe_block(const Context& context, const MoeConfig& config, const MoeWeights& weights, Dtype dtype) {
  detail::check_moe_config(config);
  const RoutingRule rule(config.router, weights.router_bias);  // checks it before anything is packed
  detail::check_moe_parts(config, weights.experts.size(), weights.shared.has_value(), weights.shared_expert_gate.size() != 0);
  detail::check_biases(config.biases, "router", {weights.router_logit_bias.size() != 0});
  if (weights.shared)
    detail::check_biases(
        false, "shared expert",
        {weights.shared->gate_bias.size() != 0, weights.shared->up_bias.size() != 0, weights.shared->down_bias.size() != 0});
  const Index hidden = config.hidden_size;
  Router router(config.router,
                detail::encode_matrix(context, Dtype::F32, weights.router, "router", config.router.n_experts, hidden),
                weights.router_bias, weights.router_logit_bias);
  Linear gate;
  if (config.shared_expert_gate)
    gate = detail::encode_matrix(context, Dtype::F32, weights.shared_expert_gate.transpose(), "shared_expert_gate", 1, hidden);
  std::vector<FeedForwardWeights> experts;
  experts.reserve(weights.experts.size());
  for (std::size_t e = 0; e < weights.experts.size(); ++e)
    experts.push_back(detail::encode_expert(context, dtype, config, weights.experts[e], detail::expert_name(e)));
  std::optional<FeedForwardWeights> shared;
  if (weights.shared)
    shared = detail::encode_network(context, dtype, config, *weights.shared, "shared expert", config.shared_intermediate_size);
  return {std::move(router), std::move(experts), std::move(shared), std::move(gate)};
}

/// Packs the experts in the types they have; `source` (may be nullptr) is told which mapped bytes are done with.
inline MoeBlock make_moe_block(const Context& context, const MoeConfig& config, const MoeTensors& tensors,
                               const TensorMap* source = nullptr) {
  detail::check_moe_config(config);
  detail::check_moe_parts(config, tensors.experts.size(), tensors.shared.has_value(), tensors.shared_expert_gate.has_value());
  const Index hidden = config.hidden_size, n_experts = config.router.n_experts;
  detail::check_biases(config.biases, "router", {tensors.router_logit_bias.has_value()});
  if (tensors.shared)
    detail::check_biases(
        false, "shared expert",
        {tensors.shared->gate_bias.has_value(), tensors.shared->up_bias.has_value(), tensors.shared->down_bias.has_value()});
  Vector bias, logit_bias;
  if (tensors.router_logit_bias)
    logit_bias = detail::decode_matrix(*tensors.router_logit_bias, "the bias of the router's logits", 1, n_experts).row(0);
  if (tensors.router_bias) bias = detail::decode_matrix(*tensors.router_bias, "the router's bias", 1, n_experts).row(0);
  const RoutingRule rule(config.router, bias);  // checks it before anything is packed
  Router router(config.router,
                Linear::from_rows(context, Dtype::F32, detail::decode_matrix(tensors.router, "the router", n_experts, hidden)),
                std::move(bias), std::move(logit_bias));
  Linear gate;
  if (tensors.shared_expert_gate)
    gate = Linear::from_rows(context, Dtype::F32,
                             detail::decode_matrix(*tensors.shared_expert_gate, "shared_expert_gate", 1, hidden));
  std::vector<FeedForwardWeights> experts;
  experts.reserve(tensors.experts.size());
  for (std::size_t e = 0; e < tensors.experts.size(); ++e)
    experts.push_back(detail::pack_expert(context, config, tensors.experts[e], detail::expert_name(e), source));
  std::optional<FeedForwardWeights> shared;
  if (tensors.shared)
    shared = detail::pack_network(context, config, *tensors.shared, "shared expert", config.shared_intermediate_size, source);
  return {std::move(router), std::move(experts), std::move(shared), std::move(gate)};
}

}  // namespace moxie
