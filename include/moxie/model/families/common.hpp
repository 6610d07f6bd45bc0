#pragma once
// What differs between model families, as data: one `Family` value for each, in a header of its own.
// common_hf.hpp and common_gguf.hpp turn it into a ModelConfig, common_tensors.hpp finds the tensors.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/model/config.hpp>

namespace moxie::families {

/// Tensor names. {i} stands for the layer, {e} for the expert; nullptr: this source has no such tensor. The bias of a
/// projection has its name with ".bias" for ".weight". Shapes are those of model/tensors.hpp.
struct TensorNames {
  const char* layer_prefix = nullptr;  ///< what comes before the layer's number
  const char* embedding = nullptr;
  const char* output_norm = nullptr;
  const char* output = nullptr;
  const char* rope_freqs = nullptr;  ///< [dims / 2]
  const char* attn_norm = nullptr;
  const char* ffn_norm = nullptr;
  const char* attn_post_norm = nullptr;
  const char* ffn_post_norm = nullptr;
  const char* q = nullptr;
  const char* k = nullptr;
  const char* v = nullptr;
  const char* qkv = nullptr;  ///< rows of q, k, v in this order, instead of the three
  const char* attn_gate = nullptr;
  const char* o = nullptr;
  const char* q_norm = nullptr;
  const char* k_norm = nullptr;
  const char* sinks = nullptr;
  const char* q_a = nullptr;
  const char* q_a_norm = nullptr;
  const char* q_b = nullptr;
  const char* kv_a = nullptr;
  const char* kv_a_norm = nullptr;
  const char* kv_b = nullptr;
  const char* k_b = nullptr;
  const char* v_b = nullptr;
  const char* delta_qkvz = nullptr;  ///< rows of q, k, v, z by key head; or delta_qkv and delta_z
  const char* delta_qkv = nullptr;
  const char* delta_z = nullptr;
  const char* delta_ba = nullptr;  ///< rows of b and a by key head; or delta_b and delta_a
  const char* delta_b = nullptr;
  const char* delta_a = nullptr;
  const char* delta_conv = nullptr;  ///< [channels, kernel] or [channels, 1, kernel]
  const char* delta_dt_bias = nullptr;
  const char* delta_decay = nullptr;  ///< -exp(A_log)
  const char* delta_a_log = nullptr;  ///< or A_log
  const char* delta_norm = nullptr;
  const char* delta_out = nullptr;
  const char* mamba_in = nullptr;
  const char* mamba_conv = nullptr;  ///< as delta_conv; its bias has its name with ".bias"
  const char* mamba_dt_bias = nullptr;
  const char* mamba_decay = nullptr;  ///< -exp(A_log)
  const char* mamba_a_log = nullptr;  ///< or A_log
  const char* mamba_d = nullptr;
  const char* mamba_norm = nullptr;
  const char* mamba_out = nullptr;
  const char* short_conv_in = nullptr;
  const char* short_conv = nullptr;  ///< as delta_conv
  const char* short_conv_out = nullptr;
  const char* dense_gate = nullptr;  ///< nullptr, as the gates of experts, in families without Family::gated
  const char* dense_up = nullptr;
  const char* dense_down = nullptr;
  const char* router = nullptr;
  const char* router_bias = nullptr;
  const char* latent_in = nullptr;
  const char* latent_out = nullptr;
  const char* expert_gate = nullptr;  ///< one tensor for each expert
  const char* expert_up = nullptr;
  const char* expert_down = nullptr;
  const char* experts_gate = nullptr;  ///< all experts in one tensor, [experts, width, hidden]
  const char* experts_up = nullptr;
  const char* experts_down = nullptr;
  const char* experts_gate_up = nullptr;  ///< [experts, 2 * width, hidden], the gate's rows first, instead of the two
  const char* shared_gate = nullptr;
  const char* shared_up = nullptr;
  const char* shared_gate_up = nullptr;  ///< [2 * width, hidden], the gate's rows first, instead of the two
  const char* shared_down = nullptr;
  const char* shared_expert_gate = nullptr;
  /// gpt-oss in Hugging Face's form: experts_gate_up [experts, hidden, 2 * width], gate and up alternating, and experts_down
  /// [experts, width, hidden], or both as MXFP4 (_blocks, _scales) with the dimensions in the usual order; biases are "_bias".
  bool alternating_experts = false;
  /// experts_gate_up may be [experts, hidden, 2 * width], and experts_down [experts, width, hidden].
  bool experts_may_be_transposed = false;
  bool norms_minus_one = false;  ///< norms but delta_norm hold their weight - 1
};

/// Hugging Face's usual names: what is around the feed-forward networks, with grouped-query attention.
inline constexpr TensorNames hf_names_without_networks{
    .layer_prefix = "model.layers.",
    .embedding = "model.embed_tokens.weight",
    .output_norm = "model.norm.weight",
    .output = "lm_head.weight",
    .attn_norm = "model.layers.{i}.input_layernorm.weight",
    .ffn_norm = "model.layers.{i}.post_attention_layernorm.weight",
    .q = "model.layers.{i}.self_attn.q_proj.weight",
    .k = "model.layers.{i}.self_attn.k_proj.weight",
    .v = "model.layers.{i}.self_attn.v_proj.weight",
    .o = "model.layers.{i}.self_attn.o_proj.weight",
};
/// The same with networks under "mlp", dense ones and those of routed experts.
inline constexpr TensorNames hf_names = [] {
  TensorNames names = hf_names_without_networks;
  names.dense_gate = "model.layers.{i}.mlp.gate_proj.weight";
  names.dense_up = "model.layers.{i}.mlp.up_proj.weight";
  names.dense_down = "model.layers.{i}.mlp.down_proj.weight";
  names.router = "model.layers.{i}.mlp.gate.weight";
  names.expert_gate = "model.layers.{i}.mlp.experts.{e}.gate_proj.weight";
  names.expert_up = "model.layers.{i}.mlp.experts.{e}.up_proj.weight";
  names.expert_down = "model.layers.{i}.mlp.experts.{e}.down_proj.weight";
  return names;
}();

/// The same with ungated shared experts, as DeepSeek has them.
inline constexpr TensorNames hf_names_with_shared_experts = [] {
  TensorNames names = hf_names;
  names.shared_gate = "model.layers.{i}.mlp.shared_experts.gate_proj.weight";
  names.shared_up = "model.layers.{i}.mlp.shared_experts.up_proj.weight";
  names.shared_down = "model.layers.{i}.mlp.shared_experts.down_proj.weight";
  return names;
}();

/// "blk.{i}.ffn_gate.{e}.weight" for layer and expert.
inline std::string tensor_name(std::string_view pattern, std::int64_t layer = -1, std::int64_t expert = -1) {
  std::string name;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view mark = pattern.substr(i, 3);
    if (mark == "{i}" || mark == "{e}") {
      name += std::to_string(mark == "{i}" ? layer : expert);
      i += 2;
    } else {
      name += pattern[i];
    }
  }
  return name;
}
/// The name of the bias that belongs to a weight: ".weight" replaced by ".bias".
inline std::string bias_name(const std::string& weight) {
  return concat(weight.substr(0, weight.size() - std::string_view("weight").size()), "bias");
}

