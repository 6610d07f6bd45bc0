#pragma once
// A model's own chat template, rendered as transformers' apply_chat_template renders it, but for what jinja.hpp lists.
//
//   const ChatTemplate chat(source);                                  // Jinja, of tokenizer_config.json or a GGUF file
//   std::string text = chat.render(messages, {.bos = "<s>"});
//
// Templates see `messages`, `tools`, `documents` (none), `add_generation_prompt`, `bos_token` and `eos_token` where they are
// given, and ChatOptions::template_kwargs; strftime_now() is in UTC. A message that has its thinking as one of reasoning_content,
// thinking and reasoning is seen with reasoning_content and thinking.

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/chat_harmony.hpp>
#include <moxie/text/chat_message.hpp>
#include <moxie/text/jinja.hpp>

namespace moxie {

class ChatTemplate {
 public:
  /// Throws FormatError with the line of what is no Jinja, or is not supported (jinja.hpp).
  explicit ChatTemplate(std::string_view source)
      : template_(source),
        tools_(template_.mentions("tools")),
        calls_(template_.mentions("tool_calls")),
        harmony_(source.find("<|channel|>") != std::string_view::npos && source.find("<|message|>") != std::string_view::npos) {}

  /// The text of a conversation, an array of at least one message as Hugging Face and OpenAI write them, all fields of which the
  /// template sees. Throws ArgumentError where the template refuses it, or has no word of the tools or the calls that are given.
  template <std::same_as<nlohmann::ordered_json> Json>
  std::string render(const Json& messages, const ChatOptions& options = {}) const {
    if (!messages.is_array() || messages.empty()) throw ArgumentError("a conversation must be an array of at least one message");
    for (const nlohmann::ordered_json* json : {&messages, &options.tools, &options.template_kwargs}) check_nesting(*json);
    chat::array_or_null(options.tools, "tools");
    if (!options.tools.empty() && !tools_) refuse("tools");

    nlohmann::ordered_json variables = nlohmann::ordered_json::object();
    variables["messages"] = messages;
    for (nlohmann::ordered_json& message : variables["messages"]) complete(message);
    variables["tools"] = options.tools;
    variables["documents"] = nullptr;
    variables["add_generation_prompt"] = options.add_generation_prompt && !options.continue_final_message;
    if (options.bos) variables["bos_token"] = *options.bos;
    if (options.eos) variables["eos_token"] = *options.eos;
    if (options.reasoning_effort) variables["reasoning_effort"] = *options.reasoning_effort;
    if (!options.enable_thinking) variables["enable_thinking"] = variables["thinking"] = false;
    if (!options.template_kwargs.is_object() && !options.template_kwargs.is_null())
      throw ArgumentError("template_kwargs must be an object, or null");
    for (const auto& [name, value] : options.template_kwargs.items()) {
      if (name == "messages" || name == "tools" || name == "add_generation_prompt")
        throw ArgumentError(concat("template_kwargs cannot have \"", name, "\": it is given by itself"));
      variables[name] = value;
    }

    if (options.continue_final_message) last_text(variables["messages"].back()) += continue_tag;
    std::string text = template_.render(variables, time(options));
    if (options.continue_final_message) cut_at_tag(text);
    return text;
  }
  std::string render(std::span<const Message> messages, const ChatOptions& options = {}) const {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Message& message : messages) all.push_back(message_to_json(message));
    return render(all, options);
  }

  /// A model's answer as a message of the conversation: the text as it is, but of harmony's templates, which take thinking and
  /// answer apart.
  Message answer_message(std::string_view text) const {
    return harmony_ ? chat::harmony_answer(text) : Message{"assistant", std::string(text)};
  }

 private:
  [[noreturn]] static void refuse(const char* what) {
    throw ArgumentError(concat("the model's chat template has no ", what, ". Describe the tools in a system message instead"));
  }

