// Adapter folders of PEFT: beside a model's weights or merged into them as PEFT computes them, with the same bits however they are run; saved and loaded
// again, and refused with a reason.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/quantize_model.hpp>
#include <moxie/grpo/logprob_gradients.hpp>
#include <moxie/grpo/logprobs.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/io/peft.hpp>

#include "checks.hpp"
#include "fidelity.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using test::message_of;
using test::contains;
using test::same_bits;
using test::random_matrix;

/// A folder with these matrices and this configuration.
std::string write_adapter(const std::string& folder, const std::vector<std::pair<std::string, RowMatrix>>& matrices, const nlohmann::json& config) {
  std::filesystem::create_directories(folder);
  SafetensorsWriter writer;
  for (const auto& [name, matrix] : matrices) writer.add(name, matrix);
  writer.write(folder + "/adapter_model.safetensors");
  test::write_file(folder + "/adapter_config.json", config.dump());
  return folder;
}

/// An adapter of every layer that can have one: A of variance 1 / inputs, B so that updates are `size` times the layers' outputs. Ranks of 3, and some of 17,
/// which is more than a panel.
std::string random_adapter(const std::string& folder, const ModelConfig& c, float size, unsigned seed = 5) {
  std::mt19937 random(seed);
  std::vector<std::pair<std::string, RowMatrix>> matrices;
  const nlohmann::json config = {{"peft_type", "LORA"}, {"r", 3}, {"lora_alpha", 3}, {"rank_pattern", {{"(lm_head|[ok]_proj|kv_b_proj|shared_experts?\\.up_proj)", 17}}},
                                 {"alpha_pattern", {{"(lm_head|[ok]_proj|kv_b_proj|shared_experts?\\.up_proj)", 17}}}};
  const auto add = [&](const char* pattern, std::int64_t layer, std::int64_t expert, Index outputs, Index inputs) {
    std::string module = families::tensor_name(pattern, layer, expert);
    module = "base_model.model." + module.substr(0, module.size() - 7);
    const bool wide = module.ends_with("lm_head") || module.ends_with("o_proj") || module.ends_with("k_proj") || module.ends_with("kv_b_proj") ||
                      (module.find("shared_expert") != std::string::npos && module.ends_with("up_proj"));
    const Index rank = wide ? 17 : 3;
    matrices.emplace_back(module + ".lora_A.weight", random_matrix(random, rank, inputs, 1.0f / std::sqrt(static_cast<float>(inputs))));
    matrices.emplace_back(module + ".lora_B.weight", random_matrix(random, outputs, rank, size / std::sqrt(static_cast<float>(rank))));
  };
  const families::TensorNames& n = *family_of(c).hf.names;
  const AttentionConfig& a = c.attention;
  const Index h = c.hidden_size;
  add(n.output, -1, -1, c.vocab_size, h);
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    if (a.kind == AttentionKind::gqa) {
      add(n.q, i, -1, a.n_heads * a.head_dim, h);
      add(n.k, i, -1, a.n_kv_heads * a.head_dim, h);
      add(n.v, i, -1, a.n_kv_heads * a.head_dim, h);
      add(n.o, i, -1, h, a.n_heads * a.head_dim);
    } else {
      const Index q = a.n_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
      if (a.q_lora_rank == 0) add(n.q, i, -1, q, h);
      if (a.q_lora_rank != 0) add(n.q_a, i, -1, a.q_lora_rank, h);
      if (a.q_lora_rank != 0) add(n.q_b, i, -1, q, a.q_lora_rank);
      add(n.kv_a, i, -1, a.kv_lora_rank + a.qk_rope_head_dim, h);
      add(n.kv_b, i, -1, a.n_heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank);
      add(n.o, i, -1, h, a.n_heads * a.v_head_dim);
    }
    const auto network = [&](const char* gate, const char* up, const char* down, std::int64_t expert, Index width) {
      add(gate, i, expert, width, h);
      add(up, i, expert, width, h);
      add(down, i, expert, h, width);
    };
    if (!c.is_moe_layer[static_cast<std::size_t>(i)]) {
      network(n.dense_gate, n.dense_up, n.dense_down, -1, c.intermediate_size);
      continue;
    }
    add(n.router, i, -1, c.moe.router.n_experts, h);
    for (std::int64_t e = 0; n.expert_gate && e < c.moe.router.n_experts; ++e) network(n.expert_gate, n.expert_up, n.expert_down, e, c.moe.moe_intermediate_size);
    if (c.moe.shared_intermediate_size != 0) network(n.shared_gate, n.shared_up, n.shared_down, -1, c.moe.shared_intermediate_size);
    if (c.moe.shared_expert_gate) add(n.shared_expert_gate, i, -1, 1, h);
  }
  return write_adapter(folder, matrices, config);
}

