#pragma once
// Runs the program moxie for tests: arguments in, exit code and what it printed out.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "io_files.hpp"
#include "shared.hpp"

namespace test {

using Args = std::vector<std::string>;

inline std::string tiny_r1() { return embedded_model(); }

/// The program, running; its output goes to files.
class Process {
 public:
  Process(const Args& args, const std::string& in, const std::string& out, const std::string& err) {
    std::vector<char*> argv{const_cast<char*>("moxie")};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ == 0) {
      const int files[3] = {::open(in.c_str(), O_RDONLY), ::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644),
                            ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644)};
      for (int i = 0; i < 3; ++i) ::dup2(files[i], i);
      ::execv(MOXIE_TOOL, argv.data());
      ::_exit(127);
    }
  }
  ~Process() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) const { ::kill(pid_, number); }
  bool running() {
    if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
    return pid_ > 0;
  }
  /// The exit code; minus the signal's number where one ended it.
  int wait() {
    if (pid_ > 0) ::waitpid(std::exchange(pid_, -1), &status_, 0);
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_);
  }

 private:
  pid_t pid_ = -1;
  int status_ = 0;
};

struct Result {
  int code = 0;
  std::string out, err;

  /// Lines of out as JSON.
  std::vector<nlohmann::json> lines() const {
    std::vector<nlohmann::json> all;
    for (std::size_t at = 0; at < out.size();) {
      const std::size_t end = std::min(out.find('\n', at), out.size());
      all.push_back(nlohmann::json::parse(out.substr(at, end - at)));
      at = end + 1;
    }
    return all;
  }
};

inline Result run_tool(const Args& args, const std::string& in = {}) {
  const TemporaryFolder folder;
  Process process(args, folder.write("in", in), folder / "out", folder / "err");
  Result result;
  result.code = process.wait();
  result.out = read_text(folder / "out");
  result.err = read_text(folder / "err");
  return result;
}
/// The same; the run must succeed.
inline Result run_well(const Args& args, const std::string& in = {}) {
  Result result = run_tool(args, in);
  REQUIRE_MESSAGE(result.code == 0, args.front() << ": " << result.err);
  return result;
}

inline Args with(Args args, const Args& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

/// Largest difference of the numbers under `key` of two outputs of score.
inline double largest_difference(const Result& a, const Result& b, const char* key) {
  const auto x = a.lines(), y = b.lines();
  REQUIRE(x.size() == y.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    REQUIRE(x[i][key].size() == y[i][key].size());
    for (std::size_t t = 0; t < x[i][key].size(); ++t) largest = std::max(largest, std::abs(x[i][key][t].get<double>() - y[i][key][t].get<double>()));
  }
  return largest;
}

/// Sequences of lengths 1 to 70 with ids below `vocab`, as lines for score.
inline std::string id_lines(int vocab) {
  std::string lines;
  unsigned state = 1;
  for (const int length : {1, 17, 70, 33, 2}) {
    nlohmann::json ids = nlohmann::json::array();
    for (int i = 0; i < length; ++i) {
      state = state * 1664525u + 1013904223u;
      ids.push_back(state >> 8 & 0xffff);
    }
    for (auto& id : ids) id = id.get<int>() % vocab;
    lines += nlohmann::json{{"ids", ids}}.dump() + "\n";
  }
  return lines;
}

}  // namespace test
