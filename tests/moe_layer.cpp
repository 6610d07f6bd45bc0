// Layers: the arithmetic against double precision, the same bits however a batch is cut, traces, errors.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/kernels/kernels.hpp>
#include <moxie/moe/feed_forward.hpp>
#include <moxie/moe/moe_layer.hpp>
#include <moxie/quant/formats.hpp>

#include "checks.hpp"

using moxie::Activations;
using moxie::ArgumentError;
using moxie::Dtype;
using moxie::Index;
using moxie::MoeConfig;
using moxie::MoeLayer;
using moxie::MoeWeights;
using moxie::RoutingTrace;
using moxie::RowMatrix;
using moxie::Threads;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {

using test::message_of;
using test::contains;

RowMatrix random_matrix(Index rows, Index cols, unsigned seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  return RowMatrix::NullaryExpr(rows, cols, [&] { return normal(random); });
}

moxie::FeedForwardMatrices random_network(Index hidden, Index width, unsigned seed) {
  return {random_matrix(width, hidden, seed, 1 / std::sqrt(static_cast<float>(hidden))),
          random_matrix(width, hidden, seed + 1, 1 / std::sqrt(static_cast<float>(hidden))),
          random_matrix(hidden, width, seed + 2, 1 / std::sqrt(static_cast<float>(width)))};
}

/// A layer with every part: groups, bias, renormalization, shared experts with a gate.
MoeConfig full_config(Index hidden = 64, Index width = 96, Index shared = 160) {
  MoeConfig config{hidden, width, shared, shared > 0, {}};
  config.router = {16, 4, moxie::RouterScoring::sigmoid, 4, 2, moxie::GroupScore::best_two, true, 1e-20f, 2.5f};
  return config;
}

MoeWeights random_weights(const MoeConfig& config, unsigned seed = 1) {
  MoeWeights w;
  w.router = random_matrix(config.router.n_experts, config.hidden_size, seed, 1 / std::sqrt(static_cast<float>(config.hidden_size)));
  w.router_bias = random_matrix(config.router.n_experts, 1, seed + 1, 0.1f).col(0);
  for (Index e = 0; e < config.router.n_experts; ++e)
    w.experts.push_back(random_network(config.hidden_size, config.moe_intermediate_size, seed + 10 + 3 * static_cast<unsigned>(e)));
  if (config.shared_intermediate_size > 0) w.shared = random_network(config.hidden_size, config.shared_intermediate_size, seed + 3);
  if (config.shared_expert_gate) w.shared_expert_gate = random_matrix(config.hidden_size, 1, seed + 6, 0.2f).col(0);
  return w;
}

/// Plain loops: the reference shares nothing with the library.
std::vector<double> network_reference(const moxie::FeedForwardMatrices& m, const std::vector<double>& x, double limit = 0) {
  const auto product = [](const RowMatrix& w, const std::vector<double>& v) {
    std::vector<double> y(static_cast<std::size_t>(w.rows()));
    for (Index r = 0; r < w.rows(); ++r)
      for (Index c = 0; c < w.cols(); ++c) y[static_cast<std::size_t>(r)] += static_cast<double>(w(r, c)) * v[static_cast<std::size_t>(c)];
    return y;
  };
  const auto biased = [](std::vector<double> y, const moxie::Vector& bias) {
    for (std::size_t i = 0; i < y.size() && bias.size() != 0; ++i) y[i] += static_cast<double>(bias[static_cast<Index>(i)]);
    return y;
  };
  std::vector<double> hidden = biased(product(m.gate.size() ? m.gate : m.up, x), m.gate_bias);
  const std::vector<double> up = biased(product(m.up, x), m.up_bias);
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    if (m.gate.size() == 0) {
      hidden[i] = std::max(hidden[i], 0.0) * std::max(hidden[i], 0.0);
    } else if (limit == 0) {
      hidden[i] = hidden[i] / (1 + std::exp(-hidden[i])) * up[i];
    } else {
      const double g = std::min(hidden[i], limit), u = std::clamp(up[i], -limit, limit);
      hidden[i] = (u + 1) * g / (1 + std::exp(-1.702 * g));
    }
  }
  return biased(product(m.down, hidden), m.down_bias);
}

std::vector<double> row_of(const RowMatrix& x, Index r) { return {x.row(r).data(), x.row(r).data() + x.cols()}; }

double sigmoid_of_product(const float* w, const std::vector<double>& x) {
  double z = 0;
  for (std::size_t i = 0; i < x.size(); ++i) z += static_cast<double>(w[i]) * x[i];
  return 1 / (1 + std::exp(-z));
}

