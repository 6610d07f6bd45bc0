#pragma once
// Decoder: a stack of layers over packed weights. Rows in (token, sequence, position), hidden rows out.
//
// Immutable after loading: a const Decoder may run from several threads at once, each with its own scratch.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/model/attention_block.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/delta_net_block.hpp>
#include <moxie/model/mamba_block.hpp>
#include <moxie/model/mixer.hpp>
#include <moxie/model/short_conv_block.hpp>
#include <moxie/model/tensors.hpp>
#include <moxie/model/token_ids.hpp>
#include <moxie/model/weights.hpp>
#include <moxie/moe/experts.hpp>
#include <moxie/moe/feed_forward.hpp>
#include <moxie/moe/moe_block.hpp>
#include <moxie/moe/routing_trace.hpp>
#include <moxie/moe/scratch.hpp>
#include <moxie/quant/quantize.hpp>

namespace moxie {

/// Reusable memory of forward passes; one for each thread of the program that runs the model.
struct DecoderScratch {
  MixerBuffers mixer;
  MoeScratch moe;
  Rotations rotations;
  SequenceRuns runs;
  AlignedBuffer<float> stream, normed, branch;
};

/// Told the number of bytes packed so far and in all; may throw to stop.
using LoadProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

class Decoder {
 public:
  /// Packs all weights. Throws Error when the sizes do not fit together or a weight type has no kernel.
  Decoder(const Context& with, const ModelConfig& config, const DecoderTensors& tensors, TensorMap source,
          const LoadProgress& progress = {})
      : config_(config), source_(std::move(source)), rope_(config.attention.rope), embedding_(tensors.embedding) {
    Arena arena;
    Context context = with;
    context.arena = &arena;
    detail::check_tensor_rows(embedding_.tensor);  // they are decoded as they are needed
    std::uint64_t total = 0, done = 0;
    for (const auto& [name, tensor] : source_.all()) total += tensor.bytes;
    const auto packed = [&](std::uint64_t bytes) {
      done += bytes;
      if (progress) progress(std::min(done, total), total);
    };
    std::int64_t n_attention = 0, n_recurrent = 0;
    for (std::int64_t i = 0; i < config_.n_layers; ++i) {
      std::int64_t& of_its_kind = config_.recurrent_layer(i) ? n_recurrent : n_attention;
      layers_.push_back(load_layer(context, i, of_its_kind, tensors.layers[static_cast<std::size_t>(i)]));
      of_its_kind += config_.has_mixer(i);
      packed(layers_.back().bytes());
    }
    output_norm_ = load_vector(tensors.output_norm);
    if (config_.logits_scaling != 1.0f) output_norm_ /= config_.logits_scaling;
    output_ = load_matrix(context, tensors.output.value_or(tensors.embedding), source_);
    packed(total);
  }

  const ModelConfig& config() const noexcept { return config_; }
  /// The output matrix [vocab, hidden]: logits = output() * hidden row.
  const Linear& output() const noexcept { return output_; }

  KvShape kv_shape(KvType type) const {
    const AttentionConfig& a = config_.attention;
    if (a.kind == AttentionKind::mla) return {config_.n_layers, 1, a.kv_lora_rank + a.qk_rope_head_dim, 0, type};
    KvShape shape{config_.n_attention_layers(), a.n_kv_heads, a.head_dim, a.head_dim, type};
    shape.n_states = config_.n_recurrent_layers();
    if (shape.n_states != 0) shape.state_floats = config_.state_floats();
    return shape;
  }

