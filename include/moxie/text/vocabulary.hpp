#pragma once
// The tokens of a tokenizer: for each id its text as the file writes it, the bytes it stands for, and its kind.
//
// Ids run from 0 to size() - 1; an id without a token (a hole) has the kind `none` and no bytes.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
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
  Vocabulary(std::vector<TokenEntry> tokens, const Place& place)
      : tokens_(std::move(tokens)), slots_(std::bit_ceil(2 * tokens_.size() + 2)) {
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
      if (tokens_[id].kind == TokenKind::none) continue;
      const std::size_t hash = std::hash<std::string_view>()(tokens_[id].text);
      Slot& slot = slots_[slot_of(tokens_[id].text, hash)];
      if (slot.id >= 0) {
        throw FormatError(place, concat("the token \"", tokens_[id].text, "\" occurs twice, as id ", slot.id, " and as id ", id,
                                        "; each must be unique"));
      }
      slot = {static_cast<std::uint32_t>(hash), static_cast<std::int32_t>(id)};
    }
  }

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(tokens_.size()); }
  /// The token of any id; an empty one of kind `none` where there is none.
  const TokenEntry& operator[](std::int32_t id) const noexcept {
    static const TokenEntry none;
    return id >= 0 && id < size() ? tokens_[static_cast<std::size_t>(id)] : none;
  }
  /// The token that the file writes as `text`.
  std::optional<std::int32_t> find(std::string_view text) const noexcept {
    const std::int32_t id = slots_[slot_of(text, std::hash<std::string_view>()(text))].id;
    return id < 0 ? std::nullopt : std::optional(id);
  }

 private:
  // an index over texts with open addressing, at most half full: loading looks up hundreds of thousands of merges
  struct Slot {
    std::uint32_t hash = 0;
    std::int32_t id = -1;
  };

  // the slot of `text`, or the free one where it would stand
  std::size_t slot_of(std::string_view text, std::size_t hash) const noexcept {
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot].id >= 0 && (slots_[slot].hash != static_cast<std::uint32_t>(hash) ||
                                    tokens_[static_cast<std::size_t>(slots_[slot].id)].text != text)) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  std::vector<TokenEntry> tokens_;
  std::vector<Slot> slots_;
};

}  // namespace moxie
