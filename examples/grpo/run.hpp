#pragma once
// A GRPO run on one seed: questions, groups of completions, rewards, a step of the trainer, and again; accuracy on unseen
// questions before and after.
//
// In its folder: state.safetensors, from which a killed run goes on with the same bits; log.jsonl, a line for each step;
// adapter/, the result in PEFT's format.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/grpo/adapter_trainer.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/grpo/training_state.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/peft.hpp>

#include "questions.hpp"

namespace training {

struct RunOptions {
  std::int64_t steps = 150;
  std::int64_t prompts = 32;  ///< questions of a step
  std::int64_t group = 8;     ///< completions of a question
  std::int64_t rank = 16;     ///< of the adapter
  double alpha = 16.0;        ///< lora_alpha: the adapter's part of the logits is multiplied by alpha / rank
  double learning_rate = 2e-2;
  double beta = 0.0;            ///< coefficient of the KL term
  std::int64_t iterations = 1;  ///< optimizer steps on one rollout
  double temperature = 1.5;     ///< of sampling, in training and evaluation
  std::int64_t max_tokens = 64;
  std::int64_t eval_samples = 4;      ///< completions of each unseen question
  std::int64_t checkpoint_every = 5;  ///< steps
  std::uint64_t seed = 1;
  std::string system = {};  ///< model, its adapter and precision: tool::system_fingerprint()

  /// What decides the result, and so must be the same when a run goes on.
  nlohmann::json identity() const {
    return {{"steps", steps},
            {"prompts", prompts},
            {"group", group},
            {"rank", rank},
            {"alpha", alpha},
            {"lr", learning_rate},
            {"beta", beta},
            {"iterations", iterations},
            {"temperature", temperature},
            {"max_tokens", max_tokens},
            {"eval_samples", eval_samples},
            {"seed", seed},
            {"system", system}};
  }
};

/// What a step reports; fields as in log.jsonl.
struct StepRecord {
  std::int64_t step = 0;  ///< from 1
  double reward = 0.0;
  double pass_rate = 0.0;        ///< share of right answers
  double kl = 0.0;               ///< nats per token, k3 to the model without adapter
  double clip_share = 0.0;       ///< of the last iteration on the rollout
  double ratio_deviation = 0.0;  ///< largest |ratio - 1| of the first iteration: 0
  double entropy = 0.0;          ///< nats per token
  double loss = 0.0;
  double grad_norm = 0.0;
  std::int64_t tokens = 0;  ///< of the completions
  double rollout_seconds = 0.0;
  double seconds = 0.0;

  double tokens_per_second() const { return rollout_seconds > 0.0 ? static_cast<double>(tokens) / rollout_seconds : 0.0; }
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StepRecord, step, reward, pass_rate, kl, clip_share, ratio_deviation, entropy, loss, grad_norm,
                                   tokens, rollout_seconds, seconds)

/// Right answers to each unseen question, of `samples`.
struct Evaluation {
  std::int64_t samples = 0;
  std::vector<std::int64_t> right;

  double of_question(std::size_t q) const { return static_cast<double>(right[q]) / static_cast<double>(samples); }
  double accuracy() const {
    double sum = 0.0;
    for (std::size_t q = 0; q < right.size(); ++q) sum += of_question(q);
    return right.empty() ? 0.0 : sum / static_cast<double>(right.size());
  }
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Evaluation, samples, right)

struct RunResult {
  std::vector<StepRecord> steps;
  Evaluation before, after;
};

/// Questions as prompts in the model's chat format.
inline std::vector<std::vector<std::int32_t>> prompts_of(const moxie::Model& model, std::span<const Question> questions) {
  std::vector<std::vector<std::int32_t>> prompts;
  for (const Question& question : questions) prompts.push_back(model.chat({{"user", question.question}}));
  return prompts;
}

inline Reward reward_of(const moxie::Model& model, const moxie::grpo::Completion& completion, const Question& question) {
  const bool ended = completion.finish == moxie::FinishReason::stop;
  const std::span<const std::int32_t> ids(completion.ids);
  return reward(model.tokenizer().decode(ended ? ids.first(ids.size() - 1) : ids), ended, question.answer);
}

class Run {
 public:
  /// Called now and then; may throw to stop the run.
  using Poll = std::function<void()>;

