#pragma once
// Filters, tests and methods of Jinja templates (jinja.hpp), as Jinja 3.1 and Python define them.
//
// All throw ArgumentError where Jinja fails.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <utf8proc.h>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_value.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::jinja {

/// Bytes that a text may have, elements that a list may have.
inline constexpr std::size_t max_text = std::size_t{64} << 20, max_items = 1000000;

[[noreturn]] inline void fail(std::string what) { throw ArgumentError(std::move(what)); }
inline void check_length(std::size_t bytes) {
  if (bytes > max_text) fail("a text grows beyond 64 MB");
}

/// Arguments of a call; names[i] is empty where values[i] has none.
struct Arguments {
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
  /// Without the first `n`.
  Arguments from(std::size_t n) const {
    Arguments rest;
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

/// What a loop over a value runs through.
inline std::vector<Value> iterate(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
      return {};
    case Type::list:
    case Type::tuple:
    case Type::dict:
      return value.items();
    case Type::string: {
      std::vector<Value> out;
      for (const std::string_view c : characters(value.text())) out.push_back(Value::string(std::string(c)));
      return out;
    }
    default:
      fail(concat("a value of type ", type_name(value), " has no elements"));
  }
}

inline std::int64_t length(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
      return 0;
    case Type::string:
      return static_cast<std::int64_t>(characters(value.text()).size());
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
inline int order(const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) return a.whole() < b.whole() ? -1 : a.whole() > b.whole();
  if (a.is_number() && b.is_number()) return a.number() < b.number() ? -1 : a.number() > b.number();
  if (a.is(Type::string) && b.is(Type::string)) return a.text().compare(b.text());  // UTF-8 sorts as its code points do
  if (a.type() == b.type() && a.is_sequence()) {
    for (std::size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i)
      if (const int o = order(a.items()[i], b.items()[i])) return o;
    return a.items().size() < b.items().size() ? -1 : a.items().size() > b.items().size();
  }
  fail(concat("values of type ", type_name(a), " and ", type_name(b), " have no order"));
}

inline bool contains(const Value& in, const Value& value) {
  if (in.is(Type::string)) return in.text().find(text_of(value, "\"in\" of a text")) != std::string::npos;
  if (in.is(Type::dict) || in.is(Type::space)) return in.find(value) != nullptr;
  for (const Value& item : iterate(in))
    if (item == value) return true;
  return false;
}

// Texts.

inline bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

/// Without the characters of `chars` (none: white space) at its ends.
inline std::string_view strip(std::string_view text, const std::optional<std::string>& chars, bool left, bool right) {
  const auto drops = [&](std::string_view c) {
    return chars ? chars->find(c) != std::string::npos : is_python_space(utf8_step(c).code_point);
  };
  while (left && !text.empty() && drops(text.substr(0, utf8_step(text).length))) text.remove_prefix(utf8_step(text).length);
  while (right && !text.empty() && drops(last_character(text))) text.remove_suffix(last_character(text).size());
  return text;
}

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
inline bool is_category(char32_t c, std::string_view first_letters) {
  return first_letters.find(utf8proc_category_string(static_cast<utf8proc_int32_t>(c))[0]) != std::string_view::npos;
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

inline std::string replace(std::string_view text, std::string_view from, std::string_view to, std::int64_t count) {
  std::string out;
  if (from.empty()) {  // before each character and at the end
    for (const std::string_view c : characters(text)) {
      if (count != 0) out += to, --count;
      check_length((out += c).size());
    }
    return count != 0 ? out += to : out;
  }
  for (std::size_t at = 0;;) {
    const std::size_t found = count == 0 ? std::string_view::npos : text.find(from, at);
    if (found == std::string_view::npos) return out += text.substr(at);
    out.append(text.substr(at, found - at)).append(to);
    check_length(out.size());
    at = found + from.size();
    --count;
  }
}

inline std::vector<Value> split(std::string_view text, const std::optional<std::string>& by, std::int64_t most, bool from_right) {
  std::vector<Value> out;
  const auto push = [&](std::string_view part) { out.push_back(Value::string(std::string(part))); };
  if (by && by->empty()) fail("a text cannot be split by an empty one");
  const auto space_at = [&](std::string_view t) { return is_python_space(utf8_step(t).code_point); };
  if (!by) text = from_right ? strip(text, {}, false, true) : strip(text, {}, true, false);
  while (!by ? !text.empty() : true) {
    std::size_t begin = std::string_view::npos, end = 0;  // of what parts the text
    if (most != 0) {
      if (by) {
        begin = from_right ? text.rfind(*by) : text.find(*by);
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

inline std::vector<Value> split_lines(std::string_view text, bool keep_ends) {
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
    out.push_back(Value::string(std::string(text.substr(0, end + (keep_ends ? length : 0)))));
    text.remove_prefix(end + length);
  }
  return out;
}

inline std::string join(const std::vector<Value>& items, const std::string& between) {
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += between;
    out += to_text(items[i]);
    check_length(out.size());
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
      out += to_text(*value);
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
inline std::string format_percent(std::string_view text, const Value& value) {
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
    out += kind == 's' ? to_text(v) : kind == 'r' ? to_text(v, true) : std::to_string(static_cast<std::int64_t>(v.number()));
    check_length(out.size());
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
inline Value element(const Value& of, std::int64_t i) {
  const bool text = of.is(Type::string);
  const std::vector<std::string_view> all = text ? characters(of.text()) : std::vector<std::string_view>{};
  const auto n = static_cast<std::int64_t>(text ? all.size() : of.items().size());
  if (i < 0) i += n;
  if (i < 0 || i >= n) return Value::undefined(concat("element ", i));
  const auto at = static_cast<std::size_t>(i);
  return text ? Value::string(std::string(all[at])) : of.items()[at];
}

/// of[start:stop:step]; those not given are none.
inline Value slice(const Value& of, const Value& start, const Value& stop, const Value& step) {
  if (of.is(Type::undefined)) fail(concat("\"", of.object_name(), "\" is undefined, so it has no parts"));
  if (!of.is(Type::string) && !of.is_sequence()) fail(concat("a value of type ", type_name(of), " has no parts"));
  const auto whole = [](const Value& v, std::int64_t otherwise) {
    if (v.is(Type::none)) return otherwise;
    if (!v.is_whole()) fail(concat("a part's bounds must be whole numbers, not of type ", type_name(v)));
    return v.whole();
  };
  const std::vector<std::string_view> all = of.is(Type::string) ? characters(of.text()) : std::vector<std::string_view>{};
  const auto n = static_cast<std::int64_t>(of.is(Type::string) ? all.size() : of.items().size());
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
inline Value pairs(const Value& dict) {
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

inline Value repeat(const Value& of, std::int64_t times) {
  const auto n = static_cast<std::uint64_t>(std::max<std::int64_t>(times, 0));
  if (of.is(Type::string)) {
    if (!of.text().empty() && n > max_text / of.text().size()) check_length(max_text + 1);
    std::string out;
    for (std::uint64_t i = 0; i < n && !of.text().empty(); ++i) out += of.text();
    return Value::string(std::move(out));
  }
  if (!of.items().empty() && n > max_items / of.items().size()) fail("a list grows too long");
  std::vector<Value> out;
  for (std::uint64_t i = 0; i < n && !of.items().empty(); ++i) out.insert(out.end(), of.items().begin(), of.items().end());
  return Value::list(std::move(out), of.type());
}

/// One of + - * / // % **, which `op` stands for: '/' twice is 'f', '*' twice 'p'.
inline Value calculate(char op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b})
    if (v->is(Type::undefined)) fail(concat("\"", v->object_name(), "\" is undefined"));
  if (op == '+') {
    if (a.is(Type::string) && b.is(Type::string)) {
      check_length(a.text().size() + b.text().size());
      return Value::string(a.text() + b.text());
    }
    if (a.type() == b.type() && a.is_sequence()) {
      std::vector<Value> items = a.items();
      items.insert(items.end(), b.items().begin(), b.items().end());
      if (items.size() > max_items) fail("a list grows too long");
      return Value::list(std::move(items), a.type());
    }
  }
  if (op == '*') {
    if ((a.is(Type::string) || a.is_sequence()) && b.is_whole()) return repeat(a, b.whole());
    if ((b.is(Type::string) || b.is_sequence()) && a.is_whole()) return repeat(b, a.whole());
  }
  if (op == '%' && a.is(Type::string)) return Value::string(format_percent(a.text(), b));
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
      return Value::real(std::floor(x / y));
    case '%':
      return Value::real(x - std::floor(x / y) * y);
    default:
      if (x == 0.0 && y < 0.0) fail("division by zero");
      return Value::real(std::pow(x, y));
  }
}

// Tests.

inline bool test(std::string_view name, const Value& v, const Arguments& args) {
  const auto other = [&]() -> const Value& { return args.get(0, "other"); };
  if (name == "defined") return !v.is(Type::undefined);
  if (name == "undefined") return v.is(Type::undefined);
  if (name == "none") return v.is(Type::none);
  if (name == "string") return v.is(Type::string);
  if (name == "mapping") return v.is(Type::dict);
  if (name == "iterable")
    return v.is(Type::string) || v.is_sequence() || v.is(Type::dict) || v.is(Type::loop) || v.is(Type::undefined);
  if (name == "sequence") return v.is(Type::string) || v.is_sequence() || v.is(Type::dict) || v.is(Type::undefined);
  if (name == "number") return v.is_number();
  if (name == "integer") return v.is(Type::integer);
  if (name == "float") return v.is(Type::real);
  if (name == "boolean") return v.is(Type::boolean);
  if (name == "true") return v.is(Type::boolean) && v.whole() != 0;
  if (name == "false") return v.is(Type::boolean) && v.whole() == 0;
  if (name == "callable") return v.is(Type::function);
  if (name == "in") return contains(args.get(0, "seq"), v);
  if (name == "eq" || name == "equalto" || name == "==") return v == other();
  if (name == "ne" || name == "!=") return !(v == other());
  if (name == "lt" || name == "lessthan" || name == "<") return order(v, other()) < 0;
  if (name == "le" || name == "<=") return order(v, other()) <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order(v, other()) > 0;
  if (name == "ge" || name == ">=") return order(v, other()) >= 0;
  if (name == "sameas")
    return v.is_number() || v.is(Type::none) ? v.type() == other().type() && v == other() : v.same_object(other());
  if (name == "odd" || name == "even") return calculate('%', v, Value::integer(2)).number() == (name == "odd" ? 1.0 : 0.0);
  if (name == "divisibleby") return calculate('%', v, args.get(0, "num")).number() == 0.0;
  if (name == "lower" || name == "upper") {
    const std::string text = to_text(v);
    return text == to_case(text, name == "lower" ? Case::lower : Case::upper) &&
           to_case(text, Case::lower) != to_case(text, Case::upper);
  }
  throw UnsupportedError(concat("chat template: there is no test \"", name, "\""));
}

// Filters.

inline Value filter(std::string_view name, const Value& v, const Arguments& args);

/// The value at a path ("a.b", or a number), as Jinja's `attribute` arguments give it.
inline Value at_path(Value value, const Value& path) {
  if (path.is_whole()) return value.is_sequence() || value.is(Type::string) ? element(value, path.whole()) : Value();
  std::string_view rest = text_of(path, "an attribute");
  for (bool more = true; more;) {
    const std::size_t dot = rest.find('.');
    more = dot != std::string_view::npos;
    const std::string name(rest.substr(0, dot));
    rest.remove_prefix(more ? dot + 1 : rest.size());
    if (value.is(Type::undefined)) fail(concat("\"", value.object_name(), "\" is undefined"));
    const bool number = !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == std::string::npos;
    const Value* found = value.is(Type::dict) || value.is(Type::space) ? value.find(Value::string(name)) : nullptr;
    if (number && value.is_sequence())
      value = element(value, std::atoll(name.c_str()));
    else
      value = found ? Value(*found) : Value::undefined(name);
  }
  return value;
}

/// What elements are sorted and compared by: a path of them, their text without regard to case.
struct SortKey {
  const Value* path;
  bool case_sensitive;
  Value operator()(const Value& item) const {
    Value key = path && !path->is(Type::none) ? at_path(item, *path) : item;
    return !case_sensitive && key.is(Type::string) ? Value::string(to_case(key.text(), Case::lower)) : key;
  }
};

inline Value sorted(std::vector<Value> items, const SortKey& key, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    return reverse ? order(key(b), key(a)) < 0 : order(key(a), key(b)) < 0;
  });
  return Value::list(std::move(items));
}

/// select, reject, selectattr, rejectattr: the elements that pass a test, or do not.
inline Value selected(const Value& v, const Arguments& args, bool by_attribute, bool keep) {
  const Arguments rest = by_attribute ? args.from(1) : args;
  const Value* name = rest.find(0, "");
  const Arguments test_arguments = name ? rest.from(1) : Arguments{};
  std::vector<Value> out;
  if (!v.is_true()) return Value::list({});  // whatever it is
  for (const Value& item : iterate(v)) {
    const Value tested = by_attribute ? at_path(item, args.get(0, "attribute")) : item;
    const bool passes = name ? test(text_of(*name, "a test"), tested, test_arguments) : tested.is_true();
    if (passes == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

inline Value mapped(const Value& v, const Arguments& args) {
  if (!v.is_true()) return Value::list({});
  std::vector<Value> out;
  const Value* attribute = args.find(args.values.size(), "attribute");
  const Value* otherwise = args.find(args.values.size(), "default");
  for (const Value& item : iterate(v)) {
    if (attribute) {
      Value value = at_path(item, *attribute);
      out.push_back(value.is(Type::undefined) && otherwise ? *otherwise : value);
    } else {
      out.push_back(filter(text_of(args.get(0, "filter"), "a filter"), item, args.from(1)));
    }
  }
  return Value::list(std::move(out));
}

inline std::string indented(std::string_view text, const Arguments& args) {
  const Value* width = args.find(0, "width");
  if (width && width->is_whole() && width->whole() > 1000) fail("indent(): at most 1000 spaces");
  const std::string space =
      width && width->is(Type::string)
          ? width->text()
          : std::string(static_cast<std::size_t>(std::max<std::int64_t>(args.whole(0, "width", 4), 0)), ' ');
  const bool first = args.flag(1, "first"), blank = args.flag(2, "blank");
  std::string out;
  bool at_first = true;
  for (const Value& line : split_lines(std::string(text) + "\n", false)) {
    if (!at_first) out += '\n';
    if (at_first ? first : (blank || !line.text().empty())) out += space;
    out += line.text();
    check_length(out.size());
    at_first = false;
  }
  return out;
}

inline std::string to_json(const Value& v, const Arguments& args) {
  JsonStyle style;
  style.ascii = args.flag(0, "ensure_ascii");
  if (const Value* indent = args.find(1, "indent"); indent && !indent->is(Type::none)) {
    style.lines = true;
    style.comma = ",";
    style.indent =
        indent->is(Type::string)
            ? indent->text()
            : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(args.whole(1, "indent", 0), 0, 1000)), ' ');
  }
  if (const Value* separators = args.find(2, "separators"); separators && !separators->is(Type::none)) {
    if (!separators->is_sequence() || separators->items().size() != 2) fail("tojson(): separators must be two texts");
    style.comma = text_of(separators->items()[0], "a separator");
    style.colon = text_of(separators->items()[1], "a separator");
  }
  style.sorted = args.flag(3, "sort_keys");
  return to_json(v, style);
}

/// A number that a text writes, as Python's float() reads it.
inline std::optional<double> parse_number(std::string_view text) {
  const std::string digits(strip(text, {}, true, true));
  if (digits.empty() || digits.find_first_not_of("0123456789+-.eE") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size()) return std::nullopt;
  return value;
}

inline Value to_integer(const Value& v, const Arguments& args) {
  double value = 0.0;
  if (v.is(Type::undefined)) fail(concat("\"", v.object_name(), "\" is undefined"));
  if (v.is_whole()) return Value::integer(v.whole());
  if (v.is(Type::real)) {
    value = v.number();
  } else if (const auto number = v.is(Type::string) ? parse_number(v.text()) : std::nullopt) {
    value = *number;
  } else {
    const Value* otherwise = args.find(0, "default");
    return otherwise ? *otherwise : Value::integer(0);
  }
  if (!(std::fabs(value) < 9.2e18)) fail("a whole number does not fit 64 bits");
  return Value::integer(static_cast<std::int64_t>(value));
}

inline Value filter(std::string_view name, const Value& v, const Arguments& args) {
  const auto text = [](std::string t) { return Value::string(std::move(t)); };
  const auto chars = [&](std::size_t i) -> std::optional<std::string> {
    const Value* given = args.find(i, "chars");
    return given && !given->is(Type::none) ? std::optional<std::string>(text_of(*given, "trim")) : std::nullopt;
  };
  if (name == "tojson") return text(to_json(v, args));
  if (name == "length" || name == "count") return Value::integer(length(v));
  if (name == "trim") return text(std::string(strip(to_text(v), chars(0), true, true)));
  if (name == "string") return text(to_text(v));
  if (name == "safe" || name == "forceescape") return text(to_text(v));
  if (name == "escape" || name == "e") return text(escape_html(to_text(v)));
  if (name == "upper") return text(to_case(to_text(v), Case::upper));
  if (name == "lower") return text(to_case(to_text(v), Case::lower));
  if (name == "capitalize") return text(capitalize(to_text(v)));
  if (name == "title")
    return text(title(to_text(v), Case::upper,
                      [](char32_t c) { return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_python_space(c); }));
  if (name == "replace")
    return text(replace(to_text(v), to_text(args.get(0, "old")), to_text(args.get(1, "new")), args.whole(2, "count", -1)));
  if (name == "indent") return text(indented(text_of(v, "indent"), args));
  if (name == "default" || name == "d") {
    const bool missing = v.is(Type::undefined) || (args.flag(1, "boolean") && !v.is_true());
    const Value* otherwise = args.find(0, "default_value");
    return !missing ? v : otherwise ? *otherwise : text("");
  }
  if (name == "join") {
    const Value* attribute = args.find(1, "attribute");
    std::vector<Value> items = iterate(v);
    if (attribute && !attribute->is(Type::none))
      for (Value& item : items) item = at_path(item, *attribute);
    const Value* between = args.find(0, "d");
    return text(join(items, between ? to_text(*between) : ""));
  }
  if (name == "list") return Value::list(iterate(v));
  if (name == "items") {
    if (v.is(Type::undefined)) return Value::list({});
    if (!v.is(Type::dict)) fail(concat("items needs a dictionary, not a value of type ", type_name(v)));
    return pairs(v);
  }
  if (name == "first" || name == "last") {
    if (v.is(Type::undefined)) return Value::undefined(std::string(name));
    const std::vector<Value> items = iterate(v);
    if (items.empty()) return Value::undefined(concat("the ", name, " element of an empty sequence"));
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    std::vector<Value> items = iterate(v);
    std::reverse(items.begin(), items.end());
    return v.is(Type::string) ? text(join(items, "")) : Value::list(std::move(items));
  }
  if (name == "sort")
    return sorted(iterate(v), {args.find(2, "attribute"), args.flag(1, "case_sensitive")}, args.flag(0, "reverse"));
  if (name == "dictsort") {
    if (!v.is(Type::dict)) fail("dictsort needs a dictionary");
    const Value by = Value::integer(args.text(1, "by", "key") == "value");
    return sorted(pairs(v).items(), {&by, args.flag(0, "case_sensitive")}, args.flag(2, "reverse"));
  }
  if (name == "unique") {
    const SortKey key{args.find(1, "attribute"), args.flag(0, "case_sensitive")};
    std::vector<Value> seen, out;
    for (const Value& item : iterate(v)) {
      const Value k = key(item);
      if (std::find(seen.begin(), seen.end(), k) != seen.end()) continue;
      seen.push_back(k);
      out.push_back(item);
    }
    return Value::list(std::move(out));
  }
  if (name == "min" || name == "max") {
    const SortKey key{args.find(1, "attribute"), args.flag(0, "case_sensitive")};
    const std::vector<Value> items = iterate(v);
    if (items.empty()) return Value::undefined(concat("the ", name, " of an empty sequence"));
    std::size_t best = 0;
    for (std::size_t i = 1; i < items.size(); ++i)
      if (const int o = order(key(items[i]), key(items[best])); name == "min" ? o < 0 : o > 0) best = i;
    return items[best];
  }
  if (name == "sum") {
    const Value* attribute = args.find(0, "attribute");
    const Value* start = args.find(1, "start");
    Value sum = start ? *start : Value::integer(0);
    for (const Value& item : iterate(v))
      sum = calculate('+', sum, attribute && !attribute->is(Type::none) ? at_path(item, *attribute) : item);
    return sum;
  }
  if (name == "map") return mapped(v, args);
  if (name == "select" || name == "reject") return selected(v, args, false, name == "select");
  if (name == "selectattr" || name == "rejectattr") return selected(v, args, true, name == "selectattr");
  if (name == "int") return to_integer(v, args);
  if (name == "float") {
    if (v.is(Type::undefined)) fail(concat("\"", v.object_name(), "\" is undefined"));
    if (v.is_number()) return Value::real(v.number());
    if (const auto number = v.is(Type::string) ? parse_number(v.text()) : std::nullopt) return Value::real(*number);
    const Value* otherwise = args.find(0, "default");
    return otherwise ? *otherwise : Value::real(0.0);
  }
  if (name == "abs") {
    if (!v.is_number()) fail(concat("abs needs a number, not a value of type ", type_name(v)));
    if (v.is(Type::real)) return Value::real(std::fabs(v.number()));
    return v.whole() < 0 ? calculate('-', Value::integer(0), v) : Value::integer(v.whole());
  }
  if (name == "round") {
    if (!v.is_number()) fail(concat("round needs a number, not a value of type ", type_name(v)));
    const std::string method = args.text(1, "method", "common");
    if (method == "common" && v.is_whole()) return Value::integer(v.whole());
    const double scale = std::pow(10.0, static_cast<double>(args.whole(0, "precision", 0))), x = v.number() * scale;
    return Value::real((method == "ceil" ? std::ceil(x) : method == "floor" ? std::floor(x) : std::nearbyint(x)) / scale);
  }
  throw UnsupportedError(concat("chat template: there is no filter \"", name, "\""));
}

// Methods.

inline bool is_method(Type type, std::string_view name) {
  constexpr std::string_view of_text[] = {
      "strip",   "lstrip",  "rstrip",     "split",   "rsplit",       "splitlines",   "startswith", "endswith", "upper",
      "lower",   "title",   "capitalize", "replace", "join",         "find",         "rfind",      "count",    "format",
      "isdigit", "isalpha", "isalnum",    "isspace", "removeprefix", "removesuffix", "encode"};
  constexpr std::string_view of_dict[] = {"items",  "keys", "values",     "get",   "copy",
                                          "update", "pop",  "setdefault", "clear", "popitem"};
  constexpr std::string_view of_list[] = {"index", "count",  "copy",    "append", "extend", "insert",
                                          "pop",   "remove", "reverse", "sort",   "clear"};
  const auto has = [&](const auto& names) { return std::find(std::begin(names), std::end(names), name) != std::end(names); };
  return type == Type::string ? has(of_text)
         : type == Type::dict ? has(of_dict)
                              : (type == Type::list || type == Type::tuple) && has(of_list);
}

inline Value text_method(const std::string& self, std::string_view name, const Arguments& args) {
  const auto text = [](std::string t) { return Value::string(std::move(t)); };
  const auto optional = [&](std::size_t i, std::string_view argument) -> std::optional<std::string> {
    const Value* given = args.find(i, argument);
    return given && !given->is(Type::none) ? std::optional<std::string>(text_of(*given, name)) : std::nullopt;
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return text(std::string(strip(self, optional(0, ""), name != "rstrip", name != "lstrip")));
  if (name == "split" || name == "rsplit")
    return Value::list(split(self, optional(0, "sep"), args.whole(1, "maxsplit", -1), name == "rsplit"));
  if (name == "splitlines") return Value::list(split_lines(self, args.flag(0, "keepends")));
  if (name == "startswith" || name == "endswith") {
    const Value& part = args.get(0, "prefix");
    for (const Value& one : part.is(Type::tuple) ? part.items() : std::vector<Value>{part}) {
      const std::string& t = text_of(one, name);
      if (name == "startswith" ? self.starts_with(t) : self.ends_with(t)) return Value::boolean(true);
    }
    return Value::boolean(false);
  }
  if (name == "upper" || name == "lower") return text(to_case(self, name == "upper" ? Case::upper : Case::lower));
  if (name == "title") return text(title(self, Case::title, [](char32_t c) { return !is_category(c, "L"); }));
  if (name == "capitalize") return text(capitalize(self));
  if (name == "replace")
    return text(replace(self, text_of(args.get(0, "old"), name), text_of(args.get(1, "new"), name), args.whole(2, "count", -1)));
  if (name == "join") {
    const std::vector<Value> items = iterate(args.get(0, "iterable"));
    for (const Value& item : items) text_of(item, name);
    return text(join(items, self));
  }
  if (name == "find" || name == "rfind") {
    const std::string& part = text_of(args.get(0, "sub"), name);
    const std::size_t at = name == "find" ? self.find(part) : self.rfind(part);
    if (at == std::string::npos) return Value::integer(-1);
    return Value::integer(static_cast<std::int64_t>(characters(std::string_view(self).substr(0, at)).size()));
  }
  if (name == "count") {
    const std::string& part = text_of(args.get(0, "sub"), name);
    if (part.empty()) return Value::integer(static_cast<std::int64_t>(characters(self).size()) + 1);
    std::int64_t n = 0;
    for (std::size_t at = 0; (at = self.find(part, at)) != std::string::npos; at += part.size()) ++n;
    return Value::integer(n);
  }
  if (name == "format") return text(format(self, args));
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = text_of(args.get(0, "part"), name);
    if (name == "removeprefix") return text(self.starts_with(part) ? self.substr(part.size()) : self);
    return text(self.ends_with(part) ? self.substr(0, self.size() - part.size()) : self);
  }
  if (name == "encode") fail("a text's bytes are not supported");
  const std::string_view categories = name == "isdigit" ? "N" : name == "isalpha" ? "L" : "LN";
  for (const std::string_view c : characters(self)) {
    const char32_t code = utf8_step(c).code_point;
    if (name == "isspace" ? !is_python_space(code) : !is_category(code, categories)) return Value::boolean(false);
  }
  return Value::boolean(!self.empty());
}

inline Value call_method(const Value& self, std::string_view name, const Arguments& args) {
  if (self.is(Type::string)) return text_method(self.text(), name, args);
  if (name == "copy") return self;
  if (self.is(Type::dict)) {
    if (name == "items") return pairs(self);
    if (name == "keys") return Value::list(self.items());
    if (name == "values") return Value::list(self.object().values);
    if (name == "get") {
      if (const Value* found = self.find(args.get(0, "key"))) return *found;
      const Value* otherwise = args.find(1, "default");
      return otherwise ? *otherwise : Value::none();
    }
  } else if (name == "count" || name == "index") {
    std::int64_t n = 0;
    for (std::size_t i = 0; i < self.items().size(); ++i) {
      if (!(self.items()[i] == args.get(0, "value"))) continue;
      if (name == "index") return Value::integer(static_cast<std::int64_t>(i));
      ++n;
    }
    if (name == "index") fail("index(): the list has no such element");
    return Value::integer(n);
  }
  fail(concat(name, "(): lists and dictionaries of chat templates cannot be changed"));
}

}  // namespace moxie::jinja
