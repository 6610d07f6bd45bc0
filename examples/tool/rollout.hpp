#pragma once
// moxie rollout: groups of completions of prompts, one JSON line for each, in the order of prompts and members.
//
//   prompt_index, index      which prompt, and which completion of its group (vLLM's CompletionOutput.index), from 0
//   prompt, prompt_ids       a text or messages as given, or null; the token ids
//   seed, sampling           what the completion was drawn with, by the names of vLLM's SamplingParams
//   system_fingerprint       what else decides its bits: hashes of model and adapter, types of activations and KV cache, kernels
//   completion_ids, text     an end-of-sequence token is the last id, and no part of the text; null without a tokenizer
//   logprobs                 nats, of the tokens under the policy at the sampling temperature, over the whole vocabulary
//   kept                     the mass that top-k, top-p and min-p kept at each token
//   sampler_logprobs         nats, under what was drawn from: after penalties and truncation, renormalized
//   finish_reason            "stop" or "length"
//   routed_experts           with --routes: see moxie/grpo/routing_record.hpp
//
// Other fields of a prompt's line follow, such as the answer that a reward function compares with (as JSON values: integers that
// need more than 64 bits become floating-point numbers). The names are TRL's and vLLM's where they have one. A completion depends
// on the model, the options and its two numbers only, so a run that was killed goes on with the next line. A file whose lines are
// of another model, adapter, precision, options or prompts is refused, and so is one that is no rollout.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/text/stream_decoder.hpp>

#include "common.hpp"
#include "fingerprint.hpp"
#include "generate.hpp"
#include "prompts.hpp"
#include "resumable_file.hpp"
#include "text_io.hpp"

namespace tool {

struct RolloutCommand {
  std::string model, file, out;
  CommonOptions common;
  AdapterOptions adapter;
  ChatArguments chat;
  moxie::GenerateOptions generate;
  std::int64_t group = 8;
  std::uint64_t kv_budget = 0;
  bool routes = false;
  std::string fingerprint = {};  ///< of the loaded model
};

/// What is known of a completion's line before it is drawn: it is begin, system, what was drawn, end.
struct RolloutLineFrame {
  std::string begin;   ///< up to the value of system_fingerprint
  std::string system;  ///< that value, and the next key
  std::string end;
};

inline RolloutLineFrame rollout_line_frame(const RolloutCommand& command, const Prompt& prompt, std::int64_t prompt_index,
                                           std::int64_t index) {
  const moxie::GenerateOptions& g = command.generate;
  std::string out = "{\"prompt_index\":";
  append_json(out, prompt_index);
  out += ",\"index\":";
  append_json(out, index);
  out += ",\"prompt\":" + prompt.given.dump() + ",\"prompt_ids\":";
  append_json_list(out, prompt.ids);
  out += ",\"seed\":" + std::to_string(g.seed) + ",\"sampling\":{\"temperature\":";
  append_json(out, g.temperature);
  out += ",\"top_k\":";
  append_json(out, g.top_k);
  for (const auto& [key, value] :
       {std::pair("top_p", g.top_p), std::pair("min_p", g.min_p), std::pair("repetition_penalty", g.repetition_penalty),
        std::pair("presence_penalty", g.presence_penalty), std::pair("frequency_penalty", g.frequency_penalty)}) {
    out += std::string(",\"") + key + "\":";
    append_json(out, value);
  }
  out += ",\"max_tokens\":";
  append_json(out, g.max_tokens);
  out += std::string(",\"ignore_eos\":") + (g.ignore_eos ? "true" : "false") + "},\"system_fingerprint\":";
  return {std::move(out), '"' + command.fingerprint + "\",\"completion_ids\":", prompt.others + '}'};
}

inline std::string rollout_line(const moxie::Model& model, const RolloutLineFrame& frame, bool routes,
                                const moxie::grpo::Completion& completion) {
  std::string out = frame.begin + frame.system;
  append_json_list(out, completion.ids);
  out += ",\"text\":";
  if (model.has_tokenizer()) {
    moxie::StreamDecoder decoder(model.tokenizer());
    std::string text;
    const bool ended = completion.finish == moxie::FinishReason::stop;
    for (std::size_t i = 0; i + (ended ? 1 : 0) < completion.ids.size(); ++i) text += decoder.add(completion.ids[i]);
    append_json(out, std::string_view(text += decoder.finish()));
  } else {
    out += "null";
  }
  out += ",\"logprobs\":";
  append_json_list(out, completion.logprobs);
  out += ",\"kept\":";
  append_json_list(out, completion.kept);
  out += ",\"sampler_logprobs\":";
  append_json_list(out, completion.sampler_logprobs);
  out += ",\"finish_reason\":";
  append_json(out, moxie::name(completion.finish));
  if (routes) {
    out += ",\"routed_experts\":";
    append_json(out, std::string_view(completion.routes.text()));
  }
  return out + frame.end + '\n';
}

/// Whether a line may stand in this frame; of one that is not whole, as far as it goes.
inline bool fits(std::string_view line, bool whole, const RolloutLineFrame& frame, bool routes) {
  const std::string begin = frame.begin + frame.system;
  if (!whole && line.size() < begin.size()) return begin.starts_with(line);
  if (!line.starts_with(begin)) return false;
  if (!whole) return true;
  if (!line.ends_with(frame.end) || line.size() < begin.size() + frame.end.size()) return false;
  line = line.substr(begin.size(), line.size() - begin.size() - frame.end.size());
  // Its last field is the last of the program's own: quotes in texts have a backslash, so that they cannot be taken for it.
  const std::string_view last = routes ? ",\"routed_experts\":\"" : ",\"finish_reason\":\"";
  const std::size_t at = line.rfind(last);
  return at != line.npos && line.find('"', at + last.size()) == line.size() - 1;
}

/// Lines in order, to a file that a later run goes on with, or to standard output.
class RolloutWriter {
 public:
  explicit RolloutWriter(const std::string& path) {
    if (!path.empty()) file_ = std::make_unique<ResumableFile>(path);
  }

