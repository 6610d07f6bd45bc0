#pragma once
// Tests, filters and methods of Jinja templates (jinja.hpp), as Jinja 3.1 and Python define them.
//
// All throw ArgumentError where Jinja fails, UnsupportedError for a test or filter that is not known.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_operations.hpp>
#include <moxie/text/jinja_value.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::jinja {

// Tests.

inline bool test(std::string_view name, const Value& v, const Arguments& args) {
  const auto other = [&]() -> const Value& { return args.get(0, "other"); };
  if (name == "defined") return !v.is(Type::undefined);
  if (name == "undefined") return v.is(Type::undefined);
  if (name == "none") return v.is(Type::none);
  if (name == "string") return v.is(Type::string);
  if (name == "mapping") return v.is(Type::dict);
  if (name == "iterable")
    return v.is(Type::string) || v.is_sequence() || v.is(Type::dict) || v.is(Type::loop) || v.is(Type::iterator) ||
           v.is(Type::undefined);
  if (name == "sequence") return v.is(Type::string) || v.is_sequence() || v.is(Type::dict) || v.is(Type::undefined);
  if (name == "number") return v.is_number();
  if (name == "integer") return v.is(Type::integer);
  if (name == "float") return v.is(Type::real);
  if (name == "boolean") return v.is(Type::boolean);
  if (name == "true") return v.is(Type::boolean) && v.whole() != 0;
  if (name == "false") return v.is(Type::boolean) && v.whole() == 0;
  if (name == "callable") return v.is(Type::function) || v.is(Type::undefined);  // as Undefined has a __call__
  if (name == "in") return contains(args.get(0, "seq"), v, args.budget);
  if (name == "eq" || name == "equalto" || name == "==") return equal(v, other(), args.budget);
  if (name == "ne" || name == "!=") return !equal(v, other(), args.budget);
  if (name == "lt" || name == "lessthan" || name == "<") return order(v, other(), args.budget) < 0;
  if (name == "le" || name == "<=") return order(v, other(), args.budget) <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order(v, other(), args.budget) > 0;
  if (name == "ge" || name == ">=") return order(v, other(), args.budget) >= 0;
  if (name == "sameas")
    return v.type() == other().type() && (v.is(Type::string) ? v.text() == other().text() : v.same_scalar(other()));
  if (name == "odd" || name == "even")
    return calculate('%', v, Value::integer(2), args.budget).number() == (name == "odd" ? 1.0 : 0.0);
  if (name == "divisibleby") return calculate('%', v, args.get(0, "num"), args.budget).number() == 0.0;
  if (name == "lower" || name == "upper") {
    const std::string text = to_text(v, args.budget);
    return text == to_case(text, name == "lower" ? Case::lower : Case::upper) &&
           to_case(text, Case::lower) != to_case(text, Case::upper);
  }
  throw UnsupportedError(concat("chat template: there is no test \"", name, "\""));
}

// Filters.

inline Value filter(std::string_view name, const Value& v, const Arguments& args);

/// The value at a path ("a.b", or a number), as Jinja's `attribute` arguments give it; `otherwise` for a part that is not there.
inline Value at_path(Value value, const Value& path, Budget& budget, const Value* otherwise = nullptr) {
  if (path.is_whole())
    return value.is_sequence() || value.is(Type::string) ? element(value, path.whole(), budget)
           : otherwise                                   ? *otherwise
                                                         : Value();
  std::string_view rest = text_of(path, "an attribute");
  if (rest.find(',') != std::string_view::npos) fail("several attributes at once are not supported");
  for (bool more = true; more;) {
    const std::size_t dot = rest.find('.');
    more = dot != std::string_view::npos;
    const std::string name(rest.substr(0, dot));
    rest.remove_prefix(more ? dot + 1 : rest.size());
    if (value.is(Type::undefined)) fail(concat("\"", value.object_name(), "\" is undefined"));
    const bool number = !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == std::string::npos;
    const Value* found = value.is(Type::dict) || value.is(Type::space) ? value.find(Value::string(name)) : nullptr;
    if (number && value.is_sequence()) {
      value = element(value, std::atoll(name.c_str()), budget);
    } else {
      value = found ? Value(*found) : Value::undefined(name);
    }
    if (value.is(Type::undefined) && otherwise) value = *otherwise;
  }
  return value;
}

