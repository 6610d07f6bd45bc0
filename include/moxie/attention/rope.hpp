#pragma once
// Rotary position embedding (RoFormer, arXiv 2104.09864): turns pair d of a head by the angle position * frequency[d].
//
// frequency[d] = theta^(-2d / dims), changed by the scaling (rope_config.hpp), then divided by freq_factors[d]. Frequencies
// and angles are f32, as in Hugging Face transformers (modeling_rope_utils.py), because their rounding is part of what a
// checkpoint was trained with: at position 100000 it moves an angle by up to 0.004. Their cosine and sine are exact to f32.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

#include <moxie/attention/rope_config.hpp>
#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/core/matrix.hpp>

namespace moxie {

class Rope {
 public:
  /// Throws ArgumentError when a parameter cannot be used (odd dims, a factor that is not positive, ..).
  explicit Rope(const RopeConfig& config)
      : layout_(config.layout), magnitude_(static_cast<float>(config.magnitude)), frequencies_(scaled_frequencies(config)) {}

  /// Rotated dimensions of a head.
  Index dims() const noexcept { return 2 * static_cast<Index>(frequencies_.size()); }
  /// Angle per position of each pair, [dims / 2].
  const std::vector<float>& frequencies() const noexcept { return frequencies_; }

  /// Cosine and sine of each pair at a position, times the magnitude; [dims / 2] each.
  void tables(std::int64_t position, float* cos, float* sin) const noexcept {
    const auto p = static_cast<float>(position);
    for (std::size_t d = 0; d < frequencies_.size(); ++d) {
      const double angle = p * frequencies_[d];
      cos[d] = static_cast<float>(std::cos(angle)) * magnitude_;
      sin[d] = static_cast<float>(std::sin(angle)) * magnitude_;
    }
  }

  /// Turns the rotated part of one head, [dims], in place. Products and sums are rounded separately, as in the reference.
  void rotate(const float* cos, const float* sin, float* head) const noexcept {
    const std::size_t pairs = frequencies_.size();
    const std::size_t step = layout_ == RopeLayout::half ? 1 : 2, partner = layout_ == RopeLayout::half ? pairs : 1;
    for (std::size_t d = 0; d < pairs; ++d) {
      float& x = head[d * step];
      float& y = head[d * step + partner];
      const float turned = rounded(x * cos[d]) - rounded(y * sin[d]);
      y = rounded(y * cos[d]) + rounded(x * sin[d]);
      x = turned;
    }
  }

 private:
  static std::vector<float> scaled_frequencies(const RopeConfig& c) {
    check(c);
    double theta = c.theta;
    const auto dims = static_cast<double>(c.dims);
    if (c.scaling == RopeScaling::ntk && c.dims > 2) theta *= std::pow(c.factor, dims / (dims - 2));

    std::vector<float> frequencies(static_cast<std::size_t>(c.dims / 2));
    for (std::size_t d = 0; d < frequencies.size(); ++d) {
      const float exponent = static_cast<float>(2 * d) / static_cast<float>(c.dims);
      const auto wave =
          static_cast<float>(std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
      float& f = frequencies[d];
      f = 1.0f / wave;
      switch (c.scaling) {
        case RopeScaling::none:
        case RopeScaling::ntk:
          break;
        case RopeScaling::linear:
          f /= static_cast<float>(c.factor);
          break;
        case RopeScaling::yarn:
          f = yarn(c, static_cast<float>(d), wave);
          break;
        case RopeScaling::llama3:
          f = llama3(c, f);
          break;
      }
      if (!c.freq_factors.empty()) f /= c.freq_factors[d];
    }
    return frequencies;
  }

  /// arXiv 2309.00071, section 3.2: plain where a pair turns more than beta_fast times over the original context,
  /// divided by the factor where it turns less than beta_slow times, a linear ramp over the pairs between.
  static float yarn(const RopeConfig& c, float d, float wave) {
    const auto correction = [&](double turns) {
      return static_cast<double>(c.dims) * std::log(static_cast<double>(c.original_context) / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(c.theta));
    };
    double low = correction(c.beta_fast), high = correction(c.beta_slow);
    if (c.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(c.dims - 1));
    if (low == high) high += 0.001;
    const float ramp = std::clamp((d - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float plain = 1.0f - ramp;
    return rounded(1.0f / (static_cast<float>(c.factor) * wave) * (1.0f - plain)) + rounded(1.0f / wave * plain);
  }

  /// Llama 3.1: by the wave length against the original context.
  static float llama3(const RopeConfig& c, float frequency) {
    const auto context = static_cast<double>(c.original_context);
    const float wave_length = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wave_length < static_cast<float>(context / c.high_freq_factor)) return frequency;
    if (wave_length > static_cast<float>(context / c.low_freq_factor)) return frequency / static_cast<float>(c.factor);
    const float smooth = (static_cast<float>(context) / wave_length - static_cast<float>(c.low_freq_factor)) /
                         static_cast<float>(c.high_freq_factor - c.low_freq_factor);
    return rounded((1.0f - smooth) * frequency / static_cast<float>(c.factor)) + rounded(smooth * frequency);
  }

  static void check(const RopeConfig& c) {
    const auto require = [](bool right, const char* item, const std::string& message) {
      if (!right) throw ArgumentError({{}, item, {}}, message);
    };
    const auto positive = [](double x) { return std::isfinite(x) && x > 0; };
    require(c.dims >= 0 && c.dims % 2 == 0 && c.dims <= 1 << 20, "RopeConfig.dims",
            concat("must be even and not negative, got ", c.dims));
    require(positive(c.theta), "RopeConfig.theta", concat("must be positive, got ", c.theta));
    require(positive(c.factor), "RopeConfig.factor", concat("must be positive, got ", c.factor));
    require(positive(c.magnitude), "RopeConfig.magnitude", concat("must be positive, got ", c.magnitude));
    require(c.freq_factors.empty() || c.freq_factors.size() == static_cast<std::size_t>(c.dims / 2), "RopeConfig.freq_factors",
            concat("needs ", c.dims / 2, " values (dims / 2) or none, got ", c.freq_factors.size()));
    for (const float f : c.freq_factors)
      require(positive(static_cast<double>(f)), "RopeConfig.freq_factors", concat("must be positive, got ", f));
    if (c.scaling == RopeScaling::yarn || c.scaling == RopeScaling::llama3)
      require(c.original_context > 0, "RopeConfig.original_context", concat("must be positive, got ", c.original_context));
    if (c.scaling == RopeScaling::yarn)
      require(c.theta > 1 && positive(c.beta_fast) && positive(c.beta_slow), "RopeConfig",
              "yarn needs theta above 1 and positive beta_fast and beta_slow");
    if (c.scaling == RopeScaling::llama3)
      require(positive(c.low_freq_factor) && c.high_freq_factor > c.low_freq_factor, "RopeConfig.high_freq_factor",
              "llama3 needs 0 < low_freq_factor < high_freq_factor");
  }

  RopeLayout layout_;
  float magnitude_;
  std::vector<float> frequencies_;
};

}  // namespace moxie
