#pragma once
// Reads the reference cases of the losses and advantages (../shared/grpo, a part of them in tests/data/grpo).

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include <moxie/grpo/importance.hpp>
#include <moxie/grpo/losses.hpp>

#include "safetensors_mini.hpp"

namespace test {

/// null stands for NaN among metrics.
inline double number_or_nan(const nlohmann::json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

template <class T>
std::optional<T> optional_of(const nlohmann::json& value) {
  return value.is_null() ? std::nullopt : std::optional<T>(value.get<T>());
}

/// A tensor of one or two dimensions as an array; one dimension gives a column.
template <class Stored>
moxie::grpo::TokenArray array_of(const MiniTensor& tensor) {
  const std::vector<Stored> values = tensor.as<Stored>();
  moxie::grpo::TokenArray array(tensor.shape.at(0), tensor.shape.size() > 1 ? tensor.shape.at(1) : 1);
  REQUIRE(array.size() == static_cast<moxie::Index>(values.size()));
  for (moxie::Index i = 0; i < array.size(); ++i) array.data()[i] = static_cast<double>(values[static_cast<std::size_t>(i)]);
  return array;
}

inline moxie::grpo::TokenArray read_array(const MiniTensor& tensor) {
  if (tensor.dtype == "F64") return array_of<double>(tensor);
  if (tensor.dtype == "F32") return array_of<float>(tensor);
  REQUIRE(tensor.dtype == "U8");
  return array_of<std::uint8_t>(tensor);
}

inline moxie::grpo::TokenMask as_mask(const moxie::grpo::TokenArray& array) { return array != 0.0; }

/// Largest difference relative to the largest reference value; a difference in shape is infinite.
inline double relative_error(const moxie::grpo::TokenArray& got, const moxie::grpo::TokenArray& want) {
  if (got.rows() != want.rows() || got.cols() != want.cols()) return std::numeric_limits<double>::infinity();
  const double largest = want.abs().maxCoeff(), error = (got - want).abs().maxCoeff();
  return error == 0.0 ? 0.0 : error / largest;
}

inline double relative_error(double got, double want) {
  if (std::isnan(got) && std::isnan(want)) return 0.0;
  return got == want ? 0.0 : std::abs(got - want) / std::abs(want);
}

inline moxie::grpo::LossOptions loss_options(const nlohmann::json& c) {
  const nlohmann::json& o = c["options"];
  const auto aux_coef = optional_of<double>(c["aux_loss_coef"]);
  return {.loss_type = moxie::grpo::loss_type(o["loss_type"].get<std::string>()),
          .importance_sampling_level = moxie::grpo::importance_sampling_level(o["importance_sampling_level"].get<std::string>()),
          .epsilon = o["epsilon"],
          .epsilon_high = optional_of<double>(o["epsilon_high"]),
          .delta = optional_of<double>(o["delta"]),
          .beta = o["beta"],
          .use_bias_correction_kl = o["use_bias_correction_kl"],
          .sapo_temperature_pos = o["sapo_temperature_pos"],
          .sapo_temperature_neg = o["sapo_temperature_neg"],
          .vespo_k_pos = o["vespo_k_pos"],
          .vespo_lambda_pos = o["vespo_lambda_pos"],
          .vespo_k_neg = o["vespo_k_neg"],
          .vespo_lambda_neg = o["vespo_lambda_neg"],
          .top_entropy_quantile = o["top_entropy_quantile"],
          .off_policy_mask_threshold = optional_of<double>(o["off_policy_mask_threshold"]),
          .entropy_coef = o["entropy_coef"],
          .router_aux_loss_coef = aux_coef.value_or(0.0),
          .max_completion_length = c["max_completion_length"],
          .gradient_accumulation_steps = c["accumulation"],
          .steps_per_generation = c["steps_per_generation"].get<moxie::Index>(),
          .training = c["training"]};
}

inline moxie::grpo::ImportanceOptions importance_options(const nlohmann::json& sampling) {
  return {.vllm_importance_sampling_mode = moxie::grpo::importance_sampling_mode(sampling["mode"].get<std::string>()),
          .vllm_importance_sampling_clip_max = optional_of<double>(sampling["clip_max"]),
          .vllm_importance_sampling_clip_min = optional_of<double>(sampling["clip_min"])};
}

/// The tensors of a batch file, converted once.
class GoldenBatch {
 public:
  explicit GoldenBatch(const std::string& path) : tensors_(read_safetensors(path)) {}

  moxie::grpo::TokenArray array(const std::string& name) const {
    INFO(name);
    REQUIRE(tensors_.count(name) == 1);
    return read_array(tensors_.at(name));
  }
  moxie::grpo::TokenMask mask() const { return as_mask(array("mask")); }

  /// What the case is computed from; the correction for the sampler is formed from the whole batch, before the rows are cut out.
  moxie::grpo::LossBatch inputs(const nlohmann::json& c) const {
    moxie::grpo::LossBatch batch;
    batch.logprobs = array("logps");
    batch.mask = mask();
    batch.advantages = array(c["advantages"]);
    batch.ref_logprobs = array("ref_logps");
    batch.entropies = array("entropies");
    if (!c["old_logps"].is_null()) batch.old_logprobs = array(c["old_logps"]);
    if (const nlohmann::json& sampling = c["importance_sampling"]; !sampling.is_null()) {
      batch.sampling_logprobs = array("sampling_logps");
      batch.importance_sampling_ratio = moxie::grpo::importance_correction(array("old_logps"), batch.sampling_logprobs,
                                                                           batch.mask, importance_options(sampling))
                                            .ratio;
    }
    batch.num_items_in_batch = c["num_items_in_batch"].get<moxie::Index>();
    batch.aux_loss = optional_of<double>(c["aux_loss"]);
    return batch.middle_rows(c["rows"][0], c["rows"][1]);
  }

 private:
  MiniTensors tensors_;
};

}  // namespace test