/// The layer in double precision, for the experts and weights of a trace.
Matrix layer_reference(const MoeWeights& w, const RowMatrix& x, const RoutingTrace& trace, double limit = 0) {
  Matrix y = Matrix::Zero(x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r) {
    const std::vector<double> row = row_of(x, r);
    const auto add = [&](double weight, const moxie::FeedForwardMatrices& network) {
      const std::vector<double> result = network_reference(network, row, limit);
      for (Index i = 0; i < y.cols(); ++i) y(r, i) += weight * result[static_cast<std::size_t>(i)];
    };
    for (Index s = 0; s < trace.top_k(); ++s)
      add(static_cast<double>(trace.weights(0)(r, s)), w.experts[static_cast<std::size_t>(trace.ids(0)(r, s))]);
    if (w.shared) add(w.shared_expert_gate.size() ? sigmoid_of_product(w.shared_expert_gate.data(), row) : 1.0, *w.shared);
  }
  return y;
}

/// Largest difference over the largest magnitude.
double relative_error(const RowMatrix& y, const Matrix& expected) {
  double difference = 0, magnitude = 0;
  for (Index i = 0; i < y.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(y.data()[i]) - expected.data()[i]));
    magnitude = std::max(magnitude, std::abs(expected.data()[i]));
  }
  return difference / magnitude;
}

template <class Format>
RowMatrix through(const RowMatrix& matrix) {
  RowMatrix decoded(matrix.rows(), matrix.cols());
  std::vector<std::byte> blocks(moxie::row_bytes(Format::dtype, static_cast<std::uint64_t>(matrix.cols())));
  for (Index r = 0; r < matrix.rows(); ++r) {
    moxie::encode_row(Format::dtype, matrix.row(r).data(), blocks.data(), matrix.cols());
    moxie::decode_row(Format::dtype, blocks.data(), decoded.row(r).data(), matrix.cols());
  }
  return decoded;
}

template <class Format>
MoeWeights through(MoeWeights w) {
  const auto network = [](moxie::FeedForwardMatrices& m) {
    for (RowMatrix* matrix : {&m.gate, &m.up, &m.down}) *matrix = through<Format>(*matrix);  // a gate that is missing stays so
  };
  for (auto& expert : w.experts) network(expert);
  if (w.shared) network(*w.shared);
  return w;
}

template <class Layer>
RowMatrix run(const Layer& layer, const RowMatrix& x) {
  RowMatrix y = RowMatrix::Constant(x.rows(), x.cols(), -7.0f);
  layer.forward(x, y);
  return y;
}

bool same_bits(const RowMatrix& a, const RowMatrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::equal(a.data(), a.data() + a.size(), b.data(), [](float u, float v) { return std::bit_cast<std::uint32_t>(u) == std::bit_cast<std::uint32_t>(v); });
}

template <class Format, Activations activations>
void check_against_reference(double tolerance) {
  const Index k = std::max(64, Format::block);
  const MoeConfig config = full_config(k, k, k);
  const MoeWeights weights = random_weights(config);
  const RowMatrix x = random_matrix(21, config.hidden_size, 99);
  const MoeLayer<Format, activations> layer(config, weights, Threads(2));
  RowMatrix y(x.rows(), x.cols());
  RoutingTrace trace;
  layer.forward_recording(x, y, trace);
  const double error = relative_error(y, layer_reference(through<Format>(weights), x, trace));
  CHECK_MESSAGE(error <= tolerance, Format::name, ": ", error);
}

/// Rows in one batch, alone, in chunks, in another order, and by 1 to 4 threads.
template <class Format, Activations activations>
void check_same_bits(const MoeConfig& config, Index rows, std::initializer_list<Index> chunks) {
  const RowMatrix x = random_matrix(rows, config.hidden_size, 11);
  const MoeLayer<Format, activations> layer(config, random_weights(config, 5), Threads(2));
  moxie::MoeScratch scratch;
  const auto with_threads = [&](int threads, const RowMatrix& in) {
    RowMatrix out = RowMatrix::Constant(in.rows(), in.cols(), -7.0f);
    const moxie::Context context{&moxie::kernels::native_table(), Threads(threads), activations};
    layer.block().forward(context, in.data(), in.rows(), in.cols(), out.data(), out.cols(), scratch);
    return out;
  };
  const RowMatrix y = run(layer, x);
  REQUIRE(y.allFinite());
  for (const int threads : {1, 2, 3, 4}) CHECK(same_bits(with_threads(threads, x), y));
  for (Index r = 0; r < rows; r += std::max<Index>(1, rows / 7)) CHECK(same_bits(with_threads(3, x.row(r)), y.row(r)));
  for (const Index chunk : chunks) {
    RowMatrix cut(rows, x.cols());
    for (Index r = 0; r < rows; r += chunk) {
      const Index n = std::min(chunk, rows - r);
      cut.middleRows(r, n) = with_threads(1, x.middleRows(r, n));
    }
    CHECK(same_bits(cut, y));
  }

  std::vector<Index> order(static_cast<std::size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  RowMatrix shuffled(rows, x.cols()), back(rows, x.cols());
  for (Index r = 0; r < rows; ++r) shuffled.row(r) = x.row(order[static_cast<std::size_t>(r)]);
  const RowMatrix shuffled_y = with_threads(4, shuffled);
  for (Index r = 0; r < rows; ++r) back.row(order[static_cast<std::size_t>(r)]) = shuffled_y.row(r);
  CHECK(same_bits(back, y));
}

}  // namespace

