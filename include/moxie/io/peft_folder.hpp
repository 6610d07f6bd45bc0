#pragma once
// An adapter folder as Hugging Face PEFT saves it: adapter_config.json and adapter_model.safetensors, LoRA of linear layers.
//
//   base_model.model.MODULE.lora_A.weight [r, inputs], base_model.model.MODULE.lora_B.weight [outputs, r], of F32, F16 or BF16
//   scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern give modules an r and an
//   alpha of their own
//
// A key of a pattern is a regular expression of the ends of modules' names (peft_pattern.hpp). Which layers are adapted is what
// the matrices' names say; target_modules and its companions only tell PEFT where to make them, and fan_in_fan_out concerns
// layers that these models do not have. Options that change what is computed and that moxie does not have are errors: DoRA and
// other variants, biases, modules saved whole (modules_to_save), and the initializations that replace the model's own weights
// when the adapter is loaded (PiSSA, OLoRA, ..). MODULE.base_layer.weight, a copy of the model's own weight that PEFT saves of
// output matrices, is left out. Errors: SystemError, FormatError, UnsupportedError. Source: PEFT 0.21, peft/tuners/lora/config.py
// and layer.py, peft/utils/save_and_load.py.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/peft_pattern.hpp>
#include <moxie/io/safetensors.hpp>
#include <moxie/model/adapter.hpp>
#include <moxie/model/fields.hpp>

namespace moxie {

class PeftFolder {
 public:
  /// Reads the configuration and maps the matrices.
  static PeftFolder open(const std::string& path) { return PeftFolder(path); }

  /// By module, without "base_model.model."; valid as long as this.
  const LowRankAdapter& adapter() const noexcept { return adapter_; }
  const std::string& path() const noexcept { return path_; }

 private:
  /// What modules of a model for text and images begin with; here they are those of its text model.
  static constexpr std::string_view text_model = "model.language_model.";

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
    const nlohmann::json config = read_json_file(config_file_);
    const Fields f(config, config_file_);
    check_options(f);
    const auto scaling = std::make_shared<const Scaling>(f);
    tensors_ = SafetensorsFile::open(file("adapter_model.safetensors")).tensors();
    collect();
    adapter_.scale = [scaling, nested = nested_](const std::string& module, std::int64_t rank) {
      return scaling->of(nested && module.starts_with("model.") ? concat(text_model, module.substr(6)) : module, rank);
    };
  }

  /// What the configuration says of modules' scales.
  struct Scaling {
    struct Exception {
      PeftPattern pattern;
      double value;
    };
    std::string file;
    std::int64_t r;
    double alpha;
    bool rslora;
    std::vector<Exception> ranks, alphas;

    explicit Scaling(const Fields& f)
        : file(f.file()),
          r(f.integer("r", 1, max_rank, 8)),
          alpha(f.number("lora_alpha", -most, most, 8.0)),
          rslora(f.boolean("use_rslora", false)),
          ranks(exceptions(f, "rank_pattern", true)),
          alphas(exceptions(f, "alpha_pattern", false)) {}

    /// lora_alpha / r of a module whose matrices have this rank, which must be the r that the configuration gives it.
    float of(const std::string& module, std::int64_t rank) const {
      const auto expected = static_cast<std::int64_t>(find(ranks, "rank_pattern", module, static_cast<double>(r)));
      if (rank != expected)
        throw FormatError({file, "r", {}},
                          concat("is ", expected, " for the module ", in_quotes(module), ", but its matrices have rank ", rank));
      const auto divisor = static_cast<double>(rank);
      return static_cast<float>(find(alphas, "alpha_pattern", module, alpha) / (rslora ? std::sqrt(divisor) : divisor));
    }

   private:
    static constexpr double most = 1e9;

