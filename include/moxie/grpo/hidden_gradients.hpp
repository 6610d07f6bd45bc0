#pragma once
// Backward of the fused output matrix: from dL/dlogprob and dL/dentropy of hidden rows to dL/dhidden and to the gradients of an
// adapter.
//
//   y = logits / temperature, p = softmax(y), H = -sum p log p
//   dL/dlogits_v = (dL/dlogprob (1[v = target] - p_v) - dL/dentropy p_v (log p_v + H)) / temperature
//   G = dL/d(W h): dL/dlogits through softcap and scale of the head
//   dL/dhidden = G W + scale (G b) a,   dL/db = G^T (scale a h),   dL/da = scale (G b)^T h
//
// Where activations are int8, logits are those of the forward pass and h is treated as it was before rounding (straight through).
//
// Rows go in blocks whose logits and gradients fit in 40 MB; only this block of T x V exists at a time. Beside it lies a tile of
// 512 rows of W as floats (4 MB for 2048 inputs, 15 MB for 7168), and for each thread some KB x rank. Every sum has one order,
// rows in order, tiles of the vocabulary in order, so that the bits do not depend on the threads.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/log_softmax.hpp>
#include <moxie/model/output_head.hpp>

namespace moxie::grpo {

/// What a row's loss says of it.
struct RowGradient {
  std::int32_t target = -1;  ///< -1: none, then d_logprob is not used
  float d_logprob = 0.0f;
  float d_entropy = 0.0f;
};

/// Where gradients go; nullptr: not wanted.
struct GradientSinks {
  float* d_hidden = nullptr;  ///< [rows, hidden], written
  RowMatrix* d_a = nullptr;   ///< [rank, hidden], added to
  RowMatrix* d_b = nullptr;   ///< [vocab, rank], added to
};

/// Reusable memory of hidden_gradients().
struct GradientScratch {
  PreparedRows prepared;
  AlignedBuffer<float> logits;                    // [tiles, rows, 512], logits, then G
  AlignedBuffer<float> projected;                 // [rows, rank], scale * a h
  AlignedBuffer<float> d_low;                     // [tiles, rows, rank], parts of G b, the first becomes scale * (G b)
  AlignedBuffer<float> weights;                   // [hidden / 16, 512, 16], a tile of W
  std::vector<AlignedBuffer<float>> own;          // one for each thread
  std::vector<kernels::SoftmaxPartial> partials;  // [rows, tiles]
};

namespace detail {

/// The product out [rows, n] = x [rows, 512] * w, w in panels [n / 16, 512, 16] of f32; columns of panels [begin, end).
inline void multiply_tile(const kernels::Table& kernels, const float* x, Index rows, const float* w, Index n, Index begin,
                          Index end, float* out, Index stride) {
  const kernels::ActivationRows activations{x, nullptr, nullptr, nullptr};
  kernels.find(Dtype::F32)
      ->f32({reinterpret_cast<const std::byte*>(w), n, vocabulary_tile, begin, end, activations, nullptr, rows, out, stride});
}

class HiddenGradients {
 public:
  HiddenGradients(const Context& context, const Linear& output, float temperature, const OutputHead& head,
                  const GradientSinks& sinks, GradientScratch& scratch)
      : context_(context),
        kernels_(*context.kernels),
        output_(output),
        head_(head),
        sinks_(sinks),
        s_(scratch),
        temperature_(temperature),
        vocab_(output.outputs()),
        tiles_(vocabulary_tiles(vocab_)),
        width_(output.inputs()),
        rank_(head.adapter ? head.adapter->rank() : 0) {
    s_.own.resize(static_cast<std::size_t>(context.threads.count()));
  }

  /// Rows of which logits and G fit.
  Index block() const noexcept {
    const Index row_bytes = tiles_ * (vocabulary_tile + rank_ + 3) * static_cast<Index>(sizeof(float));
    const Index rows = std::clamp<Index>((Index{40} << 20) / row_bytes, 1, 128);
    return rows < 8 ? rows : rows / 8 * 8;  // whole tiles of the kernels
  }

