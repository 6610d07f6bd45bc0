// Adapter folders of PEFT: merged into models as PEFT computes them, saved and loaded again, and refused with a reason.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/quantize_model.hpp>
#include <moxie/grpo/logprobs.hpp>
#include <moxie/io/peft.hpp>

#include "fidelity.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

std::string message_of(const auto& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

RowMatrix random_matrix(std::mt19937& random, Index rows, Index columns, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  return RowMatrix::NullaryExpr(rows, columns, [&] { return normal(random); });
}

/// A folder with these matrices and this configuration.
std::string write_adapter(const std::string& folder, const std::vector<std::pair<std::string, RowMatrix>>& matrices, const nlohmann::json& config) {
  std::filesystem::create_directories(folder);
  SafetensorsWriter writer;
  for (const auto& [name, matrix] : matrices) writer.add(name, matrix);
  writer.write(folder + "/adapter_model.safetensors");
  test::write_file(folder + "/adapter_config.json", config.dump());
  return folder;
}

}  // namespace

TEST_CASE("models with a PEFT adapter give PEFT's logits, from their folder and as GGUF files") {
  for (const char* name : {"mixtral", "qwen2_moe", "deepseek_v2"}) {
    const auto base = test::shared_path(std::string("models/") + name);
    if (!base) return;
    CAPTURE(std::string(name));
    const std::string folder = test::data_path(std::string("grpo/peft/") + name);
    const SafetensorsFile reference = SafetensorsFile::open(folder + "/logits.safetensors");
    const auto ids = test::golden<std::int32_t>(reference, "ids");
    const auto logits = test::golden<float>(reference, "logits");
    LoadOptions options{.threads = 2, .activations = Activations::f32, .kv = KvType::f32};
    const std::size_t vocab = logits.size() / ids.size();
    CHECK(test::mean_kl(logits, test::run(Model::load(*base, options), ids).logits, vocab) > 1.0);
    options.adapter = folder;
    const auto merged = test::run(Model::load(*base, options), ids).logits;
    CHECK(test::mean_kl(logits, merged, vocab) < 2e-3);  // the folder's weights are BF16, and so are the merged ones
    options.threads = 1;
    CHECK(test::run(Model::load(*base, options), ids).logits == merged);

    // GGUF has other names, permuted rows and stacked experts.
    const test::TemporaryFolder scratch;
    quantize_model(*base, scratch.file("f32.gguf"), {.type = "F32"});
    CHECK(test::relative_difference(test::run(Model::load(scratch.file("f32.gguf"), options), ids).logits, logits) < 2e-5);
    // Quantized weights stay as they are where the adapter has nothing to say; the others become BF16.
    quantize_model(*base, scratch.file("q8.gguf"), {.type = "Q8_0"});
    const Model quantized = Model::load(scratch.file("q8.gguf"), options);
    CHECK(test::mean_kl(logits, test::run(quantized, ids).logits, vocab) < 0.1);
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
  const MergedWeights merged = merge_low_rank(context, config, true, tensors, adapter);
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
  CHECK(message(pair, {{"modules_to_save", Json::array()}, {"rank_pattern", Json::object()}, {"target_modules", {"lm_head"}}, {"use_dora", false}}) == fine);
  CHECK(message(pair, {{"r", 8}, {"rank_pattern", {{".*\\.lm_head", 2}, {"lm_head", 2}}}, {"alpha_pattern", {{"head", 9}}}}) == fine);
  std::vector<std::pair<std::string, RowMatrix>> with_copy = pair;
  with_copy.emplace_back("base_model.model.lm_head.base_layer.weight", RowMatrix::Zero(1, 1));
  CHECK(message(with_copy, Json::object()) == fine);

  struct Refused {
    Json changes;
    const char* part;
  };
  for (const Refused& refused : {Refused{{{"peft_type", "LOHA"}}, "peft_type: is 'LOHA'"}, Refused{{{"peft_type", nullptr}}, "peft_type: is missing"},
                                 Refused{{{"bias", "all"}}, "bias: is 'all'"}, Refused{{{"use_dora", true}}, "use_dora: is true"},
                                 Refused{{{"modules_to_save", {"embed_tokens"}}}, "modules_to_save: is an array"}, Refused{{{"r", 3}}, "rank 2"},
                                 Refused{{{"r", "x"}}, "r: is \"x\""}, Refused{{{"r", 0}}, "r: is 0"}, Refused{{{"lora_alpha", "x"}}, "lora_alpha: is"},
                                 Refused{{{"rank_pattern", {{"lm_head", 5}}}}, "r: is 5"}, Refused{{{"rank_pattern", {{"lm_head", -1}}}}, "rank_pattern: holds -1"},
                                 Refused{{{"rank_pattern", {{"lm_.*d", 2}}}}, "a regular expression"}, Refused{{{"rank_pattern", 3}}, "rank_pattern: is 3"},
                                 Refused{{{"alpha_pattern", {{"lm_head", "x"}}}}, "alpha_pattern: holds"},
                                 Refused{{{"alpha_pattern", {{"lm_head", 3}, {".*\\.lm_head", 4}}}}, "several keys"}}) {
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
  CHECK(contains(matrices_message({pair[0], {name + "B.weight", RowMatrix::Constant(vocab, 2, NAN)}}), "module 'lm_head': the merged weights cannot be stored"));
  const std::string layer = "base_model.model.model.layers.0.";
  const std::string unknown = matrices_message({{layer + "self_attn.nose_proj.lora_A.weight", a}, {layer + "self_attn.nose_proj.lora_B.weight", b}});
  CHECK(contains(unknown, "updates 'model.layers.0.self_attn.nose_proj', which this model (qwen3_moe) does not have"));
  CHECK(contains(unknown, "has lm_head only"));
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
