// Families: what GGUF metadata and config.json say becomes the right configuration, every tensor is found and checked, and
// what is wrong is said.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/attention/rope.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/hf_folder.hpp>
#include <moxie/model/families/gguf_names.hpp>
#include <moxie/model/family.hpp>
#include <moxie/model/weights.hpp>

#include "checks.hpp"
#include "shared.hpp"

namespace {

using moxie::ModelConfig;
using moxie::ModelDescription;
using moxie::TensorMap;
using moxie::TensorView;
using nlohmann::json;
using Views = std::map<std::string, TensorView, std::less<>>;

std::vector<std::int64_t> moe_layers(const ModelConfig& config) {
  std::vector<std::int64_t> layers;
  for (std::size_t i = 0; i < config.is_moe_layer.size(); ++i)
    if (config.is_moe_layer[i]) layers.push_back(static_cast<std::int64_t>(i));
  return layers;
}

/// The message of the moxie::Error that `f` throws; "" where it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const moxie::Error& error) {
    return error.what();
  }
  return "";
}
using test::contains;

ModelConfig of_family(const char* name) {
  ModelConfig config;
  config.family = name;
  return config;
}

/// A configuration as values that can be compared; floats in few digits.
json summary(const ModelConfig& c) {
  const auto digits = [](double x) { return x == 0.0 ? 0.0 : std::stod((std::ostringstream() << std::scientific << x).str()); };
  const auto& a = c.attention;
  const auto& r = a.rope;
  const auto& m = c.moe;
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < c.n_layers; ++i) windows.push_back(c.sliding_window(i));
  return {{"family", c.family},
          {"vocab", c.vocab_size},
          {"hidden", c.hidden_size},
          {"layers", c.n_layers},
          {"context", c.context_length},
          {"dense", c.intermediate_size},
          {"eps", digits(static_cast<double>(c.rms_norm_eps))},
          {"embedding_multiplier", digits(static_cast<double>(c.embedding_multiplier))},
          {"residual_multiplier", digits(static_cast<double>(c.residual_multiplier))},
          {"logits_scaling", digits(static_cast<double>(c.logits_scaling))},
          {"mla", a.kind == moxie::AttentionKind::mla},
          {"heads", a.n_heads},
          {"output_gate", a.output_gate},
          {"own_gate", a.own_gate},
          {"rotates_in_windows", a.rotates_in_windows},
          {"delta_net", {c.delta_net.n_k_heads, c.delta_net.n_v_heads, c.delta_net.k_head_dim, c.delta_net.v_head_dim, c.delta_net.conv_kernel}},
          {"recurrent", c.is_recurrent_layer},
          {"short_conv", c.short_conv_kernel},
          {"kv_heads", a.n_kv_heads},
          {"head_dim", a.head_dim},
          {"scale", digits(static_cast<double>(a.scale))},
          {"qk_norm", static_cast<int>(a.qk_norm)},
          {"clip", digits(static_cast<double>(a.clip_qkv))},
          {"windows", windows},
          {"q_lora", a.q_lora_rank},
          {"kv_lora", a.kv_lora_rank},
          {"nope", a.qk_nope_head_dim},
          {"rope", a.qk_rope_head_dim},
          {"v", a.v_head_dim},
          {"latent_eps", digits(static_cast<double>(a.latent_norm_eps))},
          {"dims", r.dims},
          {"theta", r.theta},
          {"scaling", static_cast<int>(r.scaling)},
          {"factor", r.factor},
          {"original", r.original_context},
          {"beta_fast", r.beta_fast},
          {"beta_slow", r.beta_slow},
          {"truncate", r.truncate},
          {"magnitude", digits(r.magnitude)},
          {"moe_width", m.moe_intermediate_size},
          {"shared", m.shared_intermediate_size},
          {"shared_gate", m.shared_expert_gate},
          {"gated", m.gated},
          {"latent", m.latent_size},
          {"parts", [&] {
             std::vector<int> parts;
             for (std::int64_t i = 0; i < c.n_layers; ++i) parts.push_back(static_cast<int>(c.parts(i)));
             return parts;
           }()},
          {"experts", m.router.n_experts},
          {"top_k", m.router.top_k},
          {"scoring", static_cast<int>(m.router.scoring)},
          {"groups", m.router.n_group},
          {"groups_used", m.router.topk_group},
          {"norm", m.router.norm_topk_prob},
          {"sinks", a.sinks},
          {"biases", m.biases},
          {"swiglu_limit", digits(static_cast<double>(m.swiglu_limit))},
          {"routed_scale", digits(static_cast<double>(m.router.routed_scaling_factor))},
          {"moe_layers", moe_layers(c)}};
}

/// What every description must hold, whatever the family.
void check_tensors(const ModelDescription& d) {
  const ModelConfig& c = d.config;
  REQUIRE(std::ssize(d.tensors.layers) == c.n_layers);
  CHECK(d.tensors.embedding.tensor.shape == std::vector<std::int64_t>{c.vocab_size, c.hidden_size});
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    const moxie::LayerTensors& t = d.tensors.layers[static_cast<std::size_t>(i)];
    const bool moe = c.is_moe_layer[static_cast<std::size_t>(i)];
    CHECK(t.attn_norm.has_value() == c.has_mixer(i));
    CHECK(t.ffn_norm.has_value() == c.has_feed_forward(i));
    CHECK(t.dense.has_value() == (!moe && c.has_feed_forward(i)));
    CHECK(t.router.has_value() == moe);
    CHECK(t.experts.size() == (moe ? static_cast<std::size_t>(c.moe.router.n_experts) : 0));
    CHECK(t.shared.has_value() == (moe && c.moe.shared_intermediate_size > 0));
    CHECK(t.shared_gate.has_value() == (moe && c.moe.shared_expert_gate));
    CHECK(t.router_bias.has_value() == (moe && (c.moe.router.scoring == moxie::RouterScoring::sigmoid || c.family == "ernie4_5_moe")));
    CHECK(t.sinks.has_value() == c.attention.sinks);
    CHECK(t.router_logit_bias.has_value() == (moe && c.moe.biases));
    for (const auto& [bias, columns] : {std::pair(&t.experts_gate_bias, c.moe.moe_intermediate_size),
                                        std::pair(&t.experts_up_bias, c.moe.moe_intermediate_size),
                                        std::pair(&t.experts_down_bias, c.hidden_size)}) {
      REQUIRE(bias->has_value() == (moe && c.moe.biases));
      if (*bias) CHECK((*bias)->tensor.shape == std::vector<std::int64_t>{c.moe.router.n_experts, columns});
    }
    for (const moxie::FeedForwardTensors& expert : t.experts) {
      REQUIRE(expert.gate.has_value() == c.moe.gated);
      if (expert.gate) CHECK(expert.gate->tensor.shape == expert.up.tensor.shape);
      CHECK(expert.up.tensor.shape == std::vector<std::int64_t>{c.moe.moe_intermediate_size, c.moe.expert_input()});
      CHECK(expert.down.tensor.shape == std::vector<std::int64_t>{c.moe.expert_input(), c.moe.moe_intermediate_size});
      CHECK(expert.up.tensor.bytes == static_cast<std::uint64_t>(c.moe.moe_intermediate_size) * expert.up.tensor.row_stride());
      CHECK(expert.up.scale_inv.has_value() == (expert.up.tensor.dtype == moxie::Dtype::F8_E4M3));
    }
    REQUIRE(t.delta_net.has_value() == (c.recurrent_layer(i) && c.delta_net.n_k_heads != 0));
    REQUIRE(t.mamba.has_value() == (c.recurrent_layer(i) && c.mamba.n_heads != 0));
    REQUIRE(t.short_conv.has_value() == (c.recurrent_layer(i) && c.short_conv_kernel != 0));
    CHECK(t.o.has_value() == c.has_attention(i));
    if (t.delta_net) {
      const moxie::DeltaNetTensors& net = *t.delta_net;
      CHECK(net.ba.has_value() != (net.a && net.b));
      CHECK(net.qkv.tensor.rows() + (net.z ? net.z->tensor.rows() : 0) == c.delta_net.channels() + c.delta_net.n_v_heads * c.delta_net.v_head_dim);
    } else if (c.attention.kind == moxie::AttentionKind::gqa && c.has_attention(i)) {
      CHECK((t.q && t.k && t.v));
      CHECK(t.q_norm.has_value() == (c.attention.qk_norm != moxie::QkNorm::none));
    } else if (c.has_attention(i)) {
      CHECK((t.kv_a && t.kv_a_norm));
      CHECK(t.q.has_value() == (c.attention.q_lora_rank == 0));
      CHECK(t.q_b.has_value() == (c.attention.q_lora_rank != 0));
      CHECK(t.kv_b.has_value() != (t.k_b.has_value() && t.v_b.has_value()));
    }
  }
}

ModelDescription open_hf(const std::string& path) {
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  return moxie::describe_hf(folder.config, folder.tensors(), path);
}
ModelDescription open_gguf(const std::string& path) {
  const moxie::GgufFile file = moxie::GgufFile::open(path);
  return moxie::describe_gguf(file.metadata(), file.tensors(), path);
}

/// The files of one folder of shared/gguf and the golden.json beside them.
template <class F>
void for_each_gguf(const std::string& folder, F&& f) {
  const auto path = test::shared_path("gguf/" + folder);
  if (!path) return;
  const json golden = json::parse(test::read_text(*path + "/golden.json"));
  for (const auto& [name_bound, about] : golden["files"].items()) {
    const std::string name = name_bound;  // clang 14 cannot capture a structured binding
    CAPTURE(folder);
    CAPTURE(name);
    f(*path + "/" + name, about);
  }
}
const std::string gguf_folders[] = {"qwen3moe", "qwen2moe", "mixtral", "olmoe", "deepseek2-lite", "deepseek2-v2", "deepseek2-v3", "gpt-oss", "glm4moe", "dots1", "minimax-m2", "ernie4_5-moe", "granitemoe", "hunyuan-moe", "qwen3next"};
const std::string hf_folders[] = {"mixtral",     "mixtral_sliding",       "qwen2_moe",        "qwen2_moe_norm",
                                  "qwen3_moe",   "qwen3_moe_yarn",        "deepseek_v2_lite", "deepseek_v2",
                                  "deepseek_v3", "deepseek_v3_moonlight", "deepseek_v3_fp8",
                                  "olmoe",       "olmoe_clip",            "gpt_oss",          "gpt_oss_mxfp4", "glm4_moe", "glm4_moe_air", "dots1", "minimax_m2", "ernie4_5_moe", "granitemoe", "granitemoeshared", "hunyuan_v1_moe", "qwen3_next", "lfm2_moe", "exaone_moe"};

TensorMap with(const TensorMap& tensors, const std::function<void(Views&)>& change) {
  Views views = tensors.all();
  change(views);
  return TensorMap(std::move(views), nullptr, {});
}

/// A GGUF file in memory: what gguf_metadata() and gguf_tensors() say of a model, without the bytes.
struct Written {
  json metadata;
  TensorMap tensors;
};
Written write(const ModelDescription& d) {
  static const std::byte nothing{};
  Views views;
  for (const moxie::GgufTensor& tensor : moxie::gguf_tensors(d.config, d.tensors)) {
    TensorView view = tensor.parts.front()->tensor;
    view.shape = tensor.shape();
    view.name = tensor.name;
    view.dtype = moxie::Dtype::F32;
    view.data = &nothing;
    view.bytes = static_cast<std::uint64_t>(view.elements()) * 4;
    if (!tensor.row_order.empty()) CHECK(std::ssize(tensor.row_order) == (view.shape.size() == 1 ? view.shape[0] : view.rows()));
    CHECK(views.emplace(tensor.name, view).second);
  }
  const bool split = !d.tensors.layers.front().kv_b.has_value();
  return {moxie::gguf_metadata(d.config, split), TensorMap(std::move(views), nullptr, {})};
}

}  // namespace

TEST_CASE("every Hugging Face folder of the families is described, with the MoE layers its golden results have") {
  for (const std::string& name : hf_folders) {
    const auto path = test::shared_path("models/" + name);
    if (!path) return;
    CAPTURE(name);
    const json golden = json::parse(test::read_text(*path + "/golden.json"));
    const ModelDescription d = open_hf(*path);
    check_tensors(d);
    CHECK(d.config.family == (name == "granitemoeshared" ? "granitemoe" : golden["model_type"].get<std::string>()));
    CHECK(d.config.n_layers == golden["n_layers"].get<std::int64_t>());
    CHECK(moe_layers(d.config) == golden["moe_layers"].get<std::vector<std::int64_t>>());
    CHECK(d.config.moe.router.top_k == golden["top_k"].get<std::int64_t>());
    const json config = json::parse(test::read_text(*path + "/config.json"));
    CHECK(d.tensors.output.has_value() == !config["tie_word_embeddings"].get<bool>());
    CHECK(d.config.attention.rope.layout ==
          (d.config.attention.kind == moxie::AttentionKind::mla || name == "ernie4_5_moe" ? moxie::RopeLayout::interleaved : moxie::RopeLayout::half));
  }
}