  Run(const moxie::Model& model, std::span<const Question> questions, std::span<const Question> unseen, const RunOptions& options,
      std::string folder, Poll poll = {})
      : model_(model),
        questions_(questions),
        unseen_(unseen),
        options_(options),
        folder_(std::move(folder)),
        poll_(std::move(poll)),
        order_(questions.size(), options.seed) {}

  bool has_state() const { return std::filesystem::exists(state_path()); }

  /// Goes on where the state in the folder ends, or starts; `report` is told each step as it is done.
  RunResult finish(const std::function<void(const StepRecord&)>& report) {
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) throw moxie::SystemError({folder_, {}, {}}, "cannot make the folder: " + error.message());
    moxie::grpo::AdapterTrainer trainer = begin();
    if (result_.before.samples == 0) result_.before = evaluate(nullptr);
    while (static_cast<std::int64_t>(result_.steps.size()) < options_.steps) {
      result_.steps.push_back(step(trainer));
      report(result_.steps.back());
      if (result_.steps.back().step % options_.checkpoint_every == 0) save(trainer);
    }
    if (result_.after.samples == 0) {
      result_.after = evaluate(&trainer.adapter());
      moxie::save_peft(folder_ + "/adapter", trainer.adapter());
      save(trainer);
    }
    return result_;
  }

 private:
  std::string state_path() const { return folder_ + "/state.safetensors"; }

  /// The trainer at the begin of a run, or as the state in the folder has it.
  moxie::grpo::AdapterTrainer begin() {
    moxie::grpo::TrainerOptions trainer;
    trainer.loss.loss_type = moxie::grpo::LossType::dapo;
    trainer.loss.epsilon_high = 0.28;  // clip-higher of DAPO
    trainer.loss.beta = options_.beta;
    trainer.adam.learning_rate = options_.learning_rate;
    trainer.adam.beta2 = 0.99;  // the second moments settle within the run
    trainer.num_iterations = options_.iterations;
    trainer.temperature = static_cast<float>(options_.temperature);
    if (!has_state()) {
      const moxie::ModelConfig& config = model_.config();
      return {model_,
              moxie::OutputAdapter::create(config.hidden_size, config.vocab_size, options_.rank,
                                           static_cast<float>(options_.alpha), options_.seed),
              trainer};
    }
    moxie::grpo::TrainingState state = moxie::grpo::load_training_state(state_path());
    const nlohmann::json progress = nlohmann::json::parse(state.progress, nullptr, false);
    try {
      check_identity(progress.at("options"));
      progress.at("steps").get_to(result_.steps);
      progress.at("before").get_to(result_.before);
      progress.at("after").get_to(result_.after);
      check_progress();
    } catch (const nlohmann::json::exception& error) {
      throw moxie::FormatError({state_path(), "metadata 'progress'", {}}, moxie::json_error_text(error.what()));
    }
    return {model_, std::move(state.adapter), trainer, std::move(state.optimizer)};
  }

  nlohmann::json identity() const {
    nlohmann::json identity = options_.identity();
    std::string text;
    for (const auto& part : {questions_, unseen_})
      for (const Question& q : part) text += q.question + "\n" + q.answer + "\n";
    identity["questions_crc32"] = crc32(text);
    return identity;
  }
  void check_identity(const nlohmann::json& stored) const {
    const nlohmann::json wanted = identity();
    for (const auto& [key, value] : wanted.items())
      if (stored.at(key) != value)
        throw moxie::ArgumentError({state_path(), {}, {}}, "is of a run with " + key + " " + stored.at(key).dump() + ", not " +
                                                               value.dump() +
                                                               ": go on with the same options, or choose another folder");
  }

  void check_progress() const {
    const auto need = [&](bool holds, const char* message) {
      if (!holds) throw moxie::FormatError({state_path(), "metadata 'progress'", {}}, message);
    };
    need(static_cast<std::int64_t>(result_.steps.size()) <= options_.steps, "has more steps than the run");
    for (const Evaluation* evaluation : {&result_.before, &result_.after})
      need(evaluation->samples == 0 ||
               (evaluation->samples == options_.eval_samples && evaluation->right.size() == unseen_.size()),
           "has an evaluation that is not of the run's questions");
  }

