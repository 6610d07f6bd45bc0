#pragma once
// Values of Jinja templates: Python's, as far as chat templates use them (jinja.hpp).
//
// Copies are shallow, as in Python. Lists and dictionaries never change once they are made (the renderer of Hugging Face
// forbids it), namespaces do.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <utf8proc.h>
#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/python_json.hpp>
#include <moxie/text/utf8.hpp>

namespace moxie::jinja {

class Value;
struct Node;
struct Scope;

enum class Type : std::uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  dict,
  space,
  loop,
  iterator,
  function
};

[[noreturn]] inline void fail(std::string what) { throw ArgumentError(std::move(what)); }

/// What one rendering may still take, in units of about a nanosecond; a byte that is made counts 8, so that memory ends as well:
/// at a gigabyte.
class Budget {
 public:
  void charge(std::size_t units) {
    if (units > left_) fail("the template takes too much time or memory");
    left_ -= units;
  }
  void charge_bytes(std::size_t bytes) { charge(bytes < left_ ? 8 * bytes : left_ + 1); }
  void charge_values(std::size_t n) { charge(n < left_ ? 200 * n : left_ + 1); }

 private:
  std::size_t left_ = 4'000'000'000;
};

/// Values in values, at most: what walks them uses the stack.
inline constexpr int max_nesting = 200;

/// What a value refers to.
struct Object {
  std::string text;           ///< of a string; what an undefined value, a function or a method is called
  std::vector<Value> items;   ///< of a list, tuple, loop or iterator; keys of a dictionary or namespace; what a method belongs to
  std::vector<Value> values;  ///< of a dictionary or namespace, beside its keys
  std::int64_t index = 0;     ///< of a loop; how many an iterator has given
  int nesting = 0;            ///< of values in it
  const Node* macro = nullptr;  ///< of a function that the template defines
  Scope* scope = nullptr;       ///< where it was defined

  /// `item` is to be in it. Throws ArgumentError where that nests too deeply.
  void nest(const Value& item);
};

class Value {
 public:
  Value() = default;  ///< undefined
  [[gnu::noinline]] Value(const Value&) = default;
  [[gnu::noinline]] Value(Value&&) noexcept = default;
  [[gnu::noinline]] Value& operator=(const Value&) = default;
  [[gnu::noinline]] Value& operator=(Value&&) noexcept = default;
  [[gnu::noinline]] ~Value() = default;
  static Value undefined(std::string name) { return Value(Type::undefined, make(std::move(name))); }
  static Value none() { return Value(Type::none, nullptr); }
  static Value boolean(bool b) {
    Value v(Type::boolean, nullptr);
    v.integer_ = b;
    return v;
  }
  static Value integer(std::int64_t i) {
    Value v(Type::integer, nullptr);
    v.integer_ = i;
    return v;
  }
  static Value real(double r) {
    Value v(Type::real, nullptr);
    v.real_ = r;
    return v;
  }
  static Value string(std::string text) { return Value(Type::string, make(std::move(text))); }
  static Value list(std::vector<Value> items, Type type = Type::list) {
    auto object = std::make_shared<Object>();
    for (const Value& item : items) object->nest(item);
    object->items = std::move(items);
    return Value(type, std::move(object));
  }
  /// An empty dictionary, namespace or loop; `object()` fills it.
  static Value of(Type type) { return Value(type, std::make_shared<Object>()); }
  static Value function(std::string name) { return Value(Type::function, make(std::move(name))); }
  static Value method(const Value& self, std::string name) {
    Value v = function(std::move(name));
    v.object_->nest(self);
    v.object_->items.push_back(self);
    return v;
  }
  static Value macro(const Node& node, Scope& scope, std::string name) {
    Value v = function(std::move(name));
    v.object_->macro = &node;
    v.object_->scope = &scope;
    return v;
  }
  /// Throws ArgumentError where it is nested too deeply, or has a whole number that 64 bits do not hold.
  static Value from_json(const nlohmann::ordered_json& json, int depth = 0);

