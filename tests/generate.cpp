// Sampler, Session and Batch: sampling against transformers and vLLM, draws, streams of text, forks, rewinds, cancellation, budgets, errors.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/batch.hpp>
#include <moxie/generate/session.hpp>

#include "checks.hpp"
#include "child_process.hpp"
#include "fidelity.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "safetensors_mini.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using Ids = std::vector<std::int32_t>;

const kernels::Table& table() { return kernels::native_table(); }

std::vector<std::int32_t> kept_ids(const std::vector<float>& logits, const GenerateOptions& options, const Ids& prompt = {}, const Ids& output = {}) {
  Sampler sampler;
  const auto z = sampler.penalized(logits, options, prompt, output);
  const double lse = sampler.log_sum_exp(table(), z, options.temperature).lse;
  std::vector<std::int32_t> ids;
  for (const Sampler::Candidate& c : sampler.keep(z, options, lse)) ids.push_back(c.id);
  return ids;
}

using test::message_of;
using test::contains;
using test::same_bits;

/// Ids drawn by a session of its own.
std::vector<Sample> samples_alone(const Model& model, const Ids& prompt, const GenerateOptions& options, std::uint64_t stream) {
  Session session(model);
  session.feed(prompt);
  Session own = session.fork(stream);
  Generation generation = own.generate(options);
  while (generation.step()) {}
  return generation.samples();
}
bool same(const Sample& a, const Sample& b) {
  return a.id == b.id && a.logprob == b.logprob && a.entropy == b.entropy && a.sampler_logprob == b.sampler_logprob && a.kept_mass == b.kept_mass;
}
bool same(const std::vector<Sample>& a, const std::vector<Sample>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Sample& x, const Sample& y) { return same(x, y); });
}

std::vector<float> fresh_logits(const Model& model, std::span<const std::int32_t> ids) {
  Session session(model);
  session.feed(ids);
  const auto z = session.logits();
  return {z.begin(), z.end()};
}

/// Puts NaN over the first element of row `row` of a tensor in a GGUF file.
void poison(const std::string& path, const std::string& name, std::int64_t row) {
  std::uint64_t offset = 0;
  {
    const GgufFile file = GgufFile::open(path);
    offset = file.tensors().find(name)->slice_rows(row, 1).offset;
  }
  std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
  out.seekp(static_cast<std::streamoff>(offset));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  out.write(reinterpret_cast<const char*>(&nan), sizeof nan);
}

}  // namespace

TEST_CASE("Philox gives the published known answers") {
  using Four = std::array<std::uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) == Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) == Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("penalties and truncation keep the tokens and probabilities of transformers") {
  const auto path = test::shared_path("grpo/truncated_sampling.json");
  if (!path) return;
  const nlohmann::json cases = nlohmann::json::parse(test::read_text(*path));
  const test::MiniTensors tensors = test::read_safetensors(*test::shared_path("grpo/truncated_sampling.safetensors"));
  double worst_p = 0.0, worst_mass = 0.0;
  for (const nlohmann::json& c : cases) {
    const auto id = c.at("id").get<std::string>();
    CAPTURE(id);
    const nlohmann::json& o = c.at("options");
    GenerateOptions options;
    options.temperature = o.at("temperature");
    options.top_k = o.at("top_k");
    options.top_p = o.at("top_p");
    options.min_p = o.at("min_p").is_null() ? 0.0f : o.at("min_p").get<float>();
    options.repetition_penalty = o.at("repetition_penalty");
    options.presence_penalty = o.at("presence_penalty");
    options.frequency_penalty = o.at("frequency_penalty");
    const auto logits = tensors.at(c.at("logits")).as<float>();
    const Ids prompt = c.at("prompt_ids"), output = c.at("output_ids");

    Sampler sampler;
    const auto z = sampler.penalized(logits, options, prompt, output);
    if (const auto it = tensors.find(id + ".penalized_logits"); it != tensors.end()) {
      const auto expected = it->second.as<double>();
      for (std::size_t i = 0; i < expected.size(); ++i)
        if (std::isfinite(expected[i])) CHECK(static_cast<double>(z[i]) == doctest::Approx(expected[i]).epsilon(1e-6));
    }
    const double lse = sampler.log_sum_exp(table(), z, options.temperature).lse;
    std::vector<Sampler::Candidate> kept;
    for (const Sampler::Candidate& candidate : sampler.keep(z, options, lse))
      if (candidate.p > 0.0 || std::isfinite(candidate.z)) kept.push_back(candidate);
    double mass = 0.0;
    for (const Sampler::Candidate& candidate : kept) mass += candidate.p;
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    Ids ids;
    for (const Sampler::Candidate& candidate : kept) ids.push_back(candidate.id);
    CHECK(ids == tensors.at(id + ".kept").as<std::int32_t>());
    const test::MiniTensor& stored = tensors.at(id + ".probs");
    std::vector<double> probs;
    if (stored.dtype == "F64") {
      probs = stored.as<double>();
    } else {
      for (const float p : stored.as<float>()) probs.push_back(static_cast<double>(p));
    }
    REQUIRE(probs.size() == kept.size());
    for (std::size_t i = 0; i < probs.size(); ++i) worst_p = std::max(worst_p, std::abs(kept[i].p / mass - probs[i]));
    worst_mass = std::max(worst_mass, std::abs(mass - c.at("kept_mass").get<double>()));
    {
      const Sample sample = sampler.draw(table(), logits, options, prompt, output, 3, 5);
      CHECK(std::binary_search(ids.begin(), ids.end(), sample.id));
      const double whole = sampler.log_sum_exp(table(), logits, options.temperature).lse;
      double entropy = 0.0;  // logits of -infinity are tokens that cannot occur
      for (const float logit : logits) {
        const double log_p = static_cast<double>(logit / options.temperature) - whole;
        if (std::isfinite(log_p)) entropy -= std::exp(log_p) * log_p;
      }
      CHECK(std::abs(static_cast<double>(sample.entropy) - entropy) < 2e-6 * std::max(1.0, entropy));
      CHECK(std::abs(static_cast<double>(sample.kept_mass) - c.at("kept_mass").get<double>()) < 1e-5);
    }
  }
  MESSAGE(cases.size() << " cases: probabilities within " << worst_p << ", kept mass within " << worst_mass);
  CHECK(worst_p < 1e-5);
  CHECK(worst_mass < 1e-5);
}

