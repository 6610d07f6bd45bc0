#pragma once
// A tokenizer of Hugging Face's files as GGUF metadata: the keys that tokenizer_gguf.hpp reads.
//
// GGUF names a pre-tokenizer instead of describing it; the name is found by comparing the words that a text of many kinds of
// characters is cut into. At the end the metadata are read back, and must give the same ids for that text. Source: the GGUF
// specification; llama.cpp, convert_hf_to_gguf.py.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/tokenizer.hpp>

namespace moxie {

namespace detail {

/// Contractions, runs of digits and spaces, line ends, scripts with and without cases, marks, symbols, text right beside digits.
inline constexpr std::string_view tokenizer_probe =
    "Hello, world! I'm sure THEY'LL say we'D've 'tis, isn't it?\n\n  \t x=1234567+89.5e-3;  \r\n   done \n"
    "naïve café CAFÉ e\xCC\x81te\xCC\x81 Straße ΑΒΓ αβγ Привет, МИР! 你好，世界。日本語のテキスト カタカナ 한국어 עברית العربية "
    "हिन्दी ไทย "
    "€100 ½ ² ①②③ ٣٤٥ 🚀🌍👩‍👩‍👧 a1b22c333d4444 CamelCaseWord snake_case_word __init__(self): #include <vector> // "
    "$x->y[0]\n"
    "    if (a<b&&c>=d) { return \"q\\n\"; }\t\t\tend   .  ...  !!!??? \xC2\xA0nbsp\xE3\x80\x80wide ＡＢＣ１２３ ' '' \"' `x` "
    "~/path/to.file @user #tag 50% a'b";

inline std::vector<std::string> probe_words(const PreTokenizer& pre_tokenizer) {
  std::vector<std::string> words;
  Matcher matcher;
  pre_tokenizer.split(tokenizer_probe, matcher, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

/// tokenizer.ggml.pre of a byte-level tokenizer.
inline std::string pre_tokenizer_name(const HfField& root) {
  PreTokenizer own;
  add_hf_pre_tokenizer(root["pre_tokenizer"], own);
  const std::vector<std::string> words = probe_words(own);
  const bool nfc = hf_normalizer_is_nfc(root["normalizer"]), ignore_merges = root["model"]["ignore_merges"].boolean(false);
  const KnownPreTokenizer* found = nullptr;
  for (const KnownPreTokenizer& known : known_pre_tokenizers()) {
    PreTokenizer candidate;
    for (const std::string_view split : known.splits) candidate.add_split(Regex(split, root["pre_tokenizer"].place()));
    if (known.nfc != nfc || probe_words(candidate) != words) continue;
    if (known.ignore_merges == ignore_merges) return std::string(known.names.front());
    if (!found) found = &known;  // whole words before merging rarely change the ids; the check at the end decides
  }
  if (!found) root["pre_tokenizer"].unsupported("a pre-tokenizer for which GGUF has no name");
  return std::string(found->names.front());
}

/// Scores that make the merges of a SentencePiece tokenizer in their order: a token's is minus the rank of its first merge.
inline std::vector<float> sentencepiece_scores(const HfField& root, const std::vector<TokenEntry>& tokens) {
  const HfField merges = root["model"]["merges"];
  const auto n = static_cast<float>(merges.array_size());
  std::unordered_map<std::string, float> ranks;
  for (std::size_t i = 0; i < merges.value().size(); ++i) {
    const nlohmann::json& merge = merges.value()[i];
    std::string text;
    if (merge.is_array()) {
      text = merge[0].get<std::string>() + merge[1].get<std::string>();
    } else {
      text = merge.get<std::string>();
      text.erase(text.find(' '), 1);
    }
    ranks.try_emplace(std::move(text), -static_cast<float>(i));
  }
  std::vector<float> scores;
  for (const TokenEntry& token : tokens) {
    const auto rank = ranks.find(token.text);
    scores.push_back(token.kind != TokenKind::normal ? 0.0f : rank == ranks.end() ? -n : rank->second);
  }
  return scores;
}

/// True for added tokens that are markers by their form, though the file calls them ordinary: control tokens in GGUF.
inline bool looks_special(std::string_view text) {
  const auto within = [&](std::string_view begin, std::string_view end) {
    return text.size() >= begin.size() + end.size() && text.starts_with(begin) && text.ends_with(end);
  };
  return within("<|", "|>") || within("<｜", "｜>") || within("<unused", ">") || text == "<pad>" || text == "<mask>";
}

/// "tokenizer.ggml.add_bos_token" and its like, from what add_special puts around nothing.
inline void write_added_specials(const HfField& root, const Tokenizer& tokenizer, nlohmann::json& out) {
  std::vector<std::int32_t> around = tokenizer.encode("", true, true);
  std::optional<std::int32_t> bos = tokenizer.bos_id(), eos = tokenizer.eos_id();
  const bool add_eos = !around.empty() && eos && around.back() == *eos && around.back() != bos.value_or(-1);
  if (add_eos) around.pop_back();
  if (around.size() == 1 && !bos) bos = around.front();
  const bool add_bos = around.size() == 1 && around.front() == *bos;
  if (around.size() != (add_bos ? 1 : 0))
    root["post_processor"].unsupported("in GGUF, a post-processor that adds other tokens than those that begin and end a text");
  if (bos) out["tokenizer.ggml.bos_token_id"] = *bos;
  if (eos) out["tokenizer.ggml.eos_token_id"] = *eos;
  out["tokenizer.ggml.add_bos_token"] = add_bos;
  out["tokenizer.ggml.add_eos_token"] = add_eos;
}

}  // namespace detail

/// The keys tokenizer.ggml.*: integers are uint32 (in arrays int32), numbers float32. `vocab_size`: rows of the embedding; ids
/// without a token get unused ones. Throws FormatError for broken files, UnsupportedError for a tokenizer that GGUF cannot
/// describe.
inline nlohmann::json gguf_tokenizer_metadata(const nlohmann::json& tokenizer_json, const nlohmann::json& tokenizer_config,
                                              const std::string& file, std::int64_t vocab_size) {
  const Tokenizer tokenizer = Tokenizer::from_hf(tokenizer_json, tokenizer_config, file);  // checks everything that is read here
  const HfField root(tokenizer_json, file, "");
  const bool sentencepiece = is_hf_sentencepiece(root);

  std::vector<TokenEntry> tokens = hf_tokens(root, [](const std::string& text) { return text; });
  if (static_cast<std::int64_t>(tokens.size()) > vocab_size)
    throw FormatError({file, {}, {}}, concat("has ", tokens.size(), " tokens, the model's embedding only ", vocab_size));
  tokens.resize(static_cast<std::size_t>(vocab_size));
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    TokenEntry& token = tokens[id];
    if (token.kind == TokenKind::none) token = {concat("[PAD", id, "]"), {}, TokenKind::unused};
    if (token.kind == TokenKind::added && detail::looks_special(token.text)) token.kind = TokenKind::special;
    if (sentencepiece && token.kind == TokenKind::normal && byte_token(token.text)) token.kind = TokenKind::byte;
  }

  nlohmann::json out = nlohmann::json::object();
  if (const HfField unknown = root["model"]["unk_token"]; !unknown.null()) {
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      if (tokens[id].text != unknown.string() || tokens[id].kind == TokenKind::unused) continue;
      tokens[id].kind = TokenKind::unknown;
      out["tokenizer.ggml.unknown_token_id"] = id;
    }
  }
  out["tokenizer.ggml.model"] = sentencepiece ? "llama" : "gpt2";
  out["tokenizer.ggml.pre"] = sentencepiece ? "default" : detail::pre_tokenizer_name(root);
  nlohmann::json texts = nlohmann::json::array(), types = nlohmann::json::array();
  for (const TokenEntry& token : tokens) {
    texts.push_back(token.text);
    types.push_back(static_cast<int>(token.kind));
  }
  out["tokenizer.ggml.tokens"] = std::move(texts);
  out["tokenizer.ggml.token_type"] = std::move(types);
  if (sentencepiece) {
    out["tokenizer.ggml.scores"] = detail::sentencepiece_scores(root, tokens);
    out["tokenizer.ggml.add_space_prefix"] = true;
  } else {
    nlohmann::json merges = nlohmann::json::array();
    for (const nlohmann::json& merge : root["model"]["merges"].value())
      merges.push_back(merge.is_array() ? concat(merge[0].get<std::string>(), " ", merge[1].get<std::string>())
                                        : merge.get<std::string>());
    out["tokenizer.ggml.merges"] = std::move(merges);
  }
  detail::write_added_specials(root, tokenizer, out);

  const std::string probe(detail::tokenizer_probe);
  if (Tokenizer::from_gguf(out, file).encode(probe, true, true) != tokenizer.encode(probe, true, true))
    throw UnsupportedError({file, {}, {}}, "GGUF cannot describe this tokenizer: read back, it gives other ids");
  return out;
}

}  // namespace moxie
