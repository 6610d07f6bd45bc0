#pragma once
// A gated delta net in place of a layer's attention (arXiv 2412.06464, as Qwen3-Next has it): projections to q, k, v, a gate z
// and two numbers for each value head; a short causal convolution and SiLU over q, k, v; q and k divided by their lengths; the
// delta rule (kernels/delta_net.hpp); a norm for each head, times SiLU(z); output projection.
//
// What it carries from token to token lies in the KV cache as a state of the sequence:
//
//   [value head][ceil(v_head_dim / 32)][k_head_dim][32]   the delta rule's matrices, 32 columns together
//   [conv_kernel - 1][channels]                           the last inputs of the convolution, the earliest first
//
// Every token goes through the same operations in the same order, however many are run together.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <moxie/linalg/linear.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/mixer.hpp>
#include <moxie/model/recurrence.hpp>
#include <moxie/model/weights.hpp>

namespace moxie {

class DeltaNetBlock {
 public:
  /// `state`: its number among the recurrent layers.
  DeltaNetBlock(const Context& context, const ModelConfig& model, std::int64_t state, const DeltaNetTensors& tensors,
                const TensorMap& source)
      : config_(model.delta_net), state_(state), rms_norm_eps_(model.rms_norm_eps) {
    const auto matrix = [&](const std::optional<Weight>& weight) {
      return weight ? load_matrix(context, *weight, source) : Linear();
    };
    qkv_ = load_matrix(context, tensors.qkv, source);
    z_ = matrix(tensors.z);
    ba_ = matrix(tensors.ba);
    b_ = matrix(tensors.b);
    a_ = matrix(tensors.a);
    out_ = load_matrix(context, tensors.out, source);
    conv_ = load_rows(tensors.conv, config_.channels()).transpose();
    dt_bias_ = load_vector(tensors.dt_bias);
    decay_ = load_vector(tensors.decay);
    norm_ = load_vector(tensors.norm);
    const auto dk = static_cast<double>(config_.k_head_dim);
    k_norm_ = Vector::Constant(config_.k_head_dim, static_cast<float>(1.0 / std::sqrt(dk)));
    q_norm_ = Vector::Constant(config_.k_head_dim, static_cast<float>(1.0 / dk));
  }

  /// y [rows, hidden] = delta net(x [rows, hidden]); the sequences' states move on by their rows.
  void forward(const Context& context, const float* x, std::span<const DecoderRow> rows, const SequenceRuns& runs, float* y,
               MixerBuffers& buffers) const {
    const auto n = static_cast<Index>(rows.size());
    const Index heads = config_.n_v_heads, dv = config_.v_head_dim, width = heads * dv,
                keys = config_.n_k_heads * config_.k_head_dim;
    project_in(context, x, n, buffers);
    for (AlignedBuffer<float>* buffer : {&buffers.q, &buffers.k}) buffer->resize(static_cast<std::size_t>(n * keys));
    for (AlignedBuffer<float>* buffer : {&buffers.v, &buffers.attended}) buffer->resize(static_cast<std::size_t>(n * width));
    for (AlignedBuffer<float>* buffer : {&buffers.decays, &buffers.betas}) buffer->resize(static_cast<std::size_t>(n * heads));
    {
      const StageScope stage(context.profile(), Stage::attention);
      context.threads.for_each(
          n, [&](std::int64_t i, int) { convolve(context, runs, i, buffers); }, 2);
      context.threads.for_each(std::ssize(runs.runs()), [&](std::int64_t i, int) {
        const SequenceRuns::Run& run = runs.runs()[static_cast<std::size_t>(i)];
        runs.keep_inputs(run, config_.conv_kernel - 1, config_.channels(), inputs_of(*run.sequence), [&](Index row, float* to) {
          const float* from = buffers.projected.data() + row * qkv_.outputs();
          for_each_head([&](Index offset, Index channel, Index size) { std::copy_n(from + offset, size, to + channel); });
        });
      });
      detail::recur(context, runs, {config_.n_k_heads, heads, config_.k_head_dim, dv, config_.tiled_heads, true}, buffers,
                    [&](KvSequence& sequence) { return sequence.state(state_); });
      context.threads.for_each(
          n,
          [&](std::int64_t r, int) {
            const float* z = gate_of(r, buffers);
            for (Index h = 0; h < heads; ++h) {
              float* head = buffers.attended.data() + r * width + h * dv;
              context.kernels->rms_norm(head, norm_.data(), rms_norm_eps_, dv, head);
              context.kernels->swiglu(z + z_offset(h), head, dv, head);
            }
          },
          4);
    }
    detail::project(context, out_, Vector(), buffers.attended.data(), n, width, y, out_.outputs(), buffers.prepared);
  }

