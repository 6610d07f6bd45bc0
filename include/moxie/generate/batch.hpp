#pragma once
// Batch: many sequences that join and leave at any step, run together. Prompts can be shared: members of a group hold the same KV
// pages until they differ (copy-on-write), and the prompt is run once.
//
// A sequence's tokens and logprobs are the same bits in any company: draws are keyed by (seed, stream, position), and no row of a
// forward pass depends on the others.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/generate/forward.hpp>
#include <moxie/generate/options.hpp>
#include <moxie/generate/sampler.hpp>
#include <moxie/generate/session.hpp>
#include <moxie/model/token_ids.hpp>

namespace moxie {

struct BatchOptions {
  std::size_t kv_budget_bytes = 0;         ///< what KV pages and states may take together; 0: no limit
  bool record_routes = false;              ///< keep the experts of every token that was run
  const OutputAdapter* adapter = nullptr;  ///< on the output matrix; must outlive the batch
  /// What errors call a sequence; "sequence ID" without it.
  std::function<std::string(std::int64_t id)> name = {};
};

class Batch {
 public:
  using Id = std::int64_t;

  /// A sequence and what it has drawn.
  struct Sequence {
    Id id = 0;
    std::vector<std::int32_t> ids;  ///< prompt, then output
    std::size_t prompt_length = 0;
    std::vector<Sample> samples;  ///< of the output
    FinishReason finish = FinishReason::none;
    RoutingTrace routes;  ///< of the tokens that were run: all but the last drawn

    std::span<const std::int32_t> prompt() const noexcept { return std::span(ids).first(prompt_length); }
    std::span<const std::int32_t> output() const noexcept { return std::span(ids).subspan(prompt_length); }
  };
  /// A token drawn in a step.
  struct Event {
    Id id = 0;
    Sample sample;
    FinishReason finish = FinishReason::none;  ///< none while the sequence goes on
  };

  /// Throws ArgumentError when the adapter does not fit.
  explicit Batch(const Model& model, const BatchOptions& options = {})
      : model_(model), options_(options), pool_(model.kv_shape(), options.kv_budget_bytes) {
    if (options_.adapter) options_.adapter->check(model_.config().vocab_size, model_.config().hidden_size);
  }

  /// Adds a sequence; its prompt runs in the next steps. `stream` numbers its random draws. Stop texts are not looked for: they
  /// are for Session. Throws ArgumentError.
  Id add(std::span<const std::int32_t> prompt, const GenerateOptions& options, std::uint64_t stream = 0) {
    options.check();
    if (!options.stop.empty())
      throw ArgumentError("stop texts are not supported in a Batch: use a Session, or end the sequence with remove()");
    if (prompt.empty()) throw ArgumentError("a sequence needs a prompt of at least one token");
    const ModelConfig& config = model_.config();
    for (const std::int32_t id : prompt) check_token_id(id, config.vocab_size);
    if (static_cast<std::int64_t>(prompt.size()) > config.context_length)
      throw ArgumentError(
          concat("a prompt of ", prompt.size(), " tokens does not fit the model's context of ", config.context_length));
    Member member{{next_, {prompt.begin(), prompt.end()}, prompt.size(), {}, FinishReason::none, {}},
                  options,
                  stream,
                  KvSequence(pool_),
                  {},
                  {}};
    if (options_.record_routes) member.sequence.routes = empty_trace(model_);
    members_.emplace(next_, std::move(member));
    return next_++;
  }

  /// n sequences of one prompt with streams first_stream, first_stream + 1, ..; the prompt is run and stored once.
  std::vector<Id> add_group(std::span<const std::int32_t> prompt, std::int64_t n, const GenerateOptions& options,
                            std::uint64_t first_stream = 0) {
    if (n < 1) throw ArgumentError(concat("a group needs at least one sequence, got ", n));
    std::vector<Id> ids;
    for (std::int64_t i = 0; i < n; ++i) {
      ids.push_back(add(prompt, options, first_stream + static_cast<std::uint64_t>(i)));
      if (i > 0) members_.at(ids.back()).leader = ids.front();
    }
    return ids;
  }

  /// A sequence that continues as `id` does so far, sharing its pages, with draws of its own.
  Id fork(Id id, std::uint64_t stream) {
    Member& from = member(id);
    Member copy{from.sequence, from.options, stream, from.kv.fork(), from.hidden, from.leader};
    copy.sequence.id = next_;
    members_.emplace(next_, std::move(copy));
    return next_++;
  }

