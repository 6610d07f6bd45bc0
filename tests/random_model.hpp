#pragma once
// Random matrices, and small models with random weights, written as GGUF files: every attention, router and weight type without
// reference data.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/io/gguf_writer.hpp>
#include <moxie/model/families/gguf_names.hpp>
#include <moxie/quant/quantize.hpp>

namespace test {

inline const std::vector<moxie::Dtype> weight_types = {
    moxie::Dtype::F32,  moxie::Dtype::F16,  moxie::Dtype::BF16, moxie::Dtype::Q8_0, moxie::Dtype::Q4_0, moxie::Dtype::Q4_1,
    moxie::Dtype::Q5_0, moxie::Dtype::Q5_1, moxie::Dtype::Q4_K, moxie::Dtype::Q5_K, moxie::Dtype::Q6_K};

/// Types that moxie reads and does not write.
inline const std::vector<moxie::Dtype> read_only_types = {moxie::Dtype::Q2_K, moxie::Dtype::Q3_K, moxie::Dtype::IQ1_S, moxie::Dtype::IQ1_M, moxie::Dtype::IQ2_XXS, moxie::Dtype::IQ2_XS, moxie::Dtype::IQ2_S, moxie::Dtype::IQ3_XXS, moxie::Dtype::IQ3_S, moxie::Dtype::IQ4_NL, moxie::Dtype::IQ4_XS, moxie::Dtype::MXFP4, moxie::Dtype::NVFP4, moxie::Dtype::TQ1_0, moxie::Dtype::TQ2_0};

/// Rows of random codes of a read-only type, as they lie in a file; the elements have about this deviation, and about the mean 0.
inline std::vector<std::byte> random_blocks(moxie::Dtype type, std::mt19937& random, moxie::Index rows, moxie::Index columns, float deviation) {
  const moxie::DtypeInfo& info = moxie::dtype_info(type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows) * moxie::row_bytes(type, static_cast<std::uint64_t>(columns)));
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  const auto set_scales = [&](float d) {
    for (std::size_t at = 0; at < bytes.size(); at += info.block_bytes) {
      std::byte* block = bytes.data() + at;
      switch (type) {
        case moxie::Dtype::MXFP4: block[0] = static_cast<std::byte>(128 + static_cast<int>(std::lround(std::log2(d)))); break;
        case moxie::Dtype::Q2_K:
          moxie::store_u16(block + 80, moxie::f32_to_f16(d));
          moxie::store_u16(block + 82, moxie::f32_to_f16(1.5f * d));
          break;
        case moxie::Dtype::NVFP4:
          for (int i = 0; i < 4; ++i) block[i] = static_cast<std::byte>(8 * (7 + static_cast<int>(std::lround(std::log2(d)))) + i);
          break;
        case moxie::Dtype::IQ1_M:
          for (int i = 0; i < 4; ++i) {
            std::byte& high = block[49 + 2 * i];
            high = (high & std::byte{15}) | static_cast<std::byte>((moxie::f32_to_f16(d) >> 4 * i & 15) << 4);
          }
          break;
        case moxie::Dtype::Q3_K: moxie::store_u16(block + 108, moxie::f32_to_f16(d)); break;
        case moxie::Dtype::TQ1_0: moxie::store_u16(block + 52, moxie::f32_to_f16(d)); break;
        case moxie::Dtype::TQ2_0: moxie::store_u16(block + 64, moxie::f32_to_f16(d)); break;
        default: moxie::store_u16(block, moxie::f32_to_f16(d));
      }
    }
  };
  set_scales(1.0f);
  std::vector<float> row(static_cast<std::size_t>(columns));
  moxie::decode_row(type, bytes.data(), row.data(), columns);
  double sum = 0.0;
  for (const float x : row) sum += static_cast<double>(x) * static_cast<double>(x);
  set_scales(deviation / static_cast<float>(std::sqrt(sum / static_cast<double>(columns))));
  return bytes;
}

