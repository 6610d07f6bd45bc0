#pragma once
// ChatML and what Qwen2 and Qwen3 make of it.
//
//   <|im_start|>ROLE⏎TEXT<|im_end|>⏎ ...
//
// Qwen2 begins with a system message of its own where there is none. Qwen3 has tools, and keeps the thinking of an assistant
// message only after the last question. Its models that always think (Qwen3 Thinking 2507) begin the thinking in the prompt.
// Source: the chat_template of their tokenizer_config.json.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/text/chat_message.hpp>
#include <moxie/text/python_json.hpp>

namespace moxie::chat {

inline std::string im_block(const std::string& role, const std::string& text) {
  return concat("<|im_start|>", role, "\n", text, "<|im_end|>\n");
}

inline std::string render_chatml(std::span<const Message> messages, const ChatOptions& options) {
  std::string out;
  for (const Message& message : messages) out += im_block(message.role, content(message));
  if (options.add_generation_prompt) out += "<|im_start|>assistant\n";
  return out;
}

inline std::string render_qwen2(std::span<const Message> messages, const ChatOptions& options) {
  const bool has_system = !messages.empty() && messages.front().role == "system";
  return (has_system ? "" : im_block("system", "You are a helpful assistant.")) + render_chatml(messages, options);
}

inline std::string_view strip_left(std::string_view text, char c) {
  text.remove_prefix(std::min(text.find_first_not_of(c), text.size()));
  return text;
}
inline std::string_view strip_right(std::string_view text, char c) { return text.substr(0, text.find_last_not_of(c) + 1); }

/// The assistant messages' own text and thinking, which may stand in the text between <think> and </think>.
struct QwenAnswer {
  std::string_view text, thinking;
};

inline QwenAnswer qwen_answer(const Message& message) {
  const std::string_view text = content(message);
  if (message.reasoning_content) return {text, *message.reasoning_content};
  const std::size_t first_end = text.find("</think>");
  if (first_end == std::string_view::npos) return {text, {}};
  constexpr std::string_view start = "<think>";
  std::string_view thinking = strip_right(text.substr(0, first_end), '\n');
  if (const std::size_t last_start = thinking.rfind(start); last_start != std::string_view::npos)
    thinking.remove_prefix(last_start + start.size());
  return {strip_left(text.substr(text.rfind("</think>") + 8), '\n'), strip_left(thinking, '\n')};
}

inline std::string qwen3_tool_calls(const nlohmann::ordered_json& calls, bool after_text) {
  std::string out;
  for (const auto& json : array_or_null(calls, "tool_calls")) {
    const ToolCall call = tool_call(json);
    if (after_text || !out.empty()) out += '\n';
    out +=
        concat("<tool_call>\n{\"name\": \"", call.name, "\", \"arguments\": ",
               (call.arguments.is_string() ? call.arguments.get<std::string>() : python_json(call.arguments)), "}\n</tool_call>");
  }
  return out;
}

inline std::string qwen3_system(std::span<const Message> messages, const nlohmann::ordered_json& tools) {
  const bool has_system = messages.front().role == "system";
  if (array_or_null(tools, "tools").empty()) return has_system ? im_block("system", content(messages.front())) : "";
  std::string text = has_system ? concat(content(messages.front()), "\n\n") : "";
  text +=
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
      "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
  for (const auto& tool : tools) text += concat("\n", python_json(tool));
  text +=
      "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
      "<tool_call></tool_call> XML tags:\n"
      "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";
  return im_block("system", text);
}

/// The conversation without the start of an answer.
inline std::string qwen3_messages(std::span<const Message> messages, const ChatOptions& options) {
  // the last user message that is a question and not the result of a tool
  std::size_t last_question = messages.size() - 1;
  for (std::size_t i = messages.size(); i-- > 0;) {
    if (messages[i].role != "user") continue;
    const std::string_view text = content(messages[i]);
    if (text.starts_with("<tool_response>") && text.ends_with("</tool_response>")) continue;
    last_question = i;
    break;
  }

  std::string out = qwen3_system(messages, options.tools);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    const auto is_tool = [&](std::size_t k) { return k < messages.size() && messages[k].role == "tool"; };
    if (message.role == "user" || (message.role == "system" && i > 0)) {
      out += im_block(message.role, content(message));
    } else if (message.role == "assistant") {
      const QwenAnswer answer = qwen_answer(message);
      std::string text(answer.text);
      if (i > last_question && (i + 1 == messages.size() || !answer.thinking.empty())) {
        text = concat("<think>\n", strip_left(strip_right(answer.thinking, '\n'), '\n'), "\n</think>\n\n",
                      strip_left(answer.text, '\n'));
      }
      out += im_block(message.role, text + qwen3_tool_calls(message.tool_calls, !answer.text.empty()));
    } else if (message.role == "tool") {
      if (i == 0 || !is_tool(i - 1)) out += "<|im_start|>user";
      out += concat("\n<tool_response>\n", content(message), "\n</tool_response>");
      if (!is_tool(i + 1)) out += "<|im_end|>\n";
    }
  }
  return out;
}

inline std::string render_qwen3(std::span<const Message> messages, const ChatOptions& options) {
  std::string out = qwen3_messages(messages, options);
  if (options.add_generation_prompt) {
    out += "<|im_start|>assistant\n";
    if (!options.enable_thinking) out += "<think>\n\n</think>\n\n";
  }
  return out;
}

inline std::string render_qwen3_thinking(std::span<const Message> messages, const ChatOptions& options) {
  return qwen3_messages(messages, options) + (options.add_generation_prompt ? "<|im_start|>assistant\n<think>\n" : "");
}

}  // namespace moxie::chat
