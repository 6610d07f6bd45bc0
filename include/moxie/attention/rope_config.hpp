#pragma once
// Rotary position embedding (RoFormer, arXiv 2104.09864): its parameters and those of the ways to stretch it. Plain data.

#include <cstdint>
#include <vector>

namespace moxie {

/// Which dimensions form a pair: d with d + dims/2 (half, "neox"), or 2d with 2d + 1 (interleaved, "norm").
enum class RopeLayout { half, interleaved };
enum class RopeScaling {
  none,
  linear,  ///< positions divided by `factor`
  ntk,     ///< theta times alpha^(dims / (dims - 2)), alpha = factor
  yarn,    ///< arXiv 2309.00071: frequencies blended between the correction dimensions of beta_fast and beta_slow
  llama3   ///< Llama 3.1: low frequencies divided by factor, high kept, blended between
};

struct RopeConfig {
  std::int64_t dims = 0;  ///< rotated dimensions, the first ones of a head (of its RoPE part); 0: nothing is rotated
  double theta = 10000.0;
  RopeLayout layout = RopeLayout::half;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  std::int64_t original_context = 0;  ///< original_max_position_embeddings
  double beta_fast = 32.0, beta_slow = 1.0;
  bool truncate = true;  ///< yarn: round the correction dimensions (floor, ceil)
  /// What cos and sin are multiplied by. The family computes it: 1, or for yarn 0.1 ln(factor) + 1, or
  /// (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1).
  double magnitude = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  std::vector<float> freq_factors = {};  ///< frequencies are divided by these, [dims / 2]; empty: ones (GGUF rope_freqs.weight)
};

}  // namespace moxie