TEST_CASE("entropies and logprobs of logits around 1e4 are as exact as those around 0") {
  std::mt19937 random(2);
  Sampler sampler;
  double worst = 0.0;
  for (const float deviation : {0.1f, 1.0f, 4.0f, 300.0f})
    for (const float shift : {0.0f, 1e4f, -1e4f}) {
      std::normal_distribution<float> normal(shift, deviation);
      std::vector<float> logits(5003);
      for (float& z : logits) z = normal(random);
      const Sample sample = sampler.draw(table(), logits, {.temperature = 0.7f}, {}, {}, 1, 2);
      const auto z = [&](std::size_t i) { return static_cast<double>(logits[i] / 0.7f); };
      double most = -std::numeric_limits<double>::infinity(), sum = 0.0, entropy = 0.0;
      for (std::size_t i = 0; i < logits.size(); ++i) most = std::max(most, z(i));
      for (std::size_t i = 0; i < logits.size(); ++i) sum += std::exp(z(i) - most);
      const auto log_p = [&](std::size_t i) { return z(i) - most - std::log(sum); };
      for (std::size_t i = 0; i < logits.size(); ++i) entropy -= std::exp(log_p(i)) * log_p(i);
      worst = std::max({worst, std::abs(static_cast<double>(sample.entropy) - entropy) / std::max(1.0, entropy),
                        std::abs(static_cast<double>(sample.logprob) - log_p(static_cast<std::size_t>(sample.id))) /
                            std::max(1.0, -log_p(static_cast<std::size_t>(sample.id)))});
    }
  MESSAGE("within " << worst);
  CHECK(worst < 2e-6);
}

TEST_CASE("truncation by hand: ties with the k-th stay, top_p ends where the mass is reached, min_p is relative to the best") {
  const std::vector<float> z = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.2f), std::log(0.1f)};
  CHECK(kept_ids(z, {.top_k = 1}) == Ids{1});
  CHECK(kept_ids(z, {.top_k = 2}) == Ids{1, 2, 3});
  CHECK(kept_ids(z, {.top_k = 4}) == Ids{1, 2, 3, 0, 4});
  CHECK(kept_ids(z, {.top_k = 99}) == Ids{1, 2, 3, 0, 4});
  CHECK(kept_ids(z, {.top_p = 0.39f}) == Ids{1});
  CHECK(kept_ids(z, {.top_p = 0.41f}) == Ids{1, 2});
  CHECK(kept_ids(z, {.top_p = 0.61f}) == Ids{1, 2, 3});
  CHECK(kept_ids(z, {.top_p = 1e-6f}) == Ids{1});
  CHECK(kept_ids(z, {.top_k = 2, .top_p = 0.49f}) == Ids{1});  // of 0.8, 0.4 is half
  CHECK(kept_ids(z, {.top_k = 2, .top_p = 0.51f}) == Ids{1, 2});
  CHECK(kept_ids(z, {.min_p = 0.49f}) == Ids{1, 2, 3});
  CHECK(kept_ids(z, {.min_p = 0.51f}) == Ids{1});
  CHECK(kept_ids(z, {.temperature = 0.5f, .min_p = 0.49f}) == Ids{1});  // squares: 0.16 to 0.04
  // A flat tail far below the best still counts for top_p.
  std::vector<float> tail(5000, -12.0f);
  tail[7] = 0.0f;
  const double best = 1.0 / (1.0 + 4999.0 * std::exp(-12.0));
  CHECK(kept_ids(tail, {.top_p = static_cast<float>(best) - 1e-4f}).size() == 1);
  CHECK(kept_ids(tail, {.top_p = 0.99f}).size() > 1000);
}

