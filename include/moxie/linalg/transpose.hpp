#pragma once
// From rows of floats to a panel's order, [inputs][16 rows]: 4 x 4 blocks in registers.

#include <cstdint>
#include <cstring>

#include <moxie/core/matrix.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

/// panel[i * 16 + r] = rows[r * stride + i] for r < n_rows, 0 for n_rows <= r < 16; i < n, a multiple of 4.
inline void rows_to_panel(const float* rows, Index stride, Index n_rows, Index n, float* panel) noexcept {
  using Four [[gnu::vector_size(16)]] = float;
  constexpr Index lanes = kernels::panel_rows;
  for (Index r = 0; r < lanes; r += 4)
    for (Index i = 0; i < n; i += 4) {
      Four in[4] = {};
      for (Index j = 0; j < 4 && r + j < n_rows; ++j) std::memcpy(&in[j], rows + (r + j) * stride + i, sizeof(Four));
      const Four low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
      const Four out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (Index j = 0; j < 4; ++j) std::memcpy(panel + (i + j) * lanes + r, &out[j], sizeof(Four));
    }
}

}  // namespace moxie
