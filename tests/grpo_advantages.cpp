// Rewards to advantages: the same as TRL's GRPOTrainer and RLOOTrainer.

#include <doctest/doctest.h>

#include <moxie/grpo/advantages.hpp>
#include <moxie/grpo/leave_one_out.hpp>

#include "grpo_cases.hpp"

namespace {

using moxie::ArgumentError;
using moxie::Index;
using namespace moxie::grpo;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

void check_advantage_cases(const std::string& folder) {
  const test::GoldenBatch golden(folder + "/advantages.safetensors");
  for (const nlohmann::json& c : nlohmann::json::parse(test::read_text(folder + "/advantages.json"))) {
    INFO(c["id"].get<std::string>());
    const Advantages result = advantages(
        {.values = golden.array(c["rewards"]), .num_generations = c["group_size"], .reward_weights = c["weights"]},
        {.scale_rewards = scale_rewards(c["scale_rewards"].get<std::string>()),
         .multi_objective_aggregation = multi_objective_aggregation(c["multi_objective_aggregation"].get<std::string>())});
    // Relative to 1, the width of normalised advantages, or to the largest advantage where they are not normalised.
    const TokenArray want = golden.array(c["advantages"]);
    REQUIRE(want.rows() == result.advantages.size());
    CHECK((want.col(0) - result.advantages).abs().maxCoeff() <= 1e-9 * std::max(1.0, want.abs().maxCoeff()));
    CHECK(result.metrics.size() == c["metrics"].size());
    for (const auto& item : c["metrics"].items()) {
      const std::string& name = item.key();
      INFO(name);
      REQUIRE(result.metrics.count(name) == 1);
      CHECK(test::relative_error(result.metrics.at(name), test::number_or_nan(item.value())) <= 1e-7);
    }
  }
}

TEST_CASE("advantages and reward metrics are TRL's, by group, batch, none and GDPO, with absent rewards: a small part") {
  check_advantage_cases(test::data_path("grpo"));
}

TEST_CASE("advantages and reward metrics are TRL's, by group, batch, none and GDPO, with absent rewards: all cases") {
  if (const auto folder = test::shared_path("grpo")) check_advantage_cases(*folder);
}

TEST_CASE("advantages of one reward need no more than the group size") {
  Eigen::ArrayXd rewards(6);
  rewards << 1.0, 0.0, 0.0, 2.0, 2.0, 2.0;
  const Eigen::ArrayXd got = group_advantages(rewards, 3);
  CHECK(got[0] == doctest::Approx((1.0 - 1.0 / 3.0) / (std::sqrt(1.0 / 3.0) + 1e-4)));
  CHECK(got.segment(0, 3).sum() == doctest::Approx(0.0));
  CHECK((got.segment(3, 3) == 0.0).all());
}

TEST_CASE("leave-one-out advantages and their metrics are those of TRL's RLOOTrainer") {
  int cases = 0;
  for (const nlohmann::json& c : nlohmann::json::parse(test::read_text(test::data_path("grpo/rloo.json")))) {
    INFO(c.dump());
    const auto& table = c["rewards"];
    Rewards rewards{.values = TokenArray(static_cast<Index>(table.size()), static_cast<Index>(table[0].size())),
                    .num_generations = c["num_generations"],
                    .reward_weights = c["reward_weights"]};
    Eigen::ArrayXd kl(rewards.values.rows()), want(rewards.values.rows());
    for (std::size_t i = 0; i < table.size(); ++i) {
      for (std::size_t k = 0; k < table[i].size(); ++k)
        rewards.values(static_cast<Index>(i), static_cast<Index>(k)) = test::number_or_nan(table[i][k]);
      kl[static_cast<Index>(i)] = c["kl"][i];
      want[static_cast<Index>(i)] = c["advantages"][i];
    }
    LeaveOneOutOptions options{.normalize_advantages = c["normalize_advantages"], .beta = c["beta"]};
    if (!c["reward_clip_range"].is_null())
      options.reward_clip_range = std::pair<double, double>(c["reward_clip_range"][0], c["reward_clip_range"][1]);
    const Advantages result = leave_one_out_advantages(rewards, options, kl);
    CHECK((want - result.advantages).abs().maxCoeff() <= 1e-12 * std::max(1.0, want.abs().maxCoeff()));
    CHECK(result.metrics.size() == c["metrics"].size());
    for (const auto& item : c["metrics"].items()) {
      const std::string& name = item.key();
      const nlohmann::json& value = item.value();
      INFO(name);
      REQUIRE(result.metrics.count(name) == 1);
      CHECK(test::relative_error(result.metrics.at(name), test::number_or_nan(value)) <= 1e-7);
    }
    ++cases;
  }
  CHECK(cases == 60);
}

TEST_CASE("leave-one-out: a completion against the mean of the others that have a reward") {
  Rewards rewards{.values = TokenArray(8, 2), .num_generations = 4};
  rewards.values << 1.0, 0.5,                  //
      3.0, nan,                                // an absent reward counts as 0
      nan, nan,                                // no reward at all: out of the mean, advantage 0
      -2.0, 1.0,                               //
      nan, nan, nan, nan, 4.0, 1.0, nan, nan;  // alone in its group
  const Advantages plain = leave_one_out_advantages(rewards);
  Eigen::ArrayXd want(8);
  want << 1.5 - (3.0 - 1.0) / 2.0, 3.0 - (1.5 - 1.0) / 2.0, 0.0, -1.0 - (1.5 + 3.0) / 2.0, 0.0, 0.0, 0.0, 0.0;
  CHECK((plain.advantages - want).abs().maxCoeff() < 1e-15);
  CHECK(plain.metrics.at("rewards/f1/mean") == doctest::Approx(2.5 / 3.0));
  CHECK(plain.metrics.at("reward") == doctest::Approx((1.5 + 3.0 - 1.0 + 5.0) / 4.0));

  const Advantages clipped = leave_one_out_advantages(rewards, {.reward_clip_range = std::pair(-0.5, 2.0)});
  CHECK(clipped.advantages[1] == doctest::Approx(2.0 - (1.5 - 0.5) / 2.0));

  const Advantages with_kl = leave_one_out_advantages(rewards, {.beta = 0.1}, Eigen::ArrayXd::LinSpaced(8, 0.0, 7.0));
  CHECK(with_kl.advantages[0] == doctest::Approx(1.5 - (2.9 - 1.3) / 2.0));

  const Advantages normalized = leave_one_out_advantages(rewards, {.normalize_advantages = true});
  CHECK(normalized.advantages[2] == 0.0);
  CHECK(normalized.advantages.sum() == doctest::Approx(0.0));

  // Without absent rewards it is the group's mean-centred reward times n / (n - 1).
  Rewards whole{.values = TokenArray::Random(12, 1), .num_generations = 6};
  const Eigen::ArrayXd centred = advantages(whole, {.scale_rewards = ScaleRewards::none}).advantages;
  CHECK((leave_one_out_advantages(whole).advantages - centred * 6.0 / 5.0).abs().maxCoeff() < 1e-14);
}

TEST_CASE("rewards that fit no group, weights that fit no function and unknown names are refused with what would be right") {
  const TokenArray six = TokenArray::Zero(6, 2);
  CHECK_THROWS_WITH_AS(advantages({.values = six, .num_generations = 4}),
                       "rewards are [6, 2], must be [rows, functions] with rows in whole groups of num_generations = 4",
                       ArgumentError);
  CHECK_THROWS_AS(advantages({.values = six, .num_generations = 0}), ArgumentError);
  CHECK_THROWS_AS(advantages({.values = six, .num_generations = 3, .reward_weights = {1.0}}), ArgumentError);
  CHECK_THROWS_AS(advantages({.values = six, .num_generations = 3, .names = {"a", "b", "c"}}), ArgumentError);
  CHECK_THROWS_AS(leave_one_out_advantages({.values = six, .num_generations = 3}, {.beta = 0.1}), ArgumentError);
  CHECK_THROWS_AS(group_advantages(Eigen::ArrayXd::Zero(6), 1), ArgumentError);
  CHECK_THROWS_WITH_AS(scale_rewards("rows"), "scale_rewards \"rows\" is unknown; possible are group, batch, none",
                       ArgumentError);
}

}  // namespace
