// Chat templates against transformers' own renderings, and the Jinja engine against Jinja2.

#include <moxie/text/chat_template.hpp>

#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "shared.hpp"

using nlohmann::ordered_json;

namespace {

/// The text of a row's conversation, or "error: ..." where the template refuses it.
std::string render_template_row(const moxie::ChatTemplate& chat, const ordered_json& row) {
  moxie::ChatOptions options;
  options.add_generation_prompt = row["options"].value("add_generation_prompt", false);
  options.continue_final_message = row["options"].value("continue_final_message", false);
  options.date = "2026-01-15";
  options.tools = row["tools"];
  options.template_kwargs = row["options"];
  for (const char* own : {"add_generation_prompt", "continue_final_message"}) options.template_kwargs.erase(own);
  if (row["bos_token"].is_string()) options.bos = row["bos_token"].get<std::string>();
  if (row["eos_token"].is_string()) options.eos = row["eos_token"].get<std::string>();
  try {
    return chat.render(row["messages"], options);
  } catch (const moxie::ArgumentError& error) {
    return std::string("error: ") + error.what();
  }
}

/// Compares all rows of FILE.jsonl with the template of FILE.jinja.
void check_template(const std::filesystem::path& file) {
  CAPTURE(file.filename().string());
  const moxie::ChatTemplate chat(test::read_text(file.string()));
  std::istringstream lines(test::read_text(std::filesystem::path(file).replace_extension(".jsonl").string()));
  int compared = 0;
  for (std::string line; std::getline(lines, line); ++compared) {
    ordered_json row = ordered_json::parse(line);
    INFO(row["name"], row["messages"].dump(-1, ' ', true));
    std::string text = render_template_row(chat, row);
    // What the template has no word of, transformers leaves out without one.
    if (text.find("the model's chat template has no tools") != std::string::npos) {
      row["tools"] = nullptr;
      text = render_template_row(chat, row);
    }
    if (text.find("the model's chat template has no tool calls") != std::string::npos) {
      for (ordered_json& message : row["messages"]) message.erase("tool_calls");
      text = render_template_row(chat, row);
    }
    if (row.contains("error")) {
      CHECK(text.starts_with("error: "));
    } else {
      CHECK(text == row["text"].get<std::string>());
    }
  }
  CHECK(compared >= 27);
}

int check_templates(const std::string& folder) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".jinja") {
      check_template(entry.path());
      ++files;
    }
  return files;
}

std::string render(std::string_view source, const ordered_json& variables = ordered_json::object()) {
  return moxie::jinja::Template(source).render(variables, {2026, 1, 15, 12, 34, 56});
}

}  // namespace

TEST_CASE("models' own templates give the text that transformers gives") {
  CHECK(check_templates(test::data_path("text/templates")) == 6);
  for (const char* folder : {"text/templates", "text/chat"})
    if (const auto path = test::shared_path(folder)) CHECK(check_templates(*path) >= 5);
}

TEST_CASE("Jinja is that of Jinja2") {
  std::istringstream lines(test::read_text(test::data_path("text/jinja.jsonl")));
  std::string line;
  std::getline(lines, line);
  const ordered_json variables = ordered_json::parse(line).at("variables");
  int compared = 0;
  for (; std::getline(lines, line); ++compared) {
    const ordered_json row = ordered_json::parse(line);
    const std::string source = row["template"].get<std::string>();
    CAPTURE(source);
    if (row.contains("error")) {
      CHECK_THROWS_AS(render(source, variables), moxie::Error);
    } else {
      CHECK(render(source, variables) == row["text"].get<std::string>());
    }
  }
  CHECK(compared > 180);
}

TEST_CASE("errors of templates say where and what") {
  CHECK_THROWS_WITH_AS(moxie::jinja::Template("a\n\n{% if x %}"), doctest::Contains("chat template, line 3: {% endif %} is missing"), moxie::FormatError);
  CHECK_THROWS_WITH_AS(moxie::jinja::Template("{{ a +* b }}"), doctest::Contains("an expression is missing, at \"*\""), moxie::FormatError);
  CHECK_THROWS_WITH_AS(moxie::jinja::Template("{% import 'x' %}"), doctest::Contains("no such tag here, at \"import\""), moxie::FormatError);
  CHECK_THROWS_WITH_AS(render("\n{{ x.y }}"), doctest::Contains("chat template, line 2: \"x\" is undefined"), moxie::ArgumentError);
  CHECK_THROWS_WITH_AS(render("{{ raise_exception('no system') }}"), "the model's chat template refuses the conversation: no system", moxie::ArgumentError);
  CHECK_THROWS_WITH_AS(render("{{ 1|crypt }}"), doctest::Contains("no filter \"crypt\""), moxie::UnsupportedError);
}

