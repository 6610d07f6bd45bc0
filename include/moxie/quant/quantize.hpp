#pragma once
// Whole matrices: f32 rows to any writable format and back, tensors of files to f32, and FP8 weights with block scales.
//
// Errors: UnsupportedError names the formats that would be right; ArgumentError says which element cannot be encoded;
// FormatError says which tensor of which file does not fit.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/quant/formats.hpp>

namespace moxie {

/// The largest magnitude that encode_rows accepts: scales (and F16 itself) are f16, whatever the format.
constexpr float largest_encodable(Dtype dtype) noexcept {
  if (dtype == Dtype::F32) return 0x1.fffffep127f;
  if (dtype == Dtype::BF16) return 0x1.fep127f;
  return 65504;
}

namespace detail {
inline void check_encoding(Dtype dtype, Index columns) {
  check_row_length(dtype, columns);
  with_format(dtype, [&]<class Format>(Format) { check_encodable<Format>(); });
}
}  // namespace detail

/// x [rows, columns] to rows * row_bytes(dtype, columns) bytes at `dst`, one row after another.
/// Throws UnsupportedError; ArgumentError when columns is no multiple of the type's block, or when an element is NaN, infinite
/// or above largest_encodable(dtype) in magnitude. What `dst` holds after an error is unspecified.
inline void encode_rows(Dtype dtype, const ConstRows& x, std::byte* dst, Threads threads = Threads(1)) {
  detail::check_encoding(dtype, x.cols());
  const float limit = largest_encodable(dtype);
  const Index n = x.cols();
  threads.for_each(x.rows(), [&](std::int64_t r, int) {
    const float* row = x.data() + r * x.outerStride();
    for (Index c = 0; c < n; ++c)
      if (!(std::fabs(row[c]) <= limit))
        throw ArgumentError(concat("row ", r, ", column ", c, ": ", row[c], " cannot be encoded as ", dtype_text(dtype),
                                   "; weights must be finite, of magnitude ", limit, " at most"));
    encode_row(dtype, row, dst + static_cast<std::uint64_t>(r) * row_bytes(dtype, static_cast<std::uint64_t>(n)), n);
  });
}

/// The same, into a new buffer.
inline std::vector<std::byte> encode_matrix(Dtype dtype, const ConstRows& x, Threads threads = Threads(1)) {
  detail::check_encoding(dtype, x.cols());
  std::vector<std::byte> bytes(static_cast<std::uint64_t>(x.rows()) * row_bytes(dtype, static_cast<std::uint64_t>(x.cols())));
  encode_rows(dtype, x, bytes.data(), threads);
  return bytes;
}

/// Rows as they lie in a file, each row_bytes(dtype, columns) bytes, to x [rows, columns].
/// Throws UnsupportedError, or ArgumentError when columns is no multiple of the type's block.
inline void decode_rows(Dtype dtype, const std::byte* src, MutRows x, Threads threads = Threads(1)) {
  detail::check_row_length(dtype, x.cols());
  threads.for_each(x.rows(), [&](std::int64_t r, int) {
    const std::uint64_t stride = row_bytes(dtype, static_cast<std::uint64_t>(x.cols()));
    decode_row(dtype, src + static_cast<std::uint64_t>(r) * stride, x.data() + r * x.outerStride(), x.cols());
  });
}

namespace detail {
/// That the tensor holds rows of whole blocks, and its mapped bytes are those of its shape.
inline void check_tensor_rows(const TensorView& tensor) {
  if (tensor.panel_bytes != 0)
    throw UnsupportedError(tensor.place(),
                           "lies packed in the file, and its rows cannot be read one by one; use the model it was packed from");
  const DtypeInfo& format = format_info(tensor.dtype, tensor.place());
  const auto block = static_cast<std::int64_t>(format.block_elements);
  std::uint64_t expected = format.block_bytes;
  bool whole = tensor.columns() % block == 0;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    const std::int64_t size = i + 1 < tensor.shape.size() ? tensor.shape[i] : tensor.shape[i] / block;
    whole = whole && size >= 0 && !__builtin_mul_overflow(expected, static_cast<std::uint64_t>(size), &expected);
  }
  if (!whole || expected != tensor.bytes)
    throw FormatError(tensor.place(), concat("shape ", tensor.shape_text(), " of ", format.name, " does not fit its ",
                                             tensor.bytes, " bytes; rows must be a multiple of ", block, " elements"));
}
}  // namespace detail

