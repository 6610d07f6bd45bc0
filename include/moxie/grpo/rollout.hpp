#pragma once
// grpo::rollout: groups of completions of prompts, sampled together.
//
// The completions of one prompt share its KV pages: the prompt is run and stored once, and what follows it is stored for each
// completion. Completions run together up to a number and a memory budget; finished ones leave, waiting ones enter, in the order
// of prompts and members.
//
// Completion g of prompt p draws from the random stream (p, g) of the seed, so it is the same tokens and the same bits whatever
// the size of its group, the batch, the budget, the number of threads, and the other prompts.
//
// The budget is kept by counting what each completion may come to need:
//
//   pages of 64 positions = (shared, full pages of the prompt) + (pages of what follows it, up to max_tokens) for each that runs
//   recurrent states, of models that have them: those of each that runs, and of the prompt while others wait for their turn
//
// so a rollout that has begun never fails for want of it. A max_tokens far above what completions need lets fewer of them run
// together.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/generate/batch.hpp>
#include <moxie/grpo/routing_record.hpp>
#include <moxie/model/token_ids.hpp>

namespace moxie::grpo {

/// How far a rollout is.
struct RolloutProgress {
  std::int64_t completions = 0;  ///< finished
  std::int64_t total = 0;
  std::int64_t tokens = 0;  ///< drawn so far
};

/// What is drawn (group_size, generate, adapter, first_prompt) and how; the rest changes no token and no bit.
struct RolloutOptions {
  std::int64_t group_size = 8;
  GenerateOptions generate = {};    ///< stop texts are not supported
  std::int64_t batch = 32;          ///< completions that run together at most
  std::size_t kv_budget_bytes = 0;  ///< what KV pages and states may take together; 0: no limit
  const OutputAdapter* adapter = nullptr;
  bool record_routes = false;
  std::uint64_t first_prompt = 0;  ///< the number p of the first prompt, for the random streams
  std::int64_t skip = 0;           ///< the first completions, in the order of prompts and members, are not wanted
  /// Told after every step; may throw to stop.
  std::function<void(const RolloutProgress&)> progress = {};
};

/// A completion of n tokens; an end-of-sequence token is the last of them.
struct Completion {
  std::vector<std::int32_t> ids;  ///< [n]
  std::vector<float> logprobs;  ///< [n], nats, under the policy at the sampling temperature, over the whole vocabulary: the bits
                                ///< of grpo::logprobs
  std::vector<float> kept;      ///< [n], the mass that top_k, top_p and min_p kept
  std::vector<float> sampler_logprobs;  ///< [n], nats, under what was drawn from: after penalties and truncation, renormalized
  FinishReason finish = FinishReason::none;  ///< stop or length
  RoutingRecord routes;                      ///< when asked for: of prompt and completion without its last token
};
/// The completions of a prompt, by member.
struct RolloutGroup {
  std::vector<Completion> completions;  ///< [group_size]
};

/// The random stream of completion `member` of prompt `prompt`; both below 2^32.
constexpr std::uint64_t rollout_stream(std::uint64_t prompt, std::uint64_t member) noexcept { return prompt << 32 | member; }

namespace detail {

class Rollout {
 public:
  Rollout(const Model& model, std::span<const std::vector<std::int32_t>> prompts, const RolloutOptions& options)
      : model_(model),
        prompts_(prompts),
        options_(options),
        batch_(model, {.kv_budget_bytes = options.kv_budget_bytes,
                       .record_routes = options.record_routes,
                       .adapter = options.adapter,
                       .name = [this](Batch::Id id) { return name_of(id); }}) {
    check();
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    if (options.kv_budget_bytes != 0 && options.kv_budget_bytes < static_cast<std::size_t>(most))
      budget_ = static_cast<std::int64_t>(options.kv_budget_bytes);
    for (std::size_t p = 0; p < prompts.size(); ++p) queue(p);
    progress_.total = progress_.completions = options.skip;
    for (const Group& group : waiting_) progress_.total += group.waiting();
  }

