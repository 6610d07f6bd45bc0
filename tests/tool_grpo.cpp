// moxie grpo: a short run, killed and resumed, gives the files of one that was not.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "tool_run.hpp"

using namespace test;

namespace {

Args training(const std::string& out, const Args& more = {}) {
  const std::string data = std::string(MOXIE_SOURCE_DIR) + "/examples/data/";
  Args args = {"grpo",
               tiny_r1(),
               "--questions",
               data + "tiny-r1-train.jsonl",
               "--eval",
               data + "tiny-r1-eval.jsonl",
               "--steps",
               "6",
               "--prompts",
               "4",
               "--group",
               "4",
               "--rank",
               "4",
               "--eval-samples",
               "1",
               "--checkpoint-every",
               "1",
               "--seeds",
               "3,8",
               "--threads",
               "1",
               "--out",
               out};
  for (std::size_t i = 0; i + 1 < more.size(); i += 2)  // an option may be given once
    if (const auto given = std::find(args.begin(), args.end(), more[i]); given != args.end()) args.erase(given, given + 2);
  return with(std::move(args), more);
}

}  // namespace

TEST_CASE(
    "grpo prints a line for each step and leaves adapters, logs and the curve; killed with SIGKILL and resumed, it leaves the "
    "same adapters") {
  const TemporaryFolder folder;
  const auto whole = run_well(training(folder / "whole"));
  for (const char* part : {"reward ", "pass rate ", "KL ", "clip share 0.0000", "entropy ", "tokens/s",
                           "largest |ratio - 1| of an on-policy iteration: 0\n",
                           "Accuracy on 500 unseen questions, 1 samples each, mean of 2 runs: "})
    CHECK(whole.out.find(part) != std::string::npos);
  CHECK(read_text(folder / "whole/curve.svg").starts_with("<svg "));

  Process process(training(folder / "killed"), "/dev/null", folder / "out", folder / "err");
  const std::string state = folder / "killed/seed-8/state.safetensors";
  for (int i = 0; i < 3000 && process.running() && !std::filesystem::exists(state); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  process.signal(SIGKILL);
  process.wait();
  REQUIRE(std::filesystem::exists(state));
  const auto refused = run_tool(training(folder / "killed"));
  CHECK(refused.code == 1);
  CHECK(refused.err.find("--resume") != std::string::npos);
  run_well(training(folder / "killed", {"--resume"}));
  for (const char* seed : {"seed-3", "seed-8"})
    for (const char* file : {"adapter_model.safetensors", "adapter_config.json"}) {
      const std::string path = std::string("/") + seed + "/adapter/" + file;
      CHECK(read_text(folder / ("whole" + path)) == read_text(folder / ("killed" + path)));
    }
}

TEST_CASE("grpo --resume refuses another model or precision than the run began with") {
  const TemporaryFolder folder;
  const std::string out = folder / "out", state = folder / "out/seed-3/state.safetensors", quantized = folder / "q8.gguf";
  const Args few = {"--steps", "1", "--seeds", "3", "--max-tokens", "4"}, more = with(few, {"--resume"});
  run_well(training(out, few));
  const std::string before = read_text(state);
  run_well({"quantize", tiny_r1(), quantized, "--type", "Q4_0"});
  Args other_model = training(out, more);
  other_model[1] = quantized;
  for (const Args& args :
       {other_model, training(out, with(more, {"--activations", "f32"})), training(out, with(more, {"--kv", "f32"}))}) {
    const auto result = run_tool(args);
    CHECK(result.code == 1);
    CHECK(result.err.find("state.safetensors: is of a run with system \"weights-") != std::string::npos);
    CHECK(read_text(state) == before);
  }
  run_well(training(out, more));
}

TEST_CASE("grpo refuses questions that are none, and options out of range, before anything is written") {
  const TemporaryFolder folder;
  const std::string bad = folder.write("bad.jsonl", "{\"question\":\"What is 1+1?\"}\n");
  const auto result = run_tool({"grpo", tiny_r1(), "--questions", bad, "--eval", bad, "--out", folder / "out"});
  CHECK(result.code == 1);
  CHECK(result.err.find("bad.jsonl:1: must be {\"question\"") != std::string::npos);
  CHECK(run_tool(training(folder / "out", {"--group", "1"})).code == 2);
  for (const char* option : {"--lr", "--alpha", "--beta", "--temperature"})
    CHECK(run_tool(training(folder / "out", {option, "nan"})).code == 2);
  const auto twice = run_tool(training(folder / "out", {"--seeds", "3,8,3"}));
  CHECK(twice.code == 1);
  CHECK(twice.err.find("--seeds has 3 twice") != std::string::npos);
  CHECK(!std::filesystem::exists(folder / "out"));
}