TEST_CASE("f32 weights and activations agree with double precision") {
  check_against_reference<moxie::F32, Activations::f32>(2e-6);
}

TEST_CASE("widths that are no multiple of a panel or a block agree with double precision") {
  for (const auto& [hidden, width, shared] : {std::array<Index, 3>{40, 50, 0}, {33, 7, 17}, {1, 1, 1}, {64, 130, 33}}) {
    const MoeConfig config = full_config(hidden, width, shared);
    const MoeWeights weights = random_weights(config);
    const RowMatrix x = random_matrix(70, hidden, 98);
    const MoeLayer<moxie::F32, Activations::f32> layer(config, weights, Threads(2));
    RowMatrix y(x.rows(), x.cols());
    RoutingTrace trace;
    layer.forward_recording(x, y, trace);
    CHECK(relative_error(y, layer_reference(weights, x, trace)) < 5e-6);
  }
}

TEST_CASE("every format with f32 activations agrees with its decoded weights in double precision") {
  check_against_reference<moxie::F16, Activations::f32>(2e-6);
  check_against_reference<moxie::BF16, Activations::f32>(2e-6);
  check_against_reference<moxie::Q8_0, Activations::f32>(2e-6);
  check_against_reference<moxie::Q4_0, Activations::f32>(2e-6);
  check_against_reference<moxie::Q4_1, Activations::f32>(2e-6);
  check_against_reference<moxie::Q5_0, Activations::f32>(2e-6);
  check_against_reference<moxie::Q5_1, Activations::f32>(2e-6);
  check_against_reference<moxie::Q4_K, Activations::f32>(2e-6);
  check_against_reference<moxie::Q5_K, Activations::f32>(2e-6);
  check_against_reference<moxie::Q6_K, Activations::f32>(2e-6);
}

/// gpt-oss: biases, softmax over the chosen, and a limit that gates and ups reach.
MoeConfig biased_config(Index hidden = 64, Index width = 96) {
  MoeConfig config{hidden, width, 0, false, {16, 4, moxie::RouterScoring::chosen_softmax}};
  config.biases = true;
  config.swiglu_limit = 0.9f;
  return config;
}
MoeWeights biased_weights(const MoeConfig& config, unsigned seed = 1) {
  MoeWeights w = random_weights(config, seed);
  w.router_bias.resize(0);
  w.router_logit_bias = random_matrix(config.router.n_experts, 1, ++seed, 0.5f).col(0);
  for (moxie::FeedForwardMatrices& expert : w.experts) {
    expert.gate_bias = random_matrix(config.moe_intermediate_size, 1, ++seed, 0.5f).col(0);
    expert.up_bias = random_matrix(config.moe_intermediate_size, 1, ++seed, 0.5f).col(0);
    expert.down_bias = random_matrix(config.hidden_size, 1, ++seed, 0.5f).col(0);
  }
  return w;
}

TEST_CASE("biases and the clamped activation agree with double precision, with the same bits in any batch") {
  for (const Index width : {96, 70}) {
    const MoeConfig config = biased_config(64, width);
    const MoeWeights weights = biased_weights(config);
    const RowMatrix x = random_matrix(21, 64, 99);
    const auto check = [&](const auto& layer, const MoeWeights& decoded, double tolerance) {
      RowMatrix y(x.rows(), x.cols()), row(1, x.cols());
      RoutingTrace trace;
      layer.forward_recording(x, y, trace);
      CHECK(relative_error(y, layer_reference(decoded, x, trace, static_cast<double>(config.swiglu_limit))) < tolerance);
      for (Index r = 0; r < x.rows(); ++r) {
        layer.forward(x.row(r), row);
        CHECK(same_bits(row, y.row(r)));
        std::vector<std::pair<double, std::int32_t>> logits;
        for (std::int32_t e = 0; e < 16; ++e)
          logits.emplace_back(static_cast<double>(weights.router.row(e).cast<double>().dot(x.row(r).cast<double>())) +
                                  static_cast<double>(weights.router_logit_bias[e]), e);
        std::sort(logits.rbegin(), logits.rend());
        CHECK(trace.ids(0)(r, 0) == logits.front().second);
        CHECK(trace.weights(0)(r, 0) / trace.weights(0)(r, 3) == doctest::Approx(std::exp(logits[0].first - logits[3].first)).epsilon(1e-5));
      }
    };
    check(MoeLayer<moxie::F32, Activations::f32>(config, weights, Threads(2)), weights, 2e-6);
    if (width % 32 == 0) {
      check(MoeLayer<moxie::Q8_0, Activations::f32>(config, weights, Threads(2)), through<moxie::Q8_0>(weights), 2e-6);
      check(MoeLayer<moxie::Q8_0>(config, weights, Threads(2)), through<moxie::Q8_0>(weights), 2e-2);
    }
    // The same as tensors of a file.
    const auto view = [](const auto& values, std::vector<std::int64_t> shape) {
      return moxie::TensorView{"t", Dtype::F32, std::move(shape), reinterpret_cast<const std::byte*>(values.data()),
                               static_cast<std::uint64_t>(values.size()) * sizeof(float), "f", 0};
    };
    const auto matrix = [&](const RowMatrix& m) { return view(m, {m.rows(), m.cols()}); };
    const auto vector = [&](const moxie::Vector& v) { return view(v, {v.size()}); };
    moxie::MoeTensors tensors;
    tensors.router = matrix(weights.router);
    tensors.router_logit_bias = vector(weights.router_logit_bias);
    for (const moxie::FeedForwardMatrices& m : weights.experts)
      tensors.experts.push_back({matrix(m.gate), matrix(m.up), matrix(m.down), vector(m.gate_bias), vector(m.up_bias), vector(m.down_bias)});
    check(MoeLayer<moxie::F32, Activations::f32>(config, tensors, Threads(2)), weights, 2e-6);
  }
}

