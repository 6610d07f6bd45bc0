#pragma once
// What a tokenizer does with the text between its added tokens: the interface, and byte-level BPE.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/bpe.hpp>
#include <moxie/text/byte_level.hpp>
#include <moxie/text/pre_tokenizer.hpp>
#include <moxie/text/vocabulary.hpp>

namespace moxie {

/// A part of a text: an added token, or text between added tokens.
struct TextSegment {
  std::string_view text;  ///< valid UTF-8
  std::int32_t id = -1;   ///< the added token; -1: none, `text` is to be encoded
};

class TokenizerModel {
 public:
  virtual ~TokenizerModel() = default;
  /// Appends the ids of the segments. May be called from several threads at once.
  virtual void encode(const std::vector<TextSegment>& segments, std::vector<std::int32_t>& ids) const = 0;
};

/// Adds the merge of two tokens, written as in the file, to `merges`. Throws FormatError at place() when one of them does not
/// exist; false when both do, but what they would make does not (the merge is left out).
template <class PlaceOf>
bool add_merge(const Vocabulary& vocabulary, const std::string& left, const std::string& right, std::size_t rank, PlaceOf&& place,
               MergeTable& merges) {
  const auto id = [&](const std::string& text) {
    const auto found = vocabulary.find(text);
    if (!found) {
      throw FormatError(place(), concat("the merge of \"", left, "\" and \"", right, "\" needs the token \"", text,
                                        "\", which does not exist"));
    }
    return *found;
  };
  const std::int32_t left_id = id(left);
  const std::int32_t right_id = id(right);
  const auto joined = vocabulary.find(left + right);
  if (joined) merges.add(left_id, right_id, {static_cast<std::uint32_t>(rank), *joined});
  return joined.has_value();
}

/// Byte-level BPE: pre-tokenized words, each byte a symbol.
class ByteLevelBpe final : public TokenizerModel {
 public:
  /// `ignore_merges`: a word that is a token is that token, whatever the merges say. `unknown`: the token of a byte that has
  /// none, or -1.
  ByteLevelBpe(const Vocabulary& vocabulary, PreTokenizer pre_tokenizer, MergeTable merges, bool ignore_merges,
               std::int32_t unknown)
      : vocabulary_(vocabulary),
        pre_tokenizer_(std::move(pre_tokenizer)),
        merges_(std::move(merges)),
        ignore_merges_(ignore_merges) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      byte_ids_[byte] = vocabulary.find(to_byte_level(std::string(1, static_cast<char>(byte)))).value_or(unknown);
    }
  }

  void encode(const std::vector<TextSegment>& segments, std::vector<std::int32_t>& ids) const override {
    Matcher matcher;
    BpeMerger merger;
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        pre_tokenizer_.split(segment.text, matcher, [&](std::string_view word) { encode_word(word, merger, ids); });
      }
    }
  }

 private:
  void encode_word(std::string_view word, BpeMerger& merger, std::vector<std::int32_t>& ids) const {
    if (ignore_merges_) {
      if (const auto id = vocabulary_.find(to_byte_level(word))) {
        ids.push_back(*id);
        return;
      }
    }
    merger.symbols.clear();
    for (const char c : word) {
      const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(c)];
      if (id < 0) {
        throw UnsupportedError(concat("the tokenizer has no token for the byte ", static_cast<std::uint8_t>(c),
                                      " and none for unknown bytes, so it cannot encode the text \"", word, "\""));
      }
      merger.symbols.push_back(id);
    }
    merger.merge(merges_);
    ids.insert(ids.end(), merger.symbols.begin(), merger.symbols.end());
  }

  const Vocabulary& vocabulary_;
  PreTokenizer pre_tokenizer_;
  MergeTable merges_;
  bool ignore_merges_;
  std::array<std::int32_t, 256> byte_ids_{};
};

}  // namespace moxie