inline moxie::RowMatrix random_matrix(std::mt19937& random, moxie::Index rows, moxie::Index columns, float deviation, float mean = 0.0f) {
  std::normal_distribution<float> normal(mean, deviation);
  return moxie::RowMatrix::NullaryExpr(rows, columns, [&] { return normal(random); });
}
inline bool same_bits(const moxie::RowMatrix& a, const moxie::RowMatrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

/// The type itself where rows of `columns` can have it, else Q8_0, else F16.
inline moxie::Dtype type_of_rows(moxie::Dtype type, std::int64_t columns) {
  if (columns % moxie::dtype_info(type).block_elements == 0) return type;
  return columns % 32 == 0 ? moxie::Dtype::Q8_0 : moxie::Dtype::F16;
}

/// Sizes that fill no tile of anything, as far as the blocks of the weight type allow.
struct OddSizes {
  std::int64_t hidden, width, heads, kv_heads, head_dim;           // grouped-query attention
  std::int64_t mla_heads, nope, rope, v_head, kv_lora, q_lora;     // latent attention
};
inline OddSizes odd_sizes(moxie::Dtype type) {
  switch (moxie::dtype_info(type).block_elements) {
    case 1: return {76, 52, 6, 3, 22, 3, 20, 12, 28, 44, 36};
    case 32: return {96, 160, 12, 3, 24, 3, 32, 16, 32, 64, 32};
    case 64: return {192, 320, 12, 3, 24, 3, 32, 16, 32, 64, 64};
    default: return {256, 256, 12, 3, 24, 3, 32, 16, 32, 64, 64};
  }
}

inline moxie::ModelConfig common_config(const char* family, const OddSizes& s) {
  moxie::ModelConfig c;
  c.family = family;
  c.vocab_size = 700;
  c.hidden_size = c.moe.hidden_size = s.hidden;
  c.n_layers = 2;
  c.context_length = 512;
  c.intermediate_size = s.width;
  c.moe.moe_intermediate_size = s.width;
  c.is_moe_layer = {true, true};
  return c;
}

/// qwen3_moe: grouped-query attention with q and k norms.
inline moxie::ModelConfig qwen3_moe_config(moxie::Dtype type) {
  const OddSizes s = odd_sizes(type);
  moxie::ModelConfig c = common_config("qwen3_moe", s);
  c.attention.n_heads = s.heads;
  c.attention.n_kv_heads = s.kv_heads;
  c.attention.head_dim = c.attention.rope.dims = s.head_dim;
  c.attention.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  c.attention.qk_norm = moxie::QkNorm::per_head;
  c.moe.router.n_experts = 5;
  c.moe.router.top_k = 2;
  c.moe.router.norm_topk_prob = true;
  return c;
}

/// qwen2_moe: biases on q, k and v, a gated shared expert.
inline moxie::ModelConfig qwen2_moe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "qwen2_moe";
  c.attention.qk_norm = moxie::QkNorm::none;
  c.moe.router.norm_topk_prob = false;
  c.moe.shared_intermediate_size = c.moe.moe_intermediate_size;
  c.moe.shared_expert_gate = true;
  return c;
}

/// mixtral: interleaved rotation; a window of 75 keys.
inline moxie::ModelConfig mixtral_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "mixtral";
  c.attention.qk_norm = moxie::QkNorm::none;
  c.attention.rope.layout = moxie::RopeLayout::interleaved;
  c.attention.sliding_window = 75;
  return c;
}

/// olmoe: q and k norms over all heads, q, k and v clipped, weights of experts that are not renormalized.
inline moxie::ModelConfig olmoe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "olmoe";
  c.attention.qk_norm = moxie::QkNorm::all_heads;
  c.attention.clip_qkv = 1.5f;
  c.intermediate_size = c.moe.moe_intermediate_size;  // one key for both
  c.moe.router.norm_topk_prob = false;
  return c;
}

/// gpt_oss: sinks, a window of 75 keys in the first layer, biases everywhere, softmax over the chosen, a clamped activation.
inline moxie::ModelConfig gpt_oss_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "gpt_oss";
  c.attention.qk_norm = moxie::QkNorm::none;
  c.attention.sinks = true;
  c.attention.rope.scaling = moxie::RopeScaling::yarn;
  c.attention.rope.factor = 32.0;
  c.attention.rope.original_context = 64;
  c.attention.rope.truncate = false;
  c.attention.rope.magnitude = 0.1 * std::log(32.0) + 1.0;
  c.set_sliding_windows({75, 0});
  c.moe.router.scoring = moxie::RouterScoring::chosen_softmax;
  c.moe.biases = true;
  c.moe.swiglu_limit = 1.5f;  // is reached
  return c;
}

