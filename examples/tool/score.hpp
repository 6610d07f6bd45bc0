#pragma once
// moxie score: log-probabilities and entropies of given sequences, one JSON line for each.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "text_io.hpp"

namespace tool {

struct ScoreOptions {
  std::string model, file, out;
  CommonOptions common;
  std::int64_t top = 0;
  bool routes = false;
  float temperature = 1.0f;
};

/// One line of input: ids, or texts to be encoded when the model is there.
struct ScoreLine {
  std::size_t line = 0;
  std::vector<std::int32_t> ids;
  std::optional<std::string> text, completion;
};

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
    if (int{object.contains("ids")} + int{object.contains("text")} + int{prompt} != 1)
      lines.fail(R"(must be {"ids":[..]}, {"text":".."} or {"prompt":"..","completion":".."})");
    if (prompt) {
      if (!object.contains("prompt") || !object.contains("completion")) lines.fail("\"prompt\" and \"completion\" go together");
      line.text = text("prompt");
      line.completion = text("completion");
    } else if (object.contains("text")) {
      line.text = text("text");
    } else {
      const nlohmann::json& ids = object["ids"];
      if (!ids.is_array()) lines.fail(std::string("\"ids\" must be an array of token ids, is ") + ids.type_name());
      for (const nlohmann::json& id : ids) {
        if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<std::int32_t>::max())
          lines.fail("\"ids\" holds " + id.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 80) + ", which is no token id");
        line.ids.push_back(id.get<std::int32_t>());
      }
    }
  }
  return all;
}

inline void encode_score_lines(const moxie::Model& model, const JsonLines& lines, std::vector<ScoreLine>& all) {
  for (ScoreLine& line : all) {
    if (line.text) line.ids = model.encode(*line.text);
    if (line.completion) {
      const std::vector<std::int32_t> more = model.tokenizer().encode(*line.completion);
      line.ids.insert(line.ids.end(), more.begin(), more.end());
    }
    line.text.reset();
    line.completion.reset();
    for (const std::int32_t id : line.ids)
      if (id >= model.config().vocab_size)
        throw moxie::FormatError({lines.place(line.line), {}, {}}, "token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                                                                       std::to_string(model.config().vocab_size));
  }
}

/// routes or route_weights: [MoE layer][T][K].
template <class At>
void append_routes(std::string& out, const moxie::Model& model, std::int64_t tokens, At&& at) {
  append_list(out, model.config().n_moe_layers(), [&](std::int64_t layer) {
    append_list(out, tokens, [&](std::int64_t t) {
      append_list(out, model.config().moe.router.top_k, [&](std::int64_t k) { append_json(out, at(layer, t, k)); });
    });
  });
}

inline std::string score_line(const moxie::Model& model, const std::vector<std::int32_t>& ids, const moxie::grpo::SequenceLogprobs& scores,
                              const ScoreOptions& options) {
  std::string out = "{\"ids\":";
  append_json_list(out, ids);
  out += ",\"logprobs\":";
  append_json_list(out, scores.logprobs);
  out += ",\"entropy\":";
  append_json_list(out, scores.entropy);
  const auto tokens = static_cast<std::int64_t>(ids.size());
  if (options.top > 0) {
    out += ",\"top\":";
    append_list(out, tokens, [&](std::int64_t t) {
      const auto& top = scores.top[static_cast<std::size_t>(t)];
      append_list(out, static_cast<std::int64_t>(top.size()), [&](std::int64_t i) {
        const moxie::TokenLogprob& token = top[static_cast<std::size_t>(i)];
        out += '[';
        append_json(out, token.id);
        out += ',';
        append_json(out, token.logprob);
        out += ']';
      });
    });
  }
  if (options.routes) {
    out += ",\"routes\":";
    append_routes(out, model, tokens, [&](std::int64_t layer, std::int64_t t, std::int64_t k) { return scores.routes.ids(layer)(t, k); });
    out += ",\"route_weights\":";
    append_routes(out, model, tokens, [&](std::int64_t layer, std::int64_t t, std::int64_t k) { return scores.routes.weights(layer)(t, k); });
  }
  return out + "}\n";
}

inline int score(const ScoreOptions& options) {
  take_interrupts();
  JsonLines lines(options.file);
  std::vector<ScoreLine> all = read_score_lines(lines);
  const moxie::Model model = load_model(options.model, options.common);
  encode_score_lines(model, lines, all);
  Output output(options.out);

  std::int64_t total = 0, done = 0, scored = 0;
  for (const ScoreLine& line : all) total += static_cast<std::int64_t>(line.ids.size());
  double sum = 0.0, seconds = 0.0;
  {
    Progress bar("scoring");
    moxie::grpo::LogprobOptions what;
    what.temperature = options.temperature;
    what.top_n = options.top;
    what.batch = options.common.batch;
    what.record_routes = options.routes;
    what.progress = [&](std::int64_t part, std::int64_t) {
      stop_when_interrupted();
      bar(done + part, total);
    };
    // Scored and written in parts: enough sequences to keep the batch full, few enough for their results to stay small.
    constexpr std::int64_t part_tokens = 16384;
    for (std::size_t first = 0; first < all.size();) {
      std::vector<std::vector<std::int32_t>> part;
      std::int64_t tokens = 0;
      for (; first < all.size() && (part.empty() || tokens < part_tokens); ++first) {
        tokens += static_cast<std::int64_t>(all[first].ids.size());
        part.push_back(std::move(all[first].ids));
      }
      const auto start = std::chrono::steady_clock::now();
      const std::vector<moxie::grpo::SequenceLogprobs> scores = moxie::grpo::logprobs(model, part, what);
      seconds += seconds_since(start);
      done += tokens;
      for (std::size_t i = 0; i < part.size(); ++i) {
        output.write(score_line(model, part[i], scores[i], options));
        for (const float logprob : scores[i].logprobs) sum += static_cast<double>(logprob);
        scored += static_cast<std::int64_t>(scores[i].logprobs.size());
      }
    }
  }
  output.finish();
  if (scored > 0) std::fprintf(stderr, "perplexity %.6g over %lld tokens; ", std::exp(-sum / static_cast<double>(scored)), static_cast<long long>(scored));
  std::fprintf(stderr, "%lld tokens of %zu sequences in %.2f s, %.1f tokens/s\n", static_cast<long long>(total), all.size(), seconds, per_second(total, seconds));
  return 0;
}

inline void add_score(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("score", "log-probabilities and entropies of sequences, one JSON line for each");
  auto options = std::make_shared<ScoreOptions>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command
      .add_option("FILE", options->file,
                  R"(JSON lines: {"ids":[..]}, {"text":".."} or {"prompt":"..","completion":".."}; "-": standard input)")
      ->required();
  command.add_option("--top", options->top, "also the N most probable tokens of each position")->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 20));
  command.add_flag("--routes", options->routes, "also the experts of each token, and their weights");
  command.add_option("--temperature", options->temperature, "logits are divided by this")->check(CLI::Range(1e-3, 1e3))->capture_default_str();
  command.add_option("--out", options->out, "a file to write instead of standard output; it appears when all is done");
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return score(*options); }; });
}

}  // namespace tool
