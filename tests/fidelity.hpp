#pragma once
// Running a model on reference sequences and comparing with what other programs computed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/generate/forward.hpp>
#include <moxie/generate/session.hpp>
#include <moxie/io/safetensors.hpp>

#include "shared.hpp"

namespace test {

inline nlohmann::json read_json(const std::string& path) { return nlohmann::json::parse(read_text(path)); }

/// A tensor of a golden file as floats or ids.
template <class T>
std::vector<T> golden(const moxie::SafetensorsFile& file, const std::string& name) {
  const moxie::TensorView* tensor = file.tensors().find(name);
  if (!tensor) throw std::runtime_error("no golden tensor " + name);
  std::vector<T> values(static_cast<std::size_t>(tensor->elements()));
  if (tensor->bytes != values.size() * sizeof(T)) throw std::runtime_error("golden tensor " + name + " has another type");
  std::copy_n(tensor->data, tensor->bytes, reinterpret_cast<std::byte*>(values.data()));
  return values;
}

struct ForwardResult {
  std::vector<float> hidden, logits;  // [T, hidden], [T, vocab]
  moxie::RoutingTrace routes;
};

/// One pass over a sequence, from an empty cache.
inline ForwardResult run(const moxie::Model& model, const std::vector<std::int32_t>& ids, const moxie::RoutingTrace* replay = nullptr) {
  moxie::KvSequence kv(moxie::KvPool(model.kv_shape()));
  kv.reserve(static_cast<std::int64_t>(ids.size()));
  std::vector<moxie::DecoderRow> rows;
  for (std::size_t i = 0; i < ids.size(); ++i) rows.push_back({ids[i], &kv, static_cast<std::int64_t>(i)});
  moxie::ForwardScratch scratch;
  ForwardResult result;
  result.hidden.resize(ids.size() * static_cast<std::size_t>(model.config().hidden_size));
  result.routes = moxie::empty_trace(model);
  result.routes.resize(static_cast<moxie::Index>(ids.size()));
  model.decoder().forward(model.context(), rows, result.hidden.data(), scratch.decoder, &result.routes, replay);
  const float* logits = moxie::compute_logits(model, result.hidden.data(), static_cast<moxie::Index>(ids.size()), scratch);
  result.logits.assign(logits, logits + ids.size() * static_cast<std::size_t>(model.config().vocab_size));
  return result;
}

inline double largest(const std::vector<float>& values) {
  double most = 0.0;
  for (const float v : values) most = std::max(most, std::abs(static_cast<double>(v)));
  return most;
}
/// Largest difference, over the largest magnitude of the reference; infinite where a NaN stands.
inline double relative_difference(const std::vector<float>& values, const std::vector<float>& reference) {
  double most = values.size() == reference.size() ? 0.0 : INFINITY;
  for (std::size_t i = 0; i < std::min(values.size(), reference.size()); ++i) {
    const double d = std::abs(static_cast<double>(values[i]) - static_cast<double>(reference[i]));
    most = d == d ? std::max(most, d) : INFINITY;
  }
  return most / largest(reference);
}

/// Mean over rows of KL(softmax(reference) || softmax(values)), nats, in double.
inline double mean_kl(const std::vector<float>& reference, const std::vector<float>& values, std::size_t vocab) {
  const std::size_t rows = reference.size() / vocab;
  double total = 0.0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto lse = [&](const float* z) {
      double m = -INFINITY, s = 0.0;
      for (std::size_t i = 0; i < vocab; ++i) m = std::max(m, static_cast<double>(z[i]));
      for (std::size_t i = 0; i < vocab; ++i) s += std::exp(static_cast<double>(z[i]) - m);
      return m + std::log(s);
    };
    const float *p = reference.data() + r * vocab, *q = values.data() + r * vocab;
    const double lp = lse(p), lq = lse(q);
    for (std::size_t i = 0; i < vocab; ++i) {
      const double a = static_cast<double>(p[i]) - lp;
      total += std::exp(a) * (a - (static_cast<double>(q[i]) - lq));
    }
  }
  return total / static_cast<double>(rows);
}

inline std::vector<std::int32_t> greedy(const moxie::Model& model, const std::vector<std::int32_t>& ids, std::int64_t n) {
  moxie::Session session(model);
  session.feed(ids);
  moxie::Generation generation = session.generate({.temperature = 0.0f, .max_tokens = n, .ignore_eos = true});
  while (generation.step()) {}
  return generation.ids();
}

}  // namespace test