/// glm4_moe: half of each head rotated, biases on q, k and v, sigmoid scores with a selection bias, a shared expert, a first dense layer.
inline moxie::ModelConfig glm4_moe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "glm4_moe";
  c.attention.rope.dims = c.attention.head_dim / 4 * 2;
  c.moe.router = {6, 2, moxie::RouterScoring::sigmoid, 1, 1, moxie::GroupScore::best_two, true, 1e-20f, 1.5f};
  c.moe.shared_intermediate_size = c.moe.moe_intermediate_size;
  c.is_moe_layer = {false, true};
  return c;
}

/// hunyuan_v1_moe: norms of q and k after the rotation, a shared expert as wide as the others.
inline moxie::ModelConfig hunyuan_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "hunyuan_v1_moe";
  c.attention.qk_norm = moxie::QkNorm::per_head_rotated;
  c.moe.router.norm_topk_prob = true;
  c.moe.shared_intermediate_size = c.moe.moe_intermediate_size;
  return c;
}

/// qwen3_next: a gated delta net, then attention with an output gate and partly rotated heads; a gated shared expert.
inline moxie::ModelConfig qwen3_next_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen2_moe_config(type);
  c.family = "qwen3_next";
  c.attention.qk_norm = moxie::QkNorm::per_head;
  c.attention.output_gate = true;
  c.attention.rope.dims = c.attention.head_dim / 4 * 2;
  c.moe.router.norm_topk_prob = true;
  c.delta_net = {2, 6, 22, 48, 4, false};
  c.is_recurrent_layer = {true, false};
  return c;
}

/// qwen3_5_moe: the same in its GGUF form, two delta nets first, one head's values narrower than a panel.
inline moxie::ModelConfig qwen3_5_moe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_next_config(type);
  c.family = "qwen3_5_moe";
  c.n_layers = 3;
  c.is_moe_layer = {true, true, true};
  c.is_recurrent_layer = {true, true, false};
  c.delta_net = {3, 6, 32, 16, 3, true};
  return c;
}

/// lfm2_moe: two gated short convolutions around attention, a first dense layer, sigmoid scores with a selection bias.
inline moxie::ModelConfig lfm2_moe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "lfm2_moe";
  c.n_layers = 3;
  c.moe.router = {6, 2, moxie::RouterScoring::sigmoid, 1, 1, moxie::GroupScore::best_two, true, 1e-6f, 1.0f};
  c.is_moe_layer = {false, true, true};
  c.is_recurrent_layer = {true, false, true};
  c.short_conv_kernel = 3;
  return c;
}

/// granitemoe: multipliers everywhere, a shared expert, interleaved rotation.
inline moxie::ModelConfig granitemoe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "granitemoe";
  c.attention.qk_norm = moxie::QkNorm::none;
  c.attention.rope.layout = moxie::RopeLayout::interleaved;
  c.attention.scale *= 1.3f;
  c.embedding_multiplier = 12.0f;
  c.residual_multiplier = 0.22f;
  c.logits_scaling = 6.0f;
  c.moe.shared_intermediate_size = 2 * c.moe.moe_intermediate_size;
  return c;
}

/// granitemoehybrid: the same with two Mamba-2 layers around attention without rotation.
inline moxie::ModelConfig granitemoehybrid_config(moxie::Dtype type) {
  moxie::ModelConfig c = granitemoe_config(type);
  c.family = "granitemoehybrid";
  c.attention.rope = {.dims = 0, .layout = moxie::RopeLayout::interleaved};
  c.n_layers = 3;
  c.is_moe_layer = {true, true, true};
  c.is_recurrent_layer = {true, false, true};
  c.mamba = {6, 2, 48, 22, 4};
  return c;
}

