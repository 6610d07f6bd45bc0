#pragma once
// Reads reference data from safetensors files, independently of moxie's own reader.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "shared.hpp"

namespace test {

struct MiniTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;

  template <class T>
  std::vector<T> as() const {
    std::vector<T> values(data.size() / sizeof(T));
    if (!data.empty()) std::memcpy(values.data(), data.data(), values.size() * sizeof(T));
    return values;
  }
};

using MiniTensors = std::map<std::string, MiniTensor>;

/// All tensors of a well-formed file.
inline MiniTensors read_safetensors(const std::string& path) {
  const std::string file = read_text(path);
  std::uint64_t header = 0;
  std::memcpy(&header, file.data(), 8);
  MiniTensors tensors;
  const auto json = nlohmann::json::parse(file.substr(8, header));
  for (const auto& [name, t] : json.items()) {
    if (name == "__metadata__") continue;
    const auto begin = t["data_offsets"][0].get<std::size_t>(), end = t["data_offsets"][1].get<std::size_t>();
    const auto* data = reinterpret_cast<const std::byte*>(file.data()) + 8 + header;
    tensors[name] = {t["dtype"], t["shape"], {data + begin, data + end}};
  }
  return tensors;
}

}  // namespace test