  /// Keeps the lines that are there; frame(i) is that of line i. Returns their number.
  template <class F>
  std::int64_t resume(std::int64_t total, const RolloutCommand& command, F&& frame) {
    if (!file_) return 0;
    next_ = file_->resume([&](std::string_view line, std::int64_t i, bool whole) {
      const RolloutLineFrame expected = i < total ? frame(i) : RolloutLineFrame();
      if (i < total && fits(line, whole, expected, command.routes)) return;
      if (const std::size_t at = expected.begin.size(); i < total && line.starts_with(expected.begin + '"')) {
        const std::string there(line.substr(at + 1, line.find('"', at + 1) - at - 1));
        if (there != command.fingerprint)
          throw moxie::FormatError({file_->place(i), {}, {}},
                                   "is a completion of \"" + there + "\", this command has \"" + command.fingerprint +
                                       "\" (model, adapter, activations, KV cache, kernels); run it with the same, give another "
                                       "--out, or remove the file");
      }
      throw moxie::FormatError({file_->place(i), {}, {}},
                               "is not what this command would write there: it is of other prompts or options, or no rollout; "
                               "give another --out, or remove the file");
    });
    return next_;
  }
  void write(std::int64_t i, std::string line) {
    waiting_.emplace(i, std::move(line));
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_; first = waiting_.erase(first), ++next_)
      file_ ? file_->write(first->second) : output_.write(first->second);
  }
  void finish() { file_ ? file_->finish() : output_.finish(); }

 private:
  std::unique_ptr<ResumableFile> file_;
  Output output_;
  std::map<std::int64_t, std::string> waiting_;
  std::int64_t next_ = 0;
};

