// GRPO: logprobs of rollouts bit for bit, replayed routes, goldens of hidden rows and of advantages, bounds of memory, errors.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/batch.hpp>
#include <moxie/generate/session.hpp>
#include <moxie/grpo/advantages.hpp>
#include <moxie/grpo/logprobs.hpp>

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

using test::message_of;
using test::contains;
using test::same_bits;

std::vector<double> as_doubles(const test::MiniTensor& tensor) { return tensor.as<double>(); }

}  // namespace

TEST_CASE("scores are the bits that sampling reported, at every temperature and with every truncation and penalty") {
  const test::TemporaryFolder folder;
  std::vector<std::string> paths = {test::embedded_model()};
  paths.push_back(test::write_random_model(folder.file("gqa.gguf"), test::qwen3_moe_config(Dtype::Q4_K), Dtype::Q4_K));
  paths.push_back(test::write_random_model(folder.file("mla.gguf"), test::deepseek_v2_config(Dtype::F16), Dtype::F16));
  std::mt19937 random(7);
  for (const std::string& path : paths)
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      CAPTURE(path);
      const Model model = Model::load(path, {.threads = 2, .activations = activations, .chunk = 50});
      for (const float temperature : {0.0f, 0.3f, 0.7f, 1.0f, 1.7f}) {
        CAPTURE(temperature);
        GenerateOptions options{.temperature = temperature, .seed = random(), .max_tokens = 25};
        options.top_k = temperature > 1.0f ? 20 : 0;
        options.top_p = temperature == 0.7f ? 0.9f : 1.0f;
        options.presence_penalty = temperature == 1.0f ? 0.4f : 0.0f;
        Batch rollout(model);
        for (int group = 0; group < 2; ++group)
          rollout.add_group(test::random_ids(random, 5 + 30 * group, model.config().vocab_size), 4, options, static_cast<std::uint64_t>(100 * group));
        while (rollout.active() > 0) rollout.step();
        std::vector<Ids> sequences;
        for (Batch::Id id = 0; id < 8; ++id) sequences.push_back(rollout.at(id).ids);
        const auto scores = grpo::logprobs(model, sequences, {.temperature = options.logprob_temperature()});
        for (Batch::Id id = 0; id < 8; ++id) {
          const Batch::Sequence& sequence = rollout.at(id);
          const grpo::SequenceLogprobs& score = scores[static_cast<std::size_t>(id)];
          REQUIRE(score.logprobs.size() + 1 == sequence.ids.size());
          REQUIRE(score.entropy.size() == sequence.ids.size());
          std::vector<float> reported, entropies;
          for (const Sample& sample : sequence.samples) {
            reported.push_back(sample.logprob);
            entropies.push_back(sample.entropy);
          }
          const auto first = static_cast<std::ptrdiff_t>(sequence.prompt_length) - 1;
          CHECK(same_bits(reported, {score.logprobs.begin() + first, score.logprobs.end()}));
          CHECK(same_bits(entropies, {score.entropy.begin() + first, score.entropy.end() - 1}));
        }
      }
    }
}

