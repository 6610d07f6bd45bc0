// Models against the float32 results of Hugging Face transformers and the dequantized results of llama.cpp.

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "fidelity.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using test::read_json;

/// The model and golden results of a folder.
void compare_folder_with_transformers(const std::string& folder) {
  CAPTURE(folder);
  const Model model = Model::load(folder, {.threads = 2, .activations = Activations::f32, .kv = KvType::f32});
  const SafetensorsFile golden = SafetensorsFile::open(folder + "/golden.safetensors");
  const auto n_sequences = read_json(folder + "/golden.json").at("sequences").size();
  for (std::size_t s = 0; s < n_sequences; ++s) {
    const std::string i = "." + std::to_string(s);
    CAPTURE(s);
    const auto ids = test::golden<std::int32_t>(golden, "ids" + i);
    test::ForwardResult result = test::run(model, ids);
    for (float& x : result.hidden) x *= model.config().logits_scaling;
    CHECK(test::relative_difference(result.hidden, test::golden<float>(golden, "hidden" + i)) < 2e-5);
    CHECK(test::relative_difference(result.logits, test::golden<float>(golden, "logits" + i)) < 2e-5);

    const auto router_ids = test::golden<std::int32_t>(golden, "router_ids" + i);
    const auto router_weights = test::golden<float>(golden, "router_weights" + i);
    const Index k = result.routes.top_k();
    for (Index layer = 0; layer < result.routes.n_layers(); ++layer)
      for (Index t = 0; t < result.routes.tokens(); ++t) {
        std::map<std::int32_t, float> expected, got;
        for (Index j = 0; j < k; ++j) {
          const auto at = static_cast<std::size_t>((layer * result.routes.tokens() + t) * k + j);
          expected[router_ids[at]] = router_weights[at];
          got[result.routes.ids(layer)(t, j)] = result.routes.weights(layer)(t, j);
        }
        REQUIRE(got.size() == expected.size());
        for (const auto& [id, weight] : expected) {
          REQUIRE(got.contains(id));
          CHECK(got[id] == doctest::Approx(weight).epsilon(2e-5));
        }
      }
    CHECK(test::greedy(model, ids, 24) == test::golden<std::int32_t>(golden, "greedy" + i));
  }
}

void compare_with_transformers(const std::string& name) {
  if (const auto folder = test::shared_path("models/" + name)) compare_folder_with_transformers(*folder);
}

RoutingTrace trace_of(const Model& model, const std::vector<std::int32_t>& experts, std::size_t tokens) {
  RoutingTrace trace = empty_trace(model);
  trace.resize(static_cast<Index>(tokens));
  const auto per_layer = static_cast<std::ptrdiff_t>(tokens) * trace.top_k();
  for (Index layer = 0; layer < trace.n_layers(); ++layer) std::copy_n(experts.begin() + layer * per_layer, per_layer, trace.ids(layer).data());
  return trace;
}

