#pragma once
// How tokens are chosen and when generation ends.

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <moxie/core/error.hpp>

namespace moxie {

/// Order of operations, as in vLLM and transformers: repetition penalty; frequency and presence penalties; temperature; top_k;
/// top_p; min_p.
struct GenerateOptions {
  float temperature = 1.0f;         ///< 0: the most probable token; logprobs are then those of temperature 1
  std::int64_t top_k = 0;           ///< keep the k most probable tokens (ties with the k-th stay); 0: all
  float top_p = 1.0f;               ///< then the smallest set of most probable tokens with at least this mass
  float min_p = 0.0f;               ///< then those with at least this share of the largest probability
  float repetition_penalty = 1.0f;  ///< of every token in prompt or output: logits > 0 divided by it, others multiplied
  float presence_penalty = 0.0f;    ///< subtracted for every token in the output
  float frequency_penalty = 0.0f;   ///< subtracted times the token's count in the output
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 256;
  std::vector<std::string> stop = {};  ///< generation ends before the first of these texts to be complete
  bool ignore_eos = false;             ///< end-of-sequence tokens are ordinary tokens

  /// Temperature at which logprobs are reported.
  float logprob_temperature() const noexcept { return temperature == 0.0f ? 1.0f : temperature; }

  /// Throws ArgumentError naming the option that is out of range.
  void check() const {
    const auto require = [](bool ok, const char* rule) {
      if (!ok) throw ArgumentError(std::string("generation option out of range: ") + rule);
    };
    require(std::isfinite(temperature) && temperature >= 0.0f, "temperature must be 0 (greedy) or more");
    require(temperature == 0.0f || temperature >= 1e-3f, "temperature must be at least 0.001, or 0 for greedy");
    require(top_k >= 0, "top_k must be 0 (off) or more");
    require(top_p > 0.0f && top_p <= 1.0f, "top_p must be above 0 and at most 1");
    require(min_p >= 0.0f && min_p <= 1.0f, "min_p must be 0 to 1");
    require(repetition_penalty >= 1e-3f && repetition_penalty <= 1e3f, "repetition_penalty must be 0.001 to 1000");
    require(std::isfinite(presence_penalty), "presence_penalty must be finite");
    require(std::isfinite(frequency_penalty), "frequency_penalty must be finite");
    require(max_tokens >= 0, "max_tokens must be 0 or more");
    for (const std::string& text : stop) require(!text.empty(), "a stop text must not be empty");
  }
};

}  // namespace moxie
