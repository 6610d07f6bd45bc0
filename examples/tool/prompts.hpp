#pragma once
// Prompts of a file of JSON lines: {"prompt":".."}, {"messages":[..]} (or "prompt":[..], as in TRL) as the model's chat template
// writes them, with the line's own "tools" and "chat_template_kwargs" where it has them, or {"prompt_ids":[..]}.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/moxie.hpp>

#include "text_io.hpp"

namespace tool {

struct Prompt {
  std::size_t line = 0;
  nlohmann::ordered_json given;  ///< a text, messages, or null
  nlohmann::ordered_json tools = nullptr, kwargs = nullptr;  ///< of messages
  std::vector<std::int32_t> ids{};
  std::string others{};  ///< fields of the line that mean nothing here, as JSON members with a comma before each

  /// Sets ids. Fails with file and line.
  void encode(const moxie::Model& model, const JsonLines& lines, moxie::ChatOptions options) {
    try {
      if (!tools.is_null()) options.tools = tools;
      if (!kwargs.is_null() && !kwargs.is_object()) throw moxie::ArgumentError("\"chat_template_kwargs\" must be an object");
      if (!kwargs.is_null() && !options.template_kwargs.is_null())
        options.template_kwargs.update(kwargs);
      else if (!kwargs.is_null())
        options.template_kwargs = kwargs;
      if (given.is_string()) ids = model.encode(given.get_ref<const std::string&>());
      if (given.is_array()) ids = model.chat(given, options);
      if (ids.empty()) throw moxie::ArgumentError("the prompt has no tokens");
    } catch (const moxie::ArgumentError& error) {
      throw moxie::FormatError({lines.place(line), {}, {}}, error.what());
    }
    check_ids(model, lines, line, ids);
  }
};

/// All prompts. `own` are the names of fields that are not to be taken over.
inline std::vector<Prompt> read_prompts(JsonLines& lines, const std::vector<std::string_view>& own) {
  std::vector<Prompt> all;
  nlohmann::json object;
  while (lines.next(object)) {
    Prompt& prompt = all.emplace_back();
    prompt.line = lines.line();
    if (int{object.contains("prompt")} + int{object.contains("messages")} + int{object.contains("prompt_ids")} != 1)
      lines.fail(R"(must be {"prompt":".."}, {"messages":[..]} or {"prompt_ids":[..]})");
    if (object.contains("prompt_ids")) {
      prompt.ids = read_ids(lines, object, "prompt_ids");
    } else {
      const char* key = object.contains("prompt") ? "prompt" : "messages";
      prompt.given = object[key];
      if (prompt.given.is_array()) {  // templates see the fields in their order
        const auto ordered = nlohmann::ordered_json::parse(lines.text());
        prompt.given = ordered[key];
        prompt.tools = ordered.value("tools", nlohmann::ordered_json());
        prompt.kwargs = ordered.value("chat_template_kwargs", nlohmann::ordered_json());
      }
      if (!prompt.given.is_array() && (!prompt.given.is_string() || std::string_view(key) == "messages"))
        lines.fail(std::string("\"") + key + "\" must be " + (std::string_view(key) == "prompt" ? "a text or " : "") +
                   "an array of messages, is " + prompt.given.type_name());
    }
    for (const auto& [key, value] : object.items())
      if (key != "messages" && std::find(own.begin(), own.end(), key) == own.end()) {
        prompt.others += ',';
        append_json(prompt.others, std::string_view(key));
        prompt.others += ':' + value.dump();
      }
  }
  return all;
}

}  // namespace tool