TEST_CASE("values of config.json in both of its forms arrive, defaults included") {
  const auto config_of = [](const std::string& name) {
    const auto path = test::shared_path("models/" + name);
    return path ? std::optional(open_hf(*path)) : std::nullopt;
  };
  if (const auto d = config_of("mixtral_sliding")) {
    CHECK(d->config.attention.sliding_window == 16);
    CHECK(d->config.attention.head_dim == 24);
    CHECK(d->config.attention.rope.theta == 1e6);
    CHECK(d->config.rms_norm_eps == 1e-3f);
    CHECK(d->config.moe.router.norm_topk_prob);
  }
  if (const auto d = config_of("mixtral")) {
    CHECK(d->config.attention.head_dim == 16);  // null in the file
    CHECK(d->config.attention.sliding_window == 0);
    CHECK(d->config.attention.scale == 0.25f);
  }
  if (const auto d = config_of("qwen2_moe")) {
    CHECK_FALSE(d->config.moe.router.norm_topk_prob);
    CHECK(d->config.moe.shared_expert_gate);
    CHECK(d->tensors.layers[0].q_bias.has_value());
    CHECK_FALSE(d->tensors.layers[0].o_bias.has_value());
  }
  if (const auto d = config_of("qwen2_moe_norm")) CHECK(d->config.moe.router.norm_topk_prob);
  if (const auto d = config_of("qwen3_moe_yarn")) {
    const moxie::RopeConfig& r = d->config.attention.rope;
    CHECK(r.scaling == moxie::RopeScaling::yarn);
    CHECK(r.factor == 4.0);
    CHECK(r.original_context == 32);
    CHECK(r.magnitude == doctest::Approx(0.1 * std::log(4.0) + 1.0).epsilon(1e-12));
    CHECK_FALSE(d->config.moe.router.norm_topk_prob);
  }
  if (const auto d = config_of("olmoe")) {
    CHECK(d->config.attention.qk_norm == moxie::QkNorm::all_heads);
    CHECK(d->config.attention.clip_qkv == 0.0f);
    CHECK_FALSE(d->config.moe.router.norm_topk_prob);
    CHECK(d->config.moe.moe_intermediate_size == 48);
  }
  if (const auto d = config_of("olmoe_clip")) {
    CHECK(d->config.attention.clip_qkv == 1.5f);
    CHECK(d->config.moe.router.norm_topk_prob);
    CHECK(d->tensors.layers[0].q_norm->tensor.shape == std::vector<std::int64_t>{64});
    CHECK(d->tensors.layers[0].k_norm->tensor.shape == std::vector<std::int64_t>{32});
    CHECK_FALSE(d->tensors.output.has_value());
  }
  if (const auto d = config_of("hunyuan_v1_moe")) {
    CHECK(d->config.attention.qk_norm == moxie::QkNorm::per_head_rotated);
    CHECK(d->config.attention.rope.theta == doctest::Approx(10000.0 * std::pow(1000.0, 32.0 / 30.0)).epsilon(1e-12));
    CHECK(d->config.attention.rope.scaling == moxie::RopeScaling::none);
    CHECK(d->config.moe.shared_intermediate_size == 64);
    const auto path = test::shared_path("models/hunyuan_v1_moe");
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    json config = opened.config;
    for (const char* key : {"moe_topk", "num_experts"}) config[key] = json::array({config[key], config[key], config[key]});
    config["num_shared_expert"] = {1, 1, 1};
    const ModelConfig c = moxie::describe_hf(config, opened.tensors(), *path).config;
    CHECK(c.moe.router.n_experts == 8);
    CHECK(c.moe.router.top_k == 2);
    config["moe_topk"][1] = 3;
    CHECK_THROWS_WITH_AS(moxie::describe_hf(config, opened.tensors(), *path), doctest::Contains("moe_topk"), moxie::UnsupportedError);
    config["moe_topk"] = 2;
    config["use_cla"] = true;
    CHECK_THROWS_WITH_AS(moxie::describe_hf(config, opened.tensors(), *path), doctest::Contains("use_cla"), moxie::UnsupportedError);
  }
  if (const auto d = config_of("granitemoe")) {
    CHECK(d->config.attention.scale == 0.125f);
    CHECK(d->config.embedding_multiplier == 12.0f);
    CHECK(d->config.residual_multiplier == 0.22f);
    CHECK(d->config.logits_scaling == 0.125f);
    CHECK(d->config.moe.shared_intermediate_size == 0);
    CHECK(d->config.moe.router.norm_topk_prob);
  }
  if (const auto d = config_of("granitemoeshared")) {
    CHECK(d->config.moe.shared_intermediate_size == 80);
    CHECK_FALSE(d->config.moe.shared_expert_gate);
    CHECK(d->tensors.layers[0].shared->up.tensor.shape == std::vector<std::int64_t>{80, 64});
  }
  if (const auto d = config_of("glm4_moe")) {
    CHECK(d->config.attention.rope.dims == 16);  // half of head_dim
    CHECK(d->config.attention.qk_norm == moxie::QkNorm::per_head);
    CHECK(d->config.attention.scale == 1.0f / std::sqrt(32.0f));
    CHECK(d->config.moe.router.scoring == moxie::RouterScoring::sigmoid);
    CHECK(d->config.moe.router.norm_topk_prob);
    CHECK(d->config.moe.router.routed_scaling_factor == 2.5f);
    CHECK(d->config.moe.shared_intermediate_size == 56);
    CHECK(d->tensors.layers[0].v_bias.has_value());
    CHECK_FALSE(d->tensors.layers[0].o_bias.has_value());
    CHECK(d->tensors.layers[1].router_bias.has_value());
  }
  if (const auto d = config_of("glm4_moe_air")) {
    CHECK(d->config.attention.rope.dims == 8);  // from the top level
    CHECK(d->config.attention.qk_norm == moxie::QkNorm::none);
    CHECK(d->config.n_layers == 2);  // a third predicts further tokens
  }
  if (const auto d = config_of("dots1")) {
    CHECK(d->config.attention.rope.dims == 32);
    CHECK(d->config.attention.n_kv_heads == d->config.attention.n_heads);
    CHECK(d->config.moe.shared_intermediate_size == 96);
    CHECK(d->config.moe.router.routed_scaling_factor == 2.5f);
    CHECK_FALSE(d->tensors.layers[0].q_bias.has_value());
  }
  if (const auto d = config_of("minimax_m2")) {
    CHECK(d->config.attention.rope.dims == 16);  // rotary_dim
    CHECK(d->config.attention.qk_norm == moxie::QkNorm::all_heads);
    CHECK(d->config.moe.moe_intermediate_size == 64);
    CHECK(d->config.moe.router.scoring == moxie::RouterScoring::sigmoid);
    CHECK(d->config.moe.router.norm_topk_prob);
    CHECK(d->config.moe.router.routed_scaling_factor == 1.0f);
    CHECK(d->config.moe.shared_intermediate_size == 0);
  }
  if (const auto d = config_of("ernie4_5_moe")) {
    CHECK(d->config.moe.router.scoring == moxie::RouterScoring::softmax);
    CHECK(d->config.moe.router.norm_topk_prob);
    CHECK(d->config.moe.router.norm_minimum == 1e-12f);
    CHECK(d->config.moe.shared_intermediate_size == 96);
    CHECK(d->tensors.layers[1].router_bias->tensor.shape == std::vector<std::int64_t>{8});  // [1, 8] in the file
  }
  if (const auto d = config_of("deepseek_v2_lite")) {
    CHECK(d->config.attention.q_lora_rank == 0);
    CHECK(d->config.moe.router.n_group == 1);
    CHECK(d->config.moe.shared_intermediate_size == 96);
  }
  if (const auto d = config_of("deepseek_v2")) {
    const double m = 0.1 * 0.707 * std::log(40.0) + 1.0;
    CHECK(static_cast<double>(d->config.attention.scale) == doctest::Approx(m * m / std::sqrt(32.0)).epsilon(1e-6));
    CHECK(d->config.attention.rope.magnitude == doctest::Approx((0.1 * std::log(40.0) + 1.0) / m).epsilon(1e-12));
    CHECK(d->config.moe.router.group_score == moxie::GroupScore::best);
    CHECK(d->config.moe.router.n_group == 4);
    CHECK(d->config.moe.router.routed_scaling_factor == 4.0f);
  }
  if (const auto d = config_of("deepseek_v3")) {
    CHECK(d->config.moe.router.group_score == moxie::GroupScore::best_two);
    CHECK(d->config.moe.router.scoring == moxie::RouterScoring::sigmoid);
    CHECK(d->config.moe.router.norm_epsilon == 1e-20f);
    CHECK(d->config.attention.rope.magnitude == 1.0);
  }
  if (const auto d = config_of("deepseek_v3_moonlight")) {
    CHECK(d->config.rms_norm_eps == 1e-3f);
    CHECK(d->config.attention.latent_norm_eps == 1e-6f);
    CHECK(d->config.attention.q_lora_rank == 0);
  }
  if (const auto d = config_of("gpt_oss")) {
    const moxie::RopeConfig& r = d->config.attention.rope;
    CHECK(d->config.layer_windows == std::vector<std::int64_t>{16, 0, 16, 0});
    CHECK(r.scaling == moxie::RopeScaling::yarn);
    CHECK_FALSE(r.truncate);
    CHECK(r.magnitude == doctest::Approx(0.1 * std::log(32.0) + 1.0).epsilon(1e-12));
    CHECK(d->config.moe.router.scoring == moxie::RouterScoring::chosen_softmax);
    CHECK(d->config.moe.swiglu_limit == 7.0f);
    CHECK(d->tensors.layers[0].o_bias.has_value());
    CHECK(d->tensors.layers[3].experts[7].up.tensor.dtype == moxie::Dtype::BF16);
  }
  if (const auto d = config_of("gpt_oss_mxfp4")) {
    CHECK(d->config.layer_windows == std::vector<std::int64_t>{12, 0});
    CHECK(d->config.attention.rope.original_context == 32);
    CHECK(d->tensors.layers[1].experts[7].down.tensor.dtype == moxie::Dtype::MXFP4);
    CHECK(d->tensors.layers[1].q->tensor.dtype == moxie::Dtype::BF16);
  }
  if (const auto d = config_of("deepseek_v3_fp8")) {
    const moxie::Weight& kv_a = *d->tensors.layers[0].kv_a;
    CHECK(kv_a.tensor.dtype == moxie::Dtype::F8_E4M3);
    REQUIRE(kv_a.scale_inv.has_value());
    CHECK(kv_a.scale_inv->shape == std::vector<std::int64_t>{1, 2});
  }
}

TEST_CASE("every GGUF file of the families is described, and says what the model was made from") {
  for (const std::string& folder : gguf_folders)
    for_each_gguf(folder, [&](const std::string& path, const json& about) {
      const ModelDescription d = open_gguf(path);
      check_tensors(d);
      const ModelConfig& c = d.config;
      CHECK(moe_layers(c) == about["moe_layers"].get<std::vector<std::int64_t>>());
      CHECK(d.tensors.output.has_value() == (folder != "ernie4_5-moe" || !path.ends_with("BF16.gguf")));  // where the embeddings are tied
      CHECK(c.attention.latent_norm_eps ==
            doctest::Approx(static_cast<double>(c.attention.kind == moxie::AttentionKind::mla ? c.rms_norm_eps : 1e-6f)));
      if (!about.contains("config")) return;
      const json& hf = about["config"];
      CHECK(c.hidden_size == hf["hidden_size"].get<std::int64_t>());
      CHECK(c.vocab_size == hf["vocab_size"].get<std::int64_t>());
      CHECK(c.context_length == hf["max_position_embeddings"].get<std::int64_t>());
      CHECK(c.attention.n_heads == hf["num_attention_heads"].get<std::int64_t>());
      CHECK(c.moe.router.top_k == hf[hf.contains("moe_k") ? "moe_k" : hf.contains("moe_topk") ? "moe_topk" : "num_experts_per_tok"].get<std::int64_t>());
      CHECK(c.moe.router.norm_topk_prob == hf.value("norm_topk_prob", true));
      CHECK(c.moe.router.routed_scaling_factor == doctest::Approx(hf.value("routed_scaling_factor", 1.0)));
      CHECK(c.moe.router.n_group == hf.value("n_group", 1));
      CHECK(c.moe.router.topk_group == hf.value("topk_group", 1));
      const double theta = hf["rope_parameters"]["rope_theta"].get<double>(), dims = static_cast<double>(c.attention.rope.dims);
      if (const double alpha = hf["rope_parameters"].value("alpha", 1.0); alpha == 1.0)
        CHECK(c.attention.rope.theta == theta);
      else
        CHECK(c.attention.rope.theta == doctest::Approx(theta * std::pow(alpha, dims / (dims - 2.0))).epsilon(1e-6));
      CHECK(c.attention.rope.factor == hf["rope_parameters"].value("factor", 1.0));
      const bool stretched = hf["rope_parameters"]["rope_type"] == "yarn" && c.attention.kind == moxie::AttentionKind::gqa;
      CHECK(c.attention.rope.magnitude ==
            doctest::Approx(stretched ? 0.1 * std::log(c.attention.rope.factor) + 1.0 : 1.0).epsilon(1e-12));
      if (c.attention.kind == moxie::AttentionKind::mla) {
        const double m = 0.1 * hf["rope_parameters"].value("mscale_all_dim", 0.0) * std::log(c.attention.rope.factor) + 1.0;
        const double width = hf["qk_nope_head_dim"].get<double>() + hf["qk_rope_head_dim"].get<double>();
        CHECK(static_cast<double>(c.attention.scale) == doctest::Approx(m * m / std::sqrt(width)).epsilon(1e-6));
        CHECK(c.attention.qk_nope_head_dim == hf["qk_nope_head_dim"].get<std::int64_t>());
        CHECK(c.attention.v_head_dim == hf["v_head_dim"].get<std::int64_t>());
        CHECK(c.moe.shared_intermediate_size ==
              hf["n_shared_experts"].get<std::int64_t>() * hf["moe_intermediate_size"].get<std::int64_t>());
      }
    });
}