TEST_CASE("penalties by hand") {
  Sampler sampler;
  const std::vector<float> z = {2.0f, -2.0f, 1.0f, 3.0f};
  const auto penalized = [&](const GenerateOptions& options, const Ids& prompt, const Ids& output) {
    const auto span = sampler.penalized(z, options, prompt, output);
    return std::vector<float>(span.begin(), span.end());
  };
  CHECK(penalized({.repetition_penalty = 2.0f}, {0, 1, 1}, {1, 2}) == std::vector<float>{1.0f, -4.0f, 0.5f, 3.0f});
  CHECK(penalized({.presence_penalty = 0.5f}, {0}, {2, 2}) == std::vector<float>{2.0f, -2.0f, 0.5f, 3.0f});
  CHECK(penalized({.frequency_penalty = 0.5f}, {0}, {2, 2}) == std::vector<float>{2.0f, -2.0f, 0.0f, 3.0f});
  CHECK(penalized({}, {0}, {2, 2}) == z);
  // The logprob reported is that before penalties.
  const Sample sample = sampler.draw(table(), z, {.temperature = 0.0f, .presence_penalty = 5.0f}, {}, Ids{3}, 0, 0);
  CHECK(sample.id == 0);
  CHECK(sample.logprob == doctest::Approx(2.0 - std::log(std::exp(2.0) + std::exp(-2.0) + std::exp(1.0) + std::exp(3.0))));
}

TEST_CASE("greedy takes the lowest of equal ids, and logits that are not finite are an error") {
  Sampler sampler;
  CHECK(sampler.draw(table(), std::vector<float>{1.0f, 3.0f, 3.0f, 0.0f}, {.temperature = 0.0f}, {}, {}, 0, 0).id == 1);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const std::size_t at : {0u, 700u, 1999u}) {
      std::vector<float> z(2000, 0.5f);
      z[at] = bad;
      for (const float temperature : {0.0f, 1.0f}) CHECK_THROWS_AS(sampler.draw(table(), z, {.temperature = temperature}, {}, {}, 0, 0), ArgumentError);
    }
}

TEST_CASE("options out of range are errors that name the option") {
  const auto check = [](const GenerateOptions& options, const char* name) { CHECK(contains(message_of([&] { options.check(); }), name)); };
  check({.temperature = -1.0f}, "temperature");
  check({.temperature = std::numeric_limits<float>::quiet_NaN()}, "temperature");
  check({.temperature = 1e-6f}, "temperature");
  check({.top_k = -1}, "top_k");
  check({.top_p = 0.0f}, "top_p");
  check({.top_p = 1.5f}, "top_p");
  check({.min_p = -0.1f}, "min_p");
  check({.repetition_penalty = 0.0f}, "repetition_penalty");
  check({.presence_penalty = std::numeric_limits<float>::infinity()}, "presence_penalty");
  check({.max_tokens = -1}, "max_tokens");
  check({.stop = {""}}, "stop");
}

TEST_CASE("tokens are drawn with their probabilities, with and without truncation") {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> z(1300);  // three tiles of the vocabulary
  for (float& value : z) value = normal(random);
  const std::vector<GenerateOptions> all = {{.temperature = 0.8f, .seed = 1},
                                            {.temperature = 1.5f, .seed = 2},
                                            {.temperature = 0.8f, .top_k = 40, .seed = 3},
                                            {.temperature = 1.0f, .top_p = 0.7f, .seed = 4},
                                            {.temperature = 1.0f, .min_p = 0.05f, .seed = 5},
                                            {.temperature = 1.0f, .repetition_penalty = 1.3f, .seed = 6}};
  for (const GenerateOptions& options : all) {
    CAPTURE(options.seed);
    Sampler sampler;
    const Ids prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    std::vector<double> p(z.size(), 0.0);
    {
      const auto penalized = sampler.penalized(z, options, prompt, {});
      const double lse = sampler.log_sum_exp(table(), penalized, options.temperature).lse;
      double mass = 0.0;
      for (const Sampler::Candidate& c : sampler.keep(penalized, options, lse)) {
        p[static_cast<std::size_t>(c.id)] = c.p;
        mass += c.p;
      }
      for (double& value : p) value /= mass;
    }
    const int draws = 20000;
    std::vector<int> counts(z.size(), 0);
    for (int i = 0; i < draws; ++i) {
      const Sample sample = sampler.draw(table(), z, options, prompt, {}, static_cast<std::uint64_t>(i % 7), static_cast<std::uint64_t>(i / 7));
      ++counts[static_cast<std::size_t>(sample.id)];
      if (i < 200) CHECK(sample.sampler_logprob == doctest::Approx(std::log(p[static_cast<std::size_t>(sample.id)])).epsilon(1e-4));
    }
    // Chi-square over tokens expected at least 10 times, the others together.
    double statistic = 0.0, rest_expected = 0.0, rest_counted = 0.0;
    int cells = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double expected = p[i] * draws;
      if (p[i] == 0.0) CHECK(counts[i] == 0);
      if (expected < 10.0) {
        rest_expected += expected;
        rest_counted += counts[i];
        continue;
      }
      statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
      ++cells;
    }
    if (rest_expected >= 10.0) {
      statistic += (rest_counted - rest_expected) * (rest_counted - rest_expected) / rest_expected;
      ++cells;
    }
    const double freedom = cells - 1;
    CAPTURE(statistic);
    CAPTURE(freedom);
    CHECK(freedom > 8);
    CHECK(statistic < freedom + 4.5 * std::sqrt(2.0 * freedom));
  }
}

