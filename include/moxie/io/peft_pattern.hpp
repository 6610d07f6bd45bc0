#pragma once
// Keys of PEFT's rank_pattern and alpha_pattern: regular expressions of the ends of modules' names, as Python's
// re.match(rf"(.*\.)?({key})$", module) takes them (peft/utils/other.py, get_pattern_key). Run by PCRE2 with limits, so that an
// expression that would take forever is an error.

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/io/in_quotes.hpp>

namespace moxie {

class PeftPattern {
 public:
  /// Throws FormatError at `place` when the key is no regular expression.
  PeftPattern(std::string key, Place place) : key_(std::move(key)), place_(std::move(place)) {
    const std::string whole = concat("(.*\\.)?(", key_, ")$");
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(whole.data()), whole.size(), PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C,
                              &error, &offset, nullptr),
                [](pcre2_code* code) { pcre2_code_free(code); });
    if (!code_)
      throw FormatError(place_, concat("has the key ", in_quotes(key_), ", which is no regular expression: ", message(error)));
  }

  const std::string& key() const noexcept { return key_; }

  /// Whether the key is of this module. Throws FormatError when that takes too long to find out, and MemoryError.
  bool matches(std::string_view module) const {
    const std::unique_ptr<pcre2_match_data, FreeData> data(pcre2_match_data_create(1, nullptr));
    const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
    if (!data || !context) throw MemoryError("out of memory: an expression of PEFT's patterns needs some to be matched");
    pcre2_set_match_limit(context.get(), 1'000'000);
    pcre2_set_heap_limit(context.get(), 1024);  // KB
    const int result = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0, PCRE2_NO_JIT,
                                   data.get(), context.get());
    if (result < 0 && result != PCRE2_ERROR_NOMATCH)
      throw FormatError(place_, concat("has the key ", in_quotes(key_), ", which cannot be matched with the module ",
                                       in_quotes(std::string(module)), ": ", message(result)));
    return result >= 0;
  }

 private:
  struct FreeData {
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
  };
  struct FreeContext {
    void operator()(pcre2_match_context* context) const noexcept { pcre2_match_context_free(context); }
  };
  static std::string message(int error) {
    PCRE2_UCHAR text[256];
    return pcre2_get_error_message(error, text, sizeof text) < 0 ? concat("error ", error)
                                                                 : std::string(reinterpret_cast<const char*>(text));
  }

  std::string key_;
  Place place_;
  std::shared_ptr<pcre2_code> code_;
};

}  // namespace moxie