TEST_CASE("the trained models say the same in GGUF and in their Hugging Face folders") {
  for (const auto& [name_bound, type] : {std::pair<std::string, std::string>{"tiny-r1", "Q4_0"}, {"tiny-shakespeare", "Q2_K"}}) {
    const std::string name = name_bound;
    const auto folder = test::shared_path("trained/" + name);
    if (!folder) return;
    CAPTURE(name);
    const ModelDescription hf = open_hf(*folder), gguf = open_gguf(*folder + "/" + name + "-" + type + ".gguf");
    check_tensors(hf);
    check_tensors(gguf);
    CHECK(summary(hf.config) == summary(gguf.config));
    CHECK(gguf.config.name == name);
  }
}

TEST_CASE("the GGUF names and metadata written for a model describe the same model") {
  for (const std::string& name : hf_folders) {
    const auto path = test::shared_path("models/" + name);
    if (!path) return;
    CAPTURE(name);
    const ModelDescription d = open_hf(*path);
    const Written file = write(d);
    const ModelDescription back = moxie::describe_gguf(file.metadata, file.tensors, "memory.gguf");
    check_tensors(back);
    CHECK(summary(back.config) == summary(d.config));
    if (d.config.moe.router.n_group > 1) CHECK(back.config.moe.router.group_score == d.config.moe.router.group_score);
    CHECK(back.tensors.output.has_value() == d.tensors.output.has_value());
    CHECK(moxie::gguf_permutes_rows(d.config) == (d.config.family == "mixtral" || d.config.family == "granitemoe"));
  }
  CHECK(moxie::gguf_architecture(of_family("qwen3_moe")) == "qwen3moe");
  CHECK(contains(error_of([] { moxie::gguf_architecture(of_family("llama5")); }), "mixtral"));
}

TEST_CASE("the metadata written for llama.cpp's own files has their keys and values") {
  for (const std::string& folder : gguf_folders)
    for_each_gguf(folder, [&](const std::string& path, const json& about) {
      if (!about.contains("metadata")) return;
      const json written = moxie::gguf_metadata(open_gguf(path).config, true);
      for (const auto& [key_bound, value] : about["metadata"].items()) {
        const std::string key = key_bound;
        CAPTURE(key);
        if (key.starts_with("tokenizer.") || key.ends_with("expert_group_count") || key.ends_with("expert_group_used_count"))
          continue;
        if (key.ends_with("q_lora_rank") && value == 0) continue;
        REQUIRE(written.contains(key));
        if (value.is_number_float())
          CHECK(written[key].get<double>() == doctest::Approx(value.get<double>()).epsilon(1e-5));
        else
          CHECK(written[key] == value);
      }
      for (const auto& [key, value] : written.items()) CHECK_FALSE(key.starts_with("moxie."));
    });
}

