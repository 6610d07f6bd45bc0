#pragma once
// Sampler: from a row of logits to a token, its log-probability under the whole distribution, and what truncation kept.
//
// The reported logprob is log softmax(logits / temperature)[token] over the whole vocabulary, before penalties and truncation:
// the policy's own, the same bits that scoring gives. `kept_mass` is the probability that top-k, top-p and min-p kept, of the
// distribution after penalties, so sampler_logprob = log(p_after_penalties / kept_mass).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/generate/options.hpp>
#include <moxie/generate/random.hpp>
#include <moxie/model/log_softmax.hpp>

namespace moxie {

struct Sample {
  std::int32_t id = 0;
  float logprob = 0.0f;          ///< nats, under the whole distribution at the sampling temperature
  float entropy = 0.0f;          ///< nats, of the same distribution
  float sampler_logprob = 0.0f;  ///< under the distribution that was drawn from: after penalties and truncation, renormalized
  float kept_mass = 1.0f;
};

class Sampler {
 public:
  /// A token that truncation kept: its logit after penalties and temperature, and its probability before truncation.
  struct Candidate {
    std::int32_t id;
    float z;
    double p;
  };

  /// Draws a token. `logits` [vocab]; `prompt` and `output` are the ids so far, for the penalties; the draw is that of
  /// (options.seed, sequence, position). Throws ArgumentError when the logits hold NaN or infinity.
  Sample draw(const kernels::Table& kernels, std::span<const float> logits, const GenerateOptions& options,
              std::span<const std::int32_t> prompt, std::span<const std::int32_t> output, std::uint64_t sequence,
              std::uint64_t position) {
    const float temperature = options.logprob_temperature();
    const LogSumExp whole = log_sum_exp(kernels, logits, temperature);
    if (!std::isfinite(whole.lse))
      throw ArgumentError("cannot sample: the logits hold NaN or infinity; the weights or the input are not finite");

    Sample sample;
    sample.entropy = static_cast<float>(whole.entropy);
    const std::span<const float> z = penalized(logits, options, prompt, output);
    if (options.temperature == 0.0f) {
      sample.id = static_cast<std::int32_t>(std::max_element(z.begin(), z.end()) - z.begin());
    } else {
      const double lse = z.data() == logits.data() ? whole.lse : log_sum_exp(kernels, z, temperature).lse;
      const double u = uniform_draw(options.seed, sequence, position);
      if (truncates(options)) {
        draw_from(keep(z, options, lse), u, sample);
      } else {
        draw_from_all(z, temperature, lse, u, sample);
      }
    }
    sample.logprob = whole.logprob(logits[static_cast<std::size_t>(sample.id)], temperature);
    return sample;
  }

  /// The tokens that top_k, top_p and min_p keep of logits after penalties, most probable first (ties: lower id first).
  /// `lse` is log sum exp(logits / temperature). Valid until the next call.
  std::span<const Candidate> keep(std::span<const float> penalized_logits, const GenerateOptions& options, double lse) {
    const float largest = *std::max_element(penalized_logits.begin(), penalized_logits.end()) / options.temperature;
    // Truncation nearly always keeps tokens near the largest, so only those are looked at, and more when they do not suffice.
    for (float depth = options.min_p > 0.0f ? 1.0f - std::log(options.min_p) : 10.0f;; depth *= 4.0f) {
      const bool all = depth > 200.0f || !truncates(options);
      gather(penalized_logits, options.temperature, all ? -std::numeric_limits<float>::infinity() : largest - depth, lse);
      // Without top_p, what min_p would drop anyway cannot change the set.
      if (truncate(options, all || (options.min_p > 0.0f && options.top_p == 1.0f))) return kept_;
    }
  }

  /// Logits after the repetition, frequency and presence penalties; `logits` itself when there are none. Valid until the next
  /// call.
  std::span<const float> penalized(std::span<const float> logits, const GenerateOptions& options,
                                   std::span<const std::int32_t> prompt, std::span<const std::int32_t> output) {
    const bool repetition = options.repetition_penalty != 1.0f;
    const bool counts = options.presence_penalty != 0.0f || options.frequency_penalty != 0.0f;
    if (!repetition && !counts) return logits;
    logits_.assign(logits.begin(), logits.end());
    std::unordered_map<std::int32_t, std::int64_t> seen;  // id -> count in the output; 0: only in the prompt
    for (const std::int32_t id : prompt) seen.try_emplace(id, 0);
    for (const std::int32_t id : output) ++seen[id];
    for (const auto& [id, count] : seen) {
      float& z = logits_[static_cast<std::size_t>(id)];
      if (repetition) z = z > 0.0f ? z / options.repetition_penalty : z * options.repetition_penalty;
      if (count > 0) z -= options.frequency_penalty * static_cast<float>(count) + options.presence_penalty;
    }
    return logits_;
  }

