// Weight formats against golden blocks of gguf-py, ggml and PyTorch: tests/data/quant (a few rows, always), and the
// whole set of the shared folder where it exists.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/quant/formats.hpp>
#include <moxie/quant/quantize.hpp>

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
    for (std::int64_t i = 0; i < n; ++i)
      wrong += !same(decoded[static_cast<std::size_t>(i)], expected[static_cast<std::size_t>(r * n + i)]);
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
  for (std::int64_t i = 0; i < n; ++i)
    sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[static_cast<std::size_t>(i)]), 2);
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
    if (golden.contains(name + ".encoded"))
      check_encoded_bytes(Format::dtype, golden.at("input.x"), golden.at(name + ".encoded"));
  });
}

TEST_CASE("formats with a defined encoder give its bytes (all rows)") {
  const auto input = test::shared_path("quant/input.safetensors");
  if (!input) return;
  const test::MiniTensor x = test::read_safetensors(*input).at("x");
  for_each_format([&]<class Format>(Format) {
    if (Format::dtype == Dtype::F32 || !EncodableFormat<Format> || is_k_quant(Format::dtype)) return;
    const std::string name = Format::name;
    CAPTURE(name);
    check_encoded_bytes(Format::dtype, x,
                        test::read_safetensors(*test::shared_path("quant/" + name + ".safetensors")).at("encoded"));
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

TEST_CASE("blocks of few levels and constants within f16 keep their values in K-quants") {
  // 1/4 steps around zero, and a constant: exact in every format when the scales are powers of two
  std::vector<float> x(512);
  for (std::size_t i = 0; i < 256; ++i) x[i] = i % 3 == 0 ? -0.25f : 0.0f;
  for (std::size_t i = 256; i < 512; ++i) x[i] = -2;
  for (const Dtype dtype : {Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K}) CHECK(rmse(dtype, x.data(), 512) < 1e-4);
}

TEST_CASE("weights far from zero, above or below, keep the precision of their spread in Q4_K and Q5_K") {
  std::vector<float> x(256), mirrored(256);
  for (std::size_t i = 0; i < 256; ++i) {
    x[i] = 1.0f + 0.1f * std::sin(static_cast<float>(i * i));
    mirrored[i] = -x[i];
  }
  for (const Dtype dtype : {Dtype::Q4_K, Dtype::Q5_K}) {
    const double step = 0.2 / (dtype == Dtype::Q4_K ? 15 : 31);
    CHECK(rmse(dtype, x.data(), 256) < step / 2);
    CHECK(rmse(dtype, mirrored.data(), 256) < step / 2);
  }
}

TEST_CASE("encoders stay defined on any input") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float values[] = {0,     -0.0f,  1,     -1,    1e-45f, -1e-38f, 1e-30f, 6e-8f, 2.9e-8f,
                          65504, -65504, 65520, 1e20f, -3e38f, inf,     -inf,   nan};
  std::vector<float> x(256), y(256);
  std::uint32_t state = 1;
  for (int trial = 0; trial < 200; ++trial) {
    for (float& v : x) {
      state = state * 1664525u + 1013904223u;
      const std::uint32_t pick = state >> 16;
      v = trial < 17 ? values[trial]
                     : values[pick % (trial % 2 ? 17u : 12u)] * (trial % 3 ? 1.0f : static_cast<float>(pick % 100));
    }
    for_each_format([&]<class Format>(Format) {
      if constexpr (EncodableFormat<Format>) {
        const std::vector<std::byte> bytes = encode(Format::dtype, x.data(), 256);
        decode_row(Format::dtype, bytes.data(), y.data(), 256);
        if (is_k_quant(Format::dtype)) CHECK(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }));
      }
    });
  }
}

TEST_CASE("a matrix encodes to the same bytes with any number of threads, and strided rows like dense ones") {
  RowMatrix wide(37, 512 + 3);
  for (Index i = 0; i < wide.size(); ++i) wide.data()[i] = std::sin(static_cast<float>(i)) * 0.02f;
  const RowMatrix dense = wide.leftCols(512);
  for_each_format([&]<class Format>(Format) {
    if constexpr (EncodableFormat<Format>) {
      const std::vector<std::byte> bytes = encode_matrix(Format::dtype, dense, Threads(1));
      CHECK(bytes.size() == 37 * row_bytes(Format::dtype, 512));
      CHECK(bytes == encode_matrix(Format::dtype, dense, Threads(3)));
      CHECK(bytes == encode_matrix(Format::dtype, wide.leftCols(512), Threads(2)));
      std::vector<std::byte> row(row_bytes(Format::dtype, 512));
      encode_row(Format::dtype, dense.row(36).data(), row.data(), 512);
      CHECK(std::equal(row.begin(), row.end(), bytes.end() - static_cast<std::ptrdiff_t>(row.size())));

      RowMatrix one(37, 512), three = RowMatrix::Zero(37, 515);
      decode_rows(Format::dtype, bytes.data(), one, Threads(1));
      decode_rows(Format::dtype, bytes.data(), three.leftCols(512), Threads(3));
      CHECK(one == three.leftCols(512));
      CHECK((one - dense).norm() < 0.1f * dense.norm());
      CHECK(three.rightCols(3).isZero(0));
    }
  });
}