  void run(const float* hidden, std::span<const RowGradient> rows, float* d_hidden) {
    const auto n = static_cast<Index>(rows.size());
    prepare(hidden, n);
    context_.threads.for_each(tiles_, [&](std::int64_t tile, int) { compute_logits(tile, n); });
    sums_.resize(rows.size());
    for (Index r = 0; r < n; ++r)
      sums_[static_cast<std::size_t>(r)] = combine_partials(
          std::span(s_.partials).subspan(static_cast<std::size_t>(r * tiles_), static_cast<std::size_t>(tiles_)));
    context_.threads.for_each(tiles_, [&](std::int64_t tile, int thread) {
      logit_gradients(tile, rows);
      if (rank_ > 0) low_rank_gradients(tile, n, s_.own[static_cast<std::size_t>(thread)]);
    });
    if (d_hidden) through_weights(n, d_hidden);
    if (rank_ > 0) through_a(hidden, n, d_hidden);
  }

 private:
  float* tile_rows(Index tile, Index n) noexcept { return s_.logits.data() + tile * n * vocabulary_tile; }
  Index tile_size(Index tile) const noexcept { return std::min(vocabulary_tile, vocab_ - tile * vocabulary_tile); }

  void prepare(const float* hidden, Index n) {
    const bool int8 = output_.takes_int8(context_.activations);
    s_.prepared.assign(context_, hidden, n, width_, width_, int8, !int8 || head_.adapter);
    s_.logits.resize(static_cast<std::size_t>(n * tiles_ * vocabulary_tile));
    s_.partials.resize(static_cast<std::size_t>(n * tiles_));
    if (rank_ == 0) return;
    s_.projected.resize(static_cast<std::size_t>(n * rank_));
    s_.d_low.resize(static_cast<std::size_t>(tiles_ * n * rank_));
    head_.adapter->project(context_, s_.prepared, s_.projected.data());
  }

  void compute_logits(Index tile, Index n) {
    const Index begin = tile * vocabulary_tile, size = tile_size(tile);
    float* z = tile_rows(tile, n);
    output_.multiply(s_.prepared.view(), context_.activations, nullptr, n, begin, begin + size, z - begin, vocabulary_tile);
    for (Index r = 0; r < n; ++r, z += vocabulary_tile) {
      head_.apply(kernels_, s_.projected.data() + r * rank_, begin, begin + size, z);
      s_.partials[static_cast<std::size_t>(r * tiles_ + tile)] = kernels_.softmax_partial(z, size, temperature_);
    }
  }

  /// Logits of a tile to G, in place; zeros past the vocabulary.
  void logit_gradients(Index tile, std::span<const RowGradient> rows) {
    const Index begin = tile * vocabulary_tile, size = tile_size(tile);
    const auto n = static_cast<Index>(rows.size());
    float* z = tile_rows(tile, n);
    alignas(memory_alignment) float gradient[vocabulary_tile];
    for (Index r = 0; r < n; ++r, z += vocabulary_tile) {
      const RowGradient& row = rows[static_cast<std::size_t>(r)];
      const LogSumExp& sum = sums_[static_cast<std::size_t>(r)];
      const float g = row.target < 0 ? 0.0f : row.d_logprob;
      kernels_.softmax_gradient(z, size, temperature_, sum.max, static_cast<float>(sum.log_sum), static_cast<float>(sum.entropy),
                                g, row.d_entropy, gradient);
      if (row.target >= begin && row.target < begin + size) gradient[row.target - begin] += g / temperature_;
      head_.apply_gradient(z, size, gradient);
      std::copy(gradient, gradient + size, z);
      std::fill(z + size, z + vocabulary_tile, 0.0f);
    }
  }

