#pragma once
// Jinja templates as chat templates use them: the language of Jinja 3.1 in Hugging Face's settings.
//
//   const jinja::Template hello("{% for name in names %}Hello {{ name|trim }}!{% endfor %}");
//   std::string text = hello.render({{"names", {"you", "there"}}});
//
// Source: https://jinja.palletsprojects.com/en/3.1.x/templates, and transformers' chat_template_utils: trim_blocks,
// lstrip_blocks, break and continue, {% generation %}, raise_exception(), strftime_now(), tojson without escapes for HTML, lists
// and dictionaries that cannot be changed.
//
// Not here, and errors: include, import, extends, block, autoescape, recursive loops, targets in targets (for a, (b, c) in ..),
// arguments out of lists (*a, **b), varargs and kwargs of macros, loop.changed, cycler, joiner; the filters attr, batch, groupby,
// random, slice, urlize, wordcount and their like; fields of format() with more than a name; whole numbers of more than 64 bits.
// Otherwise than in Jinja: range(), keys(), items() and values() give lists; a name that is only set below is seen above with the
// value that the caller gave; lazy filters run at once.
//
// A template is data that came with a model: what it can do is compute text. It stops with an error when it takes more than some
// seconds, a gigabyte or half a megabyte of stack.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_filters.hpp>
#include <moxie/text/jinja_parser.hpp>
#include <moxie/text/jinja_time.hpp>
#include <moxie/text/jinja_value.hpp>

namespace moxie::jinja {

/// raise_exception() of a template.
class Refusal : public ArgumentError {
  using ArgumentError::ArgumentError;
};

/// Names of a part of a template; those of the parts around it are seen too.
struct Scope {
  Scope* around = nullptr;
  std::vector<std::pair<std::string, Value>> names{};

  void set(std::string_view name, Value value) {
    for (auto& [n, v] : names)
      if (n == name) return void(v = std::move(value));
    names.emplace_back(name, std::move(value));
  }
};

/// One rendering.
class Renderer {
 public:
  explicit Renderer(const Time& now) : now_(now) {}
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;
  /// Namespaces may hold each other.
  ~Renderer() {
    for (Value& space : spaces_) space.object().values.clear();
  }

  std::string render(const Node& body, const nlohmann::ordered_json& variables) {
    Scope& scope = new_scope(nullptr);
    if (variables.is_object())
      for (const auto& [name, value] : variables.items()) scope.set(name, Value::from_json(value));
    std::string out;
    try {
      execute(body, scope, out);
    } catch (const Refusal&) {
      throw;
    } catch (const ArgumentError& error) {
      throw ArgumentError(concat("chat template, line ", line_, ": ", error.what()));
    } catch (const std::length_error&) {
      throw ArgumentError(concat("chat template, line ", line_, ": a text or list grows too long"));
    }
    return out;
  }

 private:
  enum class Flow { goes_on, breaks, continues };

  static constexpr int max_depth = 600;  // half a megabyte of stack

  struct Level {
    explicit Level(Renderer& renderer) : renderer_(renderer) {
      if (++renderer_.depth_ > max_depth) fail("the template's macros call each other too deeply");
      renderer_.budget_.charge(100);
    }
    ~Level() { --renderer_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    Renderer& renderer_;
  };

  Scope& new_scope(Scope* around) {
    budget_.charge(2000);  // they stay to the end
    scopes_.push_back({around});
    return scopes_.back();
  }
  void write(std::string& out, const std::string& text) {
    check_length(out.size() + text.size());
    budget_.charge_bytes(text.size());
    out += text;
  }

  // Statements.