TEST_CASE("experts without a gate agree with double precision, with the same bits in any batch, and need no gate") {
  for (const Index width : {96, 70}) {
    MoeConfig config = full_config(64, width, width == 96 ? 160 : 0);
    config.gated = false;
    MoeWeights weights = random_weights(config);
    for (moxie::FeedForwardMatrices& expert : weights.experts) expert.gate.resize(0, 0);
    if (weights.shared) weights.shared->gate.resize(0, 0);
    const RowMatrix x = random_matrix(40, 64, 99);
    const auto check = [&](const auto& layer, const MoeWeights& decoded, double tolerance) {
      RowMatrix y(x.rows(), x.cols()), row(1, x.cols());
      RoutingTrace trace;
      layer.forward_recording(x, y, trace);
      CHECK(relative_error(y, layer_reference(decoded, x, trace)) < tolerance);
      for (Index r = 0; r < x.rows(); ++r) {
        layer.forward(x.row(r), row);
        CHECK(same_bits(row, y.row(r)));
      }
    };
    check(MoeLayer<moxie::F32, Activations::f32>(config, weights, Threads(2)), weights, 2e-6);
    if (width % 32 == 0) {
      check(MoeLayer<moxie::Q8_0, Activations::f32>(config, weights, Threads(2)), through<moxie::Q8_0>(weights), 2e-6);
      check(MoeLayer<moxie::Q8_0>(config, weights, Threads(2)), through<moxie::Q8_0>(weights), 2e-2);
    }
    // The same as stacked tensors of a file.
    RowMatrix up(16 * width, 64), down(16 * 64, width);
    for (Index e = 0; e < 16; ++e) {
      up.middleRows(e * width, width) = weights.experts[static_cast<std::size_t>(e)].up;
      down.middleRows(e * 64, 64) = weights.experts[static_cast<std::size_t>(e)].down;
    }
    const auto view = [](const RowMatrix& m, std::vector<std::int64_t> shape) {
      return moxie::TensorView{"t", Dtype::F32, std::move(shape), reinterpret_cast<const std::byte*>(m.data()),
                               static_cast<std::uint64_t>(m.size()) * sizeof(float), "f", 0};
    };
    moxie::MoeTensors tensors;
    tensors.router = view(weights.router, {16, 64});
    tensors.router_bias = moxie::TensorView{"t", Dtype::F32, {16}, reinterpret_cast<const std::byte*>(weights.router_bias.data()), 64, "f", 0};
    tensors.experts = moxie::split_experts({}, view(up, {16, width, 64}), view(down, {16, 64, width}));
    MoeConfig unshared = config;
    unshared.shared_intermediate_size = 0;
    unshared.shared_expert_gate = false;
    MoeWeights alone = weights;
    alone.shared.reset();
    check(MoeLayer<moxie::F32, Activations::f32>(unshared, tensors, Threads(2)), alone, 2e-6);

    using Layer = MoeLayer<moxie::F32, Activations::f32>;
    tensors.experts[3].gate = tensors.experts[3].up;
    CHECK(contains(message_of([&] { Layer(unshared, tensors); }), "expert 3 gate: is given, but"));
    config.gated = true;
    CHECK(contains(message_of([&] { Layer(config, weights); }), "expert 0 gate: is missing"));
    config.gated = false;
    config.latent_size = 32;
    CHECK(contains(message_of([&] { Layer(config, weights); }), "latent_size must be 0"));
    config.latent_size = 0;
    config.swiglu_limit = 1.0f;
    CHECK(contains(message_of([&] { Layer(config, weights); }), "neither biases nor swiglu_limit"));
  }
}

