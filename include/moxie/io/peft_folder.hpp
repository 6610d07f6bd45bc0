#pragma once
// An adapter folder as Hugging Face PEFT saves it: adapter_config.json and adapter_model.safetensors, LoRA of linear layers.
//
//   base_model.model.MODULE.lora_A.weight [r, inputs], base_model.model.MODULE.lora_B.weight [outputs, r], of F32, F16 or BF16
//   scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern give modules an r and an
//   alpha of their own
//
// A key of a pattern means the modules that are it or end in "." and it, ".*\.KEY" the same; other regular expressions are not
// supported. Options that change what is computed and that moxie does not have (DoRA, biases, modules saved whole, ..) are
// errors. MODULE.base_layer.weight, a copy of the model's own weight that PEFT saves of output matrices, is left out. Errors:
// SystemError, FormatError, UnsupportedError. Source: PEFT, peft/tuners/lora/config.py and layer.py, peft/utils/save_and_load.py.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include <moxie/core/error.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/safetensors.hpp>
#include <moxie/model/fields.hpp>
#include <moxie/model/low_rank.hpp>

namespace moxie {

class PeftFolder {
 public:
  /// Reads the configuration and maps the matrices.
  static PeftFolder open(const std::string& path) { return PeftFolder(path); }

  /// By module, without "base_model.model."; valid as long as this.
  const LowRankAdapter& adapter() const noexcept { return adapter_; }
  const std::string& path() const noexcept { return path_; }

 private:
  static constexpr std::int64_t max_rank = 65536;

  explicit PeftFolder(std::string path) : path_(std::move(path)), config_file_(file("adapter_config.json")) {
    std::error_code error;
    if (!std::filesystem::is_directory(path_, error)) throw SystemError({path_, {}, {}}, "not a folder");
    if (!has("adapter_config.json"))
      throw FormatError({config_file_, {}, {}}, "the file is missing; an adapter folder must have it beside its matrices");
    if (!has("adapter_model.safetensors"))
      throw FormatError({file("adapter_model.safetensors"), {}, {}},
                        std::string("the file is missing") +
                            (has("adapter_model.bin")
                                 ? "; adapter_model.bin is not read: save the adapter as safetensors (save_pretrained does)"
                                 : ""));
    config_ = read_json_file(config_file_);
    const Fields f(config_, config_file_);
    check_options(f);
    tensors_ = SafetensorsFile::open(file("adapter_model.safetensors")).tensors();
    collect();
    adapter_.scale = [config = config_, file = config_file_](const std::string& module, std::int64_t rank) {
      return scale(Fields(config, file), module, rank);
    };
  }

  std::string file(std::string_view name) const { return (std::filesystem::path(path_) / name).string(); }
  bool has(std::string_view name) const {
    std::error_code error;
    return std::filesystem::exists(file(name), error);
  }

  static void check_options(const Fields& f) {
    if (const std::string type = f.text("peft_type", ""); type != "LORA")
      f.unsupported("peft_type", type.empty() ? "is missing; it must be \"LORA\"" : "is " + in_quotes(type) + "; moxie has LORA");
    if (const std::string bias = f.text("bias", "none"); bias != "none")
      f.unsupported("bias", "is " + in_quotes(bias) + "; moxie has adapters without biases (none)");
    // Off when absent, null, false or empty.
    for (const char* option : {"use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "trainable_token_indices",
                               "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
                               "monteclora_config", "velora_config", "kasa_config"}) {
      const nlohmann::json* value = f.find(option);
      if (!value || *value == false || (value->is_structured() && value->empty())) continue;
      f.unsupported(option, "is " + Fields::show(*value) + "; moxie has plain LoRA of linear layers only");
    }
  }

