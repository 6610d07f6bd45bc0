#pragma once
// A file of lines that is written as it grows, and gone on with after the program was ended, by whatever. A file that was made
// here and got no line is removed when an error ends the program.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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
    int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    made_ = fd >= 0;
    if (!made_) fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) fail("cannot open the file");
    file_ = ::fdopen(fd, "r+b");
    if (!file_) {
      ::close(fd);
      fail("cannot open the file");
    }
    struct stat there {};  // without a link, another program has removed it in between
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && ::fstat(fd, &there) == 0 && there.st_nlink > 0) return;
    std::fclose(file_);
    throw moxie::SystemError({path_, {}, {}}, "another program is writing this file; wait for it, or give another file");
  }
  ~ResumableFile() {
    if (made_) ::unlink(path_.c_str());
    std::fclose(file_);
  }
  ResumableFile(const ResumableFile&) = delete;
  ResumableFile& operator=(const ResumableFile&) = delete;

  /// Gives every line, without its end, to check(line, number from 0, whole), which throws where it is none of this program's. A
  /// last one that has no end (it is not whole, however much of it is there) is dropped then. Returns the number of whole lines.
  template <class F>
  std::int64_t resume(F&& check) {
    char* line = nullptr;
    std::size_t capacity = 0;
    std::int64_t lines = 0;
    off_t end = 0;
    try {
      for (ssize_t n; (n = ::getline(&line, &capacity, file_)) > 0;) {
        const bool whole = line[n - 1] == '\n';
        check(std::string_view(line, static_cast<std::size_t>(whole ? n - 1 : n)), lines, whole);
        if (!whole) break;
        end += n;
        ++lines;
      }
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
    made_ = false;
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) fail("cannot write");
  }
  /// To the disk.
  void finish() {
    made_ = false;
    if (::fsync(::fileno(file_)) != 0 && errno != EINVAL && errno != EROFS) fail("cannot write");
  }

  std::string place(std::int64_t line) const { return path_ + ":" + std::to_string(line + 1); }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw moxie::SystemError({path_, {}, {}}, what + ": " + std::strerror(errno));
  }

  std::string path_;
  std::FILE* file_ = nullptr;
  bool made_ = false;  // and nothing was written yet
};

}  // namespace tool