/// A key that moxie supports with one value only; absent and null are fine. Others change what the model computes.
struct FixedOption {
  const char* key;
  const char* value;  ///< as JSON
};

enum class TopkNorm { never, always, by_key };
enum class SharedExperts {
  none,
  counted,  ///< n shared experts, together n * moe_intermediate_size wide, added as they are
  gated,    ///< a width of their own; multiplied by sigmoid(gate . x)
  optional  ///< a width of their own, absent or 0: none; added as they are
};

/// Rules of config.json (Hugging Face transformers).
struct HfRules {
  enum class Layout { half, interleaved, by_key };  ///< by_key: rope_interleave, absent: interleaved
  enum class Window {
    none,
    everywhere,     ///< sliding_window in every layer, null: none
    switched,       ///< the same when use_sliding_window is true
    by_layer_type,  ///< in the layers that layer_types names, when use_sliding_window is true
    alternating,    ///< in the layers that layer_types names; absent: in layers 0, 2, ..
    late,           ///< the same; absent: in layers from max_window_layers on
    periodic        ///< the same; absent: in all but each n-th, n by window_period
  };
  enum class Dense {
    none,
    sparse_step,  ///< mlp_only_layers, and layers i where i + 1 is no multiple of decoder_sparse_step
    first_k,      ///< the first first_k_dense_replace (first_k_key) layers
    /// layers before moe_layer_start_index or after moe_layer_end_index (-1: the last one), and layers i where i + 1 is no
    /// multiple of moe_layer_interval
    outside_range
  };

