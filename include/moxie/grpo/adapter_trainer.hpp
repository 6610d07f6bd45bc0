#pragma once
// AdapterTrainer: GRPO on a low-rank adapter of the output matrix, from completions and their rewards to changed weights.
//
//   rewards -> advantages (advantages.hpp); hidden rows, once (completion_rows.hpp); logprobs of the reference, the model without
//   adapter; then num_iterations times: logprobs x under the adapter, loss and dL/dx (losses.hpp), dL/da and dL/db
//   (hidden_gradients.hpp), both clipped to a global norm, a step of Adam (adam.hpp)
//
// The first iteration is on-policy: x are the bits that the rollout reported, so every ratio is exactly 1 and nothing is clipped.
// All results are the same bits for any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/grpo/adam.hpp>
#include <moxie/grpo/advantages.hpp>
#include <moxie/grpo/completion_rows.hpp>
#include <moxie/grpo/hidden_gradients.hpp>
#include <moxie/grpo/kl.hpp>
#include <moxie/grpo/losses.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/model/output_adapter.hpp>

namespace moxie::grpo {

/// Names as in TRL's GRPOConfig, where it has them.
struct TrainerOptions {
  LossOptions loss = {};
  AdvantageOptions advantages = {};
  std::vector<double> reward_weights = {};  ///< one for each reward function; empty: all 1
  AdamOptions adam = {};
  double max_grad_norm = 1.0;
  Index num_iterations = 1;                 ///< optimizer steps on one rollout
  bool mask_truncated_completions = false;  ///< tokens of completions that ended by their length count nowhere (DAPO)
  float temperature = 1.0f;                 ///< at which the completions were sampled
};

/// The adapter, its optimizer, and the options of a run; one step() for each rollout. For one thread at a time.
class AdapterTrainer {
 public:
  /// Trains `adapter`; `state` is the optimizer's, of a run to go on with. Throws ArgumentError for options out of their range.
  AdapterTrainer(Model model, OutputAdapter adapter, const TrainerOptions& options, AdamState state = {})
      : model_(std::move(model)),
        adapter_(std::move(adapter)),
        options_(options),
        loss_(options.loss),
        adam_(options.adam, std::move(state)) {
    check_option(options_.num_iterations >= 1, "num_iterations", static_cast<double>(options_.num_iterations), "at least 1");
    check_option(options_.max_grad_norm > 0.0, "max_grad_norm", options_.max_grad_norm, "above 0");
    check_option(options_.temperature > 0.0f, "temperature", static_cast<double>(options_.temperature), "above 0");
    if (options_.loss.use_adaptive_entropy || options_.loss.router_aux_loss_coef != 0.0)
      throw ArgumentError(
          "AdapterTrainer has neither an adaptive entropy coefficient nor the router's auxiliary loss: its gradient does not "
          "reach the router");
    adapter_.pack(model_.context());
    adapter_.check(model_.config().vocab_size, model_.config().hidden_size);
  }

  const Model& model() const noexcept { return model_; }
  const OutputAdapter& adapter() const noexcept { return adapter_; }  ///< packed: for rollouts, scoring and saving
  const AdamState& optimizer_state() const noexcept { return adam_.state(); }

  /// Trains on completions of `prompts`, groups of the same size, sampled with adapter() as it is now. rewards: [completions,
  /// functions], NaN where absent. `rate`: learning rates are multiplied by it. Metrics, of the first iteration where not said
  /// otherwise:
  ///   rewards/..., reward, reward_std, frac_reward_zero_std      advantages.hpp
  ///   loss, entropy, kl                 kl: k3 to the model without adapter, also where beta is 0
  ///   ratio/deviation                   largest |r - 1|: 0 for completions of this adapter
  ///   clip_ratio/region_mean, ...       clip_metrics.hpp, of the last iteration; clip_ratio/first: region_mean of the first
  ///   grad_norm                         of the last iteration, before clipping
  /// Throws ArgumentError where sizes do not fit; the adapter is unchanged then.
  Metrics step(std::span<const std::vector<std::int32_t>> prompts, std::span<const RolloutGroup> groups,
               const ConstTokens& rewards, double rate = 1.0) {
    const auto group_size = groups.empty() ? Index{0} : static_cast<Index>(groups.front().completions.size());
    for (const RolloutGroup& group : groups)
      if (static_cast<Index>(group.completions.size()) != group_size)
        throw ArgumentError("all groups of completions must have the same size");
    const CompletionRows rows = completion_rows(model_, prompts, groups);
    if (rewards.rows() != rows.completions)
      throw ArgumentError(concat(rewards.rows(), " rows of rewards were given for ", rows.completions, " completions"));
    Advantages advantage = grpo::advantages(
        {.values = rewards, .num_generations = group_size, .reward_weights = options_.reward_weights}, options_.advantages);
    LossBatch batch = loss_batch(rows, groups, advantage.advantages);

    Metrics metrics = std::move(advantage.metrics);
    for (Index iteration = 0; iteration < options_.num_iterations; ++iteration) {
      score(rows, &adapter_, batch.logprobs, &batch.entropies);
      const LossResult result = loss_(batch);
      if (iteration == 0) add_first(batch, result, metrics);
      for (const auto& [name, value] : result.metrics)
        if (name.find("clip") != std::string::npos) metrics[name] = value;
      metrics["grad_norm"] = update(rows, result, rate);
    }
    return metrics;
  }

