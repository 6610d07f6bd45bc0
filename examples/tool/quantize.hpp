#pragma once
// moxie quantize: a GGUF file or Hugging Face folder to a GGUF file with weights of another type.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include <moxie/generate/quantize_model.hpp>

#include "common.hpp"

namespace tool {

struct QuantizeCommand {
  std::string in, out;
  CommonOptions common;
  moxie::QuantizeOptions options;
};

inline int quantize(QuantizeCommand command) {
  take_interrupts();
  command.options.threads = command.common.threads;
  moxie::QuantizeReport report;
  const auto start = std::chrono::steady_clock::now();
  {
    Progress bar("quantizing");
    command.options.progress = [&](std::uint64_t done, std::uint64_t total) {
      stop_when_interrupted();
      bar(done, total);
    };
    report = moxie::quantize_model(command.in, command.out, command.options);
  }
  if (!report.no_tokenizer.empty()) std::fprintf(stderr, "warning: the file has no tokenizer: %s\n", report.no_tokenizer.c_str());
  const auto mb = [](std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; };
  std::fprintf(stderr, "%s: %.2f M weights in %.1f MB (%.1f MB before), %.2f bits per weight, %.1f s\n", command.out.c_str(),
               static_cast<double>(report.parameters) * 1e-6, mb(report.bytes_out), mb(report.bytes_in),
               8.0 * static_cast<double>(report.bytes_out) / static_cast<double>(report.parameters), seconds_since(start));
  return 0;
}

inline void add_quantize(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("quantize", "a model with weights of another type, as a GGUF file");
  auto options = std::make_shared<QuantizeCommand>();
  command.add_option("IN", options->in, "GGUF file or Hugging Face folder")->required();
  command.add_option("OUT", options->out, "the GGUF file to write")->required();
  command.add_option("--type", options->options.type, moxie::quantize_mix_names() + "; Q4_K and Q5_K mean _M")
      ->required()
      ->check([](const std::string& name) {
        try {
          moxie::quantize_mix(name);
          return std::string();
        } catch (const moxie::ArgumentError& error) {
          return std::string(error.what());
        }
      });
  command.add_flag("--pure", options->options.pure, "no tensor gets more bits than the others");
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return quantize(*options); }; });
}

}  // namespace tool