/// afmoe: norms after attention and networks too, an output gate of its own, a rotation in the layer with a window alone.
inline moxie::ModelConfig afmoe_config(moxie::Dtype type) {
  moxie::ModelConfig c = qwen3_moe_config(type);
  c.family = "afmoe";
  c.attention.own_gate = c.attention.rotates_in_windows = true;
  c.set_sliding_windows({0, 21});
  c.embedding_multiplier = 1.5f;
  c.moe.router = {6, 2, moxie::RouterScoring::sigmoid, 1, 1, moxie::GroupScore::best_two, true, 1e-20f, 1.7f};
  c.moe.shared_intermediate_size = c.moe.moe_intermediate_size;
  return c;
}

/// nemotron_h: Mamba-2, experts without a gate, attention without rotation, a dense network, experts; one of them a layer.
inline moxie::ModelConfig nemotron_h_config(moxie::Dtype type) {
  moxie::ModelConfig c = granitemoehybrid_config(type);
  c.family = "nemotron_h";
  c.attention.rope = {.dims = 0};
  c.embedding_multiplier = c.residual_multiplier = c.logits_scaling = 1.0f;
  c.moe.router = {6, 2, moxie::RouterScoring::sigmoid, 1, 1, moxie::GroupScore::best_two, true, 1e-20f, 2.5f};
  c.moe.gated = false;
  using enum moxie::LayerParts;
  c.n_layers = 5;
  c.layer_parts = {mixer, feed_forward, mixer, feed_forward, feed_forward};
  c.is_moe_layer = {false, true, false, false, true};
  c.is_recurrent_layer = {true, false, false, false, false};
  return c;
}

/// The same with a projection of the experts' input, and no shared expert.
inline moxie::ModelConfig nemotron_h_latent_config(moxie::Dtype type) {
  moxie::ModelConfig c = nemotron_h_config(type);
  c.moe.latent_size = c.hidden_size / 2 % moxie::dtype_info(type).block_elements == 0 ? c.hidden_size / 2 : c.hidden_size;
  c.moe.shared_intermediate_size = 0;
  return c;
}

/// deepseek_v3: latent attention with a query rank, sigmoid scores with groups and a selection bias, a first dense layer.
inline moxie::ModelConfig deepseek_v3_config(moxie::Dtype type) {
  const OddSizes s = odd_sizes(type);
  moxie::ModelConfig c = common_config("deepseek_v3", s);
  c.attention.kind = moxie::AttentionKind::mla;
  c.attention.n_heads = s.mla_heads;
  c.attention.qk_nope_head_dim = s.nope;
  c.attention.qk_rope_head_dim = c.attention.rope.dims = s.rope;
  c.attention.rope.layout = moxie::RopeLayout::interleaved;
  c.attention.v_head_dim = s.v_head;
  c.attention.kv_lora_rank = s.kv_lora;
  c.attention.q_lora_rank = s.q_lora;
  c.attention.scale = 1.0f / std::sqrt(static_cast<float>(s.nope + s.rope));
  c.moe.router = {8, 3, moxie::RouterScoring::sigmoid, 4, 2, moxie::GroupScore::best_two, true, 1e-20f, 2.5f};
  c.moe.shared_intermediate_size = s.width;
  c.is_moe_layer = {false, true};
  return c;
}

/// deepseek_v2: latent attention with a direct query and an unsplit kv_b, softmax scores.
inline moxie::ModelConfig deepseek_v2_config(moxie::Dtype type) {
  moxie::ModelConfig c = deepseek_v3_config(type);
  c.family = "deepseek_v2";
  c.attention.q_lora_rank = 0;
  c.moe.router = {6, 2, moxie::RouterScoring::softmax, 1, 1, moxie::GroupScore::best, false, 0.0f, 1.0f};
  c.is_moe_layer = {true, true};
  return c;
}

/// Writes a model of this configuration whose matrices have these types, one for each layer in turn, as far as their rows allow. The
/// embedding is F32. Matrices of more than 4 million elements are filled with one byte, which is quick, and finite in every type.
class RandomModelWriter {
 public:
  RandomModelWriter(const std::string& path, const moxie::ModelConfig& config, std::vector<moxie::Dtype> types, unsigned seed)
      : writer_(path), config_(config), types_(std::move(types)), type_(types_.front()), seed_(seed) {}

