#pragma once
// Arrays over the completions of a GRPO batch: B rows, one for each completion, of T columns, one for each token; shorter
// completions are padded. A mask m is true where a token counts; what stands in the padding does not matter.
//
// A quantity has one value for each token, [B, T], or one for each row, [B, 1]; the latter holds for every token of its row.

#include <algorithm>

#include <Eigen/Core>

#include <moxie/core/matrix.hpp>

namespace moxie::grpo {

using TokenArray = Eigen::Array<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using TokenMask = Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstTokens = Eigen::Ref<const TokenArray>;
using ConstMask = Eigen::Ref<const TokenMask>;

/// The value that holds for a token, in an array [B, T] or [B, 1].
template <class Values>
auto at(const Eigen::DenseBase<Values>& values, Index row, Index token) {
  return values.derived()(row, values.cols() == 1 ? 0 : token);
}

/// sum of v over the tokens of row i with m = 1; v is called with the token's column.
template <class Value>
double sum_over_row(const ConstMask& mask, Index row, Value&& value) {
  double sum = 0.0;
  for (Index t = 0; t < mask.cols(); ++t)
    if (mask(row, t)) sum += value(t);
  return sum;
}

/// Number of tokens of row i with m = 1.
inline double row_length(const ConstMask& mask, Index row) {
  return sum_over_row(mask, row, [](Index) { return 1.0; });
}

/// Number of tokens with m = 1.
inline double token_count(const ConstMask& mask) {
  double count = 0.0;
  for (Index i = 0; i < mask.rows(); ++i) count += row_length(mask, i);
  return count;
}

/// What a sum over `count` values is divided by for their mean: the mean of none is 0.
inline double at_least_one(double count) { return std::max(1.0, count); }

}  // namespace moxie::grpo
