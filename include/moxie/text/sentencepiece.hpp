#pragma once
// SentencePiece's BPE, as Llama 2, Mistral and Mixtral use it: spaces are written ▁ (U+2581), a ▁ is put before each text, the
// text is one word, and characters without a token are written byte by byte (<0xNN>).
//
// Which pair is merged first: tokenizer.json lists the merges; GGUF gives each token a score, and the pair whose joined token has
// the highest score comes first, the leftmost of equals.
//
// Source: Kudo and Richardson, "SentencePiece"; the `tokenizers` library; llama.cpp for the rules of GGUF files.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/bpe.hpp>
#include <moxie/text/tokenizer_model.hpp>
#include <moxie/text/utf8.hpp>
#include <moxie/text/vocabulary.hpp>

namespace moxie {

inline constexpr std::string_view space_marker = "\xE2\x96\x81";  // ▁

inline std::string with_space_markers(std::string_view text) {
  std::string marked;
  for (const char c : text) {
    if (c == ' ') {
      marked += space_marker;
    } else {
      marked += c;
    }
  }
  return marked;
}

inline std::string without_space_markers(std::string text) {
  for (std::size_t at = 0; (at = text.find(space_marker, at)) != std::string::npos; ++at)
    text.replace(at, space_marker.size(), " ");
  return text;
}

/// The byte that a token "<0xNN>" stands for.
inline std::optional<char> byte_token(std::string_view text) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const std::size_t high = digits.find(text[3]);
  const std::size_t low = digits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<char>(16 * high + low);
}

/// The tokens <0x00> to <0xFF>.
class ByteTokens {
 public:
  /// `unknown`: what stands for bytes where one of the tokens is missing, or -1.
  ByteTokens(const Vocabulary& vocabulary, std::int32_t unknown) : unknown_(unknown) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const char text[] = {'<', '0', 'x', "0123456789ABCDEF"[byte / 16], "0123456789ABCDEF"[byte % 16], '>'};
      ids_[byte] = vocabulary.find({text, sizeof text}).value_or(-1);
    }
  }
  /// Appends the tokens of a character that has no token of its own. Unknown characters side by side are one unknown token.
  void append(std::string_view character, std::vector<std::int32_t>& ids) const {
    const auto id = [&](char c) { return ids_[static_cast<std::uint8_t>(c)]; };
    if (std::all_of(character.begin(), character.end(), [&](char c) { return id(c) >= 0; })) {
      for (const char c : character) ids.push_back(id(c));
      return;
    }
    if (unknown_ < 0)
      throw UnsupportedError(concat("the tokenizer has no token for \"", character, "\", no byte tokens and no unknown token"));
    if (ids.empty() || ids.back() != unknown_) ids.push_back(unknown_);
  }

 private:
  std::array<std::int32_t, 256> ids_{};
  std::int32_t unknown_;
};

/// True when no token goes on past a space: then no merge crosses the start of a word, and words can be merged one by one, which
/// gives the same and is much faster.
inline bool tokens_end_at_spaces(const Vocabulary& vocabulary) {
  for (std::int32_t id = 0; id < vocabulary.size(); ++id) {
    std::string_view text = vocabulary[id].text;
    if (vocabulary[id].kind == TokenKind::none) continue;
    while (text.starts_with(space_marker)) text.remove_prefix(space_marker.size());
    if (text.find(space_marker) != std::string_view::npos) return false;
  }
  return true;
}

/// Calls word() for the parts of `marked` to be merged: each with the ▁ before it, or all as one.
template <class F>
void for_each_word(std::string_view marked, bool split, F&& word) {
  std::size_t begin = 0;
  while (split && begin < marked.size()) {
    std::size_t text = begin;
    while (marked.substr(text).starts_with(space_marker)) text += space_marker.size();
    const std::size_t end = marked.find(space_marker, text);
    if (end == std::string_view::npos) break;
    word(marked.substr(begin, end - begin));
    begin = end;
  }
  if (begin < marked.size()) word(marked.substr(begin));
}

/// With a list of merges (tokenizer.json).
class SentencePieceMerges final : public TokenizerModel {
 public:
  SentencePieceMerges(const Vocabulary& vocabulary, MergeTable merges, std::int32_t unknown)
      : vocabulary_(vocabulary),
        merges_(std::move(merges)),
        split_(tokens_end_at_spaces(vocabulary)),
        bytes_(vocabulary, unknown) {}