/// Files of the weight types that moxie reads; others are skipped by name.
const std::vector<std::string> types = {"BF16", "Q4_0", "Q8_0", "Q4_K_M", "Q6_K", "Q5_K_M", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K_M", "Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XXS", "IQ1_M", "IQ1_S"};

void compare_with_llama_cpp(const std::string& name) {
  const auto folder = test::shared_path("gguf/" + name);
  if (!folder) return;
  const SafetensorsFile golden = SafetensorsFile::open(*folder + "/golden.safetensors");
  const nlohmann::json files = read_json(*folder + "/golden.json").at("files");
  for (const std::string& type : types) {
    const std::string file = *folder + "/" + type + ".gguf";
    if (!files.contains(type + ".gguf")) continue;
    CAPTURE(file);
    const Model exact = Model::load(file, {.threads = 2, .activations = Activations::f32, .kv = KvType::f32});
    const Model fast = Model::load(file, {.threads = 2, .activations = Activations::int8, .kv = KvType::f32});
    double kl = 0.0, kl_llama_cpp = 0.0, tokens = 0.0;
    for (int s = 0; s < 3; ++s) {
      CAPTURE(s);
      const auto key = [&](const char* what) { return type + "/" + what + "." + std::to_string(s); };
      const auto ids = test::golden<std::int32_t>(golden, key("ids"));
      const auto reference = test::golden<float>(golden, key("logits_ref"));
      const test::ForwardResult result = test::run(exact, ids);
      CHECK(test::relative_difference(result.logits, reference) < 1e-4);
      const RoutingTrace experts = trace_of(exact, test::golden<std::int32_t>(golden, key("experts_ref")), ids.size());
      for (Index layer = 0; layer < experts.n_layers(); ++layer) CHECK(result.routes.ids(layer) == experts.ids(layer));
      CHECK(test::greedy(exact, ids, 24) == test::golden<std::int32_t>(golden, key("greedy")));

      const auto vocab = static_cast<std::size_t>(exact.config().vocab_size);
      const auto weight = static_cast<double>(ids.size());
      kl += weight * test::mean_kl(reference, test::run(fast, ids, &experts).logits, vocab);
      kl_llama_cpp += weight * test::mean_kl(reference, test::golden<float>(golden, key("logits_llamacpp")), vocab);
      tokens += weight;
    }
    MESSAGE(name << " " << type << ": mean KL with int8 activations " << kl / tokens << ", llama.cpp " << kl_llama_cpp / tokens);
    CHECK(kl <= kl_llama_cpp);
  }
}

}  // namespace

TEST_CASE("mixtral gives the results of transformers") {
  compare_with_transformers("mixtral");
  compare_with_transformers("mixtral_sliding");
}
TEST_CASE("qwen2_moe gives the results of transformers") {
  compare_with_transformers("qwen2_moe");
  compare_with_transformers("qwen2_moe_norm");
}
TEST_CASE("qwen3_moe gives the results of transformers") {
  compare_with_transformers("qwen3_moe");
  compare_with_transformers("qwen3_moe_yarn");
}
TEST_CASE("olmoe gives the results of transformers, with q, k and v clipped and without") {
  compare_with_transformers("olmoe");
  compare_with_transformers("olmoe_clip");
}
TEST_CASE("deepseek_v2 gives the results of transformers") {
  compare_with_transformers("deepseek_v2_lite");
  compare_with_transformers("deepseek_v2");
}
TEST_CASE("deepseek_v3 gives the results of transformers") {
  compare_with_transformers("deepseek_v3");
  compare_with_transformers("deepseek_v3_moonlight");
}
TEST_CASE("deepseek_v3 in FP8 gives the results of transformers") { compare_with_transformers("deepseek_v3_fp8"); }

TEST_CASE("gpt_oss gives the results of transformers") {
  compare_with_transformers("gpt_oss");
  compare_with_transformers("gpt_oss_mxfp4");
}

TEST_CASE("glm4_moe gives the results of transformers, with norms of q and k and without") {
  compare_with_transformers("glm4_moe");
  compare_with_transformers("glm4_moe_air");
}
TEST_CASE("dots1 gives the results of transformers") { compare_with_transformers("dots1"); }
TEST_CASE("minimax_m2 gives the results of transformers") { compare_with_transformers("minimax_m2"); }
TEST_CASE("ernie4_5_moe gives the results of transformers") { compare_with_transformers("ernie4_5_moe"); }

TEST_CASE("granitemoe gives the results of transformers, with a shared expert and without") {
  compare_with_transformers("granitemoe");
  compare_with_transformers("granitemoeshared");
}

TEST_CASE("hunyuan_v1_moe gives the results of transformers") { compare_with_transformers("hunyuan_v1_moe"); }

TEST_CASE("qwen3_next gives the results of transformers") { compare_with_transformers("qwen3_next"); }

TEST_CASE("lfm2_moe gives the results of transformers") { compare_with_transformers("lfm2_moe"); }
TEST_CASE("glm4_moe_lite gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/glm4_moe_lite")); }
TEST_CASE("qwen3_5_moe gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/qwen3_5_moe")); }