  Type type() const noexcept { return type_; }
  bool is(Type type) const noexcept { return type_ == type; }
  bool is_number() const noexcept { return type_ == Type::boolean || type_ == Type::integer || type_ == Type::real; }
  bool is_whole() const noexcept { return type_ == Type::boolean || type_ == Type::integer; }
  bool is_sequence() const noexcept { return type_ == Type::list || type_ == Type::tuple; }
  std::int64_t whole() const noexcept { return integer_; }
  double number() const noexcept { return type_ == Type::real ? real_ : static_cast<double>(integer_); }
  const std::string& text() const noexcept { return object_->text; }
  /// What an undefined value or a function is called.
  std::string object_name() const { return object_ ? object_->text : std::string("a value"); }
  const std::vector<Value>& items() const noexcept { return object_->items; }
  const Object& object() const noexcept { return *object_; }
  Object& object() noexcept { return *object_; }
  bool same_object(const Value& other) const noexcept { return type_ == other.type_ && object_ == other.object_; }

  bool can_be_key() const noexcept { return !object_ || is(Type::string) || is(Type::undefined); }
  /// The entry of a dictionary or namespace; null where there is none. Throws ArgumentError for keys that Python cannot hash.
  const Value* find(const Value& key) const {
    if (!key.can_be_key()) fail("only texts, numbers, booleans and none can be keys");
    const auto& keys = object_->items;
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (keys[i].same_scalar(key)) return &object_->values[i];
    return nullptr;
  }
  void set(Value key, Value value) {
    if (!is(Type::space)) object_->nest(value);  // a rendering clears its namespaces at its end
    if (const Value* old = find(key)) {
      object_->values[static_cast<std::size_t>(old - object_->values.data())] = std::move(value);
      return;
    }
    object_->items.push_back(std::move(key));
    object_->values.push_back(std::move(value));
  }

  /// What Python takes for true.
  bool is_true() const noexcept {
    switch (type_) {
      case Type::undefined:
      case Type::none:
        return false;
      case Type::boolean:
      case Type::integer:
        return integer_ != 0;
      case Type::real:
        return real_ != 0.0;
      case Type::string:
        return !object_->text.empty();
      case Type::list:
      case Type::tuple:
      case Type::dict:
        return !object_->items.empty();
      default:
        return true;
    }
  }

  /// ==, of values that hold no others.
  bool same_scalar(const Value& other) const noexcept {
    if (is_whole() && other.is_whole()) return integer_ == other.integer_;
    if (is_number() && other.is_number()) return number() == other.number();
    if (type_ != other.type_) return false;
    if (type_ == Type::string) return text() == other.text();
    return is(Type::undefined) || is(Type::none) || object_ == other.object_;
  }

 private:
  friend struct Object;
  Value(Type type, std::shared_ptr<Object> object) : type_(type), object_(std::move(object)) {}
  static std::shared_ptr<Object> make(std::string text) {
    auto object = std::make_shared<Object>();
    object->text = std::move(text);
    return object;
  }

  Type type_ = Type::undefined;
  union {
    std::int64_t integer_ = 0;
    double real_;
  };
  std::shared_ptr<Object> object_;
};

inline void Object::nest(const Value& item) {
  const bool holds = item.object_ && !item.is(Type::string) && !item.is(Type::space) && !item.is(Type::undefined);
  nesting = std::max(nesting, holds ? item.object_->nesting + 1 : 0);
  if (nesting > max_nesting) fail("values are nested too deeply");
}

/// ==
inline bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.charge(50);
  if (a.type() != b.type() || a.same_object(b)) return a.same_scalar(b);
  if (a.is(Type::string)) budget.charge(a.text().size() / 8);
  if (!a.is_sequence() && !a.is(Type::dict)) return a.same_scalar(b);
  if (a.items().size() != b.items().size()) return false;
  for (std::size_t i = 0; i < a.items().size(); ++i) {
    if (a.is_sequence()) {
      if (!equal(a.items()[i], b.items()[i], budget)) return false;
    } else {
      budget.charge(10 * b.items().size());
      const Value* other = b.find(a.items()[i]);
      if (!other || !equal(a.object().values[i], *other, budget)) return false;
    }
  }
  return true;
}

