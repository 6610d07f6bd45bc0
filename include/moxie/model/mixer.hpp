#pragma once
// What the kinds of layers that mix tokens (attention, gated delta nets, Mamba-2, short convolutions) have in common: the rows of
// a pass, memory, and projections.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <vector>

#include <moxie/attention/attend.hpp>
#include <moxie/attention/kv_cache.hpp>
#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/profile.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/linalg/prepared_rows.hpp>

namespace moxie {

/// A token to run: its id and its place in a sequence, whose cache has room for it.
struct DecoderRow {
  std::int32_t id = 0;
  KvSequence* sequence = nullptr;
  std::int64_t position = 0;
};

/// The rows of a pass by sequence, each sequence's in the order of their positions.
class SequenceRuns {
 public:
  struct Run {
    KvSequence* sequence;
    std::int64_t begin, end;  // of rows()
  };

  /// Throws ArgumentError where the rows of a sequence are not its next positions in their order.
  void assign(std::span<const DecoderRow> rows) {
    rows_.resize(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows_[i] = static_cast<std::int32_t>(i);
    std::stable_sort(rows_.begin(), rows_.end(), [&](std::int32_t a, std::int32_t b) {
      return std::less<>()(rows[static_cast<std::size_t>(a)].sequence, rows[static_cast<std::size_t>(b)].sequence);
    });
    runs_.clear();
    run_of_.clear();
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const DecoderRow& row = rows[static_cast<std::size_t>(rows_[i])];
      const auto at = static_cast<std::int64_t>(i);
      if (runs_.empty() || runs_.back().sequence != row.sequence) runs_.push_back({row.sequence, at, at});
      Run& run = runs_.back();
      const std::int64_t next = row.sequence->length() + run.end++ - run.begin;
      if (row.position != next || next >= row.sequence->reserved())
        throw ArgumentError(concat("a row is position ", row.position, " of its sequence, of which ", next,
                                   " is the next; with recurrent layers rows are the next positions, reserved, in their order"));
      run_of_.push_back(static_cast<std::int32_t>(runs_.size() - 1));
    }
  }
  const std::vector<Run>& runs() const noexcept { return runs_; }
  /// Row numbers, run after run.
  const std::vector<std::int32_t>& rows() const noexcept { return rows_; }
  const Run& run_of(std::int64_t i) const noexcept {
    return runs_[static_cast<std::size_t>(run_of_[static_cast<std::size_t>(i)])];
  }

  /// What a causal convolution of `taps` tokens reads for row i of rows(), into x [taps], the earliest first: rows of this pass,
  /// `stride` floats apart, or the last inputs before it, `earlier` [taps - 1], `earlier_stride` apart.
  void inputs(std::int64_t i, Index taps, const float* earlier, Index earlier_stride, const float* now, Index stride,
              const float** x) const noexcept {
    const std::int64_t begin = run_of(i).begin;
    for (Index t = 0; t < taps; ++t) {
      const std::int64_t at = i - (taps - 1) + t;
      x[t] =
          at >= begin ? now + rows_[static_cast<std::size_t>(at)] * stride : earlier + (at - begin + taps - 1) * earlier_stride;
    }
  }
  /// Makes `earlier` [kept, width] the last inputs of a run, for the next pass; copy(row, to) writes those of a row of this one.
  template <class Copy>
  void keep_inputs(const Run& run, Index kept, Index width, float* earlier, Copy&& copy) const {
    for (Index t = 0; t < kept; ++t) {
      const std::int64_t at = run.end - kept + t;
      if (at >= run.begin)
        copy(Index{rows_[static_cast<std::size_t>(at)]}, earlier + t * width);
      else
        std::copy_n(earlier + (at - run.begin + kept) * width, width, earlier + t * width);
    }
  }

 private:
  std::vector<Run> runs_;
  std::vector<std::int32_t> rows_, run_of_;
};

/// Reusable memory of the layers that mix tokens.
struct MixerBuffers {
  PreparedRows prepared, prepared_latent;
  AlignedBuffer<float> projected;  // q with gates, or gates; of recurrent layers what their first projection gives
  AlignedBuffer<float> q, k, v, latent, attended;
  AlignedBuffer<float> low_rank;              // [heads, rows, rank], of per-head matrices
  AlignedBuffer<float> z, ba;                 // of delta nets
  AlignedBuffer<float> decays, betas;         // of delta nets and Mamba-2
  std::vector<AttendRow> rows;
  AttentionScratch scratch;
};

namespace detail {

/// Makes rows ready for the matrices that will multiply them.
inline void prepare(const Context& context, std::initializer_list<const Linear*> users, const float* x, Index rows, Index k,
                    Index stride, PreparedRows& prepared) {
  bool int8 = false, f32 = false;
  for (const Linear* linear : users) {
    int8 = int8 || linear->takes_int8(context.activations);
    f32 = f32 || linear->takes_f32(context.activations);
  }
  prepared.assign(context, x, rows, k, stride, int8, f32);
}

inline void add_bias(const Context& context, const Vector& bias, float* y, Index rows, Index stride) {
  if (bias.size() == 0) return;
  context.threads.for_each(
      rows, [&](std::int64_t r, int) { context.kernels->add(bias.data(), bias.size(), y + r * stride); }, 16);
}

/// y [rows, outputs] = linear(x) + bias; rows are `stride` and `y_stride` floats apart.
inline void project(const Context& context, const Linear& linear, const Vector& bias, const float* x, Index rows, Index stride,
                    float* y, Index y_stride, PreparedRows& prepared) {
  prepare(context, {&linear}, x, rows, linear.inputs(), stride, prepared);
  {
    const StageScope stage(context.profile(), Stage::projections);
    linear.forward(context, prepared, y, y_stride);
  }
  add_bias(context, bias, y, rows, y_stride);
}

}  // namespace detail
}  // namespace moxie