std::vector<std::pair<std::string, ModelConfig>> all_configs(Dtype type) {
  return {{"qwen2_moe", test::qwen2_moe_config(type)},
          {"olmoe", test::olmoe_config(type)},
          {"gpt_oss", test::gpt_oss_config(type)},
          {"deepseek_v2", test::deepseek_v2_config(type)},
          {"deepseek_v3", test::deepseek_v3_config(type)}};
}

/// Largest difference of log-probabilities.
double logprob_difference(const std::vector<float>& logits, const std::vector<float>& reference, std::size_t vocab) {
  double most = 0.0;
  for (std::size_t r = 0; r * vocab < logits.size(); ++r) {
    const auto row = [&](const std::vector<float>& all) { return Eigen::Map<const Eigen::ArrayXf>(all.data() + r * vocab, static_cast<Index>(vocab)).cast<double>().eval(); };
    const auto log_softmax = [](const Eigen::ArrayXd& z) { return (z - z.maxCoeff() - std::log((z - z.maxCoeff()).exp().sum())).eval(); };
    most = std::max(most, (log_softmax(row(logits)) - log_softmax(row(reference))).abs().maxCoeff());
  }
  return most;
}

}  // namespace

TEST_CASE("models with a PEFT adapter give PEFT's log-probabilities, from their folder and as GGUF files, beside the weights and merged") {
  for (const char* name : {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe_clip", "deepseek_v3", "qwen3_next", "qwen3_5_moe", "lfm2_moe", "granitemoehybrid", "nemotron_h", "nemotron_h_latent", "afmoe", "bailing_moe_v2"}) {
    const std::string own = test::data_path(std::string("models/") + name);
    const auto base = std::filesystem::exists(own) ? std::optional(own) : test::shared_path(std::string("models/") + name);
    if (!base) return;
    CAPTURE(std::string(name));
    const std::string folder = test::data_path(std::string("grpo/peft/") + name);
    const SafetensorsFile reference = SafetensorsFile::open(folder + "/logits.safetensors");
    const auto ids = test::golden<std::int32_t>(reference, "ids");
    const auto logits = test::golden<float>(reference, "logits");
    const std::size_t vocab = logits.size() / ids.size();
    LoadOptions options{.threads = 2, .activations = Activations::f32, .kv = KvType::f32};
    CHECK(test::mean_kl(logits, test::run(Model::load(*base, options), ids).logits, vocab) > 0.1);
    // GGUF has other names, permuted rows and stacked experts.
    const test::TemporaryFolder scratch;
    quantize_model(*base, scratch.file("f32.gguf"), {.type = "F32"});
    quantize_model(*base, scratch.file("q8.gguf"), {.type = "Q8_0"});
    options.adapter = folder;
    for (const AdapterMode mode : {AdapterMode::beside, AdapterMode::merged}) {
      options.adapter_mode = mode;
      const auto adapted = test::run(Model::load(*base, options), ids).logits;
      if (mode == AdapterMode::beside) CHECK(logprob_difference(adapted, logits, vocab) < 1e-4);
      CHECK(test::mean_kl(logits, adapted, vocab) < 2e-2);  // the folder's weights are BF16, and so are the merged ones
      LoadOptions alone = options;
      alone.threads = 1;
      CHECK(test::run(Model::load(*base, alone), ids).logits == adapted);
      const auto from_gguf = test::run(Model::load(scratch.file("f32.gguf"), options), ids).logits;
      CHECK(test::relative_difference(from_gguf, logits) < 2e-5);
      CHECK(logprob_difference(from_gguf, logits, vocab) < 1e-4);
      CHECK(test::mean_kl(logits, test::run(Model::load(scratch.file("q8.gguf"), options), ids).logits, vocab) < 0.2);
    }
  }
}

TEST_CASE("a GGUF file whose rows were permuted because config.json says so takes an adapter as its folder does") {
  const auto base = test::shared_path("models/deepseek_v3");
  if (!base) return;
  const test::TemporaryFolder folder;
  const std::string model = folder.file("model");
  std::filesystem::copy(*base, model);
  nlohmann::json config = nlohmann::json::parse(test::read_text(model + "/config.json"));
  config["rope_interleave"] = false;
  test::write_file(model + "/config.json", config.dump());
  quantize_model(model, folder.file("f32.gguf"), {.type = "F32"});
  quantize_model(folder.file("f32.gguf"), folder.file("again.gguf"), {.type = "F32"});
  std::mt19937 random(2);
  const auto ids = test::random_ids(random, 30, config["vocab_size"]);
  LoadOptions options{.threads = 2, .activations = Activations::f32, .kv = KvType::f32};
  for (const std::string& adapter : {std::string(), test::data_path("grpo/peft/deepseek_v3")}) {
    options.adapter = adapter;
    options.adapter_mode = AdapterMode::beside;
    const auto expected = test::run(Model::load(model, options), ids).logits;
    for (const AdapterMode mode : {AdapterMode::beside, AdapterMode::merged})
      for (const char* file : {"f32.gguf", "again.gguf"}) {
        options.adapter_mode = mode;
        CHECK(test::relative_difference(test::run(Model::load(folder.file(file), options), ids).logits, expected) < 2e-5);
      }
  }
}

TEST_CASE("beside Q4_K weights an adapter gives the same bits whatever the batch, the chunk, the threads, and whether tokens are decoded, prefilled or scored") {
  const test::TemporaryFolder folder;
  std::mt19937 random(3);
  for (const auto& entry : all_configs(Dtype::Q4_K)) {
    const std::string& name = entry.first;
    const ModelConfig& config = entry.second;
    CAPTURE(name);
    const std::string path = test::write_random_model(folder.file(name + ".gguf"), config, Dtype::Q4_K), adapter = random_adapter(folder.file(name), config, 0.3f);
    const auto ids = test::random_ids(random, 75, config.vocab_size), others = test::random_ids(random, 131, config.vocab_size);
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      LoadOptions options{.threads = 1, .activations = activations, .adapter = adapter};
      const Model model = Model::load(path, options);
      const auto expected = test::run(model, ids);
      options.adapter.clear();
      const Model plain = Model::load(path, options);
      const auto without = test::run(plain, ids);
      CHECK(test::relative_difference(without.logits, expected.logits) > 0.1);
      CHECK(plain.decoder().bytes() < model.decoder().bytes());
      options = {.threads = 3, .activations = activations, .chunk = 7, .adapter = adapter};
      const Model other = Model::load(path, options);
      const auto threaded = test::run(other, ids);
      CHECK(same_bits(threaded.hidden, expected.hidden));
      CHECK(same_bits(threaded.logits, expected.logits));

      // One token at a time, beside another sequence.
      KvSequence kv(KvPool(other.kv_shape())), beside(KvPool(other.kv_shape()));
      kv.reserve(75);
      beside.reserve(131);
      ForwardScratch scratch;
      std::int64_t done = 0;
      const Index width = config.hidden_size;
      for (std::int64_t t = 0; t < 75; ++t) {
        std::vector<DecoderRow> rows = {{ids[static_cast<std::size_t>(t)], &kv, t}};
        for (const std::int64_t end = t % 3 == 2 ? std::min<std::int64_t>(131, done + 1 + t % 5) : done; done < end; ++done) rows.push_back({others[static_cast<std::size_t>(done)], &beside, done});
        std::vector<float> hidden(rows.size() * static_cast<std::size_t>(width));
        other.decoder().forward(other.context(), rows, hidden.data(), scratch.decoder);
        REQUIRE(same_bits(std::span(hidden).first(static_cast<std::size_t>(width)), std::span(expected.hidden).subspan(static_cast<std::size_t>(t * width), static_cast<std::size_t>(width))));
        const float* logits = compute_logits(other, hidden.data(), static_cast<Index>(rows.size()), scratch);
        const auto vocab = static_cast<std::size_t>(config.vocab_size);
        REQUIRE(same_bits(std::span(logits, vocab), std::span(expected.logits).subspan(static_cast<std::size_t>(t) * vocab, vocab)));
      }
      const auto alone = grpo::logprobs(model, std::vector<std::vector<std::int32_t>>{ids});
      const auto together = grpo::logprobs(other, std::vector<std::vector<std::int32_t>>{others, ids, {1, 2, 3}}, {.batch = 3});
      CHECK(same_bits(alone[0].logprobs, together[1].logprobs));
      CHECK(same_bits(alone[0].entropy, together[1].entropy));
    }
  }
}

