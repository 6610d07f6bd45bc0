#pragma once
// Questions with verifiable answers, and the reward of an answer: that of tiny-r1's tasks.
//
//   accuracy  1 when </think> occurs exactly once and the text after it, white space stripped, is the answer
//   format    1 when the completion ended by itself and is <think>\nWORKING\n</think>\n\nANSWER
//   reward    accuracy + 0.1 format

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/error.hpp>
#include <moxie/generate/random.hpp>
#include <moxie/io/json_text.hpp>

namespace training {

struct Question {
  std::string question, answer;
};

/// JSON lines {"question": "..", "answer": ".."}; other fields are passed over. Throws FormatError with the line.
inline std::vector<Question> read_questions(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw moxie::SystemError({path, {}, {}}, "cannot open the file of questions");
  std::vector<Question> questions;
  std::string text;
  for (std::size_t line = 1; std::getline(in, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string place = path + ":" + std::to_string(line);
    moxie::check_json_bounds(text, place, 1000);
    const nlohmann::json object = nlohmann::json::parse(text, nullptr, false);
    const auto is_text = [&](const char* key) { return object.contains(key) && object[key].is_string(); };
    if (!object.is_object() || !is_text("question") || !is_text("answer"))
      throw moxie::FormatError({place, {}, {}}, R"(must be {"question": "..", "answer": ".."})");
    questions.push_back({object["question"].get<std::string>(), object["answer"].get<std::string>()});
  }
  if (questions.empty()) throw moxie::FormatError({path, {}, {}}, "holds no question");
  return questions;
}

/// CRC-32 of zlib (ISO-HDLC). A question is of the evaluation split when that of its text is divisible by 16.
inline std::uint32_t crc32(std::string_view text) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

/// Which questions a step trains on: each pass over all of them is in an order of its own, drawn from (seed, pass).
class QuestionOrder {
 public:
  QuestionOrder(std::size_t questions, std::uint64_t seed) : order_(questions), seed_(seed) {}

  /// The i-th question of the endless stream.
  std::size_t at(std::uint64_t i) {
    if (const std::uint64_t pass = i / order_.size(); pass_ != pass) shuffle(pass);
    return order_[i % order_.size()];
  }

 private:
  void shuffle(std::uint64_t pass) {  // Fisher-Yates
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    for (std::size_t i = order_.size(); i > 1; --i)
      std::swap(order_[i - 1], order_[static_cast<std::size_t>(moxie::uniform_draw(seed_, pass, i) * static_cast<double>(i))]);
    pass_ = pass;
  }

  std::vector<std::size_t> order_;
  std::uint64_t seed_;
  std::optional<std::uint64_t> pass_;
};

struct Reward {
  double accuracy = 0.0, format = 0.0;
  double total() const { return accuracy + 0.1 * format; }
};

/// `text`: the completion, <think> and </think> included, without the end-of-sequence token; `ended`: that token was generated.
inline Reward reward(std::string_view text, bool ended, std::string_view answer) {
  constexpr std::string_view open = "<think>", close = "</think>", white = " \t\r\n";
  const auto once = [&](std::string_view tag) {
    const auto at = text.find(tag);
    return at != std::string_view::npos && text.find(tag, at + 1) == std::string_view::npos;
  };
  if (!once(close)) return {};
  const auto closes = text.find(close);
  const std::string_view rest = text.substr(closes + close.size());
  const auto begin = rest.find_first_not_of(white);
  Reward result;
  if (begin == std::string_view::npos) {
    result.accuracy = answer.empty() ? 1.0 : 0.0;
    return result;
  }
  result.accuracy = rest.substr(begin, rest.find_last_not_of(white) - begin + 1) == answer ? 1.0 : 0.0;
  if (!ended || !once(open) || !text.starts_with("<think>\n") || closes < open.size() + 1) return result;
  const std::string_view working = text.substr(open.size(), closes - open.size());
  if (working.ends_with('\n') && working.find_first_not_of(white) != std::string_view::npos && rest.starts_with("\n\n"))
    result.format = 1.0;
  return result;
}

}  // namespace training
