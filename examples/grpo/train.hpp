#pragma once
// The whole job, shared by examples/grpo.cpp and `moxie grpo`: runs on several seeds, a line for each step, the curve, and what
// was gained.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include <moxie/moxie.hpp>

#include "../tool/fingerprint.hpp"
#include "../tool/number_range.hpp"
#include "curve.hpp"
#include "questions.hpp"
#include "run.hpp"

namespace training {

struct TrainOptions {
  RunOptions run;
  std::vector<std::uint64_t> seeds = {1, 2, 3};
  std::string questions, unseen;  ///< files
  std::string out = "grpo-out";
  bool resume = false;

  void add(CLI::App& command) {
    using CLI::Range;
    const auto count = [&](const char* name, std::int64_t& value, std::int64_t low, std::int64_t high, const char* what) {
      command.add_option(name, value, what)->check(Range(low, high))->capture_default_str();
    };
    count("--steps", run.steps, 1, 1'000'000, "steps of training");
    count("--prompts", run.prompts, 1, 4096, "questions of a step");
    count("--group", run.group, 2, 4096, "completions of a question");
    count("--rank", run.rank, 1, 4096, "rank of the adapter (LoRA) on the output matrix");
    command.add_option("--alpha", run.alpha, "its lora_alpha: its part of the logits is multiplied by alpha / rank")
        ->check(tool::number_range(1e-3, 1e6))
        ->capture_default_str();
    command.add_option("--lr", run.learning_rate, "learning rate of Adam, falling to 0 over the run")
        ->check(tool::number_range(0.0, 10.0))
        ->capture_default_str();
    command.add_option("--beta", run.beta, "coefficient of the KL divergence to the model as it was")
        ->check(tool::number_range(0.0, 1e3))
        ->capture_default_str();
    count("--iterations", run.iterations, 1, 1000, "optimizer steps on the same completions");
    command.add_option("--temperature", run.temperature, "of sampling, in training and evaluation")
        ->check(tool::number_range(1e-3, 1e3))
        ->capture_default_str();
    count("--max-tokens", run.max_tokens, 1, 1'000'000, "tokens of a completion at most");
    count("--eval-samples", run.eval_samples, 1, 4096, "completions of each unseen question");
    count("--checkpoint-every", run.checkpoint_every, 1, 1'000'000, "steps between two states on the disk");
    command.add_option("--seeds", seeds, "one run for each")
        ->delimiter(',')
        ->check(Range(std::uint64_t{0}, std::uint64_t{1} << 62))
        ->capture_default_str();
    command.add_option("--out", out, "folder for adapters, logs, states and curve.svg")->capture_default_str();
    command.add_flag("--resume", resume, "go on with the runs in that folder");
  }
};

inline std::string step_line(const StepRecord& r, std::int64_t steps) {
  char text[256];
  std::snprintf(text, sizeof text,
                "step %3lld/%lld  reward %.3f  pass rate %.3f  KL %.4f  clip share %.4f  entropy %.4f  %6.0f tokens/s  %.2f s\n",
                static_cast<long long>(r.step), static_cast<long long>(steps), r.reward, r.pass_rate, r.kl, r.clip_share,
                r.entropy, r.tokens_per_second(), r.seconds);
  return text;
}

inline double largest_ratio_deviation(const RunResult& run) {
  double largest = 0.0;
  for (const StepRecord& record : run.steps) largest = std::max(largest, record.ratio_deviation);
  return largest;
}

/// Accuracy gained on unseen questions, and how sure that is.
struct Gain {
  double before = 0.0, after = 0.0;  ///< mean over the runs
  double error_of_questions = 0.0;   ///< standard error of the gain from the choice of questions
  double error_of_seeds = 0.0;       ///< and from the runs' differences; 0 for a single run

  double gain() const { return after - before; }
  double error() const { return std::hypot(error_of_questions, error_of_seeds); }
};

/// Standard error of the mean; 0 for a single value.
inline double standard_error(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  if (values.size() < 2) return 0.0;
  double mean = 0.0, squares = 0.0;
  for (const double value : values) mean += value / n;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (n - 1.0) / n);
}

