// Threads, floats, memory, files.

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/core/cpu.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/core/threads.hpp>

#include "checks.hpp"
#include "io_files.hpp"
#include "safetensors_mini.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using test::message_of;
using test::contains;

std::uint32_t bits(float f) { return std::bit_cast<std::uint32_t>(f); }

/// Floats that are near every rounding decision of a type with `dropped` mantissa bits fewer than f32, and random ones.
template <class F>
void for_floats(std::uint32_t dropped, F&& f) {
  for (std::uint32_t top = 0; top <= 0xffffffffu >> dropped; ++top) {
    const std::uint32_t base = top << dropped, half = 1u << (dropped - 1);
    for (const std::uint32_t low : {0u, 1u, half - 1, half, half + 1, 2 * half - 1}) f(std::bit_cast<float>(base + low));
  }
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) f(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
}

}  // namespace

TEST_CASE("a loop over threads calls each index once, on a thread below count()") {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Threads threads(1 + static_cast<int>(random() % 6));
    const auto n = static_cast<std::int64_t>(random() % 300), grain = static_cast<std::int64_t>(1 + random() % 40);
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
    std::atomic<bool> right{true};
    threads.for_each(
        n,
        [&](std::int64_t i, int thread) {
          if (i < 0 || i >= n || thread < 0 || thread >= threads.count()) right = false;
          else ++calls[static_cast<std::size_t>(i)];
        },
        grain);
    CHECK(right);
    CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& c) { return c == 1; }));
  }
}

TEST_CASE("a loop over nothing calls nothing, whatever the grain is") {
  for (const std::int64_t n : {0, -1})
    for (const std::int64_t grain : {0, 1, 5}) Threads(3).for_each(n, [](std::int64_t, int) { FAIL("called"); }, grain);
}

TEST_CASE("an exception of a thread is thrown to the caller after all have stopped, and the next loop works") {
  for (const int n : {1, 2, 4}) {
    const Threads threads(n);
    std::atomic<int> running{0};
    try {
      threads.for_each(1000, [&](std::int64_t i, int) {
        ++running;
        if (i == 17) {
          --running;
          throw MemoryError("seventeen");
        }
        --running;
      });
      FAIL("nothing was thrown");
    } catch (const MemoryError& error) {
      CHECK(error.what() == std::string("seventeen"));
    }
    CHECK(running == 0);
    CHECK_THROWS_AS(threads.for_each(5, [](std::int64_t, int) { throw 5; }), int);
    std::atomic<int> sum{0};
    threads.for_each(100, [&](std::int64_t i, int) { sum += static_cast<int>(i); });
    CHECK(sum == 4950);
  }
}

TEST_CASE("loops inside loops, inside an OpenMP region and from several threads of the program at once") {
  const Threads outer(3), inner(2);
  std::vector<std::atomic<int>> calls(600);
  outer.for_each(20, [&](std::int64_t i, int) {
    inner.for_each(30, [&](std::int64_t j, int thread) {
      if (thread < 2) ++calls[static_cast<std::size_t>(30 * i + j)];
    });
  });
  CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& c) { return c == 1; }));

  std::atomic<int> sum{0};
#pragma omp parallel num_threads(2)
  inner.for_each(50, [&](std::int64_t, int) { ++sum; });
  CHECK(sum == 100);

  sum = 0;
  std::vector<std::thread> program;
  for (int t = 0; t < 3; ++t)
    program.emplace_back([&] {
      for (int k = 0; k < 20; ++k) inner.for_each(10, [&](std::int64_t, int) { ++sum; });
    });
  for (std::thread& thread : program) thread.join();
  CHECK(sum == 600);
}

TEST_CASE("a number of threads out of range is an error; 0 means all processors") {
  CHECK(Threads(0).count() >= 1);
  CHECK(Threads(7).count() == 7);
  CHECK_THROWS_AS(Threads(-1), ArgumentError);
  CHECK_THROWS_AS(Threads(5000), ArgumentError);
}

TEST_CASE("a profile's times of every thread add up to the same, and lie in the stages that work was done in") {
  moxie::Profile profile;
  const Threads threads(2, &profile);
  CHECK(profile.threads() == 2);
  profile.start();
  const auto work = [&](moxie::Stage stage) {
    const moxie::StageScope scope(&profile, stage);
    threads.for_each(64, [&](std::int64_t, int thread) {
      const moxie::StageScope inner(&profile, moxie::Stage::other, thread);
    });
    CHECK(profile.stage(0) == stage);
  };
  work(moxie::Stage::experts);
  work(moxie::Stage::attention);
  CHECK(profile.stage(0) == moxie::Stage::other);
  CHECK(profile.stage(1) == moxie::Stage::idle);
  profile.stop();
  double total[2] = {};
  for (int t = 0; t < 2; ++t)
    for (int s = 0; s < static_cast<int>(moxie::Stage::count); ++s) total[t] += profile.seconds(t, static_cast<moxie::Stage>(s));
  CHECK(total[0] > 0.0);
  CHECK(total[0] == doctest::Approx(total[1]).epsilon(1e-9));
  CHECK(profile.seconds(0, moxie::Stage::experts) > 0.0);
  CHECK(profile.seconds(0, moxie::Stage::output) == 0.0);
  CHECK(moxie::stage_name(moxie::Stage::idle) == std::string("idle"));
}

