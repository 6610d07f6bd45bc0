// Matrices of every weight type against double precision, on ragged shapes, packed from files or floats; FP8 with block scales.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/kernels/kernels.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/quant/quantize.hpp>

#include "checks.hpp"
#include "safetensors_mini.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

const std::vector<Dtype> types = {Dtype::F32,  Dtype::F16,  Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1,
                                  Dtype::Q5_0, Dtype::Q5_1, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K};

RowMatrix random_matrix(Index rows, Index columns, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  return RowMatrix::NullaryExpr(rows, columns, [&] { return normal(random); });
}

Context context_of(Activations activations, int threads = 1) { return {&kernels::native_table(), Threads(threads), activations}; }

RowMatrix product(const Linear& linear, const Context& context, const RowMatrix& x) {
  PreparedRows prepared;
  const bool int8 = linear.takes_int8(context.activations);
  prepared.assign(context, x.data(), x.rows(), x.cols(), x.outerStride(), int8, !int8);
  RowMatrix y = RowMatrix::Constant(x.rows(), linear.outputs() + 3, 77.0f);
  linear.forward(context, prepared, y.data(), y.outerStride());
  CHECK((y.rightCols(3).array() == 77.0f).all());  // nothing beyond the outputs
  return y.leftCols(linear.outputs());
}

/// x as int8 activations hold it, in blocks of 32 with a scale each.
Matrix rounded_to_int8(const RowMatrix& x) {
  PreparedRows prepared;
  prepared.assign(context_of(Activations::int8), x.data(), x.rows(), x.cols(), x.cols(), true, false);
  Matrix rounded(x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r)
    for (Index i = 0; i < x.cols(); ++i) {
      const kernels::Int8Block& block = *prepared.view().q.block(r, i / 32);
      rounded(r, i) = static_cast<double>(block.d) * block.q[i % 32];
      const float most = x.row(r).segment(i / 32 * 32, 32).cwiseAbs().maxCoeff();
      if (std::abs(rounded(r, i) - static_cast<double>(x(r, i))) > 0.006 * static_cast<double>(most)) FAIL_CHECK("row " << r << ", input " << i << " is rounded too far");
    }
  return rounded;
}

TensorView view_of(const std::vector<std::byte>& bytes, Dtype dtype, Index rows, Index columns) {
  return {"weight", dtype, {rows, columns}, bytes.data(), bytes.size(), "memory", 0};
}

/// Largest error over the size that a sum of these products has.
double error_of(const RowMatrix& y, const Matrix& expected, const Matrix& size) {
  return ((y.cast<double>() - expected).array().abs() / size.array()).maxCoeff();
}

}  // namespace

TEST_CASE("products are those of the decoded weights in double precision, for every type, shape and form of activations") {
  unsigned seed = 1;
  for (const Dtype type : types) {
    const Index block = dtype_info(type).block_elements;
    const std::vector<Index> columns = block == 1 ? std::vector<Index>{1, 31, 76, 320} : block == 32 ? std::vector<Index>{32, 96, 320} : std::vector<Index>{256, 768};
    for (const Index k : columns)
      for (const Index outputs : {1, 16, 33, 150})
        for (const Index rows : {1, 3, 21}) {
          const RowMatrix w = random_matrix(outputs, k, ++seed), x = random_matrix(rows, k, ++seed);
          const std::vector<std::byte> bytes = encode_matrix(type, w);
          RowMatrix decoded(outputs, k);
          decode_rows(type, bytes.data(), decoded);
          CAPTURE(dtype_info(type).name);
          CAPTURE(k);
          CAPTURE(outputs);
          CAPTURE(rows);
          for (const Activations activations : {Activations::int8, Activations::f32}) {
            const Context context = context_of(activations, 2);
            const Linear packed = Linear::pack(context, view_of(bytes, type, outputs, k)), made = Linear::from_rows(context, type, w);
            CHECK(packed.outputs() == outputs);
            CHECK(packed.inputs() == k);
            CHECK(packed.dtype() == type);
            Matrix activation = packed.takes_int8(activations) ? rounded_to_int8(x) : Matrix(x.cast<double>());
            const Matrix expected = activation * decoded.cast<double>().transpose();
            const Matrix size = (activation.cwiseAbs() * decoded.cast<double>().cwiseAbs().transpose()).array() + 1e-30;
            const RowMatrix y = product(packed, context, x);
            // bf16 weights through oneDNN: 16 bits of an activation are kept.
            const bool bf16 = type == Dtype::BF16 && activations == Activations::int8;
            CHECK(error_of(y, expected, size) < (bf16 ? 1e-5 : 2e-6));
            if (!bf16 && type != Dtype::F32) CHECK(product(made, context, x) == y);
          }
        }
  }
}

