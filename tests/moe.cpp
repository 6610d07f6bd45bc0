// Routing without weights: the rule from logits to experts, dispatch, traces.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/moe/dispatch.hpp>
#include <moxie/moe/routing_rule.hpp>
#include <moxie/moe/routing_trace.hpp>

#include "checks.hpp"

using moxie::ArgumentError;
using moxie::Dispatch;
using moxie::GroupScore;
using moxie::Index;
using moxie::RouterConfig;
using moxie::RouterScoring;
using moxie::RoutingRule;
using moxie::RoutingTrace;

namespace {

struct Choice {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Choice choose(const RoutingRule& rule, std::vector<float> logits) {
  Choice choice{std::vector<std::int32_t>(static_cast<std::size_t>(rule.config().top_k)), std::vector<float>(static_cast<std::size_t>(rule.config().top_k))};
  rule.choose(logits.data(), choice.ids.data(), choice.weights.data());
  return choice;
}

std::vector<float> replay(const RoutingRule& rule, std::vector<float> logits, const std::vector<std::int32_t>& ids) {
  std::vector<float> weights(ids.size());
  rule.replay(logits.data(), ids.data(), weights.data());
  return weights;
}

moxie::Vector vector(std::vector<float> values) { return Eigen::Map<moxie::Vector>(values.data(), static_cast<Index>(values.size())); }

/// The rule in double precision, by full sorts. `margin` becomes the smallest difference that a choice rests on.
struct Reference {
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
  double margin = 1e30;

  Reference(const RouterConfig& c, const std::vector<float>& bias, const std::vector<float>& logits) {
    const auto n = logits.size();
    std::vector<double> scores(n), selection(n);
    double sum = 0;
    for (const float z : logits) sum += std::exp(static_cast<double>(z));
    for (std::size_t e = 0; e < n; ++e) {
      const double z = logits[e];
      scores[e] = c.scoring == RouterScoring::softmax ? std::exp(z) / sum : c.scoring == RouterScoring::sigmoid ? 1 / (1 + std::exp(-z)) : z;
      selection[e] = scores[e] + (bias.empty() ? 0.0 : static_cast<double>(bias[e]));
    }
    if (c.n_group > 1) {
      const auto size = n / static_cast<std::size_t>(c.n_group);
      std::vector<double> group_scores;
      for (std::size_t g = 0; g < n; g += size) {
        std::vector<double> sorted(selection.begin() + static_cast<long>(g), selection.begin() + static_cast<long>(g + size));
        std::sort(sorted.rbegin(), sorted.rend());
        group_scores.push_back(c.group_score == GroupScore::best ? sorted[0] : sorted[0] + sorted[1]);
      }
      const auto groups = best(group_scores, c.topk_group);
      for (std::size_t e = 0; e < n; ++e)
        if (std::find(groups.begin(), groups.end(), static_cast<std::int32_t>(e / size)) == groups.end()) selection[e] = -1e300;
    }
    ids = best(selection, c.top_k);
    if (c.scoring == RouterScoring::chosen_softmax) {
      double chosen = 0;
      for (const auto e : ids) chosen += std::exp(scores[static_cast<std::size_t>(e)]);
      for (const auto e : ids) weights.push_back(std::exp(scores[static_cast<std::size_t>(e)]) / chosen * c.routed_scaling_factor);
      return;
    }
    double total = c.norm_epsilon;
    for (const auto e : ids) total += scores[static_cast<std::size_t>(e)];
    for (const auto e : ids) weights.push_back(scores[static_cast<std::size_t>(e)] / (c.norm_topk_prob ? total : 1.0) * c.routed_scaling_factor);
  }

  std::vector<std::int32_t> best(const std::vector<double>& values, std::int64_t k) {
    std::vector<std::int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)]; });
    for (std::size_t i = 0; i + 1 < order.size() && i < static_cast<std::size_t>(k); ++i)
      margin = std::min(margin, values[static_cast<std::size_t>(order[i])] - values[static_cast<std::size_t>(order[i + 1])]);
    order.resize(static_cast<std::size_t>(k));
    return order;
  }
};