TEST_CASE("an element that cannot be encoded is named by row and column") {
  RowMatrix x = RowMatrix::Constant(3, 256, 0.5f);
  const auto message = [&](Dtype dtype) -> std::string {
    try {
      encode_matrix(dtype, x, Threads(2));
    } catch (const ArgumentError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(message(Dtype::Q4_K).empty());
  x(2, 77) = std::numeric_limits<float>::quiet_NaN();
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_K})
    CHECK(message(dtype).find("row 2, column 77: nan") == 0);
  x(2, 77) = -std::numeric_limits<float>::infinity();
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q5_1, Dtype::Q6_K})
    CHECK(message(dtype).find("row 2, column 77: -inf") == 0);
  x(2, 77) = 65520;  // f16 scales cannot hold it
  for (const Dtype dtype : {Dtype::F16, Dtype::Q4_1, Dtype::Q4_K}) CHECK(message(dtype).find("65504") != std::string::npos);
  for (const Dtype dtype : {Dtype::F32, Dtype::BF16}) CHECK(message(dtype).empty());
  x(2, 77) = 65504;
  for_each_format([&]<class Format>(Format) {
    if constexpr (EncodableFormat<Format>) {
      RowMatrix y(3, 256);
      decode_rows(Format::dtype, encode_matrix(Format::dtype, x).data(), y);
      CHECK(y.allFinite());
      CHECK(y(2, 77) > 60000);
    }
  });
}

TEST_CASE("the list holds each format once, in agreement with the table of element types") {
  std::set<Dtype> types;
  std::set<std::string> names;
  for_each_format([&]<class Format>(Format) {
    types.insert(Format::dtype);
    names.insert(Format::name);
    const DtypeInfo& info = dtype_info(Format::dtype);
    CHECK(info.name == Format::name);
    CHECK(info.block_elements == Format::block);
    CHECK(info.block_bytes == Format::block_bytes);
    CHECK(is_format(Format::dtype));
    CHECK(std::string(with_format(Format::dtype, [](auto format) { return decltype(format)::name; })) == Format::name);
  });
  CHECK(types.size() == Formats::size);
  CHECK(names.size() == Formats::size);
  CHECK_FALSE(is_format(Dtype::I32));
}

TEST_CASE("a type without a format is an error that lists those there are") {
  float x[256] = {};
  std::byte bytes[1024] = {};
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const UnsupportedError& e) {
      return e.what();
    }
    return "";
  };
  const std::string all = "F32, F16, BF16, F8_E4M3, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, "
      "IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0";
  CHECK(message([&] { decode_row(Dtype::I32, bytes, x, 256); }) ==
        "weights of I32 are not supported; supported are " + all);
  CHECK(message([&] { encode_row(static_cast<Dtype>(99), x, bytes, 256); }) ==
        "weights of type 99 are not supported; supported are " + all);
  CHECK(message([&] {
          with_format(
              Dtype::I32, [](auto) {}, Place{"a.gguf", "tensor 'x'", 7});
        }).find("a.gguf: tensor 'x' (byte 7): weights of I32") == 0);
  const std::string written = message([&] { encode_row(Dtype::F8_E4M3, x, bytes, 256); });
  CHECK(written.find("F8_E4M3 can be read but not written") == 0);
  CHECK(written.find("F32, F16, BF16, Q8_0") != std::string::npos);
  CHECK(written == message([&] { encode_matrix(Dtype::F8_E4M3, RowMatrix::Zero(1, 256)); }));
  CHECK_THROWS_AS(decode_row(Dtype::Q4_K, bytes, x, 128), ArgumentError);
  CHECK_THROWS_AS(encode_row(Dtype::Q8_0, x, bytes, 33), ArgumentError);
  CHECK_THROWS_AS(decode_row(Dtype::F32, bytes, x, -1), ArgumentError);
}

