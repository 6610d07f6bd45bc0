#pragma once
// Typed access to the values that a file says about a model: GGUF metadata (flat keys) or config.json (nested objects).
//
// Every value is checked for its type and its range before it is used; null counts as absent. Keys may be given as
// alternatives, "num_experts|num_local_experts": the first one present is taken. Keys that are required and absent are
// remembered and reported together by check_missing(); until then the lower bound stands in for them.
// Errors: FormatError with the file, the key, what it is and what would be right.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

class Fields {
 public:
  /// Values of `object`; `prefix` stands before each key ("qwen3moe."), `label` before each key in messages ("rope_scaling.").
  /// Throws FormatError when `object` is no JSON object. `object` must outlive this.
  Fields(const nlohmann::json& object, std::string file, std::string prefix = {}, std::string label = {})
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)), label_(std::move(label)) {
    if (!object.is_object())
      throw FormatError({file_, label_, {}}, concat("is ", show(object), "; it must be an object of keys and values"));
  }

  const std::string& file() const noexcept { return file_; }

  /// The value, or nullptr where it is absent or null.
  const nlohmann::json* find(std::string_view keys) const { return locate(keys).second; }
  bool contains(std::string_view keys) const { return find(keys) != nullptr; }
  /// True also for a key that is there with the value null.
  bool mentions(std::string_view key) const { return object_.contains(prefix_ + std::string(key)); }

  std::int64_t integer(std::string_view keys, std::int64_t low, std::int64_t high) {
    const auto [key, value] = locate(keys);
    return value ? to_integer(key, *value, low, high) : (missing(key), low);
  }
  std::int64_t integer(std::string_view keys, std::int64_t low, std::int64_t high, std::int64_t fallback) const {
    const auto [key, value] = locate(keys);
    return value ? to_integer(key, *value, low, high) : fallback;
  }
  /// An integer, or an array with one for each layer; they must all be the same. Throws UnsupportedError when they are not.
  std::int64_t uniform(std::string_view keys, std::int64_t low, std::int64_t high) {
    const auto [key, value] = locate(keys);
    return value ? to_uniform(key, *value, low, high) : (missing(key), low);
  }
  std::int64_t uniform(std::string_view keys, std::int64_t low, std::int64_t high, std::int64_t fallback) const {
    const auto [key, value] = locate(keys);
    return value ? to_uniform(key, *value, low, high) : fallback;
  }
  double number(std::string_view keys, double low, double high) {
    const auto [key, value] = locate(keys);
    return value ? to_number(key, *value, low, high) : (missing(key), low);
  }
  double number(std::string_view keys, double low, double high, double fallback) const {
    const auto [key, value] = locate(keys);
    return value ? to_number(key, *value, low, high) : fallback;
  }
  bool boolean(std::string_view keys, bool fallback) const {
    const auto [key, value] = locate(keys);
    if (!value) return fallback;
    if (!value->is_boolean()) fail(key, concat("is ", show(*value), "; it must be true or false"));
    return value->get<bool>();
  }
  std::string text(std::string_view keys, std::string_view fallback) const {
    const auto [key, value] = locate(keys);
    if (!value) return std::string(fallback);
    if (!value->is_string()) fail(key, concat("is ", show(*value), "; it must be a string"));
    return value->get<std::string>();
  }

  /// Throws FormatError that lists the required keys which were asked for and are absent.
  void check_missing() const {
    if (missing_.empty()) return;
    std::string list;
    for (const std::string& key : missing_) list += concat((list.empty() ? "'" : ", '"), key, "'");
    throw FormatError({file_, missing_.front(), {}},
                      (missing_.size() == 1 ? "this key is missing" : concat("keys are missing: ", list)) +
                          std::string("; a model of this kind needs ") + (missing_.size() == 1 ? "it" : "them"));
  }
  [[noreturn]] void fail(std::string_view key, const std::string& message) const { throw FormatError(place(key), message); }
  [[noreturn]] void unsupported(std::string_view key, const std::string& message) const {
    throw UnsupportedError(place(key), message);
  }

  /// A value as a message shows it: short, and never all of a long string or array.
  static std::string show(const nlohmann::json& value) {
    if (value.is_array()) return concat("an array of ", value.size());
    if (value.is_object()) return "an object";
    if (value.is_number_float() && !std::isfinite(value.get<double>()))
      return std::isnan(value.get<double>()) ? "NaN" : "infinite";
    std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    if (text.size() > 60) text = concat(text.substr(0, 56), " ...");
    return text;
  }

 private:
  Place place(std::string_view key) const { return {file_, label_ + prefix_ + std::string(key), {}}; }

  std::pair<std::string_view, const nlohmann::json*> locate(std::string_view keys) const {
    const std::string_view first = keys.substr(0, keys.find('|'));
    for (std::string_view rest = keys; !rest.empty();) {
      const std::size_t bar = rest.find('|');
      const std::string_view key = rest.substr(0, bar);
      const auto it = object_.find(prefix_ + std::string(key));
      if (it != object_.end() && !it->is_null()) return {key, &*it};
      rest = bar == std::string_view::npos ? std::string_view() : rest.substr(bar + 1);
    }
    return {first, nullptr};
  }
  void missing(std::string_view key) {
    std::string name = label_ + prefix_ + std::string(key);
    if (std::find(missing_.begin(), missing_.end(), name) == missing_.end()) missing_.push_back(std::move(name));
  }

  std::int64_t to_integer(std::string_view key, const nlohmann::json& value, std::int64_t low, std::int64_t high) const {
    const bool too_large = value.is_number_unsigned() &&
                           value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!value.is_number_integer() || too_large || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high)
      fail(key, concat("is ", show(value), "; it must be an integer from ", low, " to ", high));
    return value.get<std::int64_t>();
  }
  std::int64_t to_uniform(std::string_view key, const nlohmann::json& value, std::int64_t low, std::int64_t high) const {
    if (!value.is_array()) return to_integer(key, value, low, high);
    if (value.empty()) fail(key, "is an empty array; it must be an integer or have one for each layer");
    const std::int64_t first = to_integer(key, value.front(), low, high);
    for (const nlohmann::json& element : value)
      if (to_integer(key, element, low, high) != first)
        unsupported(key, "differs between layers; moxie needs it to be the same in all");
    return first;
  }
  double to_number(std::string_view key, const nlohmann::json& value, double low, double high) const {
    const double x = value.is_number() ? value.get<double>() : 0.0;
    if (!value.is_number() || !(x >= low && x <= high)) {
      std::ostringstream range;
      range << "a number from " << low << " to " << high;
      fail(key, concat("is ", show(value), "; it must be ", range.str()));
    }
    return x;
  }

  const nlohmann::json& object_;
  std::string file_, prefix_, label_;
  std::vector<std::string> missing_;
};

}  // namespace moxie