  /// From a tile of G: its rows of dL/db, and its part of G b.
  void low_rank_gradients(Index tile, Index n, AlignedBuffer<float>& own) {
    const Index begin = tile * vocabulary_tile, size = tile_size(tile),
                panels = (rank_ + kernels::panel_rows - 1) / kernels::panel_rows;
    const float* g = tile_rows(tile, n);
    own.resize(static_cast<std::size_t>(panels * kernels::panel_rows * vocabulary_tile));
    if (sinks_.d_b) {
      auto d_b = sinks_.d_b->middleRows(begin, size);
      Eigen::Map<RowMatrix, 0, Eigen::OuterStride<>> transposed(own.data(), rank_, size, Eigen::OuterStride<>(vocabulary_tile));
      transposed = d_b.transpose();
      for (Index r = 0; r < n; ++r)
        for (Index k = 0; k < rank_; ++k)
          kernels_.axpy(s_.projected[static_cast<std::size_t>(r * rank_ + k)], g + r * vocabulary_tile, size,
                        own.data() + k * vocabulary_tile);
      d_b = transposed.transpose();
    }
    std::fill(own.data(), own.data() + own.size(), 0.0f);  // b of the tile in panels
    const RowMatrix& b = head_.adapter->packed_b();
    for (Index k = 0; k < rank_; ++k) {
      float* column = own.data() + k / kernels::panel_rows * kernels::panel_rows * vocabulary_tile + k % kernels::panel_rows;
      for (Index v = 0; v < size; ++v) column[v * kernels::panel_rows] = b(k, begin + v);
    }
    multiply_tile(kernels_, g, n, own.data(), rank_, 0, panels, s_.d_low.data() + tile * n * rank_, rank_);
  }

  /// d_hidden = G W, tile after tile.
  void through_weights(Index n, float* d_hidden) {
    const Index panels = (width_ + kernels::panel_rows - 1) / kernels::panel_rows, group = output_.granularity();
    s_.weights.resize(static_cast<std::size_t>(panels * kernels::panel_rows * vocabulary_tile));
    constexpr Index together =
        4;  // 64 columns an item: a panel of 512 x 16 floats is 32 KB, G of a block streams from the second-level cache
    for (Index tile = 0; tile < tiles_; ++tile) {
      const Index begin = tile * vocabulary_tile, size = tile_size(tile);
      context_.threads.for_each((vocabulary_tile + group - 1) / group, [&](std::int64_t item, int thread) {
        unpack_weights(begin, item * group, std::clamp<Index>(size - item * group, 0, group),
                       s_.own[static_cast<std::size_t>(thread)]);
      });
      context_.threads.for_each((panels + together - 1) / together, [&](std::int64_t item, int thread) {
        const Index first = item * together, last = std::min(panels, first + together), column = first * kernels::panel_rows;
        const Index columns = std::min(width_, last * kernels::panel_rows) - column;
        AlignedBuffer<float>& own = s_.own[static_cast<std::size_t>(thread)];
        own.resize(static_cast<std::size_t>(n * together * kernels::panel_rows));
        constexpr Index stride = together * kernels::panel_rows;
        multiply_tile(kernels_, tile_rows(tile, n), n, s_.weights.data(), width_, first, last, own.data() - column, stride);
        for (Index r = 0; r < n; ++r) {
          float* to = d_hidden + r * width_ + column;
          if (tile == 0)
            std::copy(own.data() + r * stride, own.data() + r * stride + columns, to);
          else
            kernels_.add(own.data() + r * stride, columns, to);
        }
      });
    }
  }

  /// Rows [at, at + group) of a tile of W into panels; those past `count` are zero.
  void unpack_weights(Index begin, Index at, Index count, AlignedBuffer<float>& own) {
    constexpr Index lanes = kernels::panel_rows;
    const Index padded = (width_ + lanes - 1) / lanes * lanes, group = std::min(output_.granularity(), vocabulary_tile - at);
    const Index stride = padded + lanes;  // rows of a power of two would fall on the same few sets of the first-level cache
    own.resize(static_cast<std::size_t>(group * stride));
    if (count < group || padded != width_) std::fill(own.data(), own.data() + own.size(), 0.0f);
    if (count > 0) output_.unpack(begin + at, begin + at + count, own.data(), stride);
    for (Index c = 0; c < padded; c += lanes)
      for (Index v = 0; v < group; ++v)
        std::copy(own.data() + v * stride + c, own.data() + v * stride + c + lanes,
                  s_.weights.data() + c * vocabulary_tile + (at + v) * lanes);
  }