TEST_CASE("rows go from halves to the interleaved pairs of GGUF") {
  CHECK(moxie::pairs_from_halves(2, 0, 4, 0) == std::vector<std::int64_t>{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(moxie::pairs_from_halves(1, 2, 4, 1) == std::vector<std::int64_t>{0, 1, 2, 4, 3, 5, 6});
}

TEST_CASE("a model whose rotation llama.cpp has only in pairs is written with permuted rows") {
  const auto path = test::shared_path("models/deepseek_v3");
  if (!path) return;
  const moxie::HfFolder folder = moxie::HfFolder::open(*path);
  json config = folder.config;
  config["rope_interleave"] = false;
  const ModelDescription d = moxie::describe_hf(config, folder.tensors(), *path);
  CHECK(d.config.attention.rope.layout == moxie::RopeLayout::half);
  for (const moxie::GgufTensor& tensor : moxie::gguf_tensors(d.config, d.tensors))
    CHECK(tensor.row_order.empty() !=
          (tensor.name.ends_with("attn_q_b.weight") || tensor.name.ends_with("attn_kv_a_mqa.weight")));
}

/// Every tensor of a file left out, misshaped, mistyped and renamed. `describe` describes the file at `path` with a change.
using Change = std::function<void(Views&)>;
using Describe = std::function<std::string(const Change&)>;
void check_every_tensor(const TensorMap& tensors, const std::string& path, const Describe& describe) {
  CHECK(describe([](Views&) {}) == "");
  for (const auto& [name_bound, view] : tensors.all()) {
    const std::string name = name_bound;
    if (name == "output.weight") continue;  // without it the embedding is the output
    CAPTURE(name);
    const std::string missing = describe([&](Views& views) { views.erase(name); });
    CHECK(contains(missing, name));
    CHECK(contains(missing, "is missing"));
    CHECK(contains(missing, view.shape_text()));
    CHECK(contains(missing, path));
    const std::string misshaped = describe([&](Views& views) { views[name].shape.back() -= 1; });
    CHECK(contains(misshaped, "has the shape"));
    CHECK(contains(misshaped, view.shape_text()));
    const std::string mistyped = describe([&](Views& views) { views[name].dtype = moxie::Dtype::I32; });
    CHECK(contains(mistyped, "has type I32"));
    const std::string renamed = describe([&](Views& views) {
      views[name + "2"] = views[name];
      views.erase(name);
    });
    CHECK(contains(renamed, "is missing"));
  }
}
/// The same for a GGUF file; returns what describes it with other changes.
Describe check_every_tensor(const std::string& folder) {
  const auto path = test::shared_path("gguf/" + folder + "/BF16.gguf");
  if (!path) return {};
  CAPTURE(folder);
  const auto opened = std::make_shared<moxie::GgufFile>(moxie::GgufFile::open(*path));
  const Describe describe = [opened, path = *path](const Change& change) {
    return error_of([&] { moxie::describe_gguf(opened->metadata(), with(opened->tensors(), change), path); });
  };
  check_every_tensor(opened->tensors(), *path, describe);
  return describe;
}

TEST_CASE("missing, misshaped and mistyped tensors are listed together, with what they should be") {
  for (const char* model : {"models/gpt_oss", "models/gpt_oss_mxfp4"})
    if (const auto path = test::shared_path(model)) {
      CAPTURE(model);
      const moxie::HfFolder folder = moxie::HfFolder::open(*path);
      check_every_tensor(folder.tensors(), *path, [&](const Change& change) {
        return error_of([&] { moxie::describe_hf(folder.config, with(folder.tensors(), change), *path); });
      });
    }
  check_every_tensor("gpt-oss");
  check_every_tensor("minimax-m2");
  const auto norms = check_every_tensor("olmoe");
  const auto describe = check_every_tensor("qwen3moe");
  if (!norms || !describe) return;
  CHECK(contains(norms([](Views& views) { views["blk.1.attn_k_norm.weight"].shape = {16}; }), "[16]; it must be [64]"));
  const std::string two = describe([](Views& views) {
    views.erase("blk.0.attn_q.weight");
    views["blk.1.attn_k_norm.weight"].shape = {7};
  });
  CHECK(contains(two, "2 tensors are missing or wrong"));
  CHECK(contains(two, "'blk.0.attn_q.weight' is missing; it must have the shape [128, 64]"));
  CHECK(contains(two, "'blk.1.attn_k_norm.weight' has the shape [7]; it must be [32]"));
  const std::string all = describe([](Views& views) { views.clear(); });
  CHECK(contains(all, "and 28 more"));  // of 2 + 3 * 12, 10 are named
  CHECK(all.size() < 2000);
}

TEST_CASE("a tensor that the family has no place for is an error, not left out") {
  const auto refuses = [](const std::string& error) { return contains(error, "no place for"); };
  if (const auto path = test::shared_path("gguf/qwen3moe/BF16.gguf")) {
    const moxie::GgufFile file = moxie::GgufFile::open(*path);
    const auto added = [&](const std::string& name) {
      return error_of([&] {
        moxie::describe_gguf(file.metadata(), with(file.tensors(), [&](Views& v) { v[name] = v["blk.0.attn_norm.weight"]; }),
                             *path);
      });
    };
    CHECK(refuses(added("blk.0.ffn_gate_inp.bias")));
    CHECK(refuses(added("blk.1.attn_sinks.weight")));
    CHECK(refuses(added("output.bias")));
    CHECK(refuses(added("blk.3.attn_norm.weight")));
    CHECK(added("blk.0.attn_output.bias") == "");  // that one is used
  }
  if (const auto path = test::shared_path("models/mixtral")) {
    const moxie::HfFolder folder = moxie::HfFolder::open(*path);
    const auto added = [&](const std::string& name) {
      return error_of([&] {
        moxie::describe_hf(folder.config, with(folder.tensors(), [&](Views& v) { v[name] = v["model.norm.weight"]; }), *path);
      });
    };
    CHECK(refuses(added("model.layers.0.self_attn.q_proj.bias")));
    CHECK(refuses(added("lm_head.bias")));
    CHECK(added("model.layers.0.self_attn.rotary_emb.inv_freq") == "");
    CHECK(added("v_head.summary.weight") == "");
  }
}

TEST_CASE("the other forms of GGUF tensors mean the same: one per expert, fused gate and up, fused q, k and v, unsplit kv_b") {
  static const std::byte nothing{};
  const auto path = test::shared_path("gguf/mixtral/Q8_0.gguf");
  if (!path) return;
  const moxie::GgufFile file = moxie::GgufFile::open(*path);
  const ModelDescription plain = moxie::describe_gguf(file.metadata(), file.tensors(), *path);
  const auto same = [&](const ModelDescription& d) {
    check_tensors(d);
    for (std::size_t i = 0; i < d.tensors.layers.size(); ++i)
      for (std::size_t e = 0; e < d.tensors.layers[i].experts.size(); ++e) {
        CHECK(d.tensors.layers[i].experts[e].gate->tensor.data == plain.tensors.layers[i].experts[e].gate->tensor.data);
        CHECK(d.tensors.layers[i].experts[e].down.tensor.data == plain.tensors.layers[i].experts[e].down.tensor.data);
      }
  };
  same(moxie::describe_gguf(file.metadata(),
                            with(file.tensors(),
                                 [](Views& views) {
                                   for (const char* part : {"gate", "up", "down"})
                                     for (const char* layer : {"blk.0.ffn_", "blk.1.ffn_"}) {
                                       const TensorView all = views.at(std::string(layer) + part + "_exps.weight");
                                       views.erase(all.name);
                                       for (std::int64_t e = 0; e < all.shape[0]; ++e)
                                         views[std::string(layer) + part + "." + std::to_string(e) + ".weight"] = all.slice(e);
                                     }
                                 }),
                            *path));
  const ModelDescription fused = moxie::describe_gguf(file.metadata(),
                                                      with(file.tensors(),
                                                           [](Views& views) {
                                                             TensorView gate = views.at("blk.0.ffn_gate_exps.weight");
                                                             views.erase(gate.name);
                                                             views.erase("blk.0.ffn_up_exps.weight");
                                                             gate.shape[1] *= 2;
                                                             gate.bytes *= 2;
                                                             views["blk.0.ffn_gate_up_exps.weight"] = gate;
                                                             TensorView q = views.at("blk.0.attn_q.weight");
                                                             for (const char* part : {"q", "k", "v"})
                                                               views.erase(std::string("blk.0.attn_") + part + ".weight");
                                                             q.shape[0] *= 2;
                                                             q.bytes *= 2;
                                                             views["blk.0.attn_qkv.weight"] = q;
                                                           }),
                                                      *path);
  check_tensors(fused);
  const moxie::LayerTensors& t = fused.tensors.layers[0];
  CHECK(t.experts[1].up.tensor.data - t.experts[1].gate->tensor.data ==
        static_cast<std::ptrdiff_t>(t.experts[1].gate->tensor.bytes));
  CHECK(t.experts[1].gate->tensor.data - t.experts[0].gate->tensor.data ==
        static_cast<std::ptrdiff_t>(2 * t.experts[1].gate->tensor.bytes));
  CHECK(t.k->tensor.data - t.q->tensor.data == static_cast<std::ptrdiff_t>(t.q->tensor.bytes));
  CHECK(t.v->tensor.data - t.k->tensor.data == static_cast<std::ptrdiff_t>(t.k->tensor.bytes));

  if (const auto gpt_oss = test::shared_path("gguf/gpt-oss/BF16.gguf")) {
    const moxie::GgufFile split = moxie::GgufFile::open(*gpt_oss);
    const TensorView all_gates = *split.tensors().find("blk.0.ffn_gate_exps.bias"), all_ups = *split.tensors().find("blk.0.ffn_up_exps.bias");
    const moxie::Index n = all_gates.shape[0], width = all_gates.shape[1];
    moxie::RowMatrix gates(n, width), ups(n, width), both(n, 2 * width);
    moxie::dequantize(all_gates, gates.data());
    moxie::dequantize(all_ups, ups.data());
    both << gates, ups;
    const ModelDescription d = moxie::describe_gguf(split.metadata(), with(split.tensors(), [&](Views& views) {
      TensorView weight = views.at("blk.0.ffn_gate_exps.weight"), bias = all_gates;
      for (const char* part : {"gate_exps.weight", "up_exps.weight", "gate_exps.bias", "up_exps.bias"}) views.erase(std::string("blk.0.ffn_") + part);
      weight.shape[1] *= 2;
      weight.bytes *= 2;
      views["blk.0.ffn_gate_up_exps.weight"] = weight;
      bias.shape[1] *= 2;
      bias.bytes *= 2;
      bias.data = reinterpret_cast<const std::byte*>(both.data());
      views["blk.0.ffn_gate_up_exps.bias"] = bias;
    }), *gpt_oss);
    check_tensors(d);
    CHECK(moxie::load_rows(*d.tensors.layers[0].experts_gate_bias, n) == gates);
    CHECK(moxie::load_rows(*d.tensors.layers[0].experts_up_bias, n) == ups);
  }

  const auto old = test::shared_path("gguf/deepseek2-v3/BF16.gguf");
  if (!old) return;
  const moxie::GgufFile v3 = moxie::GgufFile::open(*old);
  json metadata = v3.metadata();
  metadata["deepseek2.attention.key_length"] = metadata["deepseek2.attention.key_length_mla"];
  metadata["deepseek2.attention.value_length"] = metadata["deepseek2.attention.value_length_mla"];
  metadata.erase("deepseek2.attention.key_length_mla");
  metadata.erase("deepseek2.attention.value_length_mla");
  const ModelDescription unsplit = moxie::describe_gguf(metadata,
                                                        with(v3.tensors(),
                                                             [](Views& views) {
                                                               for (const char* layer : {"blk.0.", "blk.1.", "blk.2."}) {
                                                                 TensorView b = views.at(std::string(layer) + "attn_k_b.weight");
                                                                 views.erase(std::string(layer) + "attn_k_b.weight");
                                                                 views.erase(std::string(layer) + "attn_v_b.weight");
                                                                 b.shape = {4 * 32, 32};
                                                                 b.bytes = 4 * 32 * 32 * 2;
                                                                 b.data = &nothing;
                                                                 views[std::string(layer) + "attn_kv_b.weight"] = b;
                                                               }
                                                             }),
                                                        *old);
  check_tensors(unsplit);
  CHECK(summary(unsplit.config) == summary(moxie::describe_gguf(v3.metadata(), v3.tensors(), *old).config));
}

TEST_CASE("frequency factors of rope_freqs.weight are read and checked") {
  const auto path = test::shared_path("gguf/mixtral/BF16.gguf");
  if (!path) return;
  const moxie::GgufFile file = moxie::GgufFile::open(*path);
  std::vector<float> factors{1, 1, 2, 2.5f, 4, 8, 8, 8};
  const auto describe = [&](std::int64_t n) {
    return moxie::describe_gguf(file.metadata(),
                                with(file.tensors(),
                                     [&](Views& views) {
                                       TensorView& view = views["rope_freqs.weight"];
                                       view.name = "rope_freqs.weight";
                                       view.shape = {n};
                                       view.data = reinterpret_cast<const std::byte*>(factors.data());
                                       view.bytes = static_cast<std::uint64_t>(n) * 4;
                                     }),
                                *path);
  };
  CHECK(describe(8).config.attention.rope.freq_factors == factors);
  CHECK(contains(error_of([&] { describe(7); }), "it must be F32 [8]"));
  factors[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(contains(error_of([&] { describe(8); }), "positive and finite"));
}

TEST_CASE("Llama 3.1's rotation becomes frequency factors that keep short wavelengths and stretch long ones") {
  ModelConfig c = of_family("mixtral");
  c.attention.rope = {
      .dims = 128, .theta = 500000.0, .scaling = moxie::RopeScaling::llama3, .factor = 8.0, .original_context = 8192};
  const std::vector<float> factors = moxie::gguf_rope_freqs(c);
  REQUIRE(factors.size() == 64);
  CHECK(factors.front() == 1.0f);
  CHECK(factors.back() == 8.0f);
  CHECK(std::is_sorted(factors.begin(), factors.end()));
}

TEST_CASE("options that would change the result are refused, not ignored") {
  const auto refused = [](const char* folder, const json& change) {
    const auto path = test::shared_path(std::string("models/") + folder);
    if (!path) return std::string("skipped");
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    json config = opened.config;
    config.merge_patch(change);
    try {
      moxie::describe_hf(config, opened.tensors(), *path);
    } catch (const moxie::UnsupportedError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  if (!test::shared_path("models/mixtral")) return;
  CHECK(contains(refused("mixtral", {{"hidden_act", "gelu"}}),
                 "hidden_act: is \"gelu\"; moxie has this family only with \"silu\""));
  CHECK(contains(refused("mixtral", {{"model_type", "flex_olmo"}}), "deepseek_v2, deepseek_v3, qwen2_moe, qwen3_moe, mixtral, olmoe"));
  CHECK(contains(refused("mixtral", {{"clip_qkv", 8}}), "clip_qkv"));
  CHECK(contains(refused("mixtral", {{"rope_scaling", {{"type", "longrope"}}}}), "linear, dynamic, yarn and llama3"));
  CHECK(contains(refused("mixtral", {{"quantization_config", {{"quant_method", "awq"}}}}), "convert the model to GGUF"));
  CHECK(contains(refused("mixtral", {{"attention_bias", true}}), "attention_bias"));
  CHECK(contains(refused("deepseek_v2", {{"moe_layer_freq", 2}}), "moe_layer_freq"));
  CHECK(contains(refused("deepseek_v2", {{"scoring_func", "sigmoid"}}), "scoring_func"));
  CHECK(contains(refused("deepseek_v2", {{"topk_method", "noaux_tc"}}), "group_limited_greedy"));
  CHECK(contains(refused("deepseek_v3_moonlight", {{"topk_method", "greedy"}}), "noaux_tc"));
  CHECK(contains(refused("deepseek_v3_fp8", {{"quantization_config", {{"weight_block_size", {64, 64}}}}}), "weight_block_size"));
  CHECK(contains(refused("qwen3_moe", {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}}), "partial_rotary_factor"));
  CHECK(contains(refused("mixtral", {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor"));
  CHECK(contains(refused("deepseek_v3", {{"layer_types", {"full_attention", "sliding_attention", "full_attention"}}}), "only full_attention"));
  CHECK(contains(refused("deepseek_v3_fp8", {{"quantization_config", {{"fmt", "e5m2"}}}}), "float8_e4m3fn"));
  CHECK(contains(refused("minimax_m2", {{"scoring_func", "softmax"}}), "scoring_func"));
  CHECK(contains(refused("minimax_m2", {{"use_qk_norm", false}}), "use_qk_norm"));
  CHECK(contains(refused("gpt_oss", {{"swiglu_alpha", 1.5}}), "swiglu_alpha"));
  CHECK(contains(refused("gpt_oss", {{"quantization_config", {{"quant_method", "fp8"}}}}), "'mxfp4'"));
}

TEST_CASE("layers outside a range, and between multiples of an interval, are dense; tensors for predicting further tokens are left out") {
  const auto folder = test::shared_path("models/ernie4_5_moe");
  if (!folder) return;
  const moxie::HfFolder opened = moxie::HfFolder::open(*folder);
  const auto layers = [&](const json& change) {
    json config = opened.config;
    config.merge_patch(change);
    moxie::Fields f(config, "config.json");
    return moxie::families::read_hf_config(f, moxie::families::ernie4_5_moe).is_moe_layer;
  };
  CHECK(layers(json::object()) == std::vector<bool>{false, true, true});
  CHECK(layers({{"moe_layer_end_index", -1}}) == std::vector<bool>{false, true, true});
  CHECK(layers({{"moe_layer_end_index", 1}}) == std::vector<bool>{false, true, false});
  CHECK(layers({{"moe_layer_start_index", 0}}) == std::vector<bool>{true, true, true});
  CHECK(layers({{"moe_layer_start_index", 0}, {"moe_layer_interval", 2}}) == std::vector<bool>{false, true, false});
  const auto added = [&](const char* name) {
    return error_of([&] {
      moxie::describe_hf(opened.config, with(opened.tensors(), [&](Views& views) { views[name] = views["model.norm.weight"]; }), *folder);
    });
  };
  CHECK(added("model.mtp_hidden_norm.0.weight") == "");
  CHECK(contains(added("model.other.weight"), "no place for"));
}

TEST_CASE("the step between MoE layers is found from the layers") {
  using moxie::families::moe_layer_step;
  CHECK(moe_layer_step({false, true, true}, 1) == 1);
  CHECK(moe_layer_step({false, true, false, true}, 1) == 2);
  CHECK(moe_layer_step({false, false, true, false, false, true}, 2) == 3);
  CHECK(moe_layer_step({true, true, false}, 0) == 0);  // none fits
  if (const auto path = test::shared_path("models/ernie4_5_moe")) {
    ModelDescription d = open_hf(*path);
    d.config.is_moe_layer = {false, true, false};
    CHECK(moxie::gguf_metadata(d.config, false)["ernie4_5-moe.interleave_moe_layer_step"] == 2);
    d.config.is_moe_layer = {true, true, false};
    CHECK_THROWS_WITH_AS(moxie::gguf_metadata(d.config, false), doctest::Contains("which layers are dense"), moxie::UnsupportedError);
  }
}

TEST_CASE("published forms of config.json: FP8 under its other name, windows of late layers, tied embeddings and rotation by default") {
  if (!test::shared_path("models/minimax_m2")) return;
  const auto config_of = [](const char* name, const json& change, std::initializer_list<const char*> without = {}) {
    const auto path = test::shared_path(std::string("models/") + name);
    REQUIRE(path);
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    json config = opened.config;
    config.merge_patch(change);
    for (const char* key : without) config.erase(key);
    return moxie::describe_hf(config, opened.tensors(), *path);
  };
  const json fp8 = {{"quantization_config",
                     {{"quant_method", "fp8"}, {"fmt", "float8_e4m3fn"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}},
                      {"modules_to_not_convert", {"gate", "e_score_correction_bias", "lm_head"}}}}};
  CHECK(config_of("minimax_m2", fp8).config.attention.rope.dims == 16);
  CHECK(config_of("minimax_m2", {{"partial_rotary_factor", 0.25}}).config.attention.rope.dims == 8);  // before rotary_dim
  CHECK(config_of("minimax_m2", json::object(), {"rotary_dim"}).config.attention.rope.dims == 32);
  CHECK(config_of("glm4_moe_air", {{"rotary_dim", 4}}).config.attention.rope.dims == 8);  // no key of this family
  CHECK(config_of("glm4_moe_air", json::object(), {"partial_rotary_factor"}).config.attention.rope.dims == 8);
  CHECK_FALSE(config_of("ernie4_5_moe", json::object(), {"tie_word_embeddings"}).tensors.output.has_value());
  using Windows = std::vector<std::int64_t>;
  const auto windows = [&](const json& change, std::initializer_list<const char*> without = {}) {
    const ModelConfig c = config_of("dots1", change, without).config;
    return Windows{c.sliding_window(0), c.sliding_window(1), c.sliding_window(2)};
  };
  CHECK(windows(json::object()) == Windows{0, 0, 0});
  CHECK(windows({{"sliding_window", 64}}) == Windows{0, 0, 0});  // layer_types has none
  CHECK(windows({{"sliding_window", 64}, {"layer_types", {"full_attention", "full_attention", "sliding_attention"}}}) == Windows{0, 0, 64});
  CHECK(windows({{"sliding_window", 64}, {"max_window_layers", 1}}, {"layer_types"}) == Windows{0, 64, 64});
  CHECK(windows({{"max_window_layers", 2}}, {"layer_types", "sliding_window"}) == Windows{0, 0, 4096});
  CHECK(windows(json::object(), {"layer_types", "sliding_window", "max_window_layers"}) == Windows{0, 0, 0});
}

TEST_CASE("heads are rotated by an even number of dimensions, more than none and no more than all") {
  const auto folder = test::shared_path("models/glm4_moe_air"), path = test::shared_path("gguf/glm4moe/BF16.gguf");
  if (!folder || !path) return;
  const moxie::HfFolder opened = moxie::HfFolder::open(*folder);
  for (const json& change : {json{{"partial_rotary_factor", 0.0}}, json{{"partial_rotary_factor", 0.2}}, json{{"partial_rotary_factor", 1.5}},
                             json{{"partial_rotary_factor", 0.07}}}) {
    json config = opened.config;
    config.merge_patch(change);
    CAPTURE(change.dump());
    CHECK_THROWS_WITH_AS(moxie::describe_hf(config, opened.tensors(), *folder), doctest::Contains("rota"), moxie::FormatError);
  }
  const moxie::GgufFile file = moxie::GgufFile::open(*path);
  for (const int dims : {0, 7, 34}) {
    json metadata = file.metadata();
    metadata["glm4moe.rope.dimension_count"] = dims;
    CHECK_THROWS_AS(moxie::describe_gguf(metadata, file.tensors(), *path), moxie::FormatError);
  }
  // norms of q and k in one layer but not in another
  const auto without = [&](const char* layer) {
    return error_of([&] {
      moxie::describe_gguf(file.metadata(), with(file.tensors(), [&](Views& views) { views.erase(std::string(layer) + "attn_q_norm.weight"); }), *path);
    });
  };
  CHECK(contains(without("blk.0."), "no place for"));
  CHECK(contains(without("blk.1."), "is missing"));
}

TEST_CASE("clip_qkv must be a positive number, and GGUF's clamp_kqv, which llama.cpp does not apply to olmoe, is refused") {
  const auto folder = test::shared_path("models/olmoe"), path = test::shared_path("gguf/olmoe/BF16.gguf");
  if (!folder || !path) return;
  const moxie::HfFolder opened = moxie::HfFolder::open(*folder);
  for (const json& value : {json(0), json(-8), json("8"), json(true)}) {
    json config = opened.config;
    config["clip_qkv"] = value;
    CHECK_THROWS_WITH_AS(moxie::describe_hf(config, opened.tensors(), *folder), doctest::Contains("clip_qkv"), moxie::FormatError);
  }
  const moxie::GgufFile file = moxie::GgufFile::open(*path);
  json metadata = file.metadata();
  metadata["olmoe.attention.clamp_kqv"] = 8.0;
  CHECK_THROWS_WITH_AS(moxie::describe_gguf(metadata, file.tensors(), *path), doctest::Contains("clamp_kqv"), moxie::UnsupportedError);
  metadata["olmoe.attention.clamp_kqv"] = 0.0;
  metadata["moxie.attention.clip_qkv"] = 8.0;
  CHECK(moxie::describe_gguf(metadata, file.tensors(), *path).config.attention.clip_qkv == 8.0f);
}

TEST_CASE("granitemoe's multipliers must be positive numbers, and other families' files must not have them") {
  const auto granite = test::shared_path("models/granitemoe"), mixtral = test::shared_path("models/mixtral");
  const auto granite_gguf = test::shared_path("gguf/granitemoe/BF16.gguf"), mixtral_gguf = test::shared_path("gguf/mixtral/BF16.gguf");
  if (!granite || !mixtral || !granite_gguf || !mixtral_gguf) return;
  const moxie::HfFolder opened = moxie::HfFolder::open(*granite), other = moxie::HfFolder::open(*mixtral);
  for (const char* key : {"embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"}) {
    CAPTURE(key);
    json config = other.config;
    config[key] = 2.0;
    CHECK_THROWS_WITH_AS(moxie::describe_hf(config, other.tensors(), *mixtral), doctest::Contains(key), moxie::UnsupportedError);
    config = opened.config;
    for (const json& value : {json(0), json(-1.5), json("2"), json(true)}) {
      config[key] = value;
      CHECK_THROWS_WITH_AS(moxie::describe_hf(config, opened.tensors(), *granite), doctest::Contains(key), moxie::FormatError);
    }
    config.erase(key);
    const ModelConfig c = moxie::describe_hf(config, opened.tensors(), *granite).config;
    CHECK((c.embedding_multiplier == 1.0f) == (key == std::string_view("embedding_multiplier")));
    CHECK((c.residual_multiplier == 1.0f) == (key == std::string_view("residual_multiplier")));
    CHECK((c.logits_scaling == 1.0f) == (key == std::string_view("logits_scaling")));
    CHECK((c.attention.scale == 1.0f) == (key == std::string_view("attention_multiplier")));
  }
  const moxie::GgufFile file = moxie::GgufFile::open(*granite_gguf), other_file = moxie::GgufFile::open(*mixtral_gguf);
  for (const char* key : {"embedding_scale", "residual_scale", "logit_scale"}) {
    CAPTURE(key);
    json metadata = other_file.metadata();
    metadata[std::string("llama.") + key] = 2.0;
    CHECK_THROWS_WITH_AS(moxie::describe_gguf(metadata, other_file.tensors(), *mixtral_gguf), doctest::Contains(key), moxie::UnsupportedError);
    metadata = file.metadata();
    metadata[std::string("granitemoe.") + key] = -2.0;
    CHECK_THROWS_WITH_AS(moxie::describe_gguf(metadata, file.tensors(), *granite_gguf), doctest::Contains(key), moxie::FormatError);
  }
  json unrotated = file.metadata();
  unrotated["granitemoe.rope.scaling.finetuned"] = false;
  CHECK_THROWS_WITH_AS(moxie::describe_gguf(unrotated, file.tensors(), *granite_gguf), doctest::Contains("rope.scaling.finetuned"), moxie::UnsupportedError);
  const auto shared = test::shared_path("models/granitemoeshared");
  if (!shared) return;
  const moxie::HfFolder fp8 = moxie::HfFolder::open(*shared);
  const float scales[2] = {1.0f, 2.0f};
  const TensorMap coded = with(fp8.tensors(), [&](Views& views) {
    const std::string name = "model.layers.1.shared_mlp.input_linear.weight";
    TensorView& view = views.at(name);
    view.dtype = moxie::Dtype::F8_E4M3;
    view.bytes /= 2;
    TensorView scale = view;
    scale.name = name + "_scale_inv";
    scale.dtype = moxie::Dtype::F32;
    scale.shape = {2, 1};
    scale.data = reinterpret_cast<const std::byte*>(scales);
    scale.bytes = sizeof scales;
    views[std::string(scale.name)] = scale;
  });
  CHECK(contains(error_of([&] { moxie::describe_hf(fp8.config, coded, *shared); }), "holds several matrices in FP8"));

  const TensorMap without = with(opened.tensors(), [](Views& views) {
    std::erase_if(views, [](const auto& view) { return view.first.ends_with("input_linear.weight"); });
  });
  CHECK(contains(error_of([&] { moxie::describe_hf(opened.config, without, *granite); }), "model.layers.0.block_sparse_moe.input_linear.weight"));
}

TEST_CASE("the text model of a model for text and images is described, with gated delta nets where config.json or its interval says") {
  const std::string path = test::data_path("models/qwen3_5_moe");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const auto describe = [&](const json& config) { return moxie::describe_hf(config, folder.tensors(), path); };
  const ModelDescription d = describe(folder.config);
  check_tensors(d);
  CHECK(d.config.family == "qwen3_5_moe");
  CHECK(d.config.is_recurrent_layer == std::vector<bool>{true, true, true, false});
  CHECK(d.config.n_recurrent_layers() == 3);
  CHECK(d.config.attention.output_gate);
  CHECK(d.config.attention.rope.dims == 8);
  CHECK(d.config.intermediate_size == 0);
  CHECK(d.config.moe.shared_intermediate_size == 48);
  const moxie::DeltaNetConfig& net = d.config.delta_net;
  CHECK(net.n_k_heads == 2);
  CHECK(net.n_v_heads == 6);
  CHECK(net.k_head_dim == 16);
  CHECK(net.v_head_dim == 24);
  CHECK(net.conv_kernel == 4);
  CHECK_FALSE(net.tiled_heads);
  CHECK(moxie::load_vector(d.tensors.output_norm)[0] > 0.3f);  // 1 + what is in the file

  json config = folder.config;
  json& text = config["text_config"];
  text.erase("layer_types");
  CHECK(summary(describe(config).config) == summary(d.config));  // each fourth has attention
  text["full_attention_interval"] = 2;
  CHECK(contains(error_of([&] { describe(config); }), "self_attn.q_proj.weight' is missing"));
  text["full_attention_interval"] = 5;
  CHECK(contains(error_of([&] { describe(config); }), "one with attention"));
  text["layer_types"] = {"linear_attention", "mamba", "linear_attention", "full_attention"};
  CHECK(contains(error_of([&] { describe(config); }), "mamba"));
  text["layer_types"] = {"linear_attention"};
  CHECK(contains(error_of([&] { describe(config); }), "text_config.layer_types"));
  const auto refused = [&](const char* key, const json& value, const char* part) {
    json other = folder.config;
    other["text_config"][key] = value;
    CAPTURE(key);
    CHECK(contains(error_of([&] { describe(other); }), part));
  };
  refused("linear_num_value_heads", 5, "multiple");
  refused("linear_conv_kernel_dim", 17, "from 1 to 16");
  refused("linear_value_head_dim", 25, "must be");
  refused("attn_output_gate", false, "attn_output_gate");
  json large = folder.config;
  large["text_config"]["linear_num_value_heads"] = large["text_config"]["linear_key_head_dim"] = 16384;
  CHECK(contains(error_of([&] { describe(large); }), "at most 1073741824 bytes"));
  json tied = folder.config;  // the whole model's says it, not the text model's
  tied["text_config"]["tie_word_embeddings"] = true;
  CHECK(describe(tied).tensors.output.has_value());
  tied["tie_word_embeddings"] = true;
  CHECK_FALSE(describe(tied).tensors.output.has_value());
  const TensorMap twice = with(folder.tensors(), [](Views& views) { views["model.norm.weight"] = views.at("model.language_model.norm.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, twice, path); }), "twice"));

  const Written written = write(d);
  const auto gguf_error = [&](const json& sections) {
    json metadata = written.metadata;
    metadata["qwen35moe.rope.dimension_sections"] = sections;
    return error_of([&] { moxie::describe_gguf(metadata, written.tensors, "x.gguf"); });
  };
  CHECK(written.metadata["qwen35moe.rope.dimension_sections"] == json::array({2, 1, 1, 0}));
  CHECK(gguf_error({2, 1, 1, 0}).empty());
  CHECK(gguf_error(nullptr).empty());
  CHECK(gguf_error({4, 0, 0, 0}).empty());
  for (const json& bad : {json::array({1, 1, 1, 1}), json::array({0, 0, 0, 0}), json("x"), json::array({2, 1}), json::array({2, 1, -1, 0})})
    CHECK(contains(gguf_error(bad), "rope.dimension_sections"));
  const TensorMap older = with(written.tensors, [](Views& views) { views["blk.0.ssm_ba.weight"] = views.at("blk.0.ssm_beta.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_gguf(written.metadata, older, "x.gguf"); }), "ssm_ba"));

  json quantized = folder.config;
  quantized["quantization_config"] = {{"quant_method", "awq"}};
  CHECK(contains(error_of([&] { describe(quantized); }), "awq"));
  json alone = folder.config["text_config"];  // a text model by itself has other names
  CHECK(contains(error_of([&] { describe(alone); }), "model.embed_tokens.weight"));
  const TensorMap without = with(folder.tensors(), [](Views& views) { views.erase("model.language_model.layers.1.linear_attn.in_proj_b.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, without, path); }), "layers.1.linear_attn.in_proj_b.weight': is missing"));
  const TensorMap odd = with(folder.tensors(), [](Views& views) { views["model.language_model.layers.0.linear_attn.q_norm.weight"] = views.begin()->second; });
  CHECK_THROWS_AS(moxie::describe_hf(folder.config, odd, path), moxie::FormatError);
}

TEST_CASE("glm4_moe_lite and kimi_k2 are deepseek_v3 with other defaults, and layers are dense where mlp_layer_types says so") {
  const std::string path = test::data_path("models/glm4_moe_lite");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const auto describe = [&](const json& config) { return moxie::describe_hf(config, folder.tensors(), path); };
  const ModelDescription d = describe(folder.config);
  check_tensors(d);
  CHECK(d.config.family == "deepseek_v3");
  CHECK(moe_layers(d.config) == std::vector<std::int64_t>{1, 2});
  CHECK(d.config.moe.router.routed_scaling_factor == 1.8f);
  json hub = folder.config;  // the older form, with what are defaults left out
  for (const char* key : {"mlp_layer_types", "routed_scaling_factor", "n_group", "topk_group", "rope_interleave", "n_shared_experts"}) hub.erase(key);
  CHECK(summary(describe(hub).config) == summary(d.config));
  hub["first_k_dense_replace"] = 2;
  CHECK(contains(error_of([&] { describe(hub); }), "layers.1.mlp.gate_proj.weight"));
  json types = folder.config;
  types["mlp_layer_types"] = {"dense", "sparse", "odd"};
  CHECK(contains(error_of([&] { describe(types); }), "odd"));
  types["mlp_layer_types"] = {"dense", "sparse"};
  CHECK(contains(error_of([&] { describe(types); }), "mlp_layer_types"));
  types["mlp_layer_types"] = {"dense", "sparse", "sparse"};
  types["intermediate_size"] = nullptr;
  CHECK(contains(error_of([&] { describe(types); }), "intermediate_size"));
  for (const char* name : {"models/mixtral", "models/gpt_oss"}) {  // no dense layers
    const auto other = test::shared_path(name);
    if (!other) return;
    const moxie::HfFolder opened = moxie::HfFolder::open(*other);
    json odd = opened.config;
    odd["mlp_layer_types"] = std::vector<std::string>(odd["num_hidden_layers"].get<std::size_t>(), "dense");
    CHECK_THROWS_WITH_AS(moxie::describe_hf(odd, opened.tensors(), *other), doctest::Contains("mlp_layer_types"), moxie::UnsupportedError);
  }
  json kimi = folder.config;
  kimi["model_type"] = "kimi_k2";
  CHECK(summary(describe(kimi).config) == summary(d.config));
  const Written written = write(d);
  CHECK(written.metadata["general.architecture"] == "deepseek2");
  CHECK(contains(error_of([&] { moxie::describe_gguf({{"general.architecture", "x"}}, written.tensors, "x.gguf"); }), "deepseek2, qwen2moe"));
}

TEST_CASE("lfm2_moe's layers are convolutions where config.json or, in GGUF, the numbers of kv heads say so") {
  const auto path = test::shared_path("models/lfm2_moe");
  if (!path) return;
  const moxie::HfFolder folder = moxie::HfFolder::open(*path);
  const ModelDescription d = open_hf(*path);
  CHECK(d.config.is_recurrent_layer == std::vector<bool>{true, true, false, true});
  CHECK(d.config.short_conv_kernel == 3);
  CHECK(d.config.rms_norm_eps == 1e-3f);
  CHECK_FALSE(d.tensors.output.has_value());
  json config = folder.config;  // the hub's older form
  config.erase("layer_types");
  config.erase("tie_word_embeddings");
  config["full_attn_idxs"] = {"2"};
  CHECK(contains(error_of([&] { moxie::describe_hf(config, folder.tensors(), *path); }), "full_attn_idxs"));
  config["full_attn_idxs"] = {2};
  config["tie_embedding"] = true;
  CHECK(summary(moxie::describe_hf(config, folder.tensors(), *path).config) == summary(d.config));
  const auto hf_error = [&](const char* key, const json& value) {
    json other = folder.config;
    other[key] = value;
    return error_of([&] { moxie::describe_hf(other, folder.tensors(), *path); });
  };
  CHECK(contains(hf_error("layer_types", nullptr), "is missing"));
  CHECK(contains(hf_error("layer_types", json::array({"conv", "conv", "conv", "conv"})), "one with attention"));
  CHECK(contains(hf_error("layer_types", json::array({"conv", "conv", "linear_attention", "conv"})), "linear_attention"));
  CHECK(contains(hf_error("conv_bias", true), "conv_bias"));
  CHECK(contains(hf_error("use_expert_bias", false), "use_expert_bias"));
  CHECK(contains(hf_error("conv_L_cache", 4), "conv.conv.weight"));

  const Written written = write(d);
  const auto gguf_error = [&](const char* key, const json& value) {
    json metadata = written.metadata;
    metadata[std::string("lfm2moe.") + key] = value;
    return error_of([&] { moxie::describe_gguf(metadata, written.tensors, "x.gguf"); });
  };
  CHECK(gguf_error("general.name", "x").empty());
  CHECK(contains(gguf_error("attention.head_count_kv", 2), "for each of the 4 layers"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 0, 2})), "for each of the 4 layers"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 0, "2", 0})), "integers from 0"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 0, -2, 0})), "integers from 0"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 1, 2, 0})), "differs between layers"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 0, 0, 0})), "one with attention"));
  CHECK(contains(gguf_error("shortconv.l_cache", 0), "from 1 to 16"));
}

TEST_CASE("granitemoehybrid's layers are Mamba-2 where config.json or, in GGUF, the numbers of kv heads say so, and attention may rotate") {
  const std::string path = test::data_path("models/granitemoehybrid");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.family == "granitemoehybrid");
  CHECK(d.config.is_recurrent_layer == std::vector<bool>{true, false, true, true});
  const moxie::MambaConfig& m = d.config.mamba;
  CHECK(m.n_heads == 8);
  CHECK(m.n_groups == 2);
  CHECK(m.head_dim == 24);
  CHECK(m.state_dim == 24);
  CHECK(m.conv_kernel == 4);
  CHECK(m.channels() == 8 * 24 + 2 * 2 * 24);
  CHECK(d.config.attention.rope.dims == 0);
  CHECK(d.config.moe.shared_intermediate_size == 64);
  CHECK_FALSE(d.tensors.output.has_value());
  CHECK(moxie::load_vector(d.tensors.layers[0].mamba->decay)[0] < 0.0f);  // -exp(A_log)

  const auto changed = [&](const char* key, const json& value) {
    json config = folder.config;
    config[key] = value;
    return config;
  };
  const auto describe = [&](const json& config) { return moxie::describe_hf(config, folder.tensors(), path); };
  const auto hf_error = [&](const char* key, const json& value) { return error_of([&] { describe(changed(key, value)); }); };
  CHECK(describe(changed("position_embedding_type", "rope")).config.attention.rope.dims == 16);
  CHECK(describe(changed("position_embedding_type", nullptr)).config.attention.rope.dims == 0);
  CHECK(describe(changed("mamba_d_head", "auto")).config.mamba.head_dim == 24);
  CHECK(describe(changed("layer_types", {"linear_attention", "full_attention", "mamba", "mamba"})).config.is_recurrent_layer == d.config.is_recurrent_layer);
  CHECK(describe(changed("time_step_limit", nullptr)).config.mamba.n_heads == 8);
  CHECK(contains(hf_error("time_step_limit", {0.0, 0.1}), "time_step_limit"));
  CHECK(contains(hf_error("position_embedding_type", "alibi"), "rope and nope"));
  CHECK(contains(hf_error("mamba_d_head", 25), "mamba_n_heads"));
  CHECK(contains(hf_error("mamba_n_groups", 3), "multiple"));
  CHECK(contains(hf_error("mamba_d_conv", 17), "from 1 to 16"));
  CHECK(contains(hf_error("mamba_conv_bias", false), "mamba_conv_bias"));
  CHECK(contains(hf_error("mamba_proj_bias", true), "mamba_proj_bias"));
  CHECK(contains(hf_error("layer_types", {"mamba", "conv", "mamba", "attention"}), "conv"));
  CHECK(contains(hf_error("layer_types", {"mamba", "mamba", "mamba", "mamba"}), "one with attention"));
  CHECK(contains(hf_error("num_local_experts", 0), "is 0: a dense model"));
  json renamed = changed("layer_types", nullptr);
  renamed["layers_block_type"] = folder.config["layer_types"];
  CHECK(describe(renamed).config.is_recurrent_layer == d.config.is_recurrent_layer);
  json unused = folder.config;  // a rotation that nothing uses
  unused["rope_parameters"] = {{"rope_type", "longrope"}};
  CHECK(describe(unused).config.attention.rope.dims == 0);
  const TensorMap without = with(folder.tensors(), [](Views& views) { views.erase("model.layers.2.mamba.conv1d.bias"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, without, path); }), "mamba.conv1d.bias': is missing"));

  const Written written = write(d);
  const auto gguf_error = [&](const char* key, const json& value) {
    json metadata = written.metadata;
    metadata[std::string("granitehybrid.") + key] = value;
    return error_of([&] { moxie::describe_gguf(metadata, written.tensors, "x.gguf"); });
  };
  CHECK(written.metadata["granitehybrid.attention.head_count_kv"] == json::array({0, 2, 0, 0}));
  CHECK(written.metadata["granitehybrid.rope.scaling.finetuned"] == false);
  CHECK(written.tensors.find("blk.0.ssm_a")->shape == std::vector<std::int64_t>{8, 1});
  CHECK(written.tensors.find("blk.0.ssm_norm.weight")->shape == std::vector<std::int64_t>{2, 96});
  CHECK(gguf_error("rope.scaling.finetuned", true).empty());
  CHECK(contains(gguf_error("ssm.inner_size", 193), "ssm.inner_size"));
  CHECK(contains(gguf_error("ssm.inner_size", nullptr), "ssm.inner_size"));
  CHECK(contains(gguf_error("ssm.group_count", 3), "multiple"));
  CHECK(contains(gguf_error("ssm.group_count", 0), "from 1"));
  CHECK(contains(gguf_error("ssm.state_size", 25), "ssm_in.weight"));
  CHECK(contains(gguf_error("attention.head_count_kv", 2), "for each of the 4 layers"));
  // q and k go from halves to pairs with their biases
  for (const moxie::GgufTensor& tensor : moxie::gguf_tensors(d.config, d.tensors))
    if (tensor.name == "blk.1.attn_k.bias") {
      REQUIRE(tensor.column_order.size() == 32);
      CHECK(tensor.column_order[1] == 8);
      CHECK(tensor.row_order.empty());
    }
  ModelDescription odd = d;  // nothing to permute
  odd.config.attention.head_dim = 15;
  CHECK(moxie::rope_row_orders(odd.config.attention).q.empty());
}

