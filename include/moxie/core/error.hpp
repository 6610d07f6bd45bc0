#pragma once
// Errors: everything that moxie throws derives from moxie::Error.
//
// A message has up to three parts: where (file, tensor, byte offset), what is wrong, and what would be right.
// The library never aborts, exits or prints; objects that existed before a caught error still work.

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace moxie {

/// Where an error was found. Empty fields are left out of the message.
struct Place {
  std::string file;
  std::string item;                     ///< tensor, metadata key, JSON field or table entry
  std::optional<std::uint64_t> offset;  ///< byte offset in `file`
};

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
  /// "FILE: ITEM (byte OFFSET): MESSAGE"
  Error(Place place, const std::string& message) : std::runtime_error(format(place, message)), place_(std::move(place)) {}

  const Place& place() const noexcept { return place_; }

 private:
  static std::string format(const Place& place, const std::string& message) {
    std::string text = place.file;
    if (!place.item.empty()) text += (text.empty() ? "" : ": ") + place.item;
    if (place.offset) text += (text.empty() ? "byte " : " (byte ") + std::to_string(*place.offset) + (text.empty() ? "" : ")");
    return text.empty() ? message : text + ": " + message;
  }
  Place place_;
};

/// A file breaks its format, or says something that cannot be true.
class FormatError : public Error {
  using Error::Error;
};
/// A file is valid, but asks for something that moxie does not have (a family, a weight type, a tokenizer).
class UnsupportedError : public Error {
  using Error::Error;
};
/// An argument is out of its range, or shapes do not fit together.
class ArgumentError : public Error {
  using Error::Error;
};
/// The operating system refused (open, map, write).
class SystemError : public Error {
  using Error::Error;
};
/// A memory budget given by the caller would be exceeded; nothing was changed.
class MemoryError : public Error {
  using Error::Error;
};
/// The caller asked to stop.
class Cancelled : public Error {
  using Error::Error;
};

}  // namespace moxie
