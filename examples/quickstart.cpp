// The main job on a small model: a MoE model file in, text and GRPO-ready log-probabilities out.
//
//   quickstart MODEL.gguf
//
// 1. loads the model and says what it is; 2. streams an answer with its <think> steps; 3. samples a group of 8 answers, with
// reward, advantage and mean log-probability of each; 4. scores the same answers again as one batch and compares the bits.

#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include <moxie/moxie.hpp>

namespace {

constexpr std::string_view question = "What is 12*7-5?";
constexpr std::string_view expected = "79";

std::string stripped(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == std::string_view::npos ? std::string()
                                         : std::string(text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1));
}

/// 1 for the right answer after </think>, and 0.1 for an ended answer that begins with its working.
double reward(std::string_view text, bool ended) {
  const auto close = text.find("</think>");
  const bool thought = text.starts_with("<think>\n") && close != std::string_view::npos &&
                       text.find("</think>", close + 1) == std::string_view::npos;
  const std::string answer = close == std::string_view::npos ? std::string() : stripped(text.substr(close + 8));
  return (thought && answer == expected ? 1.0 : 0.0) + (thought && ended && !answer.empty() ? 0.1 : 0.0);
}

void describe(const moxie::Model& model) {
  const moxie::ModelConfig& c = model.config();
  const moxie::ModelInfo& info = model.info();
  std::printf("%s: %lld layers, %lld experts of which a token uses %lld, %.1f M parameters (%.1f M active)\n", c.family.c_str(),
              static_cast<long long>(c.n_layers), static_cast<long long>(c.moe.router.n_experts),
              static_cast<long long>(c.moe.router.top_k), static_cast<double>(info.parameters) * 1e-6,
              static_cast<double>(info.active_parameters) * 1e-6);
  std::printf("%.2f bits per weight, loaded in %.0f ms, %.1f MB of packed weights, %.0f MB resident at most, kernels: %s\n\n",
              info.bits_per_weight, info.load_seconds * 1e3, static_cast<double>(model.decoder().bytes()) * 1e-6,
              static_cast<double>(moxie::peak_resident_bytes()) * 1e-6, model.context().kernels->arch);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int run(const char* path) {
  const moxie::Model model = moxie::Model::load(path);
  describe(model);

  const std::vector<std::int32_t> prompt = model.chat({{"user", std::string(question)}});
  std::cout << question << "\n";
  moxie::Session session(model);
  session.feed(prompt);
  for (std::string_view piece : session.generate({.temperature = 0.0f, .max_tokens = 200})) std::cout << piece << std::flush;
  std::cout << "\n\n";

  // A group of answers to one prompt, which is run and stored once.
  constexpr moxie::Index group_size = 8;
  moxie::Batch batch(model);
  const auto ids = batch.add_group(prompt, group_size, {.temperature = 1.0f, .seed = 7, .max_tokens = 96});
  while (!batch.step().empty()) {
  }

  Eigen::ArrayXd rewards(group_size);
  std::vector<std::string> texts;
  std::vector<std::vector<std::int32_t>> sequences;
  std::vector<std::vector<float>> drawn;  // logprobs as they were when the tokens were drawn
  for (moxie::Index i = 0; i < group_size; ++i) {
    const moxie::Batch::Sequence& sequence = batch.at(ids[static_cast<std::size_t>(i)]);
    const bool ended = sequence.finish == moxie::FinishReason::stop;
    auto output = sequence.output();
    texts.push_back(model.tokenizer().decode(ended ? output.first(output.size() - 1) : output));
    rewards[i] = reward(texts.back(), ended);
    sequences.push_back(sequence.ids);
    drawn.emplace_back();
    for (const moxie::Sample& sample : sequence.samples) drawn.back().push_back(sample.logprob);
  }
  const Eigen::ArrayXd advantages = moxie::grpo::group_advantages(rewards, group_size);

  // The same answers again, as a trainer would: all in one batch, prompt and answer at once.
  const auto scores = moxie::grpo::logprobs(model, sequences, {.batch = group_size});

  std::printf("A group of %lld answers:\n  reward  advantage  mean logprob  same bits when scored  answer\n",
              static_cast<long long>(group_size));
  bool all_same = true;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<float> again(scores[i].logprobs.end() - static_cast<std::ptrdiff_t>(drawn[i].size()),
                                   scores[i].logprobs.end());
    const bool same = same_bits(drawn[i], again);
    all_same = all_same && same;
    double mean = 0.0;
    for (const float logprob : drawn[i]) mean += static_cast<double>(logprob) / static_cast<double>(drawn[i].size());
    std::string line;
    for (const char c : texts[i]) line += c == '\n' ? ' ' : c;
    const auto at = static_cast<moxie::Index>(i);
    std::printf("  %6.1f  %+9.3f  %12.4f  %-21s  %s\n", rewards[at], advantages[at], mean, same ? "yes" : "NO", line.c_str());
  }
  std::printf("\n%s\n", all_same
                            ? "Both sets of logprobs are the same bits: the importance ratio of the first GRPO step is exactly 1."
                            : "The logprobs differ: this is a bug, please report it.");
  return all_same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: quickstart MODEL.gguf\n");
    return 2;
  }
  try {
    return run(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