TEST_CASE("nemotron_h's layers are one of Mamba-2, attention, experts and a dense network, as config.json or, in GGUF, heads and widths say") {
  using enum moxie::LayerParts;
  const std::string path = test::data_path("models/nemotron_h");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  CHECK(folder.config["time_step_limit"] == json::array({0.0, 9.99e307}));  // the file has Infinity
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.family == "nemotron_h");
  CHECK(d.config.n_layers == 6);
  CHECK(d.config.layer_parts == std::vector{mixer, feed_forward, mixer, mixer, feed_forward, feed_forward});
  CHECK(d.config.is_recurrent_layer == std::vector<bool>{true, false, false, true, false, false});
  CHECK(d.config.is_moe_layer == std::vector<bool>{false, true, false, false, false, true});
  CHECK(d.config.n_attention_layers() == 1);
  const moxie::MambaConfig& m = d.config.mamba;
  CHECK(m.n_heads == 6);
  CHECK(m.n_groups == 2);
  CHECK(m.head_dim == 24);
  CHECK(m.state_dim == 24);
  CHECK(d.config.attention.rope.dims == 0);
  CHECK(d.config.moe.shared_intermediate_size == 80);
  CHECK_FALSE(d.config.moe.gated);
  CHECK(d.config.intermediate_size == 80);
  CHECK(d.config.rms_norm_eps == 1e-3f);

  const auto changed = [&](const char* key, const json& value) {
    json config = folder.config;
    config[key] = value;
    return config;
  };
  const auto describe = [&](const json& config) { return moxie::describe_hf(config, folder.tensors(), path); };
  const auto hf_error = [&](const char* key, const json& value) { return error_of([&] { describe(changed(key, value)); }); };
  for (const json& types : {json{"linear_attention", "moe", "full_attention", "linear_attention", "mlp", "moe"}, json{"mamba", "moe", "attention", "mamba", "mlp", "moe"}}) {
    json named = changed("layers_block_type", types);
    named["hybrid_override_pattern"] = "M";  // the names count
    CHECK(summary(describe(named).config) == summary(d.config));
  }
  CHECK(describe(changed("num_hidden_layers", 7)).config.n_layers == 6);  // as transformers
  CHECK(contains(hf_error("hybrid_override_pattern", nullptr), "layers_block_type: is missing"));
  CHECK(contains(hf_error("hybrid_override_pattern", ""), "layers_block_type: is missing"));
  CHECK(contains(hf_error("layers_block_type", json::array()), "must be an array of strings"));
  CHECK(contains(hf_error("mamba_dt_limit", {0.0, 0.1}), "time_step_limit"));
  CHECK(contains(hf_error("mamba_conv_bias", false), "conv_bias"));
  CHECK(contains(hf_error("mamba_n_groups", 4), "multiple"));
  CHECK(contains(hf_error("hybrid_override_pattern", "ME*MXE"), R"(names "X")"));
  CHECK(contains(hf_error("hybrid_override_pattern", "M-*M--"), "a dense model"));
  CHECK(contains(hf_error("hybrid_override_pattern", "MEMM-E"), "one with attention"));
  CHECK(contains(hf_error("hybrid_override_pattern", std::string(1001, 'M')), "at most 1000"));
  CHECK(contains(hf_error("layers_block_type", "ME*M-E"), "must be an array of strings"));
  CHECK(contains(hf_error("layers_block_type", json::array({"mamba", 3})), R"(names "3")"));
  CHECK(contains(hf_error("intermediate_size", nullptr), "intermediate_size"));
  CHECK(contains(hf_error("mlp_hidden_act", "silu"), "mlp_hidden_act"));
  CHECK(contains(hf_error("moe_latent_size", 32), "fc1_latent_proj.weight' is missing"));
  CHECK(contains(hf_error("moe_latent_size", 0), "from 1"));
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, with(folder.tensors(), [](Views& views) { views.emplace("backbone.layers.1.mixer.fc1_latent_proj.weight", views.at("backbone.norm_f.weight")); }), path); }), "no place for"));
  CHECK(contains(hf_error("use_bias", true), "use_bias"));
  CHECK(contains(hf_error("mamba_num_heads", 5), "multiple"));
  CHECK(contains(hf_error("time_step_limit", {0.001, 1e30}), "time_step_limit"));
  CHECK(contains(hf_error("time_step_limit", {0.0, 0.1}), "time_step_limit"));
  CHECK(contains(hf_error("time_step_limit", 3), "time_step_limit"));
  CHECK(describe(changed("time_step_limit", json::parse(R"([0, {"__float__": "Infinity"}])"))).config.n_layers == 6);
  const TensorMap without = with(folder.tensors(), [](Views& views) { views.erase("backbone.layers.5.mixer.experts.7.up_proj.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, without, path); }), "experts.7.up_proj.weight': is missing"));
  for (const char* name : {"backbone.layers.2.mixer.norm.weight", "lm_head.bias"}) {
    const TensorMap more = with(folder.tensors(), [&](Views& views) { views.emplace(name, views.at("backbone.norm_f.weight")); });
    CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, more, path); }), "has no place for"));
  }
  const TensorMap further = with(folder.tensors(), [&](Views& views) { views.emplace("mtp.layers.0.norm.weight", views.at("backbone.norm_f.weight")); });
  CHECK(moxie::describe_hf(folder.config, further, path).config.n_layers == 6);

  const Written written = write(d);
  const auto gguf_error = [&](const char* key, const json& value) {
    json metadata = written.metadata;
    metadata[std::string("nemotron_h_moe.") + key] = value;
    return error_of([&] { moxie::describe_gguf(metadata, written.tensors, "x.gguf"); });
  };
  const ModelDescription again = moxie::describe_gguf(written.metadata, written.tensors, "x.gguf");
  check_tensors(again);
  CHECK(summary(again.config) == summary(d.config));
  CHECK(written.metadata["nemotron_h_moe.attention.head_count_kv"] == json::array({0, 0, 2, 0, 0, 0}));
  CHECK(written.metadata["nemotron_h_moe.feed_forward_length"] == json::array({0, 48, 0, 0, 80, 48}));
  CHECK(written.tensors.find("blk.4.attn_norm.weight"));
  CHECK_FALSE(written.tensors.find("blk.4.ffn_norm.weight"));
  CHECK(written.tensors.find("blk.5.ffn_up_exps.weight")->shape == std::vector<std::int64_t>{8, 48, 64});
  CHECK(contains(gguf_error("feed_forward_length", 48), "for each of the 6 layers, 0 for those without a feed-forward network"));
  CHECK(contains(gguf_error("feed_forward_length", json::array({0, 48, 48, 0, 80, 48})), "layer 2, which has attention"));
  CHECK(contains(gguf_error("feed_forward_length", json::array({0, 48, 0, 0, 81, 48})), "ffn_up.weight"));
  CHECK(contains(gguf_error("feed_forward_length", json::array({0, 48, 0, 0, 0, 48})), "ssm_in.weight"));
  CHECK(contains(gguf_error("attention.head_count_kv", json::array({0, 0, 0, 0, 0, 0})), "one with attention"));
  CHECK(gguf_error("rope.dimension_count", 31).empty());  // a rotation that nothing uses
  CHECK(contains(gguf_error("embedding_scale", 3.0), "embedding_scale"));
  CHECK(contains(gguf_error("residual_scale", 0.5), "residual_scale"));
}

