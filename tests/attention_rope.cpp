#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/attention/rope.hpp>

#include "shared.hpp"

namespace {

using moxie::Rope, moxie::RopeConfig, moxie::RopeLayout, moxie::RopeScaling;

/// A case of rope.json as a family header would describe it.
RopeConfig config_of(const nlohmann::json& entry) {
  const nlohmann::json& p = entry["parameters"];
  const std::string kind = entry["kind"];
  RopeConfig c{.dims = entry["dims"], .theta = entry["theta"], .magnitude = entry["magnitude"]};
  c.factor = p.value("factor", 1.0);
  c.original_context = p.value("original_max_position_embeddings", 0);
  if (kind == "linear") c.scaling = RopeScaling::linear;
  if (kind == "ntk_alpha") c.scaling = RopeScaling::ntk, c.factor = p["alpha"];
  if (kind == "yarn") c.scaling = RopeScaling::yarn, c.truncate = p.value("truncate", true);
  if (kind == "llama3")
    c.scaling = RopeScaling::llama3, c.low_freq_factor = p["low_freq_factor"], c.high_freq_factor = p["high_freq_factor"];
  if (kind == "longrope") c.factor = 1.0, c.freq_factors = p["short_factor"].get<std::vector<float>>();
  return c;
}

TEST_CASE("frequencies, cosines and sines are those of transformers") {
  const auto cases = nlohmann::json::parse(test::read_text(test::data_path("attention/rope.json")));
  for (const auto& entry : cases) {
    const std::string name = entry["name"];
    CAPTURE(name);
    const Rope rope(config_of(entry));
    const auto wanted = entry["frequencies"].get<std::vector<float>>();
    REQUIRE(rope.frequencies().size() == wanted.size());
    for (std::size_t d = 0; d < wanted.size(); ++d)  // torch's own pow is only good to one unit, 6e-8
      CHECK(std::abs(rope.frequencies()[d] / wanted[d] - 1.0f) <= 3e-7f);
    std::vector<float> cos(wanted.size()), sin(wanted.size());
    for (const auto& table : entry["tables"]) {
      const std::int64_t position = table["position"];
      rope.tables(position, cos.data(), sin.data());
      for (std::size_t d = 0; d < wanted.size(); ++d) {
        const double turn = static_cast<double>(position) * static_cast<double>(wanted[d]);
        const double tolerance = 3e-7 * (1 + turn);  // a unit in the frequency's last place turns by this
        CHECK(std::abs(static_cast<double>(cos[d]) - table["cos"][d].get<double>()) <= tolerance);
        CHECK(std::abs(static_cast<double>(sin[d]) - table["sin"][d].get<double>()) <= tolerance);
      }
    }
  }
}

TEST_CASE("a rotation pairs the dimensions that the layout says") {
  for (const RopeLayout layout : {RopeLayout::half, RopeLayout::interleaved}) {
    const Rope rope({.dims = 6, .theta = 100.0, .layout = layout, .magnitude = 2.0});
    CHECK(rope.dims() == 6);
    float cos[3], sin[3], head[7] = {1, 2, 3, 4, 5, 6, 7};
    rope.tables(5, cos, sin);
    const float before[7] = {1, 2, 3, 4, 5, 6, 7};
    rope.rotate(cos, sin, head);
    for (int d = 0; d < 3; ++d) {
      const double angle = 5 * std::pow(100.0, -2.0 * d / 6);
      const int x = layout == RopeLayout::half ? d : 2 * d, y = layout == RopeLayout::half ? d + 3 : 2 * d + 1;
      const double a = static_cast<double>(before[x]), b = static_cast<double>(before[y]);
      CHECK(static_cast<double>(head[x]) == doctest::Approx(2 * (a * std::cos(angle) - b * std::sin(angle))).epsilon(1e-6));
      CHECK(static_cast<double>(head[y]) == doctest::Approx(2 * (b * std::cos(angle) + a * std::sin(angle))).epsilon(1e-6));
    }
    CHECK(head[6] == 7.0f);
  }
}

TEST_CASE("without dimensions nothing is rotated") {
  const Rope rope(RopeConfig{.dims = 0});
  CHECK(rope.dims() == 0);
  float head[] = {1.0f, 2.0f};
  rope.tables(7, nullptr, nullptr);
  rope.rotate(nullptr, nullptr, head);
  CHECK(head[0] == 1.0f);
  CHECK(head[1] == 2.0f);
}

TEST_CASE("parameters that cannot be used are refused by name") {
  const auto refused = [](RopeConfig c, const char* item) {
    try {
      const Rope rope(c);
      FAIL("accepted, but should name " << item);
    } catch (const moxie::ArgumentError& e) {
      CHECK(std::string(e.what()).find(item) != std::string::npos);
    }
  };
  refused({.dims = 7}, "dims");
  refused({.dims = -2}, "dims");
  refused({.dims = 8, .theta = 0.0}, "theta");
  refused({.dims = 8, .theta = std::nan("")}, "theta");
  refused({.dims = 8, .scaling = RopeScaling::linear, .factor = 0.0}, "factor");
  refused({.dims = 8, .scaling = RopeScaling::yarn, .factor = 4.0}, "original_context");
  refused({.dims = 8, .scaling = RopeScaling::llama3, .original_context = 64, .low_freq_factor = 4.0}, "high_freq_factor");
  refused({.dims = 8, .freq_factors = {1, 1, 1}}, "freq_factors");
  refused({.dims = 8, .freq_factors = {1, 1, 0, 1}}, "freq_factors");
}

}  // namespace
