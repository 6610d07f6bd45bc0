#pragma once
// Harmony, the chat format of gpt-oss.
//
//   <|start|>system<|message|>WHO, DATE, EFFORT AND CHANNELS<|end|>
//   <|start|>developer<|message|># Instructions⏎⏎TEXT⏎⏎# Tools⏎⏎TYPES<|end|>      (the conversation's system message, and tools)
//   <|start|>user<|message|>TEXT<|end|>
//   <|start|>assistant<|channel|>final<|message|>TEXT<|end|>
//   <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>ARGUMENTS<|call|>
//   <|start|>functions.NAME to=assistant<|channel|>commentary<|message|>"RESULT"<|end|>
//
// The thinking of an assistant (channel analysis) stands before a call of a tool until a final answer has come, and before the
// last answer where no other is asked for. Of several calls in a message the first alone is rendered, as by the template, and of
// system messages the one that comes first. Tools are described as TypeScript.
// Source: the chat_template of gpt-oss-120b. Not here: its own tools (browser, python) and another identity.

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/chat_message.hpp>
#include <moxie/text/python_json.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::chat {

/// What Python takes for true.
inline bool is_true(const nlohmann::ordered_json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0.0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

/// A field of an object; null where there is none.
inline const nlohmann::ordered_json& field_of(const nlohmann::ordered_json& object, const char* name) {
  static const nlohmann::ordered_json none;
  if (!object.is_object()) return none;
  const auto it = object.find(name);
  return it != object.end() ? *it : none;
}

/// A string, or what JSON has in its place.
inline std::string plain_text(const nlohmann::ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : python_json(value);
}

inline std::string join_texts(const nlohmann::ordered_json& values, std::string_view between) {
  std::string out;
  bool first = true;
  for (const auto& value : values) (out += std::exchange(first, false) ? "" : between) += plain_text(value);
  return out;
}

inline bool is_required(const nlohmann::ordered_json& object, const std::string& name) {
  for (const auto& required : field_of(object, "required"))
    if (required == name) return true;
  return false;
}

/// The TypeScript type of a JSON schema. The template's own line breaks and spaces are part of what the model was trained on.
inline std::string harmony_type(const nlohmann::ordered_json& schema, int depth = 0) {
  if (depth > 64) throw ArgumentError("the description of a tool's parameters is nested too deeply");
  const nlohmann::ordered_json& type = field_of(schema, "type");
  const char* null = is_true(field_of(schema, "nullable")) ? " | null" : "";
  if (type == "array") {
    const nlohmann::ordered_json& items = field_of(schema, "items");
    if (!is_true(items)) return concat("any[]", null);
    const nlohmann::ordered_json& item = field_of(items, "type");
    if (item == "string" || item == "number" || item == "boolean") return concat(item.get<std::string>(), "[]", null);
    if (item == "integer") return concat("number[]", null);
    const std::string inner = harmony_type(items, depth + 1);
    std::size_t characters = 0;
    for (std::string_view rest = inner; !rest.empty(); ++characters) rest.remove_prefix(utf8_step(rest).length);
    return concat((inner == "object | object" || characters > 50 ? "any" : inner), "[]", null);
  }
  if (type.is_array() && !type.empty()) return join_texts(type, " | ");
  if (const nlohmann::ordered_json& variants = field_of(schema, "oneOf"); is_true(variants)) {
    std::string out;
    for (const auto& variant : variants) {
      if (!out.empty()) out += " | \n";
      out += harmony_type(variant, depth + 1);
      if (is_true(field_of(variant, "description"))) out += concat("// ", plain_text(field_of(variant, "description")));
      if (variant.is_object() && variant.contains("default"))
        out += concat(std::string(20, ' '), "// default: ", python_json(variant["default"]));
    }
    return out;
  }
  if (type == "string") {
    const nlohmann::ordered_json& values = field_of(schema, "enum");
    return is_true(values) ? concat("\"", join_texts(values, "\" | \""), "\"") : concat("string", null);
  }
  if (type == "number" || type == "integer") return "number";
  if (type == "boolean") return "boolean";
  if (type != "object") return "any";
  const nlohmann::ordered_json& properties = field_of(schema, "properties");
  if (!is_true(properties)) return "object";
  std::string out;
  for (const auto& [name, property] : properties.items())
    out += concat((out.empty() ? "" : ", "), name, (is_required(schema, name) ? "" : "?"), ": \n", std::string(16, ' '),
                  harmony_type(property, depth + 1));
  return concat("{\n", out, "}");
}

inline std::string harmony_tools(const nlohmann::ordered_json& tools) {
  std::string out = "# Tools\n\n## functions\n\nnamespace functions {\n\n";
  for (const auto& tool : tools) {
    const nlohmann::ordered_json &function = field_of(tool, "function"), &parameters = field_of(function, "parameters");
    const nlohmann::ordered_json &name = field_of(function, "name"), &description = field_of(function, "description");
    if (!name.is_string() || !description.is_string())
      throw ArgumentError("a tool must be {\"type\": \"function\", \"function\": {\"name\": .., \"description\": .., ..}}");
    out += concat("// ", description.get<std::string>(), "\ntype ", name.get<std::string>(), " = ");
    const nlohmann::ordered_json& properties = field_of(parameters, "properties");
    if (!is_true(properties)) {
      out += "() => any;\n\n";
      continue;
    }
    out += "(_: {\n";
    for (const auto& [parameter, schema] : properties.items()) {
      if (is_true(field_of(schema, "description"))) out += concat("// ", plain_text(field_of(schema, "description")), "\n");
      out += concat(parameter, (is_required(parameters, parameter) ? "" : "?"), ": ", harmony_type(schema));
      if (schema.is_object() && schema.contains("default")) {
        const nlohmann::ordered_json& value = schema["default"];
        if (is_true(field_of(schema, "enum"))) {
          out += concat(", // default: ", plain_text(value));
        } else if (is_true(field_of(schema, "oneOf"))) {
          out += concat("// default: ", plain_text(value));
        } else {
          out += concat(", // default: ", python_json(value));
        }
      }
      out += ",\n";
    }
    out += "}) => any;\n\n";
  }
  return out + "} // namespace functions";
}

/// Today in UTC, YYYY-MM-DD.
inline std::string today() {
  const std::chrono::year_month_day day = std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now());
  char text[32];
  std::snprintf(text, sizeof text, "%04d-%02u-%02u", static_cast<int>(day.year()), static_cast<unsigned>(day.month()),
                static_cast<unsigned>(day.day()));
  return text;
}