TEST_CASE("logprobs, entropies, log-sum-exp and the most probable tokens are those of the logits") {
  const test::TemporaryFolder folder;
  std::vector<Model> models = {Model::load(test::embedded_model(), {.threads = 2})};
  models.push_back(Model::load(test::write_random_model(folder.file("gqa.gguf"), test::qwen2_moe_config(Dtype::Q5_0), Dtype::Q5_0), {.threads = 2}));
  models.push_back(Model::load(test::write_random_model(folder.file("sinks.gguf"), test::gpt_oss_config(Dtype::Q4_0), Dtype::Q4_0), {.threads = 2}));
  std::mt19937 random(3);
  for (const Model& model : models) {
    const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
    const Ids ids = test::random_ids(random, 60, model.config().vocab_size);
    const std::vector<float> logits = test::run(model, ids).logits;
    for (const std::int64_t top_n : {1, 7, 1000}) {
      const float temperature = 0.6f;
      const auto score = grpo::logprobs(model, std::vector<Ids>{ids}, {.temperature = temperature, .top_n = top_n}).front();
      for (std::size_t t = 0; t < ids.size(); ++t) {
        const float* z = logits.data() + t * vocab;
        double sum = 0.0, entropy = 0.0;
        const double most = static_cast<double>(*std::max_element(z, z + vocab)) / 0.6f;
        for (std::size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(z[i]) / static_cast<double>(temperature) - most);
        const double lse = most + std::log(sum);
        const auto logprob = [&](std::size_t i) { return static_cast<double>(z[i]) / static_cast<double>(temperature) - lse; };
        for (std::size_t i = 0; i < vocab; ++i) entropy -= std::exp(logprob(i)) * logprob(i);
        CHECK(std::abs(static_cast<double>(score.lse[t]) - lse) < 1e-5 * std::max(1.0, std::abs(lse)));
        CHECK(std::abs(static_cast<double>(score.entropy[t]) - entropy) < 1e-5 * std::max(1.0, entropy));
        if (t + 1 < ids.size())
          CHECK(std::abs(static_cast<double>(score.logprobs[t]) - logprob(static_cast<std::size_t>(ids[t + 1]))) < 1e-5 * std::max(1.0, -logprob(static_cast<std::size_t>(ids[t + 1]))));
        const auto& top = score.top[t];
        REQUIRE(top.size() == std::min(vocab, static_cast<std::size_t>(top_n)));
        std::vector<std::int32_t> order(vocab);
        for (std::size_t i = 0; i < vocab; ++i) order[i] = static_cast<std::int32_t>(i);
        std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return z[a] > z[b]; });
        bool right = true;
        for (std::size_t i = 0; i < top.size(); ++i) {
          right = right && top[i].id == order[i] && std::abs(static_cast<double>(top[i].logprob) - logprob(static_cast<std::size_t>(order[i]))) < 1e-4;
          if (t + 1 < ids.size() && top[i].id == ids[t + 1]) right = right && top[i].logprob == score.logprobs[t];
        }
        CHECK(right);
      }
    }
  }
}

TEST_CASE("a replay of a rollout's own routes changes no bit; routes that do not fit are errors") {
  const test::TemporaryFolder folder;
  const Model model = Model::load(test::embedded_model(), {.threads = 2, .chunk = 33});
  std::mt19937 random(5);
  std::vector<Ids> sequences;
  for (const std::int64_t n : {70, 1, 40}) sequences.push_back(test::random_ids(random, n, model.config().vocab_size));
  const auto plain = grpo::logprobs(model, sequences, {.record_routes = true});
  std::vector<RoutingTrace> traces;
  for (const auto& score : plain) traces.push_back(score.routes);
  const auto replayed = grpo::logprobs(model, sequences, {.batch = 1, .record_routes = true, .replay = traces});
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    CHECK(same_bits(replayed[s].logprobs, plain[s].logprobs));
    CHECK(same_bits(replayed[s].entropy, plain[s].entropy));
    for (Index l = 0; l < traces[s].n_layers(); ++l) {
      CHECK(replayed[s].routes.ids(l) == traces[s].ids(l));
      CHECK(replayed[s].routes.weights(l) == traces[s].weights(l));
    }
  }
  // The routes that a batch recorded fit the tokens that it ran; the last token's are missing.
  Batch batch(model, {.record_routes = true});
  const Batch::Id id = batch.add(sequences[0], {.max_tokens = 9, .ignore_eos = true});
  while (batch.active() > 0) batch.step();
  const Ids ran(batch.at(id).ids.begin(), batch.at(id).ids.end() - 1);
  const std::vector<RoutingTrace> rolled = {batch.at(id).routes};
  CHECK(same_bits(grpo::logprobs(model, std::vector<Ids>{ran}, {.replay = rolled}).front().logprobs, grpo::logprobs(model, std::vector<Ids>{ran}).front().logprobs));

  // Other experts give other numbers.
  std::vector<RoutingTrace> changed = traces;
  for (Index t = 0; t < changed[0].tokens(); ++t)
    for (std::int32_t e = 0; e < changed[0].top_k(); ++e) changed[0].ids(0)(t, e) = e;
  const auto other = grpo::logprobs(model, sequences, {.record_routes = true, .replay = changed});
  CHECK_FALSE(same_bits(other[0].logprobs, plain[0].logprobs));
  CHECK(same_bits(other[2].logprobs, plain[2].logprobs));
  CHECK(other[0].routes.ids(0) == changed[0].ids(0));

  const auto replay_message = [&](const std::vector<RoutingTrace>& replay) {
    return message_of([&] { grpo::logprobs(model, sequences, {.replay = replay}); });
  };
  CHECK(contains(replay_message({traces[0]}), "1 routing traces were given for 3 sequences"));
  CHECK(contains(replay_message({traces[2], traces[1], traces[0]}), "tokens"));
  std::vector<RoutingTrace> foreign = traces;
  foreign[1] = RoutingTrace(traces[0].n_layers() + 1, traces[0].n_experts(), traces[0].top_k());
  CHECK(contains(replay_message(foreign), "MoE layers"));
  foreign[1] = RoutingTrace(traces[0].n_layers(), traces[0].n_experts() + 1, traces[0].top_k());
  CHECK(contains(replay_message(foreign), "experts"));
  for (const std::int32_t bad : {-1, 1000}) {
    changed = traces;
    changed[2].ids(1)(3, 0) = bad;
    CHECK_THROWS_AS(grpo::logprobs(model, sequences, {.replay = changed}), ArgumentError);
  }
}

