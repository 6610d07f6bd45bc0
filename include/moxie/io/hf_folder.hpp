#pragma once
// A model folder as Hugging Face's libraries write it: config.json, model.safetensors or model.safetensors.index.json with its
// files, and for text tokenizer.json, tokenizer_config.json, chat_template.jinja.
//
// Errors: SystemError, FormatError, UnsupportedError, with the file and for JSON the byte.

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/safetensors.hpp>

namespace moxie {

/// What a folder's files hold beside weights; empty: it has no such file.
struct HfTexts {
  std::string config, generation_config, tokenizer_config, tokenizer, chat_template;
};

class HfFolder {
 public:
  nlohmann::json config;             ///< null where open_tokenizer() found none
  nlohmann::json generation_config;  ///< null where the folder has none
  nlohmann::json tokenizer_config;   ///< null where the folder has none

  /// Reads the configuration and maps the weights.
  static HfFolder open(const std::string& path) {
    HfFolder folder(path);
    if (folder.config.is_null()) {
      throw FormatError({folder.file("config.json"), {}, {}},
                        "the file is missing; a model folder must have config.json beside its weights");
    }
    folder.tensors_ = folder.map_weights();
    return folder;
  }

  /// The same without weights, for folders that may hold nothing but a tokenizer: tensors() is empty.
  static HfFolder open_tokenizer(const std::string& path) {
    HfFolder folder(path);
    if (!folder.has("tokenizer.json")) throw folder.no_tokenizer();
    return folder;
  }

  /// A folder that lies in one file, `path`.
  static HfFolder from_texts(std::string path, HfTexts texts, TensorMap tensors) {
    HfFolder folder;
    folder.path_ = std::move(path);
    folder.texts_ = std::move(texts);
    folder.tensors_ = std::move(tensors);
    folder.read_configurations();
    return folder;
  }
  /// What from_texts() takes.
  HfTexts texts() const {
    if (texts_) return *texts_;
    return {read_text("config.json"), read_text("generation_config.json"), read_text("tokenizer_config.json"),
            read_text("tokenizer.json"), read_text("chat_template.jinja")};
  }

  const TensorMap& tensors() const noexcept { return tensors_; }
  const std::string& path() const noexcept { return path_; }
  bool has_tokenizer() const { return has("tokenizer.json"); }

  /// tokenizer.json, parsed at each call: tens of megabytes for a large vocabulary. Throws FormatError where there is none.
  nlohmann::json load_tokenizer_json() const {
    nlohmann::json tokenizer = read_object("tokenizer.json", {.bytes = 512'000'000, .values = 20'000'000});
    if (tokenizer.is_null()) throw no_tokenizer();
    return tokenizer;
  }

  /// chat_template.jinja, which newer folders have in place of the field of tokenizer_config.json.
  std::optional<std::string> load_chat_template() const {
    if (!has("chat_template.jinja")) return std::nullopt;
    std::string text = read_text("chat_template.jinja");
    if (text.size() > 16'000'000)
      throw FormatError({file("chat_template.jinja"), {}, {}}, "a chat template may have at most 16 MB");
    return text;
  }

 private:
  explicit HfFolder(std::string path) : path_(std::move(path)) {
    std::error_code error;
    if (!std::filesystem::is_directory(path_, error)) throw SystemError({path_, {}, {}}, "not a folder");
    read_configurations();
  }
  HfFolder() = default;

  void read_configurations() {
    if (has("config.json"))
      config = object("config.json", parse_json(with_finite_numbers(read_text("config.json")), file("config.json")));
    generation_config = read_object("generation_config.json");
    tokenizer_config = read_object("tokenizer_config.json");
  }

  std::string file(std::string_view name) const { return (std::filesystem::path(path_) / name).string(); }
  const std::string& text(std::string_view name) const {
    return name == "config.json"              ? texts_->config
           : name == "generation_config.json" ? texts_->generation_config
           : name == "tokenizer_config.json"  ? texts_->tokenizer_config
           : name == "tokenizer.json"         ? texts_->tokenizer
                                              : texts_->chat_template;
  }
  bool has(std::string_view name) const {
    if (texts_) return !text(name).empty();
    std::error_code error;
    return std::filesystem::exists(file(name), error);
  }

  /// Empty where the folder has no such file.
  std::string read_text(std::string_view name) const {
    if (texts_) return text(name);
    if (!has(name)) return {};
    const MappedFile bytes(file(name));
    if (bytes.size() > 512'000'000) throw FormatError({bytes.path(), {}, {}}, "has more than 512 MB");
    return {reinterpret_cast<const char*>(bytes.data()), static_cast<std::size_t>(bytes.size())};
  }

  /// Null where the folder has no such file.
  nlohmann::json read_object(std::string_view name, JsonLimits limits = {}) const {
    if (!has(name)) return nullptr;
    return object(name, texts_ ? parse_json(text(name), file(name), limits) : read_json_file(file(name), limits));
  }
  nlohmann::json object(std::string_view name, nlohmann::json value) const {
    if (!value.is_object())
      throw FormatError({file(name), {}, {}}, std::string("must hold a JSON object, not ") + value.type_name());
    return value;
  }

  FormatError no_tokenizer() const {
    return FormatError({file("tokenizer.json"), {}, {}}, "the file is missing; a tokenizer is read from tokenizer.json only");
  }

  TensorMap map_weights() const {
    if (has("model.safetensors")) return SafetensorsFile::open(file("model.safetensors")).tensors();
    if (has("model.safetensors.index.json")) return SafetensorsFile::open_index(file("model.safetensors.index.json")).tensors();
    const bool pickle = has("pytorch_model.bin") || has("pytorch_model.bin.index.json");
    throw FormatError({path_, {}, {}}, std::string("the folder has neither model.safetensors nor model.safetensors.index.json") +
                                           (pickle ? "; pytorch_model.bin is not read: save the model as safetensors" : ""));
  }

  std::string path_;
  std::optional<HfTexts> texts_;  ///< instead of files
  TensorMap tensors_;
};

}  // namespace moxie
