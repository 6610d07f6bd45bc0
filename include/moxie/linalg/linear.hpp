#pragma once
// Linear: a weight matrix [outputs, inputs] of any format, packed, times a batch of rows.
//
// F32 and BF16 matrices of files with 64 outputs or more go through oneDNN on the fast path (Activations::int8), where it
// supports them; everything else, and the reference path, through panels and the kernels.
//
// y[r][o] = sum over i of w[o][i] * x[r][i]. Every element has one order of summation, fixed by the matrix's shape, so its
// bits depend neither on the other rows, nor on how columns are shared out to threads.
//
// A Linear may carry a low-rank part (low_rank.hpp), y += b (scale * (a x)): forward() adds it, and multiply()
// where its caller gives it u = scale * (a x).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/low_rank.hpp>
#include <moxie/linalg/onednn.hpp>
#include <moxie/linalg/prepared_rows.hpp>
#include <moxie/quant/formats.hpp>
#include <moxie/quant/quantize.hpp>

namespace moxie {

class Linear {
 public:
  Linear() = default;

  /// Packs the matrix of a file or of memory, [outputs, inputs]; `source` (may be nullptr) is told which mapped bytes are done
  /// with. FP8 (e4m3) may have `scale_inv`, F32 [ceil(outputs / 128), ceil(inputs / 128)], the factors of its 128 x 128 blocks.
  /// A weight that lies in panels is used where it is, in the memory that `source` keeps; panels of FP8 hold their factors.
  /// Throws UnsupportedError when no kernel knows the tensor's type, ArgumentError when it is no matrix or `scale_inv` does not
  /// fit it, FormatError where its panels are not those of the kernels.
  static Linear pack(const Context& context, const TensorView& weight, const TensorMap* source = nullptr,
                     const TensorView* scale_inv = nullptr) {
    if (weight.shape.size() != 2)
      throw ArgumentError(weight.place(), concat("a matrix [outputs, inputs] is needed, got shape ", weight.shape_text()));
    Linear linear(context, weight.dtype, weight.shape[0], weight.shape[1], weight.place());
    if (scale_inv) linear.check_scales(weight, *scale_inv);
    if (weight.panel_bytes != 0) {
      linear.take_panels(weight, source);
      return linear;
    }
    if (context.activations == Activations::int8 && OneDnnMatrix::supports(weight.dtype) &&
        linear.outputs_ >= OneDnnMatrix::chunk_outputs) {
      linear.pack_onednn(context, weight, source);
      return linear;
    }
    linear.pack_panels(
        context, [&](Index row, std::byte*) { return weight.data + static_cast<std::uint64_t>(row) * weight.row_stride(); },
        [&](Index first, Index count) {
          if (source) source->release(weight.slice_rows(first, count));
        },
        0, scale_inv);
    return linear;
  }

  /// Encodes float rows [outputs, inputs] as `dtype` and packs them. Throws UnsupportedError for a type that cannot be encoded,
  /// ArgumentError when `inputs` is no multiple of its block, or an element is above largest_encodable(dtype) in magnitude or,
  /// but for a float type, not finite.
  static Linear from_rows(const Context& context, Dtype dtype, ConstRows weight) {
    detail::check_encoding(dtype, weight.cols());
    Linear linear(context, dtype, weight.rows(), weight.cols(), {});
    const auto bytes = static_cast<std::size_t>(row_bytes(dtype, static_cast<std::uint64_t>(weight.cols())));
    linear.pack_panels(
        context,
        [&](Index row, std::byte* scratch) -> const std::byte* {
          check_magnitudes(dtype, weight, row);
          encode_row(dtype, weight.row(row).data(), scratch, weight.cols());
          return scratch;
        },
        [](Index, Index) {}, bytes);
    return linear;
  }

  Index outputs() const noexcept { return outputs_; }
  Index inputs() const noexcept { return inputs_; }
  Dtype dtype() const noexcept { return dtype_; }
  bool empty() const noexcept { return outputs_ == 0; }
  std::size_t bytes() const noexcept { return matrix_bytes() + (low_rank_ ? low_rank_->bytes() : 0); }
  /// Column ranges of multiply() begin at multiples of this.
  Index granularity() const noexcept { return onednn_ ? OneDnnMatrix::chunk_outputs : kernels::panel_rows; }
  /// Which form of activations multiply() reads.
  bool takes_int8(Activations activations) const noexcept { return activations == Activations::int8 && kernels_->int8; }
  /// Whether floats are read: by multiply(), or by the low-rank part.
  bool takes_f32(Activations activations) const noexcept { return !takes_int8(activations) || low_rank_; }