  /// Runs rows through all layers: hidden [rows, hidden_size] after the final norm, divided by logits_scaling. Positions must be
  /// reserved in their sequences, and a sequence's earlier positions must be written or be earlier rows of this call. `record`
  /// takes the routes of these rows, `replay` replaces the choice of experts. Throws ArgumentError for an id outside the
  /// vocabulary.
  ///
  /// Recurrent layers move their sequences' states: a sequence's rows must be its next positions in their order (else
  /// ArgumentError), and advance() must follow, or fail(). What is thrown leaves such sequences as they were or, in the middle of
  /// the pass, has failed them: length() says it.
  void forward(const Context& context, std::span<const DecoderRow> rows, float* hidden, DecoderScratch& scratch,
               RoutingTrace* record = nullptr, const RoutingTrace* replay = nullptr) const {
    const auto n = static_cast<Index>(rows.size());
    const Index width = config_.hidden_size;
    const auto size = static_cast<std::size_t>(n * width);
    for (AlignedBuffer<float>* buffer : {&scratch.stream, &scratch.normed, &scratch.branch}) buffer->resize(size);
    for (Index r = 0; r < n; ++r) embed(rows[static_cast<std::size_t>(r)].id, scratch.stream.data() + r * width);
    scratch.rotations.assign(context, rope_, rows);
    if (config_.n_recurrent_layers() != 0) scratch.runs.assign(rows);
    try {
      run_layers(context, rows, scratch, record, replay);
      norm(context, scratch.stream.data(), n, output_norm_, hidden);
    } catch (...) {
      for (const DecoderRow& row : rows) row.sequence->fail();
      throw;
    }
  }

  /// About what a row takes of the scratch memory of a pass: activations of attention and of the MoE layer.
  std::size_t scratch_bytes_per_row() const noexcept {
    const AttentionConfig& a = config_.attention;
    const std::int64_t attention =
        a.kind == AttentionKind::mla
            ? a.n_heads * (a.qk_nope_head_dim + 2 * (a.kv_lora_rank + a.qk_rope_head_dim) + a.v_head_dim + a.kv_lora_rank)
            : ((a.output_gate ? 4
                : a.own_gate  ? 3
                              : 2) *
                   a.n_heads +
               2 * a.n_kv_heads) *
                  a.head_dim;
    const DeltaNetConfig& d = config_.delta_net;
    const MambaConfig& m = config_.mamba;
    const std::int64_t recurrent = config_.n_recurrent_layers() == 0 ? 0
                                   : config_.short_conv_kernel != 0  ? 5 * config_.hidden_size
                                   : m.n_heads != 0                  ? 4 * (m.width() + m.keys()) + 3 * m.n_heads
                                                                     : 2 * d.channels() + 2 * d.n_v_heads * (d.v_head_dim + 2);
    const std::int64_t experts = config_.moe.router.top_k * config_.moe.moe_intermediate_size +
                                 config_.moe.shared_intermediate_size + config_.moe.latent_size;
    return static_cast<std::size_t>(std::max(attention, recurrent) + 2 * experts + 6 * config_.hidden_size) * sizeof(float);
  }

  /// Bytes of packed weights.
  std::size_t bytes() const noexcept {
    std::size_t total = output_.bytes();
    for (const Layer& layer : layers_) total += layer.bytes();
    return total;
  }

 private:
  struct Layer {
    Vector attn_norm, ffn_norm, attn_post_norm, ffn_post_norm;  // those that it has
    std::unique_ptr<AttentionBlock> attention;  // one of these four, if it has a mixer
    std::unique_ptr<DeltaNetBlock> delta_net;
    std::unique_ptr<MambaBlock> mamba;
    std::unique_ptr<ShortConvBlock> short_conv;
    std::unique_ptr<MoeBlock> moe;  // one of these two, if it has a feed-forward network
    std::unique_ptr<FeedForward> dense;
    std::size_t bytes() const noexcept {
      return (attention    ? attention->bytes()
              : delta_net  ? delta_net->bytes()
              : mamba      ? mamba->bytes()
              : short_conv ? short_conv->bytes()
                           : 0) +
             (moe     ? moe->bytes()
              : dense ? dense->bytes()
                      : 0);
    }
  };

