#pragma once
// What beside prompts and sampling options decides the bits of a completion, as one text: the name is that of the OpenAI API's
// field, "system_fingerprint". Other files in a model's folder do not count.
//
//   weights-0123456789abcdef adapter-.. int8 f16 avx512
//
// Hashes are XXH64 of the contents, whatever the files' names and times: of a file above 64 MB its size, its first megabyte (the
// header with the table of tensors) and 4096 pages spread evenly over it, so that a large model is not read a second time.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <set>
#include <string>

#include <moxie/attention/kv_cache.hpp>
#include <moxie/core/concat.hpp>
#include <moxie/core/hash.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/generate/model_source.hpp>

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

/// 16 hexadecimal digits. Throws SystemError.
inline std::string hash_of_files(const std::set<std::string>& files) {
  std::uint64_t hash = 0;
  for (const std::string& file : files) hash = hash_of_file(file, hash);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

/// Reads the files again that the model was loaded from.
inline std::string system_fingerprint(const moxie::Model& model) {
  const moxie::LoadOptions& load = model.options();
  std::string text = "weights-" + hash_of_files(moxie::source_files(model.info().path));
  if (!load.adapter.empty())
    text += (load.adapter_mode == moxie::AdapterMode::merged ? " merged-adapter-" : " adapter-") +
            hash_of_files({load.adapter + "/adapter_config.json", load.adapter + "/adapter_model.safetensors"});
  const char* activations = load.activations == moxie::Activations::f32 ? " f32" : " int8";
  return text + activations + moxie::concat(" ", moxie::name_of(load.kv), " ") + model.context().kernels->arch;
}

}  // namespace tool