TEST_CASE("templates that would take all time, memory or stack are errors") {
  using moxie::ArgumentError;
  using moxie::FormatError;
  const auto many = [](std::size_t n, const std::string& part) {
    std::string out;
    for (std::size_t i = 0; i < n; ++i) out += part;
    return out;
  };
  for (const std::string& source : {"{{ " + many(100000, "(") + "1", "{{ " + many(100000, "-") + "1 }}", "{{ " + many(100000, "not ") + "1 }}",
                                    many(100000, "{% if 1 %}"), "{{ 1" + many(100000, "+1") + " }}", "{{ a" + many(100000, ".a") + " }}",
                                    "{{ a" + many(100000, "|e") + " }}", "{{ " + many(100000, "[") + " }}", "{{ 1" + many(100000, " if 1 else 1") + " }}",
                                    "{% if 1 %}" + many(100000, "{% elif 1 %}") + "{% endif %}", "{{ a" + many(100000, " is b") + " }}"}) {
    CAPTURE(source.substr(0, 20));
    CHECK_THROWS_AS(moxie::jinja::Template{source}, FormatError);
  }
  CHECK_THROWS_WITH_AS(render("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"), doctest::Contains("too deeply"), ArgumentError);
  const std::string loops = "{% for i in range(99999) %}", space = "{% set n = namespace(a=[], l=[]) %}";
  const auto grow = [&](int times, const std::string& value) {
    return space + "{% for i in range(" + std::to_string(times) + ") %}{% set n.a = " + value + " %}{% endfor %}";
  };
  for (const std::string& source : {
           loops + loops + loops + many(3, "{% endfor %}"),
           std::string("{{ 'x' * 1000000000000 }}"),
           std::string("{% set n = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"),
           std::string("{% set n = namespace(x=[1, 2]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"),
           grow(20000, "[n.a]"),
           grow(20000, "{'a': n.a}"),
           grow(20000, "(n.a, 1)"),
           grow(20000, "[n.a]|select"),
           grow(40, "[n.a, n.a]") + "{{ n.a }}",
           grow(40, "[n.a, n.a]") + "{{ n.a|tojson }}",
           grow(40, "[n.a, n.a]") + "{% set b = n.a %}" + grow(40, "[n.a, n.a]") + "{{ n.a == b }}",
           std::string("{% set x = 'x' * 60000000 %}{{ [x] * 100 }}"),
           std::string("{{ (['x' * 60000000] * 100)|tojson }}"),
           std::string("{{ [[[[[[1]]]]]]|tojson(indent='x' * 10000000) }}"),
           std::string("{% for c in 'x' * 60000000 %}{% endfor %}"),
           std::string("{{ ('x ' * 32000000).split()|length }}"),
           space + "{% for i in range(100) %}{% set n.l = n.l + ['x' * 60000000] %}{% endfor %}",
           space + "{% set b = [0] * 1000000 %}{% for i in range(1000) %}{% set n.l = n.l + [b + []] %}{% endfor %}",
           std::string("{{ range(100000)|map('string')|unique|list }}"),
           std::string("{% set x = 'x' * 25000 %}{% for i in range(100000) %}{% for j in range(100) %}{% set y = x[0] %}{% endfor %}{% endfor %}"),
           std::string("{% set x = 'x' * 60000000 %}{% for i in range(20) %}{% set y = x|upper %}{% endfor %}"),
           std::string("{{ 'x'.strip('b' * 200000) }}"),
           std::string("{{ '%d' % 1e300 }}"),
           std::string("{{ 1|round(-1) }}"),
       }) {
    CAPTURE(source);
    CHECK_THROWS_AS(render(source), ArgumentError);
  }
  // Products of lengths: no time to speak of.
  CHECK(render("{{ ('a' * 2000000).find('a' * 1000000 ~ 'b') }} {{ ('a' * 1000000 ~ 'b') in 'a' * 2000000 }} {{ ('a' * 2000000).rfind('b' ~ 'a' * 1000000) }}") == "-1 False -1");
  // Namespaces that hold each other are freed.
  CHECK(render("{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = m %}{{ n.m.n is defined }}") == "True");
  CHECK_THROWS_AS(render("{{ 9223372036854775807 + 1 }}"), moxie::Error);
  CHECK_THROWS_AS(render("{{ 10 ** 18 * 10 }}"), ArgumentError);
  CHECK_THROWS_AS(render("{{ (0 - 9 * 10 ** 18 - 223372036854775808) // -1 }}"), ArgumentError);
  ordered_json deep = 1;
  for (int i = 0; i < 100000; ++i) deep = ordered_json::array({std::move(deep)});
  CHECK_THROWS_WITH_AS(render("{{ deep }}", {{"deep", std::move(deep)}}), doctest::Contains("too deeply"), ArgumentError);
}

