// moxie grpo: a short run, killed and resumed, gives the files of one that was not.

#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>

#include "tool_run.hpp"

using namespace test;

namespace {

Args training(const std::string& out, const Args& more = {}) {
  const std::string data = std::string(MOXIE_SOURCE_DIR) + "/examples/data/";
  return with({"grpo",
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
               out},
              more);
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

TEST_CASE("grpo refuses questions that are none, and options out of range, before anything is written") {
  const TemporaryFolder folder;
  const std::string bad = folder.write("bad.jsonl", "{\"question\":\"What is 1+1?\"}\n");
  const auto result = run_tool({"grpo", tiny_r1(), "--questions", bad, "--eval", bad, "--out", folder / "out"});
  CHECK(result.code == 1);
  CHECK(result.err.find("bad.jsonl:1: must be {\"question\"") != std::string::npos);
  CHECK(run_tool(training(folder / "out", {"--group", "1"})).code == 2);
  CHECK(!std::filesystem::exists(folder / "out"));
}
