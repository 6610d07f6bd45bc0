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

enum class Type : std::uint8_t { undefined, none, boolean, integer, real, string, list, tuple, dict, space, loop, function };

/// What a value refers to.
struct Object {
  std::string text;  ///< string; the name of an undefined value, of a function or a method
  std::vector<Value>
      items;  ///< list, tuple, the items of a loop; of a method what it belongs to; keys of a dictionary or namespace
  std::vector<Value> values;    ///< of a dictionary or namespace, beside its keys
  std::int64_t index = 0;       ///< of a loop
  const Node* macro = nullptr;  ///< of a function that the template defines
  Scope* scope = nullptr;       ///< where it was defined
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
    object->items = std::move(items);
    return Value(type, std::move(object));
  }
  /// An empty dictionary, namespace or loop; `object()` fills it.
  static Value of(Type type) { return Value(type, std::make_shared<Object>()); }
  static Value function(std::string name) { return Value(Type::function, make(std::move(name))); }
  static Value method(const Value& self, std::string name) {
    Value v = function(std::move(name));
    v.object_->items.push_back(self);
    return v;
  }
  static Value macro(const Node& node, Scope& scope, std::string name) {
    Value v = function(std::move(name));
    v.object_->macro = &node;
    v.object_->scope = &scope;
    return v;
  }
  /// Throws ArgumentError where it is nested more than 200 deep.
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

  /// The entry of a dictionary or namespace; null where there is none.
  const Value* find(const Value& key) const {
    const auto& keys = object_->items;
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (keys[i] == key) return &object_->values[i];
    return nullptr;
  }
  void set(Value key, Value value) {
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

  friend bool operator==(const Value& a, const Value& b) {
    if (a.is_whole() && b.is_whole()) return a.integer_ == b.integer_;
    if (a.is_number() && b.is_number()) return a.number() == b.number();
    if (a.type_ != b.type_) return false;
    switch (a.type_) {
      case Type::undefined:
      case Type::none:
        return true;
      case Type::string:
        return a.text() == b.text();
      case Type::list:
      case Type::tuple:
        return a.items() == b.items();
      case Type::dict: {
        if (a.items().size() != b.items().size()) return false;
        for (std::size_t i = 0; i < a.items().size(); ++i) {
          const Value* other = b.find(a.items()[i]);
          if (!other || !(*other == a.object_->values[i])) return false;
        }
        return true;
      }
      default:
        return a.object_ == b.object_;
    }
  }

 private:
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

inline Value Value::from_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > 200) throw ArgumentError("a conversation's JSON is nested too deeply");
  if (json.is_object()) {
    Value dict = of(Type::dict);
    for (const auto& [key, item] : json.items()) {  // keys of JSON are unique
      dict.object_->items.push_back(string(key));
      dict.object_->values.push_back(from_json(item, depth + 1));
    }
    return dict;
  }
  if (json.is_array()) {
    Value out = of(Type::list);
    for (const auto& item : json) out.object_->items.push_back(from_json(item, depth + 1));
    return out;
  }
  if (json.is_string()) return string(json.get_ref<const std::string&>());
  if (json.is_boolean()) return boolean(json.get<bool>());
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > INT64_MAX) return real(json.get<double>());
  if (json.is_number_integer()) return integer(json.get<std::int64_t>());
  if (json.is_number_float()) return real(json.get<double>());
  return none();
}

/// The type's name in messages, as Python calls it.
inline const char* type_name(const Value& value) noexcept {
  constexpr const char* names[] = {"undefined", "None",  "bool", "int",       "float", "str",
                                   "list",      "tuple", "dict", "namespace", "loop",  "function"};
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

/// Python's str(); inside lists and dictionaries repr().
inline std::string to_text(const Value& value, bool inside = false) {
  switch (value.type()) {
    case Type::undefined:
      return inside ? "Undefined" : "";
    case Type::none:
      return "None";
    case Type::boolean:
      return value.whole() ? "True" : "False";
    case Type::integer:
      return std::to_string(value.whole());
    case Type::real: {
      const double r = value.number();
      return std::isfinite(r) ? python_float(r) : std::isnan(r) ? "nan" : r < 0 ? "-inf" : "inf";
    }
    case Type::string:
      return inside ? repr(value.text()) : value.text();
    case Type::list:
    case Type::tuple: {
      const bool tuple = value.is(Type::tuple);
      std::string out(1, tuple ? '(' : '[');
      for (std::size_t i = 0; i < value.items().size(); ++i) out += (i ? ", " : "") + to_text(value.items()[i], true);
      if (tuple && value.items().size() == 1) out += ',';
      return out + (tuple ? ')' : ']');
    }
    case Type::dict: {
      std::string out = "{";
      for (std::size_t i = 0; i < value.items().size(); ++i)
        out += concat((i ? ", " : ""), to_text(value.items()[i], true), ": ", to_text(value.object().values[i], true));
      return out + '}';
    }
    default:
      return concat("<", type_name(value), ">");
  }
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

inline std::string to_json(const Value& value, const JsonStyle& style, int depth = 0) {
  const auto line = [&](int levels) {
    std::string out;
    if (style.lines) out = "\n";
    for (int i = 0; style.lines && i < levels; ++i) out += style.indent;
    return out;
  };
  const auto text = [&](const std::string& s) {
    const std::string out = python_json_string(s);
    if (!style.ascii) return out;
    std::string escaped;
    for (std::string_view rest = out; !rest.empty();) {
      const Utf8Step step = utf8_step(rest);
      char buffer[16];
      auto c = static_cast<unsigned>(step.code_point);
      if (c < 0x80) {
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
  };
  switch (value.type()) {
    case Type::none:
      return "null";
    case Type::boolean:
      return value.whole() ? "true" : "false";
    case Type::integer:
      return std::to_string(value.whole());
    case Type::real:
      return python_float(value.number());
    case Type::string:
      return text(value.text());
    case Type::list:
    case Type::tuple: {
      if (value.items().empty()) return "[]";
      std::string out = "[";
      for (std::size_t i = 0; i < value.items().size(); ++i)
        out += concat((i ? style.comma : ""), line(depth + 1), to_json(value.items()[i], style, depth + 1));
      return out + line(depth) + "]";
    }
    case Type::dict: {
      if (value.items().empty()) return "{}";
      std::vector<std::size_t> order(value.items().size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
      const auto key = [&](std::size_t i) {
        const Value& k = value.items()[i];
        return k.is(Type::string) ? k.text() : to_json(k, style);
      };
      if (style.sorted) std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
      std::string out = "{";
      for (const std::size_t i : order)
        out += concat((out.size() > 1 ? style.comma : ""), line(depth + 1), text(key(i)), style.colon,
                      to_json(value.object().values[i], style, depth + 1));
      return out + line(depth) + "}";
    }
    default:
      throw ArgumentError(concat("a value of type ", type_name(value), " cannot be written as JSON"));
  }
}

}  // namespace moxie::jinja
