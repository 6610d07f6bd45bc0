#pragma once
// The files that a model is read from, for what writes another file from them: quantize_model() and pack_model().

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <system_error>

#include <moxie/core/error.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/detect.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/hf_folder.hpp>

namespace moxie {

/// All parts of a GGUF file.
inline std::set<std::string> source_files(const GgufFile& model) {
  std::set<std::string> files = {model.path()};
  for (const auto& [name, tensor] : model.tensors().all()) files.insert(tensor.file);
  return files;
}

/// The weights of a folder that was opened from a path, and what describes them, the tokenizer and the chat format.
inline std::set<std::string> source_files(const HfFolder& model) {
  std::set<std::string> files;
  for (const auto& [name, tensor] : model.tensors().all()) files.insert(tensor.file);
  std::error_code ignored;
  for (const char* name : {"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
                           "chat_template.jinja", "model.safetensors.index.json"})
    if (const auto file = std::filesystem::path(model.path()) / name; std::filesystem::is_regular_file(file, ignored))
      files.insert(file.string());
  return files;
}

/// The same of a GGUF file, a packed model or a folder. Throws what opening it throws.
inline std::set<std::string> source_files(const std::string& path) {
  return detect_model(path) == ModelFileKind::gguf ? source_files(GgufFile::open(path)) : source_files(HfFolder::open(path));
}

namespace detail {

/// Throws ArgumentError where writing `to` would replace one of a model's files.
inline void check_not_source(const std::string& to, const std::set<std::string>& files) {
  std::error_code ignored;  // there may be no such file yet
  for (const std::string& file : files)
    if (std::filesystem::equivalent(to, file, ignored))
      throw ArgumentError({to, {}, {}}, "is the model itself, or one of its files; name another file");
}

/// Gives the bytes of a tensor to `sink` as they are. `done` is told the bytes of each piece, whose pages are free then.
inline void copy_bytes(const TensorView& tensor, const TensorMap& mapped,
                       const std::function<void(std::span<const std::byte>)>& sink,
                       const std::function<void(std::uint64_t)>& done) {
  constexpr std::uint64_t piece = std::uint64_t{16} << 20;
  for (std::uint64_t first = 0; first < tensor.bytes; first += piece) {
    TensorView part = tensor;
    part.data += first;
    part.bytes = std::min(piece, tensor.bytes - first);
    sink({part.data, static_cast<std::size_t>(part.bytes)});
    mapped.release(part);
    done(part.bytes);
  }
}

}  // namespace detail

}  // namespace moxie
