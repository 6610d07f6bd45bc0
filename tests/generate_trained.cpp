// The two trained models against transformers and llama.cpp: logprobs, greedy answers, perplexity and KL divergence under quantization.
//
// KL divergences are taken from our own f32 run of the Hugging Face folder, because the reference program's logits are not stored; that
// run is first held against its logprobs, perplexity and logits within 1e-4.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/grpo/logprobs.hpp>

#include "fidelity.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using Ids = std::vector<std::int32_t>;

using test::read_json;

/// A sequence and the rows whose next token counts: [first, ids.size() - 1).
struct Passage {
  Ids ids;
  std::size_t first = 0;
};

/// Log-probabilities [rows, vocab] in double of the rows that count, one passage after another.
std::vector<double> log_probabilities(const Model& model, const std::vector<Passage>& passages) {
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  std::vector<double> all;
  for (const Passage& passage : passages) {
    const std::vector<float> logits = test::run(model, passage.ids).logits;
    for (std::size_t t = passage.first; t + 1 < passage.ids.size(); ++t) {
      const float* z = logits.data() + t * vocab;
      const double most = *std::max_element(z, z + vocab);
      double sum = 0.0;
      for (std::size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(z[i]) - most);
      for (std::size_t i = 0; i < vocab; ++i) all.push_back(static_cast<double>(z[i]) - most - std::log(sum));
    }
  }
  return all;
}

double perplexity(const std::vector<double>& logprobs, const std::vector<Passage>& passages, std::size_t vocab) {
  double sum = 0.0;
  std::size_t row = 0;
  for (const Passage& passage : passages)
    for (std::size_t t = passage.first; t + 1 < passage.ids.size(); ++t, ++row) sum += logprobs[row * vocab + static_cast<std::size_t>(passage.ids[t + 1])];
  return std::exp(-sum / static_cast<double>(row));
}

struct Kl {
  double mean, median;
};
Kl divergence(const std::vector<double>& reference, const std::vector<double>& values, std::size_t vocab) {
  REQUIRE(reference.size() == values.size());
  std::vector<double> rows(reference.size() / vocab);
  double sum = 0.0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t i = r * vocab; i < (r + 1) * vocab; ++i) rows[r] += std::exp(reference[i]) * (reference[i] - values[i]);
    sum += rows[r];
  }
  std::sort(rows.begin(), rows.end());
  const std::size_t half = rows.size() / 2;
  return {sum / static_cast<double>(rows.size()), rows.size() % 2 != 0 ? rows[half] : 0.5 * (rows[half - 1] + rows[half])};
}

Model load_exact(const std::string& folder) { return Model::load(folder, {.threads = 1, .activations = Activations::f32, .kv = KvType::f32}); }
Model load_fast(const std::string& file) { return Model::load(file, {.threads = 1, .activations = Activations::int8, .kv = KvType::f32}); }

/// GGUF files that are kept and whose weight types moxie reads.
std::vector<std::string> types_of(const std::string& folder, const std::string& name) {
  std::vector<std::string> found;
  for (const char* type : {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "IQ4_NL", "Q3_K_M", "Q2_K"})
    if (std::filesystem::exists(folder + "/" + name + "-" + type + ".gguf")) found.push_back(type);
  return found;
}

/// One token whose experts change (KL up to 0.9) is half of the sum over 16 chunks for Q8_0, hence the wide bound of the mean.
void check_kl(const std::string& name, const Kl& kl, const nlohmann::json& ref, const std::string& suffix) {
  const double mean = ref.at("kl_mean" + suffix), median = ref.at("kl_median" + suffix);
  MESSAGE(name << ": KL mean " << kl.mean << " (llama.cpp " << mean << ", ratio " << kl.mean / mean << "), median " << kl.median << " (llama.cpp " << median
               << ", ratio " << kl.median / median << ")");
  CHECK(kl.median <= 1.02 * median);
  CHECK(kl.mean <= 1.25 * mean);
}

}  // namespace

