#pragma once
// The attention of one layer: projections, biases, q/k norms, rotation, KV pages, scores and values, output projection.
//
// Grouped-query attention, or multi-head latent attention in its absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1.2):
// q_latent[h] = k_b[h] q_nope[h]; scores = q_latent . c + q_rope . k_rope over the cached latents c; out[h] = v_b[h] (softmax c).
// One form for prefill and decode, so that both give the same bits.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <moxie/attention/attend.hpp>
#include <moxie/attention/kv_cache.hpp>
#include <moxie/attention/rope.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/mixer.hpp>
#include <moxie/model/weights.hpp>

namespace moxie {

/// cos and sin of every row of a batch, [rows, dims / 2] each; the same for all layers.
struct Rotations {
  AlignedBuffer<float> cos, sin;
  Index half = 0;

  void assign(const Context& context, const Rope& rope, std::span<const DecoderRow> rows) {
    half = rope.dims() / 2;
    cos.resize(rows.size() * static_cast<std::size_t>(half));
    sin.resize(rows.size() * static_cast<std::size_t>(half));
    context.threads.for_each(
        static_cast<std::int64_t>(rows.size()),
        [&](std::int64_t r, int) {
          rope.tables(rows[static_cast<std::size_t>(r)].position, cos.data() + r * half, sin.data() + r * half);
        },
        16);
  }
};

class AttentionBlock {
 public:
  /// `kv_layer`: its number in the KV cache.
  AttentionBlock(const Context& context, const ModelConfig& model, std::int64_t layer, std::int64_t kv_layer,
                 const LayerTensors& tensors, const TensorMap& source)
      : config_(model.attention), layer_(kv_layer), rotates_(model.rotates(layer)), rms_norm_eps_(model.rms_norm_eps) {
    config_.sliding_window = model.sliding_window(layer);
    const auto matrix = [&](const std::optional<Weight>& weight) {
      return weight ? load_matrix(context, *weight, source) : Linear();
    };
    const auto vector = [&](const std::optional<Weight>& weight) { return weight ? load_vector(*weight) : Vector(); };
    o_ = load_matrix(context, *tensors.o, source);
    o_bias_ = vector(tensors.o_bias);
    sinks_ = vector(tensors.sinks);
    q_ = matrix(tensors.q);
    if (config_.kind == AttentionKind::gqa) {
      k_ = matrix(tensors.k);
      v_ = matrix(tensors.v);
      gate_ = matrix(tensors.attn_gate);
      q_bias_ = vector(tensors.q_bias);
      k_bias_ = vector(tensors.k_bias);
      v_bias_ = vector(tensors.v_bias);
      q_norm_ = vector(tensors.q_norm);
      k_norm_ = vector(tensors.k_norm);
    } else {
      q_a_ = matrix(tensors.q_a);
      q_a_bias_ = vector(tensors.q_a_bias);
      q_a_norm_ = vector(tensors.q_a_norm);
      q_b_ = matrix(tensors.q_b);
      kv_a_ = matrix(tensors.kv_a);
      kv_a_bias_ = vector(tensors.kv_a_bias);
      kv_a_norm_ = vector(tensors.kv_a_norm);
      latent_ = load_latent_projections(context, tensors, config_.n_heads, config_.qk_nope_head_dim, config_.v_head_dim,
                                        config_.kv_lora_rank, source);
    }
  }

  /// y [rows, hidden] = attention(x [rows, hidden]); keys and values of the rows are written into their sequences' pages.
  void forward(const Context& context, const float* x, std::span<const DecoderRow> rows, const Rotations& rotations,
               const Rope& rope, float* y, MixerBuffers& buffers) const {
    buffers.rows.clear();
    for (const DecoderRow& row : rows) buffers.rows.push_back({row.sequence, row.position});
    if (config_.kind == AttentionKind::gqa) {
      grouped_query(context, x, rows, rotations, rope, buffers);
    } else {
      latent(context, x, rows, rotations, rope, buffers);
    }
    detail::project(context, o_, o_bias_, buffers.attended.data(), static_cast<Index>(rows.size()), o_.inputs(), y, o_.outputs(),
                    buffers.prepared);
  }