TEST_CASE("scores of a rollout with an adapter of inner layers are its logprobs bit for bit, in both modes, and with a second adapter on the output matrix") {
  const test::TemporaryFolder folder;
  std::mt19937 random(4);
  for (const auto& entry : all_configs(Dtype::Q4_K)) {
    const std::string& name = entry.first;
    const ModelConfig& config = entry.second;
    CAPTURE(name);
    const std::string path = test::write_random_model(folder.file(name + ".gguf"), config, Dtype::Q4_K), adapter = random_adapter(folder.file(name), config, 0.2f);
    std::vector<std::vector<std::int32_t>> prompts;
    for (const std::int64_t n : {3, 70, 17}) prompts.push_back(test::random_ids(random, n, 300));
    for (const AdapterMode mode : {AdapterMode::beside, AdapterMode::merged}) {
      const Model model = Model::load(path, {.threads = 2, .chunk = 40, .adapter = adapter, .adapter_mode = mode});
      OutputAdapter second = OutputAdapter::create(config.hidden_size, config.vocab_size, 4, 8.0f, 1);
      second.b = random_matrix(random, config.vocab_size, 4, 0.05f);
      second.pack(model.context());
      std::vector<std::int32_t> first_ids;
      for (const OutputAdapter* used : {static_cast<const OutputAdapter*>(nullptr), static_cast<const OutputAdapter*>(&second)}) {
        const GenerateOptions generate{.temperature = 1.3f, .top_p = 0.95f, .seed = 2, .max_tokens = 20};
        const auto groups = grpo::rollout(model, prompts, {.group_size = 3, .generate = generate, .batch = 5, .adapter = used});
        std::vector<std::vector<std::int32_t>> sequences;
        for (std::size_t p = 0; p < prompts.size(); ++p)
          for (const auto& completion : groups[p].completions) {
            sequences.push_back(prompts[p]);
            sequences.back().insert(sequences.back().end(), completion.ids.begin(), completion.ids.end());
          }
        const auto scores = grpo::logprobs(model, sequences, {.temperature = generate.temperature, .adapter = used});
        for (std::size_t s = 0; s < sequences.size(); ++s)
          CHECK(same_bits(std::span(scores[s].logprobs).subspan(prompts[s / 3].size() - 1), groups[s / 3].completions[s % 3].logprobs));
        CHECK(sequences[3] != first_ids);  // the second adapter says something, too
        first_ids = sequences[3];
      }
    }
  }
}

