#pragma once
// strftime_now() of chat templates.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/text/jinja_value.hpp>

namespace moxie::jinja {

/// What strftime_now() formats; a day that exists.
struct Time {
  int year = 1970, month = 1, day = 1, hour = 0, minute = 0, second = 0;
};

/// Time as C's strftime writes it in English. Throws ArgumentError for what is neither part of a date nor of a time.
inline std::string format_time(std::string_view format, const Time& time) {
  constexpr std::string_view months[] = {"January", "February", "March",     "April",   "May",      "June",
                                         "July",    "August",   "September", "October", "November", "December"};
  constexpr std::string_view days[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
  const std::chrono::year year(time.year);
  const std::chrono::sys_days date = year / time.month / time.day;
  const auto month = static_cast<std::size_t>(std::clamp(time.month, 1, 12) - 1);
  const auto weekday = std::chrono::weekday(date).c_encoding();
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out += format[i];
      continue;
    }
    ++i;
    const bool bare = format[i] == '-' && i + 1 < format.size();  // %-d: without zeros before
    if (bare) ++i;
    const auto digits = [&](int value, std::size_t width) {
      const std::string text = std::to_string(value);
      if (!bare && text.size() < width) out.append(width - text.size(), '0');
      out += text;
    };
    switch (format[i]) {
      case 'Y':
        digits(time.year, 4);
        break;
      case 'y':
        digits(time.year % 100, 2);
        break;
      case 'm':
        digits(time.month, 2);
        break;
      case 'd':
        digits(time.day, 2);
        break;
      case 'e':
        out += (time.day < 10 && !bare ? " " : "") + std::to_string(time.day);
        break;
      case 'j':
        digits(static_cast<int>((date - std::chrono::sys_days(year / 1 / 1)).count()) + 1, 3);
        break;
      case 'H':
        digits(time.hour, 2);
        break;
      case 'I':
        digits((time.hour + 11) % 12 + 1, 2);
        break;
      case 'M':
        digits(time.minute, 2);
        break;
      case 'S':
        digits(time.second, 2);
        break;
      case 'p':
        out += time.hour < 12 ? "AM" : "PM";
        break;
      case 'B':
        out += months[month];
        break;
      case 'b':
        out += months[month].substr(0, 3);
        break;
      case 'A':
        out += days[weekday];
        break;
      case 'a':
        out += days[weekday].substr(0, 3);
        break;
      case 'F':
        out += format_time("%Y-%m-%d", time);
        break;
      case 'T':
        out += format_time("%H:%M:%S", time);
        break;
      case '%':
        out += '%';
        break;
      default:
        fail(concat("strftime_now(): %", format.substr(i, 1), " is not supported"));
    }
  }
  return out;
}

}  // namespace moxie::jinja