TEST_CASE("draws of neighbouring seeds, streams and positions are uniform and independent") {
  double mean = 0.0, product = 0.0;
  const int n = 20000;
  for (int i = 0; i < n; ++i) {
    const auto position = static_cast<std::uint64_t>(i);
    const double a = uniform_draw(0, 0, position), b = uniform_draw(0, 1, position), c = uniform_draw(1, 0, position), next = uniform_draw(0, 0, position + 1);
    REQUIRE(a >= 0.0);
    REQUIRE(a < 1.0);
    mean += a / n;
    product += ((a - 0.5) * (b - 0.5) + (a - 0.5) * (c - 0.5) + (a - 0.5) * (next - 0.5)) * 12.0 / n;
  }
  CHECK(std::abs(mean - 0.5) < 4.0 / std::sqrt(12.0 * n));
  CHECK(std::abs(product) < 4.0 * std::sqrt(3.0 / n));
}

TEST_CASE("stop texts: what is shown is the text before the one that is complete first, however it is cut into pieces") {
  std::mt19937 random(8);
  const auto letters = [&](int n) {
    std::string text;
    for (int i = 0; i < n; ++i) text += static_cast<char>('a' + static_cast<int>(random() % 2));
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::string text = letters(30);
    std::vector<std::string> stops;
    for (std::size_t i = 0; i <= random() % 3; ++i) stops.push_back(letters(1 + static_cast<int>(random() % 7)));
    std::pair complete(text.size() + 1, text.size());  // end and beginning
    for (const std::string& stop : stops)
      if (const std::size_t at = text.find(stop); at != std::string::npos) complete = std::min(complete, std::pair(at + stop.size(), at));
    const std::size_t first = complete.second;
    StopTexts filter(stops);
    std::string shown;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t n = 1 + random() % 4;
      shown += filter.push(std::string_view(text).substr(at, n));
      CHECK(text.substr(0, first).starts_with(shown));
      at += n;
    }
    if (!filter.matched()) shown += filter.finish();
    CHECK(filter.matched() == (first < text.size()));
    CHECK(shown == text.substr(0, first));
  }
}

TEST_CASE("a session gives the same logits as a fresh one after any feeds, rewinds and forks") {
  const test::TemporaryFolder folder;
  std::mt19937 random(12);
  std::vector<Model> models = {Model::load(test::embedded_model(), {.threads = 2, .chunk = 17})};
  models.push_back(Model::load(test::write_random_model(folder.file("model.gguf"), test::mixtral_config(Dtype::Q5_1), Dtype::Q5_1), {.threads = 1, .chunk = 9}));
  models.push_back(Model::load(test::write_random_model(folder.file("delta.gguf"), test::qwen3_next_config(Dtype::Q5_0), Dtype::Q5_0), {.threads = 2, .chunk = 30}));
  for (const Model& model : models) {
    std::vector<Session> sessions;
    sessions.emplace_back(model);
    for (int step = 0; step < 60; ++step) {
      CAPTURE(step);
      Session& session = sessions[random() % sessions.size()];
      switch (random() % 4) {
        case 0: session.rewind(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(session.length() + 1))); break;
        case 1:
          if (sessions.size() < 4 && session.length() > 0) {
            sessions.push_back(session.fork(random() % 3));
            break;
          }
          [[fallthrough]];
        case 2:
          if (session.length() > 0 && session.length() < 150) {
            Generation generation = session.generate({.temperature = 1.0f, .seed = random(), .max_tokens = static_cast<std::int64_t>(random() % 5), .ignore_eos = true});
            while (generation.step()) {}
            break;
          }
          [[fallthrough]];
        default:
          if (session.length() < 150) session.feed(test::random_ids(random, static_cast<std::int64_t>(random() % 70), model.config().vocab_size));
      }
      Session& any = sessions[random() % sessions.size()];
      if (any.length() == 0) {
        CHECK_THROWS_AS(any.logits(), ArgumentError);
        continue;
      }
      CHECK(same_bits(any.logits(), fresh_logits(model, any.ids())));
    }
  }
}

TEST_CASE("text comes in pieces that join to the decoded answer, and a stop text across tokens ends it") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1});
  Session prompt(model);
  prompt.feed(model.chat({{"user", "What is 57+5?"}}));
  const auto answer = [&](const GenerateOptions& options) {
    Session session = prompt.fork();
    Generation generation = session.generate(options);
    std::string joined;
    for (const std::string_view piece : generation) {
      CHECK_FALSE(piece.empty());
      joined += piece;
    }
    CHECK(joined == generation.text());
    CHECK(session.length() == prompt.length() + static_cast<std::int64_t>(generation.samples().size()));
    return std::pair(joined, generation);
  };
  const auto [text, generation] = answer({.temperature = 0.0f, .max_tokens = 60});
  Ids ids = generation.ids();
  CHECK(generation.finish_reason() == FinishReason::stop);
  CHECK(model.is_end(ids.back()));
  ids.pop_back();
  CHECK(text == model.tokenizer().decode(ids));
  REQUIRE(text.size() > 20);
  for (std::size_t at = 0; at + 5 <= text.size(); ++at) {
    const std::string stop = text.substr(at, 5);
    const auto [before, stopped] = answer({.temperature = 0.0f, .max_tokens = 60, .stop = {"never there", stop}});
    CHECK(before == text.substr(0, text.find(stop)));
    CHECK(stopped.finish_reason() == FinishReason::stop);
  }
  const auto [cut, limited] = answer({.temperature = 0.0f, .max_tokens = 7});
  CHECK(limited.samples().size() == 7);
  CHECK(limited.finish_reason() == FinishReason::length);
  CHECK(text.starts_with(cut));
  CHECK(answer({.temperature = 0.0f, .max_tokens = 0}).second.samples().empty());
}