TEST_CASE("nemotron_h's experts may see a projection of their input") {
  const std::string path = test::data_path("models/nemotron_h_latent");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.moe.latent_size == 32);
  REQUIRE(d.tensors.layers[1].latent_in.has_value());
  CHECK(d.tensors.layers[1].latent_in->tensor.shape == std::vector<std::int64_t>{32, 64});
  CHECK(d.tensors.layers[3].latent_out->tensor.shape == std::vector<std::int64_t>{64, 32});
  const Written written = write(d);
  CHECK(written.metadata["nemotron_h_moe.moe_latent_size"] == 32);
  CHECK(written.tensors.find("blk.3.ffn_latent_up.weight")->shape == std::vector<std::int64_t>{64, 32});
  CHECK(summary(moxie::describe_gguf(written.metadata, written.tensors, "x.gguf").config) == summary(d.config));
  json other = written.metadata;
  other["nemotron_h_moe.moe_latent_size"] = 16;
  CHECK(contains(error_of([&] { moxie::describe_gguf(other, written.tensors, "x.gguf"); }), "ffn_latent_down.weight"));
}

TEST_CASE("afmoe and exaone_moe rotate in layers with a window, which config.json or, in GGUF, a pattern or its period names") {
  const std::string path = test::data_path("models/afmoe");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.layer_windows == std::vector<std::int64_t>{16, 16, 16, 0});
  CHECK(d.config.rotates(2));
  CHECK_FALSE(d.config.rotates(3));
  CHECK(d.config.embedding_multiplier == 8.0f);  // sqrt(64)
  CHECK(d.config.attention.own_gate);
  CHECK(d.config.is_moe_layer == std::vector<bool>{false, true, true, true});
  CHECK(d.config.moe.shared_intermediate_size == 64);
  CHECK(d.config.moe.router.routed_scaling_factor == 1.7f);
  for (const moxie::LayerTensors& layer : d.tensors.layers) {
    CHECK((layer.attn_post_norm && layer.ffn_post_norm));
    REQUIRE(layer.attn_gate.has_value());
    CHECK(layer.attn_gate->tensor.shape == std::vector<std::int64_t>{128, 64});
  }
  const auto changed = [&](const char* key, const json& value) {
    json config = folder.config;
    config[key] = value;
    return config;
  };
  const auto describe = [&](const json& config) { return moxie::describe_hf(config, folder.tensors(), path); };
  const auto hf_error = [&](const char* key, const json& value) { return error_of([&] { describe(changed(key, value)); }); };
  CHECK(describe(changed("layer_types", nullptr)).config.layer_windows == d.config.layer_windows);
  json halves = changed("layer_types", nullptr);
  halves["global_attn_every_n_layers"] = 2;
  CHECK(describe(halves).config.layer_windows == std::vector<std::int64_t>{16, 0, 16, 0});
  json plain = folder.config;
  plain.erase("sliding_window");
  plain.erase("mup_enabled");
  CHECK(describe(plain).config.layer_windows == std::vector<std::int64_t>{1024, 1024, 1024, 0});
  CHECK(describe(plain).config.embedding_multiplier == 1.0f);
  CHECK(contains(hf_error("route_norm", false), "route_norm"));
  CHECK(contains(hf_error("score_func", "softmax"), "score_func"));
  CHECK(contains(hf_error("n_group", 2), "n_group"));
  json never = changed("layer_types", nullptr);
  never["global_attn_every_n_layers"] = 0;
  CHECK(contains(error_of([&] { describe(never); }), "global_attn_every_n_layers"));
  const TensorMap without = with(folder.tensors(), [](Views& views) { views.erase("model.layers.2.self_attn.gate_proj.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, without, path); }), "gate_proj.weight': is missing"));

  const Written written = write(d);
  const auto described = [&](const char* key, const json& value) {
    json metadata = written.metadata;
    metadata[std::string("afmoe.") + key] = value;
    return moxie::describe_gguf(metadata, written.tensors, "x.gguf").config;
  };
  const ModelDescription again = moxie::describe_gguf(written.metadata, written.tensors, "x.gguf");
  check_tensors(again);
  CHECK(summary(again.config) == summary(d.config));
  CHECK(again.config.attention.rotates_in_windows);
  CHECK_FALSE(written.metadata.contains("afmoe.attention.sliding_window_pattern"));  // all but each 4th is what the family means
  CHECK_FALSE(written.metadata.contains("moxie.embedding_scale"));
  CHECK(described("attention.sliding_window_pattern", json::array({true, false, true, false})).layer_windows == std::vector<std::int64_t>{16, 0, 16, 0});
  CHECK(described("attention.sliding_window_pattern", 3).layer_windows == std::vector<std::int64_t>{16, 16, 0, 16});
  CHECK(described("attention.sliding_window_pattern", 0).attention.sliding_window == 16);
  CHECK(contains(error_of([&] { described("attention.sliding_window_pattern", json::array({true})); }), "for each of the 4 layers"));
  CHECK(contains(error_of([&] { described("attention.sliding_window_pattern", -1); }), "for each of the 4 layers"));
  const Written others = write(describe(halves));
  CHECK(others.metadata["afmoe.attention.sliding_window_pattern"] == json::array({true, false, true, false}));
  CHECK(summary(moxie::describe_gguf(others.metadata, others.tensors, "x.gguf").config) == summary(describe(halves).config));
  const Written small = write(describe(plain));
  CHECK(small.metadata["moxie.embedding_scale"] == 1.0);
  CHECK(moxie::describe_gguf(small.metadata, small.tensors, "x.gguf").config.embedding_multiplier == 1.0f);

  CHECK(contains(hf_error("sliding_window", nullptr), "sliding_window: is null or 0"));
  CHECK(contains(hf_error("sliding_window", 0), "sliding_window: is null or 0"));
  CHECK(contains(error_of([&] { described("attention.sliding_window", nullptr); }), "sliding_window"));
  CHECK(contains(error_of([&] { described("attention.sliding_window", 0); }), "from 1"));

  const auto exaone = test::shared_path("models/exaone_moe");
  if (!exaone) return;
  const ModelDescription e = open_hf(*exaone);
  CHECK(e.config.layer_windows == std::vector<std::int64_t>{16, 16, 16, 0});
  CHECK_FALSE(e.config.rotates(3));
  CHECK(e.config.moe.shared_intermediate_size == 48);
  CHECK(e.config.moe.router.routed_scaling_factor == 2.5f);
  // As llama.cpp's converter writes it: a block more, which predicts a further token.
  Written more = write(e);
  more.metadata["exaone-moe.block_count"] = 5;
  more.metadata["exaone-moe.nextn_predict_layers"] = 1;
  more.metadata["exaone-moe.attention.sliding_window_pattern"] = json::array({true, true, true, false});
  more.tensors = with(more.tensors, [](Views& views) {
    for (const char* name : {"attn_norm.weight", "nextn.eh_proj.weight", "attn_q.weight"})
      views.emplace(std::string("blk.4.") + name, views.at("output_norm.weight"));
  });
  CHECK(summary(moxie::describe_gguf(more.metadata, more.tensors, "x.gguf").config) == summary(e.config));
}

TEST_CASE("bailing_moe_v2 has one matrix for q, k and v, and shares a model_type with what has no norms of them") {
  const std::string path = test::data_path("models/bailing_moe_v2");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.family == "bailing_moe_v2");
  CHECK(d.config.attention.rope.dims == 8);
  CHECK(d.config.attention.rope.theta == 600000.0);
  CHECK(d.config.moe.router.n_group == 4);
  CHECK(d.config.moe.router.topk_group == 2);
  CHECK(d.config.moe.shared_intermediate_size == 64);
  const moxie::LayerTensors& layer = d.tensors.layers[1];
  CHECK(layer.q->tensor.shape == std::vector<std::int64_t>{64, 64});
  CHECK(layer.k->tensor.shape == std::vector<std::int64_t>{32, 64});
  CHECK(layer.v->tensor.data == layer.k->tensor.data + layer.k->tensor.bytes);
  const auto error = [&](const char* key, const json& value) {
    json config = folder.config;
    config[key] = value;
    return error_of([&] { moxie::describe_hf(config, folder.tensors(), path); });
  };
  CHECK(error("model_type", "bailing_moe_v2").empty());
  CHECK(contains(error("score_function", "softmax"), "score_function"));
  CHECK(contains(error("use_qk_norm", false), "use_qk_norm"));
  CHECK(contains(error("use_qkv_bias", true), "use_qkv_bias"));
  const TensorMap without = with(folder.tensors(), [](Views& views) { views.erase("model.layers.1.attention.query_key_value.weight"); });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, without, path); }), "query_key_value.weight': is missing; it must have the shape [128, 64]"));
  const Written written = write(d);
  CHECK(written.tensors.find("blk.1.attn_qkv.weight")->shape == std::vector<std::int64_t>{128, 64});
  CHECK(summary(moxie::describe_gguf(written.metadata, written.tensors, "x.gguf").config) == summary(d.config));
}

