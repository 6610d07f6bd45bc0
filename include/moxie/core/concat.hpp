#pragma once
// concat: one text of several pieces, as error messages and names are made of.

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <string_view>

namespace moxie {

/// A piece of a text: characters, or a number.
class TextPiece {
 public:
  TextPiece(std::string_view text) noexcept : kind_(Kind::text), text_(text) {}
  TextPiece(const std::string& text) noexcept : TextPiece(std::string_view(text)) {}
  TextPiece(const char* text) noexcept : TextPiece(std::string_view(text)) {}
  TextPiece(char letter) noexcept : kind_(Kind::letter), letter_(letter) {}
  TextPiece(double number) noexcept : kind_(Kind::real), real_(number) {}
  TextPiece(std::signed_integral auto number) noexcept : kind_(Kind::integer), integer_(number) {}
  TextPiece(std::unsigned_integral auto number) noexcept : kind_(Kind::natural), natural_(number) {}
  TextPiece(bool) = delete;

  void append_to(std::string& text) const {
    if (kind_ == Kind::text) {
      text.append(text_);
    } else if (kind_ == Kind::letter) {
      text += letter_;
    } else {
      std::array<char, 32> digits;
      char* const end = digits.data() + digits.size();
      const auto written = kind_ == Kind::integer   ? std::to_chars(digits.data(), end, integer_)
                           : kind_ == Kind::natural ? std::to_chars(digits.data(), end, natural_)
                                                    : std::to_chars(digits.data(), end, real_);
      text.append(digits.data(), written.ptr);
    }
  }

 private:
  enum class Kind : std::uint8_t { text, letter, integer, natural, real };
  Kind kind_;
  union {
    std::string_view text_;
    char letter_;
    std::int64_t integer_;
    std::uint64_t natural_;
    double real_;
  };
};

[[gnu::noinline]] inline std::string concat_pieces(std::initializer_list<TextPiece> pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) piece.append_to(text);
  return text;
}

/// The pieces one after the other: texts, characters, whole numbers in decimal, floats as short as they are read back exactly.
template <class... Pieces>
std::string concat(const Pieces&... pieces) {
  return concat_pieces({TextPiece(pieces)...});
}

}  // namespace moxie
