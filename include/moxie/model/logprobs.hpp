#pragma once
// Log-probabilities of given tokens straight from hidden rows: the output matrix is multiplied one tile of the vocabulary at a
// time, and only (max, sum, weighted sum) of each tile are kept. The logits of T x V never exist in memory.
//
// Extra memory: for at most 128 rows at a time, a tile of logits for each thread (256 KB) and 12 bytes for each row and tile,
// plus 8 bytes x top_n for each row and tile; the rows are fewer at a time when that would pass 32 MB.

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/log_softmax.hpp>
#include <moxie/model/output_head.hpp>
#include <moxie/model/token_ids.hpp>

namespace moxie {

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0.0f;
};

/// What scoring says of one position: the distribution of the next token.
struct PositionScore {
  float logprob = 0.0f;  ///< of the target, when there is one
  float entropy = 0.0f;
  float lse = 0.0f;               ///< log sum exp of logits / temperature
  std::vector<TokenLogprob> top;  ///< the top_n most probable tokens, most probable first, ties: lower id first
};

/// Reusable memory of score_hidden().
struct LogprobScratch {
  PreparedRows prepared;
  std::vector<AlignedBuffer<float>> tiles;  // one for each thread, [rows, vocabulary_tile]
  std::vector<kernels::SoftmaxPartial> partials;
  std::vector<float> target_logits;
  AlignedBuffer<float> low_rank;         // [rows, rank] of the output matrix's own low-rank part
  AlignedBuffer<float> adapted;          // [rows, rank] of the adapter
  std::vector<TokenLogprob> candidates;  // [rows, tiles, top_n], logprob holds the logit
};

namespace detail {

/// The order of the most probable tokens: NaN first, then high to low, and of equal ones the lower id.
inline bool ranks_before(float a, std::int32_t a_id, float b, std::int32_t b_id) noexcept {
  const auto above = [](float x, float y) { return x > y || (x != x && y == y); };
  return above(a, b) || (!above(b, a) && a_id < b_id);
}

}  // namespace detail

