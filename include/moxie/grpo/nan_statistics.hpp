#pragma once
// Mean and standard deviation of those numbers that are not NaN. NaN where they do not exist.

#include <cmath>
#include <limits>

#include <Eigen/Core>

namespace moxie::grpo {

/// Of the numbers that are there.
struct NanStatistics {
  double count = 0.0;
  double sum = 0.0;
  double mean = std::numeric_limits<double>::quiet_NaN();
  double std = std::numeric_limits<double>::quiet_NaN();  ///< sqrt( sum (v - mean)^2 / (count - 1) ), of at least two
};

/// Of a vector; NaN counts nowhere.
template <class Values>
NanStatistics nan_statistics(const Eigen::DenseBase<Values>& values) {
  NanStatistics s;
  double squares = 0.0;
  for (Eigen::Index i = 0; i < values.size(); ++i)
    if (const double v = values.derived()[i]; !std::isnan(v)) {
      s.count += 1.0;
      s.sum += v;
    }
  if (s.count > 0.0) s.mean = s.sum / s.count;
  for (Eigen::Index i = 0; i < values.size(); ++i)
    if (const double v = values.derived()[i]; !std::isnan(v)) squares += (v - s.mean) * (v - s.mean);
  if (s.count > 1.0) s.std = std::sqrt(squares / (s.count - 1.0));
  return s;
}

}  // namespace moxie::grpo