/// All elements of a tensor of any format, in order, to `dst` (tensor.elements() floats). F8_E4M3 is taken without a scale.
/// Throws UnsupportedError or FormatError at the tensor's place.
inline void dequantize(const TensorView& tensor, float* dst, Threads threads = Threads(1)) {
  detail::check_tensor_rows(tensor);
  threads.for_each(tensor.rows(), [&](std::int64_t r, int) {
    decode_row(tensor.dtype, tensor.data + static_cast<std::uint64_t>(r) * tensor.row_stride(), dst + r * tensor.columns(),
               tensor.columns());
  });
}

/// Side of the square blocks of weights that share a scale in FP8 checkpoints (DeepSeek-V3, config `weight_block_size`).
inline constexpr std::int64_t fp8_block = 128;

/// Rows [row0, row0 + rows) of an FP8 weight [R, C] with block scales [ceil(R / 128), ceil(C / 128)]:
/// dst[r][c] = e4m3(weight[row0 + r][c]) * scale_inv[(row0 + r) / 128][c / 128], [rows, C]. The scales may be of any float type.
/// Throws UnsupportedError or FormatError at a tensor's place, ArgumentError when the rows are not rows of the weight.
inline void decode_fp8_blocks(const TensorView& weight, const TensorView& scale_inv, std::int64_t row0, std::int64_t rows,
                              float* dst) {
  if (weight.dtype != Dtype::F8_E4M3 || weight.shape.size() != 2)
    throw FormatError(weight.place(), concat("an FP8 weight with block scales must be an F8_E4M3 matrix, got ",
                                             dtype_text(weight.dtype), " ", weight.shape_text()));
  detail::check_tensor_rows(weight);
  detail::check_tensor_rows(scale_inv);
  const std::int64_t columns = weight.columns();
  const auto blocks = [](std::int64_t n) { return n / fp8_block + (n % fp8_block != 0); };
  if (scale_inv.shape != std::vector{blocks(weight.rows()), blocks(columns)})
    throw FormatError(scale_inv.place(),
                      concat("block scales of shape ", scale_inv.shape_text(), "; a weight of ", weight.shape_text(), " needs [",
                             blocks(weight.rows()), ", ", blocks(columns), "]"));
  if (row0 < 0 || rows < 0 || rows > weight.rows() - row0)
    throw ArgumentError(concat("rows ", row0, " to ", row0, " + ", rows, " of a weight of ", weight.rows(), " rows"));
  std::vector<float> scales(static_cast<std::size_t>(scale_inv.columns()));
  for (std::int64_t r = row0; r < row0 + rows; ++r, dst += columns) {
    if (r == row0 || r % fp8_block == 0)
      decode_row(scale_inv.dtype, scale_inv.data + static_cast<std::uint64_t>(r / fp8_block) * scale_inv.row_stride(),
                 scales.data(), scale_inv.columns());
    F8_E4M3::decode(weight.data + r * columns, dst, columns);
    for (std::int64_t begin = 0; begin < columns; begin += fp8_block) {
      const float scale = scales[static_cast<std::size_t>(begin / fp8_block)];
      const std::int64_t end = std::min(columns, begin + fp8_block);
      for (std::int64_t c = begin; c < end; ++c) dst[c] *= scale;
    }
  }
}

}  // namespace moxie
