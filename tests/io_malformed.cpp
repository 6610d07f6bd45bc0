// Broken and hostile files: every one gets an error that names the file and the defect, or opens; nothing crashes, and no file
// makes the readers allocate more than its size and 64 MB.

#include <malloc.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_writer.hpp>
#include <moxie/io/safetensors.hpp>

#include "io_files.hpp"
#include "shared.hpp"

namespace {

std::atomic<std::size_t> live_bytes{0}, peak_bytes{0};

void* counted(std::size_t bytes) {
  void* p = std::malloc(bytes == 0 ? 1 : bytes);
  if (!p) throw std::bad_alloc();
  const std::size_t live = live_bytes += ::malloc_usable_size(p);
  std::size_t peak = peak_bytes;
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return p;
}
void uncounted(void* p) noexcept {
  if (!p) return;
  live_bytes -= ::malloc_usable_size(p);
  std::free(p);
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes); }
void* operator new[](std::size_t bytes) { return counted(bytes); }
void operator delete(void* p) noexcept { uncounted(p); }
void operator delete[](void* p) noexcept { uncounted(p); }
void operator delete(void* p, std::size_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::size_t) noexcept { uncounted(p); }

namespace {

struct Result {
  bool opened = false;
  std::string error;
  std::size_t allocated = 0;  ///< the most that was alive at once
};

/// Opens the file and reads a byte from both ends of every tensor.
Result open_file(const std::string& path) {
  const std::size_t before = live_bytes;
  peak_bytes = before;
  Result result;
  unsigned sum = 0;
  const auto touch = [&](const moxie::TensorMap& tensors) {
    for (const auto& [name, view] : tensors.all()) {
      if (view.bytes > 0) sum += static_cast<unsigned>(view.data[0]) + static_cast<unsigned>(view.data[view.bytes - 1]);
    }
  };
  try {
    if (path.ends_with(".gguf")) {
      touch(moxie::GgufFile::open(path).tensors());
    } else {
      touch(moxie::SafetensorsFile::open(path).tensors());
    }
    result.opened = true;
  } catch (const moxie::Error& error) {
    result.error = error.what();
  }
  CHECK(sum <= 0xffffffffu);
  result.allocated = peak_bytes - before;
  return result;
}

std::size_t allowed_bytes(const std::string& path) { return std::filesystem::file_size(path) + 64'000'000; }

std::string little_endian(std::uint64_t value, int bytes = 8) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> 8 * i & 255u);
  return out;
}
std::string gguf_string(std::string_view text) { return little_endian(text.size()) + std::string(text); }
std::string gguf_header(std::uint64_t tensors, std::uint64_t keys) {
  return "GGUF" + little_endian(3, 4) + little_endian(tensors) + little_endian(keys);
}
std::string gguf_array(std::uint32_t type, std::uint64_t count, std::string_view values) {
  return gguf_header(0, 1) + gguf_string("a") + little_endian(9, 4) + little_endian(type, 4) + little_endian(count) +
         std::string(values);
}
std::string repeated(std::string_view text, std::size_t times) {
  std::string out;
  out.reserve(text.size() * times);
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

}  // namespace