  /// Its low-rank part; nullptr: none.
  const LowRank* low_rank() const noexcept { return low_rank_.get(); }
  Index rank() const noexcept { return low_rank_ ? low_rank_->rank() : 0; }
  /// `part` may be nullptr. Throws ArgumentError unless it fits the matrix.
  void set_low_rank(std::shared_ptr<const LowRank> part) {
    if (part && (part->outputs() != outputs_ || part->inputs() != inputs_))
      throw ArgumentError(concat("a low-rank part of [", part->outputs(), ", ", part->inputs(), "] was given to a matrix [",
                                 outputs_, ", ", inputs_, "]"));
    low_rank_ = std::move(part);
  }

  /// The packed weights of a matrix that oneDNN does not multiply.
  std::span<const std::byte> panels() const noexcept { return {panels_.get(), panels_ ? matrix_bytes() : 0}; }

  /// Columns [begin, end) of rows [first_row, first_row + n_rows), from any thread. Row i of them goes to out + i * out_stride,
  /// column 0 at its start. `u` [n_rows, rank] is LowRank::project() of these rows; nullptr: the matrix alone. `then`: weights that
  /// the thread will read next, memory_of() their matrix.
  void multiply(const kernels::ActivationRows& a, Activations activations, Index first_row, Index n_rows, Index begin, Index end,
                float* out, Index out_stride, const float* u = nullptr, const std::byte* then = nullptr) const {
    if (onednn_) {
      onednn_->multiply(a.x + first_row * padded_inputs(), n_rows, begin, end, out, out_stride);
    } else {
      const kernels::MatmulArgs args{panels_.get(),
                                     outputs_,
                                     padded_inputs(),
                                     begin / kernels::panel_rows,
                                     (end + kernels::panel_rows - 1) / kernels::panel_rows,
                                     a,
                                     first_row,
                                     n_rows,
                                     out,
                                     out_stride,
                                     nullptr,
                                     then,
                                     kernels_->tuning};
      (takes_int8(activations) ? kernels_->int8 : kernels_->f32)(args);
    }
    if (u) low_rank_->add(u, n_rows, begin, end, out, out_stride);
  }

  /// Where the weights of outputs from `begin` on lie, for multiply() of what is read before them; nullptr: unknown.
  const std::byte* memory_of(Index begin) const noexcept {
    return panels_ && begin < outputs_ ? panels_.get() + static_cast<std::size_t>(begin / kernels::panel_rows) * panel_bytes()
                                       : nullptr;
  }

  /// What multiply() leaves of n rows of activations, [n, inputs padded to a multiple of 32], so that the product with it can be
  /// added. false, and nothing is written, where it takes them whole: everywhere but with bf16 weights in oneDNN.
  bool rest(const kernels::ActivationRows& a, Index n, float* out) const noexcept {
    return onednn_ && onednn_->rest(a.x, n * padded_inputs(), out);
  }

  /// Inputs that unpack() begins at are multiples of this.
  static constexpr Index unpack_inputs = 8 * kernels::block_k;

  /// What the weights are, exactly, transposed: out[i * stride + o] is the weight of input first + i, i < count, and output begin
  /// + o; [begin, end) as in multiply, count a multiple of unpack_inputs, or up to inputs(). `out` is aligned to 64 bytes. From
  /// any thread.
  void unpack(Index begin, Index end, Index first, Index count, float* out, Index stride) const {
    if (onednn_) return onednn_->unpack(begin, end, first, count, out, stride);
    alignas(memory_alignment) float blocks[unpack_inputs * kernels::panel_rows];
    const auto byte_of = [&](Index input) {
      return panel_bytes() * static_cast<std::size_t>(input) / static_cast<std::size_t>(padded_inputs());
    };
    const std::size_t near = byte_of(first), far = byte_of(std::min(first + count, padded_inputs()));
    for (Index o = begin; o < end; o += kernels::panel_rows) {
      const std::byte* panel = panels_.get() + static_cast<std::size_t>(o / kernels::panel_rows) * panel_bytes();
      const Index outputs = std::min<Index>(kernels::panel_rows, end - o);
      if (o + kernels::panel_rows < end)  // the next panel's inputs lie too far away for the processor to expect them
        for (std::size_t at = near; at < far; at += 64) __builtin_prefetch(panel + panel_bytes() + at);
      for (Index i = 0; i < count; i += unpack_inputs) {
        const Index here = std::min(unpack_inputs, count - i), block = (first + i) / kernels::block_k;
        const auto n = static_cast<int>((here + kernels::block_k - 1) / kernels::block_k);
        float* to = out + i * stride + (o - begin);
        if (outputs == kernels::panel_rows && here % kernels::block_k == 0 && stride % kernels::panel_rows == 0) {
          kernels_->unpack(panel, padded_inputs(), block, n, to, stride);
        } else {
          kernels_->unpack(panel, padded_inputs(), block, n, blocks, kernels::panel_rows);
          for (Index k = 0; k < here; ++k)
            std::memcpy(to + k * stride, blocks + k * kernels::panel_rows, static_cast<std::size_t>(outputs) * sizeof(float));
        }
      }
    }
  }

