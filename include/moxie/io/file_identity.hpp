#pragma once
// Whether a file is still the one that something was made from.
//
// Its size and a sample of its bytes (both ends and 32 pages between them) must be the same, and all bytes unless it still has
// its time of modification. So a changed file is noticed whatever the change, unless the time was set back and the sample missed
// it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/hash.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/threads.hpp>

namespace moxie {

struct FileIdentity {
  std::string path;  ///< absolute
  std::uint64_t size = 0;
  std::int64_t modified = 0;  ///< nanoseconds since 1970
  std::uint64_t sample = 0, content = 0;
};

namespace detail {

inline std::uint64_t sample_hash(const MappedFile& file) noexcept {
  constexpr std::uint64_t end = 65536, page = 4096, pages = 32;
  const std::uint64_t n = file.size();
  if (n <= 2 * end + page * pages) return xxh64(file.data(), static_cast<std::size_t>(n));
  std::uint64_t hash = xxh64(file.data(), end);
  for (std::uint64_t i = 1; i <= pages; ++i) hash = xxh64(file.data() + n / (pages + 1) * i / page * page, page, hash);
  return xxh64(file.data() + n - end, end, hash);
}

/// Hash of the hashes of pieces, which the threads share.
inline std::uint64_t content_hash(const MappedFile& file, Threads threads) {
  constexpr std::uint64_t piece = std::uint64_t{4} << 20;
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>((file.size() + piece - 1) / piece));
  threads.for_each(static_cast<std::int64_t>(hashes.size()), [&](std::int64_t i, int) {
    const std::uint64_t begin = static_cast<std::uint64_t>(i) * piece, n = std::min(piece, file.size() - begin);
    hashes[static_cast<std::size_t>(i)] = xxh64(file.data() + begin, static_cast<std::size_t>(n));
    file.release(file.data() + begin, n);
  });
  return xxh64(hashes.data(), hashes.size() * sizeof(std::uint64_t));
}

}  // namespace detail

/// Reads the whole file. Throws SystemError.
inline FileIdentity identify_file(const std::string& path, Threads threads) {
  const MappedFile file(path);
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::weakly_canonical(path, error);
  return {error ? path : absolute.string(), file.size(), file.modified(), detail::sample_hash(file),
          detail::content_hash(file, threads)};
}

/// What is different about the file that lies at its path now; empty where it is the same, or none can be read there.
inline std::string difference(const FileIdentity& identity, Threads threads) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(identity.path, ignored)) return {};
  std::optional<MappedFile> file;
  try {
    file.emplace(identity.path);
  } catch (const SystemError&) {
    return {};
  }
  if (file->size() != identity.size) return concat("it has ", file->size(), " bytes, then it had ", identity.size);
  if (detail::sample_hash(*file) != identity.sample) return "its bytes are different";
  if (file->modified() != identity.modified && detail::content_hash(*file, threads) != identity.content)
    return "it was modified and its bytes are different";
  return {};
}

}  // namespace moxie
