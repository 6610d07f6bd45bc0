#pragma once
// The parser of Jinja templates: text to a tree of nodes (jinja.hpp renders it).
//
// The language is that of Jinja 3.1 with trim_blocks and lstrip_blocks, as Hugging Face renders chat templates: if, for, set,
// macro, call, filter, with, raw, break, continue and generation; no include, import or extends.

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/text/jinja_lexer.hpp>
#include <moxie/text/jinja_value.hpp>

namespace moxie::jinja {

// What the nodes and names of each hold; E: expression, B: body.
enum class Op : std::uint8_t {
  body,          // statements
  text,          // value
  print,         // E
  if_,           // E, B, else B
  for_,          // target, iterable E, B, else B, condition E; the last two may be `none`
  set,           // target, E
  set_block,     // target, B, filters E of the name "" (none: as it is)
  macro,         // name; names: parameters; B, then the defaults of the last parameters
  call,          // name; names: parameters of caller(); the call E, B, then their defaults
  filter_block,  // B, filters E of the name ""
  with,          // B, then targets and values in turns
  break_,
  continue_,
  none,  // nothing is there
  // expressions
  constant,   // value
  name,       // name
  list,       // E..
  tuple,      // E..
  dict,       // key, value, ..
  attribute,  // name; E
  item,       // E, key
  slice,      // E, start, stop, step; each may be `none`
  invoke,     // function E, then the arguments: names has a name for each, empty for positional ones
  filter,     // name; E, arguments as those of invoke
  test,       // name; E, arguments
  not_,
  negative,
  positive,
  and_,
  or_,
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  join,         // a ~ b ~ ..
  compare,      // E..; names: the operators between them
  conditional,  // value, condition, else value or `none`
};

/// Out of line, as all that holds values is: it is much that compilers would repeat everywhere.
struct Node {
  [[gnu::noinline]] Node() = default;
  [[gnu::noinline]] Node(Node&&) noexcept = default;
  [[gnu::noinline]] Node& operator=(Node&&) noexcept = default;
  [[gnu::noinline]] ~Node() = default;

  Op op = Op::none;
  int line = 0;
  std::string name{};
  Value value{};
  std::vector<Node> nodes{};
  std::vector<std::string> names{};
  int height = 0;  // of the tree below
};

/// Lexemes to nodes.
class Parser {
 public:
  explicit Parser(std::string_view source) : lexemes_(Lexer(source).take()) {}

  Node parse() {
    Node body = parse_body({});
    if (now().token != Token::end) fail("a tag closes nothing");
    return body;
  }

 private:
  const Lexeme& now() const { return lexemes_[at_]; }
  const Lexeme& next() const { return lexemes_[std::min(at_ + 1, lexemes_.size() - 1)]; }
  [[noreturn]] void fail(const std::string& what) const {
    const Lexeme& l = now();
    const bool named = l.token == Token::name || l.token == Token::op;
    fail_at(l.line, named ? concat(what, ", at \"", l.text, "\"") : what);
  }
  bool is_op(std::string_view text) const { return now().token == Token::op && now().text == text; }
  bool is_name(std::string_view text) const { return now().token == Token::name && now().text == text; }
  bool take_op(std::string_view text) { return is_op(text) && ++at_; }
  bool take_name(std::string_view text) { return is_name(text) && ++at_; }
  void expect_op(std::string_view text) {
    if (!take_op(text)) fail(concat("\"", text, "\" is missing"));
  }
  void expect_name(std::string_view text) {
    if (!take_name(text)) fail(concat("\"", text, "\" is missing"));
  }
  void expect(Token token) {
    if (now().token != token) fail("a tag says more than it can, or is not closed");
    ++at_;
  }
  std::string identifier() {
    if (now().token != Token::name) fail("a name is missing");
    return lexemes_[at_++].text;
  }
  Node make(Op op) const {
    Node node;
    node.op = op;
    node.line = now().line;
    return node;
  }
  void add(Node& parent, Node child) const {
    parent.height = std::max(parent.height, child.height + 1);
    if (parent.height > max_depth) fail("a chat template is nested too deeply");
    parent.nodes.push_back(std::move(child));
  }
  Node two(Op op, Node a, Node b) const {
    Node node;
    node.op = op;
    node.line = a.line;
    add(node, std::move(a));
    add(node, std::move(b));
    return node;
  }