inline int rollout(RolloutCommand command) {
  take_interrupts();
  JsonLines lines(command.file);
  std::vector<Prompt> prompts =
      read_prompts(lines, {"prompt_index", "index", "prompt", "prompt_ids", "seed", "sampling", "completion_ids", "text",
                           "logprobs", "kept", "sampler_logprobs", "finish_reason", "routed_experts", "system_fingerprint"});
  const moxie::Model model = load_model(command.model, command.common, command.adapter);
  command.fingerprint = system_fingerprint(model);
  std::vector<std::vector<std::int32_t>> ids;
  for (Prompt& prompt : prompts) {
    prompt.encode(model, lines, command.chat.options);
    ids.push_back(prompt.ids);
  }

  const auto total = static_cast<std::int64_t>(prompts.size()) * command.group;
  const auto prompt_of = [&](std::int64_t i) -> const Prompt& { return prompts[static_cast<std::size_t>(i / command.group)]; };
  const auto frame = [&](std::int64_t i) {
    return rollout_line_frame(command, prompt_of(i), i / command.group, i % command.group);
  };
  RolloutWriter writer(command.out);
  const std::int64_t done = writer.resume(total, command, frame);

  moxie::grpo::RolloutOptions options;
  options.group_size = command.group;
  options.generate = command.generate;
  options.batch = command.common.batch;
  options.kv_budget_bytes = command.kv_budget;
  options.record_routes = command.routes;
  options.skip = done;
  moxie::grpo::RolloutProgress last;
  const auto start = std::chrono::steady_clock::now();
  {
    Progress bar("rollout");
    options.progress = [&](const moxie::grpo::RolloutProgress& progress) {
      stop_when_interrupted();
      last = progress;
      bar(progress.completions - done, progress.total - done);
    };
    moxie::grpo::rollout(model, ids, options, [&](std::size_t prompt, std::int64_t member, moxie::grpo::Completion&& completion) {
      const std::int64_t i = static_cast<std::int64_t>(prompt) * command.group + member;
      writer.write(i, rollout_line(model, frame(i), command.routes, completion));
    });
  }
  writer.finish();
  const double seconds = seconds_since(start);
  std::fprintf(stderr, "%lld completions of %zu prompts", static_cast<long long>(total - done), prompts.size());
  if (done > 0) std::fprintf(stderr, " (%lld were there)", static_cast<long long>(done));
  std::fprintf(stderr, "; %lld tokens in %.2f s, %.1f tokens/s\n", static_cast<long long>(last.tokens), seconds,
               per_second(last.tokens, seconds));
  return 0;
}

inline void add_rollout(CLI::App& app, Run& run) {
  CLI::App& command =
      *app.add_subcommand("rollout", "groups of completions of prompts, one JSON line for each, with exact logprobs");
  auto options = std::make_shared<RolloutCommand>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command
      .add_option(
          "PROMPTS", options->file,
          R"(JSON lines: {"prompt":".."}, {"messages":[..]} or {"prompt_ids":[..]}; other fields are handed on; "-": standard input)")
      ->required();
  command.add_option("--group", options->group, "completions of each prompt")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command.add_option("-n,--max-tokens", options->generate.max_tokens, "tokens of a completion at most")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 40))
      ->capture_default_str();
  add_sampling_options(command, options->generate);
  command.add_flag("--ignore-eos", options->generate.ignore_eos, "do not stop at the end-of-sequence token");
  command.add_flag("--routes", options->routes, "also the experts of each token");
  command
      .add_option("--kv-budget", options->kv_budget,
                  "what the KV cache may take, as in 500MB or 4GB; more completions wait; 0: no limit")
      ->transform(CLI::AsSizeValue(false))
      ->transform(CLI::Validator(  // this one comes first: a minus would make a huge size
          [](std::string& text) {
            return text.find_first_of("0123456789") == 0 ? std::string() : text + " is no size, as in 500MB or 4GB";
          },
          ""));
  command.add_option("--out", options->out,
                     "a file to write instead of standard output; a run that was stopped goes on with what it has");
  options->common.batch = 32;
  options->chat.add(command);
  options->adapter.add(command);
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return rollout(*options); }; });
}

}  // namespace tool
