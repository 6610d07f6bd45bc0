#pragma once
// Experts: feed-forward networks down(silu(gate x) * up x), or down(relu(up x)^2) of those without a gate, each run for the rows
// that were dispatched to it. Dense feed-forward layers and shared experts are such networks too, with all rows. gpt-oss has
// biases on the three products, each added when its sum is complete, and another function of gate and up
// (MoeConfig::swiglu_limit).
//
// Two passes of work items, taken dynamically by the threads:
//   1. (network, columns of gate and up): gate and up of the same columns, the activation function, and the int8 form of the
//      result while it is in cache
//   2. (columns of down): these columns of every network's result into a small buffer, which the caller combines while it is
//      in cache
// Only the hidden rows lie in memory between the passes. Every element has one order of summation, whatever the other
// rows, the items and the threads are.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/linalg/prepared_rows.hpp>

namespace moxie {

/// gate, up [width, hidden]; down [hidden, width]. They may have low-rank parts. Without a gate, which is empty then, the network
/// is down(relu(up x)^2).
struct FeedForwardWeights {
  Linear gate, up, down;
  Vector gate_bias = {}, up_bias = {}, down_bias = {};  ///< [width] twice, [hidden]; or empty
  float swiglu_limit = 0.0f;                            ///< of MoeConfig

  bool gated() const noexcept { return !gate.empty(); }
  /// The matrix that is read first.
  const Linear& first() const noexcept { return gated() ? gate : up; }
  Index hidden_size() const noexcept { return up.inputs(); }
  Index width() const noexcept { return up.outputs(); }
  std::size_t bytes() const noexcept {
    return gate.bytes() + up.bytes() + down.bytes() +
           static_cast<std::size_t>(gate_bias.size() + up_bias.size() + down_bias.size()) * sizeof(float);
  }
  /// Throws ArgumentError that names the matrix, unless the shapes are those of a network `hidden` -> `hidden`.
  void check(Index hidden, const std::string& name) const {
    const auto need = [&](const Linear& linear, const char* part, Index outputs, Index inputs) {
      if (linear.outputs() != outputs || linear.inputs() != inputs)
        throw ArgumentError({{}, concat(name, " ", part), {}},
                            concat("must be [", outputs, ", ", inputs, "], got [", linear.outputs(), ", ", linear.inputs(), "]"));
    };
    if (up.empty()) throw ArgumentError({{}, concat(name, " up"), {}}, "the matrix is empty");
    if (gated()) need(gate, "gate", width(), hidden);
    need(up, "up", width(), hidden);
    need(down, "down", hidden, width());
    const auto need_bias = [&](const Vector& bias, const char* part, Index size) {
      if (bias.size() != 0 && bias.size() != size)
        throw ArgumentError({{}, concat(name, " ", part), {}}, concat("must have ", size, " elements, got ", bias.size()));
    };
    need_bias(gate_bias, "gate_bias", gated() ? width() : 0);
    need_bias(up_bias, "up_bias", width());
    need_bias(down_bias, "down_bias", hidden);
  }
};

/// Rows that a layer takes at a time: its hidden rows take at most 16 M elements, unless 32 rows take more, and 512 rows are
/// enough for the products not to be bound by reading the weights. `hidden_per_row`: widths of all networks that a row goes
/// through, together.
inline Index rows_at_a_time(Index hidden_per_row) { return std::clamp<Index>((Index{1} << 24) / hidden_per_row, 32, 512); }

/// Which forms of the input rows some networks read.
struct InputForms {
  bool int8 = false, f32 = false;
  void add(const FeedForwardWeights& network, Activations activations) {
    for (const Linear* linear : {&network.first(), &network.up}) {
      int8 = int8 || linear->takes_int8(activations);
      f32 = f32 || linear->takes_f32(activations);
    }
  }
};

/// Working memory of FeedForwardPass, reusable by networks of any size, for one pass at a time.
class FeedForwardScratch {
 public:
  std::size_t bytes() const noexcept {
    std::size_t sum = hidden_.capacity_bytes() + q_.capacity_bytes() + tiles_.capacity_bytes() + low_rank_.capacity_bytes();
    for (const PreparedRows& rows : gathered_) sum += rows.bytes();
    return sum;
  }

