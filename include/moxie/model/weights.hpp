#pragma once
// From the tensors of a file to packed matrices and float vectors: FP8 block scales, splitting and transposing for the latent
// form, matrices whose rows do not lie one after the other.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/matrix.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/tensors.hpp>
#include <moxie/quant/quantize.hpp>

namespace moxie {

/// Rows [first, first + count) of a weight as rows of its type: where they are, or, of a strided one, copied into `memory`.
inline TensorView plain_rows(const Weight& weight, Index first, Index count, std::vector<std::byte>& memory) {
  if (!weight.strided) return weight.tensor.slice_rows(first, count);
  const StridedBlocks& from = *weight.strided;
  const DtypeInfo& info = dtype_info(weight.tensor.dtype);
  const std::size_t block = info.block_bytes;
  const Index blocks = weight.tensor.columns() / info.block_elements;
  TensorView rows = weight.tensor;
  rows.shape = {count, weight.tensor.columns()};
  rows.bytes = static_cast<std::uint64_t>(count) * rows.row_stride();
  memory.resize(static_cast<std::size_t>(rows.bytes));
  rows.data = memory.data();
  const auto copy = [&](auto&& copy_block) {
    constexpr Index together = 32;  // neighbours of a transposed matrix share cache lines
    for (Index begin = 0; begin < count; begin += together)
      for (Index c = 0; c < blocks; ++c)
        for (Index r = begin; r < std::min(count, begin + together); ++r)
          copy_block(static_cast<std::size_t>(from.first + (first + r) * from.row_step + c * from.column_step),
                     memory.data() + static_cast<std::size_t>(r * blocks + c) * block);
  };
  if (from.exponents) {
    copy([&](std::size_t at, std::byte* to) {  // GGUF's block: the exponent, then byte j with elements j and j + 16
      const std::byte* pairs = from.tensor.data + at * 16;
      *to = from.exponents->data[at];
      for (std::size_t j = 0; j < 16; ++j) {
        const auto shift = 4 * (j % 2);
        to[1 + j] = (pairs[j / 2] >> shift & std::byte{15}) | pairs[8 + j / 2] >> shift << 4;
      }
    });
  } else if (block == 2) {
    copy([&](std::size_t at, std::byte* to) { std::memcpy(to, from.tensor.data + at * 2, 2); });
  } else {
    copy([&](std::size_t at, std::byte* to) { std::memcpy(to, from.tensor.data + at * block, block); });
  }
  return rows;
}

/// Tells `source` that a weight was read.
inline void release(const TensorMap& source, const Weight& weight) {
  source.release(weight.strided ? weight.strided->tensor : weight.tensor);
  if (weight.strided && weight.strided->exponents) source.release(*weight.strided->exponents);
}

/// Rows [first, first + count) of a weight as floats, [count, inputs].
inline RowMatrix load_rows(const Weight& weight, Index first, Index count) {
  RowMatrix rows(count, weight.tensor.columns());
  if (weight.scale_inv) {
    decode_fp8_blocks(weight.tensor, *weight.scale_inv, first, count, rows.data());
  } else {
    std::vector<std::byte> memory;
    dequantize(plain_rows(weight, first, count, memory), rows.data());
  }
  return rows;
}

/// All elements of a weight as [rows, elements / rows], whatever its shape in the file; of a strided one that is its own.
inline RowMatrix load_rows(const Weight& weight, Index rows) {
  Weight matrix = weight;
  matrix.tensor.shape = {rows, weight.tensor.elements() / rows};
  return load_rows(matrix, 0, rows);
}

/// The element of which a file holds `stored`.
inline float from_stored(StoredAs as, float stored) noexcept {
  return as == StoredAs::minus_one ? 1.0f + stored : as == StoredAs::log_of_minus ? -std::exp(stored) : stored;
}

inline Vector load_vector(const Weight& weight) {
  Vector values(weight.tensor.elements());
  dequantize(weight.tensor, values.data());
  for (float& value : values) value = from_stored(weight.stored_as, value);
  return values;
}

/// A matrix ready to multiply, with its low-rank part; FP8 keeps its codes and block scales. A strided one is copied first.
inline Linear load_matrix(const Context& context, const Weight& weight, const TensorMap& source) {
  Linear linear;
  if (weight.strided) {
    std::vector<std::byte> memory;
    linear = Linear::pack(context, plain_rows(weight, 0, weight.tensor.rows(), memory));
    release(source, weight);
  } else {
    linear = Linear::pack(context, weight.tensor, &source, weight.scale_inv ? &*weight.scale_inv : nullptr);
  }
  linear.set_low_rank(weight.low_rank);
  return linear;
}

/// The key and value projections of latent attention for each head: k_b[h] [kv_lora, nope] (absorbed into the query) and v_b[h]
/// [v, kv_lora].
struct LatentProjections {
  std::vector<Linear> k_b, v_b;
};

/// From split tensors (k_b transposed, as GGUF has them), or from kv_b [heads * (nope + v), kv_lora]. A transposed k_b keeps its
/// type when that is a float type; quantized blocks run along the other dimension, so they become F32, which loses nothing.
/// A low-rank part of kv_b becomes one for each head: of k_b[h], whose matrix is transposed, b and a change places.
inline LatentProjections load_latent_projections(const Context& context, const LayerTensors& tensors, Index heads, Index nope,
                                                 Index v, Index kv_lora, const TensorMap& source) {
  LatentProjections projections;
  for (Index h = 0; h < heads; ++h) {
    if (tensors.kv_b) {
      const Weight& kv_b = *tensors.kv_b;
      const Dtype dtype = kv_b.tensor.dtype;
      const bool is_float = !kv_b.scale_inv && dtype_info(dtype).block_elements == 1;
      const RowMatrix keys = load_rows(kv_b, h * (nope + v), nope);
      const RowMatrix transposed = keys.transpose();
      projections.k_b.push_back(Linear::from_rows(context, is_float ? dtype : Dtype::F32, transposed));
      if (kv_b.scale_inv) {
        projections.v_b.push_back(Linear::from_rows(context, Dtype::F32, load_rows(kv_b, h * (nope + v) + nope, v)));
      } else {
        projections.v_b.push_back(Linear::pack(context, kv_b.tensor.slice_rows(h * (nope + v) + nope, v)));
      }
    } else {
      TensorView k_b = tensors.k_b->tensor, v_b = tensors.v_b->tensor;
      k_b.shape = {heads * kv_lora, nope};
      v_b.shape = {heads * v, kv_lora};
      projections.k_b.push_back(Linear::pack(context, k_b.slice_rows(h * kv_lora, kv_lora), &source));
      projections.v_b.push_back(Linear::pack(context, v_b.slice_rows(h * v, v), &source));
    }
  }
  if (tensors.kv_b) source.release(tensors.kv_b->tensor);
  if (tensors.kv_b_low_rank) {
    const LowRank& whole = *tensors.kv_b_low_rank;
    const RowMatrix a = whole.a(), a_transposed = a.transpose();  // [rank, kv_lora]
    for (Index h = 0; h < heads; ++h) {
      const auto i = static_cast<std::size_t>(h);
      const auto keys = whole.b().middleCols(h * (nope + v), nope), values = whole.b().middleCols(h * (nope + v) + nope, v);
      projections.k_b[i].set_low_rank(std::make_shared<const LowRank>(context, keys, a_transposed, whole.scale()));
      projections.v_b[i].set_low_rank(std::make_shared<const LowRank>(context, a, values.transpose(), whole.scale()));
    }
  }
  return projections;
}

}  // namespace moxie
