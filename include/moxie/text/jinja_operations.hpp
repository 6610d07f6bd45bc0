#pragma once
// What Jinja templates do with values (jinja.hpp): loops over them, order, texts, parts, operators, as Python defines them.
//
// All throw ArgumentError where Python fails.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <utf8proc.h>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_value.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::jinja {

/// Elements that a list may have.
inline constexpr std::size_t max_items = 1000000;

/// Arguments of a call; names[i] is empty where values[i] has none.
struct Arguments {
  Budget& budget;
  std::vector<Value> values{};
  std::vector<std::string> names{};

  /// Argument `i`, or the one called `name`; null where it is not given.
  const Value* find(std::size_t i, std::string_view name) const {
    if (i < values.size() && names[i].empty()) return &values[i];
    for (std::size_t k = 0; k < values.size(); ++k)
      if (!name.empty() && names[k] == name) return &values[k];
    return nullptr;
  }
  const Value& get(std::size_t i, std::string_view name) const {
    const Value* value = find(i, name);
    if (!value) fail(concat("an argument is missing: ", name));
    return *value;
  }
  bool flag(std::size_t i, std::string_view name, bool otherwise = false) const {
    const Value* value = find(i, name);
    return value ? value->is_true() : otherwise;
  }
  std::int64_t whole(std::size_t i, std::string_view name, std::int64_t otherwise) const {
    const Value* value = find(i, name);
    if (!value || value->is(Type::none)) return otherwise;
    if (!value->is_whole()) fail(concat("the argument ", name, " must be a whole number, is ", type_name(*value)));
    return value->whole();
  }
  std::string text(std::size_t i, std::string_view name, std::string otherwise = {}) const {
    const Value* value = find(i, name);
    if (!value || value->is(Type::none)) return otherwise;
    if (!value->is(Type::string)) fail(concat("the argument ", name, " must be a text, is ", type_name(*value)));
    return value->text();
  }
  /// Throws ArgumentError where more than `n` come without name.
  void at_most(std::size_t n, std::string_view function) const {
    if (values.size() > n && names[n].empty())
      fail(concat(function, " is supported with at most ", n, n == 1 ? " argument" : " arguments"));
  }
  /// Without the first `n`.
  Arguments from(std::size_t n) const {
    Arguments rest{budget};
    for (std::size_t i = n; i < values.size(); ++i) {
      rest.values.push_back(values[i]);
      rest.names.push_back(names[i]);
    }
    return rest;
  }
};

inline const std::string& text_of(const Value& value, std::string_view what) {
  if (!value.is(Type::string)) fail(concat(what, " needs a text, not a value of type ", type_name(value)));
  return value.text();
}

inline std::size_t count_characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

/// What a loop over a value runs through; of an iterator what it has left, which it then has given.
inline std::vector<Value> iterate(const Value& value, Budget& budget) {
  switch (value.type()) {
    case Type::undefined:
      return {};
    case Type::list:
    case Type::tuple:
    case Type::dict:
      budget.charge_values(value.items().size());
      return value.items();
    case Type::iterator: {
      Object& state = Value(value).object();
      const auto given = static_cast<std::ptrdiff_t>(std::exchange(state.index, static_cast<std::int64_t>(state.items.size())));
      budget.charge_values(state.items.size());
      return {state.items.begin() + given, state.items.end()};
    }
    case Type::string: {
      const std::size_t n = count_characters(value.text());
      if (n > max_items) fail("a text is too long to be taken apart");
      budget.charge_values(5 * n);
      std::vector<Value> out;
      for (const std::string_view c : characters(value.text())) out.push_back(Value::string(std::string(c)));
      return out;
    }
    default:
      fail(concat("a value of type ", type_name(value), " has no elements"));
  }
}

inline Value iterator(std::vector<Value> items) { return Value::list(std::move(items), Type::iterator); }

inline std::int64_t length(const Value& value, Budget& budget) {
  switch (value.type()) {
    case Type::undefined:
      return 0;
    case Type::string:
      budget.charge(value.text().size());
      return static_cast<std::int64_t>(count_characters(value.text()));
    case Type::list:
    case Type::tuple:
    case Type::dict:
    case Type::loop:
      return static_cast<std::int64_t>(value.items().size());
    default:
      fail(concat("a value of type ", type_name(value), " has no length"));
  }
}