 private:
  LossBatch loss_batch(const CompletionRows& rows, std::span<const RolloutGroup> groups, const Eigen::ArrayXd& advantages) {
    LossBatch batch;
    for (TokenArray* array : {&batch.logprobs, &batch.old_logprobs, &batch.ref_logprobs, &batch.entropies})
      *array = TokenArray::Zero(rows.completions, rows.longest);
    batch.mask = TokenMask::Constant(rows.completions, rows.longest, false);
    batch.advantages = advantages;
    score(rows, nullptr, batch.ref_logprobs, nullptr);
    Index b = 0;
    for (const RolloutGroup& group : groups)
      for (const Completion& completion : group.completions) {
        if (completion.logprobs.size() != completion.ids.size())
          throw ArgumentError(
              concat("completion ", b, " has ", completion.logprobs.size(), " logprobs for ", completion.ids.size(), " tokens"));
        const bool counts = !(options_.mask_truncated_completions && completion.finish == FinishReason::length);
        for (std::size_t t = 0; t < completion.logprobs.size(); ++t) {
          batch.old_logprobs(b, static_cast<Index>(t)) = static_cast<double>(completion.logprobs[t]);
          batch.mask(b, static_cast<Index>(t)) = counts;
        }
        ++b;
      }
    return batch;
  }

  void score(const CompletionRows& rows, const OutputAdapter* adapter, TokenArray& logprobs, TokenArray* entropies) {
    scores_.resize(rows.targets.size());
    score_hidden(model_.context(), model_.decoder().output(), rows.hidden.data(), rows.targets, options_.temperature, 0, scores_,
                 scratch_, {.adapter = adapter});
    for (std::size_t i = 0; i < scores_.size(); ++i) {
      const auto [b, t] = rows.places[i];
      logprobs(b, t) = static_cast<double>(scores_[i].logprob);
      if (entropies) (*entropies)(b, t) = static_cast<double>(scores_[i].entropy);
    }
  }

  static void add_first(const LossBatch& batch, const LossResult& result, Metrics& metrics) {
    metrics["loss"] = result.loss;
    metrics["entropy"] = result.metrics.at("entropy");
    metrics["ratio/deviation"] = ((batch.logprobs - batch.old_logprobs).exp() - 1.0).abs().maxCoeff();
    metrics["kl"] = masked_mean(
        batch.logprobs.binaryExpr(batch.ref_logprobs, [](double x, double ref) { return k3(x, ref).value; }), batch.mask);
    if (const auto clipped = result.metrics.find("clip_ratio/region_mean"); clipped != result.metrics.end())
      metrics["clip_ratio/first"] = clipped->second;
  }

  /// One step of the optimizer; returns the norm of the gradient.
  double update(const CompletionRows& rows, const LossResult& result, double rate) {
    gradients_.resize(rows.targets.size());
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
      const auto [b, t] = rows.places[i];
      gradients_[i] = {rows.targets[i], static_cast<float>(result.d_logprobs(b, t)),
                       result.d_entropies.size() > 0 ? static_cast<float>(result.d_entropies(b, t)) : 0.0f};
    }
    RowMatrix d_a = RowMatrix::Zero(adapter_.a.rows(), adapter_.a.cols()),
              d_b = RowMatrix::Zero(adapter_.b.rows(), adapter_.b.cols());
    hidden_gradients(model_.context(), model_.decoder().output(), rows.hidden.data(), gradients_, options_.temperature,
                     {nullptr, &d_a, &d_b}, gradient_scratch_, {.adapter = &adapter_});
    const double norm = clip_by_global_norm({&d_a, &d_b}, options_.max_grad_norm);
    adam_.step({{adapter_.a, d_a}, {adapter_.b, d_b}}, rate);
    adapter_.pack(model_.context());
    return norm;
  }

  Model model_;
  OutputAdapter adapter_;
  TrainerOptions options_;
  Loss loss_;
  Adam adam_;
  std::vector<PositionScore> scores_;
  LogprobScratch scratch_;
  std::vector<RowGradient> gradients_;
  GradientScratch gradient_scratch_;
};

}  // namespace moxie::grpo