TEST_CASE("seeds repeat draws, other seeds and streams draw otherwise") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1});
  const Ids prompt = model.chat({{"user", "What is 3*6-9?"}});
  GenerateOptions options{.temperature = 1.5f, .seed = 5, .max_tokens = 30, .ignore_eos = true};
  const auto first = samples_alone(model, prompt, options, 0);
  CHECK(same(first, samples_alone(model, prompt, options, 0)));
  CHECK_FALSE(same(first, samples_alone(model, prompt, options, 1)));
  options.seed = 6;
  CHECK_FALSE(same(first, samples_alone(model, prompt, options, 0)));
}

TEST_CASE("cancel from another thread stops a feed or an answer, and the session goes on as if it had not happened") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1, .chunk = 4});
  std::mt19937 random(1);
  const Ids first = test::random_ids(random, 10, model.config().vocab_size), rest = test::random_ids(random, 60, model.config().vocab_size);
  Session session(model);
  session.feed(first);
  std::int64_t seen = 0;
  CHECK_THROWS_AS(session.feed(rest,
                               [&](std::int64_t done, std::int64_t total) {
                                 CHECK(total == 60);
                                 seen = done;
                                 if (done >= 20) std::thread([&] { session.cancel(); }).join();
                               }),
                  Cancelled);
  CHECK(seen == 20);
  CHECK(session.length() == 10);
  CHECK(same_bits(session.logits(), fresh_logits(model, first)));

  std::vector<std::int64_t> steps;
  session.feed(rest, [&](std::int64_t done, std::int64_t) { steps.push_back(done); });
  CHECK(std::is_sorted(steps.begin(), steps.end()));
  CHECK(steps.back() == 60);
  CHECK(steps.size() == 15);

  const GenerateOptions options{.temperature = 1.0f, .seed = 3, .max_tokens = 40, .ignore_eos = true};
  Session other = session.fork();
  Generation whole = other.generate(options);
  while (whole.step()) {}
  Generation broken = session.generate(options);
  std::thread canceller;
  while (broken.step())
    if (broken.samples().size() == 13) {
      canceller = std::thread([&] { session.cancel(); });
      canceller.join();
    }
  CHECK(broken.finish_reason() == FinishReason::cancelled);
  CHECK(broken.samples().size() == 13);
  GenerateOptions more = options;
  more.max_tokens = 27;
  Generation resumed = session.generate(more);
  while (resumed.step()) {}
  std::vector<Sample> joined = broken.samples();
  joined.insert(joined.end(), resumed.samples().begin(), resumed.samples().end());
  CHECK(same(joined, whole.samples()));

  // A thread that cancels at any time: what has been drawn by then is the beginning of the same answer.
  for (int round = 0; round < 5; ++round) {
    session.rewind(70);
    Generation racing = session.generate(options);
    std::thread racer([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
      session.cancel();
    });
    while (racing.step()) {}
    racer.join();
    CHECK(racing.samples().size() <= whole.samples().size());
    CHECK(same(racing.samples(), {whole.samples().begin(), whole.samples().begin() + static_cast<std::ptrdiff_t>(racing.samples().size())}));
    try {
      session.feed(Ids{1});  // takes a cancel that came too late
    } catch (const Cancelled&) {
    }
  }
}

TEST_CASE("errors leave a session as it was") {
  for (ModelConfig (*config_of)(Dtype) : {test::qwen3_moe_config, test::qwen3_next_config}) {
    const test::TemporaryFolder folder;
    ModelConfig config = config_of(Dtype::Q8_0);
    CAPTURE(config.family);
    config.context_length = 100;
    const std::string path = test::write_random_model(folder.file("model.gguf"), config, Dtype::Q8_0);
    poison(path, "token_embd.weight", 699);
    const Model model = Model::load(path, {.threads = 2, .chunk = 16});
    std::mt19937 random(4);
    const Ids ids = test::random_ids(random, 50, 699);
    const std::vector<float> expected = fresh_logits(model, ids);
    const KvPool sizes(model.kv_shape());
    Session session(model, sizes.page_bytes() + sizes.state_bytes());  // one page: 64 tokens
    session.feed(ids);
    const auto check = [&](const auto& f, const std::string& part) {
      CHECK(contains(message_of(f), part));
      CHECK(session.length() == 50);
      CHECK(same_bits(session.logits(), expected));
    };
    check([&] { session.feed(Ids{1, 2, 700}); }, "outside the vocabulary of 700");
    check([&] { session.feed(Ids{-1}); }, "token id -1");
    check([&] { session.feed(Ids(51, 1)); }, "context is 100");
    check([&] { session.feed(Ids(20, 1)); }, "budget");
    check([&] { session.feed(Ids{3, 699, 4}); }, "finite");
    check([&] { session.feed("text"); }, "token ids");
    check([&] { session.rewind(51); }, "rewind");
    check([&] { session.generate({.top_p = 2.0f}); }, "top_p");
    check([&] { session.feed(Ids(5, 1), [](std::int64_t, std::int64_t) { throw Cancelled("by the caller"); }); }, "by the caller");
    Session empty(model);
    CHECK_THROWS_AS(empty.generate(), ArgumentError);
    CHECK_THROWS_AS(empty.next({}, 0), ArgumentError);

    // The context is a limit for answers too. (In the poisoned model a draw of the poisoned token would end them.)
    const Model healthy = Model::load(test::write_random_model(folder.file("healthy.gguf"), config, Dtype::Q8_0), {.threads = 2});
    Session full(healthy);
    full.feed(ids);
    Generation generation = full.generate({.max_tokens = 1000});
    while (generation.step()) {}
    CHECK(generation.samples().size() == 50);
    CHECK(generation.finish_reason() == FinishReason::length);
    CHECK(contains(message_of([&] { full.next({}, 50); }), "100 tokens, all of the model's context"));
    full.rewind(99);
    CHECK(contains(message_of([&] { full.next({.temperature = -1.0f}, 50); }), "temperature"));
    CHECK(full.length() == 99);
    full.next({}, 50);
    CHECK(full.length() == 100);
  }
}

