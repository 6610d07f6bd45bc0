#pragma once
// moxie chat: a conversation in the terminal, or with lines from a pipe.
//
// The KV cache is kept between turns: of the next prompt, only what differs from the tokens that have been run is run.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common.hpp"
#include "generate.hpp"
#include "terminal.hpp"
#include "text_io.hpp"

namespace tool {

struct ChatCommand {
  std::string model, system;
  CommonOptions common;
  AdapterOptions adapter;
  ChatArguments chat;
  moxie::GenerateOptions options;
};

class Conversation {
 public:
  Conversation(const ChatCommand& command, const moxie::Model& model)
      : options_(command.options),
        chat_(command.chat.options),
        system_(command.system),
        model_(model),
        session_(model),
        terminal_(::isatty(STDOUT_FILENO) == 1) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({"system", system_});
  }

  void ask(const std::string& question) {
    messages_.push_back({"user", question});
    answer();
  }
  /// The last question again, with other draws.
  void regenerate() {
    if (!messages_.empty() && messages_.back().role == "assistant") messages_.pop_back();
    if (messages_.empty() || messages_.back().role != "user") {
      std::fprintf(stderr, "there is no question yet\n");
      return;
    }
    ++options_.seed;
    answer();
  }

 private:
  void answer() {
    forget_interrupt();
    try {
      feed(prompt());
      generate();
    } catch (const moxie::Cancelled&) {
      std::fprintf(stderr, "[stopped while reading the prompt]\n");
      messages_.pop_back();
    } catch (const moxie::ArgumentError& error) {  // the question is too long, or the format cannot say this
      messages_.pop_back();
      std::fprintf(stderr, "error: %s\n", error.what());
    }
    forget_interrupt();
  }

  /// Ids of the conversation. Where they leave less than an eighth of the context for an answer, the oldest questions are
  /// forgotten with their answers.
  std::vector<std::int32_t> prompt() {
    const auto context = static_cast<std::size_t>(model_.config().context_length);
    std::vector<moxie::Message> kept = messages_;
    std::vector<std::int32_t> ids = model_.chat(kept, chat_);
    int forgotten = 0;
    for (; ids.size() > context - context / 8 && forget_oldest(kept); ++forgotten) ids = model_.chat(kept, chat_);
    if (ids.size() >= context)
      throw moxie::ArgumentError("the question alone takes " + std::to_string(ids.size()) +
                                 " tokens with what the chat template adds; the model's context has " + std::to_string(context) +
                                 ": ask a shorter one");
    messages_ = std::move(kept);
    if (forgotten > 0)
      std::fprintf(stderr, "[the context of %zu tokens is full: the oldest %s forgotten; /reset forgets all]\n", context,
                   forgotten == 1 ? "question is" : (std::to_string(forgotten) + " questions are").c_str());
    return ids;
  }
  /// False where the last question is the only one.
  static bool forget_oldest(std::vector<moxie::Message>& messages) {
    const auto is_question = [](const moxie::Message& message) { return message.role == "user"; };
    const auto first = std::find_if(messages.begin(), messages.end(), is_question);
    const auto second = first == messages.end() ? first : std::find_if(first + 1, messages.end(), is_question);
    if (second == messages.end()) return false;
    messages.erase(first, second);
    return true;
  }

  /// Makes the session's tokens those of `prompt`; the tokens both begin with stay.
  void feed(const std::vector<std::int32_t>& prompt) {
    const auto have = session_.ids();
    const auto same = std::mismatch(have.begin(), have.end(), prompt.begin(), prompt.end()).second;
    session_.rewind(same - prompt.begin());
    Progress bar("prompt");
    session_.feed(std::span(prompt).subspan(static_cast<std::size_t>(same - prompt.begin())),
                  [&](std::int64_t done, std::int64_t total) {
                    stop_when_interrupted();
                    bar(done, total);
                  });
  }

  void generate() {
    const std::string prompt = model_.chat_text(messages_, chat_);
    AnswerView view(output_, terminal_, prompt.rfind("<think>") != std::string::npos && prompt.ends_with("<think>\n"));
    const auto start = std::chrono::steady_clock::now();
    moxie::Generation generation = session_.generate(options_);
    bool more = true;
    while (more) {
      if (interrupted().load() != 0) session_.cancel();
      more = generation.step();
      if (!generation.piece().empty()) view.push(generation.piece());
    }
    view.finish();
    output_.write("\n");
    messages_.push_back(model_.answer_message(generation.text()));
    const double seconds = seconds_since(start);
    const auto n = static_cast<std::int64_t>(generation.samples().size());
    const bool dimmed = ::isatty(STDERR_FILENO) == 1;
    std::fprintf(stderr, "%s[%lld tokens, %.1f tokens/s%s]%s\n", dimmed ? "\x1b[2m" : "", static_cast<long long>(n),
                 per_second(n, seconds), why(generation), dimmed ? "\x1b[0m" : "");
  }

  const char* why(const moxie::Generation& generation) const {
    if (generation.finish_reason() == moxie::FinishReason::cancelled) return ", stopped";
    if (generation.finish_reason() != moxie::FinishReason::length) return "";
    return session_.length() >= model_.config().context_length ? ", cut: the context is full"
                                                               : ", cut at --max-tokens";
  }

  moxie::GenerateOptions options_;
  moxie::ChatOptions chat_;
  std::string system_;
  moxie::Model model_;
  moxie::Session session_;
  std::vector<moxie::Message> messages_;
  Output output_;
  bool terminal_;
};

inline int chat(const ChatCommand& command) {
  const moxie::Model model = load_model(command.model, command.common, command.adapter);
  model.require_chat();
  take_interrupts();
  Conversation conversation(command, model);
  const bool asks = ::isatty(STDIN_FILENO) == 1 && ::isatty(STDERR_FILENO) == 1;
  if (asks) std::fprintf(stderr, "%s. /reset, /regenerate, /exit; Ctrl-C stops an answer\n", command.model.c_str());
  InputLines input;
  std::string line;
  while (interrupted().load() != SIGTERM) {
    if (asks) std::fputs("> ", stderr);
    const InputLines::Result result = input.next(line);
    if (result == InputLines::Result::end) break;
    if (result == InputLines::Result::interrupted) {
      if (interrupted().load() == SIGTERM) break;
      forget_interrupt();
      std::fputs(asks ? "\n(/exit or Ctrl-D ends the program)\n" : "", stderr);
      continue;
    }
    if (line == "/exit" || line == "/quit") return 0;
    if (line == "/reset") {
      conversation.reset();
    } else if (line == "/regenerate") {
      conversation.regenerate();
    } else if (line.starts_with('/') && line.find(' ') == std::string::npos) {
      std::fprintf(stderr, "there is no command %s; there are /reset, /regenerate and /exit\n", line.c_str());
    } else if (line.find_first_not_of(" \t") != std::string::npos) {
      conversation.ask(line);
    }
  }
  if (asks) std::fputc('\n', stderr);
  return interrupted().load() == SIGTERM ? 128 + SIGTERM : 0;
}

inline void add_chat(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("chat", "a conversation; /reset, /regenerate, /exit; Ctrl-C stops an answer");
  auto options = std::make_shared<ChatCommand>();
  options->options.max_tokens = std::int64_t{1} << 40;  // until the context is full
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command.add_option("--system", options->system, "a system message");
  command
      .add_option("-n,--max-tokens", options->options.max_tokens,
                  "tokens of an answer at most; without it, what fits in the context")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  add_sampling_options(command, options->options);
  options->chat.add(command);
  options->adapter.add(command);
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return chat(*options); }; });
}

}  // namespace tool
