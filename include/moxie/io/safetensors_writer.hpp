#pragma once
// Writes a small safetensors file: all tensors are in memory already (adapters, states of optimizers).
//
// Layout in safetensors_header.hpp; tensors lie in the order given, the header is padded with spaces to a multiple of 8. The file
// appears under its name only when it is complete; an error before that leaves an older file as it was. Errors: ArgumentError,
// SystemError.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/safetensors_header.hpp>

namespace moxie {

class SafetensorsWriter {
 public:
  /// `values` must stay as they are until write(). Throws ArgumentError for a name that is taken.
  void add(const std::string& name, const RowMatrix& values) {
    add(name, Dtype::F32, {values.rows(), values.cols()},
        std::as_bytes(std::span(values.data(), static_cast<std::size_t>(values.size()))));
  }
  /// Bytes of `shape`, row-major, little endian.
  void add(const std::string& name, Dtype dtype, const std::vector<std::int64_t>& shape, std::span<const std::byte> bytes) {
    if (safetensors::find_type(dtype_info(dtype).name) == nullptr)
      throw ArgumentError(concat("tensor ", in_quotes(name), ": safetensors has no type ", dtype_info(dtype).name));
    if (name == "__metadata__" || !names_.insert(name).second)
      throw ArgumentError(concat("a tensor cannot be called ", in_quotes(name), ": the name is taken"));
    header_[name] = {{"dtype", dtype_info(dtype).name}, {"shape", shape}, {"data_offsets", {offset_, offset_ + bytes.size()}}};
    offset_ += bytes.size();
    parts_.push_back(bytes);
  }
  void set_metadata(const std::string& key, const std::string& value) { header_["__metadata__"][key] = value; }

  void write(const std::string& path) const {
    static_assert(std::endian::native == std::endian::little);
    std::string header = header_.empty() ? "{}" : header_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = header.size();
    AtomicFile file(path);
    file.write(&length, sizeof length);
    file.write(header.data(), header.size());
    for (const std::span<const std::byte> part : parts_) file.write(part.data(), part.size());
    file.commit();
  }

 private:
  nlohmann::ordered_json header_;
  std::set<std::string> names_;
  std::vector<std::span<const std::byte>> parts_;
  std::uint64_t offset_ = 0;
};

}  // namespace moxie