TEST_CASE("scoring says what is wrong; empty sequences, single tokens, budgets and progress") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1, .chunk = 16});
  std::mt19937 random(5);
  const std::vector<Ids> sequences = {{}, {3}, test::random_ids(random, 100, 300), {}, test::random_ids(random, 20, 300)};
  const auto expected = grpo::logprobs(model, sequences);
  CHECK(expected.size() == 5);
  for (std::size_t s = 0; s < 5; ++s) {
    CHECK(expected[s].entropy.size() == sequences[s].size());
    CHECK(expected[s].logprobs.size() == (sequences[s].empty() ? 0 : sequences[s].size() - 1));
  }
  CHECK(grpo::logprobs(model, std::vector<Ids>{}).empty());
  const auto message = [&](const std::vector<Ids>& ids, const grpo::LogprobOptions& options) { return message_of([&] { grpo::logprobs(model, ids, options); }); };
  CHECK(contains(message({{1}, {1, 384}}, {}), "sequence 1: token id 384"));
  CHECK(contains(message({{-1}}, {}), "sequence 0: token id -1"));
  CHECK(contains(message({{1}}, {.temperature = 0.0f}), "temperature"));
  CHECK(contains(message({{1}}, {.temperature = std::numeric_limits<float>::quiet_NaN()}), "temperature"));
  CHECK(contains(message({{1}}, {.top_n = -1}), "top_n"));
  CHECK(contains(message({{1}}, {.batch = 0}), "batch"));
  CHECK(contains(message({Ids(513, 1)}, {}), "context"));

  const std::size_t page = KvPool(model.kv_shape()).page_bytes();
  CHECK_THROWS_AS(grpo::logprobs(model, sequences, {.kv_budget_bytes = page}), MemoryError);  // 100 tokens need two pages
  const auto tight = grpo::logprobs(model, sequences, {.kv_budget_bytes = 2 * page});
  for (std::size_t s = 0; s < 5; ++s) CHECK(same_bits(tight[s].logprobs, expected[s].logprobs));

  std::vector<std::int64_t> steps;
  grpo::logprobs(model, sequences, {.progress = [&](std::int64_t done, std::int64_t total) {
                   CHECK(total == 121);
                   steps.push_back(done);
                 }});
  CHECK(steps.size() == 8);
  CHECK(std::is_sorted(steps.begin(), steps.end()));
  CHECK(steps.back() == 121);
  CHECK_THROWS_AS(grpo::logprobs(model, sequences, {.progress = [](std::int64_t, std::int64_t) { throw Cancelled("stop"); }}), Cancelled);
}

