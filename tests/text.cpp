#include <moxie/io/gguf.hpp>
#include <moxie/text/known_pre_tokenizers.hpp>
#include <moxie/text/pre_tokenizer.hpp>
#include <moxie/text/stream_decoder.hpp>
#include <moxie/text/tokenizer.hpp>

#include <cstdint>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "checks.hpp"
#include "shared.hpp"

using moxie::StreamDecoder;
using moxie::Tokenizer;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;

namespace {

std::vector<json> read_lines(const std::string& path) {
  std::istringstream in(test::read_text(path));
  std::vector<json> rows;
  for (std::string line; std::getline(in, line);) rows.push_back(json::parse(line));
  return rows;
}

json read_json(const std::string& path) { return json::parse(test::read_text(path)); }

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    for (const int nibble : {(c >> 4) & 15, c & 15}) text += "0123456789abcdef"[nibble];
  }
  return text;
}

/// What a stream gives, in the form of the `stream` references: null where nothing is released.
json stream_of(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer);
  json pieces = json::array();
  for (const std::int32_t id : ids) {
    const std::string piece = decoder.add(id);
    pieces.push_back(piece.empty() ? json() : json(piece));
  }
  return pieces;
}

json pieces_of(const Tokenizer& tokenizer, const Ids& ids) {
  json pieces = json::array();
  for (const std::int32_t id : ids) pieces.push_back(hex(tokenizer.piece(id)));
  return pieces;
}

/// Checks all that a row says. Rows of another Unicode's NFC may have other ids.
void check_row(const Tokenizer& tokenizer, const json& row) {
  const Ids ids = row.at("ids");
  if (row.contains("s")) {
    INFO("s = ", row.at("s").dump(-1, ' ', true));
    if (!row.value("nfc_of_old_unicode", false)) CHECK(tokenizer.encode(row.at("s").get<std::string>()) == ids);
    if (row.contains("ids_with_special") && !row.value("nfc_of_old_unicode", false)) {
      CHECK(tokenizer.encode(row.at("s").get<std::string>(), true, true) == row.at("ids_with_special").get<Ids>());
    }
  }
  INFO("ids = ", json(ids).dump());
  CHECK(tokenizer.decode(ids) == row.value("decoded", row.value("s", "")));
  if (row.contains("decoded_skip_special"))
    CHECK(tokenizer.decode(ids, true) == row.at("decoded_skip_special").get<std::string>());
  if (row.contains("pieces")) CHECK(pieces_of(tokenizer, ids) == row.at("pieces"));
  if (row.contains("stream") && !row.at("stream").is_null()) CHECK(stream_of(tokenizer, ids) == row.at("stream"));
}

Tokenizer from_folder(const std::string& folder) {
  return Tokenizer::from_hf(read_json(folder + "/tokenizer.json"), nullptr, folder + "/tokenizer.json");
}

/// A random mix of characters of all planes, control characters and ASCII.
std::string random_text(std::mt19937& random) {
  std::string text;
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  for (std::uint32_t left = below(60); left > 0; --left) {
    const std::uint32_t kind = below(6);
    char32_t c = kind < 3 ? below(0x80) : kind == 3 ? below(0x800) : kind == 4 ? below(0x10000) : below(0x110000);
    if (c >= 0xD800 && c < 0xE000) c = ' ';
    moxie::append_utf8(text, c);
  }
  return text;
}

}  // namespace

TEST_CASE("tokenizer.json of the small models gives the ids, decodes and stream pieces of the tokenizers library") {
  for (const std::string name : {"tiny-r1", "tiny-shakespeare"}) {
    CAPTURE(name);
    const std::string base = test::data_path("text/" + name);
    const Tokenizer tokenizer = Tokenizer::from_hf(read_json(base + ".tokenizer.json"), nullptr, base + ".tokenizer.json");
    for (const json& row : read_lines(base + ".jsonl")) check_row(tokenizer, row);
  }
}

TEST_CASE("split behaviours, digits, prefix spaces and the options of added tokens act as in the tokenizers library") {
  const std::string file = test::data_path("text/tiny-shakespeare.tokenizer.json");
  const json original = read_json(file);
  const json variants = read_json(test::data_path("text/variants.json"));
  for (const auto& item : variants.items()) {
    const json& variant = item.value();
    CAPTURE(item.key());
    json changed = original;
    changed["pre_tokenizer"] = variant["pre_tokenizer"];
    changed["normalizer"] = variant["normalizer"];
    for (const json& token : variant["added_tokens"]) changed["added_tokens"].push_back(token);
    const Tokenizer tokenizer = Tokenizer::from_hf(changed, nullptr, file);
    for (const json& row : variant["rows"]) {
      INFO("s = ", row["s"].dump(-1, ' ', true));
      CHECK(tokenizer.encode(row["s"].get<std::string>()) == row["ids"].get<Ids>());
    }
  }
}

