#pragma once
// Which kind of model a path names: a GGUF file or a Hugging Face folder.

#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>

namespace moxie {

enum class ModelFileKind { gguf, hf_folder };

/// By the folder's files, the file's name and its first bytes; opening it may still fail. A folder with a tokenizer but no
/// weights counts as hf_folder. Throws SystemError where nothing is there, FormatError with advice for anything else.
inline ModelFileKind detect_model(const std::string& path) {
  const auto fail = [&](const std::string& message) { throw FormatError({path, {}, {}}, message); };
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    throw SystemError({path, {}, {}}, error && status.type() != std::filesystem::file_type::not_found ? error.message()
                                                                                                      : "no such file or folder");
  if (std::filesystem::is_directory(status)) {
    bool empty = true;
    std::string gguf;
    std::filesystem::directory_iterator entry(path, error);
    for (; entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      empty = false;
      const std::string name = entry->path().filename().string();
      if (name == "config.json" || name == "tokenizer.json" || name.ends_with(".safetensors") ||
          name == "model.safetensors.index.json")
        return ModelFileKind::hf_folder;
      if (name.ends_with(".gguf") && (gguf.empty() || name < gguf)) gguf = name;
    }
    if (error) throw SystemError({path, {}, {}}, concat("cannot read the folder: ", error.message()));
    if (empty) fail("the folder is empty; it must hold config.json and model.safetensors");
    if (!gguf.empty())
      fail(concat("the folder holds GGUF files; name one of them, e.g. ", (std::filesystem::path(path) / gguf).string()));
    fail("the folder holds no model: neither config.json with model.safetensors nor a GGUF file");
  }
  const MappedFile file(path);
  const auto begins_with = [&](const char* bytes, std::size_t n) {
    return file.size() >= n && std::memcmp(file.data(), bytes, n) == 0;
  };
  if (path.ends_with(".gguf") || begins_with("GGUF", 4)) return ModelFileKind::gguf;
  if (path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json")) {
    fail("a safetensors file alone does not describe a model; name the folder that holds it and config.json");
  }
  if (begins_with("PK\x03\x04", 4) || begins_with("\x80\x02", 2)) {
    fail("this looks like a PyTorch file (pickle), which is not read because it can run code; save the model as safetensors");
  }
  if (begins_with("tjgg", 4) || begins_with("lmgg", 4) || begins_with("fmgg", 4)) {
    fail("this is a GGML file of before August 2023; convert the model again to GGUF");
  }
  if (path.ends_with(".json")) fail("this is a file of a model folder; name the folder");
  fail("neither a GGUF file (it would begin with 'GGUF') nor a model folder");
  return ModelFileKind::gguf;
}

}  // namespace moxie