  /// From embeddings to what the final norm takes, in scratch.stream.
  void run_layers(const Context& context, std::span<const DecoderRow> rows, DecoderScratch& scratch, RoutingTrace* record,
                  const RoutingTrace* replay) const {
    const auto n = static_cast<Index>(rows.size());
    const Index width = config_.hidden_size;
    float *stream = scratch.stream.data(), *normed = scratch.normed.data(), *branch = scratch.branch.data();
    std::int64_t moe_layer = 0;
    for (const Layer& layer : layers_) {
      if (layer.attn_norm.size() != 0) {
        norm(context, stream, n, layer.attn_norm, normed);
        mix(context, layer, normed, rows, branch, scratch);
        if (layer.attn_post_norm.size() != 0) norm(context, branch, n, layer.attn_post_norm, branch);
        add(context, branch, n, stream);
      }
      if (layer.ffn_norm.size() == 0) continue;
      norm(context, stream, n, layer.ffn_norm, normed);
      if (layer.moe) {
        RoutingRows routing = record ? record->record(moe_layer) : RoutingRows{};
        if (replay) routing.replay = replay->ids(moe_layer).data();
        layer.moe->forward(context, normed, n, width, branch, width, scratch.moe, routing);
        ++moe_layer;
      } else {
        layer.dense->forward(context, normed, n, width, branch, width, scratch.moe);
      }
      if (layer.ffn_post_norm.size() != 0) norm(context, branch, n, layer.ffn_post_norm, branch);
      add(context, branch, n, stream);
    }
  }

  /// y [rows, hidden]: what a layer's mixer makes of x.
  void mix(const Context& context, const Layer& layer, const float* x, std::span<const DecoderRow> rows, float* y,
           DecoderScratch& scratch) const {
    if (layer.attention)
      layer.attention->forward(context, x, rows, scratch.rotations, rope_, y, scratch.mixer);
    else if (layer.delta_net)
      layer.delta_net->forward(context, x, rows, scratch.runs, y, scratch.mixer);
    else if (layer.mamba)
      layer.mamba->forward(context, x, rows, scratch.runs, y, scratch.mixer);
    else
      layer.short_conv->forward(context, x, rows, scratch.runs, y, scratch.mixer);
  }

  std::vector<FeedForwardWeights> load_experts(const Context& context, const std::vector<FeedForwardTensors>& tensors) const {
    std::vector<FeedForwardWeights> experts(tensors.size());
    const auto load = [&](const Context& with, std::int64_t i) {
      const FeedForwardTensors& from = tensors[static_cast<std::size_t>(i / 3)];
      FeedForwardWeights& to = experts[static_cast<std::size_t>(i / 3)];
      if (i % 3 != 0)
        (i % 3 == 1 ? to.up : to.down) = load_matrix(with, i % 3 == 1 ? from.up : from.down, source_);
      else if (from.gate)
        to.gate = load_matrix(with, *from.gate, source_);
    };
    // Many small matrices: a thread takes one after the other, as it does where they are copied first. A few large ones: the
    // threads share each.
    const auto n = static_cast<std::int64_t>(3 * tensors.size());
    const bool copied = !tensors.empty() && tensors.front().down.strided;
    if (n >= (copied ? 1 : 8) * context.threads.count()) {
      Context alone = context;
      alone.threads = Threads(1);
      context.threads.for_each(n, [&](std::int64_t i, int) { load(alone, i); });
    } else {
      for (std::int64_t i = 0; i < n; ++i) load(context, i);
    }
    return experts;
  }

  /// The experts' biases, and the limit of their activations.
  void add_biases(const LayerTensors& tensors, std::vector<FeedForwardWeights>& experts) const {
    const auto n = static_cast<Index>(experts.size());
    const auto add = [&](const std::optional<Weight>& weight, Vector FeedForwardWeights::*bias) {
      if (!weight) return;
      const RowMatrix rows = load_rows(*weight, n);
      for (Index e = 0; e < n; ++e) experts[static_cast<std::size_t>(e)].*bias = rows.row(e);
    };
    add(tensors.experts_gate_bias, &FeedForwardWeights::gate_bias);
    add(tensors.experts_up_bias, &FeedForwardWeights::up_bias);
    add(tensors.experts_down_bias, &FeedForwardWeights::down_bias);
    for (FeedForwardWeights& expert : experts) expert.swiglu_limit = config_.moe.swiglu_limit;
  }

