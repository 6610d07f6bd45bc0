#pragma once
// A safetensors file, or the files that a model.safetensors.index.json names, memory-mapped.
//
// safetensors_header.hpp says what is checked. Errors: SystemError, FormatError, UnsupportedError.

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/memory_budget.hpp>
#include <moxie/io/safetensors_header.hpp>

namespace moxie {

class SafetensorsFile {
 public:
  /// One file.
  static SafetensorsFile open(const std::string& path) {
    SafetensorsFile model(path);
    auto files = std::make_shared<std::vector<MappedFile>>();
    safetensors::Tensors tensors;
    MemoryBudget budget;
    model.read(files->emplace_back(path), budget, tensors);
    model.keep(std::move(files), std::move(tensors));
    return model;
  }

  /// The tensors that an index lists, each from the file that it gives: {"weight_map": {"TENSOR": "FILE", ...}}. The files lie
  /// beside the index; tensors in them that the index does not list are left out.
  static SafetensorsFile open_index(const std::string& path) {
    const nlohmann::json index = read_json_file(path);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
      throw FormatError({path, "key 'weight_map'", {}},
                        "is missing; the index must be an object whose weight_map gives each tensor's file");
    }
    const nlohmann::json& weight_map = index["weight_map"];
    std::set<std::string> names;
    for (const auto& [tensor, file] : weight_map.items()) {
      if (!file.is_string())
        throw FormatError({path, concat("weight_map ", in_quotes(tensor)), {}}, "must be the name of a file");
      const auto& name = file.get_ref<const std::string&>();
      if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
          name.find('\0') != std::string::npos) {
        throw FormatError({path, concat("weight_map ", in_quotes(tensor)), {}},
                          concat("must be the name of a file beside the index, not ", in_quotes(name)));
      }
      names.insert(name);
    }
    SafetensorsFile model(path);
    auto files = std::make_shared<std::vector<MappedFile>>();
    files->reserve(names.size());
    safetensors::Tensors tensors;
    MemoryBudget budget;
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    for (const std::string& name : names) {
      const std::string shard = (folder / name).string();
      std::error_code error;
      if (!std::filesystem::exists(shard, error))
        throw FormatError({shard, {}, {}}, concat("the file is missing; ", in_quotes(path), " names it"));
      safetensors::Tensors found;
      model.read(files->emplace_back(shard), budget, found);
      for (auto it = found.begin(); it != found.end();) {
        const auto node = found.extract(it++);
        const auto listed = weight_map.find(node.key());
        if (listed != weight_map.end() && *listed == name) tensors.emplace(node.key(), std::move(node.mapped()));
      }
    }
    for (const auto& [tensor, file] : weight_map.items()) {
      if (tensors.find(tensor) == tensors.end()) {
        throw FormatError({path, concat("weight_map ", in_quotes(tensor)), {}},
                          concat("the file ", in_quotes(file.get_ref<const std::string&>()), " does not hold this tensor"));
      }
    }
    model.keep(std::move(files), std::move(tensors));
    return model;
  }

  const TensorMap& tensors() const noexcept { return tensors_; }
  /// __metadata__ of the files; where two give a key, the first file's value.
  const safetensors::Metadata& metadata() const noexcept { return metadata_; }
  const std::string& path() const noexcept { return path_; }

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}

  void read(const MappedFile& file, MemoryBudget& budget, safetensors::Tensors& tensors) {
    budget.add_file(file.size());
    safetensors::Metadata metadata;
    safetensors::read_header(file, budget, tensors, metadata);
    metadata_.merge(std::move(metadata));
  }

  void keep(std::shared_ptr<std::vector<MappedFile>> files, safetensors::Tensors tensors) {
    auto release = [files](const std::byte* p, std::uint64_t bytes) {
      for (const MappedFile& file : *files) {
        if (file.contains(p)) file.release(p, bytes);
      }
    };
    tensors_ = TensorMap(std::move(tensors), std::move(files), std::move(release));
  }

  std::string path_;
  safetensors::Metadata metadata_;
  TensorMap tensors_;
};

}  // namespace moxie