TEST_CASE("hidden rows through an output matrix give the reference's logprobs, entropies and top tokens") {
  const auto index = test::shared_path("grpo/logprobs.json");
  if (!index) return;
  double worst = 0.0;
  int cases = 0;
  for (const nlohmann::json& file : nlohmann::json::parse(test::read_text(*index))) {
    const test::MiniTensors tensors = test::read_safetensors(*test::shared_path("grpo/" + file.at("file").get<std::string>()));
    const Index d = file.at("D"), vocab = file.at("V"), rows = file.at("T");
    const test::MiniTensor& weight = tensors.at("weight");
    RowMatrix w(vocab, d);
    const Dtype dtype = weight.dtype == "BF16" ? Dtype::BF16 : Dtype::F32;
    decode_rows(dtype, weight.data.data(), w);
    const auto hidden = tensors.at("hidden").as<float>();
    Ids targets = tensors.at("labels").as<std::int32_t>();
    for (std::int32_t& target : targets) target = target < 0 ? -1 : target;
    for (const nlohmann::json& c : file.at("cases")) {
      if (!c.at("softcap").is_null() || c.at("bias").get<bool>() || c.at("lora").get<bool>() || c.at("logit_scale").get<double>() != 1.0) continue;
      const auto id = c.at("id").get<std::string>();
      CAPTURE(id);
      const auto logprobs = as_doubles(tensors.at(id + ".logprobs")), entropy = as_doubles(tensors.at(id + ".entropy")), lse = as_doubles(tensors.at(id + ".logsumexp")),
                 top_logprobs = as_doubles(tensors.at(id + ".top_logprobs"));
      const Ids top_ids = tensors.at(id + ".top_ids").as<std::int32_t>();
      for (const Dtype stored : std::set{dtype, Dtype::F32}) {
        const Context context{&kernels::native_table(), Threads(2), Activations::f32};
        const Linear output = Linear::from_rows(context, stored, w);
        std::vector<PositionScore> scores(static_cast<std::size_t>(rows));
        LogprobScratch scratch;
        score_hidden(context, output, hidden.data(), targets, c.at("temperature").get<float>(), 20, scores, scratch);
        const auto check = [&](float got, double expected) {
          const double error = std::abs(static_cast<double>(got) - expected) / std::max(1.0, std::abs(expected));
          worst = std::max(worst, error);
          CHECK(error < 2e-5);
        };
        for (std::size_t t = 0; t < scores.size(); ++t) {
          if (targets[t] < 0) continue;
          check(scores[t].logprob, logprobs[t]);
          check(scores[t].entropy, entropy[t]);
          check(scores[t].lse, lse[t]);
          REQUIRE(scores[t].top.size() == 20);
          for (std::size_t i = 0; i < 20; ++i) {
            check(scores[t].top[i].logprob, top_logprobs[t * 20 + i]);
            const double gap = std::min(i == 0 ? 1.0 : top_logprobs[t * 20 + i - 1] - top_logprobs[t * 20 + i],
                                        i == 19 ? 0.0 : top_logprobs[t * 20 + i] - top_logprobs[t * 20 + i + 1]);
            if (gap > 1e-4) CHECK(scores[t].top[i].id == top_ids[t * 20 + i]);
          }
        }
        ++cases;
      }
    }
  }
  MESSAGE(cases << " cases, within " << worst);
  CHECK(cases >= 8);
}

TEST_CASE("a target outside the vocabulary is an error") {
  const Context context{&kernels::native_table(), Threads(1), Activations::f32};
  const Linear output = Linear::from_rows(context, Dtype::F32, RowMatrix::Ones(10, 4));
  const std::vector<float> hidden(8, 1.0f);
  std::vector<PositionScore> scores(2);
  LogprobScratch scratch;
  CHECK_THROWS_AS(score_hidden(context, output, hidden.data(), Ids{3, 10}, 1.0f, 0, scores, scratch), ArgumentError);
  CHECK_THROWS_AS(score_hidden(context, output, hidden.data(), Ids{-2, 1}, 1.0f, 0, scores, scratch), ArgumentError);
  score_hidden(context, output, hidden.data(), Ids{3, -1}, 1.0f, 0, scores, scratch);
  CHECK(scores[0].logprob == doctest::Approx(-std::log(10.0)));
  CHECK(scores[1].entropy == doctest::Approx(std::log(10.0)));
}

