#pragma once
// UTF-8: decoding one character, checking, repairing.
//
// Ill-formed bytes follow the practice of the Unicode Standard (chapter 3, "U+FFFD Substitution of Maximal Subparts"), as Rust's
// and Python's lossy decoders do: each longest prefix of a well-formed sequence, else each single byte, becomes one U+FFFD.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moxie {

inline constexpr char32_t replacement_character = U'\uFFFD';
inline constexpr std::string_view replacement_utf8 = "\xEF\xBF\xBD";

/// One step through UTF-8 text.
struct Utf8Step {
  char32_t code_point;   ///< U+FFFD where ill-formed
  std::uint32_t length;  ///< bytes taken, at least 1
  bool valid;
  bool incomplete;  ///< ill-formed only because the text ends: more bytes could complete it
};

/// The character (or maximal ill-formed part) at the start of `text`, which must not be empty.
inline Utf8Step utf8_step(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  const std::uint32_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return {replacement_character, 1, false, false};
  // the second byte's range excludes overlong forms, surrogates and values above U+10FFFF
  std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0xFFu >> (length + 1));
  for (std::uint32_t i = 1; i < length; ++i) {
    if (i >= text.size()) return {replacement_character, i, false, true};
    if (byte(i) < low || byte(i) > high) return {replacement_character, i, false, false};
    code_point = (code_point << 6) | (byte(i) & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, length, true, false};
}

/// The last character of valid, non-empty text.
inline std::string_view last_character(std::string_view text) noexcept {
  std::size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<std::uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

/// Unicode's White_Space.
inline constexpr bool is_white_space(char32_t c) noexcept {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

inline void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xC0 | (c >> 6));
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    text += static_cast<char>(0xE0 | (c >> 12));
    text += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | (c >> 18));
    text += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    text += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
}

/// Length of the longest well-formed prefix in bytes.
inline std::size_t valid_utf8_prefix(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    if (static_cast<std::uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = utf8_step(text.substr(i));
    if (!step.valid) break;
    i += step.length;
  }
  return i;
}

inline bool is_valid_utf8(std::string_view text) noexcept { return valid_utf8_prefix(text) == text.size(); }

/// `text` with every ill-formed part replaced by U+FFFD.
inline std::string to_valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const std::size_t good = valid_utf8_prefix(text);
    valid.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    valid.append(replacement_utf8);
    text.remove_prefix(utf8_step(text).length);
  }
  return valid;
}

}  // namespace moxie