/// Below 0: a < b; above 0: a > b.
inline int order(const Value& a, const Value& b, Budget& budget) {
  budget.charge(50);
  if (a.is_whole() && b.is_whole()) return a.whole() < b.whole() ? -1 : a.whole() > b.whole();
  if (a.is_number() && b.is_number()) return a.number() < b.number() ? -1 : a.number() > b.number();
  if (a.is(Type::string) && b.is(Type::string)) {
    budget.charge(std::min(a.text().size(), b.text().size()) / 8);
    return a.text().compare(b.text());  // UTF-8 sorts as its code points do
  }
  if (a.type() == b.type() && a.is_sequence()) {
    if (a.same_object(b)) return 0;
    for (std::size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i)
      if (const int o = order(a.items()[i], b.items()[i], budget)) return o;
    return a.items().size() < b.items().size() ? -1 : a.items().size() > b.items().size();
  }
  fail(concat("values of type ", type_name(a), " and ", type_name(b), " have no order"));
}

/// Where `part` begins in `text` from byte `from` on; npos: nowhere. Takes time that grows with their lengths' sum (Knuth, Morris
/// and Pratt), where string::find may take their product.
inline std::size_t find(std::string_view text, std::string_view part, std::size_t from, Budget& budget) {
  if (from > text.size()) return std::string_view::npos;
  if (part.size() < 32) {
    const std::size_t at = text.find(part, from);
    budget.charge(10 + std::min(at, text.size()) - from);
    return at;
  }
  std::vector<std::uint32_t> shorter(part.size(), 0);  // the longest start of part that ends here
  for (std::size_t i = 1, k = 0; i < part.size(); ++i) {
    while (k > 0 && part[i] != part[k]) k = shorter[k - 1];
    k += part[i] == part[k];
    shorter[i] = static_cast<std::uint32_t>(k);
  }
  for (std::size_t i = from, k = 0; i < text.size(); ++i) {
    while (k > 0 && text[i] != part[k]) k = shorter[k - 1];
    k += text[i] == part[k];
    if (k == part.size()) {
      budget.charge(i - from + part.size());
      return i + 1 - k;
    }
  }
  budget.charge(text.size() - from + part.size());
  return std::string_view::npos;
}
/// Where it begins last.
inline std::size_t find_last(std::string_view text, std::string_view part, Budget& budget) {
  if (part.size() < 32) {
    const std::size_t at = text.rfind(part);
    budget.charge(10 + text.size() - (at == std::string_view::npos ? 0 : at));
    return at;
  }
  budget.charge_bytes(text.size());
  const std::string back(text.rbegin(), text.rend()), back_part(part.rbegin(), part.rend());
  const std::size_t at = find(back, back_part, 0, budget);
  return at == std::string::npos ? at : text.size() - part.size() - at;
}

inline bool contains(const Value& in, const Value& value, Budget& budget) {
  if (in.is(Type::string)) return find(in.text(), text_of(value, "\"in\" of a text"), 0, budget) != std::string::npos;
  if (in.is(Type::dict) || in.is(Type::space)) {
    budget.charge(10 * in.items().size());
    return in.find(value) != nullptr;
  }
  for (const Value& item : iterate(in, budget))
    if (equal(item, value, budget)) return true;
  return false;
}

// Texts.

enum class Case { lower, upper, title };

inline std::string to_case(std::string_view text, Case to) {
  std::string out;
  for (; !text.empty(); text.remove_prefix(utf8_step(text).length)) {
    const auto c = static_cast<utf8proc_int32_t>(utf8_step(text).code_point);
    if (c == 0xDF && to != Case::lower) {  // ß, the one letter in wide use that becomes two
      out += to == Case::upper ? "SS" : "Ss";
      continue;
    }
    append_utf8(out, static_cast<char32_t>(to == Case::lower   ? utf8proc_tolower(c)
                                           : to == Case::upper ? utf8proc_toupper(c)
                                                               : utf8proc_totitle(c)));
  }
  return out;
}
inline std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const std::size_t first = utf8_step(text).length;
  return to_case(text.substr(0, first), Case::title) + to_case(text.substr(first), Case::lower);
}
/// Unicode's general category: "Lu".
inline std::string_view category_of(char32_t c) { return utf8proc_category_string(static_cast<utf8proc_int32_t>(c)); }
inline bool is_cased(char32_t c) {
  const std::string_view category = category_of(c);
  return category == "Lu" || category == "Ll" || category == "Lt";
}
/// The words' first letters as `capital`, the others small. `ends_word(c)`: a word begins after c.
template <class EndsWord>
std::string title(std::string_view text, Case capital, EndsWord ends_word) {
  std::string out;
  for (bool first = true; !text.empty();) {
    const Utf8Step step = utf8_step(text);
    out += to_case(text.substr(0, step.length), first ? capital : Case::lower);
    first = ends_word(step.code_point);
    text.remove_prefix(step.length);
  }
  return out;
}