  template <class F>
  void run(F&& finished) {
    while (admit()) {
      batch_.step();
      progress_.tokens = 0;
      for (Group& group : groups_) {
        std::erase_if(group.running, [&](const Running& running) {
          const Batch::Sequence& sequence = batch_.at(running.id);
          if (sequence.finish == FinishReason::none) {
            progress_.tokens += static_cast<std::int64_t>(sequence.samples.size());
            return false;
          }
          finished_tokens_ += static_cast<std::int64_t>(sequence.samples.size());
          ++progress_.completions;
          finished(group.prompt, running.member, completion(sequence));
          batch_.remove(running.id);
          return true;
        });
      }
      std::erase_if(groups_, [](const Group& group) { return group.running.empty() && group.waiting() == 0; });
      progress_.tokens += finished_tokens_;
      if (options_.progress) options_.progress(progress_);
    }
  }

 private:
  /// What errors call a sequence of the batch.
  std::string name_of(Batch::Id id) const {
    for (const Group& group : groups_)
      for (const Running& running : group.running)
        if (running.id == id) return concat("completion ", running.member, " of prompt ", group.prompt);
    return "a completion";
  }

  struct Running {
    std::int64_t member;
    Batch::Id id;
  };
  /// Completions that share the pages of their prompt.
  struct Group {
    std::size_t prompt;
    std::int64_t next, end;            // members that wait
    std::vector<Batch::Id> held = {};  // their sequences when the group has entered the batch, the next one last
    std::vector<Running> running = {};
    // Bytes: of the prompt's full pages; of its last one that is not full and its recurrent states, for completions that wait; of
    // each completion's pages after the full ones and its states.
    std::int64_t shared = 0, tail = 0, own = 0;

    std::int64_t waiting() const noexcept { return end - next; }
    std::int64_t bytes(std::int64_t n_running, std::int64_t n_waiting) const noexcept {
      return shared + (n_waiting > 0 ? tail : 0) + own * n_running;
    }
    std::int64_t bytes() const noexcept { return bytes(static_cast<std::int64_t>(running.size()), waiting()); }
  };

  void check() const {
    options_.generate.check();
    const auto need = [](bool holds, const std::string& message) {
      if (!holds) throw ArgumentError(message);
    };
    if (!options_.generate.stop.empty()) throw ArgumentError("stop texts are not supported in a rollout");
    need(options_.group_size >= 1 && options_.group_size <= std::int64_t{1} << 31,
         concat("group_size must be 1 to 2^31, got ", options_.group_size));
    need(options_.batch >= 1, concat("batch must be at least 1 completion, got ", options_.batch));
    need(options_.skip >= 0, concat("skip must be 0 or more, got ", options_.skip));
    constexpr std::uint64_t most = std::uint64_t{1} << 32;
    need(prompts_.size() <= most && options_.first_prompt <= most - prompts_.size(), "prompts are numbered below 2^32");
    const ModelConfig& config = model_.config();
    for (std::size_t p = 0; p < prompts_.size(); ++p) {
      const std::string name = concat("prompt ", p);
      need(!prompts_[p].empty(), concat(name, " has no tokens"));
      need(static_cast<std::int64_t>(prompts_[p].size()) <= config.context_length,
           concat(name, " has ", prompts_[p].size(), " tokens; the model's context is ", config.context_length));
      const std::string where = concat(name, ": ");
      for (const std::int32_t id : prompts_[p]) check_token_id(id, config.vocab_size, where);
    }
  }

  /// The completions of a prompt that are wanted, as groups that fit the budget with one of them running.
  void queue(std::size_t p) {
    const auto length = static_cast<std::int64_t>(prompts_[p].size());
    const std::int64_t room = std::min(options_.generate.max_tokens, model_.config().context_length - length);
    const std::int64_t positions = length + std::max<std::int64_t>(0, room - 1);  // the last token drawn is not run
    Group group{p, std::max<std::int64_t>(0, options_.skip - static_cast<std::int64_t>(p) * options_.group_size),
                options_.group_size};
    if (group.waiting() <= 0) return;
    const KvShape shape = model_.kv_shape();
    const auto page = static_cast<std::int64_t>(shape.page_bytes()), state = static_cast<std::int64_t>(shape.state_bytes());
    group.shared = length / kv_page * page;
    group.tail = (length % kv_page != 0 ? page : 0) + state;
    group.own = ((positions + kv_page - 1) / kv_page - length / kv_page) * page + state;
    if (group.bytes(1, 0) > budget_)
      throw MemoryError(concat("prompt ", p, " of ", length, " tokens and ", room, " new ones may take ", group.bytes(1, 0),
                               " bytes of KV pages and states, the budget is ", options_.kv_budget_bytes,
                               "; give a larger one, or fewer new tokens"));
    if (group.bytes(1, group.waiting() - 1) <= budget_) {
      waiting_.push_back(std::move(group));
      return;
    }
    // Too tight for what waits: the prompt is run for each completion alone.
    for (const std::int64_t end = group.end; group.next < end; ++group.next) {
      group.end = group.next + 1;
      waiting_.push_back(group);
    }
  }