TEST_CASE("int8 activations stay within the error of their rounding") {
  // A rounding error of at most 1/254 of the block's maximum, independent over the inputs, three products deep; the largest of a few thousand such errors.
  check_against_reference<moxie::F32, Activations::int8>(2e-6);  // float formats take f32 activations
  check_against_reference<moxie::Q8_0, Activations::int8>(2e-2);
  check_against_reference<moxie::Q4_0, Activations::int8>(2e-2);
  check_against_reference<moxie::Q5_1, Activations::int8>(2e-2);
  check_against_reference<moxie::Q4_K, Activations::int8>(2e-2);
  check_against_reference<moxie::Q6_K, Activations::int8>(2e-2);
}

TEST_CASE("a row has the same bits in any batch, chunk, order and with any number of threads") {
  check_same_bits<moxie::F32, Activations::f32>(full_config(), 45, {2, 5, 16});
  check_same_bits<moxie::F32, Activations::f32>(full_config(50, 70, 33), 45, {2, 5, 16});
  check_same_bits<moxie::Q8_0, Activations::int8>(full_config(), 45, {2, 5, 16});
  check_same_bits<moxie::Q8_0, Activations::f32>(full_config(), 45, {2, 5, 16});
  check_same_bits<moxie::Q4_0, Activations::int8>(full_config(64, 96, 0), 45, {2, 5, 16});
  check_same_bits<moxie::Q4_K, Activations::int8>(full_config(256, 256, 256), 45, {2, 5, 16});
  check_same_bits<moxie::Q4_K, Activations::f32>(full_config(256, 256, 256), 45, {2, 5, 16});
}

TEST_CASE("batches larger than the rows taken at a time have the same bits") {
  check_same_bits<moxie::Q8_0, Activations::int8>(full_config(32, 32, 64), 1300, {97, 700});
  check_same_bits<moxie::F32, Activations::f32>(full_config(32, 32, 64), 1300, {97, 700});
}

TEST_CASE("wide experts are cut into several items without changing a bit") {
  check_same_bits<moxie::Q8_0, Activations::int8>(full_config(512, 1056, 0), 6, {1, 4});
}

TEST_CASE("an empty batch, experts without tokens, and top_k of all experts work") {
  MoeConfig config = full_config();
  const MoeWeights weights = random_weights(config);
  const MoeLayer<moxie::Q8_0> layer(config, weights, Threads(2));
  RowMatrix none(0, 64), y(0, 64);
  CHECK_NOTHROW(layer.forward(none, y));

  // All rows equal: 4 of 16 experts get every row, the others none.
  const RowMatrix x = random_matrix(1, 64, 4).replicate(9, 1);
  const RowMatrix same = run(layer, x);
  for (Index r = 1; r < 9; ++r) CHECK(same_bits(same.row(r), same.row(0)));

  config.router = {16, 16, moxie::RouterScoring::softmax};
  const MoeLayer<moxie::F32, Activations::f32> all(config, weights, Threads(2));
  const RowMatrix z = random_matrix(5, 64, 6);
  RowMatrix out(5, 64);
  RoutingTrace trace;
  all.forward_recording(z, out, trace);
  CHECK(relative_error(out, layer_reference(weights, z, trace)) < 2e-6);
  CHECK(trace.weights(0).row(2).sum() == doctest::Approx(1.0).epsilon(1e-6));
}

TEST_CASE("replaying its own trace changes no bit") {
  const MoeConfig config = full_config();
  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config), Threads(2));
  const RowMatrix x = random_matrix(600, 64, 21);
  RowMatrix recorded(600, 64), replayed(600, 64);
  RoutingTrace trace;
  layer.forward_recording(x, recorded, trace);
  CHECK(same_bits(recorded, run(layer, x)));
  REQUIRE(trace.tokens() == 600);
  layer.forward_replaying(x, replayed, trace);
  CHECK(same_bits(replayed, recorded));
}

TEST_CASE("a replayed trace decides which experts run") {
  const MoeConfig config = full_config();
  const MoeWeights weights = random_weights(config);
  const MoeLayer<moxie::F32, Activations::f32> layer(config, weights, Threads(2));
  const RowMatrix x = random_matrix(8, 64, 22);
  RowMatrix y(8, 64);
  RoutingTrace trace;
  layer.forward_recording(x, y, trace);
  trace.ids(0).row(3) << 0, 5, 10, 15;
  RowMatrix moved(8, 64);
  layer.forward_replaying(x, moved, trace);
  for (Index r = 0; r < 8; ++r) CHECK(same_bits(moved.row(r), y.row(r)) == (r != 3));

  // Weights by the layer's rule from this input: renormalized sigmoids times 2.5.
  double scores[4], sum = 0;
  for (Index s = 0; s < 4; ++s) sum += scores[s] = sigmoid_of_product(weights.router.row(5 * s).data(), row_of(x, 3));
  for (Index s = 0; s < 4; ++s) trace.weights(0)(3, s) = static_cast<float>(2.5 * scores[s] / sum);
  CHECK(relative_error(moved, layer_reference(weights, x, trace)) < 2e-6);
}

