#pragma once
// From what a file says to a description of the model: the configuration, and its tensors by role.
//
// Families are data (families/*.hpp); to add one, write its header and its line in `all_families`.
// Errors: UnsupportedError for a family, architecture or option that moxie does not have; FormatError for values out of
// range, and for tensors that are missing, misshaped or out of place (all in one message).

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/families/afmoe.hpp>
#include <moxie/model/families/bailing_moe_v2.hpp>
#include <moxie/model/families/common.hpp>
#include <moxie/model/families/common_gguf.hpp>
#include <moxie/model/families/common_hf.hpp>
#include <moxie/model/families/common_tensors.hpp>
#include <moxie/model/families/deepseek_v2.hpp>
#include <moxie/model/families/deepseek_v3.hpp>
#include <moxie/model/families/dots1.hpp>
#include <moxie/model/families/ernie4_5_moe.hpp>
#include <moxie/model/families/exaone_moe.hpp>
#include <moxie/model/families/glm4_moe.hpp>
#include <moxie/model/families/glm4_moe_lite.hpp>
#include <moxie/model/families/gpt_oss.hpp>
#include <moxie/model/families/granitemoe.hpp>
#include <moxie/model/families/granitemoehybrid.hpp>
#include <moxie/model/families/hunyuan_v1_moe.hpp>
#include <moxie/model/families/lfm2_moe.hpp>
#include <moxie/model/families/minimax_m2.hpp>
#include <moxie/model/families/mixtral.hpp>
#include <moxie/model/families/nemotron_h.hpp>
#include <moxie/model/families/olmoe.hpp>
#include <moxie/model/families/qwen2_moe.hpp>
#include <moxie/model/families/qwen3_5_moe.hpp>
#include <moxie/model/families/qwen3_moe.hpp>
#include <moxie/model/families/qwen3_next.hpp>
#include <moxie/model/families/qwen3_vl_moe.hpp>
#include <moxie/model/families/solar_open.hpp>
#include <moxie/model/families/tensor_finder.hpp>
#include <moxie/model/fields.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie {

struct ModelDescription {
  ModelConfig config;
  DecoderTensors tensors;
};

namespace families {

inline constexpr const Family* all_families[] = {
    &deepseek_v2,   &deepseek_v3,  &qwen2_moe,        &qwen3_moe,  &mixtral,        &olmoe,      &gpt_oss,        &glm4_moe,
    &dots1,         &minimax_m2,   &ernie4_5_moe,     &granitemoe, &hunyuan_v1_moe, &qwen3_next, &qwen3_5_moe,    &lfm2_moe,
    &glm4_moe_lite, &qwen3_vl_moe, &granitemoehybrid, &nemotron_h, &afmoe,          &exaone_moe, &bailing_moe_v2, &solar_open,
};

/// "deepseek_v2, deepseek_v3, ..." or, for GGUF, "deepseek2, qwen2moe, ..."
inline std::string list_families(bool architectures) {
  std::string list;
  const char* last = "";
  for (const Family* family : all_families) {
    if (architectures && family->same_as) continue;
    const char* name = architectures ? family->architecture : family->name;
    if (name != std::string_view(last)) list += (list.empty() ? "" : ", ") + std::string(name);
    last = name;
  }
  return list;
}

/// The family of a GGUF file. Where several have one architecture, expert_gating_func decides; absent and 0 mean softmax.
inline const Family& gguf_family(const Fields& all, const std::string& file) {
  if (!all.contains("general.architecture"))
    throw FormatError({file, "general.architecture", {}},
                      concat("this key is missing; it names the model's architecture (", list_families(true), ")"));
  const std::string architecture = all.text("general.architecture", "");
  const bool sigmoid = all.integer(concat(architecture, ".expert_gating_func"), 0, 1000, 1) == 2;
  const Family* found = nullptr;
  for (const Family* family : all_families)
    if (family->architecture == architecture && !family->same_as &&
        (!found || (family->scoring == RouterScoring::sigmoid) == sigmoid))
      found = family;
  if (!found)
    all.unsupported("general.architecture", concat("is ", Fields::show(architecture), "; moxie has ", list_families(true),
                                                   " (families ", list_families(false), ")"));
  return *found;
}

}  // namespace families

