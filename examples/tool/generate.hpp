#pragma once
// moxie generate: one answer, streamed as text or given as one JSON object.

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common.hpp"
#include "text_io.hpp"

namespace tool {

/// How tokens are drawn, for generate, chat and rollout.
inline void add_sampling_options(CLI::App& command, moxie::GenerateOptions& options) {
  command.add_option("--temperature", options.temperature, "0: always the most probable token")
      ->check([](const std::string& text) {
        float value = 0.0f;
        const bool number = CLI::detail::lexical_cast(text, value);
        return number && (value == 0.0f || (value >= 1e-3f && value <= 1e3f)) ? std::string()
                                                                              : text + " is not 0 or from 0.001 to 1000";
      })
      ->capture_default_str();
  command.add_option("--top-k", options.top_k, "only the K most probable tokens; 0: all")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 30))
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "only the most probable tokens that have this probability together")
      ->check(number_range(1e-6, 1.0))
      ->capture_default_str();
  command.add_option("--min-p", options.min_p, "only tokens with this share of the largest probability")
      ->check(number_range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--repeat-penalty", options.repetition_penalty, "above 1: tokens of prompt and answer become less likely")
      ->check(number_range(1e-3, 1e3))
      ->capture_default_str();
  command.add_option("--presence-penalty", options.presence_penalty, "subtracted from the logits of the answer's tokens")
      ->check(number_range(-1e3, 1e3))
      ->capture_default_str();
  command.add_option("--frequency-penalty", options.frequency_penalty, "the same, for each time they occur")
      ->check(number_range(-1e3, 1e3))
      ->capture_default_str();
  command.add_option("--seed", options.seed, "the same seed gives the same answer")
      ->check([](const std::string& text) {
        std::uint64_t value = 0;
        const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        return error == std::errc() && stop == text.data() + text.size() ? std::string()
                                                                         : text + " is not a number from 0 to 2^64 - 1";
      })
      ->capture_default_str();
}

struct GenerateCommand {
  std::string model;
  CommonOptions common;
  AdapterOptions adapter;
  ChatArguments chat_arguments;
  moxie::GenerateOptions options;
  std::optional<std::string> text, ids, chat, system;
  std::vector<std::int32_t> prompt_ids;  // of --ids
  bool json = false;

  void check_usage() {
    const int prompts = int{text.has_value()} + int{ids.has_value()} + int{chat.has_value()};
    if (prompts != 1) wrong_usage("generate", "needs one of -p TEXT, --ids 1,2,3 and --chat TEXT");
    if (system && !chat) wrong_usage("--system", "goes with --chat only");
    if (!chat_arguments.options.template_kwargs.is_null() && !chat)
      wrong_usage("--chat-template-kwargs", "goes with --chat only");
    if (ids) prompt_ids = parse_ids(*ids);
  }

  std::vector<std::int32_t> prompt(const moxie::Model& loaded) const {
    if (ids) return prompt_ids;
    if (text) return loaded.encode(*text);
    std::vector<moxie::Message> messages;
    if (system) messages.push_back({"system", *system});
    messages.push_back({"user", *chat});
    return loaded.chat(messages, chat_arguments.options);
  }

 private:
  static std::vector<std::int32_t> parse_ids(const std::string& list) {
    std::vector<std::int32_t> all;
    const char *at = list.data(), *end = at + list.size();
    while (true) {
      std::int32_t id = -1;
      const auto [stop, error] = std::from_chars(at, end, id);
      if (error != std::errc() || id < 0 || (stop != end && *stop != ','))
        wrong_usage("--ids", "must be token ids with commas between, as in 1,2,3");
      all.push_back(id);
      if (stop == end) return all;
      at = stop + 1;
    }
  }
};

struct GenerateTimes {
  double prompt = 0.0, generate = 0.0;
};