  /// All columns of all rows, with the low-rank part, shared out to the threads by column ranges.
  void forward(const Context& context, const PreparedRows& x, float* out, Index out_stride) const {
    // Taking a range costs nothing beside 64 columns, but where oneDNN's rows are split into bf16 parts for each.
    const Index together =
        onednn_ && dtype_ == Dtype::BF16 ? std::clamp<Index>(outputs_ / (3 * 64 * context.threads.count()), 1, 4) : 1;
    const Index unit = together * std::max<Index>(64, granularity());
    const Index units = (outputs_ + unit - 1) / unit;
    AlignedBuffer<float> projected;
    if (low_rank_) {
      projected.resize(static_cast<std::size_t>(x.rows() * rank()));
      low_rank_->project(context, x, projected.data());
    }
    context.threads.for_each_range(
        units,
        [&](std::int64_t begin, std::int64_t end, int) {
          multiply(x.view(), context.activations, 0, x.rows(), begin * unit, std::min(outputs_, end * unit), out, out_stride,
                   projected.data(), memory_of(end * unit));
        },
        x.rows() * outputs_ * inputs_ < worth_a_team ? std::max<Index>(1, units) : 1);
  }

 private:
  std::size_t matrix_bytes() const noexcept {
    return onednn_ ? onednn_->bytes() : panels_ ? panel_bytes() * static_cast<std::size_t>(panels_in(outputs_)) : 0;
  }
  Linear(const Context& context, Dtype dtype, Index outputs, Index inputs, const Place& place)
      : kernels_(context.kernels->find(dtype)), dtype_(dtype), outputs_(outputs), inputs_(inputs) {
    if (!kernels_) throw UnsupportedError(place, concat("no matrix product for the weight type ", dtype_info(dtype).name));
    if (inputs < 1) throw ArgumentError(place, "a matrix needs at least one input");
    if (inputs % dtype_info(dtype).block_elements != 0)
      throw ArgumentError(place, concat("rows of ", inputs, " inputs are no multiple of the block of ",
                                        dtype_info(dtype).block_elements, " of ", dtype_info(dtype).name));
  }
  Index padded_inputs() const noexcept { return kernels::padded(inputs_); }

  static Index panels_in(Index outputs) noexcept { return (outputs + kernels::panel_rows - 1) / kernels::panel_rows; }
  std::size_t panel_bytes() const noexcept { return static_cast<std::size_t>(kernels_->panel_bytes(padded_inputs())); }

  void check_scales(const TensorView& weight, const TensorView& scale_inv) const {
    if (!kernels_->pack_scaled) throw ArgumentError(weight.place(), "only F8_E4M3 weights have block scales");
    const auto blocks = [](Index n) { return (n + fp8_block - 1) / fp8_block; };
    if (scale_inv.dtype != Dtype::F32 || scale_inv.shape != std::vector{blocks(outputs_), blocks(inputs_)})
      throw ArgumentError(scale_inv.place(),
                          concat("the block scales of a matrix ", weight.shape_text(), " are F32 [", blocks(outputs_), ", ",
                                 blocks(inputs_), "], not ", dtype_text(scale_inv.dtype), " ", scale_inv.shape_text()));
  }
  static void check_magnitudes(Dtype dtype, const ConstRows& weight, Index row) {
    const float limit = largest_encodable(dtype);
    const bool is_float = dtype_info(dtype).block_elements == 1;
    for (Index i = 0; i < weight.cols(); ++i) {
      const float x = weight(row, i);
      if (!(std::fabs(x) <= limit) && (std::isfinite(x) || !is_float))
        throw ArgumentError(concat("row ", row, ", column ", i, ": ", x, " cannot be encoded as ", dtype_text(dtype),
                                   ", whose largest magnitude is ", limit));
    }
  }