/// What elements are sorted and compared by: a path of them, their text without regard to case.
struct SortKey {
  Budget& budget;
  const Value* path;
  bool case_sensitive;
  Value operator()(const Value& item) const {
    Value key = path && !path->is(Type::none) ? at_path(item, *path, budget) : item;
    if (case_sensitive || !key.is(Type::string)) return key;
    budget.charge_bytes(key.text().size());
    return Value::string(to_case(key.text(), Case::lower));
  }
};

inline Value sorted(std::vector<Value> items, const SortKey& key, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    return reverse ? order(key(b), key(a), key.budget) < 0 : order(key(a), key(b), key.budget) < 0;
  });
  return Value::list(std::move(items));
}

/// select, reject, selectattr, rejectattr: the elements that pass a test, or do not.
inline Value selected(const Value& v, const Arguments& args, bool by_attribute, bool keep) {
  const Arguments rest = by_attribute ? args.from(1) : args;
  const Value* name = rest.find(0, "");
  const Arguments test_arguments = name ? rest.from(1) : Arguments{args.budget};
  std::vector<Value> out;
  if (!v.is_true()) return iterator({});  // whatever it is
  for (const Value& item : iterate(v, args.budget)) {
    const Value tested = by_attribute ? at_path(item, args.get(0, "attribute"), args.budget) : item;
    const bool passes = name ? test(text_of(*name, "a test"), tested, test_arguments) : tested.is_true();
    if (passes == keep) out.push_back(item);
  }
  return iterator(std::move(out));
}

