#pragma once
// Runs one test case of this program in a process of its own: to measure its memory, or for what happens once in a process.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace test {

/// A value of /proc/self/status in bytes, e.g. "VmHWM" (largest resident memory) or "VmRSS".
inline std::int64_t process_bytes(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string word; in >> word;)
    if (word == name + ":") {
      std::int64_t kilobytes = 0;
      in >> kilobytes;
      return kilobytes * 1024;
    }
  throw std::runtime_error("no " + name + " in /proc/self/status");
}

/// Runs a test case that is marked with doctest::skip(); it finds `argument` with child_argument(). Returns what it printed; throws when
/// it failed.
inline std::string run_child(const std::string& test_case, const std::string& argument) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command = "MOXIE_TEST_ARGUMENT='" + argument + "' '" + program + "' --no-skip --minimal --test-case='" + test_case + "' 2>&1";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot run " + command);
  std::string output;
  std::array<char, 4096> buffer{};
  while (const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) output.append(buffer.data(), n);
  if (::pclose(pipe) != 0) throw std::runtime_error("failed: " + command + "\n" + output);
  return output;
}
inline std::string child_argument() {
  const char* argument = std::getenv("MOXIE_TEST_ARGUMENT");
  return argument ? argument : "";
}

/// The number after `name=` in what a child printed.
inline std::int64_t number_in(const std::string& output, const std::string& name) {
  const std::size_t at = output.find(name + "=");
  if (at == std::string::npos) throw std::runtime_error("no " + name + " in: " + output);
  return std::stoll(output.substr(at + name.size() + 1));
}

}  // namespace test
