#pragma once
// Runs whole sequences through a model's layers, several together, and shows the hidden rows of each pass.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <moxie/generate/forward.hpp>
#include <moxie/grpo/logprob_options.hpp>

namespace moxie::grpo {

/// Neighbouring rows of a pass that belong to one sequence: positions [first, first + count).
struct SequencePart {
  std::size_t sequence = 0;
  std::int64_t first = 0, count = 0;
};

/// Runs all sequences, checked by check_sequences(). visit(hidden, parts, routes) is called after each pass: hidden [rows,
/// hidden_size] of the parts one after another, and the rows' routes when options.record_routes. Empty sequences are left out.
/// Throws MemoryError when a sequence alone does not fit the budget of KV pages and states.
template <class Visit>
void run_sequences(const Model& model, std::span<const std::vector<std::int32_t>> sequences, const LogprobOptions& options,
                   Visit&& visit) {
  const KvPool pool(model.kv_shape(), options.kv_budget_bytes);
  const Index width = model.config().hidden_size;
  // Fewer rows a pass where their activations would take more than 32 MB, but enough to be no slower than need be.
  const auto chunk = std::min<std::int64_t>(
      model.options().chunk,
      std::max<std::int64_t>(16, (std::int64_t{32} << 20) / static_cast<std::int64_t>(model.decoder().scratch_bytes_per_row())));
  std::int64_t total = 0, done = 0;
  for (const auto& ids : sequences) total += static_cast<std::int64_t>(ids.size());

  struct Running {
    std::size_t sequence;
    std::int64_t run = 0;
    std::unique_ptr<KvSequence> kv;
  };
  ForwardScratch scratch;
  std::vector<Running> running;
  std::vector<DecoderRow> rows;
  std::vector<SequencePart> parts;
  std::size_t next = 0;
  while (next < sequences.size() || !running.empty()) {
    // Sequences enter while there is room, and leave with their pages when they are done.
    while (next < sequences.size() && static_cast<std::int64_t>(running.size()) < options.batch) {
      if (sequences[next].empty()) {
        ++next;
        continue;
      }
      Running entry{next, 0, std::make_unique<KvSequence>(pool)};
      try {
        entry.kv->reserve(static_cast<std::int64_t>(sequences[next].size()));
      } catch (const MemoryError&) {
        if (running.empty()) throw;
        break;
      }
      running.push_back(std::move(entry));
      ++next;
    }
    if (running.empty()) break;

    rows.clear();
    parts.clear();
    RoutingTrace replay;
    if (!options.replay.empty()) replay = empty_trace(model);
    for (const Running& entry : running) {
      const auto& ids = sequences[entry.sequence];
      const std::int64_t count =
          std::min(chunk - static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(ids.size()) - entry.run);
      for (std::int64_t p = entry.run; p < entry.run + count; ++p)
        rows.push_back({ids[static_cast<std::size_t>(p)], entry.kv.get(), p});
      if (!options.replay.empty()) replay.append(options.replay[entry.sequence], entry.run, count);
      parts.push_back({entry.sequence, entry.run, count});
    }
    scratch.hidden.resize(rows.size() * static_cast<std::size_t>(width));
    RoutingTrace record;
    if (options.record_routes) {
      record = empty_trace(model);
      record.resize(static_cast<Index>(rows.size()));
    }
    model.decoder().forward(model.context(), rows, scratch.hidden.data(), scratch.decoder,
                            options.record_routes ? &record : nullptr, options.replay.empty() ? nullptr : &replay);
    visit(static_cast<const float*>(scratch.hidden.data()), std::span<const SequencePart>(parts), std::as_const(record));

    for (std::size_t i = 0; i < running.size(); ++i) {
      running[i].kv->advance(parts[i].count);
      running[i].run += parts[i].count;
    }
    done += static_cast<std::int64_t>(rows.size());
    std::erase_if(running, [&](const Running& r) { return r.run == static_cast<std::int64_t>(sequences[r.sequence].size()); });
    if (options.progress) options.progress(done, total);
  }
}

}  // namespace moxie::grpo
