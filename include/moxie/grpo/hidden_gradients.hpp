#pragma once
// Backward of the fused output matrix: from dL/dlogprob and dL/dentropy of hidden rows to dL/dhidden and to the gradients of an
// adapter.
//
//   y = logits / temperature, p = softmax(y), H = -sum p log p
//   dL/dlogits_v = (dL/dlogprob (1[v = target] - p_v) - dL/dentropy p_v (log p_v + H)) / temperature
//   G = dL/d(W h): dL/dlogits through softcap and scale of the head
//   dL/dhidden = G W + scale (G b) a,   dL/db = G^T (scale a h),   dL/da = scale (G b)^T h
//
// W includes the low-rank part that the output matrix of a model with an adapter of its own has.
// Where activations are int8, logits are those of the forward pass and h is treated as it was before rounding (straight through).
// bf16 weights take 16 bits of an activation in the forward pass; here the rest of it is multiplied too, because p = exp(y - lse)
// has the errors of its large logits.
//
// Rows go in blocks of 16 to 128 whose logits, and then G, fit in 40 MB; only this block of T x V exists at a time. Where 16 rows
// do not fit (a vocabulary above 600,000), neither does a block: the vocabulary is cut into parts, whose logits are computed a
// second time. Beside it lies, for each thread at work, a piece of W as floats with its products (at most 0.8 MB). Every sum has
// one order, rows in order, tiles of the vocabulary in order, so that the bits do not depend on the threads.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/linalg/transpose.hpp>
#include <moxie/model/log_softmax.hpp>
#include <moxie/model/output_head.hpp>
#include <moxie/model/token_ids.hpp>

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
  AlignedBuffer<float> rest;              // [rows, hidden], what products with bf16 weights leave of the rows
  AlignedBuffer<float> logits;            // [tiles, rows, 512], logits, then G; then in panels [tiles, rows / 16, 512, 16]
  AlignedBuffer<float> projected;         // [rows, rank], scale * a h
  AlignedBuffer<float> low_rank;          // [rows, rank of W's low-rank part], the same of that
  AlignedBuffer<float> parts;             // [tiles, rows, rank], parts of G b
  AlignedBuffer<float> d_low;             // [rows, rank], G b
  std::vector<AlignedBuffer<float>> own;  // one for each thread
  std::vector<kernels::SoftmaxPartial> partials;  // [rows, tiles]

  std::size_t bytes() const noexcept {
    std::size_t sum = prepared.bytes() + rest.capacity_bytes() + logits.capacity_bytes() + projected.capacity_bytes() +
                      low_rank.capacity_bytes() + parts.capacity_bytes() + d_low.capacity_bytes() +
                      partials.capacity() * sizeof(kernels::SoftmaxPartial);
    for (const AlignedBuffer<float>& buffer : own) sum += buffer.capacity_bytes();
    return sum;
  }
};

/// How the rows and the vocabulary are cut, by their sizes alone.
struct GradientBlocks {
  Index rows;   ///< of a block
  Index tiles;  ///< of the vocabulary whose logits are in memory together
};
/// For an output matrix of `vocab` rows and an adapter of this rank (0: none).
inline GradientBlocks gradient_blocks(Index vocab, Index rank) noexcept {
  constexpr Index budget = Index{40} << 20, lanes = kernels::panel_rows;
  const Index tiles = vocabulary_tiles(vocab), tile_row_bytes = (vocabulary_tile + rank + 3) * static_cast<Index>(sizeof(float));
  const Index rows = std::clamp<Index>(budget / (tiles * tile_row_bytes) / lanes * lanes, lanes, 128);
  return {rows, std::clamp<Index>(budget / (rows * tile_row_bytes), 1, tiles)};
}