using test::message_of;
using test::contains;

}  // namespace

TEST_CASE("softmax scores, the largest first") {
  const RoutingRule rule({.n_experts = 4, .top_k = 2});
  const Choice c = choose(rule, {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(3.0f)});
  CHECK(c.ids == std::vector<std::int32_t>{1, 3});
  CHECK(c.weights[0] == doctest::Approx(0.4).epsilon(1e-6));
  CHECK(c.weights[1] == doctest::Approx(0.3).epsilon(1e-6));
}

TEST_CASE("the softmax over the chosen is that of their logits, however far these lie from the others") {
  const RoutingRule rule({.n_experts = 4, .top_k = 2, .scoring = RouterScoring::chosen_softmax});
  const Choice c = choose(rule, {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(3.0f)});
  CHECK(c.ids == std::vector<std::int32_t>{1, 3});
  CHECK(c.weights[0] == doctest::Approx(4.0 / 7).epsilon(1e-6));
  CHECK(c.weights[1] == doctest::Approx(3.0 / 7).epsilon(1e-6));
  CHECK(replay(rule, {500.0f, -200.0f, -200.0f, 0.0f}, {1, 2}) == std::vector<float>{0.5f, 0.5f});
}

TEST_CASE("renormalized weights sum to one, the scaling factor comes last") {
  const RoutingRule rule({.n_experts = 4, .top_k = 2, .norm_topk_prob = true, .routed_scaling_factor = 2.5f});
  const Choice c = choose(rule, {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(3.0f)});
  CHECK(c.weights[0] == doctest::Approx(2.5 * 4 / 7).epsilon(1e-6));
  CHECK(c.weights[1] == doctest::Approx(2.5 * 3 / 7).epsilon(1e-6));
}

TEST_CASE("the selection bias moves the choice and never the weight") {
  const RoutingRule rule({.n_experts = 4, .top_k = 2, .scoring = RouterScoring::sigmoid}, vector({0.0f, 0.0f, 0.6f, -1.0f}));
  const Choice c = choose(rule, {0.0f, 1.0f, -1.0f, 5.0f});  // sigmoids 0.5, 0.731, 0.269, 0.993; selection 0.5, 0.731, 0.869, -0.007
  CHECK(c.ids == std::vector<std::int32_t>{2, 1});
  CHECK(c.weights[0] == doctest::Approx(1 / (1 + std::exp(1.0))).epsilon(1e-6));
  CHECK(c.weights[1] == doctest::Approx(1 / (1 + std::exp(-1.0))).epsilon(1e-6));
}

TEST_CASE("the added epsilon is part of the divisor") {
  const RoutingRule rule({.n_experts = 2, .top_k = 2, .scoring = RouterScoring::sigmoid, .norm_topk_prob = true, .norm_epsilon = 0.5f});
  const Choice c = choose(rule, {0.0f, 0.0f});
  CHECK(c.weights[0] == doctest::Approx(0.5 / 1.5).epsilon(1e-6));
}

TEST_CASE("the divisor is no less than the minimum") {
  RouterConfig config{.n_experts = 2, .top_k = 2, .scoring = RouterScoring::sigmoid, .norm_topk_prob = true};
  config.norm_minimum = 4.0f;
  CHECK(choose(RoutingRule(config), {0.0f, 0.0f}).weights[0] == 0.125f);
  config.norm_minimum = 0.25f;
  CHECK(choose(RoutingRule(config), {0.0f, 0.0f}).weights[0] == 0.5f);
}

