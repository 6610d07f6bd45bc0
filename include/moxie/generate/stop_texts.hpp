#pragma once
// Stop texts in a stream: text is given out only when no stop text can begin in it any more. The stop text that is complete first
// ends the stream (of two that end together, the longer one), so that the result does not depend on how the text is cut into
// pieces.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moxie {

class StopTexts {
 public:
  explicit StopTexts(std::vector<std::string> texts) : texts_(std::move(texts)) {}

  /// Adds text; returns what can be shown. After a match, what stood before the stop text is returned and nothing more.
  std::string push(std::string_view text) {
    if (matched_) return {};
    held_ += text;
    std::size_t begin = std::string::npos, end = begin;
    for (const std::string& stop : texts_) {
      const std::size_t at = held_.find(stop);
      if (at == std::string::npos || std::pair(at + stop.size(), at) >= std::pair(end, begin)) continue;
      begin = at;
      end = at + stop.size();
    }
    if (begin != std::string::npos) {
      matched_ = true;
      held_.resize(begin);
      return std::exchange(held_, {});
    }
    std::size_t keep = 0;  // the longest end of held_ that begins a stop text
    for (const std::string& stop : texts_)
      for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
        if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    std::string shown = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return shown;
  }
  /// What is still held back, at the end of the stream.
  std::string finish() { return std::exchange(held_, {}); }
  bool matched() const noexcept { return matched_; }

 private:
  std::vector<std::string> texts_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace moxie
