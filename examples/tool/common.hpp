#pragma once
// What the tool's commands share: common options, loading with a progress bar, wrong usage, interrupts.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <moxie/moxie.hpp>

#include "number_range.hpp"

namespace tool {

/// What is run after the command line has been read; the result is the exit code.
using Run = std::function<int()>;

/// Wrong usage: the program ends with code 2. `option` as the user writes it.
[[noreturn]] inline void wrong_usage(const std::string& option, const std::string& message) {
  throw CLI::ValidationError(option, message);
}

struct CommonOptions {
  int threads = 0;
  std::string activations = "int8", kv = "int16";
  std::int64_t chunk = 512, batch = 8;

  void add(CLI::App& command) {
    command.add_option("--threads", threads, "threads; 0: one for each processor")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    command.add_option("--activations", activations, "type of activations in matrix products")
        ->check(CLI::IsMember({"int8", "f32"}))
        ->capture_default_str();
    std::vector<std::string> kv_types;
    for (const auto& [name, type] : moxie::kv_type_names) kv_types.emplace_back(name);
    command.add_option("--kv", kv, "type of the KV cache")->check(CLI::IsMember(kv_types))->capture_default_str();
    command.add_option("--chunk", chunk, "rows of a forward pass at most")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
        ->capture_default_str();
    command.add_option("--batch", batch, "sequences that run together at most")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
        ->capture_default_str();
  }
};

/// An adapter that a command runs its model with.
struct AdapterOptions {
  std::string folder;
  bool merge = false;

  void add(CLI::App& command) {
    CLI::Option* option = command.add_option(
        "--adapter", folder, "folder of a PEFT adapter (LoRA): it runs beside the weights, which stay as they are");
    command
        .add_flag("--merge-adapter", merge,
                  "merge the adapter into the weights instead; quantized ones become BF16 where it changes them")
        ->needs(option);
  }
};

/// What the chat template is told.
struct ChatArguments {
  moxie::ChatOptions options;

  void add(CLI::App& command) {
    command.add_option_function<std::string>(
        "--chat-template-kwargs",
        [this](const std::string& text) {
          options.template_kwargs = nlohmann::ordered_json::parse(text, nullptr, false);
          if (!options.template_kwargs.is_object())
            wrong_usage("--chat-template-kwargs", R"(must be a JSON object, as in '{"enable_thinking": false}')");
        },
        R"(variables for the model's chat template, as in '{"enable_thinking": false}')");
  }
};

/// Set by SIGINT and SIGTERM where a command takes them over.
inline std::atomic<int>& interrupted() {
  static std::atomic<int> signal{0};
  static_assert(std::atomic<int>::is_always_lock_free);
  return signal;
}

/// From here on SIGINT and SIGTERM only set interrupted(), SIGTERM for good; reads from the terminal return early.
inline void take_interrupts() {
  interrupted();  // constructed before a handler can run
  struct sigaction action {};
  action.sa_handler = [](int signal) {
    if (interrupted().load() != SIGTERM) interrupted().store(signal);
  };
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

inline void forget_interrupt() {
  int interrupt = SIGINT;
  interrupted().compare_exchange_strong(interrupt, 0);
}

inline void stop_when_interrupted() {
  if (interrupted().load() != 0) throw moxie::Cancelled("interrupted");
}

/// A bar on stderr, when that is a terminal; it is wiped out at the end.
class Progress {
 public:
  explicit Progress(std::string label)
      : label_(std::move(label)), shown_(::isatty(STDERR_FILENO) == 1), start_(Clock::now()), last_(start_) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (drawn_) std::fputs("\r\x1b[K", stderr);
  }

  template <class T>
  void operator()(T done, T total) {
    const Clock::time_point now = Clock::now();
    if (!shown_ || total == 0 || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    drawn_ = true;
    const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const std::string bar(static_cast<std::size_t>(share * 40.0), '#');
    std::fprintf(stderr, "\r\x1b[K%s [%-40s] %3.0f%%", label_.c_str(), bar.c_str(), share * 100.0);
    if (share > 0.02) std::fprintf(stderr, "  %.0f s left", seconds / share * (1.0 - share));
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool shown_, drawn_ = false;
  Clock::time_point start_, last_;
};

inline moxie::Model load_model(const std::string& path, const CommonOptions& options, const AdapterOptions& adapter = {}) {
  moxie::LoadOptions load;
  load.threads = options.threads;
  load.activations = options.activations == "f32" ? moxie::Activations::f32 : moxie::Activations::int8;
  load.kv = moxie::kv_type_of(options.kv);
  load.chunk = options.chunk;
  load.adapter = adapter.folder;
  load.adapter_mode = adapter.merge ? moxie::AdapterMode::merged : moxie::AdapterMode::beside;
  Progress bar("loading");
  load.progress = [&](std::uint64_t done, std::uint64_t total) {
    stop_when_interrupted();
    bar(done, total);
  };
  return moxie::Model::load(path, load);
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
inline double per_second(std::int64_t n, double seconds) { return seconds > 0.0 ? static_cast<double>(n) / seconds : 0.0; }

}  // namespace tool