  Flow execute(const Node& node, Scope& scope, std::string& out) {
    const Level level(*this);
    line_ = node.line;
    switch (node.op) {
      case Op::body:
        for (const Node& statement : node.nodes)
          if (const Flow flow = execute(statement, scope, out); flow != Flow::goes_on) return flow;
        break;
      case Op::text:
        write(out, node.value.text());
        break;
      case Op::print:
        append_text(out, evaluate(node.nodes[0], scope), budget_);
        break;
      case Op::if_:
        return execute(node.nodes[evaluate(node.nodes[0], scope).is_true() ? 1 : 2], scope, out);
      case Op::for_:
        return loop(node, scope, out);
      case Op::set:
        assign(node.nodes[0], evaluate(node.nodes[1], scope), scope);
        break;
      case Op::set_block:
      case Op::filter_block: {
        const bool sets = node.op == Op::set_block;
        Scope& inner = new_scope(&scope);
        std::string text;
        if (const Flow flow = execute(node.nodes[sets ? 1 : 0], inner, text); flow != Flow::goes_on) return flow;
        inner.set("", Value::string(std::move(text)));
        const Value value = evaluate(node.nodes[sets ? 2 : 1], inner);
        if (sets)
          assign(node.nodes[0], value, scope);
        else
          append_text(out, value, budget_);
        break;
      }
      case Op::macro:
        scope.set(node.name, Value::macro(node, scope, node.name));
        break;
      case Op::call: {
        const Node& invoke = node.nodes[0];
        Arguments args = arguments(invoke, scope);
        args.values.push_back(Value::macro(node, scope, "caller"));
        args.names.emplace_back("caller");
        append_text(out, call(evaluate(invoke.nodes[0], scope), args), budget_);
        break;
      }
      case Op::with: {
        Scope& inner = new_scope(&scope);
        for (std::size_t i = 1; i < node.nodes.size(); i += 2) assign(node.nodes[i], evaluate(node.nodes[i + 1], scope), inner);
        return execute(node.nodes[0], inner, out);
      }
      case Op::break_:
        return Flow::breaks;
      case Op::continue_:
        return Flow::continues;
      default:
        break;
    }
    return Flow::goes_on;
  }

  Flow loop(const Node& node, Scope& scope, std::string& out) {
    const Node &target = node.nodes[0], &condition = node.nodes[4];
    Value state = Value::of(Type::loop);
    std::vector<Value> items = iterate(evaluate(node.nodes[1], scope), budget_);
    Scope& inner = new_scope(&scope);
    if (condition.op != Op::none) {
      std::vector<Value> some;
      for (const Value& item : items) {
        assign(target, item, inner);
        if (evaluate(condition, inner).is_true()) some.push_back(item);
      }
      items = std::move(some);
    }
    for (const Value& item : items) state.object().nest(item);
    state.object().items = std::move(items);
    bool ended = false;  // an iteration came to its end
    for (std::size_t i = 0; i < state.items().size(); ++i) {
      inner.names.clear();
      state.object().index = static_cast<std::int64_t>(i);
      inner.set("loop", state);
      assign(target, state.items()[i], inner);
      const Flow flow = execute(node.nodes[2], inner, out);
      ended = ended || flow == Flow::goes_on;
      if (flow == Flow::breaks) break;
    }
    if (ended) return Flow::goes_on;
    return execute(node.nodes[3], new_scope(&scope), out);  // so Jinja does it
  }

  void assign(const Node& target, const Value& value, Scope& scope) {
    if (target.op == Op::name) return scope.set(target.name, value);
    if (target.op == Op::attribute) {
      Value space = evaluate(target.nodes[0], scope);
      if (!space.is(Type::space)) fail(concat("\"", target.nodes[0].name, "\" is no namespace: its parts cannot be set"));
      return put(space, Value::string(target.name), value);
    }
    const std::vector<Value> parts = iterate(value, budget_);
    if (parts.size() != target.nodes.size()) fail(concat(parts.size(), " values are given to ", target.nodes.size(), " names"));
    for (std::size_t i = 0; i < parts.size(); ++i) assign(target.nodes[i], parts[i], scope);
  }

  // Expressions.

  Value evaluate(const Node& node, Scope& scope) {
    const Level level(*this);
    Value value = evaluate_node(node, scope);
    const bool made = node.op == Op::filter || node.op == Op::invoke || node.op >= Op::add;  // and not only looked up
    if (made && value.is(Type::string)) budget_.charge_bytes(value.text().size());
    return value;
  }