TEST_CASE("a session of a model with recurrent layers goes back without running more than what follows the nearest checkpoint") {
  const test::TemporaryFolder folder;
  const Model model = Model::load(test::write_random_model(folder.file("model.gguf"), test::qwen3_5_moe_config(Dtype::Q8_0), Dtype::Q8_0), {.threads = 2, .chunk = 50});
  const KvPool sizes(model.kv_shape());
  REQUIRE(sizes.state_bytes() > 0);
  std::mt19937 random(21);
  const Ids prompt = test::random_ids(random, 100, 700), turn = test::random_ids(random, 70, 700);
  const GenerateOptions options{.temperature = 1.0f, .seed = 5, .max_tokens = 20, .ignore_eos = true};
  const auto answer = [&](Session& session) {
    Generation generation = session.generate(options);
    while (generation.step()) {}
    return generation.ids();
  };
  const auto run_again = [](Session& session) {  // tokens
    std::int64_t tokens = 0;
    session.feed(Ids{}, [&](std::int64_t, std::int64_t total) { tokens = total; });
    return tokens;
  };
  Session session(model);
  session.feed(prompt);
  const Ids first = answer(session);
  session.rewind(100);  // the end of the feed
  CHECK(run_again(session) == 0);
  CHECK(answer(session) == first);
  session.rewind(110);
  CHECK(run_again(session) == 10);
  session.rewind(40);  // before every checkpoint
  CHECK(run_again(session) == 40);
  session.rewind(0);
  session.feed(prompt);
  answer(session);
  const std::int64_t before = session.length();
  session.feed(turn);
  const Ids second = answer(session);
  session.rewind(before);  // where the feed began
  CHECK(run_again(session) == 0);
  session.feed(turn);
  CHECK(answer(session) == second);
  CHECK(session.kv_bytes() == 6 * sizes.page_bytes() + 3 * sizes.state_bytes());  // 210 tokens, and a copy for each checkpoint

  // A chat whose template takes thinking out of what was said goes back to before the end of each turn: only that turn is run again.
  Session chat(model);
  chat.feed(prompt);
  for (int round = 0; round < 3; ++round) {
    answer(chat);
    const std::int64_t begin = 98 + 68 * round;
    chat.rewind(begin);
    if (round > 0) CHECK(run_again(chat) == 68);
    chat.feed(turn);
    CHECK(same_bits(chat.logits(), fresh_logits(model, chat.ids())));
  }
  // Forks after a rewind share what the checkpoint has.
  Session trunk(model);
  trunk.feed(prompt);
  trunk.feed(turn);
  trunk.rewind(105);
  const std::size_t alone = trunk.kv_bytes();
  Session left = trunk.fork(1), right = trunk.fork(2);
  CHECK(trunk.kv_bytes() - alone <= sizes.page_bytes());
  for (Session* each : {&left, &right}) {
    CHECK(run_again(*each) == 5);
    CHECK(same_bits(each->logits(), fresh_logits(model, each->ids())));
  }
  // Progress tells of all that is run, and may stop it.
  std::int64_t told = 0;
  trunk.rewind(90);
  trunk.feed(turn, [&](std::int64_t, std::int64_t total) { told = total; });
  CHECK(told == 160);
  trunk.rewind(90);
  CHECK(run_again(trunk) == 0);
  // Short feeds are remembered when together they are long.
  Session pieces(model);
  pieces.feed(prompt);
  for (int i = 0; i < 10; ++i) pieces.feed(std::span(turn).first(7));
  pieces.rewind(168);
  CHECK(run_again(pieces) <= 64);

  // Checkpoints give way: what fits one state is enough for everything.
  Session tight(model, 4 * sizes.page_bytes() + sizes.state_bytes());
  tight.feed(prompt);
  CHECK(answer(tight) == first);
  tight.feed(turn);
  CHECK(answer(tight) == second);
  tight.rewind(100);
  CHECK(run_again(tight) == 100);
  CHECK(answer(tight) == first);
}

