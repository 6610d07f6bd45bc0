#include <moxie/text/chat.hpp>
#include <moxie/text/chat_template.hpp>
#include <moxie/text/tokenizer.hpp>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "shared.hpp"

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

/// The text of a row's conversation, or "error: ..." where the format does not allow it.
std::string render_row(moxie::ChatFormat format, const ordered_json& row) {
  moxie::ChatOptions options;
  options.add_generation_prompt = row["options"].value("add_generation_prompt", false);
  options.enable_thinking = row["options"].value("enable_thinking", true);
  options.continue_final_message = row["options"].value("continue_final_message", false);
  if (row["options"].contains("reasoning_effort")) options.reasoning_effort = row["options"]["reasoning_effort"].get<std::string>();
  options.date = "2026-01-15";
  options.tools = row["tools"];
  if (row["bos_token"].is_string()) options.bos = row["bos_token"].get<std::string>();
  if (row["eos_token"].is_string()) options.eos = row["eos_token"].get<std::string>();
  try {
    std::vector<moxie::Message> messages;
    for (const ordered_json& message : row["messages"]) messages.push_back(moxie::message_from_json(message));
    return moxie::render_chat(format, messages, options);
  } catch (const moxie::ArgumentError& error) {
    return std::string("error: ") + error.what();
  }
}

}  // namespace

TEST_CASE("conversations give the text of the models' own templates, and its ids") {
  for (const std::string name : {"qwen3", "deepseek_v3", "gptoss", "mixtral"}) {
    CAPTURE(name);
    const auto file = test::shared_path("text/chat/" + name + ".jsonl");
    const auto tokenizer_file = test::shared_path("tokenizers/" + name + "/tokenizer.json");
    if (!file || !tokenizer_file) return;
    const moxie::ChatFormat format = moxie::chat_format(name == "gptoss" ? "harmony" : name);
    int compared = 0;
    const moxie::Tokenizer tokenizer =
        moxie::Tokenizer::from_hf(json::parse(test::read_text(*tokenizer_file)), nullptr, *tokenizer_file);
    std::istringstream lines(test::read_text(*file));
    for (std::string line; std::getline(lines, line);) {
      const ordered_json row = ordered_json::parse(line);
      INFO(row["messages"].dump(-1, ' ', true));
      if (row["options"].contains("builtin_tools") || row["options"].contains("model_identity")) continue;
      // harmony's template takes a call without content, but not one whose content is null; here both are the same
      const auto without_content = [](const ordered_json& m) { return m.contains("tool_calls") && m.contains("content") && m["content"].is_null(); };
      if (format == moxie::ChatFormat::harmony && row.contains("error") && std::any_of(row["messages"].begin(), row["messages"].end(), without_content)) continue;
      ++compared;
      const std::string text = render_row(format, row);
      if (row.contains("error")) {
        CHECK(text.starts_with("error: "));
      } else {
        CHECK(text == row["text"].get<std::string>());
        CHECK(tokenizer.encode(text) == row["ids"].get<std::vector<std::int32_t>>());
      }
    }
    CHECK(compared > 20);
  }
}

TEST_CASE("tiny-r1's prompt is BOS, <｜User｜>, the question, <｜Assistant｜>") {
  const std::string file = test::data_path("text/tiny-r1.tokenizer.json");
  const moxie::Tokenizer tokenizer = moxie::Tokenizer::from_hf(json::parse(test::read_text(file)), nullptr, file);
  const json config = json::parse(test::read_text(test::data_path("text/tiny-r1.tokenizer_config.json")));
  const moxie::ChatTemplate chat(config["chat_template"].get<std::string>());
  const moxie::Message question[] = {{"user", "What is 12*7-5?"}};
  std::vector<std::int32_t> expected = {0, 380};
  for (const std::int32_t id : tokenizer.encode("What is 12*7-5?")) expected.push_back(id);
  expected.push_back(381);
  moxie::ChatOptions options;
  options.bos = tokenizer.piece(0);
  CHECK(tokenizer.encode(chat.render(question, options)) == expected);
  CHECK(chat.render(question, options) == moxie::render_chat(moxie::ChatFormat::deepseek_v3, question, options));
}

