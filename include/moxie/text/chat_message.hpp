#pragma once
// Conversations: what chat formats render.

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// One message, with the fields of the OpenAI and Hugging Face conventions.
struct Message {
  std::string role{};                              ///< system, user, assistant, tool
  std::optional<std::string> content{};            ///< null in some assistant messages that only call tools
  std::optional<std::string> reasoning_content{};  ///< the thinking of an assistant message
  nlohmann::ordered_json tool_calls = nullptr;     ///< an array of {"type", "function": {"name", "arguments"}}, or null
};

struct ChatOptions {
  bool add_generation_prompt = true;       ///< ends with the start of an assistant message
  bool enable_thinking = true;             ///< false asks a model that can do without thinking to do so
  bool continue_final_message = false;     ///< ends with the last message's content, for the model to go on
  /// An array of tool descriptions, or null. harmony, qwen3 and qwen3_thinking describe them to the model, deepseek_v3 and
  /// deepseek_r1 leave them out as their templates do, the other formats refuse them.
  nlohmann::ordered_json tools = nullptr;
  std::optional<std::string> bos{};        ///< the begin-of-sentence token's text; absent: the one the format's models have
  std::optional<std::string> eos{};
  std::string reasoning_effort = "medium";  ///< harmony: low, medium or high
  std::optional<std::string> date{};        ///< harmony, "2026-01-31"; absent: today's, in UTC
};

/// A message from JSON: {"role": .., "content": .., "reasoning_content": .., "tool_calls": ..}; other fields are ignored.
/// Throws ArgumentError where a field has another type than formats can render.
inline Message message_from_json(const nlohmann::ordered_json& json) {
  if (!json.is_object()) throw ArgumentError("a message must be an object with role and content");
  const auto text = [&](const char* key) -> std::optional<std::string> {
    const auto field = json.find(key);
    if (field == json.end() || field->is_null()) return std::nullopt;
    if (!field->is_string()) throw ArgumentError(concat("a message's ", key, " must be a string, is ", field->type_name()));
    return field->get<std::string>();
  };
  Message message;
  const auto role = text("role");
  if (!role) throw ArgumentError("a message must have a role: system, user, assistant or tool");
  message.role = *role;
  message.content = text("content");
  message.reasoning_content = text("reasoning_content");
  if (const auto calls = json.find("tool_calls"); calls != json.end()) message.tool_calls = *calls;
  return message;
}

namespace chat {

/// The content of a message that must have one.
inline const std::string& content(const Message& message) {
  if (!message.content)
    throw ArgumentError(concat("this chat format needs the content of each ", message.role, " message, one has none"));
  return *message.content;
}

/// `json`, which must be an array or null. Throws ArgumentError.
inline const nlohmann::ordered_json& array_or_null(const nlohmann::ordered_json& json, const char* name) {
  if (!json.is_array() && !json.is_null()) throw ArgumentError(concat(name, " must be an array or null, is ", json.type_name()));
  return json;
}

/// One call of message.tool_calls.
struct ToolCall {
  std::string type, name;
  nlohmann::ordered_json arguments;
};

inline ToolCall tool_call(const nlohmann::ordered_json& json) {
  const auto fail = [] {
    throw ArgumentError("a tool call must be {\"type\": \"function\", \"function\": {\"name\": .., \"arguments\": ..}}");
  };
  if (!json.is_object()) fail();
  const auto function = json.find("function");
  const nlohmann::ordered_json& call = function != json.end() ? *function : json;
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string() || !call.contains("arguments")) fail();
  const auto type = json.find("type");
  if (type != json.end() && !type->is_string()) fail();
  return {type != json.end() ? type->get<std::string>() : "function", call["name"].get<std::string>(), call["arguments"]};
}

}  // namespace chat
}  // namespace moxie