TEST_CASE("pre-tokenizers that GGUF files name cut texts as the models' own expressions do in the tokenizers library") {
  const json golden = read_json(test::data_path("text/pre_tokenizers.json"));
  CHECK(golden["words"].size() == 9);
  for (const auto& [name, rows] : golden["words"].items()) {
    CAPTURE(name);
    moxie::PreTokenizer pre_tokenizer;
    for (const std::string_view split : moxie::known_pre_tokenizer(name, {}).splits) pre_tokenizer.add_split(moxie::Regex(split, {}));
    moxie::Matcher matcher;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::string text = golden["texts"][i].get<std::string>();
      std::vector<std::string> words;
      pre_tokenizer.split(text, matcher, [&](std::string_view word) { words.emplace_back(word); });
      INFO("text = ", golden["texts"][i].dump(-1, ' ', true));
      CHECK(words == rows[i].get<std::vector<std::string>>());
    }
  }
}

TEST_CASE("the large tokenizer.json files give the ids, decodes, pieces and stream pieces of the tokenizers library") {
  for (const std::string name : {"qwen3", "deepseek_v3", "gptoss", "mixtral"}) {
    CAPTURE(name);
    const auto folder = test::shared_path("tokenizers/" + name);
    const auto rows = test::shared_path("text/tokenizers/" + name + ".jsonl");
    const auto decode_rows = test::shared_path("text/tokenizers/" + name + ".decode.jsonl");
    if (!folder || !rows || !decode_rows) return;
    const Tokenizer tokenizer = from_folder(*folder);
    for (const json& row : read_lines(*rows)) check_row(tokenizer, row);
    for (const json& row : read_lines(*decode_rows)) check_row(tokenizer, row);
  }
}

TEST_CASE("vocabularies in GGUF files give the ids of llama.cpp, and the text back") {
  for (const std::string name : {"gpt-2", "starcoder", "deepseek-llm", "deepseek-coder", "llama-spm", "phi-3"}) {
    CAPTURE(name);
    const auto file = test::shared_path("text/llama_cpp_vocab/ggml-vocab-" + name + ".gguf");
    const auto rows = test::shared_path("text/llama_cpp_vocab/" + name + ".jsonl");
    if (!file || !rows) return;
    const Tokenizer tokenizer = Tokenizer::from_gguf(moxie::GgufFile::open(*file).metadata(), *file);
    // llama.cpp's own decode of these two drops spaces before punctuation; moxie's is exact
    const bool drops_spaces = name == "gpt-2" || name == "starcoder";
    for (const json& row : read_lines(*rows)) {
      const std::string text = row["s"];
      INFO("s = ", row["s"].dump(-1, ' ', true));
      CHECK(tokenizer.encode(text, false, false) == row["ids"].get<Ids>());
      CHECK(tokenizer.encode(text, true, true) == row["ids_parse_special"].get<Ids>());
      CHECK(hex(tokenizer.decode(row["ids"].get<Ids>())) == (drops_spaces ? hex(text) : row.value("detokenized_hex", hex(text))));
    }

    const std::string separator = "\n__ggml_vocab_test__\n";
    const std::string inputs = test::read_text(*file + ".inp");
    std::istringstream outputs(test::read_text(*file + ".out"));
    std::size_t begin = 0;
    for (std::size_t end; (end = inputs.find(separator, begin)) != std::string::npos; begin = end + separator.size()) {
      std::string line;
      std::getline(outputs, line);
      std::istringstream numbers(line);
      Ids ids;
      for (std::int32_t id; numbers >> id;) ids.push_back(id);
      CHECK(tokenizer.encode(inputs.substr(begin, end - begin), false, false) == ids);
    }
  }
}

TEST_CASE("OLMo's pre-tokenizer is GPT-2's after NFC") {
  const auto file = test::shared_path("text/llama_cpp_vocab/ggml-vocab-gpt-2.gguf");
  const auto rows = test::shared_path("text/llama_cpp_vocab/gpt-2.jsonl");
  if (!file || !rows) return;
  json metadata = moxie::GgufFile::open(*file).metadata();
  metadata["tokenizer.ggml.pre"] = "olmo";
  const Tokenizer tokenizer = Tokenizer::from_gguf(metadata, *file);
  int same = 0;
  for (const json& row : read_lines(*rows)) {
    const std::string text = row["s"];
    if (moxie::nfc(text) != text) continue;
    CHECK(tokenizer.encode(text, false, false) == row["ids"].get<Ids>());
    ++same;
  }
  CHECK(same > 300);
  CHECK(tokenizer.encode("e\u0301te\u0301") == tokenizer.encode("\u00e9t\u00e9"));
}