  void write() {
    const bool split = config_.family == "deepseek_v3";
    const nlohmann::json metadata = moxie::gguf_metadata(config_, split);
    for (const auto& [key, value] : metadata.items()) {
      if (value.is_boolean()) writer_.set(key, value.get<bool>());
      else if (value.is_number_integer()) writer_.set(key, value.get<std::uint32_t>());
      else if (value.is_number_float()) writer_.set(key, value.get<float>());
      else if (value.is_string()) writer_.set(key, value.get<std::string>());
      else if (value.is_array() && value.front().is_number_integer()) writer_.set(key, value.get<std::vector<std::int32_t>>());
    }
    const std::int64_t h = config_.hidden_size;
    matrix("token_embd.weight", {config_.vocab_size, h}, moxie::Dtype::F32, 1.0f);
    norm(config_.short_conv_kernel != 0 ? "token_embd_norm.weight" : "output_norm.weight", h);
    matrix("output.weight", {config_.vocab_size, h}, type_, 2.5f);  // logits with a spread of 2.5: peaks and tails
    for (std::int64_t i = 0; i < config_.n_layers; ++i) {
      type_ = types_[static_cast<std::size_t>(i) % types_.size()];
      layer("blk." + std::to_string(i) + ".", i);
    }
    writer_.finish();
  }

 private:
  void layer(const std::string& at, std::int64_t i) {
    const std::int64_t h = config_.hidden_size;
    norm(at + "attn_norm.weight", h);
    const bool gpt_oss = config_.family == "gpt_oss", glm = config_.family == "glm4_moe";
    if (config_.parts(i) == moxie::LayerParts::both)
      norm(at + (gpt_oss || glm || config_.delta_net.n_k_heads != 0 ? "post_attention_norm.weight" : "ffn_norm.weight"), h);
    if (config_.attention.own_gate) {
      norm(at + "post_attention_norm.weight", h);
      norm(at + "post_ffw_norm.weight", h);
    }
    if (config_.has_mixer(i)) mixer(at, i);
    if (config_.has_feed_forward(i)) networks(at, i);
  }

  void mixer(const std::string& at, std::int64_t i) {
    const moxie::AttentionConfig& a = config_.attention;
    const std::int64_t h = config_.hidden_size;
    const bool gpt_oss = config_.family == "gpt_oss", glm = config_.family == "glm4_moe";
    if (config_.recurrent_layer(i) && config_.short_conv_kernel != 0) {
      matrix(at + "shortconv.in_proj.weight", {3 * h, h}, type_);
      matrix(at + "shortconv.conv.weight", {h, config_.short_conv_kernel}, moxie::Dtype::F32);
      matrix(at + "shortconv.out_proj.weight", {h, h}, type_);
    } else if (config_.recurrent_layer(i) && config_.mamba.n_heads != 0) {
      mamba(at);
    } else if (config_.recurrent_layer(i)) {
      delta_net(at);
    } else if (a.kind == moxie::AttentionKind::gqa) {
      const std::int64_t q = a.n_heads * a.head_dim, kv = a.n_kv_heads * a.head_dim;
      matrix(at + "attn_q.weight", {(a.output_gate ? 2 : 1) * q, h}, type_);
      if (a.own_gate) matrix(at + "attn_gate.weight", {q, h}, type_);
      matrix(at + "attn_k.weight", {kv, h}, type_);
      matrix(at + "attn_v.weight", {kv, h}, type_);
      matrix(at + "attn_output.weight", {h, q}, type_);
      if (a.qk_norm != moxie::QkNorm::none) {
        const bool per_head = a.qk_norm != moxie::QkNorm::all_heads;
        norm(at + "attn_q_norm.weight", per_head ? a.head_dim : q, 2.0f);
        norm(at + "attn_k_norm.weight", per_head ? a.head_dim : kv);
      }
      if (config_.family == "qwen2_moe" || gpt_oss || glm) {
        vector(at + "attn_q.bias", q, 0.0f);
        vector(at + "attn_k.bias", kv, 0.0f);
        vector(at + "attn_v.bias", kv, 0.0f);
      }
      if (gpt_oss) vector(at + "attn_output.bias", h, 0.0f);
      if (a.sinks) vector(at + "attn_sinks.weight", a.n_heads, 1.0f);
    } else {
      const std::int64_t q = a.n_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
      if (a.q_lora_rank == 0) {
        matrix(at + "attn_q.weight", {q, h}, type_, 2.0f);
      } else {
        matrix(at + "attn_q_a.weight", {a.q_lora_rank, h}, type_);
        norm(at + "attn_q_a_norm.weight", a.q_lora_rank);
        matrix(at + "attn_q_b.weight", {q, a.q_lora_rank}, type_, 2.0f);
      }
      matrix(at + "attn_kv_a_mqa.weight", {a.kv_lora_rank + a.qk_rope_head_dim, h}, type_);
      norm(at + "attn_kv_a_norm.weight", a.kv_lora_rank);
      if (config_.family == "deepseek_v3") {
        matrix(at + "attn_k_b.weight", {a.n_heads, a.kv_lora_rank, a.qk_nope_head_dim}, type_);
        matrix(at + "attn_v_b.weight", {a.n_heads, a.v_head_dim, a.kv_lora_rank}, type_);
      } else {
        matrix(at + "attn_kv_b.weight", {a.n_heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank}, type_);
      }
      matrix(at + "attn_output.weight", {h, a.n_heads * a.v_head_dim}, type_);
    }
  }