TEST_CASE("traces that do not fit are refused and leave the layer usable") {
  const MoeConfig config = full_config();
  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config), Threads(2));
  const RowMatrix x = random_matrix(6, 64, 23);
  RowMatrix y(6, 64);
  RoutingTrace trace;
  layer.forward_recording(x, y, trace);
  const RowMatrix expected = y;
  RoutingTrace shorter = trace;
  shorter.resize(5);
  CHECK(contains(message_of([&] { layer.forward_replaying(x, y, shorter); }), "has 5 tokens, 6 are needed"));
  CHECK_THROWS_AS(layer.forward_replaying(x, y, RoutingTrace(2, 16, 4)), ArgumentError);
  CHECK_THROWS_AS(layer.forward_replaying(x, y, RoutingTrace()), ArgumentError);
  trace.ids(0)(4, 2) = 16;
  CHECK(contains(message_of([&] { layer.forward_replaying(x, y, trace); }), "router, row 4: expert id 16 is out of range"));
  CHECK_THROWS_AS(layer.forward_replaying(x, y, trace), ArgumentError);
  CHECK(same_bits(run(layer, x), expected));
}

TEST_CASE("input that is not finite is an error that names the row, and leaves the layer usable") {
  const MoeConfig config = full_config();
  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config), Threads(2));
  const RowMatrix x = random_matrix(600, 64, 24);
  const RowMatrix expected = run(layer, x);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    RowMatrix broken = x;
    broken(599, 63) = bad;
    RowMatrix y(600, 64);
    CHECK(contains(message_of([&] { layer.forward(broken, y); }), "router, row 599: the router logit of expert"));
  }
  CHECK(same_bits(run(layer, x), expected));
}

TEST_CASE("one layer serves several threads at once") {
  const MoeConfig config = full_config();
  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config), Threads(2));
  const RowMatrix x = random_matrix(40, 64, 25);
  const RowMatrix expected = run(layer, x);
  std::vector<RowMatrix> results(4);
  std::vector<std::thread> callers;
  for (RowMatrix& result : results)
    callers.emplace_back([&] {
      for (int i = 0; i < 5; ++i) result = run(layer, x);
    });
  for (std::thread& caller : callers) caller.join();
  for (const RowMatrix& result : results) CHECK(same_bits(result, expected));
}

TEST_CASE("rows may be strided, and the output may be the input") {
  const MoeConfig config = full_config();
  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config), Threads(2));
  const RowMatrix x = random_matrix(10, 64, 26);
  const RowMatrix expected = run(layer, x);
  RowMatrix wide = random_matrix(10, 100, 27);
  wide.middleCols(9, 64) = x;
  const RowMatrix before = wide;
  layer.forward(wide.middleCols(9, 64), wide.middleCols(9, 64));
  CHECK(same_bits(wide.middleCols(9, 64), expected));
  CHECK(same_bits(wide.leftCols(9), before.leftCols(9)));
  CHECK(same_bits(wide.rightCols(27), before.rightCols(27)));
}

