#pragma once
// What the two kinds of layers that mix tokens, attention and gated delta nets, have in common: the rows of a pass, memory, and
// projections.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include <moxie/attention/attend.hpp>
#include <moxie/attention/kv_cache.hpp>
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

/// Reusable memory of the layers that mix tokens.
struct MixerBuffers {
  PreparedRows prepared, prepared_latent;
  AlignedBuffer<float> projected;  // q with gates; of delta nets what is convolved
  AlignedBuffer<float> q, k, v, latent, attended;
  AlignedBuffer<float> low_rank;              // [heads, rows, rank], of per-head matrices
  AlignedBuffer<float> z, ba, decays, betas;  // of delta nets
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