TEST_CASE("solar_open is glm4_moe without norms of q and k, dense layers and a partial rotation") {
  const std::string path = test::data_path("models/solar_open");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.family == "glm4_moe");
  CHECK(d.config.attention.rope.dims == 32);
  CHECK(d.config.attention.qk_norm == moxie::QkNorm::none);
  CHECK(d.config.n_moe_layers() == 2);
  json plain = folder.config;
  plain.erase("rope_parameters");
  CHECK(moxie::describe_hf(plain, folder.tensors(), path).config.attention.rope.theta == 1e6);
  const Written written = write(d);
  CHECK(written.metadata["general.architecture"] == "glm4moe");
  CHECK(summary(moxie::describe_gguf(written.metadata, written.tensors, "x.gguf").config) == summary(d.config));
}

TEST_CASE("qwen3_vl_moe's stacked experts may be transposed") {
  const std::string path = test::data_path("models/qwen3_vl_moe");
  const moxie::HfFolder folder = moxie::HfFolder::open(path);
  const ModelDescription d = moxie::describe_hf(folder.config, folder.tensors(), path);
  check_tensors(d);
  CHECK(d.config.family == "qwen3_vl_moe");
  CHECK(d.config.is_moe_layer == std::vector<bool>{false, true, true});
  const moxie::Weight& up = d.tensors.layers[1].experts[3].up;
  const moxie::RowMatrix expected = moxie::load_rows(up, 48);
  // The same values the usual way round, [experts, 2 * width, hidden] and [experts, hidden, width].
  std::vector<std::vector<std::uint16_t>> memory;
  const TensorMap usual = with(folder.tensors(), [&](Views& views) {
    for (auto& [name, view] : views) {
      if (!contains(name, ".experts.")) continue;
      const std::int64_t experts = view.shape[0], rows = view.shape[1], columns = view.shape[2];
      const auto* from = reinterpret_cast<const std::uint16_t*>(view.data);
      std::vector<std::uint16_t>& to = memory.emplace_back(static_cast<std::size_t>(experts * rows * columns));
      for (std::int64_t e = 0; e < experts; ++e)
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < columns; ++c)
            to[static_cast<std::size_t>((e * columns + c) * rows + r)] = from[(e * rows + r) * columns + c];
      view.shape = {experts, columns, rows};
      view.data = reinterpret_cast<const std::byte*>(to.data());
    }
  });
  const ModelDescription other = moxie::describe_hf(folder.config, usual, path);
  CHECK(moxie::load_rows(other.tensors.layers[1].experts[3].up, 48) == expected);
  CHECK(moxie::load_rows(other.tensors.layers[2].experts[0].down, 64) == moxie::load_rows(d.tensors.layers[2].experts[0].down, 64));
  const TensorMap odd = with(folder.tensors(), [](Views& views) { views.at("model.language_model.layers.1.mlp.experts.down_proj").shape = {8, 24, 128}; });
  CHECK(contains(error_of([&] { moxie::describe_hf(folder.config, odd, path); }), "experts.down_proj"));
  json config = folder.config;
  config["text_config"]["norm_topk_prob"] = false;
  CHECK(contains(error_of([&] { moxie::describe_hf(config, folder.tensors(), path); }), "norm_topk_prob"));
}

