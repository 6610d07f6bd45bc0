// Training: Adam against formulas and PyTorch's numbers, rewards, the state on the disk, and a run that is killed and goes on.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <stack>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/model.hpp>
#include <moxie/grpo/adam.hpp>
#include <moxie/grpo/adapter_trainer.hpp>
#include <moxie/grpo/logprobs.hpp>
#include <moxie/grpo/training_state.hpp>

#include "../examples/grpo/curve.hpp"
#include "../examples/grpo/questions.hpp"
#include "../examples/grpo/run.hpp"
#include "checks.hpp"
#include "child_process.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "shared.hpp"

using namespace moxie;
using namespace moxie::grpo;

namespace {

std::string example(const std::string& name) { return std::string(MOXIE_SOURCE_DIR) + "/examples/" + name; }
const Model& tiny_r1() {
  static const Model model = Model::load(example("models/tiny-r1.gguf"), {.threads = 2});
  return model;
}

class Folder {
 public:
  Folder() : path_((std::filesystem::temp_directory_path() / "moxie_training_XXXXXX").string()) {
    if (!::mkdtemp(path_.data())) throw std::runtime_error("cannot create a folder");
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

using test::message_of;
using test::contains;
using test::same_bits;

/// A gradient that changes from step to step.
float gradient_at(int step, Index i) {
  return std::sin(static_cast<float>(step) * 1.3f + static_cast<float>(i) * 0.7f) * (i % 2 == 0 ? 1.0f : 0.01f);
}

/// Elements must be nested and closed; returns how many of `element` there are, -1 for broken XML.
int count_elements(const std::string& xml, const std::string& element) {
  std::stack<std::string> open;
  int count = 0;
  for (std::size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return -1;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag[0] == '/') {
      if (open.empty() || open.top() != tag.substr(1)) return -1;
      open.pop();
      continue;
    }
    if (name == element) ++count;
    if (tag.back() != '/') open.push(name);
  }
  return open.empty() ? count : -1;
}

training::RunOptions short_run() {
  training::RunOptions options;
  options.steps = 4;
  options.prompts = 4;
  options.group = 4;
  options.rank = 4;
  options.eval_samples = 1;
  options.checkpoint_every = 1;
  return options;
}
std::vector<training::Question> questions(const char* name, std::size_t n) {
  auto all = training::read_questions(example(std::string("data/") + name));
  all.resize(n);
  return all;
}

}  // namespace

TEST_CASE("Adam follows the formulas of the paper, and AdamW's decay is decoupled") {
  for (const double decay : {0.0, 0.1}) {
    const AdamOptions options{.learning_rate = 0.05, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = decay};
    Adam adam(options);
    RowMatrix first(2, 3), second(1, 2);
    for (Index i = 0; i < 6; ++i) first.data()[i] = 0.1f * static_cast<float>(i + 1);
    second << -1.0f, 2.0f;
    std::vector<double> expected, m(8, 0.0), v(8, 0.0);
    for (Index i = 0; i < 8; ++i) expected.push_back(static_cast<double>(i < 6 ? first.data()[i] : second.data()[i - 6]));
    for (int step = 1; step <= 20; ++step) {
      RowMatrix d_first(2, 3), d_second(1, 2);
      for (Index i = 0; i < 8; ++i) (i < 6 ? d_first.data()[i] : d_second.data()[i - 6]) = gradient_at(step, i);
      const double rate = step % 2 == 0 ? 0.5 : 1.0;
      adam.step({{first, d_first}, {second, d_second}}, rate);
      for (std::size_t i = 0; i < 8; ++i) {
        const auto g = static_cast<double>(gradient_at(step, static_cast<Index>(i)));
        m[i] = 0.8 * m[i] + 0.2 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        const double m_hat = m[i] / (1.0 - std::pow(0.8, step)), v_hat = v[i] / (1.0 - std::pow(0.95, step));
        expected[i] = expected[i] * (1.0 - 0.05 * rate * decay) - 0.05 * rate * m_hat / (std::sqrt(v_hat) + 1e-6);
      }
    }
    for (Index i = 0; i < 8; ++i)
      CHECK(static_cast<double>(i < 6 ? first.data()[i] : second.data()[i - 6]) ==
            doctest::Approx(expected[static_cast<std::size_t>(i)]).epsilon(2e-6));
    CHECK(adam.state().steps == 20);
  }
}

TEST_CASE("Adam's first step is the learning rate against the sign of the gradient, whatever its size") {
  Adam adam({.learning_rate = 0.01});
  RowMatrix x = RowMatrix::Zero(1, 3), gradient(1, 3);
  gradient << 1e3f, -1e-3f, 0.0f;
  adam.step({{x, gradient}});
  CHECK(x(0, 0) == doctest::Approx(-0.01));
  CHECK(x(0, 1) == doctest::Approx(0.01).epsilon(1e-4));
  CHECK(x(0, 2) == 0.0f);
}

TEST_CASE("Adam goes on from a saved state with the same bits") {
  const AdamOptions options{.learning_rate = 0.05, .weight_decay = 0.01};
  RowMatrix whole = RowMatrix::Constant(2, 3, 0.5f), resumed = whole, gradient(2, 3);
  Adam all(options);
  auto in_parts = std::make_unique<Adam>(options);
  const Folder folder;
  for (int step = 1; step <= 10; ++step) {
    for (Index i = 0; i < 6; ++i) gradient.data()[i] = gradient_at(step, i);
    all.step({{whole, gradient}});
    in_parts->step({{resumed, gradient}});
    OutputAdapter adapter = OutputAdapter::create(3, 4, 2, 5.0f, 9);
    adapter.a = resumed;
    adapter.scale = 1.0f / 3.0f;
    save_training_state(folder / "state", adapter, in_parts->state(), "step \"" + std::to_string(step) + "\"\n");
    TrainingState state = load_training_state(folder / "state");
    CHECK(state.progress == "step \"" + std::to_string(step) + "\"\n");
    CHECK(same_bits(state.adapter.b, adapter.b));
    CHECK(state.adapter.scale == adapter.scale);
    resumed = state.adapter.a;
    in_parts = std::make_unique<Adam>(options, state.optimizer);
  }
  CHECK(same_bits(whole, resumed));
}

TEST_CASE("Adam refuses what does not fit, and changes nothing then") {
  Adam adam;
  RowMatrix x = RowMatrix::Constant(2, 2, 1.0f);
  const RowMatrix good = RowMatrix::Constant(2, 2, 0.1f), wide = RowMatrix::Zero(2, 3);
  RowMatrix bad = good;
  bad(1, 1) = std::nanf("");
  CHECK(contains(message_of([&] { adam.step({{x, wide}}); }), "parameter 0 is [2, 2], its gradient [2, 3]"));
  CHECK(contains(message_of([&] { adam.step({{x, bad}}); }), "gradient of parameter 0 is not finite"));
  CHECK(x == RowMatrix::Constant(2, 2, 1.0f));
  CHECK(adam.state().steps == 0);
  adam.step({{x, good}});
  RowMatrix other = RowMatrix::Zero(3, 2), d_other = other;
  CHECK(contains(message_of([&] { adam.step({{x, good}, {other, d_other}}); }), "state is of 1 parameters, 2 were given"));
  CHECK(contains(message_of([&] { adam.step({{other, d_other}}); }), "its moments in Adam's state are [2, 2]"));
  CHECK(adam.state().steps == 1);
  CHECK(contains(message_of([] { Adam({.beta1 = 1.0}); }), "beta1 is 1,"));
}

TEST_CASE("gradients are clipped by their norm together") {
  RowMatrix a(1, 2), b(1, 1);
  a << 3.0f, 0.0f;
  b << 4.0f;
  CHECK(clip_by_global_norm({&a, &b}, 10.0) == 5.0);
  CHECK(a(0, 0) == 3.0f);
  CHECK(clip_by_global_norm({&a, &b}, 1.0) == 5.0);
  CHECK(a(0, 0) == doctest::Approx(0.6).epsilon(1e-6));
  CHECK(b(0, 0) == doctest::Approx(0.8).epsilon(1e-6));
}

TEST_CASE("a state that is none is an error that says so") {
  const Folder folder;
  SafetensorsWriter writer;
  const RowMatrix values = RowMatrix::Zero(2, 2);
  writer.add("adapter.a", values);
  CHECK(contains(message_of([&] { writer.add("adapter.a", values); }), "the name is taken"));
  writer.write(folder / "other");
  CHECK(contains(message_of([&] { load_training_state(folder / "other"); }), "metadata 'format': is missing"));
  std::ofstream(folder / "short") << "abc";
  CHECK(contains(message_of([&] { load_training_state(folder / "short"); }), "short"));
  CHECK(contains(message_of([&] { load_training_state(folder / "none"); }), "cannot open"));
}

TEST_CASE("rewards are those of the task description") {
  const auto of = [](const std::string& text, bool ended = true) { return training::reward(text, ended, "12"); };
  const auto check = [](training::Reward r, double accuracy, double format) {
    CHECK(r.accuracy == accuracy);
    CHECK(r.format == format);
  };
  check(of("<think>\n5+7=12\n</think>\n\n12"), 1, 1);
  check(of("<think>\n5+7=12\n</think>\n\n12", false), 1, 0);
  check(of("<think>\n5+7=12\n</think>\n\n13"), 0, 1);
  check(of("<think>\n5+7=12\n</think>12 \r\n"), 1, 0);
  check(of("<think>\n5+7=12</think>\n\n12"), 1, 0);
  check(of("<think>\n\n</think>\n\n12"), 1, 0);
  check(of("<think>5\n</think>\n\n12"), 1, 0);
  check(of("<think>\n5<think>\n</think>\n\n12"), 1, 0);
  check(of("<think>\n5\n</think>\n\n</think>12"), 0, 0);
  check(of("<think>\n5\n</think>\n\n \n"), 0, 0);
  check(of("5\n</think>\n\n12"), 1, 0);
  check(of("12"), 0, 0);
  check(of(""), 0, 0);
  CHECK(training::Reward{1.0, 1.0}.total() == 1.1);
}

TEST_CASE("the questions in the repo keep to their split, and the model answers many but not all of them") {
  CHECK(training::crc32("123456789") == 0xCBF43926u);  // the check value of CRC-32/ISO-HDLC
  for (const auto& [name, unseen] : {std::pair{"data/tiny-r1-train.jsonl", false}, std::pair{"data/tiny-r1-eval.jsonl", true}})
    for (const training::Question& question : training::read_questions(example(name)))
      CHECK((training::crc32(question.question) % 16 == 0) == unseen);
  const Folder folder;
  std::ofstream(folder / "bad") << "{\"question\": \"a\", \"answer\": \"b\"}\n\n{\"question\": 1}\n";
  CHECK(contains(message_of([&] { training::read_questions(folder / "bad"); }), "bad:3: must be {\"question\""));
}

TEST_CASE("each pass over the questions takes all of them, in an order of its own") {
  training::QuestionOrder order(10, 3), again(10, 3);
  std::vector<std::size_t> first, second;
  for (std::uint64_t i = 0; i < 10; ++i) first.push_back(order.at(i));
  for (std::uint64_t i = 10; i < 20; ++i) second.push_back(order.at(i));
  CHECK(first != second);
  CHECK(again.at(13) == second[3]);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  for (std::size_t i = 0; i < 10; ++i) CHECK((first[i] == i && second[i] == i));
}

TEST_CASE("the first step is on-policy to the bit: ratios of exactly 1, nothing clipped; later iterations move away from it") {
  const Model& model = tiny_r1();
  TrainerOptions options;
  options.temperature = 1.5f;
  options.num_iterations = 3;
  options.loss.epsilon = 0.01;
  options.adam.learning_rate = 0.05;
  AdapterTrainer trainer(model, OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 4, 4.0f, 1),
                         options);
  const auto asked = questions("tiny-r1-train.jsonl", 6);
  const auto prompts = training::prompts_of(model, asked);
  for (std::uint64_t round = 0; round < 2; ++round) {
    RolloutOptions rollout_options;
    rollout_options.generate = {.temperature = 1.5f, .seed = 5 + round, .max_tokens = 40};
    rollout_options.adapter = &trainer.adapter();
    const auto groups = rollout(model, prompts, rollout_options);
    TokenArray rewards(48, 1);
    for (Index i = 0; i < 48; ++i) {
      const auto p = static_cast<std::size_t>(i / 8), member = static_cast<std::size_t>(i % 8);
      rewards(i, 0) = training::reward_of(model, groups[p].completions[member], asked[p]).total();
    }
    const Metrics metrics = trainer.step(prompts, groups, rewards);
    CHECK(metrics.at("ratio/deviation") == 0.0);
    CHECK(metrics.at("clip_ratio/first") == 0.0);
    CHECK(metrics.at("clip_ratio/region_mean") > 0.0);
    CHECK((round == 0) == (metrics.at("kl") == 0.0));
    CHECK(metrics.at("entropy") > 0.0);
  }
  CHECK(trainer.optimizer_state().steps == 6);
}

