#pragma once
// moxie grpo: trains an adapter on questions with known answers; what it does is in ../grpo.

#include <memory>
#include <string>
#include <string_view>

#include "../grpo/train.hpp"
#include "common.hpp"
#include "text_io.hpp"

namespace tool {

struct GrpoOptions {
  std::string model;
  CommonOptions common;
  AdapterOptions adapter;
  training::TrainOptions train;
};

inline int grpo(const GrpoOptions& options) {
  take_interrupts();
  const moxie::Model model = load_model(options.model, options.common, options.adapter);
  Output output;
  training::train(
      model, options.train, [&](std::string_view text) { output.write(text); }, stop_when_interrupted);
  return 0;
}

inline void add_grpo(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("grpo", "trains a low-rank adapter by GRPO on questions with known answers");
  auto options = std::make_shared<GrpoOptions>();
  command.add_option("MODEL", options->model, "GGUF file or Hugging Face folder")->required();
  command.add_option("--questions", options->train.questions, R"(JSON lines {"question":"..","answer":".."} to train on)")
      ->required();
  command.add_option("--eval", options->train.unseen, "the same, to compare the accuracy before and after")->required();
  options->train.add(command);
  options->adapter.add(command);
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return grpo(*options); }; });
}

}  // namespace tool
