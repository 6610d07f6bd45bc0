#pragma once
// The terminal side of a conversation: lines from stdin that a signal can interrupt, and answers whose thinking is dimmed.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "common.hpp"
#include "text_io.hpp"

namespace tool {

/// Lines of standard input, a terminal or a pipe.
class InputLines {
 public:
  enum class Result { line, end, interrupted };

  /// The next line without its end. A signal gives `interrupted`, and what was typed on that line is forgotten.
  Result next(std::string& line) {
    while (true) {
      if (const auto end = held_.find('\n'); end != std::string::npos) {
        line = held_.substr(0, end);
        held_.erase(0, end + 1);
        if (line.ends_with('\r')) line.pop_back();
        return Result::line;
      }
      char bytes[4096];
      const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
      if (n < 0) {
        if (errno != EINTR)
          throw moxie::SystemError({"standard input", {}, {}}, std::string("cannot read: ") + std::strerror(errno));
        held_.clear();
        return Result::interrupted;
      }
      if (n == 0) {
        line = std::exchange(held_, {});
        return line.empty() ? Result::end : Result::line;
      }
      held_.append(bytes, static_cast<std::size_t>(n));
    }
  }

 private:
  std::string held_;
};

/// Writes an answer as it comes; on a terminal what stands between <think> and </think> is dimmed, the tags included.
class AnswerView {
 public:
  AnswerView(Output& output, bool terminal, bool thinking) : output_(output), terminal_(terminal), thinking_(thinking) {
    if (terminal_ && thinking_) output_.write(dim);
  }

  void push(std::string_view text) {
    if (!terminal_) return output_.write(text);
    held_ += text;
    while (true) {
      const std::string_view tag = thinking_ ? "</think>" : "<think>";
      const auto found = held_.find(tag);
      if (found == std::string::npos) {
        const std::size_t keep = begun(tag);
        output_.write(held_.substr(0, held_.size() - keep));
        held_.erase(0, held_.size() - keep);
        return;
      }
      const std::string before = held_.substr(0, found);
      output_.write(thinking_ ? before + std::string(tag) + plain : before + dim + std::string(tag));
      held_.erase(0, found + tag.size());
      thinking_ = !thinking_;
    }
  }
  void finish() { output_.write(held_ + (terminal_ ? plain : "")); }

 private:
  static constexpr const char *dim = "\x1b[2m", *plain = "\x1b[0m";

  /// How many bytes at the end of held_ may begin the tag.
  std::size_t begun(std::string_view tag) const {
    std::size_t n = std::min(tag.size() - 1, held_.size());
    while (n > 0 && !held_.ends_with(tag.substr(0, n))) --n;
    return n;
  }

  Output& output_;
  bool terminal_, thinking_;
  std::string held_;
};

}  // namespace tool