  /// Pairs of matrices by module.
  void collect() {
    for (const auto& [name, tensor] : tensors_.all()) {
      std::string_view module = name;
      if (constexpr std::string_view prefix = "base_model.model."; module.starts_with(prefix))
        module.remove_prefix(prefix.size());
      if (module.ends_with(".base_layer.weight")) continue;
      const bool a = module.ends_with(".lora_A.weight"), b = module.ends_with(".lora_B.weight");
      if (!a && !b) throw UnsupportedError(tensor.place(), "moxie reads lora_A.weight and lora_B.weight of linear layers only");
      module.remove_suffix(std::string_view(".lora_A.weight").size());
      if (tensor.shape.size() != 2 || tensor.elements() == 0)
        throw FormatError(tensor.place(), "has shape " + tensor.shape_text() + "; it must be a matrix");
      if (tensor.dtype != Dtype::F32 && tensor.dtype != Dtype::F16 && tensor.dtype != Dtype::BF16)
        throw UnsupportedError(tensor.place(),
                               "is " + std::string(dtype_info(tensor.dtype).name) + "; it must be F32, F16 or BF16");
      LowRankUpdate& update = adapter_.updates[std::string(module)];
      TensorView& part = a ? update.a : update.b;
      if (part.data) throw FormatError(tensor.place(), "is there twice, with and without 'base_model.model.'");
      part = tensor;
    }
    if (adapter_.updates.empty()) throw FormatError({file("adapter_model.safetensors"), {}, {}}, "holds no matrices");
    for (const auto& [module, update] : adapter_.updates)
      if (!update.a.data || !update.b.data)
        throw FormatError((update.a.data ? update.a : update.b).place(),
                          update.a.data ? "has no lora_B beside it" : "has no lora_A beside it");
  }

  /// lora_alpha / r of a module whose matrices have this rank, which must be the r that the configuration gives it.
  static float scale(const Fields& f, const std::string& module, std::int64_t rank) {
    constexpr double most = 1e9;
    std::int64_t expected = f.integer("r", 1, max_rank, 8);
    double alpha = f.number("lora_alpha", -most, most, 8.0);
    if (const nlohmann::json* own = of_pattern(f, "rank_pattern", module)) {
      if (!own->is_number_integer() || *own < 1 || *own > max_rank)
        f.fail("rank_pattern", "holds " + Fields::show(*own) + "; it must hold integers from 1 to " + std::to_string(max_rank));
      expected = own->get<std::int64_t>();
    }
    if (const nlohmann::json* own = of_pattern(f, "alpha_pattern", module)) {
      if (!own->is_number() || !(std::abs(own->get<double>()) <= most))
        f.fail("alpha_pattern", "holds " + Fields::show(*own) + "; it must hold numbers");
      alpha = own->get<double>();
    }
    if (rank != expected)
      f.fail("r", "is " + std::to_string(expected) + " for the module " + in_quotes(module) + ", but its matrices have rank " +
                      std::to_string(rank));
    const auto r = static_cast<double>(rank);
    return static_cast<float>(alpha / (f.boolean("use_rslora", false) ? std::sqrt(r) : r));
  }

  /// The value of a pattern for a module, or nullptr. Throws where PEFT's choice would depend on the order of keys.
  static const nlohmann::json* of_pattern(const Fields& f, const char* option, const std::string& module) {
    const nlohmann::json* pattern = f.find(option);
    if (!pattern) return nullptr;
    if (!pattern->is_object()) f.fail(option, "is " + Fields::show(*pattern) + "; it must be an object");
    const nlohmann::json* found = nullptr;
    for (const auto& [text, value] : pattern->items()) {
      const std::string_view start = ".*\\.";
      const std::string_view key = std::string_view(text).substr(text.starts_with(start) ? start.size() : 0);
      if (key.find_first_of("\\^$*+?()[]{}|") != std::string_view::npos)
        f.unsupported(option,
                      "has the key " + in_quotes(text) + ", a regular expression; moxie has names of modules and their ends");
      if (module != key && !module.ends_with("." + std::string(key))) continue;
      if (found && *found != value)
        f.unsupported(option, "has several keys that fit the module " + in_quotes(module) + ", with different values");
      found = &value;
    }
    return found;
  }

  std::string path_, config_file_;
  nlohmann::json config_;
  TensorMap tensors_;
  LowRankAdapter adapter_;
};

}  // namespace moxie