namespace {

TensorView view(const test::MiniTensor& tensor, const std::string& name) {
  const std::map<std::string, Dtype> types = {{"F32", Dtype::F32}, {"F8_E4M3", Dtype::F8_E4M3}};
  return {name, types.at(tensor.dtype), tensor.shape, tensor.data.data(), tensor.data.size(), "golden", 0};
}

void check_fp8_blocks(const test::MiniTensors& golden, const std::string& name) {
  CAPTURE(name);
  const TensorView weight = view(golden.at(name + ".weight"), "w"), scale = view(golden.at(name + ".weight_scale_inv"), "s");
  const std::vector<float> expected = golden.at(name + ".values").as<float>();
  const std::int64_t rows = weight.shape[0], columns = weight.shape[1];
  for (const auto& [first, count] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{0, rows}, {rows - 1, 1}, {rows / 2, rows - rows / 2}, {0, 0}}) {
    std::vector<float> values(static_cast<std::size_t>(count * columns));
    decode_fp8_blocks(weight, scale, first, count, values.data());
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i)
      wrong += !same(values[i], expected[static_cast<std::size_t>(first * columns) + i]);
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("FP8 weights with a scale for each block of 128 x 128 decode to the bits of PyTorch") {
  check_fp8_blocks(test::read_safetensors(test::data_path("quant/golden.safetensors")), "blocks");
  if (const auto path = test::shared_path("quant/fp8_blocks_128x128.safetensors"))
    for (const char* name : {"even", "ragged", "small"}) check_fp8_blocks(test::read_safetensors(*path), name);
}

TEST_CASE("FP8 scales that do not fit their weight are an error") {
  std::vector<std::byte> data(300 * 260 * 4);
  const TensorView weight{"w", Dtype::F8_E4M3, {300, 260}, data.data(), 300 * 260, "f", 0};
  const TensorView scale{"s", Dtype::F32, {3, 3}, data.data(), 36, "f", 0};
  std::vector<float> out(300 * 260);
  CHECK_NOTHROW(decode_fp8_blocks(weight, scale, 0, 300, out.data()));
  TensorView bad = scale;
  bad.shape = {3, 2};
  bad.bytes = 24;
  CHECK_THROWS_WITH_AS(decode_fp8_blocks(weight, bad, 0, 300, out.data()),
                       "f: tensor 's' (byte 0): block scales of shape [3, 2]; a weight of [300, 260] needs [3, 3]", FormatError);
  bad = scale;
  bad.bytes = 35;
  CHECK_THROWS_AS(decode_fp8_blocks(weight, bad, 0, 300, out.data()), FormatError);
  bad = scale;
  bad.dtype = Dtype::I32;
  CHECK_THROWS_AS(decode_fp8_blocks(weight, bad, 0, 300, out.data()), UnsupportedError);
  bad = weight;
  bad.dtype = Dtype::F32;
  CHECK_THROWS_AS(decode_fp8_blocks(bad, scale, 0, 300, out.data()), FormatError);
  CHECK_THROWS_AS(decode_fp8_blocks(weight, scale, 1, 300, out.data()), ArgumentError);
  CHECK_THROWS_AS(decode_fp8_blocks(weight, scale, -1, 2, out.data()), ArgumentError);
}

TEST_CASE("tensors dequantize as a whole, and only when their bytes fit their shape") {
  const test::MiniTensors golden = test::read_safetensors(test::data_path("quant/golden.safetensors"));
  const test::MiniTensor &bytes = golden.at("Q5_K.bytes"), &values = golden.at("Q5_K.values");
  TensorView tensor{"experts", Dtype::Q5_K, {5, 1, 256}, bytes.data.data(), bytes.data.size(), "m.gguf", 64};
  std::vector<float> out(5 * 256);
  dequantize(tensor, out.data(), Threads(2));
  const std::vector<float> expected = values.as<float>();
  CHECK(std::equal(out.begin(), out.end(), expected.begin(), same));

  tensor.shape = {4, 256};
  CHECK_THROWS_AS(dequantize(tensor, out.data()), FormatError);
  tensor.shape = {std::int64_t{1} << 62, 256, 5};
  CHECK_THROWS_AS(dequantize(tensor, out.data()), FormatError);
  tensor.shape = {10, 128};
  CHECK_THROWS_AS(dequantize(tensor, out.data()), FormatError);
  tensor.dtype = Dtype::I8;
  CHECK_THROWS_AS(dequantize(tensor, out.data()), UnsupportedError);
}
