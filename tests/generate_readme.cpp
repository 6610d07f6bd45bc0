// What README.md says is supported is what the code has.

#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/model/family.hpp>
#include <moxie/quant/format_list.hpp>
#include <moxie/text/chat.hpp>

#include "shared.hpp"

namespace {

/// The cell of the table of supported things whose row begins with `name`.
std::string row(const std::string& name) {
  std::istringstream readme(test::read_text(std::string(MOXIE_SOURCE_DIR) + "/README.md"));
  const std::string begin = "| " + name + " | ";
  for (std::string line; std::getline(readme, line);)
    if (line.starts_with(begin)) return line.substr(begin.size(), line.size() - begin.size() - 2);
  return "README.md has no row " + name;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

template <class... Format>
std::vector<std::string> names_of(moxie::TypeList<Format...>) {
  return {Format::name...};
}

}  // namespace

TEST_CASE("the README's table lists the families, weight formats and chat formats that the code has") {
  std::vector<std::string> families, chats;
  for (const auto* family : moxie::families::all_families) families.emplace_back(family->name);
  for (const auto& format : moxie::chat::formats) chats.emplace_back(moxie::chat_format_name(format.format));
  CHECK(row("families") == joined(families));
  CHECK(row("weight formats") == joined(names_of(moxie::Formats())));
  CHECK(row("chat formats") == joined(chats));
}