/// `metadata` is one flat object of GGUF keys; `file` names the file in errors.
inline ModelDescription describe_gguf(const nlohmann::json& metadata, const TensorMap& tensors, const std::string& file) {
  using namespace families;
  const Fields all(metadata, file);
  const Family& family = gguf_family(all, file);
  Fields f(metadata, file, concat(family.architecture, "."));
  const Fields own(metadata, file, "moxie.");
  ModelDescription model;
  model.config = read_gguf_config(f, own, all, family, tensors);
  const bool gqa = family.attention == AttentionKind::gqa;
  const TensorRules rules{
      .names = &gguf_names_of(family),
      .qkv_bias = family.gguf.qkv_bias ? Presence::required
                  : gqa                ? Presence::optional
                                       : Presence::absent,
      .latent_bias = Presence::optional,
      .o_bias = family.gguf.o_bias ? Presence::required : Presence::optional,
      .selection_bias = family.selection_bias,
      .prediction_layers = f.integer("nextn_predict_layers", 0, max_layers, 0),
  };
  model.tensors = find_tensors(model.config, rules, tensors, file);
  if (model.config.moe.router.n_experts == 0)  // after everything else, so that a defect is reported as such
    f.unsupported("expert_count",
                  concat("is absent or 0: a dense model; moxie runs Mixture-of-Experts models (", list_families(false), ")"));
  return model;
}

namespace families {

/// The family of a model_type.
inline const Family& hf_family(const Fields& f) {
  if (!f.contains("model_type"))
    f.fail("model_type", concat("this key is missing; it names the model's family (", list_families(false), ")"));
  const std::string type = f.text("model_type", "");
  for (const Family* family : all_families)
    if (family->name == type || (family->other_name && family->other_name == type)) return *family;
  f.unsupported("model_type", concat("is ", Fields::show(type), "; moxie has ", list_families(false)));
}

/// The tensors of the text model, under its own names, of a model for more than text. Throws FormatError where one is there
/// twice.
inline TensorMap text_model_tensors(const TensorMap& tensors) {
  constexpr std::string_view nested = "model.language_model.";
  std::map<std::string, TensorView, std::less<>> text;
  for (const auto& [name, view] : tensors.all()) {
    if (name.starts_with("model.visual.")) continue;
    TensorView renamed = view;
    renamed.name = name.starts_with(nested) ? concat("model.", name.substr(nested.size())) : name;
    if (!text.emplace(renamed.name, renamed).second)
      throw FormatError(view.place(), "is there twice, with and without 'language_model.'");
  }
  return tensors.with_tensors(std::move(text));
}

}  // namespace families

/// Of a model for text and images the tensors of its text model, without their prefix: describe_hf() describes these. Nothing
/// where the folder's tensors are the model's already.
inline std::optional<TensorMap> hf_text_model(const nlohmann::json& config, const TensorMap& tensors) {
  const Fields f(config, "config.json");
  if (!families::hf_family(f).hf.text_config || !f.contains("text_config")) return std::nullopt;
  return families::text_model_tensors(tensors);
}

/// `config` is the content of config.json; `folder` names the model in errors. Of a model for text and images the text model is
/// described.
inline ModelDescription describe_hf(const nlohmann::json& config, const TensorMap& tensors, const std::string& folder) {
  using namespace families;
  const std::string file = concat(folder, "/config.json");
  const Fields outer(config, file);
  const Family& family = hf_family(outer);
  const nlohmann::json* text_config = family.hf.text_config ? outer.find("text_config") : nullptr;
  Fields f(text_config ? *text_config : config, file, {}, text_config ? "text_config." : "");
  if (text_config) check_hf_quantization(outer, family);
  ModelDescription model;
  model.config = read_hf_config(f, family);
  const bool bias = family.hf.bias_key && f.boolean(family.hf.bias_key, family.hf.bias_default);
  const bool tied = text_config ? outer.boolean("tie_word_embeddings", false)  // whatever the text model's own says
                                : f.boolean("tie_word_embeddings|tie_embedding", family.hf.tied_default);
  const Presence biases = bias ? Presence::required : Presence::absent;
  const TensorRules rules{
      .names = family.hf.names,
      .output = Presence::required,
      .tied = tied,
      .qkv_bias = family.attention == AttentionKind::gqa ? biases : Presence::absent,
      .latent_bias = biases,
      .o_bias = family.hf.o_bias ? biases : Presence::absent,
      .selection_bias = family.selection_bias,
      .prediction_layers = f.integer("num_nextn_predict_layers|num_mtp_layers", 0, max_layers, 0),
  };
  const TensorMap text = text_config ? text_model_tensors(tensors) : TensorMap();
  model.tensors = find_tensors(model.config, rules, text_config ? text : tensors, folder);
  return model;
}

}  // namespace moxie
