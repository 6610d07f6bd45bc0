#pragma once
// A GGUF model: one memory-mapped file of version 2 or 3, or all parts of a split one.
//
// A split model lies in NAME-00001-of-0000N.gguf to NAME-0000N-of-0000N.gguf with the keys split.no, split.count and
// split.tensors.count; opening any part opens all, and the metadata are those of the first.
// gguf_tables.hpp says what is checked. Errors: SystemError, FormatError. Source: the GGUF specification.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/gguf_tables.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_tree.hpp>
#include <moxie/io/memory_budget.hpp>

namespace moxie {

class GgufFile {
 public:
  /// Maps the file, and all other parts of a split model. Throws SystemError, FormatError.
  static GgufFile open(const std::string& path) {
    GgufFile model;
    auto files = std::make_shared<std::vector<MappedFile>>();
    files->emplace_back(path);
    gguf::Tensors tensors;
    {
      MemoryBudget budget;
      model.read_part(files->front(), budget, tensors);
    }
    model.path_ = path;
    const std::uint64_t parts = split_value(model.metadata_.value, "split.count", path).value_or(1);
    if (parts > 1) {
      const std::string base = split_base(path, split_value(model.metadata_.value, "split.no", path).value_or(0), parts);
      files->clear();
      tensors.clear();
      model.metadata_ = {};
      model.open_parts(base, parts, *files, tensors);
    }
    auto release = [files](const std::byte* p, std::uint64_t bytes) {
      for (const MappedFile& file : *files) {
        if (file.contains(p)) file.release(p, bytes);
      }
    };
    model.tensors_ = TensorMap(std::move(tensors), files, std::move(release));
    return model;
  }

  /// An object from key to value. Integers keep their sign, f32 are widened, strings are the file's bytes, UTF-8 or not:
  /// to print them, dump with error_handler_t::replace.
  const nlohmann::json& metadata() const noexcept { return metadata_.value; }
  /// The same with exact types, in the file's order.
  const std::vector<GgufKeyValue>& key_values() const noexcept { return key_values_; }
  const TensorMap& tensors() const noexcept { return tensors_; }
  /// Header, metadata and tensor infos as they lie in path().
  std::span<const std::byte> tables() const noexcept { return tables_; }
  /// The file that holds the metadata: of a split model, the first part.
  const std::string& path() const noexcept { return path_; }

 private:
  GgufFile() = default;

  std::uint64_t read_part(const MappedFile& file, MemoryBudget& budget, gguf::Tensors& tensors) {
    budget.add_file(file.size());
    GgufTables tables = gguf::TableReader(file, budget).read(tensors);
    metadata_ = std::move(tables.metadata);
    key_values_ = std::move(tables.key_values);
    tables_ = tables.bytes;
    return tables.tensor_count;
  }

  void open_parts(const std::string& base, std::uint64_t parts, std::vector<MappedFile>& files, gguf::Tensors& tensors) {
    for (std::uint64_t i = 0; i < parts; ++i) {
      const std::string name = base + split_suffix(i, parts);
      std::error_code error;
      if (!std::filesystem::exists(name, error)) {
        throw FormatError({name, {}, {}}, concat("part ", i + 1, " of ", parts,
                                                 " of a split model is missing; all parts must lie in the same folder"));
      }
    }
    // The metadata of part i replace those of part i - 1, so the first part is read last.
    MemoryBudget budget;
    files.reserve(static_cast<std::size_t>(parts));
    std::uint64_t tensor_count = 0;
    for (std::uint64_t i = parts; i-- > 0;) {
      const MappedFile& file = files.emplace_back(base + split_suffix(i, parts));
      tensor_count += read_part(file, budget, tensors);
      check_part(file.path(), "split.no", i);
      check_part(file.path(), "split.count", parts);
      path_ = file.path();
    }
    const auto claimed = split_value(metadata_.value, "split.tensors.count", path_);
    if (claimed && *claimed != tensor_count) {
      throw FormatError({path_, "key 'split.tensors.count'", {}},
                        concat("the parts hold ", tensor_count, " tensors, but the model should have ", *claimed));
    }
  }

  void check_part(const std::string& file, const char* key, std::uint64_t expected) const {
    const auto found = split_value(metadata_.value, key, file);
    if (found != expected) {
      throw FormatError({file, concat("key ", in_quotes(key)), {}},
                        concat((found ? concat("is ", *found) : std::string("is missing")),
                               ", but by the name of the file it must be ", expected));
    }
  }

  static std::optional<std::uint64_t> split_value(const nlohmann::json& metadata, const char* key, const std::string& file) {
    const auto it = metadata.find(key);
    if (it == metadata.end()) return std::nullopt;
    constexpr std::int64_t most = 0x7fffffff;
    const bool integer = it->is_number_unsigned() || (it->is_number_integer() && it->get<std::int64_t>() >= 0);
    if (!integer || it->get<std::uint64_t>() > most) {
      throw FormatError({file, concat("key ", in_quotes(key)), {}}, "must be an integer from 0 to 2^31 - 1");
    }
    return it->get<std::uint64_t>();
  }

  static std::string split_suffix(std::uint64_t part, std::uint64_t parts) {
    char text[64];
    std::snprintf(text, sizeof text, "-%05llu-of-%05llu.gguf", static_cast<unsigned long long>(part + 1),
                  static_cast<unsigned long long>(parts));
    return text;
  }

  static std::string split_base(const std::string& path, std::uint64_t part, std::uint64_t parts) {
    const std::string suffix = split_suffix(part, parts);
    if (!path.ends_with(suffix)) {
      throw FormatError({path, {}, {}}, concat("the file says that it is part ", part + 1, " of ", parts,
                                               " of a split model; its name must end with '", suffix, "'"));
    }
    return path.substr(0, path.size() - suffix.size());
  }

  std::string path_;
  JsonTree metadata_;
  std::vector<GgufKeyValue> key_values_;
  std::span<const std::byte> tables_;
  TensorMap tensors_;
};

}  // namespace moxie