TEST_CASE("what a GGUF file says of gated delta nets is checked, and older files have their projections in one tensor") {
  const auto path = test::shared_path("gguf/qwen3next/Q4_K_M.gguf");
  if (!path) return;
  const moxie::GgufFile file = moxie::GgufFile::open(*path);
  const ModelDescription d = open_gguf(*path);
  CHECK(d.config.is_recurrent_layer == std::vector<bool>{true, false});
  CHECK(d.tensors.layers[0].delta_net->z.has_value());
  const auto changed = [&](const char* key, const json& value) {
    json metadata = file.metadata();
    metadata[std::string("qwen3next.") + key] = value;
    return error_of([&] { moxie::describe_gguf(metadata, file.tensors(), *path); });
  };
  CHECK(contains(changed("ssm.inner_size", 257), "ssm.inner_size"));
  CHECK(contains(changed("ssm.time_step_rank", 6), "ssm.inner_size"));
  CHECK(contains(changed("ssm.group_count", 3), "multiple"));
  CHECK(contains(changed("ssm.conv_kernel", 0), "from 1 to 16"));
  CHECK(contains(changed("attention.recurrent_layers", json::array({true})), "each of the 2 layers"));
  CHECK(contains(changed("attention.recurrent_layers", json::array({true, 0})), "booleans"));
  CHECK(contains(changed("attention.recurrent_layers", json::array({true, true})), "one with attention"));
  CHECK(contains(changed("rope.dimension_sections", json::array({2, 1, 1, 0})), "dimension_sections"));
  const TensorMap older = with(file.tensors(), [](Views& views) {
    TensorView in = views.at("blk.0.attn_qkv.weight");
    in.shape[0] += views.at("blk.0.attn_gate.weight").shape[0];
    in.bytes = static_cast<std::uint64_t>(in.rows()) * in.row_stride();  // more than is there; it is not read
    views.erase("blk.0.attn_qkv.weight");
    views.erase("blk.0.attn_gate.weight");
    in.name = "blk.0.ssm_in.weight";
    views.emplace(in.name, in);
  });
  const ModelDescription of_older = moxie::describe_gguf(file.metadata(), older, *path);
  CHECK_FALSE(of_older.tensors.layers[0].delta_net->z.has_value());
  CHECK(of_older.tensors.layers[0].delta_net->qkv.tensor.shape == std::vector<std::int64_t>{768, 256});
}

TEST_CASE("dynamic NTK scaling, which begins beyond max_position_embeddings, leaves the frequencies of a context as they are") {
  const auto path = test::shared_path("models/mixtral");
  if (!path) return;
  const moxie::HfFolder opened = moxie::HfFolder::open(*path);
  json config = opened.config;
  const moxie::ModelConfig plain = moxie::describe_hf(config, opened.tensors(), *path).config;
  config.merge_patch({{"rope_parameters", nullptr}, {"rope_theta", plain.attention.rope.theta}, {"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}}});
  const moxie::ModelConfig dynamic = moxie::describe_hf(config, opened.tensors(), *path).config;
  CHECK(moxie::Rope(dynamic.attention.rope).frequencies() == moxie::Rope(plain.attention.rope).frequencies());
  CHECK(dynamic.context_length == plain.context_length);
  CHECK(dynamic.attention.scale == plain.attention.scale);
  config["rope_scaling"].erase("factor");
  CHECK_THROWS_AS(moxie::describe_hf(config, opened.tensors(), *path), moxie::FormatError);
}

TEST_CASE("sliding windows follow use_sliding_window, layer_types and max_window_layers") {
  const auto windows = [](const char* folder, const json& change) {
    const auto path = test::shared_path(std::string("models/") + folder);
    std::vector<std::int64_t> list;
    if (!path) return list;
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    json config = opened.config;
    config.merge_patch(change);
    const ModelDescription d = moxie::describe_hf(config, opened.tensors(), *path);
    for (std::int64_t i = 0; i < d.config.n_layers; ++i) list.push_back(d.config.sliding_window(i));
    const Written file = write(d);
    CHECK(summary(moxie::describe_gguf(file.metadata, file.tensors, "memory.gguf").config) == summary(d.config));
    return list;
  };
  if (!test::shared_path("models/qwen2_moe")) return;
  using List = std::vector<std::int64_t>;
  CHECK(windows("mixtral", {{"sliding_window", 8}}) == List{8, 8, 8});
  CHECK(windows("qwen3_moe", {{"sliding_window", 8}}) == List{0, 0, 0});
  CHECK(windows("qwen3_moe", {{"sliding_window", 8}, {"use_sliding_window", true}}) == List{8, 8, 8});
  CHECK(windows("gpt_oss", {{"sliding_window", 8}, {"layer_types", nullptr}}) == List{8, 0, 8, 0});
  CHECK(windows("gpt_oss", {{"layer_types", {"full_attention", "full_attention", "sliding_attention", "full_attention"}}}) == List{0, 0, 16, 0});
  CHECK(windows("gpt_oss", {{"sliding_window", nullptr}}) == List{128, 0, 128, 0});  // absent
  CHECK(windows("gpt_oss", {{"sliding_window", 0}}) == List{0, 0, 0, 0});
  const json types{"sliding_attention", "full_attention", "full_attention", "sliding_attention"};
  CHECK(windows("qwen2_moe", {{"sliding_window", 8}, {"use_sliding_window", true}, {"layer_types", types}}) == List{8, 0, 0, 8});
  CHECK(windows("qwen2_moe_norm", {{"sliding_window", 8}, {"use_sliding_window", true}}) == List{8, 0, 8});
  CHECK(windows("qwen2_moe_norm", {{"sliding_window", 8}, {"use_sliding_window", true}, {"max_window_layers", 2}}) ==
        List{8, 0, 0});
}

TEST_CASE("attention_bias asks for the biases of every projection that has one") {
  const auto missing = [](const char* folder) {
    const auto path = test::shared_path(std::string("models/") + folder);
    if (!path) return std::string();
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    json config = opened.config;
    config["attention_bias"] = true;
    return error_of([&] { moxie::describe_hf(config, opened.tensors(), *path); });
  };
  if (!test::shared_path("models/qwen3_moe")) return;
  const std::string qwen = missing("qwen3_moe");
  const std::string olmoe = missing("olmoe");
  for (const char* name : {"q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"}) {
    CHECK(contains(qwen, name));
    CHECK(contains(olmoe, name));
  }
  const std::string deepseek = missing("deepseek_v3");
  for (const char* name : {"q_a_proj.bias", "kv_a_proj_with_mqa.bias", "o_proj.bias"}) CHECK(contains(deepseek, name));
  CHECK_FALSE(contains(deepseek, "q_b_proj.bias"));
}

TEST_CASE("files that only a model loader can reject are rejected, naming the defect") {
  const std::pair<std::string, std::string> cases[] = {{"architecture_missing", "general.architecture"},
                                                       {"architecture_wrong_type", "general.architecture"},
                                                       {"block_count_wrong_type", "block_count"},
                                                       {"block_count_negative", "block_count"},
                                                       {"block_count_huge", "block_count"},
                                                       {"rope_freq_base_nan", "rope.freq_base"},
                                                       {"tensor_shape_disagrees", "attn_norm"},
                                                       {"no_metadata", "general.architecture"}};
  for (const auto& [name_bound, part] : cases) {
    const std::string name = name_bound;
    const auto path = test::shared_path("malformed/" + name + ".gguf");
    if (!path) return;
    CAPTURE(name);
    const std::string error = error_of([&] { open_gguf(*path); });
    CHECK(contains(error, *path));
    CHECK(contains(error, part));
  }
}

TEST_CASE("any value under any key gives a model or an error, and never much memory") {
  const json values[] = {-1,
                         0,
                         1,
                         3,
                         std::int64_t{1} << 40,
                         std::uint64_t{0xffffffffffffffffu},
                         "x",
                         nullptr,
                         true,
                         1.5,
                         std::numeric_limits<double>::quiet_NaN(),
                         std::numeric_limits<double>::infinity(),
                         -1e300,
                         json::array(),
                         json::array({1, 2}),
                         json::object()};
  const std::uint64_t before = moxie::peak_resident_bytes();
  int models = 0, errors = 0;
  const auto count = [&](auto&& describe) {
    try {
      describe();
      ++models;
    } catch (const moxie::Error& error) {
      CHECK(std::string(error.what()).size() < 3000);
      ++errors;
    }
  };
  for (const std::string& folder : gguf_folders) {
    const auto path = test::shared_path("gguf/" + folder + "/BF16.gguf");
    if (!path) return;
    const moxie::GgufFile file = moxie::GgufFile::open(*path);
    for (const auto& [key, old] : file.metadata().items())
      for (const json& value : values) {
        json metadata = file.metadata();
        metadata[key] = value;
        count([&] { moxie::describe_gguf(metadata, file.tensors(), *path); });
        metadata.erase(key);
        count([&] { moxie::describe_gguf(metadata, file.tensors(), *path); });
      }
  }
  for (const std::string& folder : hf_folders) {
    const auto path = test::shared_path("models/" + folder);
    if (!path) return;
    const moxie::HfFolder opened = moxie::HfFolder::open(*path);
    const json flat = opened.config.flatten();
    for (const auto& [place, old] : flat.items())
      for (const json& value : values) {
        json config = opened.config;
        config[json::json_pointer(place)] = value;
        count([&] { moxie::describe_hf(config, opened.tensors(), *path); });
      }
  }
  CHECK(models > 100);
  CHECK(errors > 1000);
  CHECK(moxie::peak_resident_bytes() < before + (64u << 20));  // the system counts in lots: a later peak may be a few pages lower
}
