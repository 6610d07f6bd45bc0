// moxie with models that have another chat template.

#include <span>
#include <string>

#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_writer.hpp>

#include "tool_run.hpp"

namespace {

using nlohmann::json;

/// tiny-r1 with `source` as its chat template.
std::string model_with_template(const test::TemporaryFolder& folder, const std::string& source) {
  const moxie::GgufFile original = moxie::GgufFile::open(test::tiny_r1());
  const std::string path = folder.file("model.gguf");
  moxie::GgufWriter writer(path);
  writer.copy_metadata(original);
  writer.set("tokenizer.chat_template", source);
  for (const auto& [name, tensor] : original.tensors().all()) {
    const moxie::TensorView& view = tensor;
    writer.add_tensor(name, view.dtype, view.shape, [&view](const moxie::GgufWriter::Sink& sink) { sink({view.data, view.bytes}); });
  }
  writer.finish();
  return path;
}

json ids_of(const std::string& text) { return test::run_well({"tokenize", test::tiny_r1(), "-"}, json{{"s", text}}.dump()).lines().at(0)["ids"]; }

}  // namespace

TEST_CASE("prompts are what the model's own template writes, with the variables and tools that it is given") {
  const test::TemporaryFolder folder;
  const std::string model = model_with_template(folder, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ mood }}{% for t in tools or [] %}|{{ t|tojson }}{% endfor %}{{ messages[-1]|tojson }}");
  const json generated = test::run_well({"generate", model, "--chat", "Hi", "--system", "Be", "--chat-template-kwargs", R"({"mood": "good"})", "-n", "0", "--json"}).lines().at(0);
  CHECK(generated["prompt_ids"] == ids_of(R"(<system>Be<user>Higood{"role": "user", "content": "Hi"})"));

  // A line's fields come in their order, its own variables before those of the command line.
  const std::string lines =
      R"({"messages":[{"content":"Hi","role":"user","name":"Ada"}],"tools":[{"type":"function","name":"f"}],"chat_template_kwargs":{"mood":"bad"},"answer":1})"
      "\n"
      R"({"prompt":[{"role":"user","content":"Ho"}]})"
      "\n";
  const auto rollouts = test::run_well({"rollout", model, "-", "--group", "1", "-n", "1", "--chat-template-kwargs", R"({"mood": "good"})"}, lines).lines();
  REQUIRE(rollouts.size() == 2);
  CHECK(rollouts[0]["prompt_ids"] == ids_of(R"(<user>Hibad|{"type": "function", "name": "f"}{"content": "Hi", "role": "user", "name": "Ada"})"));
  CHECK(rollouts[0]["answer"] == 1);
  CHECK(rollouts[1]["prompt_ids"] == ids_of(R"(<user>Hogood{"role": "user", "content": "Ho"})"));

  const auto bad = test::run_tool({"rollout", model, "-", "--group", "1", "-n", "1"}, R"({"messages":[{"role":"user","content":"Hi"}],"chat_template_kwargs":3})");
  CHECK(bad.code == 1);
  CHECK(bad.err.find("standard input:1: \"chat_template_kwargs\" must be an object") != std::string::npos);
  CHECK(test::run_tool({"generate", model, "--chat", "Hi", "--chat-template-kwargs", "[1]"}).code == 2);
  CHECK(test::run_tool({"generate", model, "-p", "Hi", "--chat-template-kwargs", "{}"}).code == 2);
}

TEST_CASE("a template that refuses, or cannot be read, is an error of the conversation only") {
  const test::TemporaryFolder folder;
  const std::string refuses = model_with_template(folder, "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}{{ messages[0].content }}");
  const auto refused = test::run_tool({"generate", refuses, "--chat", "Hi", "--system", "Be", "-n", "1"});
  CHECK(refused.code == 1);
  CHECK(refused.err.find("no system messages") != std::string::npos);
  CHECK(test::run_well({"inspect", refuses, "--json"}).lines().at(0)["chat_format"] == "template");

  const std::string broken = model_with_template(folder, "{{ messages }}\n{% if %}");
  const auto unreadable = test::run_tool({"generate", broken, "--chat", "Hi", "-n", "1"});
  CHECK(unreadable.code == 1);
  CHECK(unreadable.err.find("chat template, line 2: an expression is missing") != std::string::npos);
  CHECK(test::run_well({"inspect", broken, "--json"}).lines().at(0)["chat_format"].is_null());
  CHECK(test::run_tool({"generate", broken, "-p", "Hi", "-n", "1"}).code == 0);
}