  const TensorNames* names = nullptr;
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-6;
  const char* rms_norm_eps_key = "rms_norm_eps";
  std::int64_t context_length = 4096;
  std::int64_t head_dim = 0;  ///< its default; 0: hidden_size / num_attention_heads
  Layout layout = Layout::half;
  bool partial_rotation = false;     ///< a part of each head may be rotated: partial_rotary_factor
  double rotary_factor = 1.0;        ///< its default
  const char* rotary_dim = nullptr;  ///< the dimensions themselves, where that factor is absent
  bool ntk_alpha = false;            ///< "dynamic" scaling with alpha is theta * alpha^(dims / (dims - 2))
  Window window = Window::none;
  std::int64_t window_default = 4096;   ///< where sliding_window is absent and in use
  const char* window_period = nullptr;  ///< absent: 4
  bool clip_qkv = false;           ///< the key of this name may limit q, k and v
  const char* bias_key = nullptr;  ///< q, k, v (or q_a and kv_a) have biases when this is true
  bool bias_default = false;
  bool o_bias = false;  ///< then o has one too
  const char* qk_norm_key = nullptr;  ///< q and k have their norms only when this is true; absent: they have none
  const char* n_experts = nullptr;
  const char* top_k = "num_experts_per_tok";
  const char* expert_width = "moe_intermediate_size";
  const char* shared = nullptr;  ///< count or width of the shared experts
  std::int64_t shared_default = 0;
  Dense dense = Dense::none;
  std::int64_t first_k_default = 0;
  const char* first_k_key = "first_k_dense_replace";
  TopkNorm topk_norm = TopkNorm::always;  ///< by_key: norm_topk_prob
  bool topk_norm_default = false;
  const char* norm_minimum = nullptr;  ///< of RouterConfig::norm_minimum
  bool text_config = false;            ///< config.json may be that of a model for more than text, with this one in "text_config"
  bool tied_default = false;           ///< of tie_word_embeddings
  bool groups = false;                 ///< `scaling`, n_group and topk_group count
  const char* scaling = "routed_scaling_factor";
  double scaling_default = 1.0;
  const char* group_method = nullptr;  ///< topk_method with this value means groups, "greedy" none; nullptr: groups always count
  std::int64_t n_group_default = 1, topk_group_default = 1;
  std::span<const FixedOption> fixed = {};
  const char* quantization = "fp8";  ///< the quant_method that is read
};

/// Rules of GGUF metadata (llama.cpp).
struct GgufRules {
  const TensorNames* names = nullptr;  ///< nullptr: the usual ones
  RopeLayout layout = RopeLayout::half;
  const char* expert_width = "expert_feed_forward_length";
  const char* shared = nullptr;           ///< count or width of the shared experts
  const char* shared_width = nullptr;     ///< the width too where `shared` is the count; llama.cpp reads it
  bool shared_width_of_each = false;      ///< it is that of one of them
  const char* moe_layer_step = nullptr;   ///< of what follows the leading dense layers; llama.cpp reads it
  TopkNorm topk_norm = TopkNorm::always;  ///< by_key: expert_weights_norm, absent: no
  bool qkv_bias = false;                  ///< required; elsewhere used where the file has them
  bool o_bias = false;                    ///< the same of o
  bool qk_norm_optional = false;          ///< q and k have their norms where the file has them
  std::int64_t window_period = 0;         ///< without a pattern sliding windows are those of all but each n-th layer
  bool tiled_heads = false;               ///< DeltaNetConfig::tiled_heads
  bool rope_sections = false;             ///< rope.dimension_sections is there; text has one position in all of them
};

struct Family {
  const char* name;          ///< also the model_type of config.json
  const char* architecture;  ///< general.architecture of GGUF
  const char* other_name = nullptr;  ///< another model_type
  /// The family that this one is but for what config.json means where it says nothing: ModelConfig::family, and GGUF's.
  const char* same_as = nullptr;
  AttentionKind attention = AttentionKind::gqa;
  QkNorm qk_norm = QkNorm::none;
  RouterScoring scoring = RouterScoring::softmax;
  bool selection_bias = false;  ///< the router has a bias for the choice
  GroupScore group_score = GroupScore::best_two;
  float norm_epsilon = 0.0f;
  float norm_minimum = 0.0f;
  SharedExperts shared = SharedExperts::none;
  bool sinks = false;           ///< of attention
  bool output_gate = false;     ///< of attention
  bool own_gate = false;        ///< of attention
  bool rotates_in_windows = false;  ///< AttentionConfig's
  bool root_embeddings = false;     ///< embeddings times sqrt(hidden_size), in config.json where mup_enabled is true
  bool delta_net = false;       ///< layers are gated delta nets but each n-th, or those that are named
  bool mamba = false;           ///< layers are Mamba-2 but those that are named
  bool short_conv = false;      ///< layers are short convolutions but those that are named
  bool expert_biases = false;   ///< MoeConfig::biases
  float swiglu_limit = 0.0f;    ///< where the file does not say it; 0: silu(gate) * up
  bool multipliers = false;     ///< of embeddings, q . k, branches and logits
  bool dense_namesake = false;  ///< the GGUF architecture is also that of models without experts
  bool gated = true;            ///< MoeConfig::gated
  bool latent_experts = false;  ///< files may have a MoeConfig::latent_size
  bool rotates = true;          ///< attention rotates queries and keys, unless a key says that it does not
  bool one_part = false;        ///< each layer is a mixer or a feed-forward network (LayerParts), after a norm of one name
  HfRules hf = {};
  GgufRules gguf = {};
};

}  // namespace moxie::families