inline std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t count,
                           Budget& budget) {
  std::string out;
  if (from.empty()) {  // before each character and at the end
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = utf8_step(text.substr(at)).length;
      if (count != 0) out += to, --count;
      check_length((out += text.substr(at, length)).size());
      at += length;
    }
    return count != 0 ? out += to : out;
  }
  for (std::size_t at = 0;;) {
    const std::size_t found = count == 0 ? std::string_view::npos : find(text, from, at, budget);
    if (found == std::string_view::npos) return out += text.substr(at);
    out.append(text.substr(at, found - at)).append(to);
    check_length(out.size());
    at = found + from.size();
    --count;
  }
}

inline std::vector<Value> split(std::string_view text, const std::optional<std::string>& by, std::int64_t most, bool from_right,
                                Budget& budget) {
  std::vector<Value> out;
  const auto push = [&](std::string_view part) {
    budget.charge_values(5);
    budget.charge_bytes(part.size());
    out.push_back(Value::string(std::string(part)));
  };
  if (by && by->empty()) fail("a text cannot be split by an empty one");
  const auto space_at = [&](std::string_view t) { return is_python_space(utf8_step(t).code_point); };
  if (!by) text = from_right ? strip(text, {}, false, true) : strip(text, {}, true, false);
  while (!by ? !text.empty() : true) {
    std::size_t begin = std::string_view::npos, end = 0;  // of what parts the text
    if (most != 0) {
      if (by) {
        begin = from_right ? find_last(text, *by, budget) : find(text, *by, 0, budget);
        end = begin + by->size();
      } else if (!from_right) {
        for (begin = 0; begin < text.size() && !space_at(text.substr(begin));) begin += utf8_step(text.substr(begin)).length;
        end = text.size() - strip(text.substr(begin), {}, true, false).size();
        if (begin == text.size()) begin = std::string_view::npos;
      } else {
        std::string_view word = text;
        while (!word.empty() && !space_at(last_character(word))) word.remove_suffix(last_character(word).size());
        end = word.size();
        begin = word.empty() ? std::string_view::npos : strip(word, {}, false, true).size();
      }
    }
    --most;
    if (begin == std::string_view::npos) {
      push(text);
      break;
    }
    push(from_right ? text.substr(end) : text.substr(0, begin));
    text = from_right ? text.substr(0, begin) : text.substr(end);
  }
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

inline std::vector<Value> split_lines(std::string_view text, bool keep_ends, Budget& budget) {
  std::vector<Value> out;
  while (!text.empty()) {
    std::size_t end = 0, length = 0;
    for (; end < text.size(); end += utf8_step(text.substr(end)).length) {
      const char32_t c = utf8_step(text.substr(end)).code_point;
      if ((c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029) {
        length = c == 0x0D && text.substr(end + 1).starts_with('\n') ? 2 : utf8_step(text.substr(end)).length;
        break;
      }
    }
    budget.charge_values(5);
    budget.charge_bytes(end);
    out.push_back(Value::string(std::string(text.substr(0, end + (keep_ends ? length : 0)))));
    text.remove_prefix(end + length);
  }
  return out;
}

inline std::string join(const std::vector<Value>& items, const std::string& between, Budget& budget) {
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += between;
    append_text(out, items[i], budget);
  }
  return out;
}

/// "..{}..{0}..{name}".format(..)
inline std::string format(std::string_view text, const Arguments& args) {
  std::string out;
  std::size_t next = 0;
  while (!text.empty()) {
    const char c = text[0];
    if ((c == '{' || c == '}') && text.size() > 1 && text[1] == c) {
      out += c;
      text.remove_prefix(2);
    } else if (c == '{') {
      const std::size_t end = text.find('}');
      if (end == std::string_view::npos) fail("format(): a field is not closed");
      const std::string field(text.substr(1, end - 1));
      const bool number = field.find_first_not_of("0123456789") == std::string::npos && field.size() < 6;
      if (!number && field.find_first_of(".[:!{") != std::string::npos)
        fail(concat("format(): the field {", field, "} is not supported"));
      const Value* value = number ? args.find(field.empty() ? next++ : static_cast<std::size_t>(std::atoi(field.c_str())), "")
                                  : args.find(args.values.size(), field);
      if (!value) fail(concat("format(): there is nothing for {", field, "}"));
      append_text(out, *value, args.budget);
      text.remove_prefix(end + 1);
    } else if (c == '}') {
      fail("format(): \"}\" closes nothing");
    } else {
      out += c;
      text.remove_prefix(1);
    }
    check_length(out.size());
  }
  return out;
}

/// "..%s..%d" % values
inline std::string format_percent(std::string_view text, const Value& value, Budget& budget) {
  const std::vector<Value> values = value.is(Type::tuple) ? value.items() : std::vector<Value>{value};
  std::string out;
  std::size_t next = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const char kind = ++i < text.size() ? text[i] : '\0';
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (std::string_view("sdir").find(kind) == std::string_view::npos) fail("% of a text: %s, %r, %d, %i and %% are supported");
    if (next == values.size()) fail("% of a text: there are not enough values");
    const Value& v = values[next++];
    if ((kind == 'd' || kind == 'i') && !v.is_number()) fail(concat("%d needs a number, not a value of type ", type_name(v)));
    if (kind == 's' || kind == 'r') {
      append_text(out, v, budget, kind == 'r');
    } else {
      if (!(std::fabs(v.number()) < 9.2e18)) fail("a whole number does not fit 64 bits");
      out += std::to_string(v.is_whole() ? v.whole() : static_cast<std::int64_t>(v.number()));
    }
  }
  if (next != values.size() && !value.is(Type::dict) && !value.is(Type::list)) fail("% of a text: there are too many values");
  return out;
}

