#pragma once
// What the attention of a decoder is, as data.

#include <cstdint>

#include <moxie/attention/rope_config.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

enum class AttentionKind { gqa, mla };
enum class QkNorm {
  none,
  per_head,
  per_head_rotated,  ///< the same, after the rotation
  all_heads          ///< one root mean square over a whole row of q or k, before it is split into heads
};

struct AttentionConfig {
  AttentionKind kind = AttentionKind::gqa;
  std::int64_t n_heads = 0;
  float scale = 0.0f;  ///< of q . k before the softmax
  RopeConfig rope;
  // grouped-query attention
  std::int64_t n_kv_heads = 0;
  std::int64_t head_dim = 0;
  QkNorm qk_norm = QkNorm::none;
  float clip_qkv = 0.0f;            ///< q and k after their norms, and v, are limited to [-clip_qkv, clip_qkv]; 0: they are not
  std::int64_t sliding_window = 0;  ///< keys seen, the own one included; 0: all
  bool sinks = false;               ///< each query head has a logit that joins its softmax without a value (gpt-oss)
  bool output_gate = false;  ///< each head's result is multiplied by the sigmoid of a gate, which q's projection gives beside q
  bool own_gate = false;     ///< the same with a gate that has a projection of its own
  bool rotates_in_windows = false;  ///< layers without a sliding window do not rotate
  // multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)
  std::int64_t q_lora_rank = 0;  ///< 0: q is projected directly
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;
  std::int64_t v_head_dim = 0;
  float latent_norm_eps = 1e-6f;
};

inline constexpr std::int64_t max_conv_kernel = 16;

/// Floats of the matrices [k_dim, v_dim] of recurrent heads, whose columns lie in groups of kernels::delta_columns.
constexpr std::int64_t recurrent_matrix_floats(std::int64_t heads, std::int64_t k_dim, std::int64_t v_dim) noexcept {
  constexpr std::int64_t columns = kernels::delta_columns;
  return heads * ((v_dim + columns - 1) / columns * columns) * k_dim;
}

/// Gated delta nets (arXiv 2412.06464), the recurrent layers of Qwen3-Next and its successors.
struct DeltaNetConfig {
  std::int64_t n_k_heads = 0;  ///< of q and k; 0: the model has no such layers
  std::int64_t n_v_heads = 0;  ///< a multiple of n_k_heads
  std::int64_t k_head_dim = 0, v_head_dim = 0;
  std::int64_t conv_kernel = 0;  ///< tokens that the convolution sees, the own one included; 1 to max_conv_kernel
  /// Value head h uses key head h % n_k_heads; else h / (n_v_heads / n_k_heads).
  bool tiled_heads = false;

  /// Channels of the convolution: those of all q, all k, all v heads.
  std::int64_t channels() const noexcept { return 2 * n_k_heads * k_head_dim + n_v_heads * v_head_dim; }
  std::int64_t matrix_floats() const noexcept { return recurrent_matrix_floats(n_v_heads, k_head_dim, v_head_dim); }
};

/// Mamba-2 (arXiv 2405.21060), the recurrent layers of Granite 4 and Nemotron-H.
struct MambaConfig {
  std::int64_t n_heads = 0;   ///< 0: the model has no such layers
  std::int64_t n_groups = 0;  ///< of heads with the same B and C; n_heads is a multiple
  std::int64_t head_dim = 0, state_dim = 0;
  std::int64_t conv_kernel = 0;  ///< tokens that the convolution sees, the own one included; 1 to max_conv_kernel

  std::int64_t width() const noexcept { return n_heads * head_dim; }
  /// Of all B, and of all C.
  std::int64_t keys() const noexcept { return n_groups * state_dim; }
  /// Channels of the convolution: those of x, B, C.
  std::int64_t channels() const noexcept { return width() + 2 * keys(); }
  std::int64_t matrix_floats() const noexcept { return recurrent_matrix_floats(n_heads, state_dim, head_dim); }
};

}  // namespace moxie
