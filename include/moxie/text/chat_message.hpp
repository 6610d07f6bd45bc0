#pragma once
// Conversations: what chat formats render.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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
  nlohmann::ordered_json more = nullptr;  ///< an object of further fields (name, tool_call_id ..), for the model's own template
};

struct ChatOptions {
  bool add_generation_prompt = true;  ///< ends with the start of an assistant message
  /// False asks a model that can do without thinking to do so: its template sees enable_thinking and thinking as false.
  bool enable_thinking = true;
  bool continue_final_message = false;  ///< ends with the last message's content, for the model to go on
  /// An array of tool descriptions, or null. A template without tools refuses them. Of the formats harmony, qwen3 and
  /// qwen3_thinking describe them to the model, deepseek_v3 and deepseek_r1 leave them out, the others refuse them.
  nlohmann::ordered_json tools = nullptr;
  std::optional<std::string> bos{};  ///< the begin-of-sentence token's text; absent: the one the format's models have
  std::optional<std::string> eos{};
  std::optional<std::string> reasoning_effort{};  ///< harmony: low, medium or high; absent: medium
  std::optional<std::string> date{};              ///< "2026-01-31"; absent: today's, in UTC
  /// An object of further variables for the model's own template, or null; before all others of the same name.
  nlohmann::ordered_json template_kwargs = nullptr;
};

/// A message from JSON: {"role": .., "content": .., "reasoning_content": .., "tool_calls": ..}; other fields are in `more`.
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
  for (const auto& [key, value] : json.items())
    if (key != "role" && key != "content" && key != "reasoning_content" && key != "tool_calls") message.more[key] = value;
  return message;
}

inline std::vector<Message> messages_from_json(const nlohmann::ordered_json& json) {
  if (!json.is_array()) throw ArgumentError("a conversation must be an array of messages");
  std::vector<Message> messages;
  for (const nlohmann::ordered_json& message : json) messages.push_back(message_from_json(message));
  return messages;
}

/// A message as JSON. A content of none is null; reasoning_content and tool_calls are left out where there are none.
inline nlohmann::ordered_json message_to_json(const Message& message) {
  nlohmann::ordered_json json = {{"role", message.role}};
  json["content"] = message.content ? nlohmann::ordered_json(*message.content) : nlohmann::ordered_json(nullptr);
  if (message.reasoning_content) json["reasoning_content"] = *message.reasoning_content;
  if (!message.tool_calls.is_null()) json["tool_calls"] = message.tool_calls;
  for (const auto& [key, value] : message.more.items()) json[key] = value;
  return json;
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
