#pragma once
// Names from files inside error messages: whatever bytes they hold, the message stays short and printable.

#include <cstddef>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>

namespace moxie {

/// `text` with bytes outside printable ASCII as \xNN, cut to `limit` bytes.
inline std::string printable(std::string_view text, std::size_t limit) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
  }
  return text.size() > limit ? concat(out, "...") : out;
}

/// A name in single quotes, at most 80 bytes of it.
inline std::string in_quotes(std::string_view name) { return concat("'", printable(name, 80), "'"); }

}  // namespace moxie