  void networks(const std::string& at, std::int64_t i) {
    const moxie::MoeConfig& moe = config_.moe;
    const std::int64_t h = config_.hidden_size, experts = moe.router.n_experts, width = moe.moe_intermediate_size;
    if (!config_.is_moe_layer[static_cast<std::size_t>(i)]) {
      feed_forward(at, "", {}, config_.intermediate_size, h);
      return;
    }
    matrix(at + "ffn_gate_inp.weight", {experts, h}, moxie::Dtype::F32);
    if (moe.router.scoring == moxie::RouterScoring::sigmoid) vector(at + "exp_probs_b.bias", experts, 0.0f);
    if (moe.latent_size != 0) {
      matrix(at + "ffn_latent_down.weight", {moe.latent_size, h}, type_);
      matrix(at + "ffn_latent_up.weight", {h, moe.latent_size}, type_);
    }
    feed_forward(at, "_exps", {experts}, width, moe.expert_input());
    if (moe.biases) {
      vector(at + "ffn_gate_inp.bias", experts, 0.0f);
      add(at + "ffn_gate_exps.bias", moxie::Dtype::F32, {experts, width}, 0.0f, 0.5f);
      add(at + "ffn_up_exps.bias", moxie::Dtype::F32, {experts, width}, 0.0f, 0.5f);
      add(at + "ffn_down_exps.bias", moxie::Dtype::F32, {experts, h}, 0.0f, 0.5f);
    }
    if (moe.shared_intermediate_size != 0) feed_forward(at, "_shexp", {}, moe.shared_intermediate_size, h);
    if (moe.shared_expert_gate) vector(at + "ffn_gate_inp_shexp.weight", h, 0.0f);
  }

  void delta_net(const std::string& at) {
    const moxie::DeltaNetConfig& d = config_.delta_net;
    const std::int64_t h = config_.hidden_size, values = d.n_v_heads * d.v_head_dim;
    matrix(at + "attn_qkv.weight", {d.channels(), h}, type_);
    matrix(at + "attn_gate.weight", {values, h}, type_);
    if (config_.family == "qwen3_next") {
      matrix(at + "ssm_ba.weight", {2 * d.n_v_heads, h}, type_);
    } else {
      matrix(at + "ssm_beta.weight", {d.n_v_heads, h}, type_);
      matrix(at + "ssm_alpha.weight", {d.n_v_heads, h}, type_);
    }
    matrix(at + "ssm_conv1d.weight", {d.channels(), d.conv_kernel}, moxie::Dtype::F32);
    vector(at + "ssm_dt.bias", d.n_v_heads, 0.0f);
    vector(at + "ssm_a", d.n_v_heads, -1.5f);
    norm(at + "ssm_norm.weight", d.v_head_dim);
    matrix(at + "ssm_out.weight", {h, values}, type_);
  }