  /// Drops a sequence, finished or not; its pages are free for others. The next member of its group that waits for its prompt
  /// runs it.
  void remove(Id id) {
    member(id);
    std::optional<Id> heir;
    for (auto& [other, m] : members_) {
      if (m.leader != id) continue;
      m.leader = heir;
      if (!heir) heir = other;
    }
    members_.erase(id);
  }

  /// A held sequence is not run on and draws nothing, until it is released. It may wait for the prompt of its group meanwhile, so
  /// that it keeps pages which others hold anyway. The first of a group must not be held before its prompt has been run.
  void hold(Id id) { member(id).held = true; }
  void release(Id id) { member(id).held = false; }

  /// The sequence of an id from add() or fork(), until it is removed.
  const Sequence& at(Id id) const { return const_cast<Batch*>(this)->member(id).sequence; }
  std::size_t size() const noexcept { return members_.size(); }
  /// Sequences that are not finished.
  std::size_t active() const noexcept {
    return static_cast<std::size_t>(
        std::count_if(members_.begin(), members_.end(), [](const auto& m) { return m.second.active(); }));
  }
  std::size_t kv_bytes() const noexcept { return pool_.bytes_in_use(); }

  /// One forward pass of at most the model's chunk of rows: a token for every sequence that is generating, then prompts in order.
  /// Returns the tokens drawn; nothing when all sequences are finished. Throws MemoryError when the budget cannot hold the pass:
  /// nothing has changed then, and after remove() of a sequence step() can be called again.
  std::vector<Event> step() {
    plan();
    reserve();
    if (!work_.empty()) forward();
    return draw();
  }

 private:
  struct Member {
    Sequence sequence;
    GenerateOptions options;
    std::uint64_t stream = 0;
    KvSequence kv;
    std::vector<float> hidden;  // of the last token that was run
    std::optional<Id> leader;   // whose prompt this one shares, until it has been run
    bool held = false;
    Sampler sampler{};

    bool active() const noexcept { return sequence.finish == FinishReason::none; }
    std::int64_t pending() const noexcept { return static_cast<std::int64_t>(sequence.ids.size()) - kv.length(); }
  };
  struct Work {
    Member* member;
    std::int64_t rows;
  };

  Member& member(Id id) {
    const auto it = members_.find(id);
    if (it == members_.end()) throw ArgumentError(concat("the batch has no sequence ", id));
    return it->second;
  }
  /// Whether a token may be drawn: neither max_tokens nor the model's context is reached.
  bool has_room(const Member& m) const noexcept {
    return static_cast<std::int64_t>(m.sequence.samples.size()) < m.options.max_tokens &&
           static_cast<std::int64_t>(m.sequence.ids.size()) < model_.config().context_length;
  }
  void plan() {
    work_.clear();
    std::int64_t room = model_.options().chunk;
    for (const bool prompts : {false, true}) {
      for (auto& [id, m] : members_) {
        if (!m.active() || m.held || m.leader || m.pending() == 0 || room == 0 || (m.pending() > 1) != prompts) continue;
        const std::int64_t rows = std::min(room, m.pending());
        work_.push_back({&m, rows});
        room -= rows;
      }
    }
  }

  void reserve() {
    std::size_t needed = 0;
    std::map<const std::byte*, std::int64_t> writers;  // of what several sequences hold; each copies, but the last holder
    for (const Work& work : work_) {
      const KvSequence& kv = work.member->kv;
      needed += kv.bytes_to_reserve(kv.length() + work.rows);
      for (const KvSequence::Shared& shared : kv.shared())
        if (shared.holders > 1 && ++writers[shared.data] == shared.holders) needed -= shared.bytes;
    }
    const std::size_t used = pool_.bytes_in_use(), budget = pool_.budget_bytes();
    if (budget != 0 && used + needed > budget)
      throw MemoryError(concat("the next step needs ", needed, " bytes of KV pages and states; ", used, " of the budget of ",
                               budget, " are in use. Remove a sequence or give a larger budget"));
    for (const Work& work : work_) work.member->kv.reserve(work.member->kv.length() + work.rows);
  }