TEST_CASE("columns and rows can be asked for in parts, with the bits of the whole") {
  unsigned seed = 100;
  for (const Dtype type : types)
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      CAPTURE(dtype_info(type).name);
      const Index outputs = 200, k = 256, rows = 12;
      const std::vector<std::byte> bytes = encode_matrix(type, random_matrix(outputs, k, ++seed));
      const Context context = context_of(activations);
      const Linear linear = Linear::pack(context, view_of(bytes, type, outputs, k));
      const RowMatrix x = random_matrix(rows, k, ++seed), whole = product(linear, context, x);
      for (int threads = 2; threads <= 4; ++threads) CHECK(product(linear, context_of(activations, threads), x) == whole);
      PreparedRows prepared;
      const bool int8 = linear.takes_int8(activations);
      prepared.assign(context, x.data(), rows, k, k, int8, !int8);
      PreparedRows listed;
      const std::vector<std::int32_t> list = {11, 0, 0, 5, 7};
      listed.gather(prepared.view(), list.data(), 5, k, int8, !int8);
      for (Index begin = 0; begin < outputs; begin += linear.granularity())
        for (const Index end : {std::min(outputs, begin + linear.granularity()), outputs}) {
          RowMatrix part = RowMatrix::Constant(5, outputs, 77.0f);
          linear.multiply(prepared.view(), activations, 6, 5, begin, end, part.data(), outputs);
          CHECK(part.middleCols(begin, end - begin) == whole.block(6, begin, 5, end - begin));
          linear.multiply(listed.view(), activations, 0, 5, begin, end, part.data(), outputs);
          for (Index i = 0; i < 5; ++i) {
            CHECK(part.row(i).segment(begin, end - begin) == whole.row(list[static_cast<std::size_t>(i)]).segment(begin, end - begin));
            CHECK((part.row(i).head(begin).array() == 77.0f).all());
            CHECK((part.row(i).tail(outputs - end).array() == 77.0f).all());
          }
        }
    }
}

TEST_CASE("rows with a stride are taken as they lie, and a buffer can be used for other sizes") {
  const Context context = context_of(Activations::f32);
  const RowMatrix wide = random_matrix(7, 100, 1), w = random_matrix(40, 60, 2);
  const Linear linear = Linear::from_rows(context, Dtype::F32, w);
  PreparedRows prepared;
  for (const Index rows : {7, 2, 5}) {
    prepared.assign(context, wide.data() + 10, rows, 60, 100, false, true);
    CHECK(prepared.rows() == rows);
    RowMatrix y(rows, 40);
    linear.forward(context, prepared, y.data(), 40);
    CHECK(y == product(linear, context, wide.block(0, 10, rows, 60)));
  }
}

TEST_CASE("activations that are not finite give results that are not finite") {
  for (const Dtype type : {Dtype::Q4_0, Dtype::Q6_K, Dtype::F16, Dtype::F32})
    for (const Activations activations : {Activations::int8, Activations::f32})
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        CAPTURE(dtype_info(type).name);
        const Context context = context_of(activations);
        const Linear linear = Linear::from_rows(context, type, random_matrix(32, 256, 3));
        RowMatrix x = random_matrix(3, 256, 4);
        x(1, 130) = bad;
        const RowMatrix y = product(linear, context, x);
        CHECK(y.row(0).allFinite());
        CHECK(y.row(2).allFinite());
        CHECK_FALSE(y.row(1).allFinite());
      }
}