  /// With d = scale * (G b): d_hidden += d a, d_a += d^T h.
  void through_a(const float* hidden, Index n, float* d_hidden) {
    const float scale = head_.adapter->packed_scale();
    float* d = s_.d_low.data();
    context_.threads.for_each(
        n * rank_,
        [&](std::int64_t i, int) {
          float sum = 0.0f;
          for (Index tile = 0; tile < tiles_; ++tile) sum += d[tile * n * rank_ + i];
          d[i] = scale * sum;
        },
        256);
    if (sinks_.d_a)
      context_.threads.for_each(rank_, [&](std::int64_t k, int) {
        for (Index r = 0; r < n; ++r) kernels_.axpy(d[r * rank_ + k], hidden + r * width_, width_, sinks_.d_a->row(k).data());
      });
    if (d_hidden)
      context_.threads.for_each(n, [&](std::int64_t r, int) {
        for (Index k = 0; k < rank_; ++k)
          kernels_.axpy(d[r * rank_ + k], head_.adapter->a.row(k).data(), width_, d_hidden + r * width_);
      });
  }

  const Context& context_;
  const kernels::Table& kernels_;
  const Linear& output_;
  const OutputHead& head_;
  const GradientSinks& sinks_;
  GradientScratch& s_;
  float temperature_;
  Index vocab_, tiles_, width_, rank_;
  std::vector<LogSumExp> sums_;
};

}  // namespace detail

/// Gradients of sum over rows of d_logprob * logprob(target) + d_entropy * entropy, for hidden rows [rows, hidden] and `output`
/// [vocab, hidden]. Throws ArgumentError for a target outside the vocabulary, and when head or sinks do not fit.
inline void hidden_gradients(const Context& context, const Linear& output, const float* hidden, std::span<const RowGradient> rows,
                             float temperature, const GradientSinks& sinks, GradientScratch& scratch,
                             const OutputHead& head = {}) {
  head.check(output);
  if (!(temperature > 0.0f)) throw ArgumentError("temperature must be above 0");
  const Index vocab = output.outputs(), width = output.inputs(), rank = head.adapter ? head.adapter->rank() : 0;
  for (const RowGradient& row : rows)
    if (row.target < -1 || row.target >= vocab)
      throw ArgumentError("token id " + std::to_string(row.target) + " is outside the vocabulary of " + std::to_string(vocab));
  if ((sinks.d_a || sinks.d_b) && rank == 0) throw ArgumentError("gradients of an adapter are asked for, but the head has none");
  if (sinks.d_a && (sinks.d_a->rows() != rank || sinks.d_a->cols() != width))
    throw ArgumentError("d_a must be [" + std::to_string(rank) + ", " + std::to_string(width) + "]");
  if (sinks.d_b && (sinks.d_b->rows() != vocab || sinks.d_b->cols() != rank))
    throw ArgumentError("d_b must be [" + std::to_string(vocab) + ", " + std::to_string(rank) + "]");
  detail::HiddenGradients gradients(context, output, temperature, head, sinks, scratch);
  const auto block = static_cast<std::size_t>(gradients.block());
  for (std::size_t first = 0; first < rows.size(); first += block) {
    const Index offset = static_cast<Index>(first) * width;
    gradients.run(hidden + offset, rows.subspan(first, std::min(block, rows.size() - first)),
                  sinks.d_hidden ? sinks.d_hidden + offset : nullptr);
  }
}

}  // namespace moxie::grpo