inline std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// Elements.

/// The element of a sequence or character of a text at `i`, counted from the end where negative; undefined outside.
inline Value element(const Value& of, std::int64_t i, Budget& budget) {
  const std::int64_t n = length(of, budget);
  if (i < 0) i += n;
  if (i < 0 || i >= n) return Value::undefined(concat("element ", i));
  if (!of.is(Type::string)) return of.items()[static_cast<std::size_t>(i)];
  std::string_view rest = of.text();
  for (; i > 0; --i) rest.remove_prefix(utf8_step(rest).length);
  return Value::string(std::string(rest.substr(0, utf8_step(rest).length)));
}

/// of[start:stop:step]; those not given are none.
inline Value slice(const Value& of, const Value& start, const Value& stop, const Value& step, Budget& budget) {
  if (of.is(Type::undefined)) fail(concat("\"", of.object_name(), "\" is undefined, so it has no parts"));
  if (!of.is(Type::string) && !of.is_sequence()) fail(concat("a value of type ", type_name(of), " has no parts"));
  const auto whole = [](const Value& v, std::int64_t otherwise) {
    if (v.is(Type::none)) return otherwise;
    if (!v.is_whole()) fail(concat("a part's bounds must be whole numbers, not of type ", type_name(v)));
    return v.whole();
  };
  const std::int64_t n = length(of, budget);
  if (of.is(Type::string)) budget.charge_bytes(2 * of.text().size());
  const std::vector<std::string_view> all = of.is(Type::string) ? characters(of.text()) : std::vector<std::string_view>{};
  const std::int64_t by = whole(step, 1);
  if (by == 0) fail("a part's step must not be 0");
  const auto bound = [&](const Value& v, std::int64_t otherwise) {
    std::int64_t i = whole(v, otherwise);
    if (!v.is(Type::none) && i < 0) i = i < -n ? -1 : i + n;
    return by > 0 ? std::clamp<std::int64_t>(i, 0, n) : std::clamp<std::int64_t>(i, -1, n - 1);
  };
  const std::int64_t end = bound(stop, by > 0 ? n : -1);
  std::string text;
  std::vector<Value> items;
  for (std::int64_t i = bound(start, by > 0 ? 0 : n - 1); by > 0 ? i < end : i > end;) {
    if (of.is(Type::string))
      text += all[static_cast<std::size_t>(i)];
    else
      items.push_back(of.items()[static_cast<std::size_t>(i)]);
    if (by > n || by < -n) break;
    i += by;
  }
  return of.is(Type::string) ? Value::string(std::move(text)) : Value::list(std::move(items), of.type());
}

/// (key, value) of a dictionary's entries.
inline Value pairs(const Value& dict, Budget& budget) {
  budget.charge_values(5 * dict.items().size());
  std::vector<Value> out;
  for (std::size_t i = 0; i < dict.items().size(); ++i)
    out.push_back(Value::list({dict.items()[i], dict.object().values[i]}, Type::tuple));
  return Value::list(std::move(out));
}

// Operators.

