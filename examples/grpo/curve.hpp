#pragma once
// Curves of several runs as an SVG: panels below one another, each run a thin line, their mean a thick one.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <moxie/text/jinja_operations.hpp>

namespace training {

struct Panel {
  std::string title;
  std::vector<std::vector<double>> runs;  ///< [run][step]; runs may differ in length
};

namespace detail {

template <class... Values>
std::string formatted(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

/// A step of 1, 2 or 5 times a power of 10 that divides `range` into at most 5.
inline double tick_step(double range) {
  const double power = std::pow(10.0, std::floor(std::log10(range / 5.0)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (range / (factor * power) <= 5.0) return factor * power;
  return 10.0 * power;
}

inline std::vector<double> mean_of(const std::vector<std::vector<double>>& runs) {
  std::vector<double> mean;
  for (std::size_t step = 0;; ++step) {
    double sum = 0.0, count = 0.0;
    for (const auto& run : runs)
      if (step < run.size()) sum += run[step], count += 1.0;
    if (count == 0.0) return mean;
    mean.push_back(sum / count);
  }
}

}  // namespace detail

/// The x axis counts steps from 1.
inline std::string curves_svg(const std::string& title, const std::vector<Panel>& panels) {
  using detail::formatted;
  constexpr double width = 720.0, left = 60.0, right = 16.0, top = 44.0, height = 130.0, gap = 44.0;
  const double total = top + static_cast<double>(panels.size()) * (height + gap);
  std::string svg = formatted(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" font-family=\"sans-serif\" "
      "font-size=\"11\">\n",
      width, total, width, total);
  svg += "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  svg += formatted("<text x=\"%g\" y=\"20\" font-size=\"14\">", left) + moxie::jinja::escape_html(title) + "</text>\n";
  double y0 = top;
  for (const Panel& panel : panels) {
    double low = 0.0, high = 0.0;
    std::size_t steps = 1;
    bool first = true;
    for (const auto& run : panel.runs) {
      steps = std::max(steps, run.size());
      for (const double value : run) {
        if (!std::isfinite(value)) continue;
        low = first ? value : std::min(low, value);
        high = first ? value : std::max(high, value);
        first = false;
      }
    }
    if (high - low < 1e-9) low -= 0.5, high += 0.5;
    const double step = detail::tick_step(high - low);
    low = std::floor(low / step) * step;
    high = std::ceil(high / step) * step;
    const auto x = [&](std::size_t i) {
      return left + (width - left - right) * (steps > 1 ? static_cast<double>(i) / static_cast<double>(steps - 1) : 0.5);
    };
    const auto y = [&](double value) { return y0 + height * (high - value) / (high - low); };
    svg += formatted("<text x=\"%g\" y=\"%g\" font-weight=\"bold\">", left, y0 - 6.0) + moxie::jinja::escape_html(panel.title) +
           "</text>\n";
    for (int i = 0; low + i * step <= high + step * 0.5; ++i)
      svg += formatted("<path d=\"M%g %.1fH%g\" stroke=\"#ddd\"/><text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                       left, y(low + i * step), width - right, left - 6.0, y(low + i * step) + 4.0,
                       std::abs(low + i * step) < 1e-12 ? 0.0 : low + i * step);
    for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      const auto i = static_cast<std::size_t>(share * static_cast<double>(steps - 1));
      svg += formatted("<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%zu</text>\n", x(i), y0 + height + 14.0, i + 1);
    }
    const auto line = [&](const std::vector<double>& run, const char* style) {
      std::string path;
      for (std::size_t i = 0; i < run.size(); ++i)
        if (std::isfinite(run[i])) path += formatted("%c%.1f %.1f", path.empty() ? 'M' : 'L', x(i), y(run[i]));
      if (!path.empty()) svg += "<path d=\"" + path + "\" fill=\"none\" " + style + "/>\n";
    };
    for (const auto& run : panel.runs) line(run, "stroke=\"#8fb8de\"");
    line(detail::mean_of(panel.runs), "stroke=\"#1f4e8c\" stroke-width=\"2\"");
    y0 += height + gap;
  }
  return svg + "</svg>\n";
}

}  // namespace training