inline Value Value::from_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > max_nesting) fail("a conversation's JSON is nested too deeply");
  if (json.is_object()) {
    Value dict = of(Type::dict);
    for (const auto& [key, item] : json.items()) {  // keys of JSON are unique
      dict.object_->items.push_back(string(key));
      dict.object_->values.push_back(from_json(item, depth + 1));
      dict.object_->nest(dict.object_->values.back());
    }
    return dict;
  }
  if (json.is_array()) {
    Value out = of(Type::list);
    for (const auto& item : json) {
      out.object_->items.push_back(from_json(item, depth + 1));
      out.object_->nest(out.object_->items.back());
    }
    return out;
  }
  if (json.is_string()) return string(json.get_ref<const std::string&>());
  if (json.is_boolean()) return boolean(json.get<bool>());
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > INT64_MAX) fail("a whole number does not fit 64 bits");
  if (json.is_number_integer()) return integer(json.get<std::int64_t>());
  if (json.is_number_float()) return real(json.get<double>());
  return none();
}

/// The type's name in messages, as Python calls it.
inline const char* type_name(const Value& value) noexcept {
  constexpr const char* names[] = {"undefined", "None", "bool",      "int",  "float",     "str",     "list",
                                   "tuple",     "dict", "namespace", "loop", "generator", "function"};
  return names[static_cast<int>(value.type())];
}

/// Python's repr() of a string.
inline std::string repr(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (; !text.empty(); text.remove_prefix(utf8_step(text).length)) {
    const Utf8Step step = utf8_step(text);
    const char32_t c = step.code_point;
    constexpr std::string_view unseen = "CZ";  // control characters, unassigned ones, separators
    char escape[16];
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      (out += '\\') += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c != ' ' && unseen.find(utf8proc_category_string(static_cast<utf8proc_int32_t>(c))[0]) != std::string_view::npos) {
      std::snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += text.substr(0, step.length);
    }
  }
  return out + quote;
}

/// Bytes that a text may have.
inline constexpr std::size_t max_text = std::size_t{64} << 20;
inline void check_length(std::size_t bytes) {
  if (bytes > max_text) fail("a text grows beyond 64 MB");
}

/// Adds Python's str() of a value to a text; inside lists and dictionaries repr().
inline void append_text(std::string& out, const Value& value, Budget& budget, bool inside = false) {
  const std::size_t before = out.size();
  budget.charge(50);
  switch (value.type()) {
    case Type::undefined:
      out += inside ? "Undefined" : "";
      break;
    case Type::none:
      out += "None";
      break;
    case Type::boolean:
      out += value.whole() ? "True" : "False";
      break;
    case Type::integer:
      out += std::to_string(value.whole());
      break;
    case Type::real: {
      const double r = value.number();
      out += std::isfinite(r) ? python_float(r) : std::isnan(r) ? "nan" : r < 0 ? "-inf" : "inf";
      break;
    }
    case Type::string:
      check_length(out.size() + value.text().size());
      out += inside ? repr(value.text()) : value.text();
      break;
    case Type::list:
    case Type::tuple: {
      const bool tuple = value.is(Type::tuple);
      out += tuple ? '(' : '[';
      for (std::size_t i = 0; i < value.items().size(); ++i) {
        if (i > 0) out += ", ";
        append_text(out, value.items()[i], budget, true);
      }
      if (tuple && value.items().size() == 1) out += ',';
      out += tuple ? ')' : ']';
      return check_length(out.size());  // its elements are charged
    }
    case Type::dict:
      out += '{';
      for (std::size_t i = 0; i < value.items().size(); ++i) {
        if (i > 0) out += ", ";
        append_text(out, value.items()[i], budget, true);
        out += ": ";
        append_text(out, value.object().values[i], budget, true);
      }
      out += '}';
      return check_length(out.size());
    default:
      ((out += '<') += type_name(value)) += '>';
  }
  check_length(out.size());
  budget.charge_bytes(out.size() - before);
}
inline std::string to_text(const Value& value, Budget& budget, bool inside = false) {
  std::string out;
  append_text(out, value, budget, inside);
  return out;
}

