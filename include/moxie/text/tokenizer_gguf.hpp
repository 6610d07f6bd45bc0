#pragma once
// Tokenizers in GGUF metadata: tokenizer.ggml.model "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE).
//
//   tokenizer.ggml.tokens       array of strings, by id; normal tokens in the byte-level alphabet (gpt2) or with ▁ for
//                               spaces (llama), the others as they are
//   tokenizer.ggml.token_type   array of integers, see TokenKind; absent: all normal
//   tokenizer.ggml.merges       gpt2: array of strings "LEFT RIGHT", best first; one that would make no token is left out
//   tokenizer.ggml.pre          gpt2: the name of the pre-tokenizer (known_pre_tokenizers.hpp)
//   tokenizer.ggml.scores       llama: array of numbers, the higher the earlier a token is made
//   tokenizer.ggml.add_space_prefix, tokenizer.ggml.unknown_token_id   llama
//   tokenizer.ggml.{bos,eos}_token_id, tokenizer.ggml.add_{bos,eos}_token
//
// Rules as in llama.cpp: control tokens are found in the text only where special tokens are parsed, user-defined tokens always,
// longest first; unused tokens stand for nothing.
// Source: the GGUF specification (docs/gguf.md of ggml).

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/known_pre_tokenizers.hpp>
#include <moxie/text/tokenizer.hpp>

namespace moxie {

/// Reads and checks single keys of GGUF metadata.
class GgufTokenizerKeys {
 public:
  GgufTokenizerKeys(const nlohmann::json& metadata, std::string file) : metadata_(metadata), file_(std::move(file)) {}

  Place place(const std::string& key, std::optional<std::size_t> index = {}) const {
    return {file_, key + (index ? concat("[", *index, "]") : ""), {}};
  }

  /// The array under `key`, or null where it is absent. Throws FormatError when it is no array.
  const nlohmann::json* array(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return nullptr;
    if (!found->is_array()) throw FormatError(place(key), std::string("must be an array, is ") + found->type_name());
    return &*found;
  }
  const nlohmann::json& required_array(const std::string& key) const {
    const nlohmann::json* found = array(key);
    if (!found) throw FormatError(place(key), "is missing; a tokenizer needs it");
    return *found;
  }
  /// An array with one entry for each of the `tokens` tokens, or null.
  const nlohmann::json* token_array(const std::string& key, std::size_t tokens) const {
    const nlohmann::json* found = array(key);
    if (found && found->size() != tokens) {
      throw FormatError(place(key), concat("has ", found->size(), " entries; there are ", tokens,
                                           " in tokenizer.ggml.tokens, one is needed for each"));
    }
    return found;
  }
  std::optional<std::string> string(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return std::nullopt;
    if (!found->is_string()) throw FormatError(place(key), std::string("must be a string, is ") + found->type_name());
    return found->get<std::string>();
  }
  std::optional<bool> boolean(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return std::nullopt;
    if (!found->is_boolean()) throw FormatError(place(key), std::string("must be true or false, is ") + found->type_name());
    return found->get<bool>();
  }
  /// A token id, which must be below `tokens`.
  std::optional<std::int32_t> id(const std::string& key, std::size_t tokens) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) return std::nullopt;
    if (!found->is_number_integer()) throw FormatError(place(key), std::string("must be a token id, is ") + found->type_name());
    const bool negative = !found->is_number_unsigned() && found->get<std::int64_t>() < 0;
    if (negative || found->get<std::uint64_t>() >= tokens) {
      throw FormatError(place(key), concat("the token id ", found->dump(), " is out of range: there are ", tokens, " tokens"));
    }
    return found->get<std::int32_t>();
  }

 private:
  const nlohmann::json& metadata_;
  std::string file_;
};

/// True for the texts of markers that some converters write as ordinary or user-defined tokens: ends of turns, parts of
/// fill-in-the-middle prompts. llama.cpp takes them for control tokens whatever the file says.
inline bool is_marker_text(std::string_view text) {
  static constexpr std::string_view markers =
      " <|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <|eom_id|> <EOT> _<EOT> "
      "<｜end▁of▁sentence｜> <end_of_utterance> "
      "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> "
      "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> "
      "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> "
      "<|fim_pad|> <fim-pad> <fim_pad> <PAD> <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|> ";
  const bool looks_like_one = text.size() > 3 && text.back() == '>' && text.find(' ') == std::string_view::npos;
  return looks_like_one && markers.find(concat(" ", text, " ")) != std::string_view::npos;
}