TEST_CASE("FP8 weights with block scales multiply as their values") {
  const auto path = test::shared_path("quant/fp8_blocks_128x128.safetensors");
  if (!path) return;
  const test::MiniTensors tensors = test::read_safetensors(*path);
  for (const char* name : {"even", "ragged", "small"}) {
    CAPTURE(name);
    const test::MiniTensor& weight = tensors.at(std::string(name) + ".weight");
    const test::MiniTensor& scales = tensors.at(std::string(name) + ".weight_scale_inv");
    const auto values = tensors.at(std::string(name) + ".values").as<float>();
    const Index outputs = weight.shape[0], k = weight.shape[1];
    const TensorView scale_view{"scale", Dtype::F32, scales.shape, scales.data.data(), scales.data.size(), "memory", 0};
    const Eigen::Map<const RowMatrix> decoded(values.data(), outputs, k);
    for (const Activations activations : {Activations::f32, Activations::int8}) {
      const Context context = context_of(activations, 2);
      const Linear linear = Linear::pack(context, view_of(weight.data, Dtype::F8_E4M3, outputs, k), nullptr, &scale_view);
      CHECK_FALSE(linear.takes_int8(activations));
      const RowMatrix x = random_matrix(9, k, 5);
      const Matrix expected = x.cast<double>() * decoded.cast<double>().transpose();
      const Matrix size = x.cast<double>().cwiseAbs() * decoded.cast<double>().cwiseAbs().transpose();
      CHECK(error_of(product(linear, context, x), expected, size) < 2e-6);
      // Codes alone: scales of one.
      const Linear plain = Linear::pack(context, view_of(weight.data, Dtype::F8_E4M3, outputs, k));
      RowMatrix codes(outputs, k);
      decode_rows(Dtype::F8_E4M3, weight.data.data(), codes);
      CHECK(error_of(product(plain, context, x), x.cast<double>() * codes.cast<double>().transpose(),
                     x.cast<double>().cwiseAbs() * codes.cast<double>().cwiseAbs().transpose()) < 2e-6);
    }
  }
}

TEST_CASE("panels take at most 3% more than the blocks of the file, with the padding of ragged shapes left out") {
  for (const Dtype type : types)
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      CAPTURE(dtype_info(type).name);
      const Index outputs = 512, k = 1024;
      const std::vector<std::byte> bytes(row_bytes(type, static_cast<std::uint64_t>(outputs * k)), std::byte{0x11});
      const Linear linear = Linear::pack(context_of(activations), view_of(bytes, type, outputs, k));
      CHECK(linear.bytes() <= bytes.size() * 103 / 100);
    }
}