TEST_CASE("a model's GGUF file and its tokenizer.json give the same ids") {
  const std::string base = test::data_path("text/tiny-r1");
  const Tokenizer hf = Tokenizer::from_hf(read_json(base + ".tokenizer.json"), read_json(base + ".tokenizer_config.json"), base);
  const auto file = test::shared_path("trained/tiny-r1/tiny-r1-Q4_0.gguf");
  if (!file) return;
  const Tokenizer gguf = Tokenizer::from_gguf(moxie::GgufFile::open(*file).metadata(), *file);
  CHECK(hf.vocab_size() == gguf.vocab_size());
  CHECK(hf.bos_id() == gguf.bos_id());
  CHECK(hf.eos_id() == gguf.eos_id());
  for (const json& row : read_lines(base + ".jsonl")) {
    const std::string text = row["s"];
    CHECK(gguf.encode(text, true, true) == hf.encode(text, true, true));
    CHECK(gguf.encode(text, true, true) == row["ids_with_special"].get<Ids>());
  }
}

TEST_CASE("decode of encode gives the text back, and streamed pieces joined give decode") {
  const std::string file = test::data_path("text/tiny-r1.tokenizer.json");
  const Tokenizer tokenizer = Tokenizer::from_hf(read_json(file), nullptr, file);
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_text(random);
    CAPTURE(hex(text));
    const Ids ids = tokenizer.encode(text);
    CHECK(tokenizer.decode(ids) == text);
    CHECK(tokenizer.decode(tokenizer.encode(text, false)) == text);

    Ids any;
    for (int i = 0; i < 20; ++i) any.push_back(static_cast<std::int32_t>(random() % 400));  // ids without a token among them
    StreamDecoder stream(tokenizer, round % 2 == 0);
    std::string joined;
    for (const std::int32_t id : any) {
      const std::string piece = stream.add(id);
      CHECK(moxie::is_valid_utf8(piece));
      joined += piece;
    }
    CHECK(joined + stream.finish() == tokenizer.decode(any, round % 2 == 0));
  }
}

TEST_CASE("SentencePiece decodes what it encoded, and streams it") {
  const auto folder = test::shared_path("tokenizers/mixtral");
  if (!folder) return;
  const Tokenizer tokenizer = from_folder(*folder);
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(random);
    CAPTURE(hex(text));
    const Ids ids = tokenizer.encode(text);
    CHECK(tokenizer.decode(ids) == text);
    StreamDecoder stream(tokenizer);
    std::string joined;
    for (const std::int32_t id : ids) joined += stream.add(id);
    CHECK(joined + stream.finish() == text);
  }
}