/// The tokens of GGUF metadata with their kinds. `bytes_of(text, kind)` gives what a token stands for.
inline std::vector<TokenEntry> gguf_tokens(const GgufTokenizerKeys& keys,
                                           std::string (*bytes_of)(const std::string&, TokenKind)) {
  const std::string tokens_key = "tokenizer.ggml.tokens";
  const std::string types_key = "tokenizer.ggml.token_type";
  const nlohmann::json& tokens = keys.required_array(tokens_key);
  if (tokens.empty()) throw FormatError(keys.place(tokens_key), "is empty; a tokenizer needs tokens");
  const nlohmann::json* types = keys.token_array(types_key, tokens.size());
  if (const nlohmann::json* scores = keys.token_array("tokenizer.ggml.scores", tokens.size())) {
    for (std::size_t i = 0; i < scores->size(); ++i) {
      if (!(*scores)[i].is_number()) throw FormatError(keys.place("tokenizer.ggml.scores", i), "must be a number");
    }
  }

  std::vector<TokenEntry> entries(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!tokens[i].is_string()) {
      throw FormatError(keys.place(tokens_key, i), std::string("must be a string, is ") + tokens[i].type_name());
    }
    TokenEntry& entry = entries[i];
    entry.text = tokens[i].get_ref<const std::string&>();
    entry.kind = TokenKind::normal;
    if (types) {
      const std::int64_t type = (*types)[i].is_number_integer() ? (*types)[i].get<std::int64_t>() : 0;
      if (type < 1 || type > 6) {
        throw FormatError(keys.place(types_key, i),
                          "must be 1 (normal), 2 (unknown), 3 (control), 4 (user-defined), 5 (unused) or 6 (byte)");
      }
      entry.kind = static_cast<TokenKind>(type);
      // In vocabularies of SentencePiece it ends a sequence; elsewhere it is a word of HTML.
      const bool sentence_end = entry.text == "</s>" && keys.string("tokenizer.ggml.model").value_or("") == "llama";
      if (sentence_end || is_marker_text(entry.text)) entry.kind = TokenKind::special;
    }
    entry.bytes = bytes_of(entry.text, entry.kind);
  }
  return entries;
}

/// Registers the control, unknown and user-defined tokens, and what add_special adds.
inline void add_gguf_specials(const GgufTokenizerKeys& keys, bool add_bos, bool add_eos, TokenizerParts& parts) {
  // GGUF cannot say that a token takes the white space after it; llama.cpp knows the models by name
  const std::string name = keys.string("general.name").value_or("");
  const auto named = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  const bool phi3 = named("Phi3") || named("Phi-3") || named("phi3") || named("phi-3");
  for (std::int32_t id = 0; id < parts.vocabulary.size(); ++id) {
    const TokenEntry& entry = parts.vocabulary[id];
    const bool special = entry.kind == TokenKind::special || entry.kind == TokenKind::unknown;
    if (!special && entry.kind != TokenKind::added) continue;
    AddedToken token;
    token.content = entry.text;
    token.id = id;
    token.special = special;
    token.rstrip = phi3 && entry.text != "<unk>" && entry.text != "<s>" && entry.text != "<|endoftext|>";
    parts.added.add(std::move(token));
  }
  const auto tokens = static_cast<std::size_t>(parts.vocabulary.size());
  parts.bos = keys.id("tokenizer.ggml.bos_token_id", tokens);
  parts.eos = keys.id("tokenizer.ggml.eos_token_id", tokens);
  const auto add = [&](const std::string& key, bool otherwise, std::optional<std::int32_t> id, std::vector<std::int32_t>& ids) {
    if (!keys.boolean(key).value_or(otherwise)) return;
    if (!id) throw FormatError(keys.place(key), "is true, but the file does not say which token that is");
    ids.push_back(*id);
  };
  add("tokenizer.ggml.add_bos_token", add_bos && parts.bos, parts.bos, parts.prefix);
  add("tokenizer.ggml.add_eos_token", add_eos && parts.eos, parts.eos, parts.suffix);
}