TEST_CASE("200 random rollouts: scores are their logprobs bit for bit, the first step has ratios of exactly 1 and clips nothing") {
  const test::TemporaryFolder folder;
  const std::string paths[] = {example("models/tiny-r1.gguf"),  // latent attention
                               test::write_random_model(folder.file("gqa.gguf"), test::qwen3_moe_config(Dtype::Q4_K), Dtype::Q4_K),
                               test::write_random_model(folder.file("mla.gguf"), test::deepseek_v2_config(Dtype::F16), Dtype::F16),
                               test::write_random_model(folder.file("window.gguf"), test::mixtral_config(Dtype::Q5_0), Dtype::Q5_0)};
  constexpr int rollouts = 200, models = 10;
  std::mt19937 random(2026);
  const auto between = [&](std::int64_t low, std::int64_t high) { return std::uniform_int_distribution<std::int64_t>(low, high)(random); };
  const auto real = [&](float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); };
  const auto chance = [&](int percent) { return between(1, 100) <= percent; };
  const LossType losses[] = {LossType::grpo, LossType::bnpo, LossType::dr_grpo, LossType::dapo, LossType::luspo};
  Index tokens = 0;
  for (int m = 0; m < models; ++m) {
    const Model model = Model::load(paths[m % 4], {.threads = 2,
                                                   .activations = chance(50) ? Activations::int8 : Activations::f32,
                                                   .kv = std::array{KvType::f32, KvType::f16, KvType::bf16}[static_cast<std::size_t>(between(0, 2))],
                                                   .chunk = between(20, 200)});
    const Index hidden = model.config().hidden_size, vocab = model.config().vocab_size;
    for (int i = 0; i < rollouts / models; ++i) {
      CAPTURE(m);
      CAPTURE(i);
      GenerateOptions generate{.temperature = chance(10) ? 0.0f : real(0.1f, 2.5f), .seed = random(), .max_tokens = between(1, 16), .ignore_eos = chance(50)};
      if (chance(30)) generate.top_k = between(1, 60);
      if (chance(50)) generate.top_p = real(0.3f, 1.0f);
      if (chance(30)) generate.min_p = real(0.0f, 0.2f);
      if (chance(30)) generate.repetition_penalty = real(0.8f, 1.4f);
      if (chance(30)) generate.presence_penalty = real(-0.5f, 1.0f);
      if (chance(30)) generate.frequency_penalty = real(-0.5f, 1.0f);
      OutputAdapter adapter = OutputAdapter::create(hidden, vocab, between(1, 9), real(1.0f, 32.0f), random());
      const bool adapted = chance(60);
      if (adapted)
        for (Index k = 0; k < adapter.b.size(); ++k) adapter.b.data()[k] = real(-0.1f, 0.1f);
      adapter.pack(model.context());

      std::vector<std::vector<std::int32_t>> prompts, sequences;
      for (std::int64_t p = between(1, 3); p > 0; --p) prompts.push_back(test::random_ids(random, between(1, 90), 300));
      const std::int64_t group = between(2, 4);
      const auto groups = rollout(model, prompts, {.group_size = group, .generate = generate, .batch = between(1, 9), .adapter = adapted ? &adapter : nullptr});
      for (std::size_t p = 0; p < prompts.size(); ++p)
        for (const Completion& completion : groups[p].completions) {
          sequences.push_back(prompts[p]);
          sequences.back().insert(sequences.back().end(), completion.ids.begin(), completion.ids.end());
          tokens += static_cast<Index>(completion.ids.size());
        }
      const float temperature = generate.logprob_temperature();
      const auto scores = logprobs(model, sequences, {.temperature = temperature, .batch = between(1, 9), .adapter = adapted ? &adapter : nullptr});
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        const std::size_t p = s / static_cast<std::size_t>(group);
        const std::vector<float>& expected = groups[p].completions[s % static_cast<std::size_t>(group)].logprobs;
        const auto scored = std::span(scores[s].logprobs).subspan(prompts[p].size() - 1);
        REQUIRE(scored.size() == expected.size());
        CHECK(std::memcmp(scored.data(), expected.data(), scored.size_bytes()) == 0);
      }

      TrainerOptions options{.temperature = temperature};
      options.loss.loss_type = losses[between(0, 4)];
      options.loss.importance_sampling_level = chance(30) ? ImportanceSamplingLevel::sequence : ImportanceSamplingLevel::token;
      options.loss.epsilon = 1e-9;  // clips whatever is not exactly 1
      AdapterTrainer trainer(model, std::move(adapter), options);  // a b of zeros changes no bit
      const Metrics metrics = trainer.step(prompts, groups, TokenArray::Random(static_cast<Index>(sequences.size()), 1));
      CHECK(metrics.at("ratio/deviation") == 0.0);
      CHECK(metrics.at("clip_ratio/region_mean") == 0.0);
    }
  }
  MESSAGE(tokens << " tokens");
}

