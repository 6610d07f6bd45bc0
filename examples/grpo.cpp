// GRPO from rollout to gradient, in one process: tiny-r1 learns to answer more questions.
//
//   grpo [MODEL.gguf] [options]       grpo --help lists them
//
// Each step: questions from the training split, groups of sampled completions (grpo::rollout), rewards by exact answer and format
// (grpo/questions.hpp), then grpo::AdapterTrainer: group advantages, loss, gradients through the output matrix to a low-rank
// adapter, Adam. Without options it trains on three seeds and compares the accuracy on unseen questions before and after. A
// killed run goes on with --resume.

#include <cstdio>
#include <exception>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

#include <moxie/moxie.hpp>

#include "grpo/train.hpp"

int main(int argc, char** argv) {
  CLI::App app("GRPO on a small model", "grpo");
  const std::string here = MOXIE_EXAMPLES_DIR;
  std::string model = here + "/models/tiny-r1.gguf";
  int threads = 0;
  training::TrainOptions options;
  options.questions = here + "/data/tiny-r1-train.jsonl";
  options.unseen = here + "/data/tiny-r1-eval.jsonl";
  app.add_option("MODEL", model, "GGUF file or Hugging Face folder")->capture_default_str();
  app.add_option("--questions", options.questions, R"(JSON lines {"question":"..","answer":".."} to train on)")
      ->capture_default_str();
  app.add_option("--eval", options.unseen, "the same, to compare the accuracy before and after")->capture_default_str();
  app.add_option("--threads", threads, "threads; 0: one for each processor")->check(CLI::Range(0, 4096));
  options.add(app);
  CLI11_PARSE(app, argc, argv);
  try {
    training::train(moxie::Model::load(model, {.threads = threads}), options, [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    });
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
