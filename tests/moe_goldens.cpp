// MoE layers against the results of Hugging Face transformers, without the rest of a model: the first token of a sequence attends to
// itself only, so that its attention is o_proj(v_proj(norm(x))), and the golden files hold the input and the output of every layer.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/io/hf_folder.hpp>
#include <moxie/moe/moe_layer.hpp>

#include "shared.hpp"

using moxie::Index;
using moxie::RowMatrix;
using moxie::TensorView;

namespace {

using Row = std::vector<double>;

class Model {
 public:
  explicit Model(const std::string& path)
      : folder_(moxie::HfFolder::open(path)), golden_(moxie::SafetensorsFile::open(path + "/golden.safetensors")) {}

  const nlohmann::json& config() const { return folder_.config; }
  bool has(const std::string& name) const { return folder_.tensors().find(name) != nullptr; }
  const TensorView& tensor(const std::string& name) const {
    const TensorView* found = folder_.tensors().find(name);
    REQUIRE_MESSAGE(found, name);
    return *found;
  }
  RowMatrix weight(const std::string& name) const { return decoded(folder_.tensors(), name); }
  RowMatrix golden(const std::string& name) const { return decoded(golden_.tensors(), name); }
  std::vector<std::int32_t> golden_ids(const std::string& name) const {
    const TensorView& tensor = *golden_.tensors().find(name);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tensor.elements()));
    std::memcpy(ids.data(), tensor.data, tensor.bytes);
    return ids;
  }

  Row norm(const Row& x, const std::string& name, double eps) const {
    const RowMatrix w = weight(name);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * x[i];
    Row y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] / std::sqrt(sum / static_cast<double>(x.size()) + eps) * static_cast<double>(w.data()[i]);
    return y;
  }
  Row product(const std::string& name, const Row& x) const {
    const RowMatrix w = weight(name + ".weight");
    Row y(static_cast<std::size_t>(w.rows()));
    const RowMatrix bias = has(name + ".bias") ? weight(name + ".bias") : RowMatrix::Zero(1, w.rows());
    for (Index r = 0; r < w.rows(); ++r) {
      y[static_cast<std::size_t>(r)] = static_cast<double>(bias.data()[r]);
      for (Index c = 0; c < w.cols(); ++c) y[static_cast<std::size_t>(r)] += static_cast<double>(w(r, c)) * x[static_cast<std::size_t>(c)];
    }
    return y;
  }

  /// Attention of a token that sees itself only, before o_proj: its values, for every head.
  Row values(const std::string& attention, const Row& x) const {
    Row heads;
    const auto n_heads = config()["num_attention_heads"].get<std::size_t>();
    if (has(attention + "kv_b_proj.weight")) {
      const auto nope = config()["qk_nope_head_dim"].get<std::size_t>(), v = config()["v_head_dim"].get<std::size_t>();
      Row latent = product(attention + "kv_a_proj_with_mqa", x);
      latent.resize(config()["kv_lora_rank"].get<std::size_t>());
      const Row kv = product(attention + "kv_b_proj", norm(latent, attention + "kv_a_layernorm.weight", 1e-6));
      for (std::size_t h = 0; h < n_heads; ++h)
        for (std::size_t i = 0; i < v; ++i) heads.push_back(kv[h * (nope + v) + nope + i]);
      return heads;
    }
    const auto kv_heads = config()["num_key_value_heads"].get<std::size_t>();
    Row v = product(attention + "v_proj", x);
    if (const auto clip = config().find("clip_qkv"); clip != config().end() && clip->is_number())
      for (double& value : v) value = std::clamp(value, -clip->get<double>(), clip->get<double>());
    const std::size_t dim = v.size() / kv_heads;
    for (std::size_t h = 0; h < n_heads; ++h)
      for (std::size_t i = 0; i < dim; ++i) heads.push_back(v[h / (n_heads / kv_heads) * dim + i]);
    return heads;
  }

 private:
  static RowMatrix decoded(const moxie::TensorMap& tensors, const std::string& name) {
    const TensorView* tensor = tensors.find(name);
    REQUIRE_MESSAGE(tensor, name);
    RowMatrix matrix(tensor->rows(), tensor->columns());
    moxie::decode_row(tensor->dtype, tensor->data, matrix.data(), matrix.size());
    return matrix;
  }
  moxie::HfFolder folder_;
  moxie::SafetensorsFile golden_;
};