TEST_CASE("weights of the vocabulary that are no numbers give log-probabilities that are none") {
  const Context context{&kernels::native_table(), Threads(1), Activations::f32};
  RowMatrix w = RowMatrix::Ones(1024, 4);
  w.middleRows(960, 64).setConstant(std::nanf(""));
  const Linear output = Linear::from_rows(context, Dtype::F32, w);
  const std::vector<float> hidden(4, 1.0f);
  std::vector<PositionScore> scores(1);
  LogprobScratch scratch;
  score_hidden(context, output, hidden.data(), Ids{3}, 1.0f, 3, scores, scratch);
  CHECK(std::isnan(scores[0].logprob));
  CHECK(std::isnan(scores[0].lse));
  CHECK(std::isnan(scores[0].entropy));
  REQUIRE(scores[0].top.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(scores[0].top[i].id == 960 + static_cast<std::int32_t>(i));
}

TEST_CASE("group advantages are TRL's") {
  const auto index = test::shared_path("grpo/advantages.json");
  if (!index) return;
  const test::MiniTensors tensors = test::read_safetensors(*test::shared_path("grpo/advantages.safetensors"));
  int cases = 0;
  for (const nlohmann::json& c : nlohmann::json::parse(test::read_text(*index))) {
    if (c.at("scale_rewards") != "group" || c.at("multi_objective_aggregation") != "sum_then_normalize") continue;
    CAPTURE(c.at("id").get<std::string>());
    const auto table = tensors.at(c.at("rewards")).as<float>();
    const auto weights = c.at("weights").get<std::vector<float>>();
    const Index group_size = c.at("group_size"), rows = static_cast<Index>(table.size() / weights.size());
    if (group_size < 2) continue;
    Eigen::ArrayXd rewards = Eigen::ArrayXd::Zero(rows);
    bool scorable = true;  // rows without any reward are left out by the trainer
    for (Index r = 0; r < rows; ++r) {
      bool any = false;
      for (std::size_t k = 0; k < weights.size(); ++k) {
        const float reward = table[static_cast<std::size_t>(r) * weights.size() + k];
        if (std::isnan(reward)) continue;
        any = true;
        rewards[r] += static_cast<double>(weights[k]) * static_cast<double>(reward);
      }
      scorable = scorable && any;
    }
    if (!scorable) continue;
    const Eigen::ArrayXd advantages = grpo::group_advantages(rewards, group_size);
    const auto expected = as_doubles(tensors.at(c.at("advantages")));
    for (Index r = 0; r < rows; ++r) CHECK(std::abs(advantages[r] - expected[static_cast<std::size_t>(r)]) < 1e-9 * std::max(1.0, std::abs(expected[static_cast<std::size_t>(r)])));
    ++cases;
  }
  MESSAGE(cases << " cases");
  CHECK(cases >= 20);
}

TEST_CASE("group advantages by hand, and groups that are not whole") {
  Eigen::ArrayXd rewards(6);
  rewards << 1, 0, 1, 5, 5, 5;
  const Eigen::ArrayXd advantages = grpo::group_advantages(rewards, 3);
  const double deviation = std::sqrt(1.0 / 3.0);
  CHECK(advantages[0] == doctest::Approx((1.0 - 2.0 / 3.0) / (deviation + 1e-4)));
  CHECK(advantages[1] == doctest::Approx((0.0 - 2.0 / 3.0) / (deviation + 1e-4)));
  CHECK((advantages.tail(3) == 0.0).all());
  CHECK_THROWS_AS(grpo::group_advantages(rewards, 4), ArgumentError);
  CHECK_THROWS_AS(grpo::group_advantages(rewards, 1), ArgumentError);
  CHECK_THROWS_AS(grpo::group_advantages(rewards, 0), ArgumentError);
}

TEST_CASE("child: score long sequences" * doctest::skip()) {
  if (test::child_argument().empty()) return;
  const Model model = Model::load(test::child_argument(), {.threads = 2});
  std::mt19937 random(1);
  const std::vector<Ids> sequences = {test::random_ids(random, 2048, model.config().vocab_size)};
  // Anonymous memory: the embedding's rows are read from the mapped file. All buffers of scoring are there when progress is told.
  const auto extra = [&](std::int64_t top_n) {
    const std::int64_t before = test::process_bytes("RssAnon");
    std::int64_t most = 0;
    grpo::logprobs(model, sequences, {.top_n = top_n, .progress = [&](std::int64_t, std::int64_t) { most = std::max(most, test::process_bytes("RssAnon")); }});
    return most - before;
  };
  const std::int64_t plain = extra(0), with_top = extra(20);
  const KvPool pool(model.kv_shape());
  std::cout << "plain=" << plain << " top=" << with_top << " kv=" << 2048 / kv_page * static_cast<std::int64_t>(pool.page_bytes()) << "\n";
}

TEST_CASE("scoring 2048 tokens over a vocabulary of 150,000 takes at most 64 MB beside the model") {
  const test::TemporaryFolder folder;
  ModelConfig config = test::qwen3_moe_config(Dtype::Q8_0);
  config.vocab_size = 150000;
  config.context_length = 4096;
  const std::string output = test::run_child("child: score long sequences", test::write_random_model(folder.file("model.gguf"), config, Dtype::Q8_0));
  const std::int64_t plain = test::number_in(output, "plain"), top = test::number_in(output, "top"), kv = test::number_in(output, "kv");
  MESSAGE("beside the model: " << plain / 1000000 << " MB, with the 20 most probable tokens " << top / 1000000 << " MB, of which KV pages " << kv / 1000000
                               << " MB; the logits would take " << 2048ll * 150000 * 4 / 1000000 << " MB");
  CHECK(plain <= 64 << 20);
  CHECK(top <= 64 << 20);
}