  Value evaluate_node(const Node& node, Scope& scope) {
    const auto operand = [&](std::size_t i) {
      Value value = evaluate(node.nodes[i], scope);
      line_ = node.line;
      return value;
    };
    line_ = node.line;
    switch (node.op) {
      case Op::constant:
        return node.value;
      case Op::name:
        return lookup(node.name, scope);
      case Op::list:
      case Op::tuple: {
        std::vector<Value> items;
        budget_.charge_values(5 + node.nodes.size());
        for (std::size_t i = 0; i < node.nodes.size(); ++i) items.push_back(operand(i));
        return Value::list(std::move(items), node.op == Op::list ? Type::list : Type::tuple);
      }
      case Op::dict: {
        Value dict = Value::of(Type::dict);
        for (std::size_t i = 0; i < node.nodes.size(); i += 2) {
          Value key = operand(i);
          put(dict, std::move(key), operand(i + 1));
        }
        return dict;
      }
      case Op::attribute:
        return attribute(operand(0), node.name);
      case Op::item: {
        const Value of = operand(0);
        return item(of, operand(1));
      }
      case Op::slice: {
        const auto bound = [&](std::size_t i) { return node.nodes[i].op == Op::none ? Value::none() : operand(i); };
        const Value of = operand(0), start = bound(1), stop = bound(2);
        return slice(of, start, stop, bound(3), budget_);
      }
      case Op::invoke: {
        const Value function = operand(0);
        const Arguments args = arguments(node, scope);
        line_ = node.line;
        return call(function, args);
      }
      case Op::filter: {
        const Value value = operand(0);
        const Arguments args = arguments(node, scope);
        line_ = node.line;
        return filter(node.name, value, args);
      }
      case Op::test: {
        const Value value = operand(0);
        const Arguments args = arguments(node, scope);
        line_ = node.line;
        return Value::boolean(test(node.name, value, args));
      }
      case Op::not_:
        return Value::boolean(!operand(0).is_true());
      case Op::negative: {
        const Value of = operand(0);
        return of.is(Type::real) ? Value::real(-of.number()) : calculate('-', Value::integer(0), of, budget_);
      }
      case Op::positive:
        return calculate('+', Value::integer(0), operand(0), budget_);
      case Op::and_: {
        Value left = operand(0);
        return left.is_true() ? operand(1) : left;
      }
      case Op::or_: {
        Value left = operand(0);
        return left.is_true() ? left : operand(1);
      }
      case Op::join: {
        std::string text;
        for (std::size_t i = 0; i < node.nodes.size(); ++i) append_text(text, operand(i), budget_);
        return Value::string(std::move(text));
      }
      case Op::compare:
        return compare(node, scope);
      case Op::conditional:
        if (operand(1).is_true()) return operand(0);
        return node.nodes[2].op == Op::none ? Value() : operand(2);
      default: {
        constexpr std::string_view signs = "+-*/f%p";
        const Value left = operand(0);
        return calculate(signs[static_cast<std::size_t>(node.op) - static_cast<std::size_t>(Op::add)], left, operand(1), budget_);
      }
    }
  }

