#pragma once
// The check of token ids that every interface makes before it runs anything.

#include <cstdint>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// Throws ArgumentError for an id outside a vocabulary of this size; `where` begins the message.
inline void check_token_id(std::int32_t id, std::int64_t vocab_size, std::string_view where = {}) {
  if (id < 0 || id >= vocab_size) throw ArgumentError(concat(where, "token id ", id, " is outside the vocabulary of ", vocab_size));
}

}  // namespace moxie
