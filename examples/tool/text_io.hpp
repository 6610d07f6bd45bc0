#pragma once
// JSON lines in, JSON out, with every error of reading and writing reported.
//
// Floating-point numbers are written with the fewest digits that give the same float again.

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/io/json_text.hpp>

namespace tool {

/// The objects of a file of JSON lines ("-": standard input). Blank lines are passed over.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path) : name_(path == "-" ? "standard input" : path), in_(&std::cin) {
    if (path == "-") return;
    std::error_code error;
    if (std::filesystem::is_directory(path, error))
      throw moxie::SystemError({path, {}, {}}, "is a folder; name a file of JSON lines");
    file_.open(path, std::ios::binary);
    if (!file_) throw moxie::SystemError({path, {}, {}}, std::string("cannot open the file: ") + std::strerror(errno));
    in_ = &file_;
  }

  /// The next object; false at the end. Throws FormatError that names file and line.
  bool next(nlohmann::json& object) {
    while (std::getline(*in_, text_)) {
      ++line_;
      if (text_.find_first_not_of(" \t\r") == std::string::npos) continue;
      parse(text_, object);
      if (!object.is_object()) fail(std::string("must be a JSON object, is ") + object.type_name());
      return true;
    }
    if (in_->bad()) throw moxie::SystemError({name_, {}, {}}, "cannot read");
    return false;
  }

  std::size_t line() const noexcept { return line_; }
  const std::string& text() const noexcept { return text_; }  ///< the object's, as it stands in the file
  std::string place(std::size_t line) const { return name_ + ":" + std::to_string(line); }
  [[noreturn]] void fail(const std::string& message) const { throw moxie::FormatError({place(line_), {}, {}}, message); }

 private:
  void parse(const std::string& text, nlohmann::json& object) const {
    moxie::check_json_bounds(text, place(line_), 50'000'000);
    try {
      object = nlohmann::json::parse(text);
    } catch (const nlohmann::json::exception& error) {
      std::string message = moxie::json_error_text(error.what());
      const auto* syntax = dynamic_cast<const nlohmann::json::parse_error*>(&error);
      if (const auto column = message.find("column "); column != std::string::npos)
        if (const auto colon = message.find(": ", column); colon != std::string::npos) message.erase(0, colon + 2);
      throw moxie::FormatError(
          {place(line_), "JSON", syntax && syntax->byte > 0 ? std::optional<std::uint64_t>(syntax->byte - 1) : std::nullopt},
          message);
    }
  }

  std::string name_;
  std::ifstream file_;
  std::istream* in_;
  std::string text_;
  std::size_t line_ = 0;
};

/// Token ids of a JSON array. Throws FormatError that names file and line.
inline std::vector<std::int32_t> read_ids(const JsonLines& lines, const nlohmann::json& object, const char* key) {
  const nlohmann::json& array = object[key];
  if (!array.is_array()) lines.fail(std::string("\"") + key + "\" must be an array of token ids, is " + array.type_name());
  std::vector<std::int32_t> ids;
  for (const nlohmann::json& id : array) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<std::int32_t>::max())
      lines.fail(std::string("\"") + key + "\" holds " +
                 id.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 80) + ", which is no token id");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

/// That a model can take the ids of this line. Throws FormatError that names file and line.
inline void check_ids(const moxie::Model& model, const JsonLines& lines, std::size_t line, const std::vector<std::int32_t>& ids) {
  const moxie::ModelConfig& config = model.config();
  for (const std::int32_t id : ids)
    if (id >= config.vocab_size)
      throw moxie::FormatError(
          {lines.place(line), {}, {}},
          "token id " + std::to_string(id) + " is outside the model's vocabulary of " + std::to_string(config.vocab_size));
  if (static_cast<std::int64_t>(ids.size()) > config.context_length)
    throw moxie::FormatError({lines.place(line), {}, {}}, "has " + std::to_string(ids.size()) + " tokens; the context of " +
                                                              model.info().path + " is " + std::to_string(config.context_length));
}

/// Standard output, or a file that appears under its name when finish() is called.
class Output {
 public:
  explicit Output(const std::string& path = {}) {
    if (!path.empty()) file_ = std::make_unique<moxie::AtomicFile>(path);
  }

  void write(std::string_view text) {
    if (file_) return file_->write(text.data(), text.size());
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
      throw moxie::SystemError({"standard output", {}, {}}, std::string("cannot write: ") + std::strerror(errno));
  }
  void finish() {
    if (file_) file_->commit();
  }

 private:
  std::unique_ptr<moxie::AtomicFile> file_;
};

template <class T>
void append_number(std::string& out, T value) {
  char digits[32];
  out.append(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}
inline void append_json(std::string& out, std::int32_t value) { append_number(out, value); }
inline void append_json(std::string& out, std::int64_t value) { append_number(out, value); }
inline void append_json(std::string& out, float value) {
  if (!std::isfinite(value))
    throw moxie::Error("the model's output is not finite: its weights are broken, or too large for these activations");
  append_number(out, value);
}
inline void append_json(std::string& out, std::string_view text) {
  out += nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}
/// [f(0), f(1), ..]
template <class F>
void append_list(std::string& out, std::int64_t n, F&& f) {
  out += '[';
  for (std::int64_t i = 0; i < n; ++i) {
    if (i > 0) out += ',';
    f(i);
  }
  out += ']';
}
template <class Range>
void append_json_list(std::string& out, const Range& values) {
  append_list(out, static_cast<std::int64_t>(values.size()),
              [&](std::int64_t i) { append_json(out, values[static_cast<std::size_t>(i)]); });
}

}  // namespace tool
