#pragma once
// JSON from files: strict, bounded, with the byte position in every error.
//
// Before the parser runs, one pass over the text bounds what it may need: nesting (a copy of a deep value would overflow the
// stack), the length of one string or number, the number of values (each takes up to 200 bytes in memory, and 2 or more in the
// file), and NUL bytes, which the parser would take for the end. Source: RFC 8259.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/json_parser.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/io/in_quotes.hpp>

namespace moxie {

inline constexpr int max_json_depth = 128;
inline constexpr std::size_t max_json_token = 8'000'000;

/// How much JSON a file may hold. The default suits configurations and an index of 300 000 tensors.
struct JsonLimits {
  std::uint64_t bytes = 64'000'000;
  std::uint64_t values = 320'000;
};

/// Throws FormatError; `base` is the offset of `text` in `file`.
inline void check_json_bounds(std::string_view text, const std::string& file, std::uint64_t max_values, std::uint64_t base = 0) {
  const auto fail = [&](std::size_t at, const std::string& message) { throw FormatError({file, "JSON", base + at}, message); };
  int depth = 0;
  std::uint64_t values = 0;
  const auto count_value = [&](std::size_t at) {
    if (++values > max_values) fail(at, concat("more than ", max_values, " values"));
  };
  bool in_string = false;
  std::size_t token_begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\0') fail(i, "a NUL byte is not allowed");
    if (i - token_begin > max_json_token)
      fail(token_begin, concat("a string or number is longer than ", max_json_token, " bytes"));
    if (in_string) {
      if (c == '\\') {
        ++i;  // the escaped character cannot end the string
      } else if (c == '"') {
        in_string = false;
        token_begin = i;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        token_begin = i;
        break;
      case '[':
      case '{':
        if (++depth > max_json_depth) fail(i, concat("nested more than ", max_json_depth, " deep"));
        count_value(i);
        token_begin = i;
        break;
      case ']':
      case '}':
        --depth;
        token_begin = i;
        break;
      case ',':
        count_value(i);
        token_begin = i;
        break;
      case ':':
      case ' ':
      case '\n':
      case '\r':
      case '\t':
        token_begin = i;
        break;
      default:
        break;
    }
  }
}

/// The text with Infinity, which Python writes and JSON does not have, as 9.99e307, a number of as many characters.
inline std::string with_finite_numbers(std::string_view text) {
  constexpr std::string_view infinity = "Infinity", finite = "9.99e307";
  std::string all(text);
  bool in_string = false;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i] == '"') in_string = !in_string;
    if (in_string && all[i] == '\\') ++i;
    if (!in_string && text.substr(i).starts_with(infinity)) all.replace(i, infinity.size(), finite);
  }
  return all;
}

/// The parser's message without its prefix "[json.exception...] ", one printable line.
inline std::string json_error_text(std::string_view what) {
  const auto prefix_end = what.find("] ");
  return printable(prefix_end == std::string_view::npos ? what : what.substr(prefix_end + 2), 240);
}

/// JSON that lies in `file`, or that came from there. Throws FormatError.
inline nlohmann::json parse_json(std::string_view text, const std::string& file, JsonLimits limits = {}) {
  if (text.size() > limits.bytes) {
    throw FormatError({file, {}, {}}, concat("the file has ", text.size(), " bytes; at most ", limits.bytes, " are read"));
  }
  check_json_bounds(text, file, limits.values);
  try {
    return parse_trusted_json(text);
  } catch (const nlohmann::json::parse_error& error) {
    throw FormatError({file, "JSON", error.byte == 0 ? 0 : error.byte - 1}, json_error_text(error.what()));
  } catch (const nlohmann::json::exception& error) {
    throw FormatError({file, "JSON", {}}, json_error_text(error.what()));
  }
}

/// A whole file of JSON. Throws SystemError, FormatError.
inline nlohmann::json read_json_file(const std::string& path, JsonLimits limits = {}) {
  const MappedFile file(path);
  return parse_json({reinterpret_cast<const char*>(file.data()), static_cast<std::size_t>(file.size())}, path, limits);
}

}  // namespace moxie