inline Tokenizer byte_level_from_gguf(const GgufTokenizerKeys& keys) {
  const std::string pre_key = "tokenizer.ggml.pre";
  const std::string merges_key = "tokenizer.ggml.merges";
  const auto pre_name = keys.string(pre_key);
  if (!pre_name)
    throw FormatError(keys.place(pre_key), "is missing: the file does not say how its tokenizer cuts text into words");
  const KnownPreTokenizer& known = known_pre_tokenizer(*pre_name, keys.place(pre_key));

  auto parts = std::make_shared<TokenizerParts>(
      gguf_tokens(keys,
                  [](const std::string& text, TokenKind kind) {
                    if (kind == TokenKind::unused) return std::string();
                    return kind == TokenKind::normal ? from_byte_level(text).value_or(text) : text;
                  }),
      keys.place("tokenizer.ggml.tokens"), AddedTokenRule::longest_first);
  add_gguf_specials(keys, known.add_bos, false, *parts);
  parts->nfc = known.nfc;

  const nlohmann::json& merges = keys.required_array(merges_key);
  MergeTable table(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    if (!merges[i].is_string()) {
      throw FormatError(keys.place(merges_key, i), std::string("must be a string, is ") + merges[i].type_name());
    }
    const std::string& merge = merges[i].get_ref<const std::string&>();
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos)
      throw FormatError(keys.place(merges_key, i), concat("\"", merge, "\" must be two tokens with a space between"));
    add_merge(
        parts->vocabulary, merge.substr(0, space), merge.substr(space + 1), i, [&] { return keys.place(merges_key, i); }, table);
  }

  PreTokenizer pre_tokenizer;
  for (const std::string_view split : known.splits) pre_tokenizer.add_split(Regex(split, keys.place(pre_key)));
  parts->model =
      std::make_unique<ByteLevelBpe>(parts->vocabulary, std::move(pre_tokenizer), std::move(table), known.ignore_merges, -1);
  return Tokenizer(std::move(parts));
}

inline Tokenizer sentencepiece_from_gguf(const GgufTokenizerKeys& keys) {
  const std::string scores_key = "tokenizer.ggml.scores";
  auto parts =
      std::make_shared<TokenizerParts>(gguf_tokens(keys,
                                                   [](const std::string& text, TokenKind kind) {
                                                     if (kind == TokenKind::unused) return std::string();
                                                     if (kind == TokenKind::byte)
                                                       return std::string(1, byte_token(text).value_or('?'));
                                                     return kind == TokenKind::normal ? without_space_markers(text) : text;
                                                   }),
                                       keys.place("tokenizer.ggml.tokens"), AddedTokenRule::longest_first);
  parts->sentencepiece = true;
  add_gguf_specials(keys, true, false, *parts);
  const auto tokens = static_cast<std::size_t>(parts->vocabulary.size());
  const nlohmann::json* scores = keys.token_array(scores_key, tokens);
  if (!scores) throw FormatError(keys.place(scores_key), "is missing; a SentencePiece tokenizer needs a score for each token");
  const std::int32_t unknown = keys.id("tokenizer.ggml.unknown_token_id", tokens).value_or(-1);
  parts->model = std::make_unique<SentencePieceScores>(parts->vocabulary, scores->get<std::vector<float>>(),
                                                       keys.boolean("tokenizer.ggml.add_space_prefix").value_or(true), unknown);
  return Tokenizer(std::move(parts));
}

/// tokenizer.ggml.model, or nothing where the file has no tokenizer. Throws FormatError where it has one and does not say which.
inline std::optional<std::string> gguf_tokenizer_kind(const GgufTokenizerKeys& keys) {
  const std::string model_key = "tokenizer.ggml.model";
  std::optional<std::string> model = keys.string(model_key);
  if (!model && keys.array("tokenizer.ggml.tokens"))
    throw FormatError(keys.place(model_key), "is missing: the file has tokens, but does not say which kind of tokenizer they are of");
  return model == "none" || model == "no_vocab" ? std::nullopt : model;
}

inline Tokenizer Tokenizer::from_gguf(const nlohmann::json& metadata, std::string file) {
  const GgufTokenizerKeys keys(metadata, std::move(file));
  const std::string model_key = "tokenizer.ggml.model";
  const auto model = gguf_tokenizer_kind(keys);
  if (model == "gpt2") return byte_level_from_gguf(keys);
  if (model == "llama") return sentencepiece_from_gguf(keys);
  if (!model) throw UnsupportedError(keys.place(model_key), "the file has no tokenizer; use token ids");
  gguf_tokens(keys, [](const std::string& text, TokenKind) { return text; });  // says what is broken before what is not supported
  throw UnsupportedError(keys.place(model_key),
                         concat("the tokenizer \"", *model,
                                "\" is not supported; moxie has \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE)"));
}

}  // namespace moxie
