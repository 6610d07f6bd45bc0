#pragma once
// moxie score: log-probabilities and entropies of given sequences, one JSON line for each.
//
// Lines of moxie rollout are sequences too: with --temperature as in the rollout, the logprobs of the completion's tokens are the
// digits that the rollout printed. --routes-from uses recorded experts instead of the router's choice
// (moxie/grpo/routes_file.hpp), --ref adds ref_logprobs, of another model with its own routes, and kl, the k3 estimate for each
// token.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <moxie/grpo/kl.hpp>

#include "common.hpp"
#include "score_lines.hpp"
#include "text_io.hpp"

namespace tool {

struct ScoreOptions {
  std::string model, file, out, routes_from, ref;
  CommonOptions common;
  AdapterOptions adapter;
  std::int64_t top = 0;
  bool routes = false;
  float temperature = 1.0f;
};

/// routes or route_weights: [MoE layer][T][K].
template <class At>
void append_routes(std::string& out, const moxie::Model& model, std::int64_t tokens, At&& at) {
  append_list(out, model.config().n_moe_layers(), [&](std::int64_t layer) {
    append_list(out, tokens, [&](std::int64_t t) {
      append_list(out, model.config().moe.router.top_k, [&](std::int64_t k) { append_json(out, at(layer, t, k)); });
    });
  });
}

inline std::string score_line(const moxie::Model& model, const std::vector<std::int32_t>& ids,
                              const moxie::grpo::SequenceLogprobs& scores, const std::vector<float>* ref,
                              const ScoreOptions& options) {
  std::string out = "{\"ids\":";
  append_json_list(out, ids);
  out += ",\"logprobs\":";
  append_json_list(out, scores.logprobs);
  out += ",\"entropy\":";
  append_json_list(out, scores.entropy);
  if (ref) {
    out += ",\"ref_logprobs\":";
    append_json_list(out, *ref);
    out += ",\"kl\":";
    append_list(out, static_cast<std::int64_t>(ref->size()), [&](std::int64_t t) {
      const auto i = static_cast<std::size_t>(t);
      append_json(out, static_cast<float>(
                           moxie::grpo::k3(static_cast<double>(scores.logprobs[i]), static_cast<double>((*ref)[i])).value));
    });
  }
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
    append_routes(out, model, tokens,
                  [&](std::int64_t layer, std::int64_t t, std::int64_t k) { return scores.routes.ids(layer)(t, k); });
    out += ",\"route_weights\":";
    append_routes(out, model, tokens,
                  [&](std::int64_t layer, std::int64_t t, std::int64_t k) { return scores.routes.weights(layer)(t, k); });
  }
  return out + "}\n";
}