TEST_CASE("completions that were cut off count nowhere with mask_truncated_completions") {
  const Model& model = tiny_r1();
  const auto prompts = training::prompts_of(model, questions("tiny-r1-train.jsonl", 3));
  const auto groups = rollout(model, prompts, {.group_size = 2, .generate = {.max_tokens = 2, .ignore_eos = true}});
  TokenArray rewards(6, 1);
  rewards << 1, 0, 1, 0, 1, 0;
  for (const bool mask : {false, true}) {
    AdapterTrainer trainer(model, OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 2, 4.0f, 1),
                           {.mask_truncated_completions = mask});
    const Metrics metrics = trainer.step(prompts, groups, rewards);
    CHECK((trainer.adapter().b.cwiseAbs().maxCoeff() == 0.0f) == mask);
    CHECK((metrics.at("grad_norm") == 0.0) == mask);
    CHECK(metrics.at("reward") == 0.5);
  }
}

TEST_CASE("a step makes rewarded completions more probable and others less, and results do not depend on the threads") {
  RowMatrix a[2], b[2];
  for (const int threads : {1, 2}) {
    const Model model = Model::load(example("models/tiny-r1.gguf"), {.threads = threads});
    TrainerOptions options;
    options.temperature = 1.5f;
    AdapterTrainer trainer(model, OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 8, 8.0f, 1),
                           options);
    const auto prompts = training::prompts_of(model, questions("tiny-r1-train.jsonl", 8));
    RolloutOptions rollout_options;
    rollout_options.generate = {.temperature = 1.5f, .seed = 11, .max_tokens = 30};
    const auto groups = rollout(model, prompts, rollout_options);
    TokenArray rewards(64, 1);
    std::vector<std::vector<std::int32_t>> sequences;
    for (Index i = 0; i < 64; ++i) {
      const auto p = static_cast<std::size_t>(i / 8), member = static_cast<std::size_t>(i % 8);
      const Completion& completion = groups[p].completions[member];
      rewards(i, 0) = std::accumulate(completion.ids.begin(), completion.ids.end(), 0) % 2;
      sequences.push_back(prompts[p]);
      sequences.back().insert(sequences.back().end(), completion.ids.begin(), completion.ids.end());
    }
    const Eigen::ArrayXd advantage = group_advantages(rewards.col(0), 8);
    /// The objective: sum of advantage x logprob of the completions.
    const auto objective = [&](const OutputAdapter* adapter) {
      LogprobOptions scoring;
      scoring.temperature = 1.5f;
      scoring.batch = 16;
      scoring.adapter = adapter;
      const auto scores = logprobs(model, sequences, scoring);
      double sum = 0.0;
      for (std::size_t i = 0; i < scores.size(); ++i)
        for (std::size_t t = prompts[i / 8].size() - 1; t < scores[i].logprobs.size(); ++t)
          sum += advantage[static_cast<Index>(i)] * static_cast<double>(scores[i].logprobs[t]);
      return sum;
    };
    CHECK((advantage != 0.0).any());
    const double before = objective(nullptr);
    for (int step = 0; step < 3; ++step) {
      const double now = objective(&trainer.adapter());
      if (step == 0) {
        CHECK(now == before);  // b is 0
        trainer.step(prompts, groups, rewards);
      } else {
        CHECK(now > before);
      }
    }
    a[threads - 1] = trainer.adapter().a;
    b[threads - 1] = trainer.adapter().b;
  }
  CHECK(same_bits(a[0], a[1]));
  CHECK(same_bits(b[0], b[1]));
}

