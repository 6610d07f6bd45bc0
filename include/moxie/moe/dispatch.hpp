#pragma once
// Dispatch: the (row, slot) pairs of a batch grouped by expert, by a stable counting sort.
//
// Position p of the grouped order belongs to expert e where offset(e) <= p < offset(e + 1); inside an expert, rows ascend.

#include <cstdint>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>

namespace moxie {

/// Reusable: its memory grows to the largest batch seen.
class Dispatch {
 public:
  /// Groups ids [rows, top_k], each in [0, n_experts). Throws ArgumentError for an id out of range.
  void assign(const std::int32_t* ids, Index rows, Index top_k, Index n_experts) {
    const Index n = rows * top_k;
    offsets_.assign(static_cast<std::size_t>(n_experts) + 1, 0);
    rows_.resize(static_cast<std::size_t>(n));
    positions_.resize(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i) {
      if (ids[i] < 0 || ids[i] >= n_experts)
        throw ArgumentError(
            concat("expert id ", ids[i], " of row ", i / top_k, " is out of range, there are ", n_experts, " experts"));
      ++offsets_[static_cast<std::size_t>(ids[i]) + 1];
    }
    for (std::size_t e = 1; e < offsets_.size(); ++e) offsets_[e] += offsets_[e - 1];
    next_.assign(offsets_.begin(), offsets_.end() - 1);
    for (Index i = 0; i < n; ++i) {
      const Index p = next_[static_cast<std::size_t>(ids[i])]++;
      rows_[static_cast<std::size_t>(p)] = static_cast<std::int32_t>(i / top_k);
      positions_[static_cast<std::size_t>(i)] = p;
    }
  }

  Index n_experts() const noexcept { return static_cast<Index>(offsets_.size()) - 1; }
  Index size() const noexcept { return static_cast<Index>(rows_.size()); }
  Index offset(Index expert) const noexcept { return offsets_[static_cast<std::size_t>(expert)]; }
  Index count(Index expert) const noexcept { return offset(expert + 1) - offset(expert); }
  /// The rows of an expert, ascending, [count(expert)].
  const std::int32_t* rows(Index expert) const noexcept { return rows_.data() + offset(expert); }
  /// Position of (row, slot), [rows, top_k].
  const Index* positions() const noexcept { return positions_.data(); }

 private:
  std::vector<Index> offsets_{0}, next_, positions_;
  std::vector<std::int32_t> rows_;
};

}  // namespace moxie
