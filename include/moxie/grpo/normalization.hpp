#pragma once
// What the sum of the token terms is divided by. The policy loss is sum_i c_i sum_t m_it l_it, the loss that divided by `acc`:
//
//   grpo, sapo            c_i = 1 / (B n_i),  n_i = max(1, sum_t m_it)      acc = gradient_accumulation_steps
//   bnpo                  c   = 1 / max(1, sum_it m)                        the same
//   dr_grpo               c   = 1 / (B L),    L = max_completion_length     the same    (Dr. GRPO, arXiv 2503.20783)
//   luspo                 c   = 1 / B                                       the same    (LUSPO, arXiv 2602.05261)
//   dapo, cispo, vespo    c   = 1 / D,        D = max(1, N) * acc / steps_per_generation     1         (DAPO, arXiv 2503.14476)
//
// Rows without tokens count in B. N is the number of tokens in the whole generated batch. In evaluation acc is 1 and
// D is max(1, N).

#include <Eigen/Core>

#include <moxie/grpo/loss_batch.hpp>
#include <moxie/grpo/loss_options.hpp>

namespace moxie::grpo {

/// The weights of rows, and what the weighted sum is divided by.
struct Normalization {
  Eigen::ArrayXd row_weight;  ///< [B] c
  double accumulation = 1.0;  ///< acc, the divisor of the policy loss
};

/// By loss_type, of a batch with shapes that fit.
inline Normalization normalization(const LossOptions& o, const LossBatch& batch) {
  const Index rows = batch.rows();
  const auto all_rows = [&](double divisor, double accumulation) {
    return Normalization{Eigen::ArrayXd::Constant(rows, 1.0 / divisor), accumulation};
  };
  const double count = static_cast<double>(rows);
  switch (o.loss_type) {
    case LossType::grpo:
    case LossType::sapo: {
      Normalization n = all_rows(count, o.accumulation());
      for (Index i = 0; i < rows; ++i) n.row_weight[i] /= at_least_one(row_length(batch.mask, i));
      return n;
    }
    case LossType::bnpo:
      return all_rows(at_least_one(token_count(batch.mask)), o.accumulation());
    case LossType::dr_grpo:
      return all_rows(count * static_cast<double>(o.max_completion_length), o.accumulation());
    case LossType::luspo:
      return all_rows(count, o.accumulation());
    default:
      break;
  }
  double divisor =
      at_least_one(batch.num_items_in_batch ? static_cast<double>(*batch.num_items_in_batch) : token_count(batch.mask));
  if (o.training)
    divisor *= o.accumulation() / static_cast<double>(o.steps_per_generation.value_or(o.gradient_accumulation_steps));
  return all_rows(divisor, 1.0);
}

}  // namespace moxie::grpo