TEST_CASE("the formats of DeepSeek-V2 and Qwen2 are those of their templates") {
  const moxie::Message messages[] = {{"user", "Hi"}, {"assistant", "Hello!"}, {"user", "Bye"}};
  CHECK(moxie::render_chat(moxie::ChatFormat::deepseek_v2, messages) ==
        "<｜begin▁of▁sentence｜>User: Hi\n\nAssistant: Hello!<｜end▁of▁sentence｜>User: Bye\n\nAssistant:");
  CHECK(moxie::render_chat(moxie::ChatFormat::qwen2, messages) ==
        "<|im_start|>system\nYou are a helpful "
        "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  CHECK(moxie::render_chat(moxie::ChatFormat::chatml, std::span(messages).first(1)) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("R1's format is V3's without the thinking of earlier answers, and its prompt begins the thinking; so does Qwen3 Thinking's") {
  using moxie::ChatFormat;
  const moxie::Message messages[] = {{"system", "Be short."}, {"user", "Hi"}, {"assistant", "<think>\nA greeting.\n</think>\n\nHello!"}, {"user", "Bye"}};
  const std::string start = "<｜begin▁of▁sentence｜>Be short.<｜User｜>Hi<｜Assistant｜>";
  CHECK(moxie::render_chat(ChatFormat::deepseek_r1, messages) == start + "\n\nHello!<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜><think>\n");
  CHECK(moxie::render_chat(ChatFormat::deepseek_v3, messages) ==
        start + "<think>\nA greeting.\n</think>\n\nHello!<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>");
  CHECK(moxie::render_chat(ChatFormat::qwen3_thinking, messages) == moxie::render_chat(ChatFormat::qwen3, messages) + "<think>\n");
  moxie::ChatOptions options;
  options.add_generation_prompt = false;
  CHECK(moxie::render_chat(ChatFormat::qwen3_thinking, messages, options) == moxie::render_chat(ChatFormat::qwen3, messages, options));
}

TEST_CASE("families have a usual format") {
  using moxie::ChatFormat;
  CHECK(moxie::usual_chat_format("gpt_oss") == ChatFormat::harmony);
  CHECK(moxie::usual_chat_format("qwen3_moe") == ChatFormat::qwen3);
  CHECK(moxie::usual_chat_format("deepseek_v2") == ChatFormat::deepseek_v2);
  CHECK_THROWS_WITH_AS(moxie::usual_chat_format("llama5"), doctest::Contains("chatml, deepseek_r1"), moxie::UnsupportedError);
  CHECK_THROWS_AS(moxie::chat_format("alpaca"), moxie::ArgumentError);
}

TEST_CASE("an answer in harmony is parted into thinking and text, and can be rendered again") {
  using moxie::ChatFormat;
  const std::string text = "<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello!";
  const moxie::Message answer = moxie::answer_message(ChatFormat::harmony, text);
  CHECK(answer.reasoning_content == "They greet.");
  CHECK(answer.content == "Hello!");
  const moxie::Message conversation[] = {{"user", "Hi"}, answer};
  moxie::ChatOptions options;
  options.add_generation_prompt = false;
  CHECK(moxie::render_chat(ChatFormat::harmony, conversation, options).ends_with("<|start|>user<|message|>Hi<|end|><|start|>assistant" + text + "<|return|>"));
  CHECK(moxie::render_chat(ChatFormat::harmony, conversation).ends_with("<|start|>assistant<|channel|>final<|message|>Hello!<|end|><|start|>assistant"));
  const moxie::Message cut = moxie::answer_message(ChatFormat::harmony, "<|channel|>analysis<|message|>They gr");
  CHECK(cut.reasoning_content == "They gr");
  CHECK(cut.content == "");
  CHECK(moxie::answer_message(ChatFormat::qwen3, text).content == text);
  const moxie::Message broken = moxie::answer_message(ChatFormat::harmony, "<|channel|>analysis<|message|>They greet.<|channel|>final<|message|>Hello!");
  CHECK(broken.reasoning_content == "They greet.");
  CHECK(broken.content == "Hello!");
}

TEST_CASE("a final message is continued after its text, whatever the tag is that would end it") {
  using moxie::ChatFormat;
  moxie::ChatOptions options;
  options.continue_final_message = true;
  for (const char* text : {"re", "turn", "|", "", "im", "end", "a<b>", "Yes"}) {
    CAPTURE(text);
    const moxie::Message conversation[] = {{"user", "Hi"}, {"assistant", text}};
    CHECK(moxie::render_chat(ChatFormat::harmony, conversation, options).ends_with(std::string("<|channel|>final<|message|>") + text));
    CHECK(moxie::render_chat(ChatFormat::chatml, conversation, options).ends_with(std::string("<|im_start|>assistant\n") + text));
  }
}

TEST_CASE("harmony: a call of a tool needs no content") {
  moxie::Message call{"assistant", ""};
  call.content.reset();
  call.reasoning_content = "I look.";
  call.tool_calls = ordered_json::parse(R"([{"function":{"name":"f","arguments":{}}}])");
  const moxie::Message conversation[] = {{"user", "Hi"}, call};
  CHECK(moxie::render_chat(moxie::ChatFormat::harmony, conversation).find("<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.f") != std::string::npos);
}

TEST_CASE("conversations that cannot be rendered are errors") {
  using moxie::ArgumentError;
  CHECK_THROWS_AS(moxie::render_chat(moxie::ChatFormat::qwen3, {}), ArgumentError);
  CHECK_THROWS_AS(moxie::message_from_json(ordered_json::parse(R"({"content":"x"})")), ArgumentError);
  CHECK_THROWS_AS(moxie::message_from_json(ordered_json::parse(R"({"role":"user","content":[1]})")), ArgumentError);
  moxie::Message call{"assistant", ""};
  call.tool_calls = ordered_json::parse(R"([{"function":{"arguments":{}}}])");
  CHECK_THROWS_AS(moxie::render_chat(moxie::ChatFormat::qwen3, std::span(&call, 1)), ArgumentError);

  // A format that has no tools says so instead of dropping them, and says which formats have.
  using moxie::ChatFormat;
  const moxie::Message question{"user", "Hi"};
  moxie::ChatOptions with_tools;
  with_tools.tools = ordered_json::parse(R"([{"type":"function","function":{"name":"f"}}])");
  for (const ChatFormat format : {ChatFormat::chatml, ChatFormat::qwen2, ChatFormat::deepseek_v2, ChatFormat::mixtral}) {
    CHECK_THROWS_WITH_AS(moxie::render_chat(format, std::span(&question, 1), with_tools), doctest::Contains("harmony, qwen3, qwen3_thinking"), ArgumentError);
    CHECK_THROWS_WITH_AS(moxie::render_chat(format, std::span(&call, 1)), doctest::Contains("tool calls"), ArgumentError);
  }
  CHECK(moxie::render_chat(ChatFormat::qwen3, std::span(&question, 1), with_tools).find("\"name\": \"f\"") != std::string::npos);
}

TEST_CASE("numbers in JSON are written as Python writes them") {
  const auto text = [](const char* json_text) { return moxie::python_json(ordered_json::parse(json_text)); };
  CHECK(
      text(R"({"b":[1,2.5,-0.1,1e-7,1e22,1e16,123456789012345680.0,100.0,0.0001,0.00001],"a":{"x":null,"y":true}})") ==
      R"({"b": [1, 2.5, -0.1, 1e-07, 1e+22, 1e+16, 1.2345678901234568e+17, 100.0, 0.0001, 1e-05], "a": {"x": null, "y": true}})");
  CHECK(text(R"(["ü\u0001\"\\\n\u007f",{},[],-0.0,0.0,1234567.0,12345678.125])") ==
        "[\"ü\\u0001\\\"\\\\\\n\x7f\", {}, [], -0.0, 0.0, 1234567.0, 12345678.125]");
}
