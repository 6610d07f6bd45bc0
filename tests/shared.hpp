#pragma once
// Where the tests find reference data: small files in tests/data, large ones in a folder beside the checkout.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#ifndef MOXIE_SOURCE_DIR
#define MOXIE_SOURCE_DIR "."
#endif

namespace test {

/// The model that lies in the repository.
inline std::string embedded_model() { return std::string(MOXIE_SOURCE_DIR) + "/examples/models/tiny-r1.gguf"; }

inline std::string data_path(const std::string& relative) { return std::string(MOXIE_SOURCE_DIR) + "/tests/data/" + relative; }

/// A file or folder of the large reference data ($MOXIE_SHARED, else ../shared beside the checkout); says that the test is skipped where it is missing.
inline std::optional<std::string> shared_path(const std::string& relative) {
  const char* given = std::getenv("MOXIE_SHARED");
  const std::string root = given ? given : std::string(MOXIE_SOURCE_DIR) + "/../shared";
  const std::string path = root + "/" + relative;
  if (std::filesystem::exists(path)) return path;
  MESSAGE("skipped: no " << path << " (MOXIE_SHARED names another place for the reference data)");
  return std::nullopt;
}

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace test