TEST_CASE("a low-rank part is added as in double precision, and its bits depend neither on the other rows nor on how outputs are cut") {
  unsigned seed = 100;
  for (const Index rank : {1, 3, 16, 37})
    for (const Index k : {76, 320, 1056})
      for (const Index outputs : {1, 33, 150}) {
        CAPTURE(rank);
        CAPTURE(k);
        CAPTURE(outputs);
        const Context context = context_of(Activations::int8, 3);
        const RowMatrix w = random_matrix(outputs, k, ++seed), a = random_matrix(rank, k, ++seed), b = random_matrix(outputs, rank, ++seed), x = random_matrix(45, k, ++seed);
        const auto part = std::make_shared<const LowRank>(context, a, b, 0.7f);
        CHECK(part->a() == a);
        CHECK(part->b() == b.transpose());
        Linear linear = Linear::from_rows(context, k % 32 == 0 ? Dtype::Q8_0 : Dtype::F16, w);
        const auto forward = [&](const RowMatrix& rows) {
          PreparedRows prepared;
          prepared.assign(context, rows.data(), rows.rows(), k, k, linear.takes_int8(context.activations), linear.takes_f32(context.activations));
          RowMatrix y(rows.rows(), outputs);
          linear.forward(context, prepared, y.data(), outputs);
          return y;
        };
        const RowMatrix without = forward(x);
        const std::size_t bytes = linear.bytes();
        linear.set_low_rank(part);
        CHECK(linear.bytes() == bytes + part->bytes());
        CHECK(linear.rank() == rank);
        const RowMatrix with = forward(x);
        const Matrix u = static_cast<double>(0.7f) * (x.cast<double>() * a.cast<double>().transpose()), added = u * b.cast<double>().transpose();
        const Matrix size = without.cast<double>().cwiseAbs() + static_cast<double>(0.7f) * (x.cast<double>().cwiseAbs() * a.cast<double>().cwiseAbs().transpose()) * b.cast<double>().cwiseAbs().transpose();
        CHECK(error_of(with, without.cast<double>() + added, size) < 1e-6);
        for (const Index r : {0, 7, 44}) CHECK(forward(x.middleRows(r, 1)) == with.row(r));
        CHECK(forward(x.topRows(0)).rows() == 0);
        // One fused multiply-add after the other, wherever the outputs are cut.
        RowMatrix projected(45, rank), slow = without;
        PreparedRows prepared;
        prepared.assign(context, x.data(), 45, k, k, false, true);
        part->project(prepared.view(), 0, 45, projected.data());
        for (Index r = 0; r < 45; ++r)
          for (Index i = 0; i < rank; ++i) context.kernels->axpy(projected(r, i), part->b().row(i).data(), outputs, slow.row(r).data());
        CHECK(slow == with);
        slow = without;
        for (Index begin = 0; begin < outputs; begin += 13) part->add(projected.data(), 45, begin, std::min(outputs, begin + 13), slow.data(), outputs);
        CHECK(slow == with);
        CHECK_THROWS_AS(linear.set_low_rank(std::make_shared<const LowRank>(context, a, random_matrix(outputs + 1, rank, 1), 1.0f)), ArgumentError);
        CHECK_THROWS_AS(LowRank(context, a, random_matrix(outputs, rank + 1, 1), 1.0f), ArgumentError);
        CHECK_THROWS_AS(LowRank(context, a, b, std::numeric_limits<float>::infinity()), ArgumentError);
      }
}

TEST_CASE("mapped bytes are released as they are packed, each once") {
  const Index outputs = 3000, k = 256;
  for (const Dtype type : {Dtype::Q4_K, Dtype::BF16}) {
    const std::vector<std::byte> bytes(row_bytes(type, static_cast<std::uint64_t>(outputs * k)), std::byte{0x11});
    std::mutex guard;
    std::map<const std::byte*, std::uint64_t> released;
    const TensorMap source({}, nullptr, [&](const std::byte* p, std::uint64_t n) {
      const std::lock_guard lock(guard);
      released[p] += n;
    });
    Linear::pack(context_of(Activations::int8, 2), view_of(bytes, type, outputs, k), &source);
    const std::byte* at = bytes.data();
    for (const auto& [p, n] : released) {
      CHECK(p == at);
      at = p + n;
    }
    CHECK(at == bytes.data() + bytes.size());
    CHECK(released.size() > 1);
  }
}

