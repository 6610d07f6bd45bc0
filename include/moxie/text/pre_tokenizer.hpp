#pragma once
// The pre-tokenizer: cuts text into words that BPE merges within, never across.
//
// A list of steps; each step splits every piece the step before it left, seeing that piece alone (so that $ and lookahead end
// with it). The behaviours are those of Hugging Face's `tokenizers`: what becomes of a match (or, inverted, of the text between
// matches).

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/text/regex.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie {

enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

class PreTokenizer {
 public:
  /// Splits each piece at the matches of `regex`.
  void add_split(Regex regex, SplitBehavior behavior = SplitBehavior::isolated, bool invert = false) {
    steps_.push_back({std::move(regex), behavior, invert});
  }
  /// Puts a space before each piece that does not start with one.
  void add_prefix_space() { steps_.push_back({std::nullopt, SplitBehavior::isolated, false}); }

  /// Calls word(std::string_view) for each non-empty word of `text` (valid UTF-8), in order.
  template <class F>
  void split(std::string_view text, Matcher& matcher, F&& word) const {
    run(0, text, matcher, word);
  }

 private:
  struct Step {
    std::optional<Regex> regex;  // none: a prefix space
    SplitBehavior behavior;
    bool invert;
  };
  struct Part {
    std::size_t begin, end;
    bool match;
  };

  template <class F>
  void run(std::size_t index, std::string_view text, Matcher& matcher, F& word) const {
    if (text.empty()) return;
    if (index == steps_.size()) return word(text);
    const Step& step = steps_[index];
    if (!step.regex) {
      if (text.front() == ' ') return run(index + 1, text, matcher, word);
      return run(index + 1, concat(" ", text), matcher, word);
    }
    const auto next = [&](std::size_t begin, std::size_t end) { run(index + 1, text.substr(begin, end - begin), matcher, word); };
    if (step.behavior == SplitBehavior::isolated) {
      for_each_part(*step.regex, text, matcher, [&](Part part) { next(part.begin, part.end); });
      return;
    }
    std::vector<Part> parts;
    for_each_part(*step.regex, text, matcher, [&](Part part) {
      parts.push_back({part.begin, part.end, part.match != step.invert});
    });
    for (const Part& part : join(parts, step.behavior)) next(part.begin, part.end);
  }

  // the matches and the text between them, in order
  template <class F>
  static void for_each_part(const Regex& regex, std::string_view text, Matcher& matcher, F&& f) {
    std::size_t done = 0;
    std::size_t from = 0;
    while (from <= text.size()) {
      const auto [begin, end] = matcher.find(regex, text, from);
      if (begin == std::string_view::npos) break;
      if (begin > done) f(Part{done, begin, false});
      f(Part{begin, end, true});
      done = end;
      from = end;
      if (begin == end) from += end < text.size() ? utf8_step(text.substr(end)).length : 1;
    }
    if (done < text.size()) f(Part{done, text.size(), false});
  }

  static std::vector<Part> join(const std::vector<Part>& parts, SplitBehavior behavior) {
    std::vector<Part> joined;
    bool previous = false;
    switch (behavior) {
      case SplitBehavior::isolated:
        return parts;
      case SplitBehavior::removed:
        for (const Part& part : parts) {
          if (!part.match) joined.push_back(part);
        }
        return joined;
      case SplitBehavior::merged_with_previous:
      case SplitBehavior::contiguous:
        for (const Part& part : parts) {
          const bool extend = behavior == SplitBehavior::contiguous ? part.match == previous : part.match && !previous;
          if (extend && !joined.empty()) {
            joined.back().end = part.end;
          } else {
            joined.push_back(part);
          }
          previous = part.match;
        }
        return joined;
      case SplitBehavior::merged_with_next:
        for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
          if (part->match && !previous && !joined.empty()) {
            joined.back().begin = part->begin;
          } else {
            joined.push_back(*part);
          }
          previous = part->match;
        }
        return {joined.rbegin(), joined.rend()};
    }
    return joined;
  }

  std::vector<Step> steps_;
};

}  // namespace moxie