  void mamba(const std::string& at) {
    const moxie::MambaConfig& m = config_.mamba;
    const std::int64_t h = config_.hidden_size;
    matrix(at + "ssm_in.weight", {m.width() + m.channels() + m.n_heads, h}, type_);
    matrix(at + "ssm_conv1d.weight", {m.channels(), m.conv_kernel}, moxie::Dtype::F32);
    vector(at + "ssm_conv1d.bias", m.channels(), 0.0f);
    vector(at + "ssm_dt.bias", m.n_heads, 0.0f);
    matrix(at + "ssm_d", {m.n_heads, 1}, moxie::Dtype::F32);
    vector(at + "ssm_a", m.n_heads, -1.5f);
    norm(at + "ssm_norm.weight", m.width());
    matrix(at + "ssm_out.weight", {h, m.width()}, type_);
  }

  void feed_forward(const std::string& at, const std::string& suffix, std::vector<std::int64_t> stack, std::int64_t width, std::int64_t hidden) {
    const auto shape = [&](std::int64_t rows, std::int64_t columns) {
      std::vector<std::int64_t> s = stack;
      s.push_back(rows);
      s.push_back(columns);
      return s;
    };
    if (config_.moe.gated) matrix(at + "ffn_gate" + suffix + ".weight", shape(width, hidden), type_);
    matrix(at + "ffn_up" + suffix + ".weight", shape(width, hidden), type_);
    matrix(at + "ffn_down" + suffix + ".weight", shape(hidden, width), type_);
  }

  void norm(const std::string& name, std::int64_t n, float middle = 1.0f) { vector(name, n, middle); }
  void vector(const std::string& name, std::int64_t n, float middle) {
    add(name, moxie::Dtype::F32, {n}, middle, 0.1f);
  }
  /// Elements of variance gain^2 / columns, so that rows of variance 1 give rows of variance gain^2.
  void matrix(const std::string& name, std::vector<std::int64_t> shape, moxie::Dtype type, float gain = 1.0f) {
    const std::int64_t columns = shape.back();
    add(name, type_of_rows(type, columns), std::move(shape), 0.0f, name == "token_embd.weight" ? gain : gain / std::sqrt(static_cast<float>(columns)));
  }
  void add(const std::string& name, moxie::Dtype type, std::vector<std::int64_t> shape, float mean, float deviation) {
    moxie::Index rows = 1;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
    const moxie::Index columns = shape.back();
    const unsigned seed = seed_++;
    writer_.add_tensor(name, type, std::move(shape), [=](const moxie::GgufWriter::Sink& sink) {
      if (rows * columns > 1 << 22) {
        const std::vector<std::byte> row(moxie::row_bytes(type, static_cast<std::uint64_t>(columns)), std::byte{0x11});
        for (moxie::Index r = 0; r < rows; ++r) sink(row);
        return;
      }
      std::mt19937 random(seed);
      if (std::find(read_only_types.begin(), read_only_types.end(), type) != read_only_types.end())
        sink(random_blocks(type, random, rows, columns, deviation));
      else
        sink(moxie::encode_matrix(type, random_matrix(random, rows, columns, deviation, mean), moxie::Threads(2)));
    });
  }

  moxie::GgufWriter writer_;
  moxie::ModelConfig config_;
  std::vector<moxie::Dtype> types_;
  moxie::Dtype type_;
  unsigned seed_;
};

inline std::string write_random_model(const std::string& path, const moxie::ModelConfig& config, moxie::Dtype type, unsigned seed = 1) {
  RandomModelWriter(path, config, {type}, seed).write();
  return path;
}

/// Random token ids.
inline std::vector<std::int32_t> random_ids(std::mt19937& random, std::int64_t n, std::int64_t vocab) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  for (std::int32_t& id : ids) id = std::uniform_int_distribution<std::int32_t>(0, static_cast<std::int32_t>(vocab) - 1)(random);
  return ids;
}

}  // namespace test