  /// Statements up to a tag that begins with one of `ends`, whose first name is then the next lexeme.
  Node parse_body(const std::vector<std::string_view>& ends) {
    const Depth depth(*this);
    Node body = make(Op::body);
    for (;;) {
      switch (now().token) {
        case Token::text: {
          Node text = make(Op::text);
          text.value = Value::string(now().text);
          add(body, std::move(text));
          ++at_;
          break;
        }
        case Token::print_begin: {
          ++at_;
          Node print = make(Op::print);
          add(print, parse_tuple());
          expect(Token::print_end);
          add(body, std::move(print));
          break;
        }
        case Token::block_begin: {
          const std::string& tag = next().text;
          for (const std::string_view end : ends)
            if (next().token == Token::name && tag == end) {
              ++at_;
              return body;
            }
          ++at_;
          add(body, parse_statement());
          break;
        }
        default:
          if (!ends.empty()) fail(concat("{% ", ends.back(), " %} is missing"));
          return body;
      }
    }
  }
  /// A body up to {% END %}, which is taken.
  Node parse_block(std::string_view end) {
    expect(Token::block_end);
    Node body = parse_body({end});
    ++at_;
    expect(Token::block_end);
    return body;
  }

  Node parse_statement() {
    Node node = make(Op::none);
    const std::string tag = identifier();
    if (tag == "if") {
      parse_if(node);
    } else if (tag == "for") {
      parse_for(node);
    } else if (tag == "set") {
      parse_set(node);
    } else if (tag == "macro") {
      node.op = Op::macro;
      node.name = identifier();
      parse_parameters(node, "endmacro");
    } else if (tag == "call") {
      node.op = Op::call;
      std::vector<Node> defaults;
      if (is_op("(")) defaults = parse_names(node);
      add(node, parse_expression());
      if (node.nodes[0].op != Op::invoke) fail("{% call %} needs a call");
      const int loops = std::exchange(loops_, 0);
      add(node, parse_block("endcall"));
      loops_ = loops;
      for (Node& value : defaults) add(node, std::move(value));
    } else if (tag == "filter") {
      node.op = Op::filter_block;
      Node filters = parse_filters(make(Op::name), true);
      add(node, parse_block("endfilter"));
      add(node, std::move(filters));
    } else if (tag == "with") {
      node.op = Op::with;
      std::vector<Node> sets;
      while (now().token != Token::block_end) {
        if (!sets.empty()) expect_op(",");
        sets.push_back(parse_target());
        expect_op("=");
        sets.push_back(parse_expression());
      }
      add(node, parse_block("endwith"));
      for (Node& value : sets) add(node, std::move(value));
    } else if (tag == "generation") {
      node.op = Op::with;  // a scope, without names
      const int loops = std::exchange(loops_, 0);
      add(node, parse_block("endgeneration"));
      loops_ = loops;
    } else if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail("break and continue belong into a loop");
      node.op = tag == "break" ? Op::break_ : Op::continue_;
      expect(Token::block_end);
    } else {
      --at_;
      fail("chat templates have no such tag here");
    }
    return node;
  }

  void parse_if(Node& node) {
    node.op = Op::if_;
    add(node, parse_tuple(false));
    expect(Token::block_end);
    add(node, parse_body({"elif", "else", "endif"}));
    if (is_name("elif")) {
      const Depth depth(*this);
      ++at_;
      Node other = make(Op::none);
      parse_if(other);
      add(node, std::move(other));
      return;
    }
    if (take_name("else")) {
      add(node, parse_block("endif"));
      return;
    }
    expect_name("endif");
    expect(Token::block_end);
    add(node, make(Op::none));
  }