TEST_CASE("a batch draws for each sequence what a session alone draws: groups, forks, leaders that leave") {
  for (const std::int64_t chunk : {5, 64}) {
    const Model model = Model::load(test::embedded_model(), {.threads = 2, .chunk = chunk});
    const GenerateOptions options{.temperature = 1.2f, .seed = 9, .max_tokens = 20};
    const Ids prompt = model.chat({{"user", "Sort these numbers: 4, 2, 9"}}), other = model.chat({{"user", "What is 12*7-5?"}});
    REQUIRE(prompt.size() > 6);
    Batch batch(model);
    const auto group = batch.add_group(prompt, 5, options, 10);
    const Batch::Id single = batch.add(other, options, 99);
    batch.remove(group[0]);  // before its prompt ran
    batch.step();
    batch.remove(group[1]);  // with a small chunk, in the middle of its prompt
    std::optional<Batch::Id> same_stream, other_stream, early = batch.fork(group[3], 50);
    std::size_t forked_at = 0;
    while (batch.active() > 0) {
      batch.step();
      if (!same_stream && batch.at(group[2]).samples.size() >= 4 && batch.at(group[2]).finish == FinishReason::none) {
        forked_at = batch.at(group[2]).samples.size();
        same_stream = batch.fork(group[2], 12);
        other_stream = batch.fork(group[2], 77);
      }
    }
    CHECK(batch.step().empty());
    CHECK(batch.kv_bytes() == 0);
    CHECK(batch.size() == 7);
    for (std::size_t i = 2; i < 5; ++i) {
      CHECK(same(batch.at(group[i]).samples, samples_alone(model, prompt, options, 10 + i)));
      CHECK(batch.at(group[i]).finish != FinishReason::none);
      CHECK(batch.at(group[i]).prompt().size() == prompt.size());
      CHECK(batch.at(group[i]).output().size() == batch.at(group[i]).samples.size());
    }
    CHECK(same(batch.at(single).samples, samples_alone(model, other, options, 99)));
    REQUIRE(same_stream.has_value());
    CHECK(same(batch.at(*same_stream).samples, batch.at(group[2]).samples));
    // The other fork: a session that draws the first tokens with one stream, then goes on with the other.
    Session session(model);
    session.feed(prompt);
    const Ids& ids = batch.at(group[2]).ids;
    session.feed(std::span(ids).subspan(prompt.size(), forked_at));
    Session own = session.fork(77);
    std::vector<Sample> drawn(batch.at(group[2]).samples.begin(), batch.at(group[2]).samples.begin() + static_cast<std::ptrdiff_t>(forked_at));
    while (static_cast<std::int64_t>(drawn.size()) < options.max_tokens && !model.is_end(drawn.back().id))
      drawn.push_back(own.next(options, static_cast<std::int64_t>(prompt.size())));
    CHECK(same(batch.at(*other_stream).samples, drawn));
    if (chunk == 5) CHECK(same(batch.at(*early).samples, samples_alone(model, prompt, options, 50)));
  }
}

TEST_CASE("a group's prompt is stored once, and finished sequences give their pages and states back") {
  const test::TemporaryFolder folder;
  for (ModelConfig (*config)(Dtype) : {test::qwen3_moe_config, test::qwen3_next_config}) {
    const Model model = Model::load(test::write_random_model(folder.file("model.gguf"), config(Dtype::Q4_0), Dtype::Q4_0), {.threads = 1});
    const std::size_t page = KvPool(model.kv_shape()).page_bytes(), state = KvPool(model.kv_shape()).state_bytes();
    std::mt19937 random(3);
    Batch batch(model, {.kv_budget_bytes = (3 + 8) * page + 8 * state});
    batch.add_group(test::random_ids(random, 200, 700), 8, {.max_tokens = 3, .ignore_eos = true});
    batch.step();
    CHECK(batch.kv_bytes() == 4 * page + state);  // 200 tokens
    batch.step();
    CHECK(batch.kv_bytes() == (3 + 8) * page + 8 * state);  // the last page is written by each, and the state
    while (batch.active() > 0) batch.step();
    CHECK(batch.kv_bytes() == 0);
  }
}

TEST_CASE("a batch over its memory budget says so, changes nothing, and goes on after a sequence is removed") {
  const test::TemporaryFolder folder;
  const Model model = Model::load(test::write_random_model(folder.file("model.gguf"), test::deepseek_v3_config(Dtype::Q4_1), Dtype::Q4_1), {.threads = 1, .chunk = 40});
  const std::size_t page = KvPool(model.kv_shape()).page_bytes();
  std::mt19937 random(3);
  std::vector<Ids> prompts;
  for (int i = 0; i < 3; ++i) prompts.push_back(test::random_ids(random, 50, 700));
  const GenerateOptions options{.temperature = 1.0f, .seed = 4, .max_tokens = 60};
  Batch batch(model, {.kv_budget_bytes = 4 * page});
  std::vector<Batch::Id> ids;
  for (std::size_t i = 0; i < 3; ++i) ids.push_back(batch.add(prompts[i], options, i));
  std::string message;
  while (message.empty()) {
    try {
      batch.step();
      REQUIRE(batch.active() > 0);
    } catch (const MemoryError& error) {
      message = error.what();
    }
  }
  CHECK(contains(message, "budget of " + std::to_string(4 * page)));
  const std::size_t used = batch.kv_bytes();
  CHECK(used <= 4 * page);
  std::vector<std::size_t> before;
  for (const Batch::Id id : ids) before.push_back(batch.at(id).samples.size());
  CHECK_THROWS_AS(batch.step(), MemoryError);
  CHECK(batch.kv_bytes() == used);
  for (std::size_t i = 0; i < 3; ++i) CHECK(batch.at(ids[i]).samples.size() == before[i]);
  batch.remove(ids[1]);
  while (batch.active() > 0) {
    batch.step();
    CHECK(batch.kv_bytes() <= 4 * page);
  }
  for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) CHECK(same(batch.at(ids[i]).samples, samples_alone(model, prompts[i], options, i)));
}

