// Tokenizers of tokenizer.json written as GGUF metadata: read back, they give the reference's ids.

#include <fstream>
#include <string>

#include <moxie/text/gguf_tokenizer_writer.hpp>

#include "shared.hpp"

using nlohmann::json;

TEST_CASE("a tokenizer.json of OLMo's form is written to GGUF as \"olmo\", and gives the ids of the tokenizers library") {
  json file = json::parse(test::read_text(test::data_path("text/tiny-shakespeare.tokenizer.json")));
  const json variant = json::parse(test::read_text(test::data_path("text/variants.json"))).at("runs of spaces");
  file["pre_tokenizer"] = variant["pre_tokenizer"];
  file["normalizer"] = variant["normalizer"];
  for (const json& token : variant["added_tokens"]) file["added_tokens"].push_back(token);
  const json metadata = moxie::gguf_tokenizer_metadata(file, nullptr, "olmo", 1100);
  CHECK(metadata["tokenizer.ggml.pre"] == "olmo");
  const moxie::Tokenizer tokenizer = moxie::Tokenizer::from_gguf(metadata, "olmo");
  for (const json& row : variant["rows"]) {
    INFO("s = ", row["s"].dump(-1, ' ', true));
    CHECK(tokenizer.encode(row["s"].get<std::string>()) == row["ids"].get<std::vector<std::int32_t>>());
  }
}

TEST_CASE("a tokenizer written to GGUF gives the ids of its tokenizer.json") {
  struct Case {
    const char *name, *model, *pre;
    int vocab_size;
  };
  for (const Case& c : {Case{"qwen3", "gpt2", "qwen2", 151936}, Case{"deepseek_v3", "gpt2", "deepseek-v3", 129280},
                        Case{"gptoss", "gpt2", "gpt-4o", 201088}, Case{"mixtral", "llama", "default", 32000}}) {
    const auto folder = test::shared_path(std::string("tokenizers/") + c.name);
    const auto golden = test::shared_path(std::string("text/tokenizers/") + c.name + ".jsonl");
    if (!folder || !golden) return;
    CAPTURE(std::string(c.name));
    const json metadata = moxie::gguf_tokenizer_metadata(json::parse(test::read_text(*folder + "/tokenizer.json")),
                                                         json::parse(test::read_text(*folder + "/tokenizer_config.json")), *folder, c.vocab_size);
    CHECK(metadata["tokenizer.ggml.model"] == c.model);
    CHECK(metadata["tokenizer.ggml.pre"] == c.pre);
    CHECK(metadata["tokenizer.ggml.tokens"].size() == static_cast<std::size_t>(c.vocab_size));
    const moxie::Tokenizer tokenizer = moxie::Tokenizer::from_gguf(metadata, c.name);
    std::ifstream lines(*golden);
    std::string line;
    int rows = 0, different = 0;
    while (std::getline(lines, line)) {
      const json row = json::parse(line);
      if (row.value("nfc_of_old_unicode", false)) continue;
      ++rows;
      different += tokenizer.encode(row["s"].get<std::string>()) != row["ids"].get<std::vector<std::int32_t>>();
    }
    CHECK(rows > 1000);
    CHECK(different == 0);
  }
}
