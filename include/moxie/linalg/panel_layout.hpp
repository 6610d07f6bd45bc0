#pragma once
// What tells two layouts of panels apart: a hash of how a format's kernels pack a fixed matrix. It changes with the layout by
// itself, so that panels in a file can only be read by kernels that would have packed them the same way.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <moxie/core/dtype.hpp>
#include <moxie/core/hash.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

/// Of one format on one architecture. Two widths, as a layout may depend on where in a row a block lies.
inline std::uint64_t panel_layout(const kernels::FormatKernels& kernels) {
  std::uint64_t hash = 0;
  for (const std::int64_t inputs : {256, 1280}) {
    const auto row = static_cast<std::size_t>(row_bytes(kernels.dtype, static_cast<std::uint64_t>(inputs)));
    std::vector<std::byte> bytes(row * kernels::panel_rows);
    std::uint32_t state = 1;
    for (std::byte& byte : bytes) byte = static_cast<std::byte>((state = state * 1664525u + 1013904223u) >> 24);
    const std::byte* rows[kernels::panel_rows];
    for (std::size_t r = 0; r < kernels::panel_rows; ++r) rows[r] = bytes.data() + r * row;
    AlignedBuffer<std::byte> panel(static_cast<std::size_t>(kernels.panel_bytes(inputs)));
    if (kernels.pack_scaled) {
      const std::vector<float> scales(static_cast<std::size_t>(inputs / 128), 0.75f);
      kernels.pack_scaled(rows, inputs, scales.data(), panel.data());
    } else {
      kernels.pack(rows, inputs, panel.data());
    }
    hash = xxh64(panel.data(), panel.size(), hash);
  }
  return hash;
}

}  // namespace moxie