inline std::string generate_json(const moxie::Model& model, const std::vector<std::int32_t>& prompt,
                                 const moxie::Generation& generation, const GenerateTimes& times) {
  std::string out = "{\"ids\":";
  append_json_list(out, generation.ids());
  out += ",\"text\":";
  if (model.has_tokenizer()) {
    append_json(out, generation.text());
  } else {
    out += "null";
  }
  out += ",\"logprobs\":";
  const auto& samples = generation.samples();
  const auto n = static_cast<std::int64_t>(samples.size());
  append_list(out, n, [&](std::int64_t i) { append_json(out, samples[static_cast<std::size_t>(i)].logprob); });
  out += ",\"finish_reason\":";
  append_json(out, moxie::name(generation.finish_reason()));
  out += ",\"prompt_ids\":";
  append_json_list(out, prompt);
  const auto m = static_cast<std::int64_t>(prompt.size());
  const nlohmann::ordered_json timings = {{"load_seconds", model.info().load_seconds},
                                          {"prompt_tokens", m},
                                          {"prompt_seconds", times.prompt},
                                          {"prompt_tokens_per_s", per_second(m, times.prompt)},
                                          {"generate_tokens", n},
                                          {"generate_seconds", times.generate},
                                          {"generate_tokens_per_s", per_second(n, times.generate)}};
  return out + ",\"timings\":" + timings.dump() + "}\n";
}

inline int generate(const GenerateCommand& command) {
  take_interrupts();
  const moxie::Model model = load_model(command.model, command.common, command.adapter);
  const std::vector<std::int32_t> prompt = command.prompt(model);
  if (prompt.empty())
    throw moxie::ArgumentError("the prompt has no tokens; give a text, or the model's beginning-of-sequence token with --ids");
  moxie::Session session(model);
  GenerateTimes times;
  auto start = std::chrono::steady_clock::now();
  {
    Progress bar("prompt");
    session.feed(prompt, [&](std::int64_t done, std::int64_t total) {
      stop_when_interrupted();
      bar(done, total);
    });
  }
  times.prompt = seconds_since(start);

  Output output;
  start = std::chrono::steady_clock::now();
  moxie::Generation generation = session.generate(command.options);
  bool more = true;
  while (more) {
    if (interrupted().load() != 0) session.cancel();
    more = generation.step();
    if (command.json) continue;
    if (model.has_tokenizer()) {
      if (!generation.piece().empty()) output.write(generation.piece());
    } else if (more) {
      output.write((generation.samples().size() > 1 ? "," : "") + std::to_string(generation.samples().back().id));
    }
  }
  times.generate = seconds_since(start);
  output.write(command.json ? generate_json(model, prompt, generation, times) : "\n");
  if (::isatty(STDERR_FILENO) == 1) {
    const auto n = static_cast<std::int64_t>(generation.samples().size());
    std::fprintf(stderr, "%lld tokens, %.1f tokens/s (prompt: %zu tokens, %.1f tokens/s)\n", static_cast<long long>(n),
                 per_second(n, times.generate), prompt.size(),
                 per_second(static_cast<std::int64_t>(prompt.size()), times.prompt));
  }
  return generation.finish_reason() == moxie::FinishReason::cancelled ? 128 + interrupted().load() : 0;
}

inline void add_generate(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("generate", "one answer to a prompt");
  auto options = std::make_shared<GenerateCommand>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command.add_option("-p,--prompt", options->text,
                     "a text to continue; begins with the beginning-of-sequence token where the tokenizer adds it");
  command.add_option("--ids", options->ids, "token ids to continue, as in 1,2,3");
  command.add_option("--chat", options->chat, "a question, asked as the model's chat template writes it");
  command.add_option("--system", options->system, "a system message for --chat");
  command.add_option("-n,--max-tokens", options->options.max_tokens, "tokens at most")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 40))
      ->capture_default_str();
  add_sampling_options(command, options->options);
  command.add_option("--stop", options->options.stop, "a text that ends the answer; may be given several times")
      ->check([](const std::string& text) { return text.empty() ? std::string("must not be empty") : std::string(); })
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", options->options.ignore_eos, "do not stop at the end-of-sequence token");
  command.add_flag("--json", options->json, "one object: ids, text, logprobs, finish_reason, prompt_ids, timings");
  options->chat_arguments.add(command);
  options->adapter.add(command);
  options->common.add(command);
  command.callback([options, &run] {
    options->check_usage();
    run = [options] { return generate(*options); };
  });
}

}  // namespace tool