TEST_CASE("weights in the format's blocks give the same bits as the float matrices they were made from") {
  const MoeConfig config = full_config(256, 512, 256);
  const MoeWeights weights = random_weights(config);
  const RowMatrix x = random_matrix(9, 256, 28);
  const RowMatrix expected = run(MoeLayer<moxie::Q4_K>(config, weights, Threads(2)), x);

  std::vector<std::vector<std::byte>> memory;
  const auto encoded = [&](const char* name, Dtype dtype, const std::vector<const RowMatrix*>& matrices, std::vector<std::int64_t> shape) {
    const Index cols = matrices[0]->cols();
    const std::size_t row = moxie::row_bytes(dtype, static_cast<std::uint64_t>(cols));
    std::vector<std::byte>& bytes = memory.emplace_back();
    for (const RowMatrix* matrix : matrices)
      for (Index r = 0; r < matrix->rows(); ++r) {
        bytes.resize(bytes.size() + row);
        moxie::encode_row(dtype, matrix->row(r).data(), bytes.data() + bytes.size() - row, cols);
      }
    return moxie::TensorView{name, dtype, std::move(shape), bytes.data(), bytes.size(), "in memory", 0};
  };
  memory.reserve(16);
  std::vector<const RowMatrix*> gate, up, down;
  for (const auto& expert : weights.experts) {
    gate.push_back(&expert.gate);
    up.push_back(&expert.up);
    down.push_back(&expert.down);
  }
  const RowMatrix bias = weights.router_bias.transpose(), shared_gate = weights.shared_expert_gate.transpose();
  moxie::MoeTensors tensors;
  tensors.router = encoded("router", Dtype::F32, {&weights.router}, {16, 256});
  tensors.router_bias = encoded("bias", Dtype::F32, {&bias}, {16});
  tensors.experts = moxie::split_experts(encoded("gate", Dtype::Q4_K, gate, {16, 512, 256}), encoded("up", Dtype::Q4_K, up, {16, 512, 256}),
                                         encoded("down", Dtype::Q4_K, down, {16, 256, 512}));
  tensors.shared = {encoded("shared gate", Dtype::Q4_K, {&weights.shared->gate}, {256, 256}),
                    encoded("shared up", Dtype::Q4_K, {&weights.shared->up}, {256, 256}),
                    encoded("shared down", Dtype::Q4_K, {&weights.shared->down}, {256, 256})};
  tensors.shared_expert_gate = encoded("shared expert gate", Dtype::F32, {&shared_gate}, {1, 256});
  CHECK(same_bits(run(MoeLayer<moxie::Q4_K>(config, tensors, Threads(2)), x), expected));

  CHECK(contains(message_of([&] { MoeLayer<moxie::Q6_K>(config, tensors); }), "is Q4_K, this layer's experts are Q6_K"));
  auto broken = tensors;
  broken.experts[3].down.bytes -= 1;
  CHECK(contains(message_of([&] { MoeLayer<moxie::Q4_K>(config, broken); }), "expert 3 down must have"));
  broken = tensors;
  broken.experts[2].up.shape = {256, 512};
  CHECK(contains(message_of([&] { MoeLayer<moxie::Q4_K>(config, broken); }), "expert 2 up must be [512, 256], got [256, 512]"));
  broken = tensors;
  broken.router_bias.reset();
  CHECK(!same_bits(run(MoeLayer<moxie::Q4_K>(config, broken, Threads(2)), x), expected));
  CHECK_THROWS_AS(moxie::split_experts(tensors.router, tensors.router, tensors.router), ArgumentError);
}

TEST_CASE("experts of mixed formats run in one block") {
  const MoeConfig config = full_config(256, 256, 256);
  const MoeWeights weights = random_weights(config);
  const moxie::Context context{&moxie::kernels::native_table(), Threads(2), Activations::int8};
  std::vector<moxie::FeedForwardWeights> experts;
  MoeWeights decoded = weights;
  const auto pack = [&](Dtype dtype, const RowMatrix& m) { return moxie::Linear::from_rows(context, dtype, m); };
  for (std::size_t e = 0; e < 16; ++e) {
    const auto& m = weights.experts[e];
    experts.push_back(e % 2 ? moxie::FeedForwardWeights{pack(Dtype::F32, m.gate), pack(Dtype::Q8_0, m.up), pack(Dtype::F32, m.down)}
                            : moxie::FeedForwardWeights{pack(Dtype::Q4_K, m.gate), pack(Dtype::Q4_K, m.up), pack(Dtype::Q6_K, m.down)});
    decoded.experts[e] = e % 2 ? moxie::FeedForwardMatrices{m.gate, through<moxie::Q8_0>(m.up), m.down}
                               : moxie::FeedForwardMatrices{through<moxie::Q4_K>(m.gate), through<moxie::Q4_K>(m.up), through<moxie::Q6_K>(m.down)};
  }
  const moxie::FeedForwardMatrices& s = *weights.shared;
  const moxie::MoeBlock block({config.router, pack(Dtype::F32, weights.router), weights.router_bias}, std::move(experts),
                              moxie::FeedForwardWeights{pack(Dtype::F32, s.gate), pack(Dtype::F32, s.up), pack(Dtype::F32, s.down)},
                              pack(Dtype::F32, weights.shared_expert_gate.transpose()));
  const RowMatrix x = random_matrix(30, 256, 29);
  RowMatrix y(30, 256);
  RoutingTrace trace(1, 16, 4);
  trace.resize(30);
  moxie::MoeScratch scratch;
  block.forward(context, x.data(), 30, 256, y.data(), 256, scratch, trace.record(0));
  CHECK(relative_error(y, layer_reference(decoded, x, trace)) < 1.5e-2);
  moxie::Context exact = context;
  exact.activations = Activations::f32;
  block.forward(exact, x.data(), 30, 256, y.data(), 256, scratch, trace.record(0));
  CHECK(relative_error(y, layer_reference(decoded, x, trace)) < 2e-6);
}