TEST_CASE("what a broken template is told does not depend on luck: no cut or changed template ends otherwise than in a text or an error") {
  const std::string whole = test::read_text(test::data_path("text/templates/ibm-granite-granite-4.0.jinja"));
  std::istringstream lines(test::read_text(test::data_path("text/templates/ibm-granite-granite-4.0.jsonl")));
  std::string line;
  std::getline(lines, line);
  const ordered_json row = ordered_json::parse(line);
  unsigned state = 1;
  int rendered = 0, refused = 0;
  for (int i = 0; i < 600; ++i) {
    std::string source = whole;
    for (int k = 0; k < 1 + i % 3; ++k) {
      state = state * 1664525u + 1013904223u;
      const std::size_t at = (state >> 8) % source.size();
      if (i % 3 == 0) source.resize(at);
      else if (i % 3 == 1) source[at] = "{}%-'\"()[]|.,=~ \n\\a0"[state % 20];
      else source.erase(at, 1 + state % 5);
      if (source.empty()) source = "x";
    }
    try {
      const moxie::ChatTemplate chat(source);
      chat.render(row["messages"]);
      ++rendered;
    } catch (const moxie::Error&) {
      ++refused;
    }
  }
  CHECK(rendered > 20);
  CHECK(refused > 200);
}

TEST_CASE("a template is told what the conversation is, and refuses tools that it would drop") {
  const moxie::ChatTemplate plain("{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.name }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ flavour }}");
  moxie::Message named{"user", "Hi"};
  named.more = {{"name", "-Ada"}};
  moxie::ChatOptions options;
  options.bos = "<s>";
  options.template_kwargs = {{"flavour", "!"}};
  CHECK(plain.render(std::span(&named, 1), options) == "<s><user>Hi-Ada<assistant>!");
  options.continue_final_message = true;
  CHECK(plain.render(std::span(&named, 1), options) == "<s><user>Hi");
  options.tools = ordered_json::parse(R"([{"type":"function","function":{"name":"f"}}])");
  CHECK_THROWS_WITH_AS(plain.render(std::span(&named, 1), options), doctest::Contains("has no tools"), moxie::ArgumentError);
  moxie::Message call{"assistant", "x"};
  call.tool_calls = options.tools;
  CHECK_THROWS_WITH_AS(plain.render(std::span(&call, 1)), doctest::Contains("has no tool calls"), moxie::ArgumentError);
  CHECK_THROWS_AS(plain.render(ordered_json::array()), moxie::ArgumentError);
  CHECK_THROWS_AS(plain.render(ordered_json::parse(R"([{"content":"x"}])")), moxie::ArgumentError);
  options = {};
  options.template_kwargs = {{"messages", ordered_json::array()}};
  options.continue_final_message = true;
  CHECK_THROWS_WITH_AS(plain.render(std::span(&named, 1), options), doctest::Contains("cannot have \"messages\""), moxie::ArgumentError);
  ordered_json deep = 1;
  for (int i = 0; i < 100000; ++i) deep = ordered_json::array({std::move(deep)});
  CHECK_THROWS_WITH_AS(plain.render(ordered_json::array({{{"role", "user"}, {"content", std::move(deep)}}})), doctest::Contains("too deeply"), moxie::ArgumentError);
  options = {};
  options.continue_final_message = true;
  CHECK(plain.render(ordered_json::parse(R"([{"role":"user","content":[{"type":"text","text":"abc"},{"type":"image"}]}])"), options) == "<user>[{'type': 'text', 'text': 'abc");
  options = {};
  options.date = "2026-02-30";
  CHECK_THROWS_AS(plain.render(std::span(&named, 1), options), moxie::ArgumentError);

  const moxie::ChatTemplate thinks("{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}{% endfor %}{{ enable_thinking }}{{ strftime_now('%d %B %Y') }}");
  options.date = "2026-02-03";
  options.enable_thinking = false;
  CHECK(thinks.render(ordered_json::parse(R"([{"role":"assistant","content":"x","reasoning":"so"}])"), options) == "so|soFalse03 February 2026");

  const std::string harmony = test::read_text(test::data_path("text/templates/gptoss.jinja"));
  const moxie::Message answer = moxie::ChatTemplate(harmony).answer_message("<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello!");
  CHECK(answer.reasoning_content == "They greet.");
  CHECK(answer.content == "Hello!");
  CHECK(plain.answer_message("<think>a</think>b").content == "<think>a</think>b");
}