  Value compare(const Node& node, Scope& scope) {
    Value left = evaluate(node.nodes[0], scope);
    for (std::size_t i = 0; i < node.names.size(); ++i) {
      Value right = evaluate(node.nodes[i + 1], scope);
      line_ = node.line;
      const std::string& op = node.names[i];
      bool holds = false;
      if (op == "==")
        holds = equal(left, right, budget_);
      else if (op == "!=")
        holds = !equal(left, right, budget_);
      else if (op == "in")
        holds = contains(right, left, budget_);
      else if (op == "not in")
        holds = !contains(right, left, budget_);
      else if (op == "<")
        holds = order(left, right, budget_) < 0;
      else if (op == "<=")
        holds = order(left, right, budget_) <= 0;
      else if (op == ">")
        holds = order(left, right, budget_) > 0;
      else
        holds = order(left, right, budget_) >= 0;
      if (!holds) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value lookup(const std::string& name, const Scope& scope) {
    for (const Scope* s = &scope; s; s = s->around) {
      budget_.charge(s->names.size());
      for (const auto& [n, value] : s->names)
        if (n == name) return value;
    }
    for (const char* function : {"namespace", "range", "dict", "raise_exception", "strftime_now"})
      if (name == function) return Value::function(name);
    return Value::undefined(name);
  }

  Value attribute(const Value& of, const std::string& name) {
    if (of.is(Type::undefined)) fail(concat("\"", of.object_name(), "\" is undefined, so it has no \"", name, "\""));
    if (of.is(Type::loop)) return loop_attribute(of, name);
    if (is_method(of.type(), name)) return Value::method(of, name);
    const Value* found = of.is(Type::dict) || of.is(Type::space) ? look_up(of, Value::string(name)) : nullptr;
    return found ? *found : Value::undefined(name);
  }
  const Value* look_up(const Value& dict, const Value& key) {
    budget_.charge(dict.items().size());
    return dict.find(key);
  }
  void put(Value& dict, Value key, Value value) {
    budget_.charge(1000 + dict.items().size());
    dict.set(std::move(key), std::move(value));
  }
  Value item(const Value& of, const Value& key) {
    if (of.is(Type::undefined)) fail(concat("\"", of.object_name(), "\" is undefined, so it has no elements"));
    if (of.is(Type::dict)) {
      if (const Value* found = key.can_be_key() ? look_up(of, key) : nullptr) return *found;
    } else if (key.is_whole() && (of.is(Type::string) || of.is_sequence())) {
      return element(of, key.whole(), budget_);
    }
    return key.is(Type::string) ? attribute(of, key.text()) : Value::undefined(concat("an element at a ", type_name(key)));
  }
  static Value loop_attribute(const Value& of, std::string_view name) {
    const std::int64_t i = of.object().index, n = static_cast<std::int64_t>(of.items().size());
    if (name == "index") return Value::integer(i + 1);
    if (name == "index0") return Value::integer(i);
    if (name == "first") return Value::boolean(i == 0);
    if (name == "last") return Value::boolean(i == n - 1);
    if (name == "length") return Value::integer(n);
    if (name == "revindex") return Value::integer(n - i);
    if (name == "revindex0") return Value::integer(n - i - 1);
    if (name == "depth") return Value::integer(1);
    if (name == "depth0") return Value::integer(0);
    if (name == "previtem") return i > 0 ? of.items()[static_cast<std::size_t>(i - 1)] : Value::undefined("loop.previtem");
    if (name == "nextitem") return i + 1 < n ? of.items()[static_cast<std::size_t>(i + 1)] : Value::undefined("loop.nextitem");
    if (name == "cycle") return Value::method(of, "cycle");
    return Value::undefined(concat("loop.", name));
  }

  Arguments arguments(const Node& node, Scope& scope) {
    Arguments args{budget_};
    for (std::size_t i = 1; i < node.nodes.size(); ++i) args.values.push_back(evaluate(node.nodes[i], scope));
    args.names = node.names;
    return args;
  }

  Value call(const Value& function, const Arguments& args) {
    if (!function.is(Type::function)) {
      if (function.is(Type::undefined)) fail(concat("\"", function.object_name(), "\" is undefined, so it cannot be called"));
      fail(concat("a value of type ", type_name(function), " cannot be called"));
    }
    if (function.object().macro) return call_macro(*function.object().macro, *function.object().scope, args);
    const std::string& name = function.text();
    if (!function.items().empty()) {
      const Value& self = function.items()[0];
      if (!self.is(Type::loop)) return call_method(self, name, args);
      if (args.values.empty()) fail("loop.cycle() needs values");
      return args.values[static_cast<std::size_t>(self.object().index) % args.values.size()];
    }
    if (name == "raise_exception")
      throw Refusal(concat("the model's chat template refuses the conversation: ", to_text(args.get(0, "message"), budget_)));
    if (name == "strftime_now") return Value::string(format_time(text_of(args.get(0, "format"), name), now_));
    if (name == "range") return range(args);
    Value out = Value::of(name == "dict" ? Type::dict : Type::space);  // dict(), namespace()
    if (out.is(Type::space)) spaces_.push_back(out);
    for (std::size_t i = 0; i < args.values.size(); ++i) {
      if (!args.names[i].empty()) {
        put(out, Value::string(args.names[i]), args.values[i]);
        continue;
      }
      if (!args.values[i].is(Type::dict)) fail(concat(name, "(): an argument without name must be a dictionary"));
      for (std::size_t k = 0; k < args.values[i].items().size(); ++k)
        put(out, args.values[i].items()[k], args.values[i].object().values[k]);
    }
    return out;
  }

  Value range(const Arguments& args) {
    const bool one = args.values.size() == 1;
    const std::int64_t begin = one ? 0 : args.whole(0, "start", 0),
                       end = one ? args.whole(0, "stop", 0) : args.whole(1, "stop", 0);
    const std::int64_t step = args.whole(2, "step", 1);
    if (step == 0) fail("range(): the step must not be 0");
    std::vector<Value> items;
    constexpr std::size_t most = 100000;  // Jinja's own limit
    for (std::int64_t i = begin; step > 0 ? i < end : i > end;) {
      if (items.size() == most) fail("range(): more than 100000 numbers");
      items.push_back(Value::integer(i));
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    budget_.charge_values(items.size());
    return Value::list(std::move(items));
  }

  /// A macro or the body of {% call %}, defined in `around`.
  Value call_macro(const Node& macro, Scope& around, const Arguments& args) {
    const std::size_t body = macro.op == Op::macro ? 0 : 1, n = macro.names.size(), defaults = macro.nodes.size() - body - 1;
    Scope& scope = new_scope(&around);
    budget_.charge(100 * (args.values.size() + n));
    for (std::size_t i = 0; i < args.values.size(); ++i) {
      const std::string& name = args.names[i].empty() && i < n ? macro.names[i] : args.names[i];
      const bool known = name == "caller" || std::find(macro.names.begin(), macro.names.end(), name) != macro.names.end();
      if (!known)
        fail(concat(macro.name.empty() ? "caller" : macro.name, "() takes no ", name.empty() ? "further argument" : name));
      scope.set(name, args.values[i]);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const auto given = [&](const auto& entry) { return entry.first == macro.names[i]; };
      if (std::any_of(scope.names.begin(), scope.names.end(), given)) continue;
      scope.set(macro.names[i],
                i + defaults >= n ? evaluate(macro.nodes[body + 1 + i + defaults - n], scope) : Value::undefined(macro.names[i]));
    }
    std::string out;
    execute(macro.nodes[body], scope, out);
    return Value::string(std::move(out));
  }

  Time now_;
  std::deque<Scope> scopes_;  // none moves; macros refer to those they were defined in
  int depth_ = 0, line_ = 0;
  Budget budget_;
  std::vector<Value> spaces_;
};

/// A parsed template. Copies share it; any number of threads can render it at once.
class Template {
 public:
  /// Throws FormatError with the line of what breaks Jinja's syntax or is not supported.
  explicit Template(std::string_view source) : body_(std::make_shared<const Node>(Parser(source).parse())) {}

  /// Throws ArgumentError where the template fails or refuses (raise_exception), UnsupportedError where it uses a filter or test
  /// that is not known. `variables` is an object.
  std::string render(const nlohmann::ordered_json& variables, const Time& now = {}) const {
    return Renderer(now).render(*body_, variables);
  }

  /// Whether the template has the name anywhere: as a variable, an attribute, a key.
  bool mentions(std::string_view name) const { return mentions(*body_, name); }

 private:
  static bool mentions(const Node& node, std::string_view name) {
    if ((node.op == Op::name || node.op == Op::attribute) && node.name == name) return true;
    if (node.op == Op::constant && node.value.is(Type::string) && node.value.text() == name) return true;
    return std::any_of(node.nodes.begin(), node.nodes.end(), [&](const Node& child) { return mentions(child, name); });
  }

  std::shared_ptr<const Node> body_;
};

}  // namespace moxie::jinja