  void take_panels(const TensorView& weight, const TensorMap* source) {
    if (!source || !source->owner()) throw ArgumentError(weight.place(), "packed weights need the map that keeps their memory");
    if (outputs_ % kernels::panel_rows != 0 || weight.panel_bytes != panel_bytes() ||
        weight.bytes != static_cast<std::uint64_t>(panels_in(outputs_)) * panel_bytes() ||
        reinterpret_cast<std::uintptr_t>(weight.data) % memory_alignment != 0)
      throw FormatError(weight.place(), concat("the packed weights are not those of a matrix ", weight.shape_text(),
                                               " as these kernels pack it; pack the model again"));
    panels_ = {source->owner(), weight.data};
  }

  /// `row(r, scratch)` gives row r as blocks of the format, in place or in `scratch`; `done(first, count)` is told when rows were
  /// packed.
  template <class Row, class Done>
  void pack_panels(const Context& context, Row&& row, Done&& done, std::size_t scratch_bytes = 0,
                   const TensorView* scale_inv = nullptr) {
    const Index panels = panels_in(outputs_);
    const std::size_t bytes = panel_bytes() * static_cast<std::size_t>(panels);
    const std::shared_ptr<std::byte> memory = context.arena ? context.arena->allocate(bytes) : allocate_shared_bytes(bytes);
    panels_ = memory;
    // panels between two releases: enough to be worth the call, and few enough to share them out to the threads
    const Index together = std::max<Index>(1, static_cast<Index>((std::size_t{256} << 10) / panel_bytes()));
    context.threads.for_each((panels + together - 1) / together, [&](std::int64_t item, int) {
      std::vector<std::byte> scratch(scratch_bytes * kernels::panel_rows);
      std::vector<float> scales(scale_inv ? static_cast<std::size_t>(scale_inv->columns()) : 0);
      const Index end = std::min<Index>(panels, (item + 1) * together);
      for (Index p = item * together; p < end; ++p) {
        std::array<const std::byte*, kernels::panel_rows> rows{};
        for (Index i = 0; i < kernels::panel_rows && p * kernels::panel_rows + i < outputs_; ++i)
          rows[static_cast<std::size_t>(i)] =
              row(p * kernels::panel_rows + i, scratch.data() + static_cast<std::size_t>(i) * scratch_bytes);
        std::byte* panel = memory.get() + static_cast<std::size_t>(p) * panel_bytes();
        if (scale_inv) {  // a panel's 16 rows lie in one row of blocks
          std::memcpy(scales.data(),
                      scale_inv->data + static_cast<std::size_t>(p * kernels::panel_rows / fp8_block) * scales.size() * 4,
                      scales.size() * 4);
          kernels_->pack_scaled(rows.data(), inputs_, scales.data(), panel);
        } else {
          kernels_->pack(rows.data(), inputs_, panel);
        }
      }
      const Index first = item * together * kernels::panel_rows;
      done(first, std::min(outputs_, end * kernels::panel_rows) - first);
    });
  }

  void pack_onednn(const Context& context, const TensorView& weight, const TensorMap* source) {
    onednn_ = std::make_unique<OneDnnMatrix>(*context.kernels, dtype_, outputs_, inputs_);
    constexpr Index together = 16 * OneDnnMatrix::chunk_outputs;
    context.threads.for_each((outputs_ + together - 1) / together, [&](std::int64_t item, int) {
      const Index begin = item * together, end = std::min(outputs_, begin + together);
      onednn_->pack(begin, end, [&](Index row) { return weight.data + static_cast<std::uint64_t>(row) * weight.row_stride(); });
      if (source) source->release(weight.slice_rows(begin, end - begin));
    });
  }

  const kernels::FormatKernels* kernels_ = nullptr;
  std::shared_ptr<const std::byte> panels_;
  std::unique_ptr<OneDnnMatrix> onednn_;  // instead of panels
  std::shared_ptr<const LowRank> low_rank_;
  Dtype dtype_ = Dtype::F32;
  Index outputs_ = 0, inputs_ = 0;
};

}  // namespace moxie
