#pragma once
// Chat formats: a conversation as the text that a model was trained on.
//
//   const Message question[] = {{"user", "What is 12*7-5?"}};
//   std::string text = render_chat(ChatFormat::deepseek_v3, question);
//   std::vector<std::int32_t> ids = tokenizer.encode(text);          // the text has the special tokens, BOS included
//
// These are for models whose files have no chat template; it is rendered where there is one (chat_template.hpp). The formats give
// what the models' own templates give. Messages with roles that a template does not know are left out where the template leaves
// them out, and an ArgumentError where it fails.

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/chat_deepseek.hpp>
#include <moxie/text/chat_harmony.hpp>
#include <moxie/text/chat_message.hpp>
#include <moxie/text/chat_qwen.hpp>
#include <moxie/text/jinja_value.hpp>

namespace moxie {

enum class ChatFormat { chatml, deepseek_r1, deepseek_v2, deepseek_v3, harmony, mixtral, qwen2, qwen3, qwen3_thinking };

namespace chat {

/// What a format does with ChatOptions::tools; as the models' templates do, where those say anything else than nothing.
enum class Tools { refuses, leaves_out, describes };

struct FormatEntry {
  ChatFormat format;
  std::string_view name;
  std::string (*render)(std::span<const Message>, const ChatOptions&);
  Tools tools;
};

/// Mixtral-8x7B-Instruct-v0.1: BOS [INST] TEXT [/INST]TEXT EOS ...; user and assistant take turns, nothing else is allowed.
inline std::string render_mixtral(std::span<const Message> messages, const ChatOptions& options) {
  std::string out = options.bos.value_or("<s>");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const bool user_turn = i % 2 == 0;
    if (messages[i].role != (user_turn ? "user" : "assistant")) {
      throw ArgumentError(
          concat("message ", i, " is by \"", messages[i].role,
                 "\"; in this chat format user and assistant take turns, the user first, and there are no other roles"));
    }
    out += user_turn ? concat("[INST] ", content(messages[i]), " [/INST]") : content(messages[i]) + options.eos.value_or("</s>");
  }
  return out;
}

inline constexpr FormatEntry formats[] = {
    {ChatFormat::chatml, "chatml", render_chatml, Tools::refuses},
    {ChatFormat::deepseek_r1, "deepseek_r1", render_deepseek_r1, Tools::leaves_out},
    {ChatFormat::deepseek_v2, "deepseek_v2", render_deepseek_v2, Tools::refuses},
    {ChatFormat::deepseek_v3, "deepseek_v3", render_deepseek_v3, Tools::leaves_out},
    {ChatFormat::harmony, "harmony", render_harmony, Tools::describes},
    {ChatFormat::mixtral, "mixtral", render_mixtral, Tools::refuses},
    {ChatFormat::qwen2, "qwen2", render_qwen2, Tools::refuses},
    {ChatFormat::qwen3, "qwen3", render_qwen3, Tools::describes},
    {ChatFormat::qwen3_thinking, "qwen3_thinking", render_qwen3_thinking, Tools::describes},
};

inline std::string format_names() {
  std::string names;
  for (const FormatEntry& entry : formats) (names += names.empty() ? "" : ", ") += entry.name;
  return names;
}

/// Throws ArgumentError where a format would drop tools or their calls without a word.
inline void check_tools(const FormatEntry& format, std::span<const Message> messages, const ChatOptions& options) {
  if (format.tools != Tools::refuses) return;
  const bool calls = std::any_of(messages.begin(), messages.end(), [](const Message& m) { return !m.tool_calls.empty(); });
  if (options.tools.empty() && !calls) return;
  std::string able;
  for (const FormatEntry& entry : formats)
    if (entry.tools == Tools::describes) (able += able.empty() ? "" : ", ") += entry.name;
  throw ArgumentError(concat("the chat format \"", format.name, "\" has no ", (calls ? "tool calls" : "tools"),
                             "; those with tools are ", able, ". Describe the tools in a system message instead"));
}

/// `rendered` up to the end of the last message's content.
inline std::string cut_after_content(std::string rendered, const Message& last) {
  const std::string_view text = content(last);
  const std::string_view stripped = jinja::strip(text, {}, true, true);
  // before the tag that ends the message, whose letters may be those of the text
  std::size_t limit = rendered.size();
  if (!text.ends_with('>') && jinja::strip(rendered, {}, true, true).ends_with('>')) limit = rendered.rfind('<');
  const std::size_t found = limit < stripped.size() ? std::string::npos : rendered.rfind(stripped, limit - stripped.size());
  if (found == std::string::npos) throw ArgumentError("cannot continue the final message: the chat format changes its text");
  // trailing white space counts where the format kept it
  const bool kept = std::string_view(rendered).substr(found).starts_with(text);
  rendered.resize(found + (kept ? text.size() : stripped.size()));
  return rendered;
}

}  // namespace chat

inline std::string_view chat_format_name(ChatFormat format) {
  for (const chat::FormatEntry& entry : chat::formats) {
    if (entry.format == format) return entry.name;
  }
  throw ArgumentError("no such chat format");
}

/// The format called `name`. Throws ArgumentError that lists the names.
inline ChatFormat chat_format(std::string_view name) {
  for (const chat::FormatEntry& entry : chat::formats) {
    if (entry.name == name) return entry.format;
  }
  throw ArgumentError(concat("there is no chat format \"", name, "\"; there are ", chat::format_names()));
}

/// The text of a conversation of at least one message. Throws ArgumentError for conversations that the format does not allow.
inline std::string render_chat(ChatFormat format, std::span<const Message> messages, const ChatOptions& options = {}) {
  if (messages.empty()) throw ArgumentError("a conversation needs at least one message");
  if (!options.template_kwargs.empty())
    throw ArgumentError("template_kwargs are variables of a model's own chat template, and the model has none");
  for (const chat::FormatEntry& entry : chat::formats) {
    if (entry.format != format) continue;
    chat::check_tools(entry, messages, options);
    if (!options.continue_final_message) return entry.render(messages, options);
    ChatOptions without_prompt = options;
    without_prompt.add_generation_prompt = false;
    return chat::cut_after_content(entry.render(messages, without_prompt), messages.back());
  }
  throw ArgumentError("no such chat format");
}

/// A model's answer as a message of the conversation. Most formats take the text as it is; harmony's is parted into thinking and
/// answer.
inline Message answer_message(ChatFormat format, std::string_view text) {
  if (format == ChatFormat::harmony) return chat::harmony_answer(text);
  return {"assistant", std::string(text)};
}

/// The format that the models of a family ("qwen3_moe") have, for one that comes without a chat template (chat_template.hpp).
/// Throws UnsupportedError for families without a usual one.
inline ChatFormat usual_chat_format(std::string_view family) {
  constexpr std::pair<std::string_view, ChatFormat> usual[] = {
      {"deepseek_v2", ChatFormat::deepseek_v2}, {"deepseek_v3", ChatFormat::deepseek_v3}, {"gpt_oss", ChatFormat::harmony},
      {"mixtral", ChatFormat::mixtral},         {"qwen2_moe", ChatFormat::qwen2},         {"qwen3_moe", ChatFormat::qwen3},
  };
  for (const auto& [name, format] : usual)
    if (name == family) return format;
  throw UnsupportedError(concat("the model has no chat template, and \"", family,
                                "\" has no usual one; render_chat() takes one of ", chat::format_names()));
}

}  // namespace moxie