  void save(const moxie::grpo::AdapterTrainer& trainer) const {
    const nlohmann::json progress = {
        {"options", identity()}, {"steps", result_.steps}, {"before", result_.before}, {"after", result_.after}};
    moxie::grpo::save_training_state(state_path(), trainer.adapter(), trainer.optimizer_state(), progress.dump());
    moxie::AtomicFile log(folder_ + "/log.jsonl");
    for (const StepRecord& record : result_.steps) {
      const std::string line = nlohmann::json(record).dump() + "\n";
      log.write(line.data(), line.size());
    }
    log.commit();
  }

  StepRecord step(moxie::grpo::AdapterTrainer& trainer) {
    const auto start = std::chrono::steady_clock::now();
    StepRecord record;
    record.step = static_cast<std::int64_t>(result_.steps.size()) + 1;
    const auto first = static_cast<std::uint64_t>((record.step - 1) * options_.prompts);
    std::vector<Question> asked;
    for (std::uint64_t i = first; i < first + static_cast<std::uint64_t>(options_.prompts); ++i)
      asked.push_back(questions_[order_.at(i)]);
    const auto prompts = prompts_of(model_, asked);
    const std::vector<moxie::grpo::RolloutGroup> groups =
        sample(prompts, options_.group, options_.seed, first, &trainer.adapter());
    record.rollout_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    moxie::grpo::TokenArray rewards(options_.prompts * options_.group, 2);
    moxie::Index row = 0;
    for (std::size_t p = 0; p < groups.size(); ++p)
      for (const moxie::grpo::Completion& completion : groups[p].completions) {
        const Reward earned = reward_of(model_, completion, asked[p]);
        rewards.row(row++) << earned.accuracy, 0.1 * earned.format;
        record.tokens += static_cast<std::int64_t>(completion.ids.size());
      }
    const double remaining = 1.0 - static_cast<double>(record.step - 1) / static_cast<double>(options_.steps);
    const moxie::grpo::Metrics metrics = trainer.step(prompts, groups, rewards, remaining);
    record.reward = metrics.at("reward");
    record.pass_rate = rewards.col(0).mean();
    record.kl = metrics.at("kl");
    record.clip_share = metrics.at("clip_ratio/region_mean");
    record.ratio_deviation = metrics.at("ratio/deviation");
    record.entropy = metrics.at("entropy");
    record.loss = metrics.at("loss");
    record.grad_norm = metrics.at("grad_norm");
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return record;
  }

  /// Unseen questions under the adapter, or under the model as it is. Draws do not repeat those of training.
  Evaluation evaluate(const moxie::OutputAdapter* adapter) const {
    constexpr std::uint64_t evaluation_seed = std::uint64_t{1} << 63;
    const auto groups = sample(prompts_of(model_, unseen_), options_.eval_samples, options_.seed | evaluation_seed, 0, adapter);
    Evaluation result{options_.eval_samples, {}};
    for (std::size_t q = 0; q < groups.size(); ++q) {
      result.right.push_back(0);
      for (const moxie::grpo::Completion& completion : groups[q].completions)
        if (reward_of(model_, completion, unseen_[q]).accuracy == 1.0) ++result.right.back();
    }
    return result;
  }

  std::vector<moxie::grpo::RolloutGroup> sample(const std::vector<std::vector<std::int32_t>>& prompts, std::int64_t n,
                                                std::uint64_t seed, std::uint64_t first_prompt,
                                                const moxie::OutputAdapter* adapter) const {
    moxie::grpo::RolloutOptions rollout;
    rollout.group_size = n;
    rollout.generate.temperature = static_cast<float>(options_.temperature);
    rollout.generate.seed = seed;
    rollout.generate.max_tokens = options_.max_tokens;
    rollout.batch =
        std::min<std::int64_t>(options_.prompts * options_.group, model_.options().chunk);  // a token of each in every pass
    rollout.adapter = adapter;
    rollout.first_prompt = first_prompt;
    if (poll_) rollout.progress = [this](const moxie::grpo::RolloutProgress&) { poll_(); };
    return moxie::grpo::rollout(model_, prompts, rollout);
  }

  moxie::Model model_;
  std::span<const Question> questions_, unseen_;
  RunOptions options_;
  std::string folder_;
  Poll poll_;
  QuestionOrder order_;
  RunResult result_;
};

}  // namespace training
