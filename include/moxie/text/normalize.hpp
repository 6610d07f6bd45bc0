#pragma once
// Unicode normalization form C, by utf8proc.

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// True when NFC certainly leaves `text` as it is: no character from U+0300 on (UTF-8 lead byte 0xCC).
inline bool is_trivially_nfc(std::string_view text) noexcept {
  for (const char c : text) {
    if (static_cast<std::uint8_t>(c) >= 0xCC) return false;
  }
  return true;
}

/// NFC of valid UTF-8.
inline std::string nfc(std::string_view text) {
  if (is_trivially_nfc(text)) return std::string(text);
  utf8proc_uint8_t* result = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(result, std::free);
  if (length < 0) throw ArgumentError(concat("Unicode normalization of the text failed: ", utf8proc_errmsg(length)));
  return {reinterpret_cast<const char*>(result), static_cast<std::size_t>(length)};
}

}  // namespace moxie
