#pragma once
// What a decoder is, as data. A family header fills this from a GGUF file's metadata or from config.json.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <moxie/attention/config.hpp>
#include <moxie/moe/config.hpp>

namespace moxie {

/// What a layer is made of: a mixer (attention, or what is in its place), then a feed-forward network, each with a norm before it
/// (in some families with one after it, too) and added to the residual stream.
enum class LayerParts { both, mixer, feed_forward };

struct ModelConfig {
  std::string family;  ///< "deepseek_v2", "deepseek_v3" (also of glm4_moe_lite), "qwen2_moe", "qwen3_moe", "mixtral", "olmoe",
                       ///< "gpt_oss", "glm4_moe" (also of solar_open), "dots1", "minimax_m2", "ernie4_5_moe", "granitemoe",
                       ///< "hunyuan_v1_moe", "qwen3_next", "qwen3_5_moe", "lfm2_moe", "qwen3_vl_moe", "granitemoehybrid",
                       ///< "nemotron_h", "afmoe", "exaone_moe", "bailing_moe_v2"
  std::string name;    ///< what the file calls itself; may be empty
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t n_layers = 0;
  std::int64_t context_length = 0;
  std::int64_t intermediate_size = 0;  ///< of dense layers; they have a gate where experts have one
  float rms_norm_eps = 1e-6f;
  float embedding_multiplier = 1.0f;  ///< of embeddings
  float residual_multiplier = 1.0f;   ///< of what attention and feed-forward layers add
  float logits_scaling = 1.0f;        ///< logits are divided by it: rows after the final norm are, before the output matrix
  AttentionConfig attention;
  DeltaNetConfig delta_net;
  MambaConfig mamba;
  std::int64_t short_conv_kernel = 0;  ///< tokens that a short convolution sees (LFM2), 1 to max_conv_kernel; 0: there are none
  MoeConfig moe;
  /// The rows of q and k that RoPE turns lie in interleaved pairs where Hugging Face's checkpoints of the model have halves.
  bool permuted_rows = false;
  std::vector<LayerParts> layer_parts;  ///< [n_layers]; empty: both in all
  std::vector<bool> is_moe_layer;       ///< [n_layers]; others have a dense feed-forward network, or none
  std::vector<bool>
      is_recurrent_layer;  ///< [n_layers]: a gated delta net, Mamba-2 or short convolution in place of attention; empty: none
  std::vector<std::int64_t>
      layer_windows;  ///< [n_layers] where sliding windows differ between layers; empty: attention.sliding_window in all

  /// Keys that a query of this layer sees, the own one included; 0: all.
  std::int64_t sliding_window(std::int64_t layer) const {
    return layer_windows.empty() ? attention.sliding_window : layer_windows[static_cast<std::size_t>(layer)];
  }
  /// Whether attention in this layer rotates queries and keys.
  bool rotates(std::int64_t layer) const { return !attention.rotates_in_windows || sliding_window(layer) != 0; }
  /// Sets the window of each layer, [n_layers].
  void set_sliding_windows(const std::vector<std::int64_t>& windows) {
    bool same = true;
    for (const std::int64_t window : windows) same = same && window == windows.front();
    attention.sliding_window = same && !windows.empty() ? windows.front() : 0;
    layer_windows = same ? std::vector<std::int64_t>() : windows;
  }
  LayerParts parts(std::int64_t layer) const {
    return layer_parts.empty() ? LayerParts::both : layer_parts[static_cast<std::size_t>(layer)];
  }
  bool has_mixer(std::int64_t layer) const { return parts(layer) != LayerParts::feed_forward; }
  bool has_feed_forward(std::int64_t layer) const { return parts(layer) != LayerParts::mixer; }
  bool has_attention(std::int64_t layer) const { return has_mixer(layer) && !recurrent_layer(layer); }
  std::int64_t n_attention_layers() const {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < n_layers; ++i) n += has_attention(i);
    return n;
  }
  bool recurrent_layer(std::int64_t layer) const {
    return !is_recurrent_layer.empty() && is_recurrent_layer[static_cast<std::size_t>(layer)];
  }
  std::int64_t n_recurrent_layers() const {
    std::int64_t n = 0;
    for (const bool recurrent : is_recurrent_layer) n += recurrent;
    return n;
  }
  /// Floats of the state of a recurrent layer, a multiple of 16.
  std::int64_t state_floats() const noexcept {
    const std::int64_t floats = short_conv_kernel != 0 ? (short_conv_kernel - 1) * hidden_size
                                : mamba.n_heads != 0
                                    ? mamba.matrix_floats() + (mamba.conv_kernel - 1) * mamba.channels()
                                    : delta_net.matrix_floats() + (delta_net.conv_kernel - 1) * delta_net.channels();
    return floats <= 16 ? 16 : (floats + 15) / 16 * 16;
  }
  std::int64_t n_moe_layers() const {
    std::int64_t n = 0;
    for (const bool moe_layer : is_moe_layer) n += moe_layer;
    return n;
  }
};

}  // namespace moxie