TEST_CASE("errors of a batch: what is wrong is said, and the other sequences go on") {
  const test::TemporaryFolder folder;
  ModelConfig config = test::qwen2_moe_config(Dtype::Q8_0);
  config.context_length = 64;
  const std::string path = test::write_random_model(folder.file("model.gguf"), config, Dtype::Q8_0);
  poison(path, "token_embd.weight", 699);
  const Model model = Model::load(path, {.threads = 2});
  Batch batch(model);
  const GenerateOptions options{.seed = 2, .max_tokens = 10};
  CHECK_THROWS_AS(batch.add({}, options), ArgumentError);
  CHECK_THROWS_AS(batch.add(Ids{700}, options), ArgumentError);
  CHECK_THROWS_AS(batch.add(Ids(65, 1), options), ArgumentError);
  CHECK_THROWS_AS(batch.add(Ids{1}, {.stop = {"x"}}), ArgumentError);
  CHECK_THROWS_AS(batch.add(Ids{1}, {.top_p = 0.0f}), ArgumentError);
  CHECK_THROWS_AS(batch.add_group(Ids{1}, 0, options), ArgumentError);
  CHECK_THROWS_AS(batch.remove(5), ArgumentError);
  CHECK_THROWS_AS(batch.fork(5, 0), ArgumentError);
  CHECK(batch.size() == 0);

  const Batch::Id good = batch.add(Ids{1, 2, 3}, options);
  batch.step();
  const Batch::Id bad = batch.add(Ids{4, 699}, options);
  CHECK_THROWS_AS(batch.step(), Error);
  CHECK_THROWS_AS(batch.step(), Error);
  batch.remove(bad);
  const Batch::Id silent = batch.add(Ids{9}, {.max_tokens = 0}), full = batch.add(Ids(64, 1), options);
  while (batch.active() > 0) batch.step();
  const std::vector<Sample> alone = samples_alone(model, {1, 2, 3}, options, 0);
  CHECK(same(batch.at(good).samples, alone));
  for (const Batch::Id id : {silent, full}) {
    CHECK(batch.at(id).samples.empty());
    CHECK(batch.at(id).finish == FinishReason::length);
  }

  // Logits that are not finite: an error each time, not a token.
  poison(path, "output_norm.weight", 0);
  const Model broken = Model::load(path, {.threads = 1});
  Batch other(broken);
  const Batch::Id id = other.add(Ids{1, 2}, options, 0);
  for (int i = 0; i < 3; ++i) {
    const std::string message = message_of([&] { other.step(); });
    CHECK(contains(message, "sequence " + std::to_string(id)));
    CHECK(contains(message, "NaN"));
  }
  CHECK(other.at(id).samples.empty());
  other.remove(id);
  CHECK(other.step().empty());
}

TEST_CASE("child: load a model" * doctest::skip()) {
  if (test::child_argument().empty()) return;
  const Model model = Model::load(test::child_argument(), {.threads = 2});
  const std::int64_t peak = test::process_bytes("VmHWM");
  Session session(model);
  session.feed(Ids{1, 2, 3});
  std::cout << "peak=" << peak << " resident=" << test::process_bytes("VmRSS") << " packed=" << model.decoder().bytes() << "\n";
}

TEST_CASE("loading a model takes at most its file, 10% and 100 MB of resident memory") {
  const test::TemporaryFolder folder;
  ModelConfig config = test::qwen3_moe_config(Dtype::Q4_K);
  config.hidden_size = config.moe.hidden_size = 1024;
  config.moe.moe_intermediate_size = config.intermediate_size = 768;
  config.moe.router.n_experts = 16;
  const std::vector<Dtype> types = {Dtype::Q4_K, Dtype::Q6_K, Dtype::F32, Dtype::Q8_0, Dtype::BF16, Dtype::Q4_0};
  config.n_layers = static_cast<std::int64_t>(types.size());
  config.is_moe_layer.assign(types.size(), true);
  const std::string path = folder.file("model.gguf");
  test::RandomModelWriter(path, config, types, 1).write();
  const auto size = static_cast<std::int64_t>(std::filesystem::file_size(path));
  const std::string output = test::run_child("child: load a model", path);
  const std::int64_t peak = test::number_in(output, "peak"), packed = test::number_in(output, "packed");
  MESSAGE("file " << size / 1000000 << " MB, packed " << packed / 1000000 << " MB, resident at most " << peak / 1000000 << " MB while loading");
  CHECK(size > 300000000);
  CHECK(peak <= size + size / 10 + 100000000);
  CHECK(packed <= size + size * 3 / 100);
}