inline std::string harmony_block(std::string_view head, std::string_view text, std::string_view end = "<|end|>") {
  return concat("<|start|>", head, "<|message|>", text, end);
}

inline std::string render_harmony(std::span<const Message> messages, const ChatOptions& options) {
  const bool tools = !array_or_null(options.tools, "tools").empty();
  std::string out = harmony_block(
      "system", concat("You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: ",
                       (options.date ? *options.date : today()), "\n\nReasoning: ", options.reasoning_effort.value_or("medium"),
                       "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.",
                       (tools ? "\nCalls to these tools must go to the commentary channel: 'functions'." : "")));
  std::string instructions;
  if (messages.front().role == "system" || messages.front().role == "developer") {
    instructions = content(messages.front());
    messages = messages.subspan(1);
  }
  if (tools || !instructions.empty())
    out += harmony_block("developer", concat((instructions.empty() ? "" : concat("# Instructions\n\n", instructions, "\n\n")),
                                             (tools ? harmony_tools(options.tools) : "")));

  const auto check_channels = [](const std::string& text) {
    if (text.find("<|channel|>analysis<|message|>") != std::string::npos ||
        text.find("<|channel|>final<|message|>") != std::string::npos)
      throw ArgumentError("a message has <|channel|> tags in its text; its thinking belongs in reasoning_content");
  };
  const auto calls = [](const Message& message) { return !array_or_null(message.tool_calls, "tool_calls").is_null(); };
  std::size_t last_final = 0;  // of assistant messages without calls, counted from 1
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (messages[i].role == "assistant" && !calls(messages[i])) last_final = i + 1;
  std::string called;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (message.role == "user") out += harmony_block("user", content(message));
    if (message.role == "tool") {
      if (called.empty()) throw ArgumentError("a message of a tool needs an assistant's call of one before it");
      out +=
          harmony_block(concat("functions.", called, " to=assistant<|channel|>commentary"), python_json_string(content(message)));
    }
    if (message.role != "assistant") continue;
    const bool called_tools = calls(message);
    const std::string text = called_tools ? message.content.value_or("") : content(message);
    check_channels(text);
    if (message.reasoning_content) check_channels(*message.reasoning_content);
    const auto thinking = [&](const std::string& thought) { out += harmony_block("assistant<|channel|>analysis", thought); };
    if (called_tools) {
      const std::string reasoning = message.reasoning_content.value_or("");
      if (!text.empty() && !reasoning.empty())
        throw ArgumentError("an assistant message with tool calls has both content and reasoning_content; it can have one");
      if (i + 1 >= last_final && !(text.empty() && reasoning.empty())) thinking(text.empty() ? reasoning : text);
      const ToolCall call = tool_call(message.tool_calls.empty() ? nlohmann::ordered_json() : message.tool_calls.front());
      out += harmony_block(concat("assistant to=functions.", call.name, "<|channel|>commentary json"),
                           python_json(call.arguments), "<|call|>");
      called = call.name;
      continue;
    }
    const bool last = i + 1 == messages.size() && !options.add_generation_prompt;
    if (last && message.reasoning_content) thinking(*message.reasoning_content);
    out += harmony_block("assistant<|channel|>final", text, last ? "<|return|>" : "<|end|>");
    if (!last) called.clear();
  }
  if (options.add_generation_prompt) out += "<|start|>assistant";
  return out;
}

/// An answer as the model writes it, <|channel|>analysis<|message|>..<|end|><|start|>assistant<|channel|>final<|message|>..: its
/// thinking, and what it says in the other channels.
inline Message harmony_answer(std::string_view text) {
  constexpr std::string_view begin = "<|message|>";
  Message message{"assistant", ""};
  std::size_t at = text.find(begin);
  if (at == std::string_view::npos) message.content = std::string(text);
  for (std::size_t head = 0; at != std::string_view::npos; at = text.find(begin, head)) {
    const bool thinking = text.substr(head, at - head).find("<|channel|>analysis") != std::string_view::npos;
    const std::string_view rest = text.substr(at + begin.size());
    std::string_view body = rest;
    for (const std::string_view end : {"<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>"})
      body = body.substr(0, body.find(end));
    if (thinking && !message.reasoning_content) message.reasoning_content = "";
    (thinking ? *message.reasoning_content : *message.content) += body;
    head = at + begin.size() + body.size();
  }
  return message;
}

}  // namespace moxie::chat