TEST_CASE("ties go to the lower index, experts and groups alike") {
  CHECK(choose(RoutingRule({.n_experts = 6, .top_k = 3}), {0, 1, 1, 0, 1, 1}).ids == std::vector<std::int32_t>{1, 2, 4});
  CHECK(choose(RoutingRule({.n_experts = 6, .top_k = 6}), {0, 0, 0, 0, 0, 0}).ids == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
  const RouterConfig grouped{.n_experts = 8, .top_k = 3, .n_group = 4, .topk_group = 2, .group_score = GroupScore::best};
  CHECK(choose(RoutingRule(grouped), {1, 0, 2, 1, 2, 1, 2, 1}).ids == std::vector<std::int32_t>{2, 4, 3});
}

TEST_CASE("groups by their best expert and by their best two choose differently") {
  // Sigmoid is monotone: group 0 has the best expert, group 1 the best pair.
  const std::vector<float> logits{3, -3, 2, 2, 0, 0};
  RouterConfig config{.n_experts = 6, .top_k = 2, .scoring = RouterScoring::sigmoid, .n_group = 3, .topk_group = 1, .group_score = GroupScore::best};
  CHECK(choose(RoutingRule(config), logits).ids == std::vector<std::int32_t>{0, 1});
  config.group_score = GroupScore::best_two;
  CHECK(choose(RoutingRule(config), logits).ids == std::vector<std::int32_t>{2, 3});
}

TEST_CASE("experts of dropped groups are not chosen where selection scores are negative") {
  const RouterConfig config{.n_experts = 4, .top_k = 2, .scoring = RouterScoring::sigmoid, .n_group = 2, .topk_group = 1};
  const RoutingRule rule(config, vector({-2.0f, -2.0f, -3.0f, -3.0f}));  // a score of 0 for group 1 would win
  CHECK(choose(rule, {0, 1, 0, 1}).ids == std::vector<std::int32_t>{1, 0});
}

TEST_CASE("every combination of options agrees with a double precision reference") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 1.5f);
  int rows = 0, compared = 0;
  for (const std::int64_t n : {4, 16, 60, 256})
    for (const std::int64_t k : {std::int64_t{1}, std::int64_t{2}, n / 2, n})
      for (const auto scoring : {RouterScoring::softmax, RouterScoring::sigmoid, RouterScoring::chosen_softmax})
        for (const bool biased : {false, true})
          for (const std::int64_t groups : {1, 2, 4})
            for (const auto group_score : {GroupScore::best, GroupScore::best_two})
              for (const bool norm : {false, true}) {
                RouterConfig config{n, k, scoring, groups, (groups + 1) / 2, group_score, norm, norm ? 1e-20f : 0.0f, 1.7f};
                if (group_score == GroupScore::best_two && n / groups < 2) continue;
                if (k > config.topk_group * (n / groups)) config.topk_group = groups;
                std::vector<float> bias(biased ? static_cast<std::size_t>(n) : 0), logits(static_cast<std::size_t>(n));
                for (float& b : bias) b = 0.1f * normal(random);
                const RoutingRule rule(config, vector(bias));
                for (int repeat = 0; repeat < 3; ++repeat) {
                  for (float& z : logits) z = normal(random);
                  const Reference expected(config, bias, logits);
                  ++rows;
                  if (expected.margin < 1e-6) continue;  // f32 may order these differently
                  ++compared;
                  const Choice c = choose(rule, logits);
                  CHECK(c.ids == expected.ids);
                  for (std::size_t s = 0; s < c.ids.size(); ++s) CHECK(std::abs(c.weights[s] - expected.weights[s]) <= 1e-6 * expected.weights[s]);
                }
              }
  CHECK(compared > rows * 3 / 4);
}

TEST_CASE("replaying the ids that were chosen gives the same bits, other ids get weights by the same rule") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const auto scoring : {RouterScoring::softmax, RouterScoring::sigmoid, RouterScoring::chosen_softmax})
    for (const auto group_score : {GroupScore::best, GroupScore::best_two}) {
      const RoutingRule rule({16, 4, scoring, 4, 2, group_score, true, 1e-20f, 2.5f}, vector(std::vector<float>(16, 0.25f)));
      std::vector<float> logits(16);
      for (float& z : logits) z = normal(random);
      const Choice c = choose(rule, logits);
      CHECK(replay(rule, logits, c.ids) == c.weights);
      std::vector<float> other = replay(rule, logits, {15, 3, 8, 0});
      CHECK(std::accumulate(other.begin(), other.end(), 0.0) == doctest::Approx(2.5).epsilon(1e-6));
    }
  const RoutingRule rule({.n_experts = 3, .top_k = 2});
  const std::vector<float> logits{std::log(2.0f), std::log(1.0f), std::log(5.0f)};
  CHECK(replay(rule, logits, {1, 0})[0] == doctest::Approx(1.0 / 8).epsilon(1e-6));
}