    static std::vector<Exception> exceptions(const Fields& f, const char* option, bool ranks) {
      std::vector<Exception> all;
      const nlohmann::json* pattern = f.find(option);
      if (!pattern) return all;
      if (!pattern->is_object()) f.fail(option, concat("is ", Fields::show(*pattern), "; it must be an object"));
      for (const auto& [key, value] : pattern->items()) {
        if (ranks && !(value.is_number_integer() && value.get<std::int64_t>() >= 1 && value.get<std::int64_t>() <= max_rank))
          f.fail(option, concat("holds ", Fields::show(value), "; it must hold integers from 1 to ", max_rank));
        if (!value.is_number() || !(std::abs(value.get<double>()) <= most))
          f.fail(option, concat("holds ", Fields::show(value), "; it must hold numbers"));
        all.push_back({PeftPattern(key, {f.file(), option, {}}), value.get<double>()});
      }
      return all;
    }

    /// Throws where PEFT's choice would depend on the order of keys.
    double find(const std::vector<Exception>& all, const char* option, const std::string& module, double otherwise) const {
      const Exception* found = nullptr;
      for (const Exception& exception : all) {
        if (!exception.pattern.matches(module)) continue;
        if (found && found->value != exception.value)
          throw UnsupportedError({file, option, {}},
                                 concat("has several keys that fit the module ", in_quotes(module), ", with different values"));
        found = &exception;
      }
      return found ? found->value : otherwise;
    }
  };

  std::string file(std::string_view name) const { return (std::filesystem::path(path_) / name).string(); }
  bool has(std::string_view name) const {
    std::error_code error;
    return std::filesystem::exists(file(name), error);
  }

  static void check_options(const Fields& f) {
    if (const std::string type = f.text("peft_type", ""); type != "LORA")
      f.unsupported("peft_type",
                    type.empty() ? "is missing; it must be \"LORA\"" : concat("is ", in_quotes(type), "; moxie has LORA"));
    if (const std::string bias = f.text("bias", "none"); bias != "none")
      f.unsupported("bias", concat("is ", in_quotes(bias), "; moxie has adapters without biases (none)"));
    // Off when absent, null, false or empty.
    for (const char* option :
         {"use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
          "use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "velora_config", "kasa_config"}) {
      const nlohmann::json* value = f.find(option);
      if (!value || *value == false || (value->is_structured() && value->empty())) continue;
      f.unsupported(option, concat("is ", Fields::show(*value), "; moxie has plain LoRA of linear layers only"));
    }
    // These leave the model's own weights as they are.
    const nlohmann::json* init = f.find("init_lora_weights");
    if (!init || init->is_boolean() || *init == "gaussian" || *init == "eva" || *init == "orthogonal") return;
    f.unsupported(
        "init_lora_weights",
        concat("is ", Fields::show(*init),
               ", with which PEFT changes the model's own weights when it loads the adapter; save the adapter as plain LoRA "
               "(save_pretrained's path_initial_model_for_weight_conversion)"));
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
        throw FormatError(tensor.place(), concat("has shape ", tensor.shape_text(), "; it must be a matrix"));
      if (tensor.dtype != Dtype::F32 && tensor.dtype != Dtype::F16 && tensor.dtype != Dtype::BF16)
        throw UnsupportedError(tensor.place(), concat("is ", dtype_info(tensor.dtype).name, "; it must be F32, F16 or BF16"));
      std::string key(module);
      if (module.starts_with(text_model)) {
        key = concat("model.", module.substr(text_model.size()));
        nested_ = true;
      }
      LowRankUpdate& update = adapter_.updates[key];
      TensorView& part = a ? update.a : update.b;
      if (part.data)
        throw FormatError(tensor.place(), "is there twice, with and without 'base_model.model.' or 'language_model.'");
      part = tensor;
    }
    if (adapter_.updates.empty()) throw FormatError({file("adapter_model.safetensors"), {}, {}}, "holds no matrices");
    for (const auto& [module, update] : adapter_.updates)
      if (!update.a.data || !update.b.data)
        throw FormatError((update.a.data ? update.a : update.b).place(),
                          update.a.data ? "has no lora_B beside it" : "has no lora_A beside it");
  }

  std::string path_, config_file_;
  TensorMap tensors_;
  bool nested_ = false;  // modules begin with text_model
  LowRankAdapter adapter_;
};

}  // namespace moxie