TEST_CASE("tiny-shakespeare in f32 gives the logprobs and perplexity of transformers; quantized, it loses no more than with llama.cpp") {
  const auto folder = test::shared_path("trained/tiny-shakespeare");
  if (!folder) return;
  const nlohmann::json refs = read_json(*folder + "/refs.json");
  const auto length = refs.at("chunk").get<std::size_t>(), first_chunks = refs.at("chunks").get<std::size_t>();
  std::vector<Passage> all;
  std::ifstream in(*folder + "/heldout_ids.txt");
  Ids chunk;
  for (std::int32_t id = 0; in >> id;) {
    chunk.push_back(id);
    if (chunk.size() == length) all.push_back({std::exchange(chunk, {}), 0});
  }
  REQUIRE(all.size() == refs.at("hf_f32").at("chunks_all").get<std::size_t>());
  const std::vector<Passage> first(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(first_chunks));

  const Model exact = load_exact(*folder);
  const auto vocab = static_cast<std::size_t>(exact.config().vocab_size);
  std::vector<Ids> sequences;
  for (const Passage& passage : first) sequences.push_back(passage.ids);
  const auto scores = grpo::logprobs(exact, sequences);
  double furthest = 0.0;
  for (std::size_t c = 0; c < first_chunks; ++c) {
    const auto expected = refs.at("logprobs").at(c).get<std::vector<double>>();
    REQUIRE(expected.size() == scores[c].logprobs.size());
    for (std::size_t t = 0; t < expected.size(); ++t)
      furthest = std::max(furthest, std::abs(expected[t] - static_cast<double>(scores[c].logprobs[t])) / std::max(1.0, std::abs(expected[t])));
  }
  const std::vector<double> reference = log_probabilities(exact, all);
  const std::vector<double> reference_first(reference.begin(), reference.begin() + static_cast<std::ptrdiff_t>(first_chunks * (length - 1) * vocab));
  const double ppl = perplexity(reference_first, first, vocab), ppl_all = perplexity(reference, all, vocab);
  MESSAGE("tiny-shakespeare f32: logprobs within " << furthest << " of transformers; perplexity " << ppl << " (transformers "
                                                   << refs.at("hf_f32").at("perplexity") << "), all chunks " << ppl_all << " ("
                                                   << refs.at("hf_f32").at("perplexity_all") << ")");
  CHECK(furthest < 1e-4);
  CHECK(ppl == doctest::Approx(refs.at("hf_f32").at("perplexity").get<double>()).epsilon(1e-4));
  CHECK(ppl_all == doctest::Approx(refs.at("hf_f32").at("perplexity_all").get<double>()).epsilon(1e-4));
  const std::vector<float> logits = test::run(exact, all.front().ids).logits;
  const auto expected_logits = refs.at("hf_f32").at("logits_first_row").get<std::vector<float>>();
  for (std::size_t i = 0; i < expected_logits.size(); ++i) CHECK(logits[i] == doctest::Approx(expected_logits[i]).epsilon(1e-4));

  for (const std::string& type : types_of(*folder, "tiny-shakespeare")) {
    CAPTURE(type);
    const nlohmann::json& ref = refs.at("gguf").at(type);
    const std::vector<double> values = log_probabilities(load_fast(*folder + "/tiny-shakespeare-" + type + ".gguf"), all);
    const std::vector<double> values_first(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(reference_first.size()));
    for (const bool whole : {false, true}) {
      const double got = whole ? perplexity(values, all, vocab) : perplexity(values_first, first, vocab);
      const double theirs = ref.at(whole ? "perplexity_all" : "perplexity");
      const std::string chunks = whole ? ", all chunks" : ", 16 chunks";
      MESSAGE("tiny-shakespeare " << type << chunks << ": perplexity " << got << " (llama.cpp " << theirs << ", "
                                  << 100.0 * (got / theirs - 1.0) << "%)");
      CHECK(std::abs(got / theirs - 1.0) < 0.005);
    }
    check_kl("tiny-shakespeare " + type + ", 16 chunks", divergence(reference_first, values_first, vocab), ref, "");
    check_kl("tiny-shakespeare " + type + ", all chunks", divergence(reference, values, vocab), ref, "_all");
  }
}

