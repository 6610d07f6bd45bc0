#pragma once
// Limits of a ModelConfig, and the relations between its values that no single key can be checked for.
//
// The limits are far above any published model, and low enough that no product of sizes overflows 64 bits and that a
// hostile file cannot make the description itself large.

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/json_parser.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/fields.hpp>

namespace moxie::families {

inline constexpr std::int64_t max_layers = 1000;
inline constexpr std::int64_t max_width = 1 << 20;  // hidden size, feed-forward widths
inline constexpr std::int64_t max_heads = 1 << 14;
inline constexpr std::int64_t max_head_dim = 1 << 14;
inline constexpr std::int64_t max_vocab = 1 << 24;
inline constexpr std::int64_t max_context = (std::int64_t{1} << 32) - 1;  // what the u32 of a GGUF file holds
inline constexpr std::int64_t max_experts = 1 << 14;
inline constexpr std::int64_t max_state_bytes = std::int64_t{1} << 30;  // of all recurrent layers; published models have 200 MB
inline constexpr std::int64_t default_full_attention_interval = 4;  // of families with gated delta nets
inline constexpr std::int64_t max_expert_matrices = 1 << 16;  // layers * experts: about 1 KB of description each

/// YaRN's factor on attention, arXiv 2309.00071 with DeepSeek-V2's mscale: 0.1 mscale ln(factor) + 1, and 1 for factor <= 1.
inline double yarn_mscale(double factor, double mscale) noexcept {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// What families with Family::root_embeddings multiply embeddings by.
inline float root_of_width(const ModelConfig& c) { return static_cast<float>(std::sqrt(static_cast<double>(c.hidden_size))); }

/// Throws UnsupportedError where one of the options has another value.
inline void check_fixed(const Fields& f, std::span<const FixedOption> options) {
  for (const FixedOption& option : options) {
    const nlohmann::json* value = f.find(option.key);
    if (value && *value != parse_trusted_json(option.value))
      f.unsupported(option.key, concat("is ", Fields::show(*value), "; moxie has this family only with ",
                                       (option.value == std::string_view("null") ? "none" : option.value)));
  }
}

/// Throws FormatError where the values contradict each other.
inline void check_config(const ModelConfig& c, const Fields& f) {
  const auto require = [&](bool good, const std::string& message) {
    if (!good) throw FormatError({f.file(), {}, {}}, message);
  };
  const auto n = [](std::int64_t value) { return std::to_string(value); };
  const AttentionConfig& a = c.attention;
  const RopeConfig& r = a.rope;
  if (a.kind == AttentionKind::gqa) {
    require(a.n_heads % a.n_kv_heads == 0, concat("the model has ", n(a.n_heads), " attention heads and ", n(a.n_kv_heads),
                                                  " key-value heads; the first must be a multiple of the second"));
    require(r.dims <= a.head_dim, concat("the model rotates ", n(r.dims), " dimensions of heads that have ", n(a.head_dim),
                                         "; it can rotate at most all"));
  }
  if (const DeltaNetConfig& d = c.delta_net; d.n_k_heads != 0) {
    require(d.n_v_heads % d.n_k_heads == 0, concat("the model's delta nets have ", n(d.n_v_heads), " value heads and ",
                                                   n(d.n_k_heads), " key heads; the first must be a multiple of the second"));
  }
  if (const MambaConfig& m = c.mamba; m.n_heads != 0) {
    require(m.n_heads % m.n_groups == 0, concat("the model's Mamba-2 layers have ", n(m.n_heads), " heads in ", n(m.n_groups),
                                                " groups; the first must be a multiple of the second"));
  }
  if (const std::int64_t recurrent = c.n_recurrent_layers(); recurrent != 0)
    require(c.state_floats() <= max_state_bytes / 4 / recurrent,
            concat("the states of ", n(recurrent), " recurrent layers would take ", n(c.state_floats()),
                   " floats each; moxie takes at most ", n(max_state_bytes), " bytes in all"));
  if (c.n_attention_layers() == 0)
    throw UnsupportedError({f.file(), {}, {}}, "no layer has attention; moxie needs a model that has one with attention");
  require((r.dims > 0 || c.mamba.n_heads != 0) && r.dims % 2 == 0,
          concat("the model rotates ", n(r.dims),
                 " dimensions; the number must be even, as dimensions are rotated in pairs, and not 0"));
  require(c.n_layers * c.moe.router.n_experts <= max_expert_matrices,
          concat(n(c.n_layers), " layers of ", n(c.moe.router.n_experts), " experts are more than moxie takes: at most ",
                 n(max_expert_matrices), " experts in all"));
  const RouterConfig& router = c.moe.router;
  require(router.top_k <= router.n_experts,
          concat("each token goes to ", n(router.top_k), " experts of ", n(router.n_experts), "; it can go to at most all"));
  if (router.n_group > 1) {
    require(router.n_experts % router.n_group == 0,
            concat(n(router.n_experts), " experts in ", n(router.n_group), " groups; the groups must be of equal size"));
    const std::int64_t size = router.n_experts / router.n_group;
    require(router.topk_group <= router.n_group,
            concat(n(router.topk_group), " of ", n(router.n_group), " groups of experts are used; it can be at most all"));
    require(router.group_score == GroupScore::best || size >= 2,
            "groups of one expert; a group's score is the sum of its best two, so it needs two");
    require(router.top_k <= router.topk_group * size,
            concat("each token goes to ", n(router.top_k), " experts, but the ", n(router.topk_group), " groups used have only ",
                   n(router.topk_group * size)));
  }
}

}  // namespace moxie::families