TEST_CASE("what is no matrix, or has no kernel, is an error that says so") {
  const Context context = context_of(Activations::int8);
  const std::vector<std::byte> bytes(4096);
  const auto message = [&](const TensorView& view) { return test::message_of([&] { Linear::pack(context, view); }); };
  using test::contains;
  TensorView view = view_of(bytes, Dtype::Q4_0, 2, 64);
  view.shape = {2, 64, 1};
  CHECK(contains(message(view), "matrix"));
  CHECK(contains(message(view_of(bytes, Dtype::I32, 2, 64)), "I32"));
  CHECK(contains(message(view_of(bytes, Dtype::Q4_0, 2, 40)), "multiple"));
  for (const Dtype type : {Dtype::F32, Dtype::BF16, Dtype::Q4_0}) CHECK(contains(message(view_of(bytes, type, 64, 0)), "at least one input"));
  CHECK_THROWS_AS(Linear::from_rows(context, Dtype::F32, RowMatrix(2, 0)), ArgumentError);
  CHECK_THROWS_AS(Linear::from_rows(context, Dtype::F8_E4M3, random_matrix(2, 64, 1)), UnsupportedError);
  CHECK_THROWS_AS(Linear::from_rows(context, Dtype::IQ4_XS, RowMatrix::Constant(2, 256, 1e6f)), UnsupportedError);
  CHECK_THROWS_AS(Linear::from_rows(context, Dtype::Q4_K, random_matrix(2, 64, 1)), ArgumentError);
}

TEST_CASE("block scales are those of FP8 weights, F32, one for each 128 x 128 of them, or an error") {
  const std::vector<std::byte> bytes(130 * 300);
  const auto message = [&](const TensorView& weight, const TensorView& scales) {
    return test::message_of([&] { Linear::pack(context_of(Activations::int8), weight, nullptr, &scales); });
  };
  const TensorView weight = view_of(bytes, Dtype::F8_E4M3, 130, 300), scales = view_of(bytes, Dtype::F32, 2, 3);
  CHECK_NOTHROW(Linear::pack(context_of(Activations::int8), weight, nullptr, &scales));
  CHECK(test::contains(message(weight, view_of(bytes, Dtype::F32, 2, 2)), "F32 [2, 3], not F32 [2, 2]"));
  CHECK(test::contains(message(weight, view_of(bytes, Dtype::F32, 1, 3)), "F32 [2, 3], not F32 [1, 3]"));
  CHECK(test::contains(message(weight, view_of(bytes, Dtype::F16, 2, 3)), "F32 [2, 3], not F16 [2, 3]"));
  TensorView flat = scales;
  flat.shape = {6};
  CHECK(test::contains(message(weight, flat), "F32 [2, 3], not F32 [6]"));
  TensorView panels = view_of(bytes, Dtype::Q4_0, 128, 32);
  panels.panel_bytes = 320;
  for (const TensorView& other : {view_of(bytes, Dtype::F32, 130, 32), view_of(bytes, Dtype::BF16, 130, 32), view_of(bytes, Dtype::Q4_0, 130, 32), panels})
    CHECK(test::contains(message(other, view_of(bytes, Dtype::F32, 2, 1)), "only F8_E4M3 weights have block scales"));
}

TEST_CASE("numbers that a type cannot hold are refused, and those that are none where it holds numbers only") {
  const Context context = context_of(Activations::f32);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const Dtype type : types) {
    CAPTURE(dtype_info(type).name);
    const auto made = [&](float x) {
      RowMatrix w = random_matrix(20, 256, 1);
      w(17, 130) = x;
      return test::message_of([&] { Linear::from_rows(context, type, w); });
    };
    const bool wide = type == Dtype::F32 || type == Dtype::BF16, is_float = wide || type == Dtype::F16;
    for (const float x : {65504.0f, -65504.0f}) CHECK(made(x) == "nothing was thrown");
    for (const float x : {65520.0f, -1e7f}) CHECK(test::contains(made(x), wide ? "nothing was thrown" : "row 17, column 130"));
    for (const float x : {nan, infinity, -infinity}) CHECK(test::contains(made(x), is_float ? "nothing was thrown" : "row 17, column 130"));
  }
  CHECK_THROWS_AS(Linear::from_rows(context, Dtype::BF16, RowMatrix::Constant(1, 32, std::numeric_limits<float>::max())), ArgumentError);
}