TEST_CASE("beside F32 weights an adapter gives the logits and the gradients of the merged model, and one of zeros changes no bit") {
  const test::TemporaryFolder folder;
  std::mt19937 random(6);
  for (const auto& entry : all_configs(Dtype::F32)) {
    const std::string& name = entry.first;
    const ModelConfig& config = entry.second;
    CAPTURE(name);
    const std::string path = test::write_random_model(folder.file(name + ".gguf"), config, Dtype::F32), adapter = random_adapter(folder.file(name), config, 0.3f),
                      zeros = random_adapter(folder.file(name + "_zeros"), config, 0.0f);
    const auto ids = test::random_ids(random, 40, config.vocab_size);
    for (const Activations activations : {Activations::f32, Activations::int8}) {
      const auto load = [&](const std::string& with, AdapterMode mode) {
        return Model::load(path, {.threads = 2, .activations = activations, .kv = KvType::f32, .adapter = with, .adapter_mode = mode});
      };
      const Model beside = load(adapter, AdapterMode::beside), merged = load(adapter, AdapterMode::merged);
      CHECK(test::relative_difference(test::run(beside, ids).logits, test::run(merged, ids).logits) < 2e-5);
      CHECK(same_bits(test::run(load(zeros, AdapterMode::beside), ids).logits, test::run(load("", AdapterMode::beside), ids).logits));
      const std::vector<std::vector<std::int32_t>> sequences = {ids};
      const std::vector<std::vector<float>> d_logprobs = {std::vector<float>(ids.size() - 1, 0.5f)}, d_entropy = {std::vector<float>(ids.size(), -0.2f)};
      const auto gradient = [&](const Model& model) { return grpo::logprob_gradients(model, sequences, d_logprobs, d_entropy, {}, true).d_hidden; };
      const RowMatrix expected = gradient(merged).front(), given = gradient(beside).front();
      CHECK((given - expected).cwiseAbs().maxCoeff() < 1e-4f * expected.cwiseAbs().maxCoeff());
    }
  }
}

