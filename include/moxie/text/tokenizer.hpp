#pragma once
// Tokenizer: text to token ids and back, as the model's own tokenizer does.
//
//   Tokenizer t = Tokenizer::from_hf(tokenizer_json, tokenizer_config, "tokenizer.json");   // or from_gguf(metadata, file)
//   std::vector<std::int32_t> ids = t.encode("Hello <|im_end|>");
//   std::string text = t.decode(ids);
//
// encode: 1. ill-formed UTF-8 becomes U+FFFD (as a lossy decode in Rust or Python does); 2. added and special tokens are
//   found (added_tokens.hpp); 3. the rest is normalized (NFC, where the model says so), cut into words (pre_tokenizer.hpp)
//   and merged (bpe.hpp; sentencepiece.hpp).
// decode: the tokens' bytes, joined; ill-formed UTF-8 becomes U+FFFD. Ids without a token (a model's padded rows) give nothing.
//
// A Tokenizer is immutable and may be used from several threads at once. Copies share the vocabulary.

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/text/added_tokens.hpp>
#include <moxie/text/normalize.hpp>
#include <moxie/text/sentencepiece.hpp>
#include <moxie/text/tokenizer_model.hpp>
#include <moxie/text/utf8.hpp>
#include <moxie/text/vocabulary.hpp>

namespace moxie {

/// What a file says about its tokenizer; filled by the readers of GGUF and tokenizer.json.
struct TokenizerParts {
  TokenizerParts(std::vector<TokenEntry> tokens, const Place& place, AddedTokenRule rule)
      : vocabulary(std::move(tokens), place), added(rule), normalized_added(rule) {}
  TokenizerParts(const TokenizerParts&) = delete;  // `model` refers to `vocabulary`
  TokenizerParts& operator=(const TokenizerParts&) = delete;

  Vocabulary vocabulary;
  AddedTokenFinder added;             ///< found in the text as it is
  AddedTokenFinder normalized_added;  ///< found in the normalized text
  bool nfc = false;
  /// SentencePiece's decode: the space that encode put before the text goes, and byte tokens side by side are characters only
  /// together.
  bool sentencepiece = false;
  std::unique_ptr<const TokenizerModel> model;
  std::vector<std::int32_t> prefix, suffix;  ///< what add_special puts around the ids
  std::optional<std::int32_t> bos, eos;
};

class Tokenizer {
 public:
  /// From GGUF metadata, a flat object of key -> value. Throws FormatError naming the file and the key, UnsupportedError for a
  /// kind of tokenizer or pre-tokenizer that moxie does not have.
  static Tokenizer from_gguf(const nlohmann::json& metadata, std::string file);
  /// From tokenizer.json and tokenizer_config.json (null if absent). `file` is the first one's path, for messages.
  static Tokenizer from_hf(const nlohmann::json& tokenizer_json, const nlohmann::json& tokenizer_config, std::string file);

  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

  /// The ids of `text`. `parse_special`: special tokens written in the text become their ids, else they are text like any other
  /// (for text from users). `add_special`: with the begin- and end-of-sentence tokens that the model is used to.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special = true, bool add_special = false) const {
    std::string repaired;
    if (!is_valid_utf8(text)) text = repaired = to_valid_utf8(text);

    std::vector<TextSegment> segments;
    std::deque<std::string> normalized;  // keeps what the segments refer to
    const auto add_token = [&](std::int32_t id) { segments.push_back({{}, id}); };
    const auto add_text = [&](std::string_view part) { segments.push_back({part, -1}); };
    parts_->added.split(
        text, parse_special,
        [&](std::string_view part) {
          if (parts_->nfc && !is_trivially_nfc(part)) part = normalized.emplace_back(nfc(part));
          parts_->normalized_added.split(part, parse_special, add_text, add_token);
        },
        add_token);

    std::vector<std::int32_t> ids;
    if (add_special) ids = parts_->prefix;
    parts_->model->encode(segments, ids);
    if (add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
    return ids;
  }

  /// The text of `ids`; `skip_special` leaves out the special tokens.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const {
    return decode_part(ids, skip_special, true);
  }

  /// The same for ids from the middle of a text, where `at_start` is false: a space before them stays.
  std::string decode_part(std::span<const std::int32_t> ids, bool skip_special, bool at_start) const {
    std::string text;
    std::string bytes;  // of byte tokens side by side
    const auto flush = [&] {
      if (is_valid_utf8(bytes)) {
        text += bytes;
      } else {
        for (std::size_t i = 0; i < bytes.size(); ++i) text += replacement_utf8;
      }
      bytes.clear();
    };
    for (const std::int32_t id : ids) {
      if (skip_special && is_special(id)) continue;
      if (parts_->sentencepiece && kind(id) == TokenKind::byte) {
        bytes += piece(id);
      } else {
        flush();
        text += piece(id);
      }
    }
    flush();
    if (parts_->sentencepiece && at_start && text.starts_with(' ')) text.erase(0, 1);
    return is_valid_utf8(text) ? text : to_valid_utf8(text);
  }

  /// The bytes of one token, possibly a part of a character; empty for an id without a token. Valid as long as the tokenizer.
  std::string_view piece(std::int32_t id) const noexcept { return parts_->vocabulary[id].bytes; }

  /// One more than the largest id with a token. The model's output may have more rows.
  std::int32_t vocab_size() const noexcept { return parts_->vocabulary.size(); }
  std::optional<std::int32_t> bos_id() const noexcept { return parts_->bos; }
  std::optional<std::int32_t> eos_id() const noexcept { return parts_->eos; }
  /// True for markers that are no text, which decode's skip_special leaves out.
  bool is_special(std::int32_t id) const noexcept {
    const TokenKind kind = parts_->vocabulary[id].kind;
    return kind == TokenKind::special || kind == TokenKind::unknown;
  }
  TokenKind kind(std::int32_t id) const noexcept { return parts_->vocabulary[id].kind; }

  /// The token that is written `text` ("<|im_end|>", " the").
  std::optional<std::int32_t> find(std::string_view text) const {
    const auto id = parts_->vocabulary.find(text);
    if (id) return id;
    return parts_->vocabulary.find(parts_->sentencepiece ? with_space_markers(text) : to_byte_level(text));
  }

 private:
  std::shared_ptr<const TokenizerParts> parts_;
};

}  // namespace moxie

#include <moxie/text/tokenizer_gguf.hpp>
#include <moxie/text/tokenizer_hf.hpp>
