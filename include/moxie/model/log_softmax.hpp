#pragma once
// Log-softmax over the vocabulary, in one order of summation wherever it is computed.
//
// The vocabulary is cut into tiles of 512 logits. A tile t gives m = max z, s = sum exp(z - m) and w = sum exp(z - m) (z - m) in
// f32; tiles are combined in tile order in double (online log-sum-exp, arXiv 1805.02867). Sampling has all logits in memory and
// scoring only one tile at a time, but both combine the same partials, so their log-probabilities are the same bits.
//
//   M = max_t m_t,  S = sum_t s_t exp(m_t - M),  lse = M + log S,  logprob(i) = z_i - lse
//   entropy = log S - (1 / S) sum_t exp(m_t - M) (w_t + s_t (m_t - M))
//
// z = logit / temperature. Natural logarithms (nats). The entropy is formed from differences of logits alone, so that it is as
// exact for logits of 1e4 as for those near 0.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <moxie/kernels/table.hpp>

namespace moxie {

inline constexpr std::int64_t vocabulary_tile = 512;

constexpr std::int64_t vocabulary_tiles(std::int64_t vocab) noexcept { return (vocab + vocabulary_tile - 1) / vocabulary_tile; }

struct LogSumExp {
  double lse = 0.0;      ///< log sum exp z = max + log_sum
  double entropy = 0.0;  ///< of softmax(z), nats
  float max = 0.0f;      ///< M, the largest z
  double log_sum = 0.0;  ///< log sum exp(z - M)

  float logprob(float logit, float temperature) const noexcept {
    return static_cast<float>(static_cast<double>(logit / temperature) - lse);
  }
};

/// Combines the partials of all tiles of a row.
inline LogSumExp combine_partials(std::span<const kernels::SoftmaxPartial> partials) noexcept {
  float largest = partials[0].max;
  for (const auto& part : partials) largest = std::max(largest, part.max);
  double sum = 0.0, weighted = 0.0;
  for (const auto& part : partials) {
    if (part.sum == 0.0f) continue;  // logits of minus infinity only
    const double below = static_cast<double>(part.max) - static_cast<double>(largest), scale = std::exp(below);
    const double part_sum = static_cast<double>(part.sum);
    sum = std::fma(scale, part_sum, sum);
    weighted = std::fma(scale, std::fma(below, part_sum, static_cast<double>(part.weighted)), weighted);
  }
  const double log_sum = std::log(sum);
  return {static_cast<double>(largest) + log_sum, std::max(log_sum - weighted / sum, 0.0), largest, log_sum};
}

/// Partials of a row of logits [vocab] into `partials` [vocabulary_tiles(vocab)].
inline void softmax_partials(const kernels::Table& kernels, const float* logits, std::int64_t vocab, float temperature,
                             kernels::SoftmaxPartial* partials) noexcept {
  for (std::int64_t tile = 0; tile < vocabulary_tiles(vocab); ++tile) {
    const std::int64_t begin = tile * vocabulary_tile;
    partials[tile] = kernels.softmax_partial(logits + begin, std::min(vocabulary_tile, vocab - begin), temperature);
  }
}

}  // namespace moxie
