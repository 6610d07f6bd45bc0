// Weight formats against golden blocks of gguf-py, ggml and PyTorch: tests/data/quant (a few rows, always), and the
// whole set of the shared folder where it exists.

#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/quant/formats.hpp>

#include "safetensors_mini.hpp"

using namespace moxie;

namespace {

template <class F>
void for_each_format(F&& f) {
  [&]<class... Format>(TypeList<Format...>) { (f(Format{}), ...); }(Formats{});
}

/// The same bits, but zeros of either sign are equal, and so are NaNs.
bool same(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a == 0 && b == 0) || (std::isnan(a) && std::isnan(b));
}

/// How many of the values differ from what the bytes of each row decode to. Each row is read at an odd address.
std::int64_t count_wrong(Dtype dtype, const test::MiniTensor& bytes, const test::MiniTensor& values) {
  const std::int64_t rows = values.shape[0], n = values.shape[1];
  const auto row = static_cast<std::size_t>(bytes.shape[1]);
  const std::vector<float> expected = values.as<float>();
  std::vector<std::byte> unaligned(row + 1);
  std::vector<float> decoded(static_cast<std::size_t>(n));
  std::int64_t wrong = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(unaligned.data() + 1, bytes.data.data() + static_cast<std::size_t>(r) * row, row);
    decode_row(dtype, unaligned.data() + 1, decoded.data(), n);
    for (std::int64_t i = 0; i < n; ++i) wrong += !same(decoded[static_cast<std::size_t>(i)], expected[static_cast<std::size_t>(r * n + i)]);
  }
  return wrong;
}

std::vector<std::byte> encode(Dtype dtype, const float* x, std::int64_t n) {
  std::vector<std::byte> out(row_bytes(dtype, static_cast<std::uint64_t>(n)) + 1);
  encode_row(dtype, x, out.data() + 1, n);
  out.erase(out.begin());
  return out;
}

double rmse(Dtype dtype, const float* x, std::int64_t n) {
  const std::vector<std::byte> bytes = encode(dtype, x, n);
  std::vector<float> y(static_cast<std::size_t>(n));
  decode_row(dtype, bytes.data(), y.data(), n);
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[static_cast<std::size_t>(i)]), 2);
  return std::sqrt(sum / static_cast<double>(n));
}

void check_encoded_bytes(Dtype dtype, const test::MiniTensor& x, const test::MiniTensor& encoded) {
  const std::int64_t n = x.shape[1];
  const std::vector<float> values = x.as<float>();
  const auto row = static_cast<std::size_t>(encoded.shape[1]);
  for (std::int64_t r = 0; r < x.shape[0]; ++r) {
    CAPTURE(r);
    const std::vector<std::byte> bytes = encode(dtype, values.data() + r * n, n);
    REQUIRE(bytes.size() == row);
    CHECK(std::memcmp(bytes.data(), encoded.data.data() + static_cast<std::size_t>(r) * row, row) == 0);
  }
}

void check_rmse(Dtype dtype, const test::MiniTensor& x, const test::MiniTensor& bound) {
  const std::int64_t n = x.shape[1];
  const std::vector<float> values = x.as<float>();
  const std::vector<double> limits = bound.as<double>();
  for (std::int64_t r = 0; r < x.shape[0]; ++r) {
    CAPTURE(r);
    CHECK(rmse(dtype, values.data() + r * n, n) <= limits[static_cast<std::size_t>(r)] * (1 + 1e-9));
  }
}

constexpr bool is_k_quant(Dtype dtype) { return dtype == Dtype::Q4_K || dtype == Dtype::Q5_K || dtype == Dtype::Q6_K; }

}  // namespace

TEST_CASE("every format decodes to the bits of gguf-py, ggml and PyTorch, at any alignment (a few rows)") {
  const test::MiniTensors golden = test::read_safetensors(test::data_path("quant/golden.safetensors"));
  for_each_format([&]<class Format>(Format) {
    if (Format::dtype == Dtype::F32) return;
    const std::string name = Format::name;
    CAPTURE(name);
    CHECK(count_wrong(Format::dtype, golden.at(name + ".bytes"), golden.at(name + ".values")) == 0);
  });
}

TEST_CASE("every format decodes to the bits of gguf-py, ggml and PyTorch (all golden blocks)") {
  if (!test::shared_path("quant/index.json")) return;
  for_each_format([&]<class Format>(Format) {
    if (Format::dtype == Dtype::F32 || Format::dtype == Dtype::F8_E4M3) return;
    const std::string name = Format::name;
    CAPTURE(name);
    const test::MiniTensors golden = test::read_safetensors(*test::shared_path("quant/" + name + ".safetensors"));
    CHECK(count_wrong(Format::dtype, golden.at("bytes"), golden.at("values")) == 0);
  });
}

TEST_CASE("formats with a defined encoder give its bytes (a few rows)") {
  const test::MiniTensors golden = test::read_safetensors(test::data_path("quant/golden.safetensors"));
  for_each_format([&]<class Format>(Format) {
    const std::string name = Format::name;
    CAPTURE(name);
    if (golden.contains(name + ".encoded")) check_encoded_bytes(Format::dtype, golden.at("input.x"), golden.at(name + ".encoded"));
  });
}

TEST_CASE("formats with a defined encoder give its bytes (all rows)") {
  const auto input = test::shared_path("quant/input.safetensors");
  if (!input) return;
  const test::MiniTensor x = test::read_safetensors(*input).at("x");
  for_each_format([&]<class Format>(Format) {
    if (Format::dtype == Dtype::F32 || Format::dtype == Dtype::F8_E4M3 || is_k_quant(Format::dtype)) return;
    const std::string name = Format::name;
    CAPTURE(name);
    check_encoded_bytes(Format::dtype, x, test::read_safetensors(*test::shared_path("quant/" + name + ".safetensors")).at("encoded"));
  });
}

TEST_CASE("K-quants lose no more than ggml's encoder does, on any kind of row (a few rows)") {
  const test::MiniTensors golden = test::read_safetensors(test::data_path("quant/golden.safetensors"));
  for (const Dtype dtype : {Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K}) {
    const std::string name = dtype_text(dtype);
    CAPTURE(name);
    check_rmse(dtype, golden.at("input.x"), golden.at(name + ".encoded_rmse"));
  }
}

TEST_CASE("K-quants lose no more than ggml's encoder does, on any kind of row (all rows)") {
  const auto input = test::shared_path("quant/input.safetensors");
  if (!input) return;
  const test::MiniTensor x = test::read_safetensors(*input).at("x");
  for (const Dtype dtype : {Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K}) {
    const std::string name = dtype_text(dtype);
    CAPTURE(name);
    check_rmse(dtype, x, test::read_safetensors(*test::shared_path("quant/" + name + ".safetensors")).at("encoded_rmse"));
  }
}
