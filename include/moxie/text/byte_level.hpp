#pragma once
// The alphabet of byte-level BPE: each of the 256 bytes is written as one printable character, so that vocabularies and merges
// are plain text. Printable Latin-1 bytes stand for themselves; the others take U+0100, U+0101, ... in order (space is U+0120,
// "Ġ").
//
// Source: Radford et al., GPT-2 (bytes_to_unicode of its encoder).

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <moxie/text/utf8.hpp>

namespace moxie {

inline constexpr bool stands_for_itself(unsigned byte) noexcept {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

/// byte -> the character that writes it.
inline constexpr std::array<char32_t, 256> byte_to_character = [] {
  std::array<char32_t, 256> table{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) table[byte] = stands_for_itself(byte) ? char32_t{byte} : next++;
  return table;
}();

/// character below U+0144 -> the byte it writes, -1 where it writes none.
inline constexpr std::array<std::int16_t, 0x144> character_to_byte = [] {
  std::array<std::int16_t, 0x144> table{};
  for (auto& byte : table) byte = -1;
  for (unsigned byte = 0; byte < 256; ++byte) table[byte_to_character[byte]] = static_cast<std::int16_t>(byte);
  return table;
}();

/// The bytes that `text` writes, or nothing where one of its characters is not of the alphabet.
inline std::optional<std::string> from_byte_level(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (!step.valid || step.code_point >= character_to_byte.size() || character_to_byte[step.code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(character_to_byte[step.code_point]);
    text.remove_prefix(step.length);
  }
  return bytes;
}

/// `bytes` written in the alphabet.
inline std::string to_byte_level(std::string_view bytes) {
  std::string text;
  text.reserve(2 * bytes.size());
  for (const char byte : bytes) append_utf8(text, byte_to_character[static_cast<std::uint8_t>(byte)]);
  return text;
}

}  // namespace moxie
