#pragma once
// Stop texts in a stream: text is given out only when no stop text can begin in it any more.

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
    std::size_t first = std::string::npos;
    for (const std::string& stop : texts_) first = std::min(first, held_.find(stop));
    if (first != std::string::npos) {
      matched_ = true;
      held_.resize(first);
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
