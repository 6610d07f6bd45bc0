#pragma once
// A file of lines that is written as it grows, and gone on with after the program was ended, by whatever.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include <moxie/core/error.hpp>

namespace tool {

class ResumableFile {
 public:
  /// Opens or creates the file; no other program may be writing it this way.
  explicit ResumableFile(std::string path) : path_(std::move(path)) {
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) fail("cannot open the file");
    file_ = ::fdopen(fd, "r+b");
    if (!file_) {
      ::close(fd);
      fail("cannot open the file");
    }
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return;
    std::fclose(file_);
    throw moxie::SystemError({path_, {}, {}}, "another program is writing this file; wait for it, or give another file");
  }
  ~ResumableFile() { std::fclose(file_); }
  ResumableFile(const ResumableFile&) = delete;
  ResumableFile& operator=(const ResumableFile&) = delete;

  /// Gives every complete line, without its end, to check(line, number from 0), and drops what follows the last one. Returns
  /// their number.
  template <class F>
  std::int64_t resume(F&& check) {
    char* line = nullptr;
    std::size_t capacity = 0;
    std::int64_t lines = 0;
    off_t end = 0;
    try {
      for (ssize_t n; (n = ::getline(&line, &capacity, file_)) > 0 && line[n - 1] == '\n'; end += n, ++lines)
        check(std::string_view(line, static_cast<std::size_t>(n - 1)), lines);
    } catch (...) {
      std::free(line);
      throw;
    }
    std::free(line);
    if (std::ferror(file_) || ::ftruncate(::fileno(file_), end) != 0 || ::fseeko(file_, end, SEEK_SET) != 0)
      fail("cannot go on with the file");
    return lines;
  }
  /// Appends a line that ends with a line feed; it is in the file when this returns.
  void write(std::string_view line) {
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) fail("cannot write");
  }
  /// To the disk.
  void finish() {
    if (::fsync(::fileno(file_)) != 0 && errno != EINVAL && errno != EROFS) fail("cannot write");
  }

  std::string place(std::int64_t line) const { return path_ + ":" + std::to_string(line + 1); }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw moxie::SystemError({path_, {}, {}}, what + ": " + std::strerror(errno));
  }

  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace tool