  std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const Linear* linear : {&qkv_, &z_, &ba_, &b_, &a_, &out_}) total += linear->bytes();
    return total;
  }

 private:
  // Where heads lie in a row of qkv_: of all q, all k, all v heads, or, with z, for each key head its q, k, value heads, their z.
  bool by_key_head() const noexcept { return z_.empty(); }
  Index group() const noexcept { return config_.n_v_heads / config_.n_k_heads; }
  Index group_step() const noexcept { return 2 * (config_.k_head_dim + group() * config_.v_head_dim); }
  Index q_offset(Index h) const noexcept { return h * (by_key_head() ? group_step() : config_.k_head_dim); }
  Index k_offset(Index h) const noexcept {
    return by_key_head() ? q_offset(h) + config_.k_head_dim : (config_.n_k_heads + h) * config_.k_head_dim;
  }
  Index v_offset(Index h) const noexcept {
    return by_key_head() ? h / group() * group_step() + 2 * config_.k_head_dim + h % group() * config_.v_head_dim
                         : 2 * config_.n_k_heads * config_.k_head_dim + h * config_.v_head_dim;
  }
  Index z_offset(Index h) const noexcept {
    return by_key_head() ? v_offset(h) + group() * config_.v_head_dim : h * config_.v_head_dim;
  }
  const float* gate_of(Index row, const MixerBuffers& buffers) const noexcept {
    return by_key_head() ? buffers.projected.data() + row * qkv_.outputs() : buffers.z.data() + row * z_.outputs();
  }
  // b and a of value head h in a row of buffers.ba
  Index b_offset(Index h) const noexcept { return ba_.empty() ? h : h / group() * 2 * group() + h % group(); }
  Index a_offset(Index h) const noexcept { return ba_.empty() ? config_.n_v_heads + h : b_offset(h) + group(); }
  // channels of the convolution
  Index q_channel(Index h) const noexcept { return h * config_.k_head_dim; }
  Index k_channel(Index h) const noexcept { return (config_.n_k_heads + h) * config_.k_head_dim; }
  Index v_channel(Index h) const noexcept { return 2 * config_.n_k_heads * config_.k_head_dim + h * config_.v_head_dim; }

  float* inputs_of(KvSequence& sequence) const noexcept { return sequence.state(state_) + config_.matrix_floats(); }

  /// f(offset in a row of qkv_, channel, size) for every head of q, k and v.
  template <class F>
  void for_each_head(F&& f) const {
    for (Index h = 0; h < config_.n_k_heads; ++h) {
      f(q_offset(h), q_channel(h), config_.k_head_dim);
      f(k_offset(h), k_channel(h), config_.k_head_dim);
    }
    for (Index h = 0; h < config_.n_v_heads; ++h) f(v_offset(h), v_channel(h), config_.v_head_dim);
  }

  void project_in(const Context& context, const float* x, Index n, MixerBuffers& buffers) const {
    const Index heads = config_.n_v_heads;
    buffers.projected.resize(static_cast<std::size_t>(n * qkv_.outputs()));
    buffers.ba.resize(static_cast<std::size_t>(n * 2 * heads));
    const Linear& z = z_.empty() ? qkv_ : z_;
    const Linear &b = ba_.empty() ? b_ : ba_, &a = ba_.empty() ? a_ : ba_;
    detail::prepare(context, {&qkv_, &z, &b, &a}, x, n, qkv_.inputs(), qkv_.inputs(), buffers.prepared);
    const StageScope stage(context.profile(), Stage::projections);
    qkv_.forward(context, buffers.prepared, buffers.projected.data(), qkv_.outputs());
    if (!z_.empty()) {
      buffers.z.resize(static_cast<std::size_t>(n * z_.outputs()));
      z_.forward(context, buffers.prepared, buffers.z.data(), z_.outputs());
    }
    b.forward(context, buffers.prepared, buffers.ba.data(), 2 * heads);
    if (ba_.empty()) a_.forward(context, buffers.prepared, buffers.ba.data() + heads, 2 * heads);
  }

  /// q, k, v, decay and beta of row i of the runs.
  void convolve(const Context& context, const SequenceRuns& runs, std::int64_t i, MixerBuffers& buffers) const {
    const SequenceRuns::Run& run = runs.run_of(i);
    const Index row = runs.rows()[static_cast<std::size_t>(i)], taps = config_.conv_kernel, dk = config_.k_head_dim;
    const float* const earlier = inputs_of(*run.sequence);
    std::array<const float*, max_conv_kernel> x{};
    const auto conv = [&](Index offset, Index channel, Index size, float* y) {
      runs.inputs(i, taps, earlier + channel, config_.channels(), buffers.projected.data() + offset, qkv_.outputs(), x.data());
      context.kernels->causal_conv(x.data(), conv_.data() + channel, config_.channels(), taps, size, true, y);
    };
    const float length_eps = 1e-6f / static_cast<float>(dk);  // of the mean of squares
    for (Index h = 0; h < config_.n_k_heads; ++h) {
      const Index at = (h * std::ssize(runs.rows()) + row) * dk;  // [head][row]: the delta rule reads a head's rows in order
      float *q = buffers.q.data() + at, *k = buffers.k.data() + at;
      conv(q_offset(h), q_channel(h), dk, q);
      conv(k_offset(h), k_channel(h), dk, k);
      context.kernels->rms_norm(q, q_norm_.data(), length_eps, dk, q);
      context.kernels->rms_norm(k, k_norm_.data(), length_eps, dk, k);
    }
    const Index heads = config_.n_v_heads, dv = config_.v_head_dim;
    const float* ba = buffers.ba.data() + row * 2 * heads;
    for (Index h = 0; h < heads; ++h) {
      conv(v_offset(h), v_channel(h), dv, buffers.v.data() + (row * heads + h) * dv);
      const float step = ba[a_offset(h)] + dt_bias_[h];
      buffers.decays[static_cast<std::size_t>(row * heads + h)] = std::exp(decay_[h] * detail::softplus(step));
      buffers.betas[static_cast<std::size_t>(row * heads + h)] = 1.0f / (1.0f + std::exp(-ba[b_offset(h)]));
    }
  }

  DeltaNetConfig config_;
  std::int64_t state_ = 0;
  float rms_norm_eps_ = 0.0f;
  Linear qkv_, z_, ba_, b_, a_, out_;
  RowMatrix conv_;  // [conv_kernel, channels]
  Vector dt_bias_, decay_, norm_;
  Vector q_norm_, k_norm_;  // constants that make of x / sqrt(mean(x^2)) a row of length 1, of q divided by sqrt(k_head_dim)
};

}  // namespace moxie
