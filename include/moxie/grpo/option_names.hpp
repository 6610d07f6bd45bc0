#pragma once
// Options whose values have names: reads a name, says all of them when it is none of them.

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie::grpo {

template <class Enum, std::size_t N>
using OptionNames = std::array<std::pair<std::string_view, Enum>, N>;

/// The value called `name`. Throws ArgumentError with the possible names.
template <class Enum, std::size_t N>
Enum option_value(std::string_view option, std::string_view name, const OptionNames<Enum, N>& names) {
  std::string possible;
  for (const auto& [known, value] : names) {
    if (known == name) return value;
    possible += (possible.empty() ? "" : ", ") + std::string(known);
  }
  throw ArgumentError(concat(option, " \"", name, "\" is unknown; possible are ", possible));
}

/// Throws ArgumentError "OPTION is VALUE, must be RANGE" unless `holds`.
inline void check_option(bool holds, std::string_view option, double value, std::string_view range) {
  if (!holds) throw ArgumentError(concat(option, " is ", value, ", must be ", range));
}

}  // namespace moxie::grpo