TEST_CASE("an update of kv_b reaches the split matrices of GGUF files") {
  const Index heads = 3, nope = 5, v = 4, latent = 32, rank = 2;
  ModelConfig config;
  config.family = "deepseek_v3";
  config.n_layers = 1;
  config.attention.kind = AttentionKind::mla;
  config.attention.n_heads = heads;
  config.attention.qk_nope_head_dim = nope;
  config.attention.v_head_dim = v;
  config.attention.kv_lora_rank = latent;
  std::mt19937 random(3);
  RowMatrix kv_b = random_matrix(random, heads * (nope + v), latent, 1.0f), k_b(heads * latent, nope), v_b(heads * v, latent);
  const auto split = [&](const RowMatrix& from, RowMatrix& k, RowMatrix& values) {
    for (Index h = 0; h < heads; ++h) {
      k.middleRows(h * latent, latent) = from.middleRows(h * (nope + v), nope).transpose();
      values.middleRows(h * v, v) = from.middleRows(h * (nope + v) + nope, v);
    }
  };
  split(kv_b, k_b, v_b);
  const auto view = [](const RowMatrix& matrix, std::vector<std::int64_t> shape) {
    return TensorView{"t", Dtype::F32, std::move(shape), reinterpret_cast<const std::byte*>(matrix.data()), static_cast<std::uint64_t>(matrix.size()) * 4, "f", 0};
  };
  DecoderTensors tensors;
  tensors.layers.resize(1);
  tensors.layers[0].k_b = Weight{view(k_b, {heads, latent, nope}), {}};
  tensors.layers[0].v_b = Weight{view(v_b, {heads, v, latent}), {}};
  const RowMatrix a = random_matrix(random, rank, latent, 1.0f), b = random_matrix(random, heads * (nope + v), rank, 1.0f);
  const LowRankAdapter adapter{{{"model.layers.0.self_attn.kv_b_proj", {view(a, {rank, latent}), view(b, {heads * (nope + v), rank})}}},
                               [](const std::string&, std::int64_t) { return 0.5f; }};
  const Context context{&kernels::native_table(), Threads(2), Activations::f32};
  const MergedWeights merged = apply_adapter(context, config, tensors, adapter, AdapterMode::merged);
  kv_b += 0.5f * b * a;
  split(kv_b, k_b, v_b);
  CHECK((load_rows(*tensors.layers[0].k_b, heads * latent) - k_b).cwiseAbs().maxCoeff() < 1e-5f);
  CHECK((load_rows(*tensors.layers[0].v_b, heads * v) - v_b).cwiseAbs().maxCoeff() < 1e-5f);
}