  void encode(const std::vector<TextSegment>& segments, std::vector<std::int32_t>& ids) const override {
    BpeMerger merger;
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
        continue;
      }
      const std::string marked = std::string(space_marker) + with_space_markers(segment.text);
      for_each_word(marked, split_, [&](std::string_view word) { encode_word(word, merger, ids); });
    }
  }

 private:
  void encode_word(std::string_view word, BpeMerger& merger, std::vector<std::int32_t>& ids) const {
    merger.symbols.clear();
    while (!word.empty()) {
      const std::string_view character = word.substr(0, utf8_step(word).length);
      word.remove_prefix(character.size());
      if (const auto id = vocabulary_.find(character)) {
        merger.symbols.push_back(*id);
      } else {
        bytes_.append(character, merger.symbols);
      }
    }
    merger.merge(merges_);
    ids.insert(ids.end(), merger.symbols.begin(), merger.symbols.end());
  }

  const Vocabulary& vocabulary_;
  MergeTable merges_;
  bool split_;
  ByteTokens bytes_;
};

/// With a score for each token (GGUF).
class SentencePieceScores final : public TokenizerModel {
 public:
  /// `scores[id]`; `add_space_prefix`: a ▁ before each text.
  SentencePieceScores(const Vocabulary& vocabulary, std::vector<float> scores, bool add_space_prefix, std::int32_t unknown)
      : vocabulary_(vocabulary),
        scores_(std::move(scores)),
        add_space_prefix_(add_space_prefix),
        split_(tokens_end_at_spaces(vocabulary)),
        bytes_(vocabulary, unknown) {}

  void encode(const std::vector<TextSegment>& segments, std::vector<std::int32_t>& ids) const override {
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        const std::string marked =
            (add_space_prefix_ ? std::string(space_marker) : std::string()) + with_space_markers(segment.text);
        for_each_word(marked, split_, [&](std::string_view word) { encode_word(word, ids); });
      }
    }
  }

 private:
  struct Symbol {
    std::size_t begin, size;  // size 0: merged into another
    std::size_t previous, next;
  };
  struct Candidate {
    float score;
    std::size_t position, size;  // of the joined text
    friend bool operator<(const Candidate& a, const Candidate& b) noexcept {
      return a.score != b.score ? a.score < b.score : a.position > b.position;
    }
  };

  void encode_word(std::string_view text, std::vector<std::int32_t>& ids) const {
    std::vector<Symbol> symbols;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t size = utf8_step(text.substr(begin)).length;
      symbols.push_back({begin, size, symbols.size() - 1, symbols.size() + 1});
      begin += size;
    }
    const std::size_t n = symbols.size();
    std::vector<Candidate> heap;
    const auto push = [&](std::size_t left, std::size_t right) {
      if (left >= n || right >= n) return;
      const std::size_t size = symbols[left].size + symbols[right].size;
      const auto id = vocabulary_.find(text.substr(symbols[left].begin, size));
      if (!id) return;
      heap.push_back({scores_[static_cast<std::size_t>(*id)], left, size});
      std::push_heap(heap.begin(), heap.end());
    };
    for (std::size_t i = 0; i + 1 < n; ++i) push(i, i + 1);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Candidate best = heap.back();
      heap.pop_back();
      Symbol& left = symbols[best.position];
      if (left.size == 0 || left.next >= n || left.size + symbols[left.next].size != best.size) continue;  // merged meanwhile
      Symbol& right = symbols[left.next];
      left.size = best.size;
      right.size = 0;
      left.next = right.next;
      if (left.next < n) symbols[left.next].previous = best.position;
      push(left.previous, best.position);
      push(best.position, left.next);
    }
    for (const Symbol& symbol : symbols) {
      if (symbol.size == 0) continue;
      const std::string_view piece = text.substr(symbol.begin, symbol.size);
      if (const auto id = vocabulary_.find(piece)) {
        ids.push_back(*id);
      } else {
        bytes_.append(piece, ids);
      }
    }
  }

  const Vocabulary& vocabulary_;
  std::vector<float> scores_;
  bool add_space_prefix_;
  bool split_;
  ByteTokens bytes_;
};

}  // namespace moxie
