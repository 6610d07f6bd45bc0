#pragma once
// What a decoder is, as data. A family header fills this from a GGUF file's metadata or from config.json.

#include <cstdint>
#include <string>
#include <vector>

#include <moxie/attention/config.hpp>
#include <moxie/moe/config.hpp>

namespace moxie {

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
