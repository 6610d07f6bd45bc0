#pragma once
// Little-endian values and strings read in order from a mapped file; reading past the end is an error that says where.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>

namespace moxie {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are read as they lie");

class ByteReader {
 public:
  explicit ByteReader(const MappedFile& file) : file_(&file) {}

  std::uint64_t position() const noexcept { return position_; }
  std::uint64_t remaining() const noexcept { return file_->size() - position_; }
  /// What is being read, for error messages: a key or a table entry.
  void set_item(std::string item) { item_ = std::move(item); }
  const std::string& item() const noexcept { return item_; }
  const std::string& file() const noexcept { return file_->path(); }
  Place place() const { return {file_->path(), item_, position_}; }

  [[noreturn]] void fail(const std::string& message) const { throw FormatError(place(), message); }
  [[noreturn]] void fail_at(std::uint64_t offset, const std::string& message) const {
    throw FormatError({file_->path(), item_, offset}, message);
  }

  /// The next `bytes` bytes, which `what` names in the error.
  std::span<const std::byte> take(std::uint64_t bytes, const char* what) {
    if (bytes > remaining()) {
      fail(concat("the file ends inside ", what, ": ", bytes, " bytes are needed, ", remaining(),
                  " are left; the file is cut off or corrupt"));
    }
    const std::span<const std::byte> part(file_->data() + position_, static_cast<std::size_t>(bytes));
    position_ += bytes;
    return part;
  }
  template <class T>
  requires std::is_arithmetic_v<T> T read(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  /// A 64-bit length and that many bytes, at most `limit`. The view lies in the mapping.
  std::string_view string(const char* what, std::uint64_t limit) {
    const std::uint64_t at = position_;
    const auto length = read<std::uint64_t>(what);
    if (length > limit) {
      fail_at(at, concat(what, " has a length of ", length, " bytes, at most ", limit, " are allowed"));
    }
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  const MappedFile* file_;
  std::uint64_t position_ = 0;
  std::string item_;
};

}  // namespace moxie