TEST_CASE("qwen3_vl_moe gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/qwen3_vl_moe")); }
TEST_CASE("granitemoehybrid gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/granitemoehybrid")); }
TEST_CASE("bailing_moe_v2 gives the results that transformers computes of GLM-4.5 with the same weights") {
  compare_folder_with_transformers(test::data_path("models/bailing_moe_v2"));
}
TEST_CASE("solar_open gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/solar_open")); }
TEST_CASE("afmoe gives the results of transformers") { compare_folder_with_transformers(test::data_path("models/afmoe")); }
TEST_CASE("exaone_moe gives the results of transformers") { compare_with_transformers("exaone_moe"); }
TEST_CASE("nemotron_h gives the results of transformers") {
  for (const char* folder : {"models/nemotron_h", "models/nemotron_h_latent"}) compare_folder_with_transformers(test::data_path(folder));
}

TEST_CASE("an embedding in FP8 is multiplied with its block scales") {
  const auto folder = test::shared_path("models/deepseek_v3_fp8");
  if (!folder) return;
  const HfFolder file = HfFolder::open(*folder);
  ModelDescription model = describe_hf(file.config, file.tensors(), *folder);
  const Index vocab = model.config.vocab_size, width = model.config.hidden_size;
  std::vector<std::byte> codes(static_cast<std::size_t>(vocab * width));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>((i * 37 + i / 7) % 0x70 | (i % 3 == 0 ? 0x80 : 0));
  std::vector<float> scales(static_cast<std::size_t>((vocab + 127) / 128 * ((width + 127) / 128)));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = 0.003f * static_cast<float>(i + 1);
  const Weight fp8{{"embedding", Dtype::F8_E4M3, {vocab, width}, codes.data(), codes.size(), {}, 0},
                   TensorView{"scales", Dtype::F32, {(vocab + 127) / 128, (width + 127) / 128}, reinterpret_cast<const std::byte*>(scales.data()),
                              scales.size() * sizeof(float), {}, 0}};
  const RowMatrix decoded = load_rows(fp8, 0, vocab);
  const Weight plain{{"embedding", Dtype::F32, {vocab, width}, reinterpret_cast<const std::byte*>(decoded.data()),
                      static_cast<std::size_t>(decoded.size()) * sizeof(float), {}, 0}, std::nullopt};
  const Context context{&kernels::native_table(), Threads(1), Activations::f32};
  const auto hidden = [&](const Weight& embedding) {
    model.tensors.embedding = embedding;
    const Decoder decoder(context, model.config, model.tensors, file.tensors());
    KvSequence kv(KvPool(decoder.kv_shape(KvType::f32)));
    kv.reserve(3);
    const std::vector<DecoderRow> rows = {{1, &kv, 0}, {static_cast<std::int32_t>(vocab - 1), &kv, 1}, {130, &kv, 2}};
    RowMatrix out(3, width);
    DecoderScratch scratch;
    decoder.forward(context, rows, out.data(), scratch);
    return out;
  };
  CHECK(hidden(fp8) == hidden(plain));
}

TEST_CASE("qwen3moe GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  compare_with_llama_cpp("qwen3moe");
}
TEST_CASE("qwen2moe GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  compare_with_llama_cpp("qwen2moe");
}
TEST_CASE("mixtral GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  compare_with_llama_cpp("mixtral");
}
TEST_CASE("olmoe GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  compare_with_llama_cpp("olmoe");
}
TEST_CASE("gpt-oss GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  compare_with_llama_cpp("gpt-oss");
}
TEST_CASE("glm4moe, dots1, minimax-m2, ernie4_5-moe, granitemoe, hunyuan-moe and qwen3next GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  for (const char* name : {"glm4moe", "dots1", "minimax-m2", "ernie4_5-moe", "granitemoe", "hunyuan-moe", "qwen3next"}) compare_with_llama_cpp(name);
}
TEST_CASE("deepseek2 GGUF files give the logits of their dequantized weights, and int8 activations lose no more than llama.cpp's") {
  for (const char* name : {"deepseek2-lite", "deepseek2-v2", "deepseek2-v3"}) compare_with_llama_cpp(name);
}