TEST_CASE("a dense feed-forward layer agrees with double precision, with the same bits in any batch") {
  for (const Dtype dtype : {Dtype::F32, Dtype::Q8_0})
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      const moxie::FeedForwardMatrices m = random_network(64, 224, 31);
      const moxie::Context context{&moxie::kernels::native_table(), Threads(3), activations};
      const moxie::FeedForward layer({moxie::Linear::from_rows(context, dtype, m.gate), moxie::Linear::from_rows(context, dtype, m.up),
                                      moxie::Linear::from_rows(context, dtype, m.down)});
      const RowMatrix x = random_matrix(700, 64, 32);
      RowMatrix y(700, 64), row(1, 64);
      moxie::MoeScratch scratch;
      layer.forward(context, x.data(), 700, 64, y.data(), 64, scratch);
      const bool q8 = dtype == Dtype::Q8_0, exact = !q8 || activations == Activations::f32;
      const moxie::FeedForwardMatrices decoded = q8 ? moxie::FeedForwardMatrices{through<moxie::Q8_0>(m.gate), through<moxie::Q8_0>(m.up), through<moxie::Q8_0>(m.down)} : m;
      Matrix expected(700, 64);
      for (Index r = 0; r < 700; ++r) {
        const std::vector<double> result = network_reference(decoded, row_of(x, r));
        std::copy(result.begin(), result.end(), expected.row(r).data());
      }
      CHECK(relative_error(y, expected) < (exact ? 2e-6 : 1.5e-2));
      for (const Index r : {0, 1, 511, 512, 699}) {
        layer.forward(context, x.row(r).data(), 1, 64, row.data(), 64, scratch);
        CHECK(same_bits(row, y.row(r)));
      }
      layer.forward(context, x.data(), 0, 64, y.data(), 64, scratch);
    }
}

TEST_CASE("weights that do not fit the configuration are refused, and the message names them") {
  const MoeConfig config = full_config();
  const auto refused = [](const MoeConfig& c, const MoeWeights& w, const std::string& part) {
    using Layer = MoeLayer<moxie::Q8_0>;
    CHECK_THROWS_AS(Layer(c, w), ArgumentError);
    const std::string message = message_of([&] { Layer(c, w); });
    CHECK_MESSAGE(contains(message, part), message);
  };
  MoeWeights w = random_weights(config);
  w.router.resize(16, 63);
  refused(config, w, "router: must be [16, 64], got [16, 63]");
  w = random_weights(config);
  w.router_bias.resize(15);
  refused(config, w, "n_experts (16) elements, got 15");
  w = random_weights(config);
  w.experts.pop_back();
  refused(config, w, "experts: n_experts is 16, got 15");
  w = random_weights(config);
  w.experts[7].down.setZero(64, 95);
  refused(config, w, "expert 7 down: must be [64, 96], got [64, 95]");
  w = random_weights(config);
  w.experts[7].up(3, 3) = std::numeric_limits<float>::quiet_NaN();
  refused(config, w, "expert 7 up: holds NaN");
  w.experts[7].up(3, 3) = 1e7f;  // the scale would be infinite
  refused(config, w, "expert 7 up: holds NaN, infinity or a magnitude above 65504");
  w = random_weights(config);
  w.shared.reset();
  refused(config, w, "shared expert: is missing");
  w = random_weights(config);
  w.shared_expert_gate.resize(0);
  refused(config, w, "shared_expert_gate: is missing");
  w = random_weights(config);
  w.shared_expert_gate.setZero(3);
  refused(config, w, "shared_expert_gate: must be [1, 64], got [1, 3]");
  MoeConfig biased = biased_config();
  w = biased_weights(biased);
  w.experts[7].up_bias.resize(0);
  refused(biased, w, "expert 7: needs biases");
  w = biased_weights(biased);
  w.experts[7].down_bias.setZero(65);
  refused(biased, w, "expert 7 down_bias: must have 64 elements, got 65");
  w = biased_weights(biased);
  w.router_logit_bias.resize(0);
  refused(biased, w, "router: needs biases");
  w.router_logit_bias.setZero(15);
  refused(biased, w, "n_experts (16) elements, got 15");
  biased.biases = false;
  w = biased_weights(biased);
  refused(biased, w, "router: has biases");
  biased.swiglu_limit = -1.0f;
  refused(biased, w, "swiglu_limit must be finite");
  w = random_weights(config);
  w.shared->up_bias.setZero(config.shared_intermediate_size);
  refused(config, w, "shared expert: has biases");
  MoeConfig other = config;
  other.shared_intermediate_size = 0;
  other.shared_expert_gate = false;
  refused(other, random_weights(config), "shared expert: is given");
  other.hidden_size = 0;
  refused(other, random_weights(config), "hidden_size must be 1 to");
  other = full_config(64, 40, 0);
  refused(other, random_weights(other), "expert 0 down: rows of 40 elements cannot be Q8_0");

  const MoeLayer<moxie::Q8_0> layer(config, random_weights(config));
  RowMatrix x = random_matrix(3, 64, 1), y(3, 64), narrow(3, 32), less(2, 64);
  CHECK(contains(message_of([&] { layer.forward(narrow, y); }), "must both be [rows, 64], got [3, 32] and [3, 64]"));
  CHECK_THROWS_AS(layer.forward(x, less), ArgumentError);
  CHECK_THROWS_AS(layer.forward(x, narrow), ArgumentError);
}
