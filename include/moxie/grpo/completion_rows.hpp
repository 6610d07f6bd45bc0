#pragma once
// The hidden rows from which the tokens of completions were drawn. The layers below the output matrix are not trained, so these
// rows are computed once for a rollout, and every optimizer step on it, and the reference, start from them. They take 4 bytes x
// tokens of the completions x hidden.

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/grpo/logprob_options.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/grpo/sequence_passes.hpp>
#include <moxie/grpo/tokens.hpp>
#include <moxie/model/logprobs.hpp>

namespace moxie::grpo {

/// N rows, those of a completion in the order of its tokens.
struct CompletionRows {
  struct Place {
    Index completion = 0, token = 0;  ///< row and column in the arrays of a LossBatch
  };
  Index completions = 0;              ///< B, those of a prompt side by side
  Index longest = 0;                  ///< T, tokens of the longest one
  RowMatrix hidden;                   ///< [N, hidden], N tokens of all completions
  std::vector<std::int32_t> targets;  ///< [N], the tokens that were drawn
  std::vector<Place> places;          ///< [N]
};

/// Runs prompts with their completions through the model, `batch` sequences together at most. Throws ArgumentError where there
/// are not as many groups as prompts, or no completion has a token.
inline CompletionRows completion_rows(const Model& model, std::span<const std::vector<std::int32_t>> prompts,
                                      std::span<const RolloutGroup> groups, std::int64_t batch = 32) {
  if (prompts.size() != groups.size())
    throw ArgumentError(concat(groups.size(), " groups of completions were given for ", prompts.size(), " prompts"));
  CompletionRows result;
  std::vector<std::vector<std::int32_t>> sequences;  // different ones: completions of a group are often the same
  std::vector<std::int64_t> drawn_from;  // of each: the position of the prompt's last token, from which the first one is drawn
  std::vector<std::vector<Index>> first_rows;  // of each: the rows of that position in result.hidden
  std::map<std::vector<std::int32_t>, std::size_t> known;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    known.clear();
    for (const Completion& completion : groups[p].completions) {
      if (prompts[p].empty()) throw ArgumentError(concat("prompt ", p, " has no tokens"));
      const Index b = result.completions++, n = static_cast<Index>(completion.ids.size());
      if (n == 0) continue;
      const std::vector<std::int32_t> run(completion.ids.begin(),
                                          completion.ids.end() - 1);  // nothing is drawn after the last token
      const auto [same, is_new] = known.try_emplace(run, sequences.size());
      if (is_new) {
        std::vector<std::int32_t>& ids = sequences.emplace_back(prompts[p]);
        ids.insert(ids.end(), run.begin(), run.end());
        drawn_from.push_back(static_cast<std::int64_t>(prompts[p].size()) - 1);
        first_rows.emplace_back();
      }
      first_rows[same->second].push_back(static_cast<Index>(result.targets.size()));
      result.longest = std::max(result.longest, n);
      for (Index t = 0; t < n; ++t) result.places.push_back({b, t});
      result.targets.insert(result.targets.end(), completion.ids.begin(), completion.ids.end());
    }
  }
  if (result.targets.empty()) throw ArgumentError("the completions have no tokens: there is nothing to train on");
  const Index width = model.config().hidden_size;
  result.hidden.resize(static_cast<Index>(result.targets.size()), width);
  const LogprobOptions options{.batch = batch};
  check_sequences(model, sequences, options);
  run_sequences(model, sequences, options, [&](const float* rows, std::span<const SequencePart> parts, const RoutingTrace&) {
    for (const SequencePart& part : parts)
      for (std::int64_t p = part.first; p < part.first + part.count; ++p, rows += width)
        if (const std::int64_t token = p - drawn_from[part.sequence]; token >= 0)
          for (const Index first : first_rows[part.sequence])
            std::copy(rows, rows + width, result.hidden.row(first + token).data());
  });
  return result;
}

}  // namespace moxie::grpo