TEST_CASE("binary16: every code widens, and floats round, as the compiler's _Float16 does") {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto h = static_cast<std::uint16_t>(code);
#if defined(__FLT16_MANT_DIG__)
    _Float16 reference;
    std::memcpy(&reference, &h, 2);
    const auto widened = static_cast<float>(reference);
    if (std::isnan(widened)) {
      CHECK(std::isnan(f16_to_f32(h)));
      continue;
    }
    if (bits(f16_to_f32(h)) != bits(widened)) FAIL_CHECK("code " << code);
#endif
    if (!std::isnan(f16_to_f32(h)) && f32_to_f16(f16_to_f32(h)) != h) FAIL_CHECK("code " << code << " does not come back");
  }
#if defined(__FLT16_MANT_DIG__)
  std::int64_t wrong = 0;
  for_floats(13, [&](float f) {
    const auto reference = static_cast<_Float16>(f);
    std::uint16_t expected = 0;
    std::memcpy(&expected, &reference, 2);
    const std::uint16_t got = f32_to_f16(f);
    wrong += std::isnan(f) ? !std::isnan(f16_to_f32(got)) : got != expected;
  });
  CHECK(wrong == 0);
#endif
}

TEST_CASE("bfloat16 is the upper half of a float, rounded to nearest, ties to even") {
  std::int64_t wrong = 0;
  for (std::uint32_t code = 0; code < 65536; ++code) wrong += bits(bf16_to_f32(static_cast<std::uint16_t>(code))) != code << 16;
  CHECK(wrong == 0);
  for_floats(16, [&](float f) {
    const std::uint16_t got = f32_to_bf16(f);
    if (std::isnan(f)) {
      wrong += !std::isnan(bf16_to_f32(got));
      return;
    }
    // The neighbours of f; beyond the largest finite number the spacing goes on.
    const std::uint32_t low = bits(f) >> 16, rest = bits(f) & 0xffffu;
    const std::uint32_t expected = rest > 0x8000u || (rest == 0x8000u && low % 2 == 1) ? low + 1 : low;
    wrong += got != expected;
  });
  CHECK(wrong == 0);
}

TEST_CASE("FP8 e4m3 codes are PyTorch's values") {
  const auto path = test::shared_path("quant/fp8.safetensors");
  if (!path) return;
  const auto values = test::read_safetensors(*path).at("e4m3fn.values").as<float>();
  REQUIRE(values.size() == 256);
  for (std::size_t code = 0; code < 256; ++code) {
    const float got = e4m3_to_f32(static_cast<std::uint8_t>(code));
    if (std::isnan(values[code])) CHECK(std::isnan(got));
    else CHECK(bits(got) == bits(values[code]));
  }
}

TEST_CASE("element types: names and ids find each other, rows have whole blocks") {
  std::set<std::uint32_t> ids;
  for (const DtypeInfo& info : dtype_table) {
    CHECK(ids.insert(static_cast<std::uint32_t>(info.dtype)).second);
    CHECK(find_dtype(info.name) == &info);
    CHECK(find_dtype(static_cast<std::uint32_t>(info.dtype)) == &info);
    CHECK(row_bytes(info.dtype, 3 * info.block_elements) == 3 * info.block_bytes);
  }
  CHECK(find_dtype(999u) == nullptr);
  CHECK(find_dtype("Q9_9") == nullptr);
}

TEST_CASE("errors name the place") {
  CHECK(std::string(Error({"a.gguf", "tensor 'x'", 12}, "is wrong").what()) == "a.gguf: tensor 'x' (byte 12): is wrong");
  CHECK(std::string(Error({"a.gguf", {}, 12}, "is wrong").what()) == "a.gguf (byte 12): is wrong");
  CHECK(std::string(Error({{}, "key", {}}, "is wrong").what()) == "key: is wrong");
  CHECK(std::string(Error({{}, {}, 7}, "is wrong").what()) == "byte 7: is wrong");
  CHECK(std::string(Error("is wrong").what()) == "is wrong");
  const FormatError error({"f", "i", 3}, "m");
  CHECK(error.place().file == "f");
  CHECK(error.place().item == "i");
  CHECK(error.place().offset == 3);
}

