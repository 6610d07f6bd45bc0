#pragma once
// Tokens that are found in the text before anything else happens to it: special tokens and added (user-defined) ones.
//
// Two rules, as their files' own programs have them:
//   leftmost_longest  Hugging Face: from left to right, at each place the longest token; `lstrip`/`rstrip` take the white space
//                     beside it, `single_word` asks for a non-word character (or the end) on both sides
//   longest_first     llama.cpp: the longest token wins wherever it stands, then the next in length, in what is left; `rstrip` as
//   above

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <moxie/text/regex.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie {

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  bool normalized = false;  ///< looked for in normalized text
  bool lstrip = false;
  bool rstrip = false;
  bool single_word = false;
};

enum class AddedTokenRule { leftmost_longest, longest_first };

class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(AddedTokenRule rule) : rule_(rule), nodes_(1) {}

  /// Tokens with empty or ill-formed content, which no text has, are ignored, as is a second one with the same content.
  void add(AddedToken token) {
    if (token.content.empty() || !is_valid_utf8(token.content)) return;
    std::uint32_t node = 0;
    for (const char c : token.content) {
      const auto byte = static_cast<std::uint8_t>(c);
      std::uint32_t next = child(node, byte);
      if (next == 0) {
        next = static_cast<std::uint32_t>(nodes_.size());
        nodes_[node].next.emplace_back(byte, next);
        nodes_.emplace_back();
      }
      node = next;
    }
    starts_[static_cast<std::uint8_t>(token.content.front())] = true;
    if (nodes_[node].token < 0) {
      nodes_[node].token = static_cast<std::int32_t>(tokens_.size());
      tokens_.push_back(std::move(token));
    }
  }

  /// Calls text(std::string_view) and token(id) for the parts of `subject` in order. Without `special`, special tokens stay text.
  template <class Text, class Token>
  void split(std::string_view subject, bool special, Text&& text, Token&& token) const {
    const std::vector<Found> found =
        rule_ == AddedTokenRule::leftmost_longest ? leftmost_longest(subject, special) : longest_first(subject, special);
    std::size_t done = 0;
    for (const Found& part : found) {
      if (part.begin > done) text(subject.substr(done, part.begin - done));
      token(tokens_[part.token].id);
      done = part.end;
    }
    if (done < subject.size()) text(subject.substr(done));
  }

 private:
  struct Node {
    std::int32_t token = -1;  // index into tokens_
    std::vector<std::pair<std::uint8_t, std::uint32_t>> next;
  };
  struct Found {
    std::size_t begin, end, token;
  };

  std::uint32_t child(std::uint32_t node, std::uint8_t byte) const noexcept {
    for (const auto& [label, next] : nodes_[node].next) {
      if (label == byte) return next;
    }
    return 0;
  }

  // calls f(token index, end) for every token that starts at `begin`, short ones first
  template <class F>
  void tokens_at(std::string_view subject, std::size_t begin, F&& f) const {
    if (!starts_[static_cast<std::uint8_t>(subject[begin])]) return;
    std::uint32_t node = 0;
    for (std::size_t i = begin; i < subject.size(); ++i) {
      node = child(node, static_cast<std::uint8_t>(subject[i]));
      if (node == 0) return;
      if (nodes_[node].token >= 0) f(static_cast<std::size_t>(nodes_[node].token), i + 1);
    }
  }

  std::vector<Found> leftmost_longest(std::string_view subject, bool special) const {
    std::vector<Found> found;
    std::size_t done = 0;  // end of the last part taken, white space included
    for (std::size_t begin = 0; begin < subject.size();) {
      Found longest{begin, begin, 0};
      tokens_at(subject, begin, [&](std::size_t token, std::size_t end) { longest = {begin, end, token}; });
      if (longest.end == begin) {
        ++begin;
        continue;
      }
      begin = longest.end;
      const AddedToken& token = tokens_[longest.token];
      if (token.special && !special) continue;
      if (token.single_word &&
          !(ends_outside_word(subject.substr(0, longest.begin)) && starts_outside_word(subject.substr(longest.end)))) {
        continue;
      }
      if (token.lstrip) longest.begin = std::max(done, spaces_begin(subject, longest.begin));
      if (token.rstrip) longest.end = spaces_end(subject, longest.end);
      if (longest.begin < done) continue;
      begin = done = longest.end;
      found.push_back(longest);
    }
    return found;
  }

  std::vector<Found> longest_first(std::string_view subject, bool special) const {
    std::vector<Found> all;
    for (std::size_t begin = 0; begin < subject.size(); ++begin) {
      tokens_at(subject, begin, [&](std::size_t token, std::size_t end) {
        if (special || !tokens_[token].special) all.push_back({begin, end, token});
      });
    }
    std::sort(all.begin(), all.end(), [](const Found& a, const Found& b) {
      return std::tuple(b.end - b.begin, a.token, a.begin) < std::tuple(a.end - a.begin, b.token, b.begin);
    });
    std::vector<bool> taken(all.empty() ? 0 : subject.size());
    std::vector<Found> found;
    for (const Found& part : all) {
      // what is taken is at least as long as `part`, so an overlap covers its first or its last byte
      if (taken[part.begin] || taken[part.end - 1]) continue;
      std::fill(taken.begin() + static_cast<std::ptrdiff_t>(part.begin), taken.begin() + static_cast<std::ptrdiff_t>(part.end),
                true);
      found.push_back(part);
    }
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.begin < b.begin; });
    for (std::size_t i = 0; i < found.size(); ++i) {
      const std::size_t limit = i + 1 < found.size() ? found[i + 1].begin : subject.size();
      if (tokens_[found[i].token].rstrip) found[i].end = spaces_end(subject.substr(0, limit), found[i].end);
    }
    return found;
  }

  static bool ends_outside_word(std::string_view text) {
    static const Regex word_at_end(R"(\w\z)");
    return text.empty() || Matcher().find(word_at_end, last_character(text), 0).first == std::string_view::npos;
  }
  static bool starts_outside_word(std::string_view text) {
    static const Regex word_at_start(R"(\A\w)");
    return text.empty() || Matcher().find(word_at_start, text, 0).first == std::string_view::npos;
  }
  static std::size_t spaces_begin(std::string_view text, std::size_t end) {
    while (end > 0) {
      const std::string_view last = last_character(text.substr(0, end));
      if (!is_white_space(utf8_step(last).code_point)) break;
      end -= last.size();
    }
    return end;
  }
  static std::size_t spaces_end(std::string_view text, std::size_t begin) {
    while (begin < text.size()) {
      const Utf8Step step = utf8_step(text.substr(begin));
      if (!is_white_space(step.code_point)) break;
      begin += step.length;
    }
    return begin;
  }

  AddedTokenRule rule_;
  std::vector<Node> nodes_;
  std::vector<AddedToken> tokens_;
  std::array<bool, 256> starts_{};
};

}  // namespace moxie
