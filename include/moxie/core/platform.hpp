#pragma once
// What the operating system gives: mapping files, advice on pages and large pages, replacing a file atomically. Another operating
// system is another version of this header; only posix_memalign (core/memory.hpp) and getauxval (core/cpu.hpp) are called
// elsewhere.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// A whole file, mapped read-only. Throws SystemError when it cannot be opened, is no regular file, or cannot be mapped.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path) : path_(path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer is refused, not waited for
    if (fd < 0) throw SystemError({path, {}, {}}, std::string("cannot open the file: ") + std::strerror(errno));
    struct stat info {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd);
      throw SystemError({path, {}, {}}, "not a regular file");
    }
    size_ = static_cast<std::uint64_t>(info.st_size);
    modified_ = std::int64_t{info.st_mtim.tv_sec} * 1000000000 + info.st_mtim.tv_nsec;
    if (size_ > 0) {
      void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      const int error = errno;
      ::close(fd);
      if (address == MAP_FAILED) throw SystemError({path, {}, {}}, std::string("cannot map the file: ") + std::strerror(error));
      data_ = static_cast<const std::byte*>(address);
    } else {
      ::close(fd);
    }
  }
  ~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
  }
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        modified_(other.modified_) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(modified_, other.modified_);
    return *this;
  }

  const std::string& path() const noexcept { return path_; }
  const std::byte* data() const noexcept { return data_; }
  std::uint64_t size() const noexcept { return size_; }
  /// When it was modified last, as it was opened: nanoseconds since 1970.
  std::int64_t modified() const noexcept { return modified_; }
  bool contains(const std::byte* p) const noexcept { return p >= data_ && p < data_ + size_; }

  /// Gives the whole pages inside [p, p + bytes) back; they are read from the file again when touched.
  void release(const std::byte* p, std::uint64_t bytes) const noexcept {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(p) + page - 1) / page * page;
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(p) + bytes) / page * page;
    if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::uint64_t size_ = 0;
  std::int64_t modified_ = 0;
};

/// Memory that begins at a multiple of this, and is as large, can lie in large pages (x86-64, and ARM with pages of 4 KB).
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

/// Asks for large pages for the whole pieces of huge_page_bytes in [p, p + bytes): 512 times fewer page faults and entries of the
/// address translation. Advice: where the system has none, nothing changes.
inline void advise_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(MADV_HUGEPAGE)
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(p) + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(p) + bytes) / huge_page_bytes * huge_page_bytes;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

/// Largest resident memory of this program so far, in bytes.
inline std::uint64_t peak_resident_bytes() noexcept {
  // getrusage() also counts what the process held before this program was started in it: a copy of its parent.
  if (std::FILE* status = std::fopen("/proc/self/status", "re")) {
    char line[128];
    unsigned long long kilobytes = 0;
    while (std::fgets(line, sizeof line, status))
      if (std::sscanf(line, "VmHWM: %llu", &kilobytes) == 1) break;
    std::fclose(status);
    if (kilobytes != 0) return kilobytes * 1024;
  }
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

/// A file that appears under its name only when commit() is called: written beside it under a temporary name, flushed to
/// the disk, renamed. Without commit() nothing is left. Replaces regular files only. Throws SystemError.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path) : path_(std::move(path)) {
    struct stat there {};
    if (path_.empty()) throw SystemError("the file to write has no name");
    if (::stat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
      throw SystemError({path_, {}, {}}, S_ISDIR(there.st_mode) ? "is a folder; name the file to write"
                                                               : "is a device or pipe, which a finished file cannot replace");
    int fd = -1;  // not mkstemp, whose mode does not follow the umask
    for (int attempt = 0; attempt < 1000; ++attempt) {
      temporary_ = concat(path_, ".part", ::getpid(), "-", attempt);
      fd = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0 || errno != EEXIST) break;
    }
    if (fd < 0) throw SystemError({path_, {}, {}}, std::string("cannot create a file beside it: ") + std::strerror(errno));
    file_ = ::fdopen(fd, "wb");
    if (!file_) {
      ::close(fd);
      ::unlink(temporary_.c_str());
      throw SystemError({path_, {}, {}}, "cannot open the temporary file");
    }
  }
  ~AtomicFile() {
    if (file_) {
      std::fclose(file_);
      ::unlink(temporary_.c_str());
    }
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes) {
    if (bytes != 0 && std::fwrite(data, 1, bytes, file_) != bytes)
      throw SystemError({path_, {}, {}}, std::string("cannot write: ") + std::strerror(errno));
    written_ += bytes;
  }
  std::uint64_t written() const noexcept { return written_; }

  void commit() {
    if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0)
      throw SystemError({path_, {}, {}}, std::string("cannot write: ") + std::strerror(errno));
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0)
      throw SystemError({path_, {}, {}}, std::string("cannot rename the finished file: ") + std::strerror(errno));
    std::fclose(std::exchange(file_, nullptr));
  }

 private:
  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
  std::uint64_t written_ = 0;
};

}  // namespace moxie