/// Scores hidden rows [rows, hidden] against `output` [vocab, hidden]. targets[r] is a token id, or -1 for none. `scores` [rows]
/// is written. Throws ArgumentError for a target outside the vocabulary, and when the head does not fit.
inline void score_hidden(const Context& context, const Linear& output, const float* hidden, std::span<const std::int32_t> targets,
                         float temperature, Index top_n, std::span<PositionScore> scores, LogprobScratch& scratch,
                         const OutputHead& head = {}) {
  const Index vocab = output.outputs(), tiles = vocabulary_tiles(vocab), width = output.inputs();
  head.check(output);
  const Index rank = head.adapter ? head.adapter->rank() : 0;
  top_n = std::min(top_n, vocab);
  for (const std::int32_t target : targets)
    if (target != -1) check_token_id(target, vocab);
  const Index kept = std::min(top_n, vocabulary_tile);
  const Index row_bytes =
      tiles * (static_cast<Index>(sizeof(kernels::SoftmaxPartial)) + kept * static_cast<Index>(sizeof(TokenLogprob)));
  const Index block = std::clamp<Index>((Index{32} << 20) / row_bytes, 1, 128);
  scratch.tiles.resize(static_cast<std::size_t>(context.threads.count()));

  const auto total = static_cast<Index>(targets.size());
  for (Index first = 0; first < total; first += block) {
    const Index n = std::min(block, total - first);
    scratch.partials.resize(static_cast<std::size_t>(n * tiles));
    scratch.target_logits.resize(static_cast<std::size_t>(n));
    scratch.candidates.resize(static_cast<std::size_t>(n * tiles * kept));
    const bool int8 = output.takes_int8(context.activations);
    scratch.prepared.assign(context, hidden + first * width, n, width, width, int8,
                            head.adapter || output.takes_f32(context.activations));
    if (output.low_rank()) {
      scratch.low_rank.resize(static_cast<std::size_t>(n * output.rank()));
      output.low_rank()->project(context, scratch.prepared, scratch.low_rank.data());
    }
    if (head.adapter) {
      scratch.adapted.resize(static_cast<std::size_t>(n * rank));
      head.adapter->project(context, scratch.prepared, scratch.adapted.data());
    }
    const StageScope stage(context.profile(), Stage::output);
    context.threads.for_each(tiles, [&](std::int64_t tile, int thread) {
      AlignedBuffer<float>& logits = scratch.tiles[static_cast<std::size_t>(thread)];
      logits.resize(static_cast<std::size_t>(n * vocabulary_tile));
      const Index begin = tile * vocabulary_tile, end = std::min(vocab, begin + vocabulary_tile);
      output.multiply(scratch.prepared.view(), context.activations, 0, n, begin, end, logits.data() - begin,
                      vocabulary_tile, output.low_rank() ? scratch.low_rank.data() : nullptr);
      const StageScope softmax(context.profile(), Stage::other, thread);
      for (Index r = 0; r < n; ++r) {
        float* z = logits.data() + r * vocabulary_tile;
        head.apply(*context.kernels, scratch.adapted.data() + r * rank, begin, end, z);
        scratch.partials[static_cast<std::size_t>(r * tiles + tile)] =
            context.kernels->softmax_partial(z, end - begin, temperature);
        const Index target = targets[static_cast<std::size_t>(first + r)];
        if (target >= begin && target < end) scratch.target_logits[static_cast<std::size_t>(r)] = z[target - begin];
        if (kept == 0) continue;
        TokenLogprob* to = scratch.candidates.data() + (r * tiles + tile) * kept;
        const Index here = std::min(kept, end - begin);
        std::vector<std::int32_t> order(static_cast<std::size_t>(end - begin));
        for (Index i = 0; i < end - begin; ++i) order[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
        std::partial_sort(order.begin(), order.begin() + here, order.end(),
                          [z](std::int32_t a, std::int32_t b) { return detail::ranks_before(z[a], a, z[b], b); });
        for (Index i = 0; i < kept; ++i)
          to[i] = i < here ? TokenLogprob{static_cast<std::int32_t>(begin) + order[static_cast<std::size_t>(i)],
                                          z[order[static_cast<std::size_t>(i)]]}
                           : TokenLogprob{-1, 0.0f};
      }
    });
    const StageScope combine(context.profile(), Stage::other);
    context.threads.for_each(n, [&](std::int64_t r, int) {
      PositionScore& score = scores[static_cast<std::size_t>(first + r)];
      const LogSumExp sum = combine_partials(
          std::span(scratch.partials).subspan(static_cast<std::size_t>(r * tiles), static_cast<std::size_t>(tiles)));
      score.lse = static_cast<float>(sum.lse);
      score.entropy = static_cast<float>(sum.entropy);
      score.logprob = targets[static_cast<std::size_t>(first + r)] < 0
                          ? 0.0f
                          : sum.logprob(scratch.target_logits[static_cast<std::size_t>(r)], temperature);
      score.top.clear();
      if (kept == 0) return;
      const auto candidates = std::span(scratch.candidates)
                                  .subspan(static_cast<std::size_t>(r * tiles * kept), static_cast<std::size_t>(tiles * kept));
      const auto valid = std::remove_if(candidates.begin(), candidates.end(), [](const TokenLogprob& c) { return c.id < 0; });
      const auto last = candidates.begin() + std::min<std::ptrdiff_t>(top_n, valid - candidates.begin());
      std::partial_sort(candidates.begin(), last, valid, [](const TokenLogprob& a, const TokenLogprob& b) {
        return detail::ranks_before(a.logprob, a.id, b.logprob, b.id);
      });
      for (auto it = candidates.begin(); it != last; ++it) score.top.push_back({it->id, sum.logprob(it->logprob, temperature)});
    });
  }
}

}  // namespace moxie