TEST_CASE("weights of experts whose scores are all zero are zero, not NaN") {
  const RoutingRule rule({.n_experts = 3, .top_k = 2, .norm_topk_prob = true});
  CHECK(replay(rule, {0.0f, -200.0f, -300.0f}, {1, 2}) == std::vector<float>{0.0f, 0.0f});
}

TEST_CASE("logits that are not finite are an error") {
  const RoutingRule rule({.n_experts = 3, .top_k = 2});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    CHECK(contains(message_of([&] { choose(rule, {0.0f, bad, 0.0f}); }), "expert 1 is not finite"));
    CHECK_THROWS_AS(replay(rule, {0.0f, bad, 0.0f}, {0, 2}), moxie::Error);
  }
}

TEST_CASE("replayed ids are checked before use") {
  const RoutingRule rule({.n_experts = 3, .top_k = 2});
  CHECK(contains(message_of([&] { replay(rule, {0, 0, 0}, {0, 3}); }), "expert id 3 is out of range"));
  CHECK(contains(message_of([&] { replay(rule, {0, 0, 0}, {-1, 0}); }), "expert id -1 is out of range"));
  CHECK(contains(message_of([&] { replay(rule, {0, 0, 0}, {1, 1}); }), "twice"));
}

TEST_CASE("a routing configuration that cannot be is refused, and the message names the number") {
  const auto refused = [](RouterConfig config, const std::string& part, std::vector<float> bias = {}) {
    CHECK_THROWS_AS(RoutingRule(config, vector(bias)), ArgumentError);
    CHECK_MESSAGE(contains(message_of([&] { RoutingRule(config, vector(bias)); }), part), part);
  };
  refused({.n_experts = 0, .top_k = 1}, "n_experts must be 1 to 2147483647, got 0");
  refused({.n_experts = std::int64_t{1} << 31, .top_k = 1}, "n_experts must be 1 to 2147483647, got 2147483648");
  refused({.n_experts = 8, .top_k = 0}, "top_k must be 1 to n_experts (8), got 0");
  refused({.n_experts = 8, .top_k = 9}, "top_k must be 1 to n_experts (8), got 9");
  refused({.n_experts = 8, .top_k = 2, .n_group = 3}, "n_group must divide n_experts (8)");
  refused({.n_experts = 8, .top_k = 2, .n_group = 0}, "n_group");
  refused({.n_experts = 1024, .top_k = 2, .n_group = 512}, "at most 256");
  refused({.n_experts = 8, .top_k = 2, .n_group = 4, .topk_group = 5}, "topk_group must be 1 to n_group (4), got 5");
  refused({.n_experts = 8, .top_k = 3, .n_group = 4, .topk_group = 1}, "top_k must be at most the experts of topk_group groups (2)");
  refused({.n_experts = 4, .top_k = 1, .n_group = 4, .topk_group = 2}, "at least 2 experts each");
  refused({.n_experts = 4, .top_k = 1, .norm_epsilon = -1.0f}, "norm_epsilon");
  refused({.n_experts = 4, .top_k = 1, .norm_minimum = -1.0f}, "norm_minimum");
  refused({.n_experts = 4, .top_k = 1, .routed_scaling_factor = std::numeric_limits<float>::infinity()}, "routed_scaling_factor");
  refused({.n_experts = 4, .top_k = 1}, "must have n_experts (4) elements, got 3", {0, 0, 0});
  refused({.n_experts = 2, .top_k = 1}, "bias of expert 1 is not finite", {0, std::numeric_limits<float>::quiet_NaN()});
}

