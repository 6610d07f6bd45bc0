#pragma once
// The tokens of a tokenizer: for each id its text as the file writes it, the bytes it stands for, and its kind.
//
// Ids run from 0 to size() - 1; an id without a token (a hole) has the kind `none` and no bytes.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <moxie/core/error.hpp>

namespace moxie {

/// What a token is for. GGUF's numbers of tokenizer.ggml.token_type.
enum class TokenKind : std::uint8_t {
  none = 0,
  normal = 1,
  unknown = 2,
  special = 3,  ///< GGUF: control. Markers that are no text (begin of sentence, <|im_start|>, ...)
  added = 4,    ///< GGUF: user-defined. Text that is always one token
  unused = 5,
  byte = 6,  ///< one byte, written <0xNN>
};

struct TokenEntry {
  std::string text;   ///< as the file writes it ("Ġthe")
  std::string bytes;  ///< what it stands for (" the")
  TokenKind kind = TokenKind::none;
};

class Vocabulary {
 public:
  /// `tokens[id]`. Throws FormatError at `place` when two tokens have the same text.
  Vocabulary(std::vector<TokenEntry> tokens, const Place& place) : tokens_(std::move(tokens)) {
    ids_.reserve(tokens_.size());
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
      if (tokens_[id].kind == TokenKind::none) continue;
      const auto [entry, fresh] = ids_.emplace(tokens_[id].text, static_cast<std::int32_t>(id));
      if (!fresh) {
        throw FormatError(place, "the token \"" + tokens_[id].text + "\" occurs twice, as id " + std::to_string(entry->second) +
                                     " and as id " + std::to_string(id) + "; each must be unique");
      }
    }
  }
  Vocabulary(const Vocabulary&) = delete;  // ids_ refers to the strings of tokens_
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(tokens_.size()); }
  /// The token of any id; an empty one of kind `none` where there is none.
  const TokenEntry& operator[](std::int32_t id) const noexcept {
    static const TokenEntry none;
    return id >= 0 && id < size() ? tokens_[static_cast<std::size_t>(id)] : none;
  }
  /// The token that the file writes as `text`.
  std::optional<std::int32_t> find(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

 private:
  std::vector<TokenEntry> tokens_;
  std::unordered_map<std::string_view, std::int32_t> ids_;
};

}  // namespace moxie