  void parse_for(Node& node) {
    node.op = Op::for_;
    add(node, parse_target());
    expect_name("in");
    add(node, parse_tuple(false));
    Node condition = make(Op::none);
    if (take_name("if")) condition = parse_expression();
    if (is_name("recursive")) fail("recursive loops are not supported");
    expect(Token::block_end);
    ++loops_;
    add(node, parse_body({"else", "endfor"}));
    --loops_;
    if (take_name("else")) {
      add(node, parse_block("endfor"));
    } else {
      ++at_;
      expect(Token::block_end);
      add(node, make(Op::none));
    }
    add(node, std::move(condition));
  }

  void parse_set(Node& node) {
    add(node, parse_target(true));
    if (take_op("=")) {
      node.op = Op::set;
      add(node, parse_tuple());
      return expect(Token::block_end);
    }
    node.op = Op::set_block;
    Node filters = parse_filters(make(Op::name), false);
    add(node, parse_block("endset"));
    add(node, std::move(filters));
  }

  /// (NAME, NAME = DEFAULT, ..)
  std::vector<Node> parse_names(Node& node) {
    std::vector<Node> defaults;
    expect_op("(");
    while (!take_op(")")) {
      if (!node.names.empty()) expect_op(",");
      if (take_op(")")) break;
      node.names.push_back(identifier());
      if (take_op("=")) {
        defaults.push_back(parse_expression());
      } else if (!defaults.empty()) {
        fail("a parameter without default follows one that has it");
      }
    }
    return defaults;
  }
  void parse_parameters(Node& node, std::string_view end) {
    std::vector<Node> defaults = parse_names(node);
    const int loops = std::exchange(loops_, 0);
    add(node, parse_block(end));
    loops_ = loops;
    for (Node& value : defaults) add(node, std::move(value));
  }

  /// What is assigned to: a name, NAME.NAME where `spaces`, or several.
  Node parse_target(bool spaces = false) {
    std::vector<Node> targets;
    const bool brackets = take_op("(");
    Node tuple = make(Op::tuple);
    bool comma = false;
    do {
      if (brackets && is_op(")")) break;
      Node target = make(Op::name);
      target.name = identifier();
      if (spaces && take_op(".")) {
        Node attribute = make(Op::attribute);
        attribute.name = identifier();
        add(attribute, std::move(target));
        target = std::move(attribute);
      }
      add(tuple, std::move(target));
    } while (take_op(",") && (comma = true));
    if (brackets) expect_op(")");
    if (!comma && tuple.nodes.size() == 1) {
      Node target = std::move(tuple.nodes[0]);
      return target;
    }
    return tuple;
  }

  // Expressions, from those that bind least to those that bind most.

  /// One expression, or several between commas: a tuple. `conditions`: with "x if y".
  Node parse_tuple(bool conditions = true) {
    Node first = conditions ? parse_expression() : parse_or();
    if (!is_op(",")) return first;
    Node tuple = make(Op::tuple);
    add(tuple, std::move(first));
    while (take_op(",")) {
      if (ends_tuple()) break;
      add(tuple, conditions ? parse_expression() : parse_or());
    }
    return tuple;
  }
  bool ends_tuple() const {
    return now().token == Token::print_end || now().token == Token::block_end || is_op(")") || is_op("]") || is_name("if");
  }

