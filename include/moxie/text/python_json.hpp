#pragma once
// JSON as Python's json.dumps(value, ensure_ascii=False) writes it, which is what chat templates put into prompts:
// ", " and ": " between items, keys in the order they have, floats as Python prints them (0.1, 3.0, 1e-07, 1e+22).

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>

namespace moxie {

/// The shortest digits that read back as `value`; an exponent below 1e-4 and from 1e16 on.
inline std::string python_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  char buffer[32] = {};
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<std::size_t>(end - buffer));  // [-]D[.DDD]e[+-]XX, as Python writes it
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(buffer + e + 1);
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const std::string_view sign = text.substr(0, text[0] == '-');
  std::string digits;
  for (const char c : text.substr(sign.size(), e - sign.size())) {
    if (c != '.') digits += c;
  }
  if (exponent < 0) return concat(sign, "0.", std::string(static_cast<std::size_t>(-exponent - 1), '0'), digits);
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return concat(sign, digits, std::string(whole - digits.size(), '0'), ".0");
  return concat(sign, digits.substr(0, whole), ".", digits.substr(whole));
}

inline std::string python_json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char escape[8];
          std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
          out += escape;
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

inline std::string python_json(const nlohmann::ordered_json& value) {
  std::string out;
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) {
      out += concat((out.empty() ? "" : ", "), python_json_string(key), ": ", python_json(item));
    }
    return concat("{", out, "}");
  }
  if (value.is_array()) {
    for (const auto& item : value) out += (out.empty() ? "" : ", ") + python_json(item);
    return concat("[", out, "]");
  }
  if (value.is_string()) return python_json_string(value.get_ref<const std::string&>());
  if (value.is_number_float()) return python_float(value.get<double>());
  if (value.is_number_unsigned()) return concat(value.get<std::uint64_t>());
  if (value.is_number_integer()) return concat(value.get<std::int64_t>());
  return value.is_null() ? "null" : value.get<bool>() ? "true" : "false";
}

}  // namespace moxie