  /// `of_its_kind`: the layer's number among those with attention, or among the recurrent ones.
  Layer load_layer(const Context& context, std::int64_t i, std::int64_t of_its_kind, const LayerTensors& tensors) const {
    Layer layer;
    const auto matrix = [&](const std::optional<Weight>& weight) {
      return weight ? load_matrix(context, *weight, source_) : Linear();
    };
    const auto vector = [](const std::optional<Weight>& weight) { return weight ? load_vector(*weight) : Vector(); };
    layer.attn_norm = vector(tensors.attn_norm);
    layer.ffn_norm = vector(tensors.ffn_norm);
    layer.attn_post_norm = vector(tensors.attn_post_norm);
    layer.ffn_post_norm = vector(tensors.ffn_post_norm);
    if (tensors.short_conv)
      layer.short_conv = std::make_unique<ShortConvBlock>(context, config_, of_its_kind, *tensors.short_conv, source_);
    else if (tensors.mamba)
      layer.mamba = std::make_unique<MambaBlock>(context, config_, of_its_kind, *tensors.mamba, source_);
    else if (tensors.delta_net)
      layer.delta_net = std::make_unique<DeltaNetBlock>(context, config_, of_its_kind, *tensors.delta_net, source_);
    else if (config_.has_mixer(i))
      layer.attention = std::make_unique<AttentionBlock>(context, config_, i, of_its_kind, tensors, source_);
    if (!config_.has_feed_forward(i)) return layer;
    const auto feed_forward = [&](const FeedForwardTensors& weights) {
      return FeedForwardWeights{matrix(weights.gate), matrix(weights.up), matrix(weights.down)};
    };
    if (!config_.is_moe_layer[static_cast<std::size_t>(i)]) {
      layer.dense = std::make_unique<FeedForward>(feed_forward(*tensors.dense));
      return layer;
    }
    std::vector<FeedForwardWeights> experts = load_experts(context, tensors.experts);
    add_biases(tensors, experts);
    // The router and the shared expert's gate always multiply f32 weights: bf16 checkpoints widen exactly.
    const auto as_f32 = [&](const Weight& weight, Index rows) {
      Linear linear = Linear::from_rows(context, Dtype::F32, load_rows(weight, rows));
      linear.set_low_rank(weight.low_rank);
      return linear;
    };
    Router router(config_.moe.router, as_f32(*tensors.router, config_.moe.router.n_experts), vector(tensors.router_bias),
                  vector(tensors.router_logit_bias));
    std::optional<FeedForwardWeights> shared;
    if (tensors.shared) shared = feed_forward(*tensors.shared);
    layer.moe = std::make_unique<MoeBlock>(std::move(router), std::move(experts), std::move(shared),
                                           tensors.shared_gate ? as_f32(*tensors.shared_gate, 1) : Linear(),
                                           LatentExperts{matrix(tensors.latent_in), matrix(tensors.latent_out)});
    return layer;
  }

  void embed(std::int32_t id, float* to) const {
    check_token_id(id, config_.vocab_size);
    if (embedding_.scale_inv) {
      decode_fp8_blocks(embedding_.tensor, *embedding_.scale_inv, id, 1, to);
    } else {
      dequantize(embedding_.tensor.slice_rows(id, 1), to);
    }
    if (const float by = config_.embedding_multiplier; by != 1.0f)
      for (Index i = 0; i < config_.hidden_size; ++i) to[i] *= by;
  }
  void norm(const Context& context, const float* x, Index rows, const Vector& weight, float* y) const {
    const Index width = config_.hidden_size;
    context.threads.for_each(
        rows,
        [&](std::int64_t r, int) {
          context.kernels->rms_norm(x + r * width, weight.data(), config_.rms_norm_eps, width, y + r * width);
        },
        16);
  }
  /// What a branch gave to the residual stream.
  void add(const Context& context, const float* x, Index rows, float* y) const {
    const Index width = config_.hidden_size;
    const float by = config_.residual_multiplier;
    context.threads.for_each(
        rows,
        [&](std::int64_t r, int) {
          if (by == 1.0f)
            context.kernels->add(x + r * width, width, y + r * width);
          else
            context.kernels->axpy(by, x + r * width, width, y + r * width);
        },
        16);
  }

  ModelConfig config_;
  TensorMap source_;  // keeps the mapped embedding alive
  Rope rope_;
  Weight embedding_;
  std::vector<Layer> layers_;
  Vector output_norm_;
  Linear output_;
};

}  // namespace moxie