  Node parse_expression() {
    const Depth depth(*this);
    Node value = parse_or();
    while (take_name("if")) {
      Node condition = parse_or();
      Node conditional = two(Op::conditional, std::move(value), std::move(condition));
      add(conditional, take_name("else") ? parse_expression() : make(Op::none));
      value = std::move(conditional);
    }
    return value;
  }
  Node parse_or() {
    Node left = parse_and();
    while (take_name("or")) left = two(Op::or_, std::move(left), parse_and());
    return left;
  }
  Node parse_and() {
    Node left = parse_not();
    while (take_name("and")) left = two(Op::and_, std::move(left), parse_not());
    return left;
  }
  Node parse_not() {
    const Depth depth(*this);
    if (!is_name("not")) return parse_compare();
    Node node = make(Op::not_);
    ++at_;
    add(node, parse_not());
    return node;
  }
  Node parse_compare() {
    Node left = parse_sum();
    Node compare = make(Op::compare);
    for (;;) {
      std::string op;
      if (now().token == Token::op) {
        for (const std::string_view o : {"==", "!=", "<", "<=", ">", ">="})
          if (now().text == o) op = o;
      } else if (is_name("in")) {
        op = "in";
      } else if (is_name("not") && next().token == Token::name && next().text == "in") {
        op = "not in";
        ++at_;
      }
      if (op.empty()) break;
      ++at_;
      if (compare.names.empty()) add(compare, std::move(left));
      compare.names.push_back(op);
      add(compare, parse_sum());
    }
    if (compare.names.empty()) return left;
    return compare;
  }
  Node parse_sum() {
    Node left = parse_join();
    while (is_op("+") || is_op("-")) {
      const Op op = is_op("+") ? Op::add : Op::subtract;
      ++at_;
      left = two(op, std::move(left), parse_join());
    }
    return left;
  }
  Node parse_join() {
    Node left = parse_product();
    if (!is_op("~")) return left;
    Node join = make(Op::join);
    add(join, std::move(left));
    while (take_op("~")) add(join, parse_product());
    return join;
  }
  Node parse_product() {
    Node left = parse_power();
    for (;;) {
      Op op = Op::none;
      if (is_op("*")) op = Op::multiply;
      if (is_op("/")) op = Op::divide;
      if (is_op("//")) op = Op::floor_divide;
      if (is_op("%")) op = Op::modulo;
      if (op == Op::none) return left;
      ++at_;
      left = two(op, std::move(left), parse_power());
    }
  }
  Node parse_power() {
    Node left = parse_unary();
    while (take_op("**")) left = two(Op::power, std::move(left), parse_unary());
    return left;
  }
  Node parse_unary(bool filters = true) {
    const Depth depth(*this);
    Node node;
    if (is_op("-") || is_op("+")) {
      node = make(is_op("-") ? Op::negative : Op::positive);
      ++at_;
      add(node, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    if (!filters) return node;
    return parse_filters(std::move(node), false);
  }

  Node parse_primary() {
    const Depth depth(*this);
    Node node = make(Op::constant);
    switch (now().token) {
      case Token::name: {
        const std::string name = identifier();
        if (name == "true" || name == "True" || name == "false" || name == "False") {
          node.value = Value::boolean(name[0] == 't' || name[0] == 'T');
        } else if (name == "none" || name == "None") {
          node.value = Value::none();
        } else {
          node.op = Op::name;
          node.name = name;
        }
        return node;
      }
      case Token::string: {
        std::string text;
        while (now().token == Token::string) text += lexemes_[at_++].text;
        node.value = Value::string(std::move(text));
        return node;
      }
      case Token::integer: {
        if (now().text.size() > 18) fail("a number is too large");
        node.value = Value::integer(std::strtoll(now().text.c_str(), nullptr, 10));
        ++at_;
        return node;
      }
      case Token::real:
        node.value = parse_real(now().text);
        ++at_;
        return node;
      default:
        break;
    }
    if (take_op("(")) {
      if (take_op(")")) {
        node.op = Op::tuple;
        return node;
      }
      node = parse_tuple();
      expect_op(")");
      return node;
    }
    if (take_op("[")) {
      node.op = Op::list;
      while (!take_op("]")) {
        if (!node.nodes.empty()) {
          expect_op(",");
          if (take_op("]")) break;
        }
        add(node, parse_expression());
      }
      return node;
    }
    if (take_op("{")) {
      node.op = Op::dict;
      while (!take_op("}")) {
        if (!node.nodes.empty()) {
          expect_op(",");
          if (take_op("}")) break;
        }
        add(node, parse_expression());
        expect_op(":");
        add(node, parse_expression());
      }
      return node;
    }
    fail("an expression is missing");
  }

  static Value parse_real(const std::string& text) {
    double value = 0.0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return Value::real(value);
  }
  Node parse_call(Node function) {
    Node call = make(Op::invoke);
    add(call, std::move(function));
    parse_arguments(call);
    return call;
  }

  Node parse_postfix(Node node) {
    for (;;) {
      if (is_op(".") || is_op("[")) {
        node = parse_subscript(std::move(node));
      } else if (is_op("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  Node parse_subscript(Node of) {
    if (take_op(".")) {
      if (now().token == Token::integer) {
        Node item = make(Op::item);
        Node key = make(Op::constant);
        if (now().text.size() > 18) fail("a number is too large");
        key.value = Value::integer(std::strtoll(now().text.c_str(), nullptr, 10));
        ++at_;
        add(item, std::move(of));
        add(item, std::move(key));
        return item;
      }
      Node attribute = make(Op::attribute);
      attribute.name = identifier();
      add(attribute, std::move(of));
      return attribute;
    }
    expect_op("[");
    Node item = make(Op::item);
    add(item, std::move(of));
    bool slice = false;
    const auto part = [&] {
      if (is_op(":") || is_op("]"))
        add(item, make(Op::none));
      else
        add(item, parse_tuple());
    };
    part();
    while (item.nodes.size() < 4 && take_op(":")) {
      slice = true;
      part();
    }
    expect_op("]");
    if (slice) {
      item.op = Op::slice;
      while (item.nodes.size() < 4) add(item, make(Op::none));
    } else if (item.nodes[1].op == Op::none) {
      fail("an index is missing");
    }
    return item;
  }

  /// (E, .., NAME = E, ..) to nodes and names.
  void parse_arguments(Node& node) {
    expect_op("(");
    bool first = true;
    while (!take_op(")")) {
      if (!std::exchange(first, false)) {
        expect_op(",");
        if (take_op(")")) break;
      }
      if (is_op("*") || is_op("**")) fail("arguments out of lists are not supported");
      std::string name;
      if (now().token == Token::name && next().token == Token::op && next().text == "=") {
        name = identifier();
        ++at_;
      } else if (!node.names.empty() && !node.names.back().empty()) {
        fail("an argument without name follows one that has it");
      }
      node.names.push_back(std::move(name));
      add(node, parse_expression());
    }
  }

  /// | NAME(..) and is NAME(..) after `node`; of {% filter NAME %} `bare` names the first without "|".
  Node parse_filters(Node node, bool bare) {
    for (;; bare = false) {
      if (bare || take_op("|")) {
        Node filter = make(Op::filter);
        filter.name = identifier();
        while (take_op(".")) filter.name += "." + identifier();
        add(filter, std::move(node));
        if (is_op("(")) parse_arguments(filter);
        node = std::move(filter);
      } else if (is_name("is") && node.op != Op::none) {
        node = parse_test(std::move(node));
      } else if (is_op("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }
  Node parse_test(Node of) {
    expect_name("is");
    const bool negated = take_name("not");
    Node test = make(Op::test);
    test.name = identifier();
    while (take_op(".")) test.name += "." + identifier();
    add(test, std::move(of));
    if (is_op("(")) {
      parse_arguments(test);
    } else if (starts_argument()) {
      test.names.emplace_back();
      add(test, parse_postfix(parse_primary()));
    }
    if (!negated) return test;
    Node node = make(Op::not_);
    add(node, std::move(test));
    return node;
  }
  bool starts_argument() const {
    const Token t = now().token;
    if (t == Token::string || t == Token::integer || t == Token::real || is_op("[") || is_op("{")) return true;
    if (t != Token::name) return false;
    for (const char* word : {"else", "or", "and", "is", "if", "in", "not", "recursive"})
      if (is_name(word)) return false;
    return true;
  }

  /// Keeps the nesting of nodes, and so the stack of those who walk them, small.
  struct Depth {
    explicit Depth(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > max_depth) parser_.fail("a chat template is nested too deeply");
    }
    ~Depth() { --parser_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    Parser& parser_;
  };
  static constexpr int max_depth = 400;

  std::vector<Lexeme> lexemes_;
  std::size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
};

}  // namespace moxie::jinja
