#pragma once
// An adapter on the output matrix, saved as PEFT saves a LoRA of "lm_head" (layout in peft_folder.hpp), so that
// PeftModel.from_pretrained(base, folder) loads it, and loaded again.

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <system_error>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/peft_folder.hpp>
#include <moxie/io/safetensors_writer.hpp>
#include <moxie/model/output_adapter.hpp>

namespace moxie {

/// Writes adapter_model.safetensors, then adapter_config.json, into the folder, which is made where it is missing. Each file
/// appears, or replaces an older one, only when it is complete. `base_model` is what PEFT calls base_model_name_or_path; may be
/// empty. Throws SystemError, ArgumentError for an adapter that is empty or not finite.
inline void save_peft(const std::string& folder, const OutputAdapter& adapter, const std::string& base_model = {}) {
  if (adapter.rank() < 1 || adapter.b.cols() != adapter.rank())
    throw ArgumentError("an adapter needs a [rank, hidden] and b [vocab, rank]");
  if (!adapter.a.allFinite() || !adapter.b.allFinite() || !std::isfinite(adapter.scale))
    throw ArgumentError("the adapter holds numbers that are not finite");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw SystemError({folder, {}, {}}, concat("cannot make the folder: ", error.message()));
  const std::filesystem::path path(folder);

  SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  writer.add("base_model.model.lm_head.lora_A.weight", adapter.a);
  writer.add("base_model.model.lm_head.lora_B.weight", adapter.b);
  writer.write((path / "adapter_model.safetensors").string());

  const double alpha = static_cast<double>(adapter.scale) * static_cast<double>(adapter.rank());
  nlohmann::ordered_json config = {{"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"r", adapter.rank()}};
  if (alpha == std::nearbyint(alpha) && std::abs(alpha) < 1e9)
    config["lora_alpha"] = static_cast<std::int64_t>(alpha);
  else
    config["lora_alpha"] = alpha;
  config["target_modules"] = {"lm_head"};
  config["lora_dropout"] = 0.0;
  config["bias"] = "none";
  config["use_rslora"] = false;
  config["use_dora"] = false;
  config["fan_in_fan_out"] = false;
  config["init_lora_weights"] = true;
  config["inference_mode"] = true;
  config["base_model_name_or_path"] = base_model.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(base_model);
  const std::string text = concat(config.dump(2, ' ', false, nlohmann::json::error_handler_t::replace), "\n");
  AtomicFile file((path / "adapter_config.json").string());
  file.write(text.data(), text.size());
  file.commit();
}

/// Reads a folder whose only module is lm_head; call pack() before use. Throws SystemError, FormatError, UnsupportedError when it
/// adapts other modules too (LoadOptions::adapter merges those).
inline OutputAdapter load_peft(const std::string& folder) {
  const PeftFolder peft = PeftFolder::open(folder);
  for (const auto& [module, update] : peft.adapter().updates)
    if (module != "lm_head")
      throw UnsupportedError({folder, {}, {}},
                             concat("adapts the module ", in_quotes(module),
                                    "; an adapter beside the output matrix has lm_head only (load the model with "
                                    "LoadOptions::adapter to merge others)"));
  const LowRankUpdate& update = peft.adapter().updates.begin()->second;
  if (update.a.rows() != update.b.columns())
    throw FormatError(update.a.place(), concat("has shape ", update.a.shape_text(), " beside a lora_B of ", update.b.shape_text(),
                                               "; they must be [r, hidden] and [vocab, r]"));
  const auto values = [](const TensorView& tensor) {
    RowMatrix matrix(tensor.rows(), tensor.columns());
    dequantize(tensor, matrix.data());
    if (!matrix.allFinite()) throw FormatError(tensor.place(), "holds numbers that are not finite");
    return matrix;
  };
  OutputAdapter adapter;
  adapter.a = values(update.a);
  adapter.b = values(update.b);
  adapter.scale = peft.adapter().scale("lm_head", update.a.rows());
  return adapter;
}

}  // namespace moxie
