#pragma once
// From a panel's order of floats, [inputs][16 rows], to rows: 4 x 4 blocks in registers.

#include <cstdint>
#include <cstring>

#include <moxie/core/matrix.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

/// rows[r * stride + i] = panel[i * 16 + r] for r < n_rows, i < n.
inline void panel_to_rows(const float* panel, Index n, Index n_rows, float* rows, Index stride) noexcept {
  using Four [[gnu::vector_size(16)]] = float;
  constexpr Index lanes = kernels::panel_rows;
  const Index whole_rows = n_rows / 4 * 4, whole = n / 4 * 4;
  for (Index i = 0; i < whole; i += 4)
    for (Index r = 0; r < whole_rows; r += 4) {
      Four in[4];
      for (Index j = 0; j < 4; ++j) std::memcpy(&in[j], panel + (i + j) * lanes + r, sizeof(Four));
      const Four low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
      const Four out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (Index j = 0; j < 4; ++j) std::memcpy(rows + (r + j) * stride + i, &out[j], sizeof(Four));
    }
  for (Index r = 0; r < n_rows; ++r)
    for (Index i = r < whole_rows ? whole : 0; i < n; ++i) rows[r * stride + i] = panel[i * lanes + r];
}

}  // namespace moxie