TEST_CASE("aligned buffers grow, never shrink, move, and refuse what cannot be") {
  AlignedBuffer<float> buffer;
  CHECK(buffer.data() == nullptr);
  std::size_t capacity = 0;
  for (const std::size_t n : {3u, 100u, 7u, 5000u, 0u, 5000u}) {
    buffer.resize(n);
    CHECK(buffer.size() == n);
    CHECK(buffer.capacity_bytes() >= std::max(capacity, n * sizeof(float)));
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % memory_alignment == 0);
    capacity = buffer.capacity_bytes();
    for (std::size_t i = 0; i < n; ++i) buffer[i] = static_cast<float>(i);
  }
  CHECK(capacity == 5000 * sizeof(float));
  const float* data = buffer.data();
  AlignedBuffer<float> moved = std::move(buffer);
  CHECK(moved.data() == data);
  CHECK(moved[4999] == 4999.0f);
  CHECK_THROWS_AS(moved.resize(std::numeric_limits<std::size_t>::max() / 2), MemoryError);
  CHECK_THROWS_AS(moved.resize(std::size_t{1} << 58), MemoryError);
  moved.resize(10);
  moved[9] = 1.0f;
  CHECK(moved.size() == 10);
}

TEST_CASE("a moved-from buffer is empty and can be used again") {
  AlignedBuffer<int> a(100);
  const AlignedBuffer<int> b = std::move(a);
  CHECK(a.size() == 0);
  a.resize(50);
  REQUIRE(a.data() != nullptr);
  a[49] = 1;
  CHECK(b.size() == 100);
}

TEST_CASE("mapped files: content, empty files, errors that name the file") {
  const test::TemporaryFolder folder;
  std::string content(100000, 'x');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 % 251);
  test::write_file(folder.file("a"), content);
  test::write_file(folder.file("empty"), "");
  MappedFile file(folder.file("a"));
  CHECK(file.size() == content.size());
  CHECK(std::memcmp(file.data(), content.data(), content.size()) == 0);
  CHECK(file.contains(file.data() + 99999));
  CHECK_FALSE(file.contains(file.data() + 100000));
  file.release(file.data() + 10, 60000);  // read again from the file
  CHECK(std::memcmp(file.data(), content.data(), content.size()) == 0);
  MappedFile moved = std::move(file);
  CHECK(std::memcmp(moved.data(), content.data(), content.size()) == 0);
  moved = MappedFile(folder.file("empty"));
  CHECK(moved.size() == 0);
  CHECK_FALSE(moved.contains(nullptr));
  CHECK(contains(message_of([&] { MappedFile(folder.file("missing")); }), folder.file("missing") + ": cannot open"));
  CHECK(contains(message_of([&] { MappedFile(folder.path()); }), "not a regular file"));
  CHECK_THROWS_AS(MappedFile("/dev/null"), SystemError);
}

TEST_CASE("a file appears under its name only when it is complete") {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("out");
  {
    AtomicFile file(path);
    file.write("half", 4);
  }
  CHECK(folder.empty());
  test::write_file(path, "old");
  try {
    AtomicFile file(path);
    file.write("half", 4);
    throw std::runtime_error("stop");
  } catch (const std::runtime_error&) {
  }
  CHECK(test::read_text(path) == "old");
  {
    AtomicFile file(path);
    file.write("new", 3);
    file.write("", 0);
    file.write("er", 2);
    CHECK(file.written() == 5);
    CHECK(test::read_text(path) == "old");
    file.commit();
  }
  CHECK(test::read_text(path) == "newer");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  CHECK(contains(message_of([&] { AtomicFile(folder.file("no/such/folder")); }), folder.file("no/such/folder")));
  CHECK(contains(message_of([&] { AtomicFile(folder.path()); }), "is a folder"));
  CHECK(contains(message_of([&] { AtomicFile("/dev/null"); }), "/dev/null: is a device"));
  CHECK(contains(message_of([&] { AtomicFile(""); }), "no name"));
  const auto full = [] {
    AtomicFile file("/dev/full/x");
    file.commit();
  };
  CHECK_THROWS_AS(full(), SystemError);
}

TEST_CASE("slices of tensors point at their rows") {
  std::array<float, 24> data{};
  TensorView view{"w", Dtype::F32, {2, 3, 4}, reinterpret_cast<const std::byte*>(data.data()), sizeof data, "f", 100};
  CHECK(view.elements() == 24);
  CHECK(view.rows() == 6);
  CHECK(view.columns() == 4);
  CHECK(view.shape_text() == "[2, 3, 4]");
  const TensorView second = view.slice(1);
  CHECK(second.shape == std::vector<std::int64_t>{3, 4});
  CHECK(second.offset == 148);
  CHECK(second.bytes == 48);
  const TensorView rows = second.slice_rows(1, 2);
  CHECK(rows.offset == 164);
  CHECK(rows.data == view.data + 64);
  CHECK(rows.bytes == 32);
}

TEST_CASE("the CPU has AVX2 where it has AVX-512, and memory has been used") {
  const CpuFeatures features = cpu_features();
  if (features.avx512) CHECK(features.avx2);
  CHECK(peak_resident_bytes() > 1u << 20);
}
