#pragma once
// Base64 (RFC 4648, section 4): bytes as text, with padding.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

namespace detail {
inline constexpr std::string_view base64_digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
}

inline std::string to_base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    std::uint32_t three = 0;
    for (std::size_t i = 0; i < 3; ++i)
      three = three << 8 | (at + i < bytes.size() ? static_cast<std::uint8_t>(bytes[at + i]) : 0u);
    for (std::size_t i = 0; i < 4; ++i) text += at + i <= bytes.size() ? detail::base64_digits[three >> (18 - 6 * i) & 63u] : '=';
  }
  return text;
}

/// Throws FormatError for a length that is no multiple of 4, a character that is no digit, or bits that no byte uses.
inline std::string from_base64(std::string_view text) {
  static constexpr std::array<std::int8_t, 256> values = [] {
    std::array<std::int8_t, 256> table{};
    table.fill(-1);
    for (std::size_t i = 0; i < 64; ++i) table[static_cast<std::uint8_t>(detail::base64_digits[i])] = static_cast<std::int8_t>(i);
    return table;
  }();
  if (text.size() % 4 != 0)
    throw FormatError(concat("base64 text comes in groups of 4 characters, got ", text.size(), " characters: it is cut off"));
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (std::size_t at = 0; at < text.size(); at += 4) {
    const std::size_t digits = at + 4 == text.size() ? 4 - padding : 4;
    std::uint32_t three = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const std::int8_t value = i < digits ? values[static_cast<std::uint8_t>(text[at + i])] : std::int8_t{0};
      if (value < 0) throw FormatError(concat("character ", at + i, " is no base64 digit"));
      three = three << 6 | static_cast<std::uint32_t>(value);
    }
    if ((three & (0xffffffu >> (8 * (digits - 1)))) != 0)
      throw FormatError("the last base64 digit has bits that belong to no byte");
    for (std::size_t i = 0; i + 1 < digits; ++i) bytes += static_cast<char>(three >> (16 - 8 * i) & 0xffu);
  }
  return bytes;
}

}  // namespace moxie
