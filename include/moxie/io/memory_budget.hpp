#pragma once
// What reading a file's tables may allocate: never more than the size of the files plus 60 MB, however the file was made.
//
// A value of a metadata array takes 1 byte or more in the file but 16 bytes or more in memory, so a file could ask for a
// multiple of its size. Readers charge each allocation before making it, as malloc rounds it up. Real files stay far below: a
// vocabulary of 260 000 tokens with 510 000 merges charges 60 MB and takes 16 MB in the file.

#include <cstddef>
#include <cstdint>
#include <string>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

class MemoryBudget {
 public:
  static constexpr std::uint64_t allowance = 60'000'000;

  /// The tables of a file of `bytes` will be read too.
  void add_file(std::uint64_t bytes) noexcept { limit_ += bytes; }

  /// Throws FormatError where `bytes` more would exceed the limit; `place` is called for the error only.
  template <class MakePlace>
  void charge(std::uint64_t bytes, MakePlace&& place) {
    if (bytes > limit_ - used_) {
      throw FormatError(place(), concat("the file's tables would take more than ", limit_,
                                        " bytes of memory; a file may ask for its size and 60 MB"));
    }
    used_ += bytes;
  }

  /// What one allocation of `bytes` takes: 8 bytes of bookkeeping, rounded up to 16, at least 32.
  static constexpr std::uint64_t allocation(std::uint64_t bytes) noexcept {
    return bytes <= 24 ? 32 : (bytes + 8 + 15) / 16 * 16;
  }
  /// Heap of a std::string of `length`; up to 15 bytes lie inside the object.
  static constexpr std::uint64_t string(std::uint64_t length) noexcept { return length <= 15 ? 0 : allocation(length + 1); }
  /// A node of a std::map: 32 bytes of links around the pair.
  static constexpr std::uint64_t map_node(std::uint64_t pair_bytes) noexcept { return allocation(32 + pair_bytes); }

 private:
  std::uint64_t limit_ = allowance, used_ = 0;
};

}  // namespace moxie
