#pragma once
// Streaming decode: text token by token, never a part of a character.
//
// Text is released when what is decoded so far ends with a complete character; while it ends with a part of one, it is held.
// (A U+FFFD that the model writes looks the same, and is held until the next token.) So the pieces joined are decode() of all
// ids.
// Source: DecodeStream of Hugging Face's `tokenizers`.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <moxie/text/tokenizer.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie {

class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// Takes the next token; the text that is complete now, often empty.
  std::string add(std::int32_t id) {
    if (skip_special_ && tokenizer_.is_special(id)) return {};
    held_.push_back(id);
    std::string text = tokenizer_.decode_part(held_, false, at_start_);
    if (text.empty() || text.ends_with(replacement_utf8)) return {};
    held_.clear();
    at_start_ = false;
    return text;
  }

  /// The rest: what was held, with U+FFFD for incomplete characters. Starts anew.
  std::string finish() {
    std::string text = tokenizer_.decode_part(held_, false, at_start_);
    held_.clear();
    at_start_ = true;
    return text;
  }

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  bool at_start_ = true;
  std::vector<std::int32_t> held_;
};

}  // namespace moxie
