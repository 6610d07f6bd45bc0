#pragma once
// The tensors of a decoder by their role, still as they lie in the file. A family header finds them by name and checks
// their shapes; the Decoder packs them.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <moxie/core/tensor.hpp>
#include <moxie/linalg/low_rank.hpp>

namespace moxie {

/// Where a matrix lies in a tensor that has its rows in another order, transposed, or between those of another matrix: block c
/// of row r (of a float type: element c) is block first + r * row_step + c * column_step.
struct StridedBlocks {
  TensorView tensor;
  /// Hugging Face's MXFP4: `tensor` has 16 bytes for each block, element 2 j in the low half of byte j and 2 j + 1 in the high
  /// one; its exponent is here.
  std::optional<TensorView> exponents = {};
  std::int64_t first = 0, row_step = 0, column_step = 1;
};

/// What a file holds in place of an element x.
enum class StoredAs {
  itself,
  minus_one,     ///< x - 1: norms of checkpoints whose model multiplies by 1 + weight
  log_of_minus,  ///< log(-x)
};

/// A weight matrix [outputs, inputs] (or vector) in a file. FP8 checkpoints have a scale for each 128 x 128 block beside it:
/// weight[r][c] * scale_inv[r / 128][c / 128]. An adapter may give it a low-rank part (model/adapter.hpp).
struct Weight {
  TensorView tensor;  ///< where it is `strided`: its type, shape and size, without data
  std::optional<TensorView> scale_inv = {};
  std::shared_ptr<const LowRank> low_rank = {};
  std::shared_ptr<const StridedBlocks> strided = {};  ///< plain_rows() reads it
  StoredAs stored_as = StoredAs::itself;              ///< of vectors only
};

/// Weights of one feed-forward network: gate, up [width, hidden]; down [hidden, width].
struct FeedForwardTensors {
  std::optional<Weight> gate;  ///< absent in families whose networks have none
  Weight up, down;
};

/// A gated delta net with nk key heads of dk and nv value heads of dv, g = nv / nk.
struct DeltaNetTensors {
  Weight qkv;                // [rows of all q heads, all k heads, all v heads, hidden]; without z, for each key head its rows of
                             // q, k, g times v, g times z
  std::optional<Weight> z;   // [nv * dv, hidden]
  std::optional<Weight> ba;  // [2 nv, hidden]: for each key head g rows of b, g of a
  std::optional<Weight> b, a;  // instead of ba: [nv, hidden] each
  Weight conv;                 // [channels, conv_kernel]
  Weight dt_bias, decay;       // [nv]; -exp(A_log)
  Weight norm;                 // [dv]
  Weight out;                  // [hidden, nv * dv]
};

/// Mamba-2 with n heads of d and g groups with states of s; channels = n * d + 2 * g * s.
struct MambaTensors {
  Weight in;                    // [n * d + channels + n, hidden]: rows of z, of x, B, C, and of the steps
  Weight conv, conv_bias;       // [channels, conv_kernel], [channels]
  Weight dt_bias, decay, skip;  // [n]; -exp(A_log); D
  Weight norm;                  // [n * d]
  Weight out;                   // [hidden, n * d]
};

/// A gated short convolution.
struct ShortConvTensors {
  Weight in;    // [3 hidden, hidden]: rows of B, C, x
  Weight conv;  // [hidden, kernel]
  Weight out;   // [hidden, hidden]
};

struct LayerTensors {
  std::optional<Weight> attn_norm, ffn_norm;  // [hidden]; of the parts that the layer has (LayerParts)
  std::optional<Weight> attn_post_norm, ffn_post_norm;  // [hidden], of what the parts give; only where the family has them
  // grouped-query attention; biases and norms only where the family has them
  std::optional<Weight> q, k, v;  // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] x 2; with an output gate q has
                                  // [heads, {q, gate}, head_dim] rows
  std::optional<Weight> q_bias, k_bias, v_bias, o_bias;
  std::optional<Weight> q_norm, k_norm;  // [head_dim], or of all heads together
  std::optional<Weight> sinks;           // [heads]
  std::optional<Weight> attn_gate;       // [heads * head_dim, hidden]
  std::optional<Weight> o;               // [hidden, heads * head_dim or heads * v_head_dim]
  // multi-head latent attention. q alone, or q_a, q_a_norm, q_b
  std::optional<Weight> q_a, q_a_norm, q_b;  // [q_lora, hidden], [q_lora], [heads * (nope + rope), q_lora]
  std::optional<Weight> q_a_bias, kv_a_bias;
  std::optional<Weight> kv_a, kv_a_norm;         // [kv_lora + rope, hidden], [kv_lora]
  std::optional<Weight> kv_b;                    // [heads * (nope + v), kv_lora]: per head the rows of nope keys, then of values
  std::shared_ptr<const LowRank> kv_b_low_rank;  // of kv_b, whichever form it has
  std::optional<Weight> k_b, v_b;                // instead of kv_b: [heads, kv_lora, nope] (transposed) and [heads, v, kv_lora]

  std::optional<DeltaNetTensors> delta_net;  // in place of attention, as the next two
  std::optional<MambaTensors> mamba;
  std::optional<ShortConvTensors> short_conv;

  std::optional<FeedForwardTensors> dense;
  std::optional<Weight> router;             // [experts, hidden]
  std::optional<Weight> router_bias;        // [experts], added to the scores for the choice only
  std::optional<Weight> router_logit_bias;  // [experts], added to the logits
  std::optional<Weight> latent_in, latent_out;  // [latent, hidden], [hidden, latent]; only with MoeConfig::latent_size
  std::vector<FeedForwardTensors> experts;      // [experts], hidden being latent then
  std::optional<Weight> experts_gate_bias, experts_up_bias, experts_down_bias;  // [experts, width] twice, [experts, hidden]
  std::optional<FeedForwardTensors> shared;
  std::optional<Weight> shared_gate;  // [hidden]
};

struct DecoderTensors {
  Weight embedding;              // [vocab, hidden]
  Weight output_norm;            // [hidden]
  std::optional<Weight> output;  // [vocab, hidden]; absent: tied to the embedding
  std::vector<LayerTensors> layers;
};

}  // namespace moxie