TEST_CASE("each broken file of the table is refused with a message that names it, each valid one opens") {
  const std::string folder = test::data_path("io/malformed/");
  const nlohmann::json table = nlohmann::json::parse(test::read_text(folder + "index.json"));
  REQUIRE(table.size() == 181);
  std::set<std::string> messages;
  for (const nlohmann::json& entry : table) {
    const std::string name = entry["file"], expected = entry["expected"], path = folder + name;
    CAPTURE(name);
    const Result result = open_file(path);
    CAPTURE(result.error);
    if (expected == "accept") CHECK(result.opened);
    if (expected == "reject") CHECK_FALSE(result.opened);
    if (!result.opened) {
      CHECK(result.error.starts_with(path + ": "));
      CHECK(result.error.size() > path.size() + 30);
      CHECK(result.error.size() < path.size() + 500);
      for (const char c : result.error) CHECK_MESSAGE((c >= 0x20 && c < 0x7f), "the message must be printable");
    }
    CHECK(result.allocated < 200'000);
  }
}

TEST_CASE("a file cannot make the readers allocate more than its size and 64 MB") {
  const test::TemporaryFolder folder;
  const auto check = [&](const char* name, const std::string& bytes, bool opens) {
    CAPTURE(name);
    const std::string path = folder.file(name);
    test::write_file(path, bytes);
    const Result result = open_file(path);
    CAPTURE(result.error);
    CHECK(result.opened == opens);
    CHECK(result.allocated <= allowed_bytes(path));
    std::filesystem::remove(path);
  };
  check("bytes.gguf", gguf_array(0, 3'000'000, std::string(3'000'000, '\1')), true);
  check("many_bytes.gguf", gguf_array(0, 12'000'000, std::string(12'000'000, '\1')), false);
  check("many_booleans.gguf", gguf_array(7, 12'000'000, std::string(12'000'000, '\1')), false);
  check("empty_strings.gguf", gguf_array(8, 400'000, std::string(8 * 400'000, '\0')), true);
  check("many_empty_strings.gguf", gguf_array(8, 2'000'000, std::string(8 * 2'000'000, '\0')), false);
  check("empty_arrays.gguf", gguf_array(9, 2'000'000, repeated(little_endian(0, 4) + little_endian(0), 2'000'000)), false);
  {
    std::string keys = gguf_header(0, 1'200'000);
    for (int i = 0; i < 1'200'000; ++i) keys += gguf_string(std::to_string(i)) + little_endian(7, 4) + '\1';
    check("many_keys.gguf", keys, false);
  }
  {
    std::string tensors = gguf_header(600'000, 0);
    for (std::uint64_t i = 0; i < 600'000; ++i) {
      tensors +=
          gguf_string(std::to_string(i)) + little_endian(1, 4) + little_endian(1) + little_endian(24, 4) + little_endian(32 * i);
    }
    check("many_tensors.gguf", tensors, false);
  }
  {
    std::string header = "{", separator;
    for (int i = 0; i < 600'000; ++i) {
      header += separator + "\"" + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
      separator = ",";
    }
    check("many_tensors.safetensors", test::safetensors_bytes(header + "}"), false);
  }
  check("long_name.safetensors", test::safetensors_bytes("{\"" + std::string(40'000'000, 'x')), false);
  check("long_number.safetensors", test::safetensors_bytes("{\"a\":" + std::string(40'000'000, '1')), false);
}

TEST_CASE("random changes of valid files never crash, hang or allocate much") {
  const test::TemporaryFolder folder;
  std::mt19937 random(20240607);  // the standard fixes its numbers
  for (const char* name : {"ok_plain.gguf", "ok_all_scalar_types.gguf", "ok_plain.safetensors", "ok_order.safetensors"}) {
    CAPTURE(name);
    const std::string original = test::read_text(test::data_path(std::string("io/malformed/") + name));
    const std::string path = folder.file(name);
    const std::size_t tables = std::string_view(name).ends_with(".gguf") ? 650 : 250;
    int opened = 0;
    for (int round = 0; round < 1000; ++round) {
      std::string bytes = original;
      const unsigned changes = 1 + random() % 4;
      for (unsigned i = 0; i < changes; ++i) {
        const std::size_t at = random() % std::min(tables, bytes.size());
        switch (random() % 5) {
          case 0:
            bytes[at] = static_cast<char>(random());
            break;
          case 1:
            bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8);
            break;
          case 2:
            bytes.erase(at, 1 + random() % 8);
            break;
          case 3:
            bytes.insert(at, std::string(1 + random() % 8, static_cast<char>(random())));
            break;
          default:
            bytes.resize(at + random() % (bytes.size() - at));
            break;
        }
        if (bytes.empty()) break;
      }
      test::write_file(path, bytes);
      const Result result = open_file(path);
      opened += result.opened;
      REQUIRE((result.opened || result.error.starts_with(path)));
      REQUIRE(result.allocated < 200'000);
    }
    CHECK(opened < 1000);
  }
}
