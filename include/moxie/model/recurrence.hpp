#pragma once
// What layers with a gated linear recurrence (gated delta nets, Mamba-2) have in common: heads whose matrices go from token to
// token (kernels/delta_net.hpp), and the step of time that decays them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include <moxie/model/mixer.hpp>

namespace moxie::detail {

/// softplus(x), as PyTorch has it.
inline float softplus(float x) noexcept { return x > 20.0f ? x : std::log1p(std::exp(x)); }

/// Value heads, each with the keys and queries of one of n_k_heads.
struct RecurrentHeads {
  Index n_k_heads = 0, n_v_heads = 0, k_dim = 0, v_dim = 0;
  bool tiled = false;     ///< value head h uses key head h % n_k_heads; else h / (n_v_heads / n_k_heads)
  bool subtracts = true;  ///< DeltaRule::subtracts
};

/// Runs the heads over all rows: buffers.q and k [key head][row][k_dim], v [row][value head][v_dim], decays and betas [row][value
/// head] to attended [row][value head][v_dim]. matrices(sequence) is where a sequence's matrices lie, [value head][ceil(v_dim /
/// 32)][k_dim][32].
template <class Matrices>
void recur(const Context& context, const SequenceRuns& runs, const RecurrentHeads& a, MixerBuffers& buffers,
           Matrices&& matrices) {
  constexpr Index columns = kernels::delta_columns;
  const Index heads = a.n_v_heads, parts = (a.v_dim + columns - 1) / columns, n = std::ssize(runs.rows()),
              n_runs = std::ssize(runs.runs());
  context.threads.for_each(n_runs * heads * parts, [&](std::int64_t item, int) {
    const SequenceRuns::Run& run = runs.runs()[static_cast<std::size_t>(item / (heads * parts))];
    const Index h = item / parts % heads, part = item % parts, first = part * columns;
    const Index key = a.tiled ? h % a.n_k_heads : h / (heads / a.n_k_heads);
    context.kernels->delta_rule({.rows = runs.rows().data() + run.begin,
                                 .n_rows = run.end - run.begin,
                                 .q = buffers.q.data() + key * n * a.k_dim,
                                 .k = buffers.k.data() + key * n * a.k_dim,
                                 .qk_stride = a.k_dim,
                                 .v = buffers.v.data() + h * a.v_dim + first,
                                 .v_stride = heads * a.v_dim,
                                 .decay = buffers.decays.data() + h,
                                 .beta = buffers.betas.data() + h,
                                 .gate_stride = heads,
                                 .state = matrices(*run.sequence) + (h * parts + part) * a.k_dim * columns,
                                 .out = buffers.attended.data() + h * a.v_dim + first,
                                 .k_dim = a.k_dim,
                                 .columns = std::min(columns, a.v_dim - first),
                                 .subtracts = a.subtracts});
  });
}

}  // namespace moxie::detail