inline std::int64_t checked(bool overflow, const std::int64_t& result) {  // a reference: it is written beside `overflow`
  if (overflow) fail("a whole number does not fit 64 bits");
  return result;
}
inline std::int64_t floor_division(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

inline Value repeat(const Value& of, std::int64_t times, Budget& budget) {
  const auto n = static_cast<std::uint64_t>(std::max<std::int64_t>(times, 0));
  if (of.is(Type::string)) {
    if (!of.text().empty() && n > max_text / of.text().size()) check_length(max_text + 1);
    std::string out;
    for (std::uint64_t i = 0; i < n && !of.text().empty(); ++i) out += of.text();
    return Value::string(std::move(out));
  }
  if (!of.items().empty() && n > max_items / of.items().size()) fail("a list grows too long");
  budget.charge_values(n * of.items().size());
  std::vector<Value> out;
  for (std::uint64_t i = 0; i < n && !of.items().empty(); ++i) out.insert(out.end(), of.items().begin(), of.items().end());
  return Value::list(std::move(out), of.type());
}

/// One of + - * / // % **, which `op` stands for: '/' twice is 'f', '*' twice 'p'.
inline Value calculate(char op, const Value& a, const Value& b, Budget& budget) {
  for (const Value* v : {&a, &b})
    if (v->is(Type::undefined)) fail(concat("\"", v->object_name(), "\" is undefined"));
  if (op == '+') {
    if (a.is(Type::string) && b.is(Type::string)) {
      check_length(a.text().size() + b.text().size());
      return Value::string(a.text() + b.text());
    }
    if (a.type() == b.type() && a.is_sequence()) {
      if (a.items().size() + b.items().size() > max_items) fail("a list grows too long");
      budget.charge_values(a.items().size() + b.items().size());
      std::vector<Value> items = a.items();
      items.insert(items.end(), b.items().begin(), b.items().end());
      return Value::list(std::move(items), a.type());
    }
  }
  if (op == '*') {
    if ((a.is(Type::string) || a.is_sequence()) && b.is_whole()) return repeat(a, b.whole(), budget);
    if ((b.is(Type::string) || b.is_sequence()) && a.is_whole()) return repeat(b, a.whole(), budget);
  }
  if (op == '%' && a.is(Type::string)) return Value::string(format_percent(a.text(), b, budget));
  if (!a.is_number() || !b.is_number())
    fail(concat("values of type ", type_name(a), " and ", type_name(b), " cannot be combined by ",
                op == 'f'   ? "//"
                : op == 'p' ? "**"
                            : std::string(1, op).c_str()));
  const bool divides = op == '/' || op == 'f' || op == '%';
  if (divides && b.number() == 0.0) fail("division by zero");
  if (a.is_whole() && b.is_whole() && op != '/') {
    const std::int64_t x = a.whole(), y = b.whole();
    std::int64_t result = 0;
    switch (op) {
      case '+':
        return Value::integer(checked(__builtin_add_overflow(x, y, &result), result));
      case '-':
        return Value::integer(checked(__builtin_sub_overflow(x, y, &result), result));
      case '*':
        return Value::integer(checked(__builtin_mul_overflow(x, y, &result), result));
      case 'f':
      case '%':
        if (y == -1) return Value::integer(op == '%' ? 0 : checked(__builtin_sub_overflow(std::int64_t{0}, x, &result), result));
        return Value::integer(op == 'f' ? floor_division(x, y) : x - floor_division(x, y) * y);
      default:
        if (y >= 0) {
          result = 1;
          bool overflow = false;
          for (std::int64_t i = 0; i < y && !overflow && x != 1; ++i) {
            if (x == 0 || x == -1) return Value::integer(x == 0 ? 0 : y % 2 ? -1 : 1);
            overflow = __builtin_mul_overflow(result, x, &result);
          }
          return Value::integer(checked(overflow, result));
        }
    }
  }
  const double x = a.number(), y = b.number();
  switch (op) {
    case '+':
      return Value::real(x + y);
    case '-':
      return Value::real(x - y);
    case '*':
      return Value::real(x * y);
    case '/':
      return Value::real(x / y);
    case 'f':
    case '%': {
      double rest = std::fmod(x, y);
      if (rest != 0.0 && (rest < 0.0) != (y < 0.0)) rest += y;
      if (op == '%') return Value::real(rest);
      return Value::real(std::round((x - rest) / y));
    }
    default:
      if (x == 0.0 && y < 0.0) fail("division by zero");
      return Value::real(std::pow(x, y));
  }
}

}  // namespace moxie::jinja