/// Without the characters of `chars` (none: white space, as Python has it) at its ends.
inline bool is_python_space(char32_t c) noexcept { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }
inline std::string_view strip(std::string_view text, const std::optional<std::string>& chars, bool left, bool right) {
  const auto drops = [&](std::string_view c) {
    return chars ? chars->find(c) != std::string::npos : is_python_space(utf8_step(c).code_point);
  };
  while (left && !text.empty() && drops(text.substr(0, utf8_step(text).length))) text.remove_prefix(utf8_step(text).length);
  while (right && !text.empty() && drops(last_character(text))) text.remove_suffix(last_character(text).size());
  return text;
}

/// The characters of valid UTF-8.
inline std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_step(text.substr(at)).length;
    out.push_back(text.substr(at, length));
    at += length;
  }
  return out;
}

/// How Python's json.dumps writes a value.
struct JsonStyle {
  std::string indent;  ///< empty: all in one line
  bool lines = false;  ///< with an indent, which may be of no spaces
  std::string comma = ", ", colon = ": ";
  bool ascii = false, sorted = false;
};

/// python_json_string(), with escapes for all that is not ASCII where `ascii`.
inline std::string json_string(const std::string& text, bool ascii) {
  const std::string out = python_json_string(text);
  if (!ascii) return out;
  std::string escaped;
  for (std::string_view rest = out; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    char buffer[16];
    auto c = static_cast<unsigned>(step.code_point);
    if (c < 0x7F) {
      escaped += rest.substr(0, 1);
    } else if (c < 0x10000) {
      std::snprintf(buffer, sizeof buffer, "\\u%04x", c);
      escaped += buffer;
    } else {
      c -= 0x10000;
      std::snprintf(buffer, sizeof buffer, "\\u%04x\\u%04x", 0xD800 + (c >> 10), 0xDC00 + (c & 0x3FF));
      escaped += buffer;
    }
    rest.remove_prefix(step.length);
  }
  return escaped;
}

inline void append_json(std::string& out, const Value& value, const JsonStyle& style, Budget& budget, int depth = 0) {
  const std::size_t before = out.size();
  budget.charge(50);
  const auto line = [&](int levels) {
    if (style.lines) out += '\n';
    for (int i = 0; style.lines && i < levels; ++i) out += style.indent;
    budget.charge_bytes(style.indent.size() * static_cast<std::size_t>(levels));
    check_length(out.size());
  };
  switch (value.type()) {
    case Type::none:
      out += "null";
      break;
    case Type::boolean:
      out += value.whole() ? "true" : "false";
      break;
    case Type::integer:
      out += std::to_string(value.whole());
      break;
    case Type::real:
      out += python_float(value.number());
      break;
    case Type::string:
      out += json_string(value.text(), style.ascii);
      break;
    case Type::list:
    case Type::tuple:
      if (value.items().empty()) {
        out += "[]";
        break;
      }
      out += '[';
      for (std::size_t i = 0; i < value.items().size(); ++i) {
        if (i > 0) out += style.comma;
        line(depth + 1);
        append_json(out, value.items()[i], style, budget, depth + 1);
      }
      line(depth);
      out += ']';
      return;
    case Type::dict: {
      if (value.items().empty()) {
        out += "{}";
        break;
      }
      std::vector<std::pair<std::string, const Value*>> entries;
      for (std::size_t i = 0; i < value.items().size(); ++i) {
        const Value& key = value.items()[i];
        std::string text;
        if (key.is(Type::string))
          text = key.text();
        else
          append_json(text, key, style, budget);
        entries.emplace_back(std::move(text), &value.object().values[i]);
      }
      const auto before_key = [](const auto& a, const auto& b) { return a.first < b.first; };
      if (style.sorted) std::sort(entries.begin(), entries.end(), before_key);
      out += '{';
      for (std::size_t i = 0; i < entries.size(); ++i) {
        if (i > 0) out += style.comma;
        line(depth + 1);
        (out += json_string(entries[i].first, style.ascii)) += style.colon;
        append_json(out, *entries[i].second, style, budget, depth + 1);
      }
      line(depth);
      out += '}';
      return;
    }
    default:
      fail(concat("a value of type ", type_name(value), " cannot be written as JSON"));
  }
  check_length(out.size());
  budget.charge_bytes(out.size() - before);
}

}  // namespace moxie::jinja
