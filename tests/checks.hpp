#pragma once
// What tests of several folders ask: the message of an error, equal bits.

#include <cstring>
#include <span>
#include <string>

#include <moxie/core/error.hpp>

namespace test {

/// What the moxie::Error says that `f` throws.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const moxie::Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace test
