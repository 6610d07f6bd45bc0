#pragma once
// A check for options of the command line that are floating-point numbers.

#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

namespace tool {

/// That a number is from `low` to `high`; CLI::Range lets NaN pass.
inline auto number_range(double low, double high) {
  return [low, high](const std::string& text) {
    double value = 0.0;
    if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return std::string();
    char bounds[64];
    std::snprintf(bounds, sizeof bounds, " is not from %g to %g", low, high);
    return text + bounds;
  };
}

}  // namespace tool