namespace {

training::RunResult short_run_in(const std::string& folder, const training::RunOptions& options,
                                 const std::function<void(const training::StepRecord&)>& report) {
  const auto seen = questions("tiny-r1-train.jsonl", 20), unseen = questions("tiny-r1-eval.jsonl", 4);
  return training::Run(tiny_r1(), seen, unseen, options, folder).finish(report);
}

}  // namespace

TEST_CASE("child: a run that kills itself after the third step and before its state is written" * doctest::skip()) {
  if (test::child_argument().empty()) return;
  short_run_in(test::child_argument(), short_run(), [](const training::StepRecord& record) {
    if (record.step == 3) ::raise(SIGKILL);
  });
}

TEST_CASE("a run that is killed in the middle goes on to the same result") {
  const Folder folder;
  CHECK_THROWS(test::run_child("child: a run that kills itself after the third step*", folder / "killed"));
  REQUIRE(std::filesystem::exists(folder / "killed/state.safetensors"));
  std::vector<std::int64_t> steps;
  const training::RunResult resumed =
      short_run_in(folder / "killed", short_run(), [&](const training::StepRecord& record) { steps.push_back(record.step); });
  CHECK(steps == std::vector<std::int64_t>{3, 4});
  const training::RunResult whole = short_run_in(folder / "whole", short_run(), [](const training::StepRecord&) {});

  const TrainingState a = load_training_state(folder / "killed/state.safetensors"),
                      b = load_training_state(folder / "whole/state.safetensors");
  CHECK(same_bits(a.adapter.a, b.adapter.a));
  CHECK(same_bits(a.adapter.b, b.adapter.b));
  CHECK(a.optimizer.steps == 4);
  REQUIRE(a.optimizer.moments.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(same_bits(a.optimizer.moments[i].first, b.optimizer.moments[i].first));
    CHECK(same_bits(a.optimizer.moments[i].second, b.optimizer.moments[i].second));
  }
  CHECK(resumed.before.right == whole.before.right);
  CHECK(resumed.after.right == whole.after.right);
  const auto without_times = [](const training::RunResult& result) {
    nlohmann::json steps_of = result.steps;
    for (nlohmann::json& record : steps_of) {
      record.erase("seconds");
      record.erase("rollout_seconds");
    }
    return steps_of;
  };
  CHECK(without_times(resumed) == without_times(whole));
  for (const training::StepRecord& record : whole.steps) CHECK(record.ratio_deviation == 0.0);

  training::RunOptions other = short_run();
  other.learning_rate = 1.0;
  CHECK(contains(message_of([&] { short_run_in(folder / "whole", other, [](const training::StepRecord&) {}); }),
                 "is of a run with lr"));
  other = short_run();
  other.system = "another model";
  CHECK(contains(message_of([&] { short_run_in(folder / "whole", other, [](const training::StepRecord&) {}); }),
                 "is of a run with system \"\", not \"another model\""));

  // Progress that does not fit the run.
  const nlohmann::json progress = nlohmann::json::parse(b.progress);
  TrainingState state = load_training_state(folder / "whole/state.safetensors");
  const auto resume_with = [&](const std::string& field, const nlohmann::json& value, float scale = 1.0f) {
    nlohmann::json changed = progress;
    changed[nlohmann::json::json_pointer(field)] = value;
    state.adapter.scale = scale;
    save_training_state(folder / "whole/state.safetensors", state.adapter, state.optimizer, changed.dump());
    return message_of([&] { short_run_in(folder / "whole", short_run(), [](const training::StepRecord&) {}); });
  };
  for (const std::string of : {"/before", "/after"}) {
    CHECK(contains(resume_with(of + "/right", nlohmann::json::array()), "an evaluation that is not of the run's questions"));
    CHECK(contains(resume_with(of + "/right", std::vector<int>(200000, 1)), "state.safetensors"));
    CHECK(contains(resume_with(of + "/samples", 7), "an evaluation that is not of the run's questions"));
  }
  nlohmann::json steps_twice = progress["steps"];
  for (const nlohmann::json& step : progress["steps"]) steps_twice.push_back(step);
  CHECK(contains(resume_with("/steps", steps_twice), "has more steps than the run"));
  for (const float scale : {INFINITY, NAN})
    CHECK(contains(resume_with("/steps", progress["steps"], scale), "metadata 'scale': must be finite"));
  CHECK(resume_with("/steps", progress["steps"]) == "nothing was thrown");
}

TEST_CASE("curves are well-formed SVG, with a line for each run and one for their mean") {
  const std::string svg = training::curves_svg(
      "a < b & c",
      {{"one", {{0.5, 0.6, 0.7}, {0.4, 0.5}}}, {"constant", {{0.0}}}, {"none", {}}, {"not finite", {{1.0, std::nan(""), 3.0}}}});
  CHECK(count_elements(svg, "svg") == 1);
  CHECK(contains(svg, "a &lt; b &amp; c"));
  CHECK(!contains(svg, "nan"));
  std::size_t lines = 0;
  for (std::size_t at = svg.find("fill=\"none\""); at != std::string::npos; at = svg.find("fill=\"none\"", at + 1)) ++lines;
  CHECK(lines == 3 + 2 + 2);
}