 private:
  friend class FeedForwardPass;
  struct Network {
    const FeedForwardWeights* weights;
    const std::int32_t* rows;  ///< rows of x, nullptr for all
    Index n_rows;
    Index position;      ///< of its first row among the rows of all networks
    std::size_t hidden;  ///< of its first element in the hidden buffers, a multiple of 32
    Index low_rank;      ///< of its first u of gate's low-rank part; those of up's and down's follow
  };
  struct Item {
    Index network, begin, end;
  };
  std::vector<Network> networks_;
  std::vector<Item> items_;
  AlignedBuffer<float> hidden_, tiles_, low_rank_;
  AlignedBuffer<kernels::Int8Block> q_;
  std::vector<PreparedRows> gathered_;  // of each thread
};

/// One run of networks over a batch of rows: add() them, then run().
class FeedForwardPass {
 public:
  FeedForwardPass(const Context& context, FeedForwardScratch& scratch) : context_(context), s_(scratch) {
    s_.networks_.clear();
    s_.items_.clear();
  }

  /// Rows `rows` [n_rows] of x (nullptr: rows 0..n_rows-1) go through `network`. Not with 0 rows.
  void add(const FeedForwardWeights& network, const std::int32_t* rows, Index n_rows) {
    s_.networks_.push_back({&network, rows, n_rows, n_positions_, n_hidden_, n_low_rank_});
    n_low_rank_ += n_rows * (network.gate.rank() + network.up.rank() + network.down.rank());
    n_positions_ += n_rows;
    n_hidden_ += static_cast<std::size_t>(n_rows * kernels::padded(network.width()));
    int8_ = int8_ || network.down.takes_int8(context_.activations);
    f32_ = f32_ || network.down.takes_f32(context_.activations);
  }

  /// Pass 1, then pass 2 with combine(results, stride, begin, end) for each range of columns: row `position` of the
  /// results has columns [begin, end) at results + position * stride.
  template <class Combine>
  void run(const kernels::ActivationRows& x, Combine&& combine) {
    if (s_.networks_.empty()) return;
    s_.hidden_.resize(f32_ ? n_hidden_ : 0);
    s_.q_.resize(int8_ ? n_hidden_ / kernels::block_k : 0);
    s_.gathered_.resize(static_cast<std::size_t>(context_.threads.count()));
    const StageScope stage(context_.profile(), Stage::experts);
    if (n_low_rank_ > 0) {
      s_.low_rank_.resize(static_cast<std::size_t>(n_low_rank_));
      project({&FeedForwardWeights::gate, &FeedForwardWeights::up}, x);
    }
    gate_and_up(x);
    if (n_low_rank_ > 0) project({&FeedForwardWeights::down}, {});
    down(combine);
  }

 private:
  // Rows that a thread projects to a low rank together.
  static constexpr Index tile_rows = 48;
  // Columns of gate and up that are computed before their activation function: with 48 rows their results are 96 KB, a small part
  // of a second-level cache beside the rows (160 KB of 2048 inputs).
  static constexpr Index tile_columns = 256;
  // Eight items a thread even out unequal speeds and sizes.
  static constexpr Index items_per_thread = 8;

  static Index clamp_columns(Index columns, Index most, Index unit) {
    return std::max(unit, std::min(columns, most) / unit * unit);
  }

  /// Ranges of columns of gate and up begin at multiples of this.
  static Index column_unit(const FeedForwardWeights& w) {
    return std::lcm(std::lcm(w.first().granularity(), w.up.granularity()), Index{kernels::block_k});
  }

  using Matrix = Linear FeedForwardWeights::*;

  /// u [n_rows, rank] of a network's matrix with a low-rank part, else nullptr.
  float* projected(const FeedForwardScratch::Network& network, Matrix matrix) const {
    const FeedForwardWeights& w = *network.weights;
    if (!(w.*matrix).low_rank()) return nullptr;
    const Index before = matrix == &FeedForwardWeights::gate ? 0
                         : matrix == &FeedForwardWeights::up ? w.gate.rank()
                                                             : w.gate.rank() + w.up.rank();
    return s_.low_rank_.data() + network.low_rank + network.n_rows * before;
  }

  /// u of these matrices in all networks, from rows of x, or, for down, from the hidden rows.
  void project(std::initializer_list<Matrix> matrices, const kernels::ActivationRows& x) {
    std::vector<FeedForwardScratch::Item>& items = s_.items_;
    items.clear();
    Index work = 0;
    for (std::size_t i = 0; i < s_.networks_.size(); ++i) {
      const FeedForwardScratch::Network& n = s_.networks_[i];
      for (const Matrix matrix : matrices) work += n.n_rows * (n.weights->*matrix).rank() * (n.weights->*matrix).inputs();
      for (Index r = 0; r < n.n_rows; r += tile_rows)
        items.push_back({static_cast<Index>(i), r, std::min(n.n_rows, r + tile_rows)});
    }
    const auto n_items = static_cast<std::int64_t>(items.size());
    context_.threads.for_each(
        n_items,
        [&](std::int64_t i, int) {
          const FeedForwardScratch::Item& item = items[static_cast<std::size_t>(i)];
          const FeedForwardScratch::Network& n = s_.networks_[static_cast<std::size_t>(item.network)];
          for (const Matrix matrix : matrices) {
            const Linear& linear = n.weights->*matrix;
            float* u = projected(n, matrix);
            if (!u) continue;
            const bool hidden = matrix == &FeedForwardWeights::down;
            linear.low_rank()->project(hidden ? hidden_floats(n) : x, item.begin, item.end - item.begin,
                                       u + item.begin * linear.rank(), hidden ? nullptr : n.rows);
          }
        },
        work < worth_a_team ? n_items : 1);
    items.clear();
  }