  std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const Linear* linear : {&q_, &k_, &v_, &o_, &gate_, &q_a_, &q_b_, &kv_a_}) total += linear->bytes();
    for (const Linear& linear : latent_.k_b) total += linear.bytes();
    for (const Linear& linear : latent_.v_b) total += linear.bytes();
    return total;
  }

 private:
  void clip(float* x, Index n) const noexcept {
    if (config_.clip_qkv == 0.0f) return;
    for (Index i = 0; i < n; ++i) x[i] = std::clamp(x[i], -config_.clip_qkv, config_.clip_qkv);
  }

  void grouped_query(const Context& context, const float* x, std::span<const DecoderRow> rows, const Rotations& rotations,
                     const Rope& rope, MixerBuffers& buffers) const {
    const auto n = static_cast<Index>(rows.size());
    const Index d = config_.head_dim, q_width = config_.n_heads * d, kv_width = config_.n_kv_heads * d;
    buffers.q.resize(static_cast<std::size_t>(n * q_width));
    buffers.k.resize(static_cast<std::size_t>(n * kv_width));
    buffers.v.resize(static_cast<std::size_t>(n * kv_width));
    buffers.attended.resize(static_cast<std::size_t>(n * q_width));
    float *q = buffers.q.data(), *k = buffers.k.data(), *v = buffers.v.data();
    // With a gate, q's projection gives q and gate for each head, unless the gate has its own.
    const bool gate_in_q = config_.output_gate;
    const Index projected_width = gate_in_q ? 2 * q_width : q_width;
    if (gate_in_q || config_.own_gate) buffers.projected.resize(static_cast<std::size_t>(n * projected_width));
    float *const gates = buffers.projected.data(), *const projected = gate_in_q ? gates : q;
    detail::prepare(context, {&q_, &k_, &v_, config_.own_gate ? &gate_ : &q_}, x, n, q_.inputs(), q_.inputs(), buffers.prepared);
    {
      const StageScope stage(context.profile(), Stage::projections);
      if (config_.own_gate) gate_.forward(context, buffers.prepared, gates, q_width);
      q_.forward(context, buffers.prepared, projected, projected_width);
      k_.forward(context, buffers.prepared, k, kv_width);
      v_.forward(context, buffers.prepared, v, kv_width);
    }
    detail::add_bias(context, q_bias_, projected, n, projected_width);
    detail::add_bias(context, k_bias_, k, n, kv_width);
    detail::add_bias(context, v_bias_, v, n, kv_width);
    context.threads.for_each(
        n,
        [&](std::int64_t r, int) {
          const float *cos = rotations.cos.data() + r * rotations.half, *sin = rotations.sin.data() + r * rotations.half;
          const auto finish = [&](float* heads, Index width, const Vector& norm) {
            const auto normalize = [&] {  // one head, or all together
              for (float* part = heads; part < heads + width && norm.size() != 0; part += norm.size())
                context.kernels->rms_norm(part, norm.data(), rms_norm_eps_, norm.size(), part);
            };
            const bool rotated_first = config_.qk_norm == QkNorm::per_head_rotated;
            if (!rotated_first) normalize();
            clip(heads, width);
            for (float* head = heads; rotates_ && head < heads + width; head += d) rope.rotate(cos, sin, head);
            if (rotated_first) normalize();
          };
          for (Index h = 0; gate_in_q && h < config_.n_heads; ++h)
            std::copy_n(projected + r * projected_width + 2 * h * d, d, q + r * q_width + h * d);
          finish(q + r * q_width, q_width, q_norm_);
          finish(k + r * kv_width, kv_width, k_norm_);
          clip(v + r * kv_width, kv_width);
          rows[static_cast<std::size_t>(r)].sequence->write(layer_, rows[static_cast<std::size_t>(r)].position, k + r * kv_width,
                                                            v + r * kv_width);
        },
        4);
    const StageScope stage(context.profile(), Stage::attention);
    attend_gqa(context, config_, layer_, q, q_width, buffers.rows, buffers.attended.data(), q_width, buffers.scratch,
               sinks_.size() != 0 ? sinks_.data() : nullptr);
    if (!gate_in_q && !config_.own_gate) return;
    context.threads.for_each(
        n,
        [&](std::int64_t r, int) {
          float* const attended = buffers.attended.data() + r * q_width;
          if (!gate_in_q) context.kernels->sigmoid_gate(gates + r * q_width, q_width, attended);
          for (Index h = 0; gate_in_q && h < config_.n_heads; ++h)
            context.kernels->sigmoid_gate(gates + r * projected_width + (2 * h + 1) * d, d, attended + h * d);
        },
        16);
  }

  void latent(const Context& context, const float* x, std::span<const DecoderRow> rows, const Rotations& rotations,
              const Rope& rope, MixerBuffers& buffers) const {
    const auto n = static_cast<Index>(rows.size());
    const Index heads = config_.n_heads, nope = config_.qk_nope_head_dim, rotary = config_.qk_rope_head_dim,
                lora = config_.kv_lora_rank;
    const Index q_head = nope + rotary, key = lora + rotary;
    buffers.q.resize(static_cast<std::size_t>(n * heads * q_head));
    buffers.k.resize(static_cast<std::size_t>(n * key));
    buffers.latent.resize(static_cast<std::size_t>(n * heads * key));
    buffers.v.resize(static_cast<std::size_t>(n * std::max(heads * lora, config_.q_lora_rank)));
    buffers.attended.resize(static_cast<std::size_t>(n * heads * config_.v_head_dim));
    float *q = buffers.q.data(), *k = buffers.k.data(), *q_latent = buffers.latent.data(), *wide = buffers.v.data();

    detail::prepare(context, {q_a_.empty() ? &q_ : &q_a_, &kv_a_}, x, n, kv_a_.inputs(), kv_a_.inputs(), buffers.prepared);
    {
      const StageScope stage(context.profile(), Stage::projections);
      kv_a_.forward(context, buffers.prepared, k, key);
      (q_a_.empty() ? q_ : q_a_)
          .forward(context, buffers.prepared, q_a_.empty() ? q : wide, q_a_.empty() ? heads * q_head : config_.q_lora_rank);
    }
    detail::add_bias(context, kv_a_bias_, k, n, key);
    if (!q_a_.empty()) {
      const Index rank = config_.q_lora_rank;
      detail::add_bias(context, q_a_bias_, wide, n, rank);
      context.threads.for_each(
          n,
          [&](std::int64_t r, int) {
            context.kernels->rms_norm(wide + r * rank, q_a_norm_.data(), config_.latent_norm_eps, rank, wide + r * rank);
          },
          16);
      detail::project(context, q_b_, Vector(), wide, n, rank, q, heads * q_head, buffers.prepared);
    }
    context.threads.for_each(
        n,
        [&](std::int64_t r, int) {
          const float *cos = rotations.cos.data() + r * rotations.half, *sin = rotations.sin.data() + r * rotations.half;
          float* row_key = k + r * key;
          context.kernels->rms_norm(row_key, kv_a_norm_.data(), config_.latent_norm_eps, lora, row_key);
          rope.rotate(cos, sin, row_key + lora);
          rows[static_cast<std::size_t>(r)].sequence->write(layer_, rows[static_cast<std::size_t>(r)].position, row_key, nullptr);
          for (Index h = 0; h < heads; ++h) {
            const float* from = q + (r * heads + h) * q_head + nope;
            float* to = q_latent + (r * heads + h) * key + lora;
            std::copy(from, from + rotary, to);
            rope.rotate(cos, sin, to);
          }
        },
        4);
    per_head(context, latent_.k_b, q, n, q_head, q_latent, key, buffers);
    {
      const StageScope stage(context.profile(), Stage::attention);
      attend_mla(context, config_, layer_, q_latent, heads * key, buffers.rows, wide, heads * lora, buffers.scratch);
    }
    per_head(context, latent_.v_b, wide, n, lora, buffers.attended.data(), config_.v_head_dim, buffers);
  }

  /// y[r][h] = matrices[h] x[r][h] for all rows and heads; heads of x are `x_head` floats apart, those of y `y_head`.
  void per_head(const Context& context, const std::vector<Linear>& matrices, const float* x, Index n, Index x_head, float* y,
                Index y_head, MixerBuffers& buffers) const {
    const auto heads = static_cast<Index>(matrices.size());
    const Linear& first = matrices.front();
    buffers.prepared_latent.assign_rows(context, n * heads, first.inputs(), first.takes_int8(context.activations),
                                        first.takes_f32(context.activations),
                                        [&](Index i) { return x + (i % n * heads + i / n) * x_head; });  // a head's rows together
    const StageScope stage(context.profile(), Stage::projections);
    if (first.low_rank()) buffers.low_rank.resize(static_cast<std::size_t>(heads * n * first.rank()));
    context.threads.for_each(
        heads,
        [&](std::int64_t h, int) {
          const Linear& matrix = matrices[static_cast<std::size_t>(h)];
          float* u = nullptr;
          if (matrix.low_rank()) {
            u = buffers.low_rank.data() + h * n * matrix.rank();
            matrix.low_rank()->project(buffers.prepared_latent.view(), h * n, n, u);
          }
          matrix.multiply(buffers.prepared_latent.view(), context.activations, h * n, n, 0, matrix.outputs(), y + h * y_head,
                          heads * y_head, u);
        },
        n * heads * first.outputs() * first.inputs() < worth_a_team ? heads : 1);
  }

  AttentionConfig config_;
  std::int64_t layer_ = 0;
  bool rotates_ = true;
  float rms_norm_eps_ = 0.0f;
  Linear q_, k_, v_, gate_, o_, q_a_, q_b_, kv_a_;
  LatentProjections latent_;
  Vector q_bias_, k_bias_, v_bias_, o_bias_, q_norm_, k_norm_, q_a_bias_, q_a_norm_, kv_a_bias_, kv_a_norm_, sinks_;
};

}  // namespace moxie