inline Gain gain_of(const std::vector<RunResult>& runs) {
  Gain result;
  const double n = static_cast<double>(runs.size());
  std::vector<double> of_runs, of_questions(runs.front().before.right.size(), 0.0);
  for (const RunResult& run : runs) {
    result.before += run.before.accuracy() / n;
    result.after += run.after.accuracy() / n;
    of_runs.push_back(run.after.accuracy() - run.before.accuracy());
    for (std::size_t q = 0; q < of_questions.size(); ++q)
      of_questions[q] += (run.after.of_question(q) - run.before.of_question(q)) / n;
  }
  result.error_of_questions = standard_error(of_questions);
  result.error_of_seeds = standard_error(of_runs);
  return result;
}

inline std::string gain_text(const Gain& gain) {
  char text[160];
  std::snprintf(text, sizeof text, "%.1f%% -> %.1f%%: %+.1f points, standard error %.1f", 100.0 * gain.before, 100.0 * gain.after,
                100.0 * gain.gain(), 100.0 * gain.error());
  return text;
}

inline std::string curves(const std::vector<RunResult>& runs, const std::string& title) {
  const auto panel = [&](const char* name, double StepRecord::*field) {
    Panel result{name, {}};
    for (const RunResult& run : runs) {
      result.runs.emplace_back();
      for (const StepRecord& record : run.steps) result.runs.back().push_back(record.*field);
    }
    return result;
  };
  return curves_svg(
      title, {panel("reward", &StepRecord::reward), panel("pass rate of training questions", &StepRecord::pass_rate),
              panel("KL to the model as it was, nats per token", &StepRecord::kl), panel("clip share", &StepRecord::clip_share),
              panel("entropy, nats per token", &StepRecord::entropy)});
}

/// `print` is given whole lines; `poll` may throw to stop, and what was done until the last state on the disk can be resumed.
inline Gain train(const moxie::Model& model, const TrainOptions& options, const std::function<void(std::string_view)>& print,
                  const Run::Poll& poll = {}) {
  for (auto seed = options.seeds.begin(); seed != options.seeds.end(); ++seed)
    if (std::find(options.seeds.begin(), seed, *seed) != seed)
      throw moxie::ArgumentError("--seeds has " + std::to_string(*seed) + " twice: each run has a seed of its own");
  const std::vector<Question> questions = read_questions(options.questions), unseen = read_questions(options.unseen);
  print(std::to_string(questions.size()) + " questions to train on, " + std::to_string(unseen.size()) +
        " unseen ones; results go to " + options.out + "\n");
  const std::string system = tool::system_fingerprint(model);
  std::vector<RunResult> results;
  for (const std::uint64_t seed : options.seeds) {
    RunOptions run_options = options.run;
    run_options.seed = seed;
    run_options.system = system;
    const std::string folder = options.out + "/seed-" + std::to_string(seed);
    Run run(model, questions, unseen, run_options, folder, poll);
    if (run.has_state() && !options.resume)
      throw moxie::ArgumentError({folder, {}, {}}, "holds a run already: --resume goes on with it, --out names another folder");
    print("\nseed " + std::to_string(seed) + "\n");
    results.push_back(run.finish([&](const StepRecord& record) { print(step_line(record, options.run.steps)); }));
    const RunResult& result = results.back();
    char deviation[80];
    std::snprintf(deviation, sizeof deviation, "largest |ratio - 1| of an on-policy iteration: %g\n",
                  largest_ratio_deviation(result));
    print("accuracy on unseen questions " + gain_text(gain_of({result})) + " (from the questions)\n" + deviation);
  }
  const Gain gain = gain_of(results);
  const std::string text = gain_text(gain);
  moxie::AtomicFile file(options.out + "/curve.svg");
  const std::string svg =
      curves(results, "GRPO, " + std::to_string(results.size()) + " runs; accuracy on unseen questions " + text);
  file.write(svg.data(), svg.size());
  file.commit();
  char errors[120];
  std::snprintf(errors, sizeof errors, " (%.1f from the questions, %.1f from the seeds)", 100.0 * gain.error_of_questions,
                100.0 * gain.error_of_seeds);
  print("\nAccuracy on " + std::to_string(unseen.size()) + " unseen questions, " + std::to_string(options.run.eval_samples) +
        " samples each, mean of " + std::to_string(results.size()) + " runs: " + text + errors + "\nCurve: " + options.out +
        "/curve.svg\n");
  return gain;
}

}  // namespace training