TEST_CASE("an adapter on the output matrix, saved and loaded, has the same bits, and merged it gives the same logits as beside the matrix") {
  const test::TemporaryFolder folder;
  const std::string path = test::write_random_model(folder.file("m.gguf"), test::qwen3_moe_config(Dtype::F32), Dtype::F32);
  const LoadOptions options{.threads = 2, .activations = Activations::f32};
  const Model model = Model::load(path, options);
  std::mt19937 random(3);
  OutputAdapter adapter = OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 3, 10.0f, 1);
  adapter.b = random_matrix(random, model.config().vocab_size, 3, 0.2f);
  for (const float scale : {adapter.scale, 2.0f, 0.3f}) {  // the second and third replace the folder's files
    adapter.scale = scale;
    save_peft(folder.file("new/adapter"), adapter, "some/model");
    OutputAdapter loaded = load_peft(folder.file("new/adapter"));
    CHECK(loaded.scale == scale);
    CHECK(loaded.a == adapter.a);
    CHECK(loaded.b == adapter.b);
    loaded.pack(model.context());
    LoadOptions with = options;
    with.adapter = folder.file("new/adapter");
    with.adapter_mode = AdapterMode::merged;
    const auto ids = test::random_ids(random, 10, model.config().vocab_size);
    const auto merged = test::run(Model::load(path, with), ids);
    ForwardScratch scratch;
    const float* beside = compute_logits(model, merged.hidden.data(), 10, scratch, &loaded);
    CHECK(test::relative_difference({beside, beside + merged.logits.size()}, merged.logits) < 1e-5);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder.file("new/adapter")), {}) == 2);
  adapter.b(0, 0) = INFINITY;
  CHECK_THROWS_AS(save_peft(folder.file("new/adapter"), adapter), ArgumentError);
  CHECK(load_peft(folder.file("new/adapter")).scale == 0.3f);
  CHECK_THROWS_AS(save_peft(path + "/below_a_file", load_peft(folder.file("new/adapter"))), SystemError);
}

TEST_CASE("PEFT loads what was saved, and gives the same logprobs") {
  const auto base = test::shared_path("trained/tiny-r1");
  if (!base) return;
  const char* given = std::getenv("MOXIE_PYTHON");
  const std::string python = given ? given : "python3";
  if (std::system((python + " -c 'import peft, torch, transformers' 2>/dev/null").c_str()) != 0) {
    MESSAGE("skipped: " << python << " has no peft; pip install peft, or name a Python that has it in MOXIE_PYTHON");
    return;
  }
  const test::TemporaryFolder folder;
  const Model model = Model::load(*base, {.threads = 2, .activations = Activations::f32, .kv = KvType::f32});
  std::mt19937 random(3);
  OutputAdapter adapter = OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 5, 7.5f, 1);
  adapter.b = random_matrix(random, model.config().vocab_size, 5, 0.3f);
  adapter.pack(model.context());
  save_peft(folder.file("adapter"), adapter);
  const std::vector<std::int32_t> ids = test::random_ids(random, 20, model.config().vocab_size);
  const auto scores = grpo::logprobs(model, std::vector<std::vector<std::int32_t>>{ids}, {.temperature = 0.8f, .adapter = &adapter}).front().logprobs;
  std::string command = "HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 " + python + " '" + test::data_path("grpo/peft/logprobs_with_peft.py") + "' '" + *base + "' '" +
                        folder.file("adapter") + "' 0.8";
  for (const std::int32_t id : ids) command += " " + std::to_string(id);
  REQUIRE(std::system((command + " > '" + folder.file("out") + "' 2> '" + folder.file("errors") + "'").c_str()) == 0);
  std::istringstream lines(test::read_text(folder.file("out")));
  for (const float score : scores) {
    double expected = 0.0;
    lines >> expected;
    CHECK(std::abs(static_cast<double>(score) - expected) < 1e-4);
  }
}