TEST_CASE("dispatch groups rows by expert in their order, and knows where each slot went") {
  const std::vector<std::int32_t> ids{3, 0,  //
                                      0, 1,  //
                                      3, 1,  //
                                      0, 3};
  Dispatch dispatch;
  dispatch.assign(ids.data(), 4, 2, 5);
  const auto rows = [&](Index e) { return std::vector<std::int32_t>(dispatch.rows(e), dispatch.rows(e) + dispatch.count(e)); };
  CHECK(rows(0) == std::vector<std::int32_t>{0, 1, 3});
  CHECK(rows(1) == std::vector<std::int32_t>{1, 2});
  CHECK(rows(2).empty());
  CHECK(rows(3) == std::vector<std::int32_t>{0, 2, 3});
  CHECK(rows(4).empty());
  CHECK(std::vector<Index>(dispatch.positions(), dispatch.positions() + 8) == std::vector<Index>{5, 0, 1, 3, 6, 4, 2, 7});

  dispatch.assign(ids.data(), 0, 2, 5);
  CHECK(dispatch.size() == 0);
  CHECK(dispatch.count(0) == 0);
  CHECK_THROWS_AS(dispatch.assign(ids.data(), 4, 2, 3), ArgumentError);
}

TEST_CASE("a trace keeps ids and weights by layer and token, and joins with others of its model") {
  RoutingTrace batch(2, 8, 2);
  batch.resize(5);
  for (Index layer = 0; layer < 2; ++layer)
    for (Index t = 0; t < 5; ++t)
      for (Index s = 0; s < 2; ++s) {
        batch.ids(layer)(t, s) = static_cast<std::int32_t>((layer + t + s) % 8);
        batch.weights(layer)(t, s) = static_cast<float>(100 * layer + 10 * t + s);
      }
  RoutingTrace sequence(2, 8, 2);
  sequence.append(batch, 3, 2);
  sequence.append(batch, 0, 1);
  REQUIRE(sequence.tokens() == 3);
  for (Index layer = 0; layer < 2; ++layer) {
    CHECK(sequence.ids(layer).row(1) == batch.ids(layer).row(4));
    CHECK(sequence.ids(layer).row(2) == batch.ids(layer).row(0));
    CHECK(sequence.weights(layer).row(0) == batch.weights(layer).row(3));
  }
  sequence.resize(1);
  CHECK(sequence.ids(1).row(0) == batch.ids(1).row(3));
  CHECK_THROWS_AS(sequence.append(batch, 4, 2), ArgumentError);
  CHECK_THROWS_AS(sequence.append(RoutingTrace(2, 8, 3), 0, 0), ArgumentError);
  CHECK_THROWS_AS(sequence.ids(2), ArgumentError);
  CHECK_THROWS_AS(RoutingTrace(0, 8, 2), ArgumentError);
  CHECK_THROWS_AS(RoutingTrace(1, 2, 3), ArgumentError);
  CHECK_THROWS_AS(sequence.resize(-1), ArgumentError);
}

TEST_CASE("a foreign or truncated trace is refused, and the message says what does not fit") {
  RoutingTrace trace(3, 8, 2);
  trace.resize(10);
  CHECK_NOTHROW(trace.check_fits(3, 8, 2, 10));
  CHECK(contains(message_of([&] { trace.check_fits(4, 8, 2, 10); }), "has 3 MoE layers, 4 are needed"));
  CHECK(contains(message_of([&] { trace.check_fits(3, 16, 2, 10); }), "has 8 experts, 16 are needed"));
  CHECK(contains(message_of([&] { trace.check_fits(3, 8, 4, 10); }), "has 2 experts per token, 4 are needed"));
  CHECK(contains(message_of([&] { trace.check_fits(3, 8, 2, 12); }), "has 10 tokens, 12 are needed"));
}