  /// Lets completions enter while they fit; false when none is left.
  bool admit() {
    std::int64_t running = 0, used = 0;
    for (const Group& group : groups_) {
      running += static_cast<std::int64_t>(group.running.size());
      used += group.bytes();
    }
    while (running < options_.batch) {
      const bool enters = groups_.empty() || groups_.back().waiting() == 0;
      if (enters && waiting_.empty()) break;
      Group& group = enters ? waiting_.front() : groups_.back();
      const std::int64_t before = enters ? 0 : group.bytes();
      const std::int64_t after = group.bytes(static_cast<std::int64_t>(group.running.size()) + 1, group.waiting() - 1);
      if (after - before > budget_ - used) break;
      if (enters) {
        enter(group);
        groups_.push_back(std::move(group));
        waiting_.pop_front();
      }
      Group& entered = groups_.back();
      entered.running.push_back({entered.next++, entered.held.back()});
      batch_.release(entered.held.back());
      entered.held.pop_back();
      used += after - before;
      ++running;
    }
    return running > 0;
  }

  void enter(Group& group) {
    const std::uint64_t first = rollout_stream(options_.first_prompt + group.prompt, static_cast<std::uint64_t>(group.next));
    group.held = batch_.add_group(prompts_[group.prompt], group.waiting(), options_.generate, first);
    std::reverse(group.held.begin(), group.held.end());
    for (const Batch::Id id : group.held) batch_.hold(id);
  }

  Completion completion(const Batch::Sequence& sequence) const {
    Completion result;
    result.ids.assign(sequence.output().begin(), sequence.output().end());
    for (const Sample& sample : sequence.samples) {
      result.logprobs.push_back(sample.logprob);
      result.kept.push_back(sample.kept_mass);
      result.sampler_logprobs.push_back(sample.sampler_logprob);
    }
    result.finish = sequence.finish;
    if (options_.record_routes) result.routes = RoutingRecord(sequence.routes);
    return result;
  }

  Model model_;
  std::span<const std::vector<std::int32_t>> prompts_;
  const RolloutOptions& options_;
  Batch batch_;
  std::int64_t budget_ = std::numeric_limits<std::int64_t>::max();  // bytes
  std::deque<Group> waiting_;
  std::vector<Group> groups_;  // in the batch; only the last one has members that wait
  RolloutProgress progress_;
  std::int64_t finished_tokens_ = 0;
};

}  // namespace detail

/// Samples group_size completions of every prompt and gives each away as it is finished: finished(prompt, member, Completion&&),
/// in no particular order. Throws ArgumentError, or MemoryError when a completion alone does not fit the budget, before anything
/// is run.
inline void rollout(const Model& model, std::span<const std::vector<std::int32_t>> prompts, const RolloutOptions& options,
                    const std::function<void(std::size_t prompt, std::int64_t member, Completion&& completion)>& finished) {
  detail::Rollout(model, prompts, options).run(finished);
}

/// The same, collected: [prompts]; completions that were skipped stay empty.
inline std::vector<RolloutGroup> rollout(const Model& model, std::span<const std::vector<std::int32_t>> prompts,
                                         const RolloutOptions& options = {}) {
  std::vector<RolloutGroup> groups(prompts.size());
  detail::Rollout run(model, prompts, options);
  for (RolloutGroup& group : groups) group.completions.resize(static_cast<std::size_t>(options.group_size));
  run.run([&](std::size_t prompt, std::int64_t member, Completion&& completion) {
    groups[prompt].completions[static_cast<std::size_t>(member)] = std::move(completion);
  });
  return groups;
}

}  // namespace moxie::grpo
