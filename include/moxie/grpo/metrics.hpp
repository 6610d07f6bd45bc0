#pragma once
// What a GRPO trainer logs, under TRL's names, and the means that TRL takes over tokens and rows. Values may be NaN where there
// is nothing to measure, as in TRL.

#include <cmath>
#include <limits>
#include <map>
#include <string>

#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

using Metrics = std::map<std::string, double>;

/// sum_it m v / max(1, sum_it m) for v [B, T]; for v [B, 1] the mean over all rows, also those without tokens.
inline double masked_mean(const ConstTokens& values, const ConstMask& mask) {
  double sum = 0.0;
  for (Index i = 0; i < values.rows(); ++i)
    sum += values.cols() == 1 ? values(i, 0) : sum_over_row(mask, i, [&](Index t) { return values(i, t); });
  return sum / (values.cols() == 1 ? static_cast<double>(values.rows()) : at_least_one(token_count(mask)));
}

/// Smallest and largest row mean of v, over sum_t m v / sum_t m for v [B, T], where rows without tokens are left out, and over v
/// itself for v [B, 1]. NaN where no row is left.
struct RowMeanRange {
  double smallest = std::numeric_limits<double>::quiet_NaN();
  double largest = std::numeric_limits<double>::quiet_NaN();
};

/// Of v [B, T] or [B, 1].
inline RowMeanRange row_mean_range(const ConstTokens& values, const ConstMask& mask) {
  RowMeanRange range;
  for (Index i = 0; i < values.rows(); ++i) {
    const double mean =
        values.cols() == 1 ? values(i, 0) : sum_over_row(mask, i, [&](Index t) { return values(i, t); }) / row_length(mask, i);
    range.smallest = std::fmin(range.smallest, mean);  // fmin and fmax prefer numbers to NaN
    range.largest = std::fmax(range.largest, mean);
  }
  return range;
}

}  // namespace moxie::grpo
