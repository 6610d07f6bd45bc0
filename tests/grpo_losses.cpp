// Losses, gradients, metrics and masks of grpo/losses.hpp: the same as TRL's GRPOTrainer with PyTorch's autograd, and as finite
// differences.

#include <random>

#include <doctest/doctest.h>

#include <moxie/grpo/importance.hpp>
#include <moxie/grpo/load_balancing.hpp>
#include <moxie/grpo/losses.hpp>

#include "grpo_cases.hpp"

namespace {

using moxie::ArgumentError;
using moxie::Index;
using namespace moxie::grpo;

constexpr double loss_tolerance = 1e-9;      // relative; losses near 0 lose digits to cancellation
constexpr double gradient_tolerance = 1e-7;  // of the largest; the references are rounded to f32 once
constexpr double metric_tolerance = 1e-7;    // TRL counts clipped tokens in f32

void check_metrics(const Metrics& got, const nlohmann::json& want) {
  CHECK(got.size() == want.size());
  for (const auto& item : want.items()) {
    const std::string& name = item.key();
    INFO(name);
    REQUIRE(got.count(name) == 1);
    CHECK(test::relative_error(got.at(name), test::number_or_nan(item.value())) <= metric_tolerance);
  }
}

void check_loss_case(const nlohmann::json& c, const test::GoldenBatch& golden) {
  INFO(c["id"].get<std::string>());
  const LossOptions options = test::loss_options(c);
  const LossBatch batch = golden.inputs(c);
  const LossResult result = Loss(options)(batch);
  CHECK(test::relative_error(result.loss, c["loss"].get<double>()) <= loss_tolerance);
  CHECK(test::relative_error(result.d_logprobs, golden.array(c["grad_logps"])) <= gradient_tolerance);
  if (c["grad_entropies"].is_null())
    CHECK(result.d_entropies.size() == 0);
  else
    CHECK(test::relative_error(result.d_entropies, golden.array(c["grad_entropies"])) <= gradient_tolerance);
  check_metrics(result.metrics, c["metrics"]);
  if (c.contains("entropy_mask"))
    CHECK((high_entropy_mask(batch.entropies, batch.mask, options.top_entropy_quantile) ==
           test::as_mask(golden.array(c["entropy_mask"])))
              .all());
  if (c.contains("off_policy_mask")) {
    const TokenArray& sampling = batch.sampling_logprobs.size() > 0 ? batch.sampling_logprobs
                                 : batch.old_logprobs.size() > 0    ? batch.old_logprobs
                                                                    : batch.logprobs;
    const TokenMask keep =
        off_policy_mask(batch.advantages, batch.logprobs, sampling, batch.mask, *options.off_policy_mask_threshold);
    CHECK((keep == test::as_mask(golden.array(c["off_policy_mask"]))).all());
  }
}

/// Every case of a cases.json, with the batch files beside it.
void check_loss_cases(const std::string& folder) {
  const nlohmann::json index = nlohmann::json::parse(test::read_text(folder + "/cases.json"));
  for (const auto& item : index["batches"].items()) {
    const std::string& name = item.key();
    const nlohmann::json& described = item.value();
    const test::GoldenBatch golden(folder + "/" + described["file"].get<std::string>());
    for (const nlohmann::json& sampling : described["importance_sampling"]) {
      INFO(name << " " << sampling["ratio"].get<std::string>());
      const ImportanceCorrection correction = importance_correction(golden.array("old_logps"), golden.array("sampling_logps"),
                                                                    golden.mask(), test::importance_options(sampling));
      CHECK(test::relative_error(correction.ratio, golden.array(sampling["ratio"])) <= loss_tolerance);
      check_metrics(correction.metrics, sampling["metrics"]);
    }
    for (const nlohmann::json& c : index["cases"])
      if (c["batch"] == name) check_loss_case(c, golden);
  }
}

TEST_CASE("losses, gradients and metrics are TRL's in every combination of options: a small part") {
  check_loss_cases(test::data_path("grpo"));
}

TEST_CASE("losses, gradients and metrics are TRL's in every combination of options: all cases") {
  if (const auto folder = test::shared_path("grpo")) check_loss_cases(*folder);
}

TEST_CASE("losses of an output matrix's log-probabilities are those of the end-to-end reference") {
  const auto index = test::shared_path("grpo/end_to_end.json"), file = test::shared_path("grpo/end_to_end.safetensors");
  if (!index || !file) return;
  const test::GoldenBatch golden(*file);
  for (const nlohmann::json& c : nlohmann::json::parse(test::read_text(*index))["cases"]) {
    INFO(c["id"].get<std::string>());
    LossBatch batch;
    batch.logprobs = golden.array("logps");
    batch.mask = golden.mask();
    batch.advantages = golden.array("advantages");
    batch.old_logprobs = golden.array("old_logps");
    batch.ref_logprobs = golden.array("ref_logps");
    batch.entropies = golden.array("entropies");
    batch.num_items_in_batch = c["num_items_in_batch"].get<Index>();
    const Loss loss({.loss_type = loss_type(c["loss_type"].get<std::string>()),
                     .importance_sampling_level = importance_sampling_level(c["importance_sampling_level"].get<std::string>()),
                     .epsilon = c["epsilon"],
                     .epsilon_high = test::optional_of<double>(c["epsilon_high"]),
                     .beta = c["beta"],
                     .entropy_coef = c["entropy_coef"],
                     .max_completion_length = c["max_completion_length"]});
    CHECK(test::relative_error(loss(batch).loss, c["loss"].get<double>()) <= loss_tolerance);
  }
}

TEST_CASE("the adaptive entropy coefficient takes TRL's course over optimizer steps, and goes on from a checkpoint") {
  const auto path = test::shared_path("grpo/adaptive_entropy.json");
  if (!path) return;
  const auto array = [](const nlohmann::json& rows) {
    TokenArray a(static_cast<Index>(rows.size()), rows[0].is_array() ? static_cast<Index>(rows[0].size()) : 1);
    for (Index i = 0; i < a.rows(); ++i)
      for (Index t = 0; t < a.cols(); ++t) {
        const nlohmann::json& row = rows[static_cast<std::size_t>(i)];
        a(i, t) = row.is_array() ? row[static_cast<std::size_t>(t)].get<double>() : row.get<double>();
      }
    return a;
  };
  for (const nlohmann::json& run : nlohmann::json::parse(test::read_text(*path))) {
    const LossOptions options{.loss_type = loss_type(run["loss_type"].get<std::string>()),
                              .top_entropy_quantile = run["top_entropy_quantile"],
                              .entropy_coef = run["entropy_coef"],
                              .use_adaptive_entropy = true,
                              .entropy_target = run["entropy_target"],
                              .entropy_coef_delta = run["entropy_coef_delta"],
                              .entropy_coef_min = run["entropy_coef_min"],
                              .entropy_coef_max = run["entropy_coef_max"],
                              .gradient_accumulation_steps = run["accumulation"]};
    const Loss loss(options);
    AdaptiveEntropy control(options);
    for (const nlohmann::json& step : run["steps"]) {
      const LossResult result = loss(
          {
              .logprobs = array(step["logps"]),
              .mask = test::as_mask(array(step["mask"])),
              .advantages = array(step["advantages"]),
              .old_logprobs = array(step["old_logps"]),
              .entropies = array(step["entropies"]),
          },
          control.applied());
      control.add(result.entropy);
      CHECK(test::relative_error(result.loss, step["loss"].get<double>()) <= loss_tolerance);
      CHECK(test::relative_error(result.metrics.at("policy_loss"), step["policy_loss"].get<double>()) <= loss_tolerance);
      CHECK(test::relative_error(result.d_entropies, array(step["grad_entropies"])) <= gradient_tolerance);
      if (step["last_micro_batch"].get<bool>()) {
        CHECK(control.step() == control.state().entropy_coef);
        CHECK(test::relative_error(control.state().last_world_entropy, step["window_entropy_after"].get<double>()) <=
              loss_tolerance);
        control = AdaptiveEntropy(options, control.state());
      }
      CHECK(test::relative_error(control.state().entropy_coef, step["entropy_coef_after"].get<double>()) <= loss_tolerance);
    }
  }
}

TEST_CASE("the load-balancing loss and its gradient are those of transformers") {
  const auto index = test::shared_path("grpo/aux_loss.json"), file = test::shared_path("grpo/aux_loss.safetensors");
  if (!index || !file) return;
  test::MiniTensors tensors = test::read_safetensors(*file);
  const auto rows_of = [&](const std::string& name) {  // [layers, tokens, experts] -> [layers * tokens, experts]
    test::MiniTensor& t = tensors.at(name);
    t.shape = {t.shape[0] * t.shape[1], t.shape[2]};
    return test::read_array(t);
  };
  for (const nlohmann::json& c : nlohmann::json::parse(test::read_text(*index))) {
    const std::string id = c["id"];
    INFO(id);
    TokenMask mask;
    if (c["masked"].get<bool>()) mask = test::as_mask(test::read_array(tensors.at(id + ".mask")));
    const LoadBalancing result = load_balancing_loss(rows_of(id + ".router_logits"), mask, c["top_k"]);
    CHECK(test::relative_error(result.loss, c["loss"].get<double>()) <= 1e-6);
    CHECK(test::relative_error(result.d_router_logits, rows_of(id + ".grad_router_logits")) <= 1e-6);
  }
}

/// B = 5 rows of T = 7 tokens with holes, an empty row, both signs of advantages and ratios on both sides of the clip bounds.
LossBatch random_batch(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto draw = [&](double mean, double width) {
    TokenArray a(5, 7);
    for (Index i = 0; i < a.size(); ++i) a.data()[i] = mean + width * normal(random);
    return a;
  };
  LossBatch batch;
  batch.logprobs = draw(-2.0, 0.5);
  batch.mask = draw(0.7, 1.0) > 0.0;
  batch.mask.row(3) = false;
  batch.advantages = draw(0.0, 1.0).leftCols(seed % 2 == 0 ? 1 : 7);
  batch.old_logprobs = batch.logprobs + draw(0.0, 0.4);
  batch.ref_logprobs = batch.logprobs + draw(0.0, 0.4);
  batch.sampling_logprobs = batch.old_logprobs + draw(0.0, 0.2);
  batch.sampling_logprobs(1, 2) = std::numeric_limits<double>::quiet_NaN();
  batch.entropies = draw(2.0, 0.5).abs();
  batch.importance_sampling_ratio =
      importance_correction(
          batch.old_logprobs, batch.sampling_logprobs, batch.mask,
          {.vllm_importance_sampling_mode = ImportanceSamplingMode::token_truncate, .vllm_importance_sampling_clip_max = 1.2})
          .ratio;
  batch.num_items_in_batch = 31;
  batch.aux_loss = 1.5;
  return batch;
}

/// Loss types whose term is -stop(weight) A x: the loss itself is not what its gradient belongs to.
bool has_stopped_weight(LossType type) { return type == LossType::cispo || type == LossType::vespo; }

constexpr LossType all_types[] = {LossType::grpo,  LossType::bnpo, LossType::dr_grpo, LossType::dapo,
                                  LossType::cispo, LossType::sapo, LossType::luspo,   LossType::vespo};

TEST_CASE("gradients are the central differences of the loss, and padding has none") {
  for (unsigned seed = 0; seed < 4; ++seed)
    for (const LossType type : all_types)
      for (const auto level : {ImportanceSamplingLevel::token, ImportanceSamplingLevel::sequence})
        for (const bool corrected : {false, true}) {
          CAPTURE(seed);
          CAPTURE(static_cast<int>(type));
          LossOptions options{.loss_type = type,
                              .importance_sampling_level = level,
                              .epsilon = 0.21,
                              .epsilon_high = 0.27,
                              .delta = 1.61,
                              .beta = 0.3,
                              .use_bias_correction_kl = corrected,
                              .off_policy_mask_threshold = 0.31,
                              .entropy_coef = 0.07,
                              .router_aux_loss_coef = 0.01,
                              .gradient_accumulation_steps = 2,
                              .steps_per_generation = 4};
          if (seed >= 2) options.top_entropy_quantile = 0.6;
          const Loss loss(options);
          LossBatch batch = random_batch(seed);
          if (has_stopped_weight(type)) batch.advantages.setZero();  // leaves the KL term
          const LossResult result = loss(batch);
          constexpr double h = 1e-6;
          const auto difference = [&](double& x) {
            const double kept = x;
            x = kept + h;
            const double above = loss(batch).loss;
            x = kept - h;
            const double below = loss(batch).loss;
            x = kept;
            return (above - below) / (2.0 * h);
          };
          for (Index i = 0; i < batch.rows(); ++i)
            for (Index t = 0; t < batch.cols(); ++t) {
              CHECK(result.d_logprobs(i, t) == doctest::Approx(difference(batch.logprobs(i, t))).epsilon(1e-6));
              CHECK(result.d_entropies(i, t) == doctest::Approx(difference(batch.entropies(i, t))).epsilon(1e-6));
              if (!batch.mask(i, t)) CHECK(result.d_logprobs(i, t) == 0.0);
            }
          CHECK(result.d_aux_loss == doctest::Approx(difference(*batch.aux_loss)));
        }
}

TEST_CASE("cispo and vespo: the gradient is that of the log-probability with the weight held") {
  for (unsigned seed = 0; seed < 4; ++seed) {
    const LossBatch batch = random_batch(seed);
    const TokenArray ratio = importance_ratio(batch.logprobs, batch.old_logprobs, batch.mask, ImportanceSamplingLevel::token);
    for (const LossType type : {LossType::cispo, LossType::vespo}) {
      const LossOptions options{.loss_type = type, .epsilon_high = 1.3};
      const TokenArray phi = vespo_weight(options, batch.logprobs, batch.old_logprobs, batch.mask,
                                          batch.importance_sampling_ratio, batch.advantages);
      const LossResult result = Loss(options)(batch);
      double loss = 0.0;
      for (Index i = 0; i < batch.rows(); ++i)
        for (Index t = 0; t < batch.cols(); ++t) {
          const double weight =
              type == LossType::cispo ? std::min(ratio(i, t), 1.3) * batch.importance_sampling_ratio(i, t) : at(phi, i, t);
          const double want = batch.mask(i, t) ? -weight * at(batch.advantages, i, t) / 31.0 : 0.0;
          CHECK(result.d_logprobs(i, t) == doctest::Approx(want));
          loss += want * batch.logprobs(i, t);
        }
      CHECK(result.loss == doctest::Approx(loss));
    }
  }
}

TEST_CASE("on-policy every ratio is exactly 1 and nothing is clipped, with and without old log-probabilities") {
  for (const LossType type : {LossType::grpo, LossType::bnpo, LossType::dr_grpo, LossType::dapo, LossType::luspo})
    for (const auto level : {ImportanceSamplingLevel::token, ImportanceSamplingLevel::sequence}) {
      LossBatch batch = random_batch(7);
      batch.old_logprobs = TokenArray();
      const Loss loss({.loss_type = type, .importance_sampling_level = level, .epsilon = 0.0});
      const LossResult without = loss(batch);
      batch.old_logprobs = batch.logprobs;
      const LossResult with = loss(batch);
      CHECK((importance_ratio(batch.logprobs, batch.old_logprobs, batch.mask, level) == 1.0).all());
      for (const char* share : {"low_mean", "high_mean", "region_mean", "low_min", "high_max"})
        CHECK(with.metrics.at(std::string("clip_ratio/") + share) == 0.0);
      CHECK(with.loss == without.loss);
      CHECK((with.d_logprobs == without.d_logprobs).all());
    }
}

TEST_CASE("micro-batches of a dapo batch add up to the whole, which keeps its number of tokens") {
  LossBatch batch = random_batch(3);
  batch.num_items_in_batch = std::nullopt;
  const LossResult whole = Loss({.loss_type = LossType::dapo, .beta = 0.1})(batch);
  const Loss loss({.loss_type = LossType::dapo, .beta = 0.1, .gradient_accumulation_steps = 2});
  const LossResult first = loss(batch.middle_rows(0, 2)), rest = loss(batch.middle_rows(2, 5));
  CHECK(first.loss + rest.loss == doctest::Approx(whole.loss).epsilon(1e-14));
  CHECK((first.d_logprobs - whole.d_logprobs.topRows(2)).abs().maxCoeff() < 1e-16);
  CHECK((rest.d_logprobs - whole.d_logprobs.bottomRows(3)).abs().maxCoeff() < 1e-16);
}

TEST_CASE("what stands in the padding does not matter") {
  for (const LossType type : all_types) {
    LossBatch batch = random_batch(4);
    const Loss loss(
        {.loss_type = type, .beta = 0.1, .top_entropy_quantile = 0.5, .off_policy_mask_threshold = 0.1, .entropy_coef = 0.1});
    const LossResult before = loss(batch);
    for (TokenArray* array :
         {&batch.logprobs, &batch.old_logprobs, &batch.ref_logprobs, &batch.sampling_logprobs, &batch.entropies})
      *array = batch.mask.select(*array, std::numeric_limits<double>::quiet_NaN());
    const LossResult after = loss(batch);
    CHECK(after.loss == before.loss);
    CHECK((after.d_logprobs == before.d_logprobs).all());
    CHECK((after.d_entropies == before.d_entropies).all());
    CHECK(after.metrics == before.metrics);
  }
}

TEST_CASE("a sampler's missing log-probabilities count as no difference") {
  const double missing = std::numeric_limits<double>::quiet_NaN();
  TokenArray old(1, 3), sampled(1, 3);
  old << -1.0, -2.0, -3.0;
  sampled << -1.5, missing, -2.0;
  const TokenMask mask = TokenMask::Constant(1, 3, true);
  const ImportanceOptions token{.vllm_importance_sampling_mode = ImportanceSamplingMode::token_mask,
                                .vllm_importance_sampling_clip_max = 1.6};
  const ImportanceCorrection correction = importance_correction(old, sampled, mask, token);
  CHECK(correction.ratio(0, 0) == 0.0);
  CHECK(correction.ratio(0, 1) == 1.0);
  CHECK(correction.ratio(0, 2) == doctest::Approx(std::exp(-1.0)));
  CHECK(correction.metrics.at("sampling/sampling_logp_difference/mean") == doctest::Approx(0.75));
  CHECK(importance_correction(old, sampled, mask, {}).ratio(0, 0) == doctest::Approx(std::exp(-0.5)));
  const TokenArray negative = TokenArray::Constant(1, 1, -1.0);
  CHECK(off_policy_mask(negative, old, sampled, mask, 0.2)(0, 0));  // (-0.5 + 0 + 1) / 3 nats
  CHECK(!off_policy_mask(negative, old, sampled, mask, 0.1)(0, 0));
}

TEST_CASE("wrong options and shapes are refused with what would be right") {
  const auto refuses = [](const LossOptions& options, const char* text) {
    INFO(std::string(text));
    try {
      Loss loss(options);
      FAIL_CHECK("taken");
    } catch (const ArgumentError& error) {
      CHECK(std::string(error.what()).find(text) != std::string::npos);
    }
  };
  refuses({.epsilon = -0.1}, "epsilon is -0.1");
  refuses({.delta = 0.0}, "delta");
  refuses({.sapo_temperature_neg = 0.0}, "sapo_temperature_neg");
  refuses({.top_entropy_quantile = 1.5}, "0..1");
  refuses({.max_completion_length = 0}, "max_completion_length");
  refuses({.gradient_accumulation_steps = 0}, "gradient_accumulation_steps");
  refuses({.beta = std::numeric_limits<double>::quiet_NaN()}, "beta");
  CHECK_THROWS_WITH_AS(loss_type("ppo"),
                       "loss_type \"ppo\" is unknown; possible are grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo, vespo",
                       ArgumentError);

  const LossBatch good = random_batch(2);
  const auto refuses_batch = [&](const LossOptions& options, auto&& spoil, const char* text) {
    LossBatch batch = good;
    spoil(batch);
    try {
      Loss loss(options);
      loss(batch);
      FAIL_CHECK("taken: " << std::string(text));
    } catch (const ArgumentError& error) {
      INFO(std::string(error.what()));
      CHECK(std::string(error.what()).find(text) != std::string::npos);
    }
  };
  refuses_batch(
      {}, [](LossBatch& b) { b.logprobs = TokenArray(); }, "logprobs are empty");
  refuses_batch(
      {}, [](LossBatch& b) { b.mask = TokenMask::Constant(5, 6, true); }, "mask are [5, 6], must be [5, 7]");
  refuses_batch(
      {}, [](LossBatch& b) { b.advantages = TokenArray(); }, "advantages are [0, 0], must be [5, 7] or [5, 1]");
  refuses_batch(
      {}, [](LossBatch& b) { b.old_logprobs = b.old_logprobs.topRows(4).eval(); }, "old_logprobs are [4, 7]");
  refuses_batch(
      {.beta = 0.1}, [](LossBatch& b) { b.ref_logprobs = TokenArray(); }, "ref_logprobs");
  refuses_batch(
      {.entropy_coef = 0.1}, [](LossBatch& b) { b.entropies = TokenArray(); }, "entropies");
  refuses_batch(
      {.router_aux_loss_coef = 0.1}, [](LossBatch& b) { b.aux_loss.reset(); }, "aux_loss");
  refuses_batch(
      {.use_adaptive_entropy = true}, [](LossBatch&) {}, "AdaptiveEntropy");
  refuses_batch(
      {.loss_type = LossType::vespo}, [](LossBatch& b) { b.importance_sampling_ratio = TokenArray::Ones(5, 1); },
      "token_truncate");
  CHECK_THROWS_AS(good.middle_rows(2, 6), ArgumentError);
  CHECK_THROWS_AS(importance_correction(good.old_logprobs, good.sampling_logprobs, good.mask.topRows(2), {}), ArgumentError);
  CHECK_THROWS_AS(importance_correction(good.old_logprobs, good.sampling_logprobs, good.mask,
                                        {.vllm_importance_sampling_mode = ImportanceSamplingMode::token_truncate,
                                         .vllm_importance_sampling_clip_max = {}}),
                  ArgumentError);
  CHECK_THROWS_AS(load_balancing_loss(TokenArray::Zero(4, 3), TokenMask(), 4), ArgumentError);
  CHECK_THROWS_AS(load_balancing_loss(TokenArray::Zero(4, 3), TokenMask::Constant(1, 3, true), 1), ArgumentError);
}

}  // namespace
