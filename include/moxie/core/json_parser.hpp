#pragma once
// The way into nlohmann's JSON parser, which is a template of what it reads from: all of moxie uses one, so that a program compiles
// it once.

#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

namespace moxie {

/// Characters of a JSON text; tells how far the parser has read.
class JsonIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  JsonIterator(const char* at, const char** read) : at_(at), read_(read) {}
  reference operator*() const noexcept { return *at_; }
  JsonIterator& operator++() noexcept {
    *read_ = ++at_;
    return *this;
  }
  bool operator==(const JsonIterator& other) const noexcept { return at_ == other.at_; }
  bool operator!=(const JsonIterator& other) const noexcept { return at_ != other.at_; }

 private:
  const char* at_;
  const char** read_;
};

/// Parses `text`; `*read` is always where the parser reads next, and `callback` may be empty. Throws nlohmann::json::exception.
inline nlohmann::json parse_characters(std::string_view text, const char** read,
                                       const nlohmann::json::parser_callback_t& callback = nullptr) {
  return nlohmann::json::parse(JsonIterator(text.data(), read), JsonIterator(text.data() + text.size(), read), callback);
}

/// Text that the program itself holds.
inline nlohmann::json parse_trusted_json(std::string_view text) {
  const char* read = nullptr;
  return parse_characters(text, &read);
}

}  // namespace moxie
