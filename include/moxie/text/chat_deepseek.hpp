#pragma once
// The chat formats of DeepSeek-V2, V3 and R1.
//
//   V2:       BOS User: TEXT⏎⏎ Assistant: TEXT EOS           (a system message is its text and ⏎⏎)
//   V3:       BOS SYSTEM <｜User｜>TEXT<｜Assistant｜>TEXT<｜end▁of▁sentence｜>    (system messages go first, joined by ⏎⏎)
//   R1:       as V3; of an answer only what follows </think>, and a prompt for an answer begins its thinking:
//   <｜Assistant｜><think>⏎
//
// Source: the chat_template of their tokenizer_config.json.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/text/chat_message.hpp>

namespace moxie::chat {

inline constexpr std::string_view deepseek_bos = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view deepseek_eos = "<｜end▁of▁sentence｜>";

inline std::string render_deepseek_v2(std::span<const Message> messages, const ChatOptions& options) {
  std::string out = options.bos.value_or(std::string(deepseek_bos));
  for (const Message& message : messages) {
    if (message.role == "user") {
      out += concat("User: ", content(message), "\n\n");
    } else if (message.role == "assistant") {
      out += concat("Assistant: ", content(message), options.eos.value_or(std::string(deepseek_eos)));
    } else if (message.role == "system") {
      out += concat(content(message), "\n\n");
    }
  }
  if (options.add_generation_prompt) out += "Assistant:";
  return out;
}

/// V3, or with `thinks` R1.
inline std::string render_deepseek(std::span<const Message> messages, const ChatOptions& options, bool thinks) {
  const std::string eos(deepseek_eos);  // the template writes this one, whatever the model's is
  std::string out = options.bos.value_or(std::string(deepseek_bos));
  bool first_system = true;
  for (const Message& message : messages) {
    if (message.role != "system") continue;
    out += (first_system ? "" : "\n\n") + content(message);
    first_system = false;
  }
  // as in the template, the first call and the first output are those of the conversation, not of the message
  bool first_call = true;
  bool first_output = true;
  bool after_tool = false;
  for (const Message& message : messages) {
    if (message.role == "user") {
      after_tool = false;
      out += concat("<｜User｜>", content(message));
    } else if (message.role == "assistant" && !message.content) {
      after_tool = false;
      for (const auto& json : array_or_null(message.tool_calls, "tool_calls")) {
        const ToolCall call = tool_call(json);
        if (!call.arguments.is_string())
          throw ArgumentError("this chat format needs the arguments of a tool call as a string of JSON");
        out += first_call ? "<｜Assistant｜><｜tool▁calls▁begin｜>" : "\n";
        out += concat("<｜tool▁call▁begin｜>", call.type, "<｜tool▁sep｜>", call.name, "\n```json\n",
                      call.arguments.get<std::string>(), "\n```<｜tool▁call▁end｜>");
        if (!first_call) out += concat("<｜tool▁calls▁end｜>", eos);
        first_call = false;
      }
    } else if (message.role == "assistant") {
      std::string_view text = *message.content;
      if (const std::size_t end = text.rfind("</think>"); thinks && !after_tool && end != std::string_view::npos)
        text.remove_prefix(end + 8);
      ((out += after_tool ? "<｜tool▁outputs▁end｜>" : "<｜Assistant｜>") += text) += eos;
      after_tool = false;
    } else if (message.role == "tool") {
      after_tool = true;
      out += first_output ? "<｜tool▁outputs▁begin｜>" : "\n";
      out += concat("<｜tool▁output▁begin｜>", content(message), "<｜tool▁output▁end｜>");
      first_output = false;
    }
  }
  if (after_tool) out += "<｜tool▁outputs▁end｜>";
  if (options.add_generation_prompt && !after_tool) out += thinks ? "<｜Assistant｜><think>\n" : "<｜Assistant｜>";
  return out;
}

inline std::string render_deepseek_v3(std::span<const Message> messages, const ChatOptions& options) {
  return render_deepseek(messages, options, false);
}
inline std::string render_deepseek_r1(std::span<const Message> messages, const ChatOptions& options) {
  return render_deepseek(messages, options, true);
}

}  // namespace moxie::chat
