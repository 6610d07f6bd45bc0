#pragma once
// Regular expressions of tokenizers: Oniguruma's dialect (what tokenizer.json files are written for), run by PCRE2.
//
// The pattern is translated where the two differ:
//   \s \S     Unicode White_Space. PCRE2 also counts U+180E, which Unicode removed from it.
//   \w \W     letters (Alphabetic), marks, decimal digits, connector punctuation
//   \h \H     a hexadecimal digit, not horizontal space
//   \uHHHH    a code point
//   \p{Han}   characters of that script. PCRE2 also counts those that are used with it, as U+3002 is.
//   ^ $       at every line, \n being the only line break
// Constructs that would mean something else (\b, nested classes, class intersections, (?m...)) are an UnsupportedError.
// Case-insensitive matching uses Unicode's simple folding in both (s matches U+017F).
//
// A Regex is immutable after construction and can be used from several threads; a Matcher belongs to one thread.
// Subjects must be valid UTF-8. Matching runs compiled code where PCRE2 has a JIT; a pattern that needs more than PCRE2's limits
// on a text is an Error.

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// Whether PCRE2 knows `name` as a script, and can be asked for its own characters alone (since 10.40, where that is not the default).
inline bool is_pcre2_script(std::string_view name) {
  if (name.size() < 3 || name.find_first_of(":=^ ") != std::string_view::npos) return false;  // shorter: general categories
  const std::string pattern = concat("\\p{sc:", name, "}");
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &error, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

/// `pattern` in PCRE2's dialect. Throws UnsupportedError at `place`.
inline std::string oniguruma_to_pcre2(std::string_view pattern, const Place& place) {
  constexpr std::string_view space = R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
  constexpr std::string_view not_space =
      R"(\x{0}-\x{8}\x{E}-\x{1F}!-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027})"
      R"(\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
  constexpr std::string_view word =
      R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
  constexpr std::string_view hex = "0-9A-Fa-f";
  const auto unsupported = [&](std::string_view what) {
    throw UnsupportedError(place,
                           concat("the regular expression \"", pattern, "\" uses ", what, ", which moxie does not translate"));
  };

  std::string out;
  bool in_class = false;
  std::size_t class_begin = 0;  // where the class's first member may stand: a ']' there is a literal
  const auto add_class = [&](std::string_view members, bool negated) {
    if (in_class && negated) unsupported("a negated escape inside a character class");
    if (in_class) {
      out += members;
    } else {
      (out += negated ? "[^" : "[") += members;
      out += ']';
    }
  };
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escape = pattern[++i];
      switch (escape) {
        case 's':
          add_class(space, false);
          break;
        case 'S':
          add_class(in_class ? not_space : space, !in_class);
          break;
        case 'w':
          add_class(word, false);
          break;
        case 'W':
          add_class(word, true);
          break;
        case 'h':
          add_class(hex, false);
          break;
        case 'H':
          add_class(hex, true);
          break;
        case 'b':
        case 'B':
          unsupported("\\b or \\B");
          break;
        case 'u':
          if (i + 4 >= pattern.size()) unsupported("\\u without four hexadecimal digits");
          (out += "\\x{") += pattern.substr(i + 1, 4);
          out += '}';
          i += 4;
          break;
        case 'p':
        case 'P': {
          const std::size_t end = pattern.substr(i + 1, 1) == "{" ? pattern.find('}', i) : std::string_view::npos;
          std::string_view name = end == std::string_view::npos ? std::string_view() : pattern.substr(i + 2, end - i - 2);
          const bool hat = name.starts_with('^');
          name.remove_prefix(hat ? 1 : 0);
          if (is_pcre2_script(name)) {
            ((out += (escape == 'P') != hat ? "\\P{sc:" : "\\p{sc:") += name) += '}';
            i = end;
          } else {
            (out += '\\') += escape;
          }
          break;
        }
        default:
          (out += '\\') += escape;
      }
      continue;
    }
    if (in_class) {
      if (c == ']' && i != class_begin) in_class = false;
      if (c == '[') unsupported("a class inside a class");
      if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') unsupported("an intersection of classes (&&)");
    } else if (c == '[') {
      in_class = true;
      class_begin = i + 1;
      if (class_begin < pattern.size() && pattern[class_begin] == '^') {
        out += c;
        ++i;
        ++class_begin;
        out += '^';
        continue;
      }
    } else if (c == '(' && pattern.substr(i, 2) == "(?") {
      const std::size_t options_end = pattern.find_first_of(":)=!<>", i + 2);
      if (pattern.substr(i, options_end - i).find_first_of("mx") != std::string_view::npos) unsupported("(?m) or (?x)");
    }
    out += c;
  }
  return out;
}

class Regex {
 public:
  /// Compiles `pattern`, written for Oniguruma. Throws FormatError or UnsupportedError at `place`.
  explicit Regex(std::string_view pattern, const Place& place = {}) : pattern_(pattern) {
    const std::string translated = oniguruma_to_pcre2(pattern, place);
    int error = 0;
    PCRE2_SIZE offset = 0;
    const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get()),
                FreeCode());
    if (!code_) {
      throw FormatError(place, concat("not a regular expression that PCRE2 understands: ", message(error), " at offset ", offset,
                                      " of \"", translated, "\""));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without a JIT the interpreter runs the pattern
  }

  const std::string& pattern() const noexcept { return pattern_; }

  /// PCRE2's words for an error code.
  static std::string message(int error) {
    PCRE2_UCHAR text[256];
    return pcre2_get_error_message(error, text, sizeof text) < 0 ? concat("error ", error)
                                                                 : std::string(reinterpret_cast<const char*>(text));
  }

 private:
  friend class Matcher;
  struct FreeContext {
    void operator()(pcre2_compile_context* context) const noexcept { pcre2_compile_context_free(context); }
  };
  struct FreeCode {
    void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
  };
  std::string pattern_;
  std::shared_ptr<pcre2_code> code_;
};

/// The working memory of matching; one per thread, for any number of expressions.
class Matcher {
 public:
  Matcher() : data_(pcre2_match_data_create(1, nullptr)) {
    if (!data_) throw std::bad_alloc();
  }

  /// The first match in `subject` (valid UTF-8) at or after byte `start`, as [begin, end); begin == npos when there is none.
  std::pair<std::size_t, std::size_t> find(const Regex& regex, std::string_view subject, std::size_t start) {
    const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data() ? subject.data() : "");
    int result = pcre2_match(regex.code_.get(), text, subject.size(), start, PCRE2_NO_UTF_CHECK, data_.get(), nullptr);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      result =
          pcre2_match(regex.code_.get(), text, subject.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data_.get(), nullptr);
    }
    if (result == PCRE2_ERROR_NOMATCH) return {std::string_view::npos, std::string_view::npos};
    if (result < 0) {
      throw Error(concat("matching \"", regex.pattern(), "\" against a text of ", subject.size(),
                         " bytes failed: ", Regex::message(result)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
    return {range[0], range[1]};
  }

 private:
  struct Free {
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_match_data, Free> data_;
};

}  // namespace moxie
