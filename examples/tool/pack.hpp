#pragma once
// moxie pack: a GGUF file or Hugging Face folder to a packed model, which starts without packing.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include <moxie/generate/pack_model.hpp>

#include "common.hpp"

namespace tool {

struct PackCommand {
  std::string in, out;
  CommonOptions common;
};

inline int pack(const PackCommand& command) {
  take_interrupts();
  moxie::PackOptions options;
  options.threads = command.common.threads;
  moxie::PackReport report;
  const auto start = std::chrono::steady_clock::now();
  {
    Progress bar("packing");
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      stop_when_interrupted();
      bar(done, total);
    };
    report = moxie::pack_model(command.in, command.out, options);
  }
  const auto mb = [](std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-6; };
  std::fprintf(stderr, "%s: %.1f MB (%.1f MB before), of which %.1f MB start without packing, %.1f s\n", command.out.c_str(),
               mb(report.bytes_out), mb(report.bytes_in), mb(report.bytes_packed), seconds_since(start));
  return 0;
}

inline void add_pack(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("pack", "a model as this CPU's kernels read it, in one file that starts at once");
  auto options = std::make_shared<PackCommand>();
  command.add_option("IN", options->in, "GGUF file or Hugging Face folder")->required();
  command.add_option("OUT", options->out, "the file to write; every command takes it as a model")->required();
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return pack(*options); }; });
}

}  // namespace tool
