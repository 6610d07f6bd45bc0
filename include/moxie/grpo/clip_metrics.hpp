#pragma once
// How many tokens or rows a loss clips, under TRL's names.

#include <algorithm>

#include <moxie/grpo/loss_options.hpp>
#include <moxie/grpo/metrics.hpp>
#include <moxie/grpo/policy_term.hpp>
#include <moxie/grpo/tokens.hpp>

namespace moxie::grpo {

/// Shares are means over tokens with m = 1; with ratios of sequences and one advantage for each row they are means over rows.
///
///   clip_ratio/low_mean, clip_ratio/high_mean   share clipped at the lower bound (A < 0), at the upper bound (A > 0)
///   clip_ratio/region_mean                      share clipped at either
///   clip_ratio/low_min, clip_ratio/high_max     smallest and largest share in a row
///   cispo_clip_ratio                            cispo instead: share with r > epsilon_high and A > 0
///   vespo/phi_seq_mean                          vespo instead: mean of phi
///
/// sapo clips nothing. ratio, phi and advantages are [B, T] or [B, 1].
inline Metrics clip_metrics(const LossOptions& options, const TokenArray& ratio, const TokenArray& phi,
                            const TokenArray& advantages, const ConstMask& mask) {
  const auto flags = [&](auto&& is_clipped) {
    TokenArray flag(ratio.rows(), std::max(ratio.cols(), advantages.cols()));
    for (Index i = 0; i < flag.rows(); ++i)
      for (Index t = 0; t < flag.cols(); ++t) flag(i, t) = is_clipped(at(ratio, i, t), at(advantages, i, t)) ? 1.0 : 0.0;
    return flag;
  };
  switch (options.loss_type) {
    case LossType::sapo:
      return {};
    case LossType::vespo:
      return {{"vespo/phi_seq_mean", masked_mean(phi, mask)}};
    case LossType::cispo:
      return {
          {"cispo_clip_ratio", masked_mean(flags([&](double r, double a) { return r > options.clip_high() && a > 0.0; }), mask)}};
    default:
      break;
  }
  const Clip clip(options);
  const TokenArray low = flags([&](double r, double a) { return clip.is_low(r, a); });
  const TokenArray high = flags([&](double r, double a) { return clip.is_high(r, a); });
  return {{"clip_ratio/low_mean", masked_mean(low, mask)},
          {"clip_ratio/high_mean", masked_mean(high, mask)},
          {"clip_ratio/region_mean", masked_mean(low + high, mask)},
          {"clip_ratio/low_min", row_mean_range(low, mask).smallest},
          {"clip_ratio/high_max", row_mean_range(high, mask).largest}};
}

}  // namespace moxie::grpo