TEST_CASE("tiny-r1 in f32 gives the answers and logprobs of transformers; quantized, it loses no more than with llama.cpp") {
  const auto folder = test::shared_path("trained/tiny-r1");
  if (!folder) return;
  const nlohmann::json refs = read_json(*folder + "/refs.json");
  const Model exact = load_exact(*folder);
  const auto vocab = static_cast<std::size_t>(exact.config().vocab_size);

  std::vector<Ids> sequences;
  std::vector<std::vector<double>> expected;
  std::vector<Passage> passages;
  int right = 0;
  const auto take = [&](const nlohmann::json& answer) {
    if (!answer.contains("logprobs")) return;
    Ids ids = answer.at("prompt_ids").get<Ids>();
    const Ids completion = answer.at("completion_ids").get<Ids>();
    ids.insert(ids.end(), completion.begin(), completion.end());
    if (answer.at("ended").get<bool>()) ids.push_back(*exact.tokenizer().eos_id());
    sequences.push_back(ids);
    expected.push_back(answer.at("logprobs").get<std::vector<double>>());
  };
  for (const nlohmann::json& answer : refs.at("greedy_completions")) {
    take(answer);
    const Ids prompt = answer.at("prompt_ids").get<Ids>(), completion = answer.at("completion_ids").get<Ids>();
    Ids with_prompt = prompt;
    with_prompt.insert(with_prompt.end(), completion.begin(), completion.end());
    if (answer.at("ended").get<bool>()) with_prompt.push_back(*exact.tokenizer().eos_id());
    passages.push_back({with_prompt, prompt.size() - 1});

    const auto question = answer.at("question").get<std::string>();
    CHECK(exact.chat({{"user", question}}) == prompt);
    Session session(exact);
    session.feed(prompt);
    Generation generation = session.generate({.temperature = 0.0f, .max_tokens = 96});
    while (generation.step()) {}
    Ids got = generation.ids();
    if (generation.finish_reason() == FinishReason::stop) got.pop_back();
    CHECK(got == completion);
    right += got == completion && exact.tokenizer().decode(got) == answer.at("text").get<std::string>();
  }
  for (const nlohmann::json& answer : refs.at("sampled_completions")) take(answer);
  MESSAGE("tiny-r1 f32: " << right << " of " << passages.size() << " greedy answers are the reference's");
  CHECK(right == static_cast<int>(passages.size()));

  const auto scores = grpo::logprobs(exact, sequences);
  double furthest = 0.0;
  std::size_t compared = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    REQUIRE(expected[s].size() <= scores[s].logprobs.size());
    const std::size_t offset = scores[s].logprobs.size() - expected[s].size();
    for (std::size_t t = 0; t < expected[s].size(); ++t, ++compared)
      furthest = std::max(furthest, std::abs(expected[s][t] - static_cast<double>(scores[s].logprobs[offset + t])) / std::max(1.0, std::abs(expected[s][t])));
  }
  MESSAGE("tiny-r1 f32: " << compared << " logprobs within " << furthest << " of transformers");
  CHECK(furthest < 1e-4);

  const std::vector<double> reference = log_probabilities(exact, passages);
  for (const std::string& type : types_of(*folder, "tiny-r1")) {
    CAPTURE(type);
    const nlohmann::json& ref = refs.at("gguf").at(type);
    REQUIRE(reference.size() / vocab == ref.at("positions").get<std::size_t>());
    check_kl("tiny-r1 " + type, divergence(reference, log_probabilities(load_fast(*folder + "/tiny-r1-" + type + ".gguf"), passages), vocab), ref, "");
  }

  // What the KV cache loses, against the exact model: with f32 activations it alone, with int8 ones (attention on 16-bit codes) beside what the same file
  // loses with an f32 cache. f16 and bf16 round keys and values by 2^-12 and 2^-9 of themselves, int16 by 2^-14 of the largest of 32 (values: 2^-13 of
  // the largest of a head), int8 by 2^-8 of the largest of 32; the divergence goes with the square. A token whose experts change decides the mean.
  const std::string file = *folder + "/tiny-r1-Q8_0.gguf";
  const Kl fast = divergence(reference, log_probabilities(load_fast(file), passages), vocab);
  struct Loss {
    KvType kv;
    std::string name;
    double median, more;
  };
  for (const Loss& loss : {Loss{KvType::f16, "f16", 2e-11, 1.1}, {KvType::bf16, "bf16", 1e-9, 1.5}, {KvType::int16, "int16", 5e-12, 1.1}, {KvType::int8, "int8", 5e-9, 2.0}}) {
    const auto with = [&](const std::string& path, Activations activations) {
      const Model model = Model::load(path, {.threads = 1, .activations = activations, .kv = loss.kv});
      return divergence(reference, log_probabilities(model, passages), vocab);
    };
    const Kl alone = with(*folder, Activations::f32), coded = with(file, Activations::int8);
    MESSAGE("tiny-r1, KV cache of " << loss.name << ": KL mean " << alone.mean << ", median " << alone.median << "; Q8_0 mean " << coded.mean << ", median "
                                    << coded.median << " (f32 cache: " << fast.mean << ", " << fast.median << ")");
    CHECK(alone.median <= loss.median);
    CHECK(alone.mean <= 1e-4);
    CHECK(coded.median <= loss.more * fast.median);
  }
}