  void complete(nlohmann::ordered_json& message) const {
    if (!message.is_object() || !message.contains("role"))
      throw ArgumentError("a message must be an object with a role: system, user, assistant or tool");
    if (const auto calls = message.find("tool_calls"); calls != message.end() && !calls->empty() && !calls_) refuse("tool calls");
    for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
      const auto field = message.find(name);
      if (field == message.end() || field->is_null()) continue;
      const nlohmann::ordered_json thinking = *field;
      if (!message.contains("thinking")) message["thinking"] = thinking;
      message["reasoning_content"] = thinking;
      return;
    }
  }

  // What is to be continued ends where a mark comes out that stands behind it; as transformers does it.
  static constexpr std::string_view continue_tag = "CONTINUE_FINAL_MESSAGE_TAG ";

  static std::string& last_text(nlohmann::ordered_json& message) {
    const auto content = message.find("content");
    if (content != message.end() && content->is_string()) return content->get_ref<std::string&>();
    if (content != message.end() && content->is_array())
      for (auto part = content->rbegin(); part != content->rend(); ++part)
        if (part->is_object() && part->contains("text") && (*part)["text"].is_string())
          return (*part)["text"].get_ref<std::string&>();
    throw ArgumentError("cannot continue the final message: it has no text");
  }
  static void cut_at_tag(std::string& text) {
    const std::size_t at = text.rfind(continue_tag.substr(0, continue_tag.size() - 1));
    if (at == std::string::npos) throw ArgumentError("cannot continue the final message: the chat template leaves its text out");
    const bool kept = std::string_view(text).substr(at).starts_with(continue_tag);  // else the end's white space is not kept
    text.resize(at);
    if (!kept) text.resize(jinja::strip(text, {}, false, true).size());
  }

  /// Copies and conversions of JSON take stack.
  static void check_nesting(const nlohmann::ordered_json& json) {
    std::vector<std::pair<const nlohmann::ordered_json*, int>> left{{&json, 0}};
    while (!left.empty()) {
      const auto [value, depth] = left.back();
      left.pop_back();
      if (depth > jinja::max_nesting) throw ArgumentError("a conversation's JSON is nested too deeply");
      if (!value->is_structured()) continue;
      for (const nlohmann::ordered_json& item : *value) left.emplace_back(&item, depth + 1);
    }
  }

  static jinja::Time time(const ChatOptions& options) {
    if (!options.date) {
      const auto now = std::chrono::system_clock::now();
      const auto day = std::chrono::floor<std::chrono::days>(now);
      const std::chrono::year_month_day date = day;
      const std::chrono::hh_mm_ss clock(std::chrono::floor<std::chrono::seconds>(now - day));
      return {static_cast<int>(date.year()),
              static_cast<int>(static_cast<unsigned>(date.month())),
              static_cast<int>(static_cast<unsigned>(date.day())),
              static_cast<int>(clock.hours().count()),
              static_cast<int>(clock.minutes().count()),
              static_cast<int>(clock.seconds().count())};
    }
    const std::string& d = *options.date;
    const auto digits = [&](std::size_t at, std::size_t n) {
      return d.size() == 10 && d.find_first_not_of("0123456789", at) >= at + n ? std::atoi(d.substr(at, n).c_str()) : 0;
    };
    const jinja::Time out{digits(0, 4), digits(5, 2), digits(8, 2)};
    const bool valid =
        std::chrono::year_month_day(std::chrono::year(out.year), std::chrono::month(static_cast<unsigned>(out.month)),
                                    std::chrono::day(static_cast<unsigned>(out.day)))
            .ok();
    if (!valid || out.year == 0 || d[4] != '-' || d[7] != '-')
      throw ArgumentError(concat("ChatOptions::date must be a day like 2026-01-31, is \"", d, "\""));
    return out;
  }

  jinja::Template template_;
  bool tools_, calls_, harmony_;
};

}  // namespace moxie
