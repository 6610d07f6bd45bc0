#pragma once
// The input of moxie score: sequences, and the routes to replay for them.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/moxie.hpp>

#include "text_io.hpp"

namespace tool {

/// One line of input: ids, or texts to be encoded when the model is there.
struct ScoreLine {
  std::size_t line = 0;
  std::vector<std::int32_t> ids;
  std::optional<std::string> text, completion;
  std::size_t routes_line = 0;
  nlohmann::json routes;                                // the fields that read_routes looks for
  std::optional<std::vector<std::int32_t>> routes_ids;  // of the sequence that they are of
};

/// "ids", or "prompt_ids" and "completion_ids".
inline std::optional<std::vector<std::int32_t>> read_sequence(const JsonLines& lines, const nlohmann::json& object) {
  if (object.contains("completion_ids")) {
    if (!object.contains("prompt_ids")) lines.fail("\"prompt_ids\" and \"completion_ids\" go together");
    std::vector<std::int32_t> ids = read_ids(lines, object, "prompt_ids");
    const std::vector<std::int32_t> more = read_ids(lines, object, "completion_ids");
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  }
  if (object.contains("ids")) return read_ids(lines, object, "ids");
  return {};
}

/// All lines, so that a defect is reported before the model is loaded and anything is written.
inline std::vector<ScoreLine> read_score_lines(JsonLines& lines) {
  std::vector<ScoreLine> all;
  nlohmann::json object;
  while (lines.next(object)) {
    ScoreLine& line = all.emplace_back();
    line.line = lines.line();
    const auto text = [&](const char* key) {
      const nlohmann::json& value = object[key];
      if (!value.is_string()) lines.fail(std::string("\"") + key + "\" must be a string, is " + value.type_name());
      return value.get<std::string>();
    };
    const bool prompt = object.contains("prompt") || object.contains("completion");
    if (!object.contains("completion_ids") && int{object.contains("ids")} + int{object.contains("text")} + int{prompt} != 1)
      lines.fail(
          R"(must be {"ids":[..]}, {"text":".."}, {"prompt":"..","completion":".."} or {"prompt_ids":[..],"completion_ids":[..]})");
    if (auto ids = read_sequence(lines, object)) {
      line.ids = *std::move(ids);
    } else if (prompt) {
      if (!object.contains("prompt") || !object.contains("completion")) lines.fail("\"prompt\" and \"completion\" go together");
      line.text = text("prompt");
      line.completion = text("completion");
    } else {
      line.text = text("text");
    }
  }
  return all;
}

/// Gives every sequence the routes of the line at its place in the other file.
inline void read_route_lines(JsonLines& lines, std::vector<ScoreLine>& all) {
  nlohmann::json object;
  std::size_t n = 0;
  for (; lines.next(object); ++n) {
    if (n == all.size())
      lines.fail("only " + std::to_string(n) + " sequences are to be scored: these routes are of another file");
    if (!moxie::grpo::has_routes(object)) lines.fail("has no \"routed_experts\"; moxie rollout --routes writes them");
    all[n].routes_line = lines.line();
    all[n].routes_ids = read_sequence(lines, object);
    for (const char* key : {"routed_experts", "routes"})
      if (object.contains(key)) all[n].routes[key] = std::move(object[key]);
  }
  if (n < all.size())
    lines.fail("has the routes of " + std::to_string(n) + " sequences, " + std::to_string(all.size()) +
               " are to be scored: it is another file's, or cut off");
}

inline moxie::RoutingTrace routes_of(const moxie::Model& model, const JsonLines& lines, const ScoreLine& line) {
  try {
    return moxie::grpo::read_routes(line.routes, moxie::empty_trace(model), static_cast<moxie::Index>(line.ids.size()));
  } catch (const moxie::FormatError& error) {
    throw moxie::FormatError({lines.place(line.routes_line), {}, {}}, error.what());
  }
}

/// Before anything is scored.
inline void check_routes(const moxie::Model& model, const JsonLines& lines, const std::vector<ScoreLine>& all) {
  for (const ScoreLine& line : all) {
    if (line.routes_ids && *line.routes_ids != line.ids)
      throw moxie::FormatError({lines.place(line.routes_line), {}, {}},
                               "these routes are of other token ids than the sequence at this place");
    routes_of(model, lines, line);
  }
}

inline void encode_score_lines(const moxie::Model& model, std::vector<ScoreLine>& all) {
  for (ScoreLine& line : all) {
    if (line.text) line.ids = model.encode(*line.text);
    if (line.completion) {
      const std::vector<std::int32_t> more = model.tokenizer().encode(*line.completion);
      line.ids.insert(line.ids.end(), more.begin(), more.end());
    }
    line.text.reset();
    line.completion.reset();
  }
}

/// Before anything is scored.
inline void check_score_lines(const moxie::Model& model, const JsonLines& lines, const std::vector<ScoreLine>& all) {
  for (const ScoreLine& line : all) check_ids(model, lines, line.line, line.ids);
}

}  // namespace tool