namespace detail {

/// The product out [rows, n] = x [rows, 512] * w, w in panels [n / 16, 512, 16] of f32; columns of panels [begin, end).
inline void multiply_tile(const kernels::Table& kernels, const float* x, Index rows, const float* w, Index n, Index begin,
                          Index end, float* out, Index stride) {
  kernels.find(Dtype::F32)
      ->f32({reinterpret_cast<const std::byte*>(w), n, vocabulary_tile, begin, end, {x, {}}, 0, rows, out, stride});
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
        rank_(head.adapter ? head.adapter->rank() : 0),
        blocks_(gradient_blocks(vocab_, rank_)) {
    s_.own.resize(static_cast<std::size_t>(context.threads.count()));
    if (output.low_rank() && sinks.d_hidden) low_rank_a_ = output.low_rank()->scale() * output.low_rank()->a().transpose();
  }

  Index block() const noexcept { return blocks_.rows; }

  void run(const float* hidden, std::span<const RowGradient> rows, float* d_hidden) {
    const auto n = static_cast<Index>(rows.size());
    prepare(hidden, n);
    const auto each_part = [&](auto&& f) {
      for (first_tile_ = 0; first_tile_ < tiles_; first_tile_ += blocks_.tiles) f(std::min(blocks_.tiles, tiles_ - first_tile_));
    };
    const auto logits_of = [&](Index tiles) {
      context_.threads.for_each(tiles, [&](std::int64_t i, int thread) {
        compute_logits(first_tile_ + i, n, s_.own[static_cast<std::size_t>(thread)]);
      });
    };
    each_part(logits_of);
    sums_.resize(rows.size());
    for (Index r = 0; r < n; ++r)
      sums_[static_cast<std::size_t>(r)] = combine_partials(
          std::span(s_.partials).subspan(static_cast<std::size_t>(r * tiles_), static_cast<std::size_t>(tiles_)));
    each_part([&](Index tiles) {
      if (tiles < tiles_) logits_of(tiles);  // those of another part lie there
      context_.threads.for_each(tiles, [&](std::int64_t i, int thread) {
        AlignedBuffer<float>& own = s_.own[static_cast<std::size_t>(thread)];
        logit_gradients(first_tile_ + i, rows);
        if (rank_ > 0) low_rank_gradients(first_tile_ + i, n, own);
        if (d_hidden) into_panels(first_tile_ + i, n, own);
      });
      if (rank_ > 0) add_parts(tiles, n);
      if (d_hidden) through_weights(tiles, n, d_hidden);
    });
    if (rank_ > 0) through_a(hidden, n, d_hidden);
  }

 private:
  static constexpr Index lanes = kernels::panel_rows;
  static Index padded(Index n) noexcept { return (n + lanes - 1) / lanes * lanes; }
  float* tile_rows(Index tile, Index n) noexcept { return s_.logits.data() + (tile - first_tile_) * padded(n) * vocabulary_tile; }
  Index tile_size(Index tile) const noexcept { return std::min(vocabulary_tile, vocab_ - tile * vocabulary_tile); }

  void prepare(const float* hidden, Index n) {
    const bool int8 = output_.takes_int8(context_.activations);
    s_.prepared.assign(context_, hidden, n, width_, width_, int8, head_.adapter || output_.takes_f32(context_.activations));
    s_.rest.resize(static_cast<std::size_t>(n * kernels::padded(width_)));
    has_rest_ = output_.rest(s_.prepared.view(), n, s_.rest.data());
    s_.logits.resize(static_cast<std::size_t>(padded(n) * blocks_.tiles * vocabulary_tile));
    s_.partials.resize(static_cast<std::size_t>(n * tiles_));
    if (output_.low_rank()) {
      s_.low_rank.resize(static_cast<std::size_t>(n * output_.rank()));
      output_.low_rank()->project(context_, s_.prepared, s_.low_rank.data());
    }
    if (rank_ == 0) return;
    s_.projected.resize(static_cast<std::size_t>(n * rank_));
    s_.parts.resize(static_cast<std::size_t>(blocks_.tiles * n * rank_));
    s_.d_low.resize(static_cast<std::size_t>(n * rank_));
    std::fill(s_.d_low.data(), s_.d_low.data() + n * rank_, 0.0f);
    head_.adapter->project(context_, s_.prepared, s_.projected.data());
  }

  void compute_logits(Index tile, Index n, AlignedBuffer<float>& own) {
    const Index begin = tile * vocabulary_tile, size = tile_size(tile);
    float* z = tile_rows(tile, n);
    output_.multiply(s_.prepared.view(), context_.activations, 0, n, begin, begin + size, z - begin, vocabulary_tile,
                     output_.low_rank() ? s_.low_rank.data() : nullptr);
    if (has_rest_) {
      own.resize(static_cast<std::size_t>(n * vocabulary_tile));
      output_.multiply({s_.rest.data(), {}}, context_.activations, 0, n, begin, begin + size, own.data() - begin,
                       vocabulary_tile);
      for (Index r = 0; r < n; ++r) kernels_.add(own.data() + r * vocabulary_tile, size, z + r * vocabulary_tile);
    }
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
    const Index begin = tile * vocabulary_tile, size = tile_size(tile), panels = padded(rank_) / lanes;
    const float* g = tile_rows(tile, n);
    own.resize(static_cast<std::size_t>(panels * lanes * vocabulary_tile));
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
      float* column = own.data() + k / lanes * lanes * vocabulary_tile + k % lanes;
      for (Index v = 0; v < size; ++v) column[v * lanes] = b(k, begin + v);
    }
    multiply_tile(kernels_, g, n, own.data(), rank_, 0, panels, s_.parts.data() + (tile - first_tile_) * n * rank_, rank_);
  }

  /// A tile of G to panels of 16 rows, in place, the missing rows zero.
  void into_panels(Index tile, Index n, AlignedBuffer<float>& own) {
    own.resize(static_cast<std::size_t>(n * vocabulary_tile));
    float* g = tile_rows(tile, n);
    std::copy(g, g + n * vocabulary_tile, own.data());
    for (Index r = 0; r < n; r += lanes)
      rows_to_panel(own.data() + r * vocabulary_tile, vocabulary_tile, std::min(lanes, n - r), vocabulary_tile,
                    g + r * vocabulary_tile);
  }