  /// log sum exp and entropy of logits / temperature.
  LogSumExp log_sum_exp(const kernels::Table& kernels, std::span<const float> logits, float temperature) {
    const auto vocab = static_cast<std::int64_t>(logits.size());
    partials_.resize(static_cast<std::size_t>(vocabulary_tiles(vocab)));
    softmax_partials(kernels, logits.data(), vocab, temperature, partials_.data());
    return combine_partials(partials_);
  }

 private:
  static bool truncates(const GenerateOptions& options) noexcept {
    return options.top_k > 0 || options.top_p < 1.0f || options.min_p > 0.0f;
  }
  static bool before(const Candidate& a, const Candidate& b) noexcept { return a.z > b.z || (a.z == b.z && a.id < b.id); }
  static double sum_of(std::span<const Candidate> candidates) noexcept {
    double sum = 0.0;
    for (const Candidate& c : candidates) sum += c.p;
    return sum;
  }

  void gather(std::span<const float> logits, float temperature, float bound, double lse) {
    kept_.clear();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const float z = logits[i] / temperature;
      if (z >= bound) kept_.push_back({static_cast<std::int32_t>(i), z, 0.0});
    }
    std::sort(kept_.begin(), kept_.end(), before);
    for (Candidate& c : kept_) c.p = std::exp(static_cast<double>(c.z) - lse);
  }

  /// False when the gathered candidates are too few to tell. `complete`: those not gathered would go in any case.
  bool truncate(const GenerateOptions& options, bool complete) {
    double mass = 1.0;
    if (options.top_k > 0) {
      const auto k = static_cast<std::size_t>(options.top_k);
      if (kept_.size() < k && !complete) return false;
      if (kept_.size() > k) {
        const float kth = kept_[k - 1].z;  // ties with the k-th stay
        kept_.erase(std::partition_point(kept_.begin(), kept_.end(), [&](const Candidate& c) { return c.z >= kth; }),
                    kept_.end());
      }
      mass = sum_of(kept_);
    }
    if (options.top_p < 1.0f) {
      const double wanted = static_cast<double>(options.top_p) * mass;
      double sum = 0.0;
      std::size_t count = 0;
      while (count < kept_.size() && (count == 0 || sum < wanted)) sum += kept_[count++].p;
      if (count == kept_.size() && sum < wanted && !complete) return false;
      kept_.resize(count);
    }
    if (options.min_p > 0.0f) {
      const double bound = static_cast<double>(options.min_p) * kept_.front().p;
      kept_.erase(std::partition_point(kept_.begin(), kept_.end(), [&](const Candidate& c) { return c.p >= bound; }),
                  kept_.end());
    }
    return true;
  }

  static void draw_from(std::span<const Candidate> kept, double u, Sample& sample) {
    const double mass = sum_of(kept);
    double left = u * mass;
    std::size_t pick = 0;
    while (pick + 1 < kept.size() && left >= kept[pick].p) left -= kept[pick++].p;
    sample.id = kept[pick].id;
    sample.sampler_logprob = static_cast<float>(std::log(kept[pick].p / mass));
    sample.kept_mass = static_cast<float>(std::min(mass, 1.0));
  }

  /// Without truncation: first a tile of the vocabulary, then a token of it. The partials are those of `z`.
  void draw_from_all(std::span<const float> z, float temperature, double lse, double u, Sample& sample) const {
    const auto tile_mass = [&](std::size_t t) {
      return static_cast<double>(partials_[t].sum) * std::exp(static_cast<double>(partials_[t].max) - lse);
    };
    double total = 0.0;
    for (std::size_t t = 0; t < partials_.size(); ++t) total += tile_mass(t);
    double left = u * total;
    std::size_t tile = 0;
    while (tile + 1 < partials_.size() && left >= tile_mass(tile)) left -= tile_mass(tile++);
    while (tile > 0 && tile_mass(tile) == 0.0) --tile;
    const std::size_t begin = tile * static_cast<std::size_t>(vocabulary_tile);
    const std::size_t end = std::min(z.size(), begin + static_cast<std::size_t>(vocabulary_tile));
    const auto p = [&](std::size_t i) { return std::exp(static_cast<double>(z[i] / temperature) - lse); };
    std::size_t pick = begin;  // the last token with some probability, when rounding leaves `left` above them all
    for (std::size_t i = begin; i < end; ++i) {
      const double mass = p(i);
      if (mass == 0.0) continue;
      pick = i;
      if (left < mass) break;
      left -= mass;
    }
    sample.id = static_cast<std::int32_t>(pick);
    sample.sampler_logprob = static_cast<float>(std::log(p(pick)));
  }

  std::vector<kernels::SoftmaxPartial> partials_;
  std::vector<Candidate> kept_;
  std::vector<float> logits_;
};

}  // namespace moxie
