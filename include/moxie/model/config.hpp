#pragma once
// What a decoder is, as data. A family header fills this from a GGUF file's metadata or from config.json.

#include <cstdint>
#include <string>
#include <vector>

#include <moxie/attention/rope_config.hpp>
#include <moxie/moe/config.hpp>

namespace moxie {

enum class AttentionKind { gqa, mla };
enum class QkNorm { none, per_head };

struct AttentionConfig {
  AttentionKind kind = AttentionKind::gqa;
  std::int64_t n_heads = 0;
  float scale = 0.0f;  ///< of q . k before the softmax
  RopeConfig rope;
  // grouped-query attention
  std::int64_t n_kv_heads = 0;
  std::int64_t head_dim = 0;
  QkNorm qk_norm = QkNorm::none;
  std::int64_t sliding_window = 0;  ///< keys seen, the own one included; 0: all
  // multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)
  std::int64_t q_lora_rank = 0;  ///< 0: q is projected directly
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;
  std::int64_t v_head_dim = 0;
  float latent_norm_eps = 1e-6f;
};

struct ModelConfig {
  std::string family;  ///< "deepseek_v2", "deepseek_v3", "qwen2_moe", "qwen3_moe", "mixtral"
  std::string name;    ///< what the file calls itself; may be empty
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t n_layers = 0;
  std::int64_t context_length = 0;
  std::int64_t intermediate_size = 0;  ///< of dense layers
  float rms_norm_eps = 1e-6f;
  AttentionConfig attention;
  MoeConfig moe;
  std::vector<bool> is_moe_layer;  ///< [n_layers]; others have a dense feed-forward layer

  std::int64_t n_moe_layers() const {
    std::int64_t n = 0;
    for (const bool moe_layer : is_moe_layer) n += moe_layer;
    return n;
  }
};

}  // namespace moxie