/// What differs between the families here. Sizes, top_k, groups and factors come from config.json.
struct Family {
  const char* model;
  std::string mlp, gate, up, down, shared, bias;
  moxie::RouterConfig rule;
};

const moxie::RouterConfig softmax{.scoring = moxie::RouterScoring::softmax, .group_score = moxie::GroupScore::best};
const moxie::RouterConfig softmax_norm{.scoring = moxie::RouterScoring::softmax, .norm_topk_prob = true};
const moxie::RouterConfig sigmoid{.scoring = moxie::RouterScoring::sigmoid, .group_score = moxie::GroupScore::best_two, .norm_topk_prob = true, .norm_epsilon = 1e-20f};

const Family families[] = {
    {"mixtral", "block_sparse_moe.", "w1", "w3", "w2", "", "", softmax_norm},
    {"qwen2_moe", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_expert.", "", softmax},
    {"qwen2_moe_norm", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_expert.", "", softmax_norm},
    {"qwen3_moe", "mlp.", "gate_proj", "up_proj", "down_proj", "", "", softmax_norm},
    {"olmoe", "mlp.", "gate_proj", "up_proj", "down_proj", "", "", softmax},
    {"olmoe_clip", "mlp.", "gate_proj", "up_proj", "down_proj", "", "", softmax_norm},
    {"deepseek_v2_lite", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "", softmax},
    {"deepseek_v2", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "", softmax},
    {"deepseek_v3", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "gate.e_score_correction_bias", sigmoid},
    {"deepseek_v3_moonlight", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "gate.e_score_correction_bias", sigmoid},
    {"glm4_moe", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "gate.e_score_correction_bias", sigmoid},
    {"dots1", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "gate.e_score_correction_bias", sigmoid},
    {"exaone_moe", "mlp.", "gate_proj", "up_proj", "down_proj", "shared_experts.", "e_score_correction_bias", sigmoid},
    {"minimax_m2", "block_sparse_moe.", "w1", "w3", "w2", "", "e_score_correction_bias", sigmoid},
};

moxie::FeedForwardViews network_of(const Model& model, const Family& family, const std::string& prefix) {
  return {model.tensor(prefix + family.gate + ".weight"), model.tensor(prefix + family.up + ".weight"), model.tensor(prefix + family.down + ".weight")};
}

std::pair<moxie::MoeConfig, moxie::MoeTensors> layer_of(const Model& model, const Family& family, const std::string& mlp) {
  moxie::MoeTensors tensors;
  tensors.router = model.tensor(mlp + "gate.weight");
  if (!family.bias.empty()) tensors.router_bias = model.tensor(mlp + family.bias);
  for (std::int64_t e = 0; e < tensors.router.shape[0]; ++e)
    tensors.experts.push_back(network_of(model, family, mlp + "experts." + std::to_string(e) + "."));
  if (!family.shared.empty()) tensors.shared = network_of(model, family, mlp + family.shared);
  if (model.has(mlp + "shared_expert_gate.weight")) tensors.shared_expert_gate = model.tensor(mlp + "shared_expert_gate.weight");

  const auto number = [&](const char* name, auto otherwise) {
    const auto it = model.config().find(name);
    return it == model.config().end() || it->is_null() ? otherwise : it->get<decltype(otherwise)>();
  };
  moxie::MoeConfig config{tensors.router.shape[1], tensors.experts[0].gate.shape[0], tensors.shared ? tensors.shared->gate.shape[0] : 0,
                          tensors.shared_expert_gate.has_value(), family.rule};
  config.router.n_experts = tensors.router.shape[0];
  config.router.top_k = number("num_experts_per_tok", std::int64_t{0});
  config.router.n_group = number("n_group", std::int64_t{1});
  config.router.topk_group = number("topk_group", std::int64_t{1});
  config.router.routed_scaling_factor = number("routed_scaling_factor", 1.0f);
  return {config, tensors};
}

}  // namespace

TEST_CASE("experts, weights and outputs of MoE layers are those of transformers") {
  for (const Family& family : families) {
    const auto path = test::shared_path(std::string("models/") + family.model);
    if (!path) return;
    CAPTURE(family.model);
    const Model model(*path);
    const nlohmann::json about = nlohmann::json::parse(test::read_text(*path + "/golden.json"));
    const auto moe_layers = about["moe_layers"].get<std::vector<Index>>();
    const RowMatrix embedding = model.weight("model.embed_tokens.weight");
    const double eps = model.config()["rms_norm_eps"].get<double>();
    int rows = 0;
    for (std::size_t m = 0; m < moe_layers.size(); ++m) {
      const Index layer_index = moe_layers[m];
      const std::string prefix = "model.layers." + std::to_string(layer_index) + ".";
      const auto [config, tensors] = layer_of(model, family, prefix + family.mlp);
      const moxie::MoeLayer<moxie::BF16, moxie::Activations::f32> layer(config, tensors, moxie::Threads(2));
      const Index hidden = config.hidden_size, top_k = config.router.top_k;
      for (std::size_t i = 0; i < about["sequences"].size(); ++i) {
        const std::string s = "." + std::to_string(i);
        const std::vector<std::int32_t> ids = model.golden_ids("ids" + s);
        const auto length = static_cast<Index>(ids.size());
        const RowMatrix outputs = model.golden("layer_out" + s);  // [layers * length, hidden]
        const float* input = layer_index == 0 ? embedding.row(ids[0]).data() : outputs.row((layer_index - 1) * length).data();
        Row residual(input, input + hidden);
        const Row attention = model.product(prefix + "self_attn.o_proj", model.values(prefix + "self_attn.", model.norm(residual, prefix + "input_layernorm.weight", eps)));
        for (std::size_t c = 0; c < residual.size(); ++c) residual[c] += attention[c];
        const Row normed = model.norm(residual, prefix + "post_attention_layernorm.weight", eps);
        RowMatrix x(1, hidden), y(1, hidden);
        for (Index c = 0; c < hidden; ++c) x(0, c) = static_cast<float>(normed[static_cast<std::size_t>(c)]);
        moxie::RoutingTrace trace;
        layer.forward_recording(x, y, trace);

        double difference = 0, magnitude = 0;
        for (Index c = 0; c < hidden; ++c) {
          const double expected = static_cast<double>(outputs(layer_index * length, c));
          difference = std::max(difference, std::abs(residual[static_cast<std::size_t>(c)] + static_cast<double>(y(0, c)) - expected));
          magnitude = std::max(magnitude, std::abs(expected));
        }
        CHECK(difference <= 1e-5 * magnitude);

        // transformers' slot order is whatever torch's unsorted top-k gives: compare by expert.
        const std::vector<std::int32_t> golden_experts = model.golden_ids("router_ids" + s);
        const RowMatrix golden_weights = model.golden("router_weights" + s);
        const Index first = static_cast<Index>(m) * length;
        std::map<std::int32_t, float> got, expected;
        for (Index k = 0; k < top_k; ++k) {
          got[trace.ids(0)(0, k)] = trace.weights(0)(0, k);
          expected[golden_experts[static_cast<std::size_t>(first * top_k + k)]] = golden_weights(first, k);
        }
        for (const auto& [expert, weight] : expected) {
          REQUIRE(got.count(expert) == 1);
          CHECK(std::abs(got[expert] - weight) <= 1e-5f * weight);
        }
        ++rows;
      }
    }
    CHECK(rows >= 3);
  }
}
