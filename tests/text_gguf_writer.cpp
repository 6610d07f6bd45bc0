// Tokenizers of tokenizer.json written as GGUF metadata: read back, they give the reference's ids.

#include <algorithm>
#include <fstream>
#include <string>

#include <moxie/text/gguf_tokenizer_writer.hpp>

#include "shared.hpp"

using nlohmann::json;

TEST_CASE("a tokenizer.json of OLMo's form is written to GGUF as \"olmo\", and gives the same ids") {
  // of allenai/gpt-neox-olmo-dolma-v1_5: NFC, GPT-2's words, runs of spaces and markers as ordinary added tokens
  json file = json::parse(test::read_text(test::data_path("text/tiny-shakespeare.tokenizer.json")));
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  file["normalizer"] = {{"type", "NFC"}};
  for (const char* part : {"pre_tokenizer", "post_processor", "decoder"}) file[part] = byte_level;
  unsigned id = 0;
  for (const auto& entry : file["model"]["vocab"].items()) id = std::max(id, entry.value().get<unsigned>());
  for (const json& token : file["added_tokens"]) id = std::max(id, token["id"].get<unsigned>());
  for (const std::string text : {"    ", "   ", "  ", "|||EMAIL_ADDRESS|||"})
    file["added_tokens"].push_back({{"id", ++id}, {"content", text}, {"single_word", false}, {"lstrip", false}, {"rstrip", false},
                                    {"normalized", true}, {"special", false}});
  const moxie::Tokenizer hf = moxie::Tokenizer::from_hf(file, nullptr, "olmo");
  const json metadata = moxie::gguf_tokenizer_metadata(file, nullptr, "olmo", id + 10);
  CHECK(metadata["tokenizer.ggml.pre"] == "olmo");
  const moxie::Tokenizer gguf = moxie::Tokenizer::from_gguf(metadata, "olmo");
  for (const std::string text : {"", "O Romeo, Romeo!", "if x:\n    y  =   3\n\n        z", "mail |||EMAIL_ADDRESS||| now", "cafe\u0301 r\u00e9sume\u0301", "1234567 \t\n "}) {
    CAPTURE(text);
    CHECK(gguf.encode(text, true, true) == hf.encode(text, true, true));
  }
  CHECK(gguf.encode("     x").front() == static_cast<std::int32_t>(id) - 3);  // the longest run of spaces first
  CHECK(gguf.encode("e\u0301") == gguf.encode("\u00e9"));
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
