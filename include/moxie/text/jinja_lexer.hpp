#pragma once
// The lexer of Jinja templates (jinja_parser.hpp): text, and what stands in the tags.
//
// White space around tags goes as trim_blocks and lstrip_blocks say: the line break after a block or comment, and the spaces
// before one that starts its line; "-" takes all white space on its side, "+" none.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_value.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::jinja {

enum class Token : std::uint8_t { text, print_begin, print_end, block_begin, block_end, name, string, integer, real, op, end };

struct Lexeme {
  Token token;
  int line;
  std::string text;  // of a string its value
};

[[noreturn]] inline void fail_at(int line, const std::string& what) {
  throw FormatError(concat("chat template, line ", line, ": ", what));
}

/// Template text to lexemes.
class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    text_.reserve(source.size());
    for (std::size_t i = 0; i < source.size(); ++i) {  // line ends as Jinja sees them
      if (source[i] != '\r')
        text_ += source[i];
      else if (i + 1 == source.size() || source[i + 1] != '\n')
        text_ += '\n';
    }
    if (text_.ends_with('\n')) text_.pop_back();
    while (at_ < text_.size()) outside();
    push(Token::end, "");
  }
  std::vector<Lexeme> take() { return std::move(lexemes_); }

 private:
  static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  static bool starts_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
  }

  bool starts_tag(std::size_t at) const {
    return at + 1 < text_.size() && (text_[at + 1] == '{' || text_[at + 1] == '%' || text_[at + 1] == '#');
  }
  void push(Token token, std::string text) { lexemes_.push_back({token, line_, std::move(text)}); }
  char at(std::size_t offset) const { return at_ + offset < text_.size() ? text_[at_ + offset] : '\0'; }
  void advance(std::size_t n) {
    for (; n > 0; --n) line_ += text_[at_++] == '\n';
  }
  void skip_space() {
    const std::string_view rest = std::string_view(text_).substr(at_);
    advance(rest.size() - strip(rest, {}, true, false).size());
  }

  /// Text up to the next tag, and the tag.
  void outside() {
    std::size_t begin = text_.find('{', at_);
    while (begin != std::string::npos && !starts_tag(begin)) begin = text_.find('{', begin + 1);
    if (begin == std::string::npos) {
      push(Token::text, text_.substr(at_));
      return advance(text_.size() - at_);
    }
    const char kind = text_[begin + 1];
    const char sign = begin + 2 < text_.size() ? text_[begin + 2] : '\0';
    std::string before = text_.substr(at_, begin - at_);
    if (sign == '-') {
      before.resize(strip(before, {}, false, true).size());
    } else if (kind != '{' && sign != '+') {  // lstrip_blocks
      const std::size_t last = before.rfind('\n') + 1;
      if ((last > 0 || starts_line_) && strip(std::string_view(before).substr(last), {}, true, false).empty())
        before.resize(last);
    }
    if (!before.empty()) push(Token::text, before);
    advance(begin - at_);
    const int line = line_;
    advance(sign == '-' || sign == '+' ? 3 : 2);
    starts_line_ = false;
    if (kind == '#') {
      const std::size_t end = text_.find("#}", at_);
      if (end == std::string::npos) fail_at(line, "a comment is not closed");
      const bool strip = end > at_ && text_[end - 1] == '-', keep = end > at_ && text_[end - 1] == '+';
      advance(end + 2 - at_);
      return after_block(strip, keep);
    }
    if (kind == '%' && raw()) return;
    push(kind == '{' ? Token::print_begin : Token::block_begin, "");
    inside(kind == '{' ? "}}" : "%}", kind == '{' ? Token::print_end : Token::block_end);
  }

  /// What a tag's end does to the text that follows.
  void after_block(bool strip, bool keep) {
    if (strip)
      skip_space();
    else if (!keep && at(0) == '\n') {
      advance(1);
      starts_line_ = true;
    }
  }

  /// The rest of {% raw %} TEXT {% endraw %}, if that is what stands here.
  bool raw() {
    std::size_t i = at_;
    const auto space = [&] {
      while (i < text_.size() && is_space(text_[i])) ++i;
    };
    const auto word = [&](std::string_view w) {
      const bool found = text_.compare(i, w.size(), w) == 0;
      i += found ? w.size() : 0;
      return found;
    };
    space();
    if (!word("raw")) return false;
    space();
    const bool bare = word("-");
    if (!word("%}")) return false;
    const int line = line_;
    advance(i - at_);
    if (bare) skip_space();  // the text begins right here otherwise
    for (std::size_t end = at_; (end = text_.find("{%", end)) != std::string::npos; end += 2) {
      i = end + 2;
      const bool strip_before = word("-"), keep_before = !strip_before && word("+");
      space();
      if (!word("endraw")) continue;
      space();
      const bool strip_after = word("-"), keep_after = !strip_after && word("+");
      if (!word("%}")) continue;
      std::string body = text_.substr(at_, end - at_);
      if (strip_before) {
        body.resize(strip(body, {}, false, true).size());
      } else if (!keep_before) {
        const std::size_t last = body.rfind('\n') + 1;
        if (last > 0 && strip(std::string_view(body).substr(last), {}, true, false).empty()) body.resize(last);
      }
      push(Token::text, body);
      advance(i - at_);
      after_block(strip_after, keep_after);
      return true;
    }
    fail_at(line, "{% raw %} is not closed");
  }

  void inside(std::string_view close, Token end) {
    const int line = line_;
    int brackets = 0;
    for (;;) {
      skip_space();
      if (at_ >= text_.size()) fail_at(line, concat("a tag is not closed by ", close));
      const char c = text_[at_];
      if (brackets == 0) {
        const bool sign = c == '-' || (c == '+' && end == Token::block_end);
        if (text_.compare(at_ + (sign ? 1 : 0), 2, close) == 0) {
          push(end, "");
          advance(sign ? 3 : 2);
          if (end == Token::block_end)
            after_block(c == '-', c == '+');
          else if (c == '-')
            skip_space();
          return;
        }
      }
      if (starts_name(c)) {
        std::size_t n = 1;
        while (starts_name(at(n)) || is_digit(at(n))) ++n;
        push(Token::name, text_.substr(at_, n));
        advance(n);
      } else if (is_digit(c)) {
        number();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        brackets += c == '(' || c == '[' || c == '{';
        brackets -= c == ')' || c == ']' || c == '}';
        if (brackets < 0) fail_at(line_, concat("\"", c, "\" closes nothing"));
        op();
      }
    }
  }

  void number() {
    std::size_t n = 0;
    bool real = false;
    const auto digits = [&] {
      while (is_digit(at(n)) || (at(n) == '_' && is_digit(at(n + 1)))) ++n;
    };
    digits();
    if (at(n) == '.' && is_digit(at(n + 1))) {
      real = true;
      ++n;
      digits();
    }
    if (at(n) == 'e' || at(n) == 'E') {
      const std::size_t sign = at(n + 1) == '+' || at(n + 1) == '-';
      if (is_digit(at(n + 1 + sign))) {
        real = true;
        n += 1 + sign;
        digits();
      }
    }
    std::string digits_only;
    for (std::size_t i = 0; i < n; ++i)
      if (at(i) != '_') digits_only += at(i);
    push(real ? Token::real : Token::integer, digits_only);
    advance(n);
  }

  void string(char quote) {
    const int line = line_;
    advance(1);
    std::string out;
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] != '\\') {
        out += text_[at_];
        advance(1);
        continue;
      }
      const char c = at(1);
      constexpr std::string_view from = "nrtabfv\\'\"", to = "\n\r\t\a\b\f\v\\'\"";
      std::size_t hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
      if (const std::size_t i = from.find(c); c != '\0' && i != std::string_view::npos) {
        out += to[i];
        advance(2);
      } else if (c == '\n') {
        advance(2);
      } else if (c >= '0' && c <= '7') {
        std::uint32_t code = 0;
        std::size_t n = 1;
        for (; n <= 3 && at(n) >= '0' && at(n) <= '7'; ++n) code = 8 * code + static_cast<std::uint32_t>(at(n) - '0');
        append_utf8(out, code);
        advance(n);
      } else if (hex > 0) {
        const std::string digits = text_.substr(at_ + 2, hex);
        char* end = nullptr;
        const unsigned long code = std::strtoul(digits.c_str(), &end, 16);
        if (digits.size() != hex || end != digits.c_str() + hex || digits[0] == '-' || digits[0] == '+' || is_space(digits[0]) ||
            code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
          fail_at(line_, "a string has an escape that stands for no character");
        append_utf8(out, static_cast<char32_t>(code));
        advance(2 + hex);
      } else {  // Python keeps what it does not know
        out += '\\';
        advance(1);
      }
    }
    if (at_ >= text_.size()) fail_at(line, "a string is not closed");
    advance(1);
    push(Token::string, std::move(out));
  }

  void op() {
    for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"})
      if (text_.compare(at_, 2, two) == 0) {
        push(Token::op, std::string(two));
        return advance(2);
      }
    if (std::string_view("+-*/%~<>=.:|,()[]{}").find(text_[at_]) == std::string_view::npos)
      fail_at(line_, concat("a character that has no meaning here: ", text_.substr(at_, 1)));
    push(Token::op, text_.substr(at_, 1));
    advance(1);
  }

  std::string text_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool starts_line_ = true;  // what comes next starts a line
  std::vector<Lexeme> lexemes_;
};

}  // namespace moxie::jinja