  void forward() {
    rows_.clear();
    for (const Work& work : work_)
      for (std::int64_t i = 0; i < work.rows; ++i) {
        const std::int64_t position = work.member->kv.length() + i;
        rows_.push_back({work.member->sequence.ids[static_cast<std::size_t>(position)], &work.member->kv, position});
      }
    const Index width = model_.config().hidden_size;
    scratch_.hidden.resize(rows_.size() * static_cast<std::size_t>(width));
    RoutingTrace trace;
    if (options_.record_routes) {
      trace = empty_trace(model_);
      trace.resize(static_cast<Index>(rows_.size()));
    }
    model_.decoder().forward(model_.context(), rows_, scratch_.hidden.data(), scratch_.decoder,
                             options_.record_routes ? &trace : nullptr);
    try {
      Index row = 0;
      for (const Work& work : work_) {
        Member& m = *work.member;
        if (options_.record_routes) {
          m.sequence.routes.resize(m.kv.length());  // fewer than there are after a pass that failed
          m.sequence.routes.append(trace, row, work.rows);
        }
        row += work.rows;
        const float* last = scratch_.hidden.data() + (row - 1) * width;
        m.hidden.assign(last, last + width);
        m.kv.advance(work.rows);
      }
    } catch (...) {
      for (const Work& work : work_)
        if (KvSequence& kv = work.member->kv; kv.reserved() > kv.length()) kv.fail();
      throw;
    }
  }

  std::vector<Event> draw() {
    std::vector<Member*> ready;  // those whose last token has been run
    for (auto& [id, m] : members_)
      if (m.active() && !m.held && !m.leader && m.pending() == 0) ready.push_back(&m);
    for (auto& [id, m] : members_) {  // groups whose prompt has just been run
      if (!m.leader) continue;
      Member& leader = members_.at(*m.leader);
      if (leader.pending() != 0) continue;
      m.kv = leader.kv.fork();
      m.hidden = leader.hidden;
      m.sequence.routes = leader.sequence.routes;
      m.leader.reset();
      if (!m.held) ready.push_back(&m);
    }
    std::vector<Event> events(ready.size());
    const Index width = model_.config().hidden_size, vocab = model_.config().vocab_size;
    gathered_.resize(ready.size() * static_cast<std::size_t>(width));
    for (std::size_t i = 0; i < ready.size(); ++i)
      std::copy(ready[i]->hidden.begin(), ready[i]->hidden.end(), gathered_.data() + i * static_cast<std::size_t>(width));
    const float* logits =
        ready.empty() ? nullptr
                      : compute_logits(model_, gathered_.data(), static_cast<Index>(ready.size()), scratch_, options_.adapter);
    model_.context().threads.for_each(static_cast<std::int64_t>(ready.size()), [&](std::int64_t i, int) {
      Member& m = *ready[static_cast<std::size_t>(i)];
      const std::span<const float> row(logits + i * vocab, static_cast<std::size_t>(vocab));
      Event& event = events[static_cast<std::size_t>(i)];
      event.id = m.sequence.id;
      if (!has_room(m)) return;
      try {
        event.sample = m.sampler.draw(*model_.context().kernels, row, m.options, m.sequence.prompt(), m.sequence.output(),
                                      m.stream, m.sequence.ids.size());
      } catch (const ArgumentError& error) {
        const Id id = m.sequence.id;
        throw ArgumentError({{}, options_.name ? options_.name(id) : concat("sequence ", id), {}}, error.what());
      }
    });
    for (std::size_t i = 0; i < ready.size(); ++i) {
      Sequence& sequence = ready[i]->sequence;
      const bool drawn = has_room(*ready[i]);
      if (drawn) {
        sequence.ids.push_back(events[i].sample.id);
        sequence.samples.push_back(events[i].sample);
      }
      if (drawn && !ready[i]->options.ignore_eos && model_.is_end(events[i].sample.id)) {
        sequence.finish = FinishReason::stop;
      } else if (!has_room(*ready[i])) {
        sequence.finish = FinishReason::length;
      }
      events[i].finish = sequence.finish;
      if (sequence.finish != FinishReason::none) ready[i]->kv.truncate(0);
    }
    std::erase_if(events, [&](const Event& e) { return at(e.id).samples.empty(); });
    return events;
  }

  Model model_;
  BatchOptions options_;
  KvPool pool_;
  std::map<Id, Member> members_;
  std::vector<Work> work_;
  std::vector<DecoderRow> rows_;
  AlignedBuffer<float> gathered_;
  ForwardScratch scratch_;
  Id next_ = 0;
};

}  // namespace moxie
