#pragma once
// Load-balancing loss of routers (Switch Transformers, arXiv 2101.03961, eq. 4; transformers' load_balancing_loss_func; TRL adds
// it with the coefficient `router_aux_loss_coef`):
//
//   loss = E sum_e f_e P_e,   f_e = (top-k choices that fall on expert e) / rows,   P_e = mean over rows of softmax(z)_e
//
// over the router logits z of all layers and of all tokens that count. f carries no gradient:  dL/dz_j = (E / rows) p_j (f_j -
// sum_e f_e p_e). A perfectly balanced router has the loss k.

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/option_names.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// The loss, without its coefficient, and its gradient.
struct LoadBalancing {
  double loss;
  TokenArray d_router_logits;  ///< [layers * B * T, experts]
};

/// router_logits [layers * B * T, experts], the rows of a layer together and in the order of the mask; mask [B, T], or empty
/// where every token counts; top_k: experts chosen for a token, ties go to the lower id. Throws ArgumentError for shapes that do
/// not fit.
inline LoadBalancing load_balancing_loss(const ConstTokens& router_logits, const ConstMask& mask, Index top_k) {
  const Index rows = router_logits.rows(), experts = router_logits.cols();
  check_option(top_k >= 1 && top_k <= experts, "top_k", static_cast<double>(top_k),
               concat("from 1 to the number of experts, ", experts));
  if (mask.size() > 0 && rows % mask.size() != 0)
    throw ArgumentError(concat("router_logits have ", rows, " rows, must be a multiple of the ", mask.size(),
                               " tokens of the mask, one row for each layer and token"));
  const auto counts = [&](Index row) {
    const Index token = mask.size() > 0 ? row % mask.size() : 0;
    return mask.size() == 0 || mask(token / mask.cols(), token % mask.cols());
  };

  TokenArray probabilities = TokenArray::Zero(rows, experts);
  Eigen::ArrayXd chosen = Eigen::ArrayXd::Zero(experts), mean = Eigen::ArrayXd::Zero(experts);
  std::vector<Index> order(static_cast<std::size_t>(experts));
  double n = 0.0;
  for (Index row = 0; row < rows; ++row) {
    if (!counts(row)) continue;
    n += 1.0;
    auto p = probabilities.row(row);
    p = (router_logits.row(row) - router_logits.row(row).maxCoeff()).unaryExpr([](double z) { return std::exp(z); });
    p /= p.sum();
    mean += p.transpose();
    std::iota(order.begin(), order.end(), Index{0});
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(),
                      [&](Index a, Index b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
    for (Index k = 0; k < top_k; ++k) chosen[order[static_cast<std::size_t>(k)]] += 1.0;
  }
  n = at_least_one(n);
  const Eigen::ArrayXd f = chosen / n;
  const double scale = static_cast<double>(experts) / n;
  LoadBalancing result{scale * (f * mean).sum(), TokenArray(rows, experts)};
  for (Index row = 0; row < rows; ++row) {
    const Eigen::ArrayXd p = probabilities.row(row).transpose();
    result.d_router_logits.row(row) = (scale * p * (f - (f * p).sum())).transpose();
  }
  return result;
}

}  // namespace moxie::grpo