inline Value mapped(const Value& v, const Arguments& args) {
  if (!v.is_true()) return iterator({});
  std::vector<Value> out;
  const Value* attribute = args.find(args.values.size(), "attribute");
  const Value* otherwise = args.find(args.values.size(), "default");
  for (const Value& item : iterate(v, args.budget))
    out.push_back(attribute ? at_path(item, *attribute, args.budget, otherwise)
                            : filter(text_of(args.get(0, "filter"), "a filter"), item, args.from(1)));
  return iterator(std::move(out));
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
  for (const Value& line : split_lines(std::string(text) + "\n", false, args.budget)) {
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
  std::string out;
  append_json(out, v, style, args.budget);
  return out;
}

/// A number that a text writes, as Python's int() and float() read it: a whole one where it is written so and fits 64 bits.
inline std::optional<Value> parse_number(std::string_view text) {
  text = strip(text, {}, true, true);
  if (text.starts_with('+') && text.size() > 1 && text[1] != '-') text.remove_prefix(1);
  const char* end = text.data() + text.size();
  std::int64_t whole = 0;
  if (const auto [at, error] = std::from_chars(text.data(), end, whole); error == std::errc() && at == end)
    return Value::integer(whole);
  double real = 0.0;
  if (const auto [at, error] = std::from_chars(text.data(), end, real); error == std::errc() && at == end)
    return Value::real(real);
  return std::nullopt;
}

inline Value to_integer(const Value& v, const Arguments& args) {
  if (v.is(Type::undefined)) fail(concat("\"", v.object_name(), "\" is undefined"));
  if (args.whole(1, "base", 10) != 10) fail("int is supported with base 10 alone");
  const std::optional<Value> number = v.is_number() ? v : v.is(Type::string) ? parse_number(v.text()) : std::nullopt;
  if (!number || (number->is(Type::real) && std::isnan(number->number()))) {
    const Value* otherwise = args.find(0, "default");
    return otherwise ? *otherwise : Value::integer(0);
  }
  if (number->is_whole()) return Value::integer(number->whole());
  if (!(std::fabs(number->number()) < 9.2e18)) fail("a whole number does not fit 64 bits");
  return Value::integer(static_cast<std::int64_t>(number->number()));
}

inline Value filter(std::string_view name, const Value& v, const Arguments& args) {
  const auto text = [](std::string t) { return Value::string(std::move(t)); };
  const auto chars = [&](std::size_t i) -> std::optional<std::string> {
    const Value* given = args.find(i, "chars");
    if (given && given->is(Type::string) && given->text().size() > 1000)
      fail("trim is supported for at most 1000 bytes of characters");
    return given && !given->is(Type::none) ? std::optional<std::string>(text_of(*given, "trim")) : std::nullopt;
  };
  if (name == "tojson") return text(to_json(v, args));
  if (name == "length" || name == "count") return Value::integer(length(v, args.budget));
  if (name == "trim") return text(std::string(strip(to_text(v, args.budget), chars(0), true, true)));
  if (name == "string") return text(to_text(v, args.budget));
  if (name == "safe" || name == "forceescape") return text(to_text(v, args.budget));
  if (name == "escape" || name == "e") return text(escape_html(to_text(v, args.budget)));
  if (name == "upper") return text(to_case(to_text(v, args.budget), Case::upper));
  if (name == "lower") return text(to_case(to_text(v, args.budget), Case::lower));
  if (name == "capitalize") return text(capitalize(to_text(v, args.budget)));
  if (name == "title")
    return text(title(to_text(v, args.budget), Case::upper,
                      [](char32_t c) { return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_python_space(c); }));
  if (name == "replace")
    return text(replace(to_text(v, args.budget), to_text(args.get(0, "old"), args.budget),
                        to_text(args.get(1, "new"), args.budget), args.whole(2, "count", -1), args.budget));
  if (name == "indent") return text(indented(text_of(v, "indent"), args));
  if (name == "default" || name == "d") {
    const bool missing = v.is(Type::undefined) || (args.flag(1, "boolean") && !v.is_true());
    const Value* otherwise = args.find(0, "default_value");
    return !missing ? v : otherwise ? *otherwise : text("");
  }
  if (name == "join") {
    const Value* attribute = args.find(1, "attribute");
    std::vector<Value> items = iterate(v, args.budget);
    if (attribute && !attribute->is(Type::none))
      for (Value& item : items) item = at_path(item, *attribute, args.budget);
    const Value* between = args.find(0, "d");
    return text(join(items, between ? to_text(*between, args.budget) : "", args.budget));
  }
  if (name == "list") return Value::list(iterate(v, args.budget));
  if (name == "items") {
    if (v.is(Type::undefined)) return iterator({});
    if (!v.is(Type::dict)) fail(concat("items needs a dictionary, not a value of type ", type_name(v)));
    return iterator(pairs(v, args.budget).items());
  }
  if (name == "first" || name == "last") {
    if (v.is(Type::undefined)) return Value::undefined(std::string(name));
    if (v.is(Type::iterator)) {  // takes one
      Object& state = Value(v).object();
      if (name == "last") fail("a generator has no last element; make it a list before");
      if (state.index < static_cast<std::int64_t>(state.items.size()))
        return state.items[static_cast<std::size_t>(state.index++)];
      return Value::undefined("the first element of an empty sequence");
    }
    const std::vector<Value> items = iterate(v, args.budget);
    if (items.empty()) return Value::undefined(concat("the ", name, " element of an empty sequence"));
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    std::vector<Value> items = iterate(v, args.budget);
    std::reverse(items.begin(), items.end());
    return v.is(Type::string) ? text(join(items, "", args.budget)) : iterator(std::move(items));
  }
  if (name == "sort")
    return sorted(iterate(v, args.budget), {args.budget, args.find(2, "attribute"), args.flag(1, "case_sensitive")},
                  args.flag(0, "reverse"));
  if (name == "dictsort") {
    if (!v.is(Type::dict)) fail("dictsort needs a dictionary");
    const Value by = Value::integer(args.text(1, "by", "key") == "value");
    return sorted(pairs(v, args.budget).items(), {args.budget, &by, args.flag(0, "case_sensitive")}, args.flag(2, "reverse"));
  }
  if (name == "unique") {
    const SortKey key{args.budget, args.find(1, "attribute"), args.flag(0, "case_sensitive")};
    std::vector<Value> seen, out;
    for (const Value& item : iterate(v, args.budget)) {
      const Value k = key(item);
      const auto same = [&](const Value& other) { return equal(k, other, args.budget); };
      if (std::any_of(seen.begin(), seen.end(), same)) continue;
      seen.push_back(k);
      out.push_back(item);
    }
    return iterator(std::move(out));
  }
  if (name == "min" || name == "max") {
    const SortKey key{args.budget, args.find(1, "attribute"), args.flag(0, "case_sensitive")};
    const std::vector<Value> items = iterate(v, args.budget);
    if (items.empty()) return Value::undefined(concat("the ", name, " of an empty sequence"));
    std::size_t best = 0;
    for (std::size_t i = 1; i < items.size(); ++i)
      if (const int o = order(key(items[i]), key(items[best]), args.budget); name == "min" ? o < 0 : o > 0) best = i;
    return items[best];
  }
  if (name == "sum") {
    const Value* attribute = args.find(0, "attribute");
    const Value* start = args.find(1, "start");
    Value sum = start ? *start : Value::integer(0);
    for (const Value& item : iterate(v, args.budget))
      sum = calculate('+', sum, attribute && !attribute->is(Type::none) ? at_path(item, *attribute, args.budget) : item,
                      args.budget);
    return sum;
  }
  if (name == "map") return mapped(v, args);
  if (name == "select" || name == "reject") return selected(v, args, false, name == "select");
  if (name == "selectattr" || name == "rejectattr") return selected(v, args, true, name == "selectattr");
  if (name == "int") return to_integer(v, args);
  if (name == "float") {
    if (v.is(Type::undefined)) fail(concat("\"", v.object_name(), "\" is undefined"));
    if (v.is_number()) return Value::real(v.number());
    if (const auto number = v.is(Type::string) ? parse_number(v.text()) : std::nullopt) return Value::real(number->number());
    const Value* otherwise = args.find(0, "default");
    return otherwise ? *otherwise : Value::real(0.0);
  }
  if (name == "abs") {
    if (!v.is_number()) fail(concat("abs needs a number, not a value of type ", type_name(v)));
    if (v.is(Type::real)) return Value::real(std::fabs(v.number()));
    return v.whole() < 0 ? calculate('-', Value::integer(0), v, args.budget) : Value::integer(v.whole());
  }
  if (name == "round") {
    if (!v.is_number()) fail(concat("round needs a number, not a value of type ", type_name(v)));
    const std::string method = args.text(1, "method", "common");
    if (method != "common" && method != "ceil" && method != "floor") fail("round: the method is common, ceil or floor");
    const std::int64_t digits = args.whole(0, "precision", 0);
    if (digits < 0 || digits > 300) fail("round is supported for 0 to 300 digits after the point");
    if (method == "common" && v.is_whole()) return Value::integer(v.whole());
    if (method == "common") {  // as exactly as the number is written
      std::vector<char> buffer(700);
      const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), v.number(), std::chars_format::fixed,
                                     static_cast<int>(digits))
                           .ptr;
      double rounded = v.number();
      std::from_chars(buffer.data(), end, rounded);
      return Value::real(rounded);
    }
    const double scale = std::pow(10.0, static_cast<double>(digits)), x = v.number() * scale;
    return Value::real((method == "ceil" ? std::ceil(x) : std::floor(x)) / scale);
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
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const std::optional<std::string> chars = optional(0, "");
    if (chars && chars->size() > 1000) fail("strip() is supported for at most 1000 bytes of characters");
    return text(std::string(strip(self, chars, name != "rstrip", name != "lstrip")));
  }
  if (name == "split" || name == "rsplit")
    return Value::list(split(self, optional(0, "sep"), args.whole(1, "maxsplit", -1), name == "rsplit", args.budget));
  if (name == "splitlines") return Value::list(split_lines(self, args.flag(0, "keepends"), args.budget));
  if (name == "startswith" || name == "endswith") {
    const Value& part = args.get(0, "prefix");
    for (const Value& one : part.is(Type::tuple) ? part.items() : std::vector<Value>{part}) {
      const std::string& t = text_of(one, name);
      if (name == "startswith" ? self.starts_with(t) : self.ends_with(t)) return Value::boolean(true);
    }
    return Value::boolean(false);
  }
  if (name == "upper" || name == "lower") return text(to_case(self, name == "upper" ? Case::upper : Case::lower));
  if (name == "title") return text(title(self, Case::title, [](char32_t c) { return !is_cased(c); }));
  if (name == "capitalize") return text(capitalize(self));
  if (name == "replace")
    return text(replace(self, text_of(args.get(0, "old"), name), text_of(args.get(1, "new"), name), args.whole(2, "count", -1),
                        args.budget));
  if (name == "join") {
    const std::vector<Value> items = iterate(args.get(0, "iterable"), args.budget);
    for (const Value& item : items) text_of(item, name);
    return text(join(items, self, args.budget));
  }
  if (name == "find" || name == "rfind") {
    const std::string& part = text_of(args.get(0, "sub"), name);
    const std::size_t at = name == "find" ? find(self, part, 0, args.budget) : find_last(self, part, args.budget);
    if (at == std::string::npos) return Value::integer(-1);
    return Value::integer(static_cast<std::int64_t>(count_characters(std::string_view(self).substr(0, at))));
  }
  if (name == "count") {
    const std::string& part = text_of(args.get(0, "sub"), name);
    if (part.empty()) return Value::integer(static_cast<std::int64_t>(count_characters(self)) + 1);
    std::int64_t n = 0;
    for (std::size_t at = 0; (at = find(self, part, at, args.budget)) != std::string::npos; at += part.size()) ++n;
    return Value::integer(n);
  }
  if (name == "format") return text(format(self, args));
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = text_of(args.get(0, "part"), name);
    if (name == "removeprefix") return text(self.starts_with(part) ? self.substr(part.size()) : self);
    return text(self.ends_with(part) ? self.substr(0, self.size() - part.size()) : self);
  }
  if (name == "encode") fail("a text's bytes are not supported");
  for (std::string_view rest = self; !rest.empty(); rest.remove_prefix(utf8_step(rest).length)) {
    const char32_t c = utf8_step(rest).code_point;
    const std::string_view category = category_of(c);
    const bool fits = name == "isspace" ? is_python_space(c)
                                        : (name != "isdigit" && category[0] == 'L') || (name != "isalpha" && category == "Nd");
    if (!fits) return Value::boolean(false);
  }
  return Value::boolean(!self.empty());
}

inline Value call_method(const Value& self, std::string_view name, const Arguments& args) {
  constexpr std::pair<std::string_view, std::size_t> most[] = {
      {"strip", 1}, {"lstrip", 1}, {"rstrip", 1}, {"startswith", 1}, {"endswith", 1}, {"find", 1},
      {"rfind", 1}, {"count", 1},  {"index", 1},  {"split", 2},      {"rsplit", 2},   {"replace", 3},
      {"join", 1},  {"get", 2},    {"items", 0},  {"keys", 0},       {"values", 0}};
  for (const auto& [method, n] : most)
    if (method == name) args.at_most(n, name);
  if (self.is(Type::string)) return text_method(self.text(), name, args);
  if (name == "copy") return self;
  if (self.is(Type::dict)) {
    if (name == "items") return pairs(self, args.budget);
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
      if (!equal(self.items()[i], args.get(0, "value"), args.budget)) continue;
      if (name == "index") return Value::integer(static_cast<std::int64_t>(i));
      ++n;
    }
    if (name == "index") fail("index(): the list has no such element");
    return Value::integer(n);
  }
  fail(concat(name, "(): lists and dictionaries of chat templates cannot be changed"));
}

}  // namespace moxie::jinja