  /// d_hidden [+]= G W over the tiles in memory, as the transposed product W^T G^T: 256 inputs of W at a time are unpacked beside
  /// each other in the second-level cache, and no weight needs to change its place among the others.
  void through_weights(Index tiles, Index n, float* d_hidden) {
    constexpr Index columns = Linear::unpack_inputs;
    const Index groups = (width_ + columns - 1) / columns, panels = padded(n) / lanes;
    // More threads than groups of columns share out the rows as well, and each unpacks for itself.
    const Index shares = std::clamp<Index>(context_.threads.count() / groups, 1, panels), share = (panels + shares - 1) / shares;
    context_.threads.for_each(groups * shares, [&](std::int64_t item, int thread) {
      const Index column = item / shares * columns, count = std::min(columns, width_ - column);
      const Index begin = item % shares * share, end = std::min(panels, begin + share);
      if (begin >= end) return;
      const Index stride = (end - begin) * lanes;
      AlignedBuffer<float>& own = s_.own[static_cast<std::size_t>(thread)];
      own.resize(static_cast<std::size_t>(columns * (vocabulary_tile + 2 * stride)));
      float *weights = own.data(), *product = weights + columns * vocabulary_tile, *sum = product + columns * stride;
      for (Index tile = first_tile_; tile < first_tile_ + tiles; ++tile) {
        const Index at = tile * vocabulary_tile, size = tile_size(tile);
        output_.unpack(at, at + size, column, count, weights, vocabulary_tile);
        for (Index k = 0; k < low_rank_a_.cols(); ++k)
          for (Index c = 0; c < count; ++c)
            kernels_.axpy(low_rank_a_(column + c, k), &output_.low_rank()->b()(k, at), size, weights + c * vocabulary_tile);
        if (size < vocabulary_tile)
          for (Index c = 0; c < count; ++c)
            std::fill(weights + c * vocabulary_tile + size, weights + (c + 1) * vocabulary_tile, 0.0f);
        multiply_tile(kernels_, weights, count, tile_rows(tile, n), padded(n), begin, end,
                      (tile == first_tile_ ? sum : product) - begin * lanes, stride);
        if (tile != first_tile_) kernels_.add(product, count * stride, sum);
      }
      for (Index r = begin * lanes; r < std::min(n, end * lanes); ++r) {
        float* to = d_hidden + r * width_ + column;
        for (Index c = 0; c < count; ++c)
          to[c] = first_tile_ == 0 ? sum[c * stride + r - begin * lanes] : to[c] + sum[c * stride + r - begin * lanes];
      }
    });
  }

  /// d_low += the parts of the tiles in memory.
  void add_parts(Index tiles, Index n) {
    context_.threads.for_each(
        n * rank_,
        [&](std::int64_t i, int) {
          float sum = s_.d_low[static_cast<std::size_t>(i)];
          for (Index tile = 0; tile < tiles; ++tile) sum += s_.parts[static_cast<std::size_t>(tile * n * rank_ + i)];
          s_.d_low[static_cast<std::size_t>(i)] = sum;
        },
        256);
  }

  /// With d = scale * (G b): d_hidden += d a, d_a += d^T h.
  void through_a(const float* hidden, Index n, float* d_hidden) {
    float* d = s_.d_low.data();
    for (Index i = 0; i < n * rank_; ++i) d[i] *= head_.adapter->packed_scale();
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
  GradientBlocks blocks_;
  Index first_tile_ = 0;  // of those in memory
  bool has_rest_ = false;
  std::vector<LogSumExp> sums_;
  RowMatrix low_rank_a_;  // [hidden, rank] of W's low-rank part, a transposed and scaled; empty: W has none
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
    if (row.target != -1) check_token_id(row.target, vocab);
  if ((sinks.d_a || sinks.d_b) && rank == 0) throw ArgumentError("gradients of an adapter are asked for, but the head has none");
  if (sinks.d_a && (sinks.d_a->rows() != rank || sinks.d_a->cols() != width))
    throw ArgumentError(concat("d_a must be [", rank, ", ", width, "]"));
  if (sinks.d_b && (sinks.d_b->rows() != vocab || sinks.d_b->cols() != rank))
    throw ArgumentError(concat("d_b must be [", vocab, ", ", rank, "]"));
  detail::HiddenGradients gradients(context, output, temperature, head, sinks, scratch);
  const auto block = static_cast<std::size_t>(gradients.block());
  for (std::size_t first = 0; first < rows.size(); first += block) {
    const Index offset = static_cast<Index>(first) * width;
    gradients.run(hidden + offset, rows.subspan(first, std::min(block, rows.size() - first)),
                  sinks.d_hidden ? sinks.d_hidden + offset : nullptr);
  }
}

}  // namespace moxie::grpo