inline int score(const ScoreOptions& options) {
  take_interrupts();
  JsonLines lines(options.file);
  std::vector<ScoreLine> all = read_score_lines(lines);
  std::optional<JsonLines> route_lines;
  if (!options.routes_from.empty()) read_route_lines(route_lines.emplace(options.routes_from), all);
  const moxie::Model model = load_model(options.model, options.common, options.adapter);
  encode_score_lines(model, all);
  check_score_lines(model, lines, all);
  if (route_lines) check_routes(model, *route_lines, all);
  std::optional<moxie::Model> reference;
  if (!options.ref.empty()) {
    reference = load_model(options.ref, options.common);
    if (reference->config().vocab_size != model.config().vocab_size)
      throw moxie::ArgumentError({options.ref, {}, {}}, "has a vocabulary of " + std::to_string(reference->config().vocab_size) +
                                                            " tokens, the model of " + std::to_string(model.config().vocab_size) +
                                                            ": it cannot be its reference");
    check_score_lines(*reference, lines, all);
  }
  Output output(options.out);

  std::int64_t total = 0, done = 0, scored = 0;
  const std::int64_t passes = reference ? 2 : 1;
  for (const ScoreLine& line : all) total += static_cast<std::int64_t>(line.ids.size());
  double sum = 0.0, kl = 0.0, seconds = 0.0;
  {
    Progress bar("scoring");
    moxie::grpo::LogprobOptions what;
    what.temperature = options.temperature;
    what.batch = options.common.batch;
    what.progress = [&](std::int64_t part, std::int64_t) {
      stop_when_interrupted();
      bar(done + part, passes * total);
    };
    // Scored and written in parts: enough sequences to keep the batch full, few enough for their results to stay small.
    constexpr std::int64_t part_tokens = 16384;
    for (std::size_t first = 0; first < all.size();) {
      std::vector<std::vector<std::int32_t>> part;
      std::vector<moxie::RoutingTrace> replay;
      std::int64_t tokens = 0;
      for (; first < all.size() && (part.empty() || tokens < part_tokens); ++first) {
        tokens += static_cast<std::int64_t>(all[first].ids.size());
        if (route_lines) replay.push_back(routes_of(model, *route_lines, all[first]));
        part.push_back(std::move(all[first].ids));
      }
      const auto start = std::chrono::steady_clock::now();
      moxie::grpo::LogprobOptions policy = what;
      policy.top_n = options.top;
      policy.record_routes = options.routes;
      policy.replay = replay;
      const std::vector<moxie::grpo::SequenceLogprobs> scores = moxie::grpo::logprobs(model, part, policy);
      done += tokens;
      std::vector<moxie::grpo::SequenceLogprobs> ref;
      if (reference) {
        ref = moxie::grpo::logprobs(*reference, part, what);
        done += tokens;
      }
      seconds += seconds_since(start);
      for (std::size_t i = 0; i < part.size(); ++i) {
        output.write(score_line(model, part[i], scores[i], reference ? &ref[i].logprobs : nullptr, options));
        for (const float logprob : scores[i].logprobs) sum += static_cast<double>(logprob);
        for (std::size_t t = 0; reference && t < ref[i].logprobs.size(); ++t)
          kl += moxie::grpo::k3(static_cast<double>(scores[i].logprobs[t]), static_cast<double>(ref[i].logprobs[t])).value;
        scored += static_cast<std::int64_t>(scores[i].logprobs.size());
      }
    }
  }
  output.finish();
  if (scored > 0)
    std::fprintf(stderr, "perplexity %.6g over %lld tokens; ", std::exp(-sum / static_cast<double>(scored)),
                 static_cast<long long>(scored));
  if (reference && scored > 0) std::fprintf(stderr, "KL to the reference %.6g a token; ", kl / static_cast<double>(scored));
  std::fprintf(stderr, "%lld tokens of %zu sequences in %.2f s, %.1f tokens/s\n", static_cast<long long>(total), all.size(),
               seconds, per_second(total, seconds));
  return 0;
}

inline void add_score(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("score", "log-probabilities and entropies of sequences, one JSON line for each");
  auto options = std::make_shared<ScoreOptions>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command
      .add_option(
          "FILE", options->file,
          R"(JSON lines: {"ids":[..]}, {"text":".."}, {"prompt":"..","completion":".."} or those of moxie rollout; "-": standard input)")
      ->required();
  command.add_option("--top", options->top, "also the N most probable tokens of each position")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 20));
  command.add_flag("--routes", options->routes, "also the experts of each token, and their weights");
  command.add_option("--routes-from", options->routes_from,
                     "lines of moxie rollout --routes, or of moxie score --routes: use these experts");
  command.add_option("--ref", options->ref,
                     "a reference model, without --adapter: also its logprobs, and the k3 estimate of the KL divergence from it");
  command.add_option("--temperature", options->temperature, "logits are divided by this")
      ->check(number_range(1e-3, 1e3))
      ->capture_default_str();
  command.add_option("--out", options->out, "a file to write instead of standard output; it appears when all is done");
  options->adapter.add(command);
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return score(*options); }; });
}

}  // namespace tool