TEST_CASE("ill-formed UTF-8 is encoded as U+FFFD, one for each maximal part") {
  const std::string file = test::data_path("text/tiny-r1.tokenizer.json");
  const Tokenizer tokenizer = Tokenizer::from_hf(read_json(file), nullptr, file);
  // the examples of the Unicode Standard, tables 3-8 to 3-11
  CHECK(moxie::to_valid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") == "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  CHECK(moxie::to_valid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41") == "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  CHECK(moxie::to_valid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42") == "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
  CHECK(moxie::to_valid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  CHECK(tokenizer.encode("a\xFFz\xE4\xBD") == tokenizer.encode("a\uFFFDz\uFFFD"));
  CHECK(tokenizer.encode("<think>\xFF</think>").size() == 2 + tokenizer.encode("\uFFFD").size());
}

TEST_CASE("long words and long runs of spaces are encoded as their parts are") {
  const std::string file = test::data_path("text/tiny-shakespeare.tokenizer.json");
  const Tokenizer tokenizer = Tokenizer::from_hf(read_json(file), nullptr, file);
  std::string word;
  for (std::uint64_t i = 0; i < 200000; ++i) word += static_cast<char>('a' + (i * i * 7 + i / 3) % 26);
  CHECK(tokenizer.decode(tokenizer.encode(word)) == word);
  const std::string spaces(200000, ' ');
  CHECK(tokenizer.decode(tokenizer.encode(spaces + "x")) == spaces + "x");
  const std::string lines(200000, '\n');
  CHECK(tokenizer.decode(tokenizer.encode("x" + lines)) == "x" + lines);
}

TEST_CASE("tokens are found by their text, and special ones are known") {
  const std::string base = test::data_path("text/tiny-r1");
  const Tokenizer tokenizer =
      Tokenizer::from_hf(read_json(base + ".tokenizer.json"), read_json(base + ".tokenizer_config.json"), base);
  CHECK(tokenizer.bos_id() == 0);
  CHECK(tokenizer.eos_id() == 1);
  CHECK(tokenizer.find("<think>") == 382);
  CHECK(tokenizer.find(" is").has_value());
  CHECK(tokenizer.piece(*tokenizer.find(" is")) == " is");
  CHECK(!tokenizer.find("no such token").has_value());
  CHECK(tokenizer.is_special(0));
  CHECK(!tokenizer.is_special(382));
  CHECK(!tokenizer.is_special(-1));
  CHECK(tokenizer.piece(1 << 30).empty());
  CHECK(tokenizer.encode("x", true, true).front() == 0);
  const Ids plain = tokenizer.encode("<｜begin▁of▁sentence｜>", false);
  CHECK(plain.size() > 1);
  CHECK(tokenizer.decode(plain) == "<｜begin▁of▁sentence｜>");
}

namespace {

using test::message_of;

void check_contains(const std::string& text, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts) {
    INFO(text);
    CHECK_MESSAGE(text.find(part) != std::string::npos, part);
  }
}

/// A sound GGUF tokenizer of 256 bytes and one merge.
json small_gguf() {
  json tokens = json::array();
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(moxie::to_byte_level(std::string(1, static_cast<char>(byte))));
  tokens.push_back("ab");
  return {{"tokenizer.ggml.model", "gpt2"},   {"tokenizer.ggml.pre", "gpt-2"},
          {"tokenizer.ggml.tokens", tokens},  {"tokenizer.ggml.token_type", std::vector<int>(257, 1)},
          {"tokenizer.ggml.merges", {"a b"}}, {"tokenizer.ggml.bos_token_id", 3u}};
}

}  // namespace

TEST_CASE("a broken GGUF tokenizer gets an error that names the file, the key and the defect") {
  CHECK(Tokenizer::from_gguf(small_gguf(), "f.gguf").encode("ab") == Ids{256});
  const auto error = [](const std::string& key, const json& value) {
    json metadata = small_gguf();
    if (value.is_null()) {
      metadata.erase("tokenizer.ggml." + key);
    } else {
      metadata["tokenizer.ggml." + key] = value;
    }
    const std::string text = message_of([&] { Tokenizer::from_gguf(metadata, "f.gguf"); });
    check_contains(text, {"f.gguf", "tokenizer.ggml." + key});
    return text;
  };
  check_contains(error("model", nullptr), {"missing"});
  check_contains(error("model", "rwkv"), {"rwkv", "gpt2", "llama"});
  check_contains(error("model", 3), {"string"});
  check_contains(error("pre", "no-such"), {"no-such", "qwen2", "deepseek-v3"});
  check_contains(error("pre", nullptr), {"missing"});
  check_contains(error("tokens", nullptr), {"missing"});
  check_contains(error("tokens", json::array()), {"empty"});
  check_contains(error("tokens", {1, 2, 3}), {"entries"});
  check_contains(error("token_type", {1, 1}), {"2 entries", "257"});
  check_contains(error("token_type", std::vector<int>(257, 9)), {"[0]", "control"});
  check_contains(error("token_type", 1), {"array"});
  check_contains(error("scores", {0.0}), {"1 entries", "257"});
  check_contains(error("merges", nullptr), {"missing"});
  check_contains(error("merges", {"ab"}), {"[0]", "space"});
  check_contains(error("merges", {"a b", "a zz"}), {"[1]", "zz", "does not exist"});
  check_contains(error("merges", {"zz a"}), {"[0]", "zz", "does not exist"});
  check_contains(error("merges", {5}), {"[0]", "string"});
  check_contains(error("bos_token_id", 257u), {"257", "range"});
  check_contains(error("bos_token_id", -1), {"-1", "range"});
  check_contains(error("eos_token_id", "x"), {"token id"});
  check_contains(error("add_bos_token", 1), {"true or false"});
  check_contains(error("add_eos_token", true), {"does not say which"});
  check_contains(error("model", "none"), {"no tokenizer"});
  json spm = small_gguf();
  spm["tokenizer.ggml.model"] = "llama";
  check_contains(message_of([&] { Tokenizer::from_gguf(spm, "f.gguf"); }), {"f.gguf", "tokenizer.ggml.scores", "missing"});
  json tokens = small_gguf()["tokenizer.ggml.tokens"];
  tokens[7] = "a";
  check_contains(error("tokens", tokens), {"\"a\"", "twice", "7"});
  tokens[7] = 7;
  check_contains(error("tokens", tokens), {"[7]", "string"});
}

TEST_CASE("a broken tokenizer.json gets an error that names the file, the field and the defect") {
  const std::string file = test::data_path("text/tiny-r1.tokenizer.json");
  const json original = read_json(file);
  const auto error = [&](const std::string& pointer, const json& value, std::initializer_list<std::string> parts) {
    json changed = original;
    changed[json::json_pointer(pointer)] = value;
    const std::string text = message_of([&] { Tokenizer::from_hf(changed, nullptr, "t.json"); });
    CAPTURE(pointer);
    check_contains(text, {"t.json"});
    check_contains(text, parts);
  };
  error("/model", nullptr, {"model", "object"});
  error("/model/type", "Unigram", {"model.type", "Unigram"});
  error("/model/dropout", 0.1, {"dropout"});
  error("/model/vocab", json::array(), {"model.vocab"});
  error("/model/vocab/!", -3, {"model.vocab.!", "id"});
  error("/model/vocab/!", 4000000000u, {"model.vocab.!", "id"});
  error("/model/vocab/!", 1.5, {"model.vocab.!", "id"});
  error("/model/vocab/!", original["model"]["vocab"]["#"], {"model.vocab", "both"});
  error("/model/merges", "x", {"model.merges", "array"});
  error("/model/merges/0", json::array({"a"}), {"model.merges[0]"});
  error("/model/merges/1", json::array({"a", "no"}), {"model.merges[1]", "no", "does not exist"});
  error("/model/merges/1", "a b c", {"model.merges[1]", "two tokens"});
  error("/model/merges/1", "a !", {"model.merges[1]", "a!", "does not exist"});
  error("/model/unk_token", "<unk>", {"model.unk_token", "<unk>"});
  error("/pre_tokenizer", nullptr, {"pre_tokenizer", "ByteLevel"});
  error("/pre_tokenizer/pretokenizers/0/type", "Weird", {"pre_tokenizer.pretokenizers[0]", "Weird"});
  error("/pre_tokenizer/pretokenizers/0/behavior", "Sometimes", {"behavior", "Sometimes", "Isolated"});
  error("/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "(a"}},
        {"pre_tokenizer.pretokenizers[0].pattern.Regex", "regular expression"});
  error("/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "[a&&b]"}}, {"&&"});
  error("/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", R"(\bx)"}}, {"\\b"});
  error("/normalizer", {{"type", "Lowercase"}}, {"normalizer", "Lowercase"});
  error("/decoder", nullptr, {"decoder"});
  error("/post_processor/type", "BertProcessing", {"post_processor", "BertProcessing"});
  error("/added_tokens/0/id", 5, {"added_tokens[0].id"});
  error("/added_tokens/0/content", nullptr, {"added_tokens[0].content", "string"});
  error("/added_tokens/0/special", "yes", {"added_tokens[0].special", "true or false"});

  const auto config_error = [&](const json& config) {
    return message_of([&] { Tokenizer::from_hf(original, config, "t.json"); });
  };
  check_contains(config_error({{"bos_token", "<nope>"}}), {"tokenizer_config.json", "bos_token", "<nope>"});
  check_contains(config_error({{"add_bos_token", true}}), {"add_bos_token", "which token"});
  check_contains(config_error({{"eos_token", 3}}), {"eos_token", "string"});
}

TEST_CASE("a pattern that backtracks without end is an error, not a hang") {
  const moxie::Regex regex("(a|aa)+\\z");
  moxie::Matcher matcher;
  CHECK_THROWS_AS(matcher.find(regex, std::string(60, 'a') + "b", 0), moxie::Error);
  CHECK(matcher.find(moxie::Regex("a+"), "baab", 0) == std::pair<std::size_t, std::size_t>(1, 3));
  // scripts, not what is used with them: U+3002 is Common
  const std::string_view han = "a\u3002\u4e16\u3042";
  CHECK(matcher.find(moxie::Regex(R"(\p{Han})"), han, 0).first == 4);
  CHECK(matcher.find(moxie::Regex(R"([\p{Hiragana}x])"), han, 0).first == 7);
  for (const char* others : {R"(\P{Han}+)", R"(\p{^Han}+)", R"([^\p{Han}]+)"})
    CHECK(matcher.find(moxie::Regex(others), han, 0) == std::pair<std::size_t, std::size_t>(0, 4));
  CHECK(matcher.find(moxie::Regex(R"(\p{Lu}|\p{Ll}+)"), "1aB", 0) == std::pair<std::size_t, std::size_t>(1, 2));
}
