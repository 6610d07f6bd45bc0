#pragma once
// moxie inspect: what a model is, from its description; the weights are not read. Of what holds no model (a safetensors file
// alone, a GGUF file without an embedding or the sizes of a model, a folder with tokenizer.json and without config.json), what it
// holds is shown.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common.hpp"
#include "text_io.hpp"
#include "tokenize.hpp"

namespace tool {

using OrderedJson = nlohmann::ordered_json;

struct InspectOptions {
  std::string model;
  CommonOptions common;
  bool json = false;
};

inline OrderedJson inspect_attention(const moxie::ModelConfig& config) {
  const moxie::AttentionConfig& a = config.attention;
  OrderedJson out = {{"kind", a.kind == moxie::AttentionKind::gqa ? "gqa" : "mla"}, {"n_heads", a.n_heads}};
  if (a.kind == moxie::AttentionKind::gqa) {
    out["n_kv_heads"] = a.n_kv_heads;
    out["head_dim"] = a.head_dim;
    out["qk_norm"] = a.qk_norm != moxie::QkNorm::none;
    std::int64_t window = 0;
    for (std::int64_t i = 0; i < config.n_layers; ++i) window = std::max(window, config.sliding_window(i));
    out["sliding_window"] = window;
  } else {
    out["q_lora_rank"] = a.q_lora_rank;
    out["kv_lora_rank"] = a.kv_lora_rank;
    out["qk_nope_head_dim"] = a.qk_nope_head_dim;
    out["qk_rope_head_dim"] = a.qk_rope_head_dim;
    out["v_head_dim"] = a.v_head_dim;
  }
  return out;
}

inline OrderedJson inspect_recurrent(const moxie::ModelConfig& config) {
  const moxie::DeltaNetConfig& d = config.delta_net;
  if (config.short_conv_kernel != 0)
    return {{"kind", "short_conv"}, {"layers", config.n_recurrent_layers()}, {"conv_kernel", config.short_conv_kernel}};
  if (const moxie::MambaConfig& m = config.mamba; m.n_heads != 0)
    return {{"kind", "mamba2"},
            {"layers", config.n_recurrent_layers()},
            {"n_heads", m.n_heads},
            {"n_groups", m.n_groups},
            {"head_dim", m.head_dim},
            {"state_dim", m.state_dim},
            {"conv_kernel", m.conv_kernel}};
  return {{"kind", "delta_net"},        {"layers", config.n_recurrent_layers()}, {"n_k_heads", d.n_k_heads},
          {"n_v_heads", d.n_v_heads},   {"k_head_dim", d.k_head_dim},            {"v_head_dim", d.v_head_dim},
          {"conv_kernel", d.conv_kernel}};
}

inline OrderedJson inspect_rope(const moxie::RopeConfig& r) {
  constexpr const char* scalings[] = {"none", "linear", "ntk", "yarn", "llama3"};
  return {{"dims", r.dims},
          {"theta", r.theta},
          {"layout", r.layout == moxie::RopeLayout::half ? "half" : "interleaved"},
          {"scaling", scalings[static_cast<int>(r.scaling)]},
          {"factor", r.factor},
          {"original_context", r.original_context}};
}

inline OrderedJson inspect_moe(const moxie::MoeConfig& moe) {
  constexpr const char* scorings[] = {"softmax", "sigmoid", "chosen_softmax"};
  const moxie::RouterConfig& r = moe.router;
  return {{"n_experts", r.n_experts},
          {"top_k", r.top_k},
          {"moe_intermediate_size", moe.moe_intermediate_size},
          {"shared_intermediate_size", moe.shared_intermediate_size},
          {"shared_expert_gate", moe.shared_expert_gate},
          {"scoring", scorings[static_cast<int>(r.scoring)]},
          {"n_group", r.n_group},
          {"topk_group", r.topk_group},
          {"norm_topk_prob", r.norm_topk_prob},
          {"routed_scaling_factor", r.routed_scaling_factor}};
}

/// Tensors by type, the type with the most bytes first.
inline OrderedJson inspect_formats(const moxie::TensorMap& tensors) {
  struct Sum {
    std::uint64_t tensors = 0, elements = 0, bytes = 0;
  };
  std::map<std::string, Sum> by_type;
  for (const auto& [name, tensor] : tensors.all()) {
    Sum& sum = by_type[moxie::dtype_text(tensor.dtype)];
    ++sum.tensors;
    sum.elements += static_cast<std::uint64_t>(tensor.elements());
    sum.bytes += tensor.bytes;
  }
  std::vector<std::pair<std::string, Sum>> sorted(by_type.begin(), by_type.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  OrderedJson out = OrderedJson::array();
  for (const auto& [type, sum] : sorted)
    out.push_back({{"type", type},
                   {"tensors", sum.tensors},
                   {"elements", sum.elements},
                   {"bytes", sum.bytes},
                   {"bits_per_weight",
                    8.0 * static_cast<double>(sum.bytes) / static_cast<double>(std::max<std::uint64_t>(1, sum.elements))}});
  return out;
}

/// The tokenizer's kind and tokens, or why moxie cannot use it.
template <class Make>
OrderedJson inspect_tokenizer(const std::string& kind, Make&& make) {
  OrderedJson out = {{"model", kind}};
  try {
    const moxie::Tokenizer tokenizer = make();
    const auto id = [](const std::optional<std::int32_t>& token) { return token ? OrderedJson(*token) : OrderedJson(nullptr); };
    out["tokens"] = tokenizer.vocab_size();
    out["bos_id"] = id(tokenizer.bos_id());
    out["eos_id"] = id(tokenizer.eos_id());
  } catch (const moxie::UnsupportedError& error) {
    out["unsupported"] = error.what();
  }
  return out;
}

/// "template": the model's own; else the format that is usual for its family; null where there is neither.
inline OrderedJson inspect_chat_format(const std::string& chat_template, const std::string& family) {
  try {
    if (chat_template.empty()) return moxie::chat_format_name(moxie::usual_chat_format(family));
    const moxie::ChatTemplate readable(chat_template);
    return "template";
  } catch (const moxie::Error&) {
    return nullptr;
  }
}

/// A container without a model: its tensors, and the tokenizer of a file or folder with only a vocabulary.
inline OrderedJson inspect_container(const std::string& path, const char* kind, const moxie::TensorMap& tensors,
                                     OrderedJson tokenizer) {
  OrderedJson list = OrderedJson::array();
  for (const auto& [name, tensor] : tensors.all())
    list.push_back({{"name", name}, {"type", moxie::dtype_text(tensor.dtype)}, {"shape", tensor.shape}, {"bytes", tensor.bytes}});
  return {{"path", path},
          {"kind", kind},
          {"family", nullptr},
          {"formats", inspect_formats(tensors)},
          {"tokenizer", std::move(tokenizer)},
          {"tensors", std::move(list)}};
}

inline OrderedJson inspect_model(const std::string& path) {
  if (path.ends_with(".safetensors") && std::filesystem::is_regular_file(path))
    return inspect_container(path, "safetensors", moxie::SafetensorsFile::open(path).tensors(), nullptr);
  OrderedJson out = {{"path", path}};
  moxie::ModelDescription description;
  moxie::TensorMap tensors;
  OrderedJson tokenizer;
  std::string chat_template;
  std::optional<moxie::HfFolder> folder;
  if (moxie::detect_model(path) == moxie::ModelFileKind::gguf) {
    const moxie::GgufFile file = moxie::GgufFile::open(path);
    const auto text = [&](const char* key) {
      const auto it = file.metadata().find(key);
      return it != file.metadata().end() && it->is_string() ? it->get<std::string>() : std::string();
    };
    out["kind"] = "gguf";
    tensors = file.tensors();
    if (moxie::is_packed(file)) {
      moxie::PackedModel packed = moxie::read_packed(file, moxie::kernels::native_table(), moxie::Threads());
      out["kind"] = "packed";
      out["packed"] = {{"arch", packed.arch}, {"from", packed.files}};
      tensors = packed.tensors;
      folder = std::move(packed.folder);
    }
    if (folder) {
      if (folder->has_tokenizer()) tokenizer = inspect_tokenizer("tokenizer.json", [&] { return folder_tokenizer(*folder); });
    } else {
      if (const auto model = moxie::gguf_tokenizer_kind({file.metadata(), path}))
        tokenizer = inspect_tokenizer(*model, [&] { return moxie::Tokenizer::from_gguf(file.metadata(), path); });
      if (!tensors.find("token_embd.weight") || !file.metadata().contains(text("general.architecture") + ".attention.head_count"))
        return inspect_container(path, "gguf", tensors, tokenizer);
      description = moxie::describe_gguf(file.metadata(), tensors, path);
      chat_template = text("tokenizer.chat_template");
    }
  } else {
    const auto has = [&](const char* name) { return std::filesystem::exists(std::filesystem::path(path) / name); };
    if (has("tokenizer.json")) tokenizer = inspect_tokenizer("tokenizer.json", [&] { return load_tokenizer(path); });
    if (!has("config.json") && has("tokenizer.json")) return inspect_container(path, "hf", tensors, tokenizer);
    folder = moxie::HfFolder::open(path);
    out["kind"] = "hf";
    tensors = folder->tensors();
  }
  if (folder) {
    description = moxie::describe_hf(folder->config, tensors, path);
    if (const auto text = moxie::hf_text_model(folder->config, tensors)) tensors = *text;
    chat_template = moxie::hf_chat_template(*folder);
  }
  const moxie::ModelConfig& config = description.config;
  const moxie::ModelInfo info = moxie::count_parameters(config, tensors);
  out["family"] = config.family;
  out["name"] = config.name;
  out["file_bytes"] = info.file_bytes;
  out["parameters"] = info.parameters;
  out["active_parameters"] = info.active_parameters;
  out["bits_per_weight"] = info.bits_per_weight;
  out["context_length"] = config.context_length;
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden_size;
  out["n_layers"] = config.n_layers;
  out["n_moe_layers"] = config.n_moe_layers();
  out["intermediate_size"] = config.intermediate_size;
  out["rms_norm_eps"] = config.rms_norm_eps;
  out["attention"] = inspect_attention(config);
  if (config.n_recurrent_layers() != 0) out["recurrent"] = inspect_recurrent(config);
  out["rope"] = inspect_rope(config.attention.rope);
  out["moe"] = inspect_moe(config.moe);
  out["formats"] = inspect_formats(tensors);
  out["tokenizer"] = tokenizer;
  out["chat_format"] = inspect_chat_format(chat_template, config.family);
  return out;
}

/// The same for people.
inline std::string inspect_text(const OrderedJson& j) {
  std::string out;
  const auto show = [](const OrderedJson& value) {
    if (value.is_null()) return std::string("none");
    if (value.is_string())
      return nlohmann::json(value.get<std::string>()).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return value.dump();
  };
  const auto line = [&](const char* label, const std::string& text) {
    char start[32];
    std::snprintf(start, sizeof start, "%-12s", label);
    out += start + text + "\n";
  };
  const auto number = [](const char* format, double value) {
    char text[48];
    std::snprintf(text, sizeof text, format, value);
    return std::string(text);
  };
  const auto count = [&](const OrderedJson& value) {
    const double n = value.get<double>();
    return n >= 1e9 ? number("%.2f B", n * 1e-9) : number("%.2f M", n * 1e-6);
  };
  const auto fields = [&](const OrderedJson& object, bool first_bare) {
    std::string text;
    for (const auto& [key, value] : object.items()) {
      if (!text.empty()) text += ", ";
      text += text.empty() && first_bare ? value.get<std::string>()
                                         : key + " " + (value.is_string() ? value.get<std::string>() : show(value));
    }
    return text;
  };
  const auto formats = [&] {
    for (const OrderedJson& format : j["formats"])
      line("format", format["type"].get<std::string>() + ": " + show(format["tensors"]) + " tensors, " +
                         number("%.1f MB", format["bytes"].get<double>() * 1e-6) + ", " +
                         number("%.2f bits per weight", format["bits_per_weight"].get<double>()));
    line("tokenizer", j["tokenizer"].is_null() ? "none" : fields(j["tokenizer"], true));
  };
  if (j["family"].is_null()) {
    line(j["kind"] == "hf" ? "folder" : "file", show(j["path"]) + ", " + j["kind"].get<std::string>() + ", holds no model");
    formats();
    for (const OrderedJson& tensor : j["tensors"])
      line("tensor", show(tensor["name"]) + " " + tensor["type"].get<std::string>() + " " + tensor["shape"].dump());
    return out;
  }
  line("model", show(j["path"]) + (j["name"] == "" ? "" : " " + show(j["name"])));
  line("family", j["family"].get<std::string>() + ", " + show(j["n_layers"]) + " layers (" + show(j["n_moe_layers"]) +
                     " MoE), hidden " + show(j["hidden_size"]) + ", vocabulary " + show(j["vocab_size"]) + ", context " +
                     show(j["context_length"]));
  if (j.contains("packed"))
    line("packed",
         "for " + j["packed"]["arch"].get<std::string>() + ", from " +
             (j["packed"]["from"].empty() ? "nothing known" : show(j["packed"]["from"][0])) +
             (j["packed"]["from"].size() > 1 ? " and " + std::to_string(j["packed"]["from"].size() - 1) + " more" : ""));
  line("parameters", count(j["parameters"]) + ", " + count(j["active_parameters"]) + " active per token");
  line("size", number("%.1f MB", j["file_bytes"].get<double>() * 1e-6) + ", " +
                   number("%.2f bits per weight", j["bits_per_weight"].get<double>()));
  line("attention", fields(j["attention"], true));
  if (j.contains("recurrent")) line("recurrent", fields(j["recurrent"], true));
  line("rope", fields(j["rope"], false));
  line("experts", fields(j["moe"], false));
  formats();
  line("chat format", j["chat_format"].is_null()       ? "unknown"
                      : j["chat_format"] == "template" ? "the model's own template"
                                                       : j["chat_format"].get<std::string>());
  return out;
}

inline int inspect(const InspectOptions& options) {
  const OrderedJson model = inspect_model(options.model);
  Output output;
  output.write(options.json ? model.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n" : inspect_text(model));
  output.finish();
  return 0;
}

inline void add_inspect(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("inspect", "what a model is; its weights are not read");
  auto options = std::make_shared<InspectOptions>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command.add_flag("--json", options->json, "one object");
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return inspect(*options); }; });
}

}  // namespace tool