  void gate_and_up(const kernels::ActivationRows& x) {
    // Big networks first, so that the last items are small.
    std::vector<FeedForwardScratch::Network>& networks = s_.networks_;
    std::vector<FeedForwardScratch::Item>& items = s_.items_;
    Index volume = 0;
    for (const auto& n : networks) volume += n.n_rows * n.weights->width();
    const Index item_volume = std::max<Index>(1, volume / (items_per_thread * context_.threads.count()));
    std::size_t tile = 0;
    for (std::size_t i = 0; i < networks.size(); ++i) {
      const FeedForwardWeights& w = *networks[i].weights;
      const Index unit = column_unit(w);
      const Index step = clamp_columns((item_volume + networks[i].n_rows - 1) / networks[i].n_rows, w.width() + unit - 1, unit);
      tile = std::max(tile, static_cast<std::size_t>(networks[i].n_rows * std::max(unit, std::min(step, tile_columns))));
      for (Index c = 0; c < w.width(); c += step) items.push_back({static_cast<Index>(i), c, std::min(w.width(), c + step)});
    }
    std::sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
      const Index rows_a = networks[static_cast<std::size_t>(a.network)].n_rows,
                  rows_b = networks[static_cast<std::size_t>(b.network)].n_rows;
      return std::tie(rows_b, a.network, a.begin) < std::tie(rows_a, b.network, b.begin);
    });
    s_.tiles_.resize(2 * tile * static_cast<std::size_t>(context_.threads.count()));
    const auto n_items = static_cast<std::int64_t>(items.size());
    context_.threads.for_each(
        n_items,
        [&](std::int64_t i, int thread) {
          float* gate = s_.tiles_.data() + 2 * tile * static_cast<std::size_t>(thread);
          const std::byte* then = nullptr;
          if (i + 1 < n_items) {
            const FeedForwardScratch::Item& next = items[static_cast<std::size_t>(i) + 1];
            then = networks[static_cast<std::size_t>(next.network)].weights->first().memory_of(next.begin);
          }
          gate_and_up_item(x, items[static_cast<std::size_t>(i)], gate, gate + tile, thread, then);
        },
        2 * volume * networks.front().weights->hidden_size() < worth_a_team ? n_items : 1);
  }

  void gate_and_up_item(const kernels::ActivationRows& x, const FeedForwardScratch::Item& item, float* gate, float* up,
                        int thread, const std::byte* then) const {
    const FeedForwardScratch::Network& network = s_.networks_[static_cast<std::size_t>(item.network)];
    const FeedForwardWeights& w = *network.weights;
    const Index width = kernels::padded(w.width());
    const bool int8 = w.down.takes_int8(context_.activations), f32 = w.down.takes_f32(context_.activations);
    const float *u_gate = projected(network, &FeedForwardWeights::gate), *u_up = projected(network, &FeedForwardWeights::up);
    const kernels::ActivationRows hidden = hidden_rows(network);
    const Index rows = network.n_rows, unit = column_unit(w), step = std::max(unit, tile_columns / unit * unit);
    PreparedRows& gathered = s_.gathered_[static_cast<std::size_t>(thread)];
    if (network.rows) gathered.gather(x, network.rows, rows, w.hidden_size(), gathers_int8(w), gathers_f32(w));
    const kernels::ActivationRows& from = network.rows ? gathered.view() : x;
    for (Index begin = item.begin; begin < item.end; begin += step) {
      const Index end = std::min(item.end, begin + step), n = end - begin;
      if (w.gated())
        w.gate.multiply(from, context_.activations, 0, rows, begin, end, gate - begin, n, u_gate, w.up.memory_of(begin));
      w.up.multiply(from, context_.activations, 0, rows, begin, end, up - begin, n, u_up,
                    end < item.end ? w.first().memory_of(end) : then);
      const StageScope stage(context_.profile(), Stage::other, thread);
      for (Index r = 0; r < rows; ++r) {
        float* activated =
            f32 ? s_.hidden_.data() + network.hidden + static_cast<std::size_t>(r * width + begin) : gate + r * n;
        activate(w, begin, n, gate + r * n, up + r * n, activated);
        if (int8)
          context_.kernels->quantize(activated, n, hidden.q.block(r, begin / kernels::block_k), hidden.q.step(r));
        if (f32 && end == w.width()) std::fill(activated + n, activated + (width - begin), 0.0f);
      }
    }
  }

  /// Columns [begin, begin + n) of a row: gate and up, which get their biases, to `activated`, which may be gate. Without a gate
  /// up alone, and gate holds anything.
  void activate(const FeedForwardWeights& w, Index begin, Index n, float* gate, float* up, float* activated) const {
    if (w.gate_bias.size() != 0) context_.kernels->add(w.gate_bias.data() + begin, n, gate);
    if (w.up_bias.size() != 0) context_.kernels->add(w.up_bias.data() + begin, n, up);
    if (!w.gated())
      context_.kernels->relu_squared(up, n, activated);
    else if (w.swiglu_limit != 0.0f)
      context_.kernels->clamped_swiglu(gate, up, w.swiglu_limit, n, activated);
    else
      context_.kernels->swiglu(gate, up, n, activated);
  }

  template <class Combine>
  void down(Combine& combine) {
    const Index columns = s_.networks_.front().weights->down.outputs();
    Index unit = 2 * kernels::panel_rows;  // some architectures multiply two panels at a time
    for (const auto& n : s_.networks_) unit = std::lcm(unit, n.weights->down.granularity());
    // The results of an item stay in cache until they are combined: at most 4 MB of them, a thread's part of the last level,
    // unless the narrowest range takes more. Narrower items would read the hidden rows more often.
    const Index most = (Index{1} << 20) / n_positions_;
    // Where few rows share a network, reading its weights takes the time, and is faster in long pieces.
    const Index items = n_positions_ < 8 * static_cast<Index>(s_.networks_.size()) ? 2 : items_per_thread;
    const Index step = clamp_columns(columns / (items * context_.threads.count()), most, unit);
    const std::size_t tile = static_cast<std::size_t>(n_positions_) * static_cast<std::size_t>(step);
    s_.tiles_.resize(tile * static_cast<std::size_t>(context_.threads.count()));
    const Index n_items = (columns + step - 1) / step;
    context_.threads.for_each(
        n_items,
        [&](std::int64_t i, int thread) {
          const Index begin = i * step, end = std::min(columns, begin + step);
          float* results = s_.tiles_.data() + tile * static_cast<std::size_t>(thread);
          for (std::size_t n = 0; n < s_.networks_.size(); ++n) {
            const FeedForwardScratch::Network& network = s_.networks_[n];
            const bool last = n + 1 == s_.networks_.size();
            float* own = results + network.position * step;
            network.weights->down.multiply(hidden_rows(network), context_.activations, 0, network.n_rows, begin, end, own - begin,
                                           step, projected(network, &FeedForwardWeights::down),
                                           s_.networks_[last ? 0 : n + 1].weights->down.memory_of(last ? end : begin));
            if (const Vector& bias = network.weights->down_bias; bias.size() != 0)
              for (Index r = 0; r < network.n_rows; ++r) context_.kernels->add(bias.data() + begin, end - begin, own + r * step);
          }
          const StageScope stage(context_.profile(), Stage::other, thread);
          combine(results, step, begin, end);
        },
        static_cast<Index>(n_hidden_) * columns < worth_a_team ? n_items : 1);
  }

  /// Which forms of rows gate and up multiply.
  bool gathers_int8(const FeedForwardWeights& w) const noexcept {
    return w.first().takes_int8(context_.activations) || w.up.takes_int8(context_.activations);
  }
  bool gathers_f32(const FeedForwardWeights& w) const noexcept {
    return !w.first().takes_int8(context_.activations) || !w.up.takes_int8(context_.activations);
  }
  /// Of a network, in the form that down multiplies.
  kernels::ActivationRows hidden_rows(const FeedForwardScratch::Network& network) const {
    if (!network.weights->down.takes_int8(context_.activations)) return hidden_floats(network);
    return {nullptr, {s_.q_.data() + network.hidden / kernels::block_k, network.n_rows, network.weights->width()}};
  }
  kernels::ActivationRows hidden_floats(const FeedForwardScratch::Network& network) const {
    return {s_.hidden_.data() + network.hidden, {}};
  }

  const Context& context_;
  FeedForwardScratch& s_;
  Index n_positions_ = 0;
  std::size_t n_hidden_ = 0;
  Index n_low_rank_ = 0;
  bool int8_ = false, f32_ = false;
};

}  // namespace moxie