TEST_CASE("adapter folders that are broken, foreign or unsupported are refused with a reason") {
  const test::TemporaryFolder folder;
  const std::string path = test::write_random_model(folder.file("m.gguf"), test::qwen3_moe_config(Dtype::Q8_0), Dtype::Q8_0);
  const Index hidden = test::qwen3_moe_config(Dtype::Q8_0).hidden_size, vocab = test::qwen3_moe_config(Dtype::Q8_0).vocab_size;
  const RowMatrix a = RowMatrix::Ones(2, hidden), b = RowMatrix::Ones(vocab, 2);
  const std::string name = "base_model.model.lm_head.lora_";
  const nlohmann::json good = {{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 4}};
  int n = 0;
  const auto message = [&](std::vector<std::pair<std::string, RowMatrix>> matrices, const nlohmann::json& changes) {
    nlohmann::json config = good;
    config.update(changes);
    const std::string to = write_adapter(folder.file("adapter" + std::to_string(n++)), matrices, config);
    const std::string merged = message_of([&] { Model::load(path, {.threads = 1, .adapter = to}); });
    const std::string beside = message_of([&] { load_peft(to); });
    CHECK((merged == "nothing was thrown" || contains(merged, to)));
    return merged + " | " + beside;
  };
  const std::vector<std::pair<std::string, RowMatrix>> pair = {{name + "A.weight", a}, {name + "B.weight", b}};
  using Json = nlohmann::json;
  const std::string fine = "nothing was thrown | nothing was thrown";
  CHECK(message(pair, Json::object()) == fine);
  CHECK(message(pair, {{"modules_to_save", Json::array()}, {"rank_pattern", Json::object()}, {"target_modules", {"lm_head"}}, {"use_dora", false}, {"fan_in_fan_out", true}, {"init_lora_weights", "gaussian"}}) == fine);
  CHECK(message(pair, {{"r", 8}, {"rank_pattern", {{".*\\.lm_head", 2}, {"lm_head", 2}}}, {"alpha_pattern", {{"head", 9}, {"^lm_\\w+", 8}}}}) == fine);
  std::vector<std::pair<std::string, RowMatrix>> with_copy = pair;
  with_copy.emplace_back("base_model.model.lm_head.base_layer.weight", RowMatrix::Zero(1, 1));
  CHECK(message(with_copy, Json::object()) == fine);

  struct Refused {
    Json changes;
    const char* part;
  };
  for (const Refused& refused : {Refused{{{"peft_type", "LOHA"}}, "peft_type: is 'LOHA'"}, Refused{{{"peft_type", nullptr}}, "peft_type: is missing"},
                                 Refused{{{"bias", "all"}}, "bias: is 'all'"}, Refused{{{"use_dora", true}}, "use_dora: is true"},
                                 Refused{{{"modules_to_save", {"embed_tokens"}}}, "modules_to_save: is an array"}, Refused{{{"lora_bias", true}}, "lora_bias: is true"},
                                 Refused{{{"init_lora_weights", "pissa_niter_4"}}, "init_lora_weights: is \"pissa_niter_4\""}, Refused{{{"r", 3}}, "rank 2"},
                                 Refused{{{"r", "x"}}, "r: is \"x\""}, Refused{{{"r", 0}}, "r: is 0"}, Refused{{{"lora_alpha", "x"}}, "lora_alpha: is"},
                                 Refused{{{"rank_pattern", {{"lm_head", 5}}}}, "r: is 5"}, Refused{{{"rank_pattern", {{"lm_head", -1}}}}, "rank_pattern: holds -1"},
                                 Refused{{{"rank_pattern", {{"lm_(head", 2}}}}, "'lm_(head', which is no regular expression"}, Refused{{{"rank_pattern", 3}}, "rank_pattern: is 3"},
                                 Refused{{{"alpha_pattern", {{"lm_head", "x"}}}}, "alpha_pattern: holds"},
                                 Refused{{{"alpha_pattern", {{"lm_head", 3}, {"lm_he[^x]d", 4}}}}, "several keys"}}) {
    const std::string text = message(pair, refused.changes);
    CAPTURE(text);
    CHECK(contains(text.substr(0, text.find(" | ")), refused.part));
    CHECK(contains(text.substr(text.find(" | ")), refused.part));
  }
  const auto matrices_message = [&](const std::vector<std::pair<std::string, RowMatrix>>& matrices) { return message(matrices, Json::object()); };
  CHECK(contains(matrices_message({pair[0]}), "has no lora_B"));
  CHECK(contains(matrices_message({pair[1]}), "has no lora_A"));
  CHECK(contains(matrices_message({}), "holds no matrices"));
  CHECK(contains(matrices_message({pair[0], pair[1], {"lm_head.lora_A.weight", a}}), "is there twice"));
  CHECK(contains(matrices_message({{"base_model.model.lm_head.lora_magnitude_vector", a}}), "lora_A.weight and lora_B.weight"));
  CHECK(contains(matrices_message({{name + "A.weight", RowMatrix::Ones(2, hidden + 1)}, pair[1]}), "it must be [2, " + std::to_string(hidden) + "]"));
  CHECK(contains(matrices_message({pair[0], {name + "B.weight", RowMatrix::Ones(vocab - 1, 2)}}), "it must be [" + std::to_string(vocab) + ", 2]"));
  CHECK(contains(matrices_message({pair[0], {name + "B.weight", RowMatrix::Constant(vocab, 2, NAN)}}), "holds numbers that are not finite"));
  const std::string layer = "base_model.model.model.layers.0.";
  const std::string unknown = matrices_message({{layer + "self_attn.nose_proj.lora_A.weight", a}, {layer + "self_attn.nose_proj.lora_B.weight", b}});
  CHECK(contains(unknown, "updates 'model.layers.0.self_attn.nose_proj', which this model (qwen3_moe) does not have"));
  CHECK(contains(unknown, "has lm_head only"));
  // One weight under two names.
  ModelConfig mixtral = test::mixtral_config(Dtype::Q8_0);
  mixtral.n_layers = 1;
  DecoderTensors tensors;
  tensors.layers.resize(1);
  tensors.layers[0].router = Weight{{"router", Dtype::F32, {2, 2}, reinterpret_cast<const std::byte*>(a.data()), 16, "f", 0}, {}};
  const TensorView square{"t", Dtype::F32, {2, 2}, reinterpret_cast<const std::byte*>(a.data()), 16, "adapter", 0};
  const LowRankAdapter twice{
      {{"model.layers.0.block_sparse_moe.gate", {square, square}}, {"model.layers.0.mlp.gate", {square, square}}},
      [](const std::string&, std::int64_t) { return 1.0f; }};
  const Context context{&kernels::native_table(), Threads(1), Activations::f32};
  for (const AdapterMode mode : {AdapterMode::beside, AdapterMode::merged}) {
    DecoderTensors changed = tensors;
    CHECK(
        contains(message_of([&] { (void)apply_adapter(context, mixtral, changed, twice, mode); }), "second update of a weight"));
  }
  // The experts of gpt-oss.
  DecoderTensors experts;
  experts.layers.resize(2);
  experts.layers[0].experts.resize(5);
  const ModelConfig gpt_oss = test::gpt_oss_config(Dtype::Q8_0);
  const LowRankAdapter of_experts{{{"model.layers.0.mlp.experts", {square, square}}}, [](const std::string&, std::int64_t) { return 1.0f; }};
  CHECK_THROWS_AS((void)apply_adapter(context, gpt_oss, experts, of_experts, AdapterMode::beside), UnsupportedError);
  const auto stacked = [&](const RowMatrix& first, const RowMatrix& second) {
    return matrices_message({{layer + "mlp.experts.lora_A.weight", first}, {layer + "mlp.experts.lora_B.weight", second}});
  };
  CHECK(contains(stacked(a, b), "for the experts' gate_up_proj they must be"));
  const Index width = test::qwen3_moe_config(Dtype::Q8_0).moe.moe_intermediate_size;
  CHECK(contains(stacked(RowMatrix::Ones(3, hidden), RowMatrix::Ones(2 * width, 3)), "the number of experts"));

  const auto load_message = [&](const std::string& adapter) { return message_of([&] { load_peft(adapter); }); };
  CHECK(contains(load_message(folder.file("none")), "not a folder"));
  std::filesystem::create_directories(folder.file("empty"));
  CHECK(contains(load_message(folder.file("empty")), "adapter_config.json: the file is missing"));
  test::write_file(folder.file("empty/adapter_config.json"), good.dump());
  CHECK(contains(load_message(folder.file("empty")), "adapter_model.safetensors: the file is missing"));
  test::write_file(folder.file("empty/adapter_model.bin"), "");
  CHECK(contains(load_message(folder.file("empty")), "adapter_model.bin is not read"));
  test::write_file(folder.file("empty/adapter_model.safetensors"), "");
  test::write_file(folder.file("empty/adapter_config.json"), "[]");
  CHECK(contains(load_message(folder.file("empty")), "must be an object"));
  test::write_file(folder.file("empty/adapter_config.json"), "{");
  CHECK(contains(load_message(folder.file("empty")), "JSON"));
  test::write_file(folder.file("empty/adapter_config.json"), good.dump());
  CHECK_THROWS_AS(load_peft(folder.file("empty")), FormatError);
}
