#pragma once
// Eigen views at moxie's interface: a batch of rows is a row-major float matrix, one token a row.

#include <cstdint>
#include <Eigen/Core>

namespace moxie {

using Index = Eigen::Index;
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXf;
using RowIds = Eigen::Matrix<std::int32_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Rows that are read, [rows, columns]; the columns of a row are contiguous, rows may be strided.
using ConstRows = Eigen::Ref<const RowMatrix, 0, Eigen::OuterStride<>>;
/// Rows that are written.
using MutRows = Eigen::Ref<RowMatrix, 0, Eigen::OuterStride<>>;

}  // namespace moxie
