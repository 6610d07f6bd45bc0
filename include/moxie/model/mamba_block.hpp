#pragma once
// A Mamba-2 layer in place of attention (arXiv 2405.21060, as Granite 4 and Nemotron-H have it): a projection to a gate z, to x,
// B and C and to a step of time for each head; a short causal convolution with a bias and SiLU over x, B and C; for each head
//
//   dt = softplus(step + dt_bias);   S = exp(dt A) S + B (dt x)^T;   y = S^T C + D x
//
// with the B and C of its group; times SiLU(z), a norm over each group's elements; output projection. Source: transformers,
// modeling_granitemoehybrid.py.
//
// What it carries from token to token lies in the KV cache as a state of the sequence:
//
//   [head][ceil(head_dim / 32)][state_dim][32]   the matrices, 32 columns together
//   [conv_kernel - 1][channels]                  the last inputs of the convolution, the earliest first
//
// Every token goes through the same operations in the same order, however many are run together.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include <moxie/linalg/linear.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/mixer.hpp>
#include <moxie/model/recurrence.hpp>
#include <moxie/model/weights.hpp>

namespace moxie {

class MambaBlock {
 public:
  /// `state`: its number among the recurrent layers.
  MambaBlock(const Context& context, const ModelConfig& model, std::int64_t state, const MambaTensors& tensors,
             const TensorMap& source)
      : config_(model.mamba),
        state_(state),
        rms_norm_eps_(model.rms_norm_eps),
        in_(load_matrix(context, tensors.in, source)),
        out_(load_matrix(context, tensors.out, source)),
        conv_(config_.conv_kernel + 1, config_.channels()),
        dt_bias_(load_vector(tensors.dt_bias)),
        decay_(load_vector(tensors.decay)),
        skip_(load_vector(tensors.skip)),
        norm_(load_vector(tensors.norm)),
        ones_(Vector::Ones(std::max(config_.width(), config_.state_dim))) {
    conv_.topRows(config_.conv_kernel) = load_rows(tensors.conv, config_.channels()).transpose();
    conv_.row(config_.conv_kernel) = load_vector(tensors.conv_bias);  // the weights of an input that is always 1
  }

  /// y [rows, hidden] = Mamba-2(x [rows, hidden]); the sequences' states move on by their rows.
  void forward(const Context& context, const float* x, std::span<const DecoderRow> rows, const SequenceRuns& runs, float* y,
               MixerBuffers& buffers) const {
    const auto n = static_cast<Index>(rows.size());
    const Index heads = config_.n_heads, dv = config_.head_dim, width = config_.width(), keys = config_.keys();
    buffers.projected.resize(static_cast<std::size_t>(n * in_.outputs()));
    for (AlignedBuffer<float>* buffer : {&buffers.q, &buffers.k}) buffer->resize(static_cast<std::size_t>(n * keys));
    for (AlignedBuffer<float>* buffer : {&buffers.v, &buffers.attended}) buffer->resize(static_cast<std::size_t>(n * width));
    for (AlignedBuffer<float>* buffer : {&buffers.decays, &buffers.betas}) buffer->resize(static_cast<std::size_t>(n * heads));
    detail::project(context, in_, Vector(), x, n, in_.inputs(), buffers.projected.data(), in_.outputs(), buffers.prepared);
    {
      const StageScope stage(context.profile(), Stage::attention);
      context.threads.for_each(
          n, [&](std::int64_t i, int) { convolve(context, runs, i, buffers); }, 2);
      context.threads.for_each(std::ssize(runs.runs()), [&](std::int64_t i, int) {
        const SequenceRuns::Run& run = runs.runs()[static_cast<std::size_t>(i)];
        runs.keep_inputs(run, config_.conv_kernel - 1, config_.channels(), inputs_of(*run.sequence), [&](Index row, float* to) {
          std::copy_n(buffers.projected.data() + row * in_.outputs() + width, config_.channels(), to);
        });
      });
      detail::recur(context, runs, {config_.n_groups, heads, config_.state_dim, dv, false, false}, buffers,
                    [&](KvSequence& sequence) { return sequence.state(state_); });
      context.threads.for_each(
          n,
          [&](std::int64_t r, int) {
            float* const row = buffers.attended.data() + r * width;
            for (Index h = 0; h < heads; ++h)
              context.kernels->axpy(skip_[h], buffers.v.data() + r * width + h * dv, dv, row + h * dv);
            context.kernels->swiglu(buffers.projected.data() + r * in_.outputs(), row, width, row);
            const Index group = width / config_.n_groups;
            for (Index i = 0; i < width; i += group)
              context.kernels->rms_norm(row + i, norm_.data() + i, rms_norm_eps_, group, row + i);
          },
          4);
    }
    detail::project(context, out_, Vector(), buffers.attended.data(), n, width, y, out_.outputs(), buffers.prepared);
  }

  std::size_t bytes() const noexcept { return in_.bytes() + out_.bytes(); }

 private:
  float* inputs_of(KvSequence& sequence) const noexcept { return sequence.state(state_) + config_.matrix_floats(); }

  /// x, B, C, decays and steps of row i of the runs.
  void convolve(const Context& context, const SequenceRuns& runs, std::int64_t i, MixerBuffers& buffers) const {
    const Index row = runs.rows()[static_cast<std::size_t>(i)], n = std::ssize(runs.rows()), taps = config_.conv_kernel;
    const Index width = config_.width(), channels = config_.channels(), heads = config_.n_heads, states = config_.state_dim;
    const float *const earlier = inputs_of(*runs.run_of(i).sequence), *const inputs = buffers.projected.data() + width;
    std::array<const float*, max_conv_kernel + 1> x{};
    const auto conv = [&](Index channel, Index size, float* y) {
      runs.inputs(i, taps, earlier + channel, channels, inputs + channel, in_.outputs(), x.data());
      x[static_cast<std::size_t>(taps)] = ones_.data();
      context.kernels->causal_conv(x.data(), conv_.data() + channel, channels, taps + 1, size, true, y);
    };
    conv(0, width, buffers.v.data() + row * width);
    for (Index g = 0; g < config_.n_groups; ++g) {  // [group][row]: the recurrence reads a group's rows in order
      conv(width + g * states, states, buffers.k.data() + (g * n + row) * states);
      conv(width + (config_.n_groups + g) * states, states, buffers.q.data() + (g * n + row) * states);
    }
    const float* steps = inputs + row * in_.outputs() + channels;
    for (Index h = 0; h < heads; ++h) {
      const float dt = detail::softplus(steps[h] + dt_bias_[h]);
      buffers.decays[static_cast<std::size_t>(row * heads + h)] = std::exp(decay_[h] * dt);
      buffers.betas[static_cast<std::size_t>(row * heads + h)] = dt;
    }
  }

  MambaConfig config_;
  std::int64_t state_ = 0;
  float rms_norm_eps_ = 0.0f;
  Linear in_, out_;
  RowMatrix conv_;  // [conv_kernel + 1, channels]
  Vector dt_bias_, decay_, skip_, norm_;
  Vector ones_;
};

}  // namespace moxie
