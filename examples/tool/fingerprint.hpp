#pragma once
// What beside prompts and sampling options decides the bits of a completion, as one text: the name is that of the OpenAI API's
// field, "system_fingerprint".
//
//   weights-0123456789abcdef adapter-.. int8 f16 avx512
//
// Hashes are XXH64 of the contents, whatever the files' names and times: of a file above 64 MB its size, its first megabyte (the
// header with the table of tensors) and 4096 pages spread evenly over it, so that a large model is not read a second time.

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <moxie/core/hash.hpp>
#include <moxie/core/platform.hpp>

#include "common.hpp"

namespace tool {

inline std::uint64_t hash_of_file(const std::string& path, std::uint64_t seed) {
  constexpr std::size_t whole = std::size_t{64} << 20, head = std::size_t{1} << 20, page = 4096, pages = 4096;
  const moxie::MappedFile file(path);
  const auto size = static_cast<std::size_t>(file.size());
  std::uint64_t hash = moxie::xxh64(&size, sizeof size, seed);
  if (size <= whole) return moxie::xxh64(file.data(), size, hash);
  hash = moxie::xxh64(file.data(), head, hash);
  for (std::size_t i = 1; i <= pages; ++i) hash = moxie::xxh64(file.data() + (size - page) / pages * i, page, hash);
  return hash;
}

/// The files that hold a model's weights and description: a folder's safetensors and JSON files, a GGUF file, or all parts of
/// one.
inline std::vector<std::string> model_files(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  const bool folder = fs::is_directory(path);
  const std::string name = fs::path(path).filename().string();
  // NAME-00001-of-00003.gguf: the same but for the first number
  constexpr std::size_t number = 5, tail = std::string_view("-of-00003.gguf").size();
  const bool part = !folder && name.size() > tail + number && name.substr(name.size() - tail, 4) == "-of-";
  const auto belongs = [&](const fs::path& other) {
    if (folder) return other.extension() == ".safetensors" || other.extension() == ".json";
    const std::string text = other.filename().string();
    const std::size_t at = name.size() - tail - number;
    return text.size() == name.size() && text.compare(0, at, name, 0, at) == 0 &&
           text.compare(at + number, tail, name, at + number, tail) == 0;
  };
  if (!folder && !part) return {path};
  for (const auto& entry : fs::directory_iterator(folder ? fs::path(path) : fs::absolute(path).parent_path()))
    if (entry.is_regular_file() && belongs(entry.path())) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

/// Throws SystemError.
inline std::string hash_of_model(const std::string& path) {
  std::uint64_t hash = 0;
  for (const std::string& file : model_files(path)) hash = hash_of_file(file, hash);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

inline std::string system_fingerprint(const moxie::Model& model, const std::string& path, const CommonOptions& options,
                                      const AdapterOptions& adapter) {
  std::string text = "weights-" + hash_of_model(path);
  if (!adapter.folder.empty()) text += (adapter.merge ? " merged-adapter-" : " adapter-") + hash_of_model(adapter.folder);
  return text + " " + options.activations + " " + options.kv + " " + model.context().kernels->arch;
}

}  // namespace tool
