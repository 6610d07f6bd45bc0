#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/attention/attend.hpp>
#include <moxie/kernels/kernels.hpp>
#include <moxie/kernels/simd.hpp>

#include "tables.hpp"

namespace {

using moxie::Activations, moxie::AttendRow, moxie::AttentionConfig, moxie::AttentionKind, moxie::AttentionScratch, moxie::Context, moxie::Index;
using moxie::KvPool, moxie::KvSequence, moxie::KvShape, moxie::KvType;

constexpr std::int64_t layers = 2;

/// The kernels under test.
const moxie::kernels::Table* tested = &moxie::kernels::native_table();

/// Runs a test with the kernels of each architecture.
template <class Test>
void on_each_architecture(Test&& test) {
  for (const moxie::kernels::Table* table : test::tables()) {
    CAPTURE(std::string(table->arch));
    tested = table;
    test();
  }
  tested = &moxie::kernels::native_table();
}

Context context(int threads = 1, Activations activations = Activations::f32) {
  Context c;
  c.kernels = tested;
  c.threads = moxie::Threads(threads);
  c.activations = activations;
  return c;
}

std::vector<float> random_floats(std::int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = normal(engine);
  return x;
}

/// x as a multiple of the power of two that gives `largest` so many bits.
float coded(float x, float largest, int bits) {
  int exponent = 0;  // largest < 2^exponent
  std::frexp(largest, &exponent);
  const float unit = std::ldexp(1.0f, exponent - bits);
  return std::nearbyint(x / unit) * unit;
}
float largest_of(const float* row, std::int64_t begin, std::int64_t end) {
  float most = 0;
  for (std::int64_t d = begin; d < end; ++d) most = std::max(most, std::abs(row[d]));
  return most;
}

/// Element i of a key or value of n as the cache keeps it. Latent rows are kept as keys.
float stored(const float* row, std::int64_t n, std::int64_t i, KvType type, bool value) {
  const float x = row[i];
  const std::int64_t block = i / 32 * 32;
  if (type == KvType::int16) return value ? coded(x, largest_of(row, 0, n), 12) : coded(x, largest_of(row, block, std::min(n, block + 32)), 13);
  if (type == KvType::int8) {  // largest |x| of the 32 / 127, rounded up to bf16
    const float most = largest_of(row, block, std::min(n, block + 32));
    float scale = moxie::bf16_to_f32(moxie::f32_to_bf16(most / 127.0f));
    if (scale < most / 127.0f) scale = moxie::bf16_to_f32(static_cast<std::uint16_t>(moxie::f32_to_bf16(scale) + 1));
    return scale == 0 ? 0 : std::nearbyint(x * (1.0f / scale)) * scale;
  }
  if (type == KvType::f16) return moxie::f16_to_f32(moxie::f32_to_f16(x));
  if (type == KvType::bf16) return moxie::bf16_to_f32(moxie::f32_to_bf16(x));
  return x;
}

/// Queries, keys and values of one sequence, and how to run them; grouped-query or latent.
struct Problem {
  AttentionConfig config;
  KvType type;
  std::int64_t n;  // positions
  std::vector<float> q, k, v;
  std::vector<float> sinks = {};  // [heads], or none
  Activations activations = Activations::f32;

  Problem(const AttentionConfig& c, KvType t, std::int64_t positions, unsigned seed = 1) : config(c), type(t), n(positions) {
    q = random_floats(n * q_width(), seed);
    k = random_floats(n * k_width(), seed + 1);
    v = latent() ? std::vector<float>() : random_floats(n * k_width(), seed + 2);
  }
  bool latent() const { return config.kind == AttentionKind::mla; }
  std::int64_t k_dim() const { return latent() ? config.kv_lora_rank + config.qk_rope_head_dim : config.head_dim; }
  std::int64_t v_dim() const { return latent() ? config.kv_lora_rank : config.head_dim; }
  std::int64_t kv_heads() const { return latent() ? 1 : config.n_kv_heads; }
  std::int64_t q_width() const { return config.n_heads * k_dim(); }
  std::int64_t k_width() const { return kv_heads() * k_dim(); }
  std::int64_t out_width() const { return config.n_heads * v_dim(); }

  KvShape shape() const { return {layers, kv_heads(), k_dim(), latent() ? 0 : v_dim(), type}; }
  void write(KvSequence& s, std::int64_t begin, std::int64_t end) const {
    s.reserve(end);
    for (std::int64_t p = begin; p < end; ++p) s.write(1, p, k.data() + p * k_width(), v.data() + (latent() ? 0 : p * k_width()));
  }
  KvSequence sequence(const KvPool& pool) const {
    KvSequence s(pool);
    write(s, 0, n);
    s.advance(n);
    return s;
  }

  /// Results of the given rows; row i has query `position`, as in `q`.
  std::vector<float> run(const std::vector<AttendRow>& rows, int threads = 1) const {
    std::vector<float> queries, out(rows.size() * static_cast<std::size_t>(out_width()), std::nanf(""));
    for (const AttendRow& row : rows)
      queries.insert(queries.end(), q.begin() + row.position * q_width(), q.begin() + (row.position + 1) * q_width());
    AttentionScratch scratch;
    const Context with = context(threads, activations);
    if (latent())
      moxie::attend_mla(with, config, 1, queries.data(), q_width(), rows, out.data(), out_width(), scratch);
    else
      moxie::attend_gqa(with, config, 1, queries.data(), q_width(), rows, out.data(), out_width(), scratch,
                        sinks.empty() ? nullptr : sinks.data());
    return out;
  }
  std::vector<float> run_all(const KvSequence& s, int threads = 1) const {
    std::vector<AttendRow> rows;
    for (std::int64_t p = 0; p < n; ++p) rows.push_back({&s, p});
    return run(rows, threads);
  }
  /// k or v as the cache rounds them.
  std::vector<float> kept(bool values) const {
    const bool own = values && !latent();  // latent values are a part of the keys
    std::vector<float> out;
    for (std::int64_t row = 0; row < n * kv_heads(); ++row)
      for (std::int64_t d = 0; d < k_dim(); ++d)
        out.push_back(stored((own ? v : k).data() + row * k_dim(), k_dim(), d, type, own));
    return out;
  }
  /// softmax(q . k * scale) v in double precision, with kept keys and values.
  std::vector<double> reference(std::int64_t position, const std::vector<float>& keys, const std::vector<float>& values) const {
    std::vector<double> out;
    const std::int64_t begin = config.sliding_window == 0 ? 0 : std::max<std::int64_t>(0, position - config.sliding_window + 1);
    for (std::int64_t h = 0; h < config.n_heads; ++h) {
      const std::int64_t kv = h / (config.n_heads / kv_heads());
      std::vector<double> p;
      for (std::int64_t j = begin; j <= position; ++j) {
        double s = 0;
        for (std::int64_t d = 0; d < k_dim(); ++d)
          s += static_cast<double>(q[static_cast<std::size_t>(position * q_width() + h * k_dim() + d)]) *
               static_cast<double>(keys[static_cast<std::size_t>(j * k_width() + kv * k_dim() + d)]);
        p.push_back(s * static_cast<double>(config.scale));
      }
      const double largest = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& s : p) sum += s = std::exp(s - largest);
      if (!sinks.empty()) sum += std::exp(static_cast<double>(sinks[static_cast<std::size_t>(h)]) - largest);
      std::vector<double> head(static_cast<std::size_t>(v_dim()));
      for (std::int64_t j = begin; j <= position; ++j)
        for (std::int64_t d = 0; d < v_dim(); ++d)
          head[static_cast<std::size_t>(d)] +=
              p[static_cast<std::size_t>(j - begin)] / sum *
              static_cast<double>(values[static_cast<std::size_t>(j * k_width() + kv * k_dim() + d)]);
      out.insert(out.end(), head.begin(), head.end());
    }
    return out;
  }
};

AttentionConfig gqa(std::int64_t heads, std::int64_t kv_heads, std::int64_t dim, std::int64_t window = 0) {
  AttentionConfig c;
  c.n_heads = heads, c.n_kv_heads = kv_heads, c.head_dim = dim, c.sliding_window = window;
  c.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  return c;
}
AttentionConfig mla(std::int64_t heads, std::int64_t lora, std::int64_t rope) {
  AttentionConfig c;
  c.kind = AttentionKind::mla;
  c.n_heads = heads, c.kv_lora_rank = lora, c.qk_rope_head_dim = rope;
  c.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(lora + rope)));
  return c;
}

/// The same with a sink for each head: small, as large as scores are, and far above them.
Problem with_sinks(Problem p) {
  for (std::int64_t h = 0; h < p.config.n_heads; ++h) p.sinks.push_back(static_cast<float>(h % 5) * 3.0f - 4.0f);
  return p;
}

std::vector<Problem> problems() {
  std::vector<Problem> all, coded;
  unsigned seed = 1;
  // every group size, head dimensions that are no multiple of a vector, windows around page boundaries
  for (const auto& c : {gqa(1, 1, 16), gqa(4, 2, 24), gqa(6, 2, 40, 16), gqa(4, 1, 64, 64), gqa(5, 1, 80, 65), gqa(6, 1, 32, 1),
                        gqa(7, 1, 16, 63), gqa(8, 1, 128), gqa(16, 2, 96, 130), gqa(9, 1, 48), gqa(3, 3, 256), gqa(12, 1, 7)})
    for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16, KvType::int16, KvType::int8})
      all.emplace_back(c, type, type == KvType::int16 ? 200 : 130, seed += 3);
  all.emplace_back(gqa(2, 1, 16, 100), KvType::int16, 300, 5);
  for (const auto& c : {gqa(8, 1, 64), gqa(6, 2, 40, 16), gqa(16, 2, 24, 128), gqa(9, 1, 48, 65)})
    for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16, KvType::int16, KvType::int8})
      all.push_back(with_sinks(Problem(c, type, 200, seed += 3)));
  for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16, KvType::int16, KvType::int8}) {
    all.emplace_back(mla(4, 16, 8), type, 200, seed += 3);
    all.emplace_back(mla(4, 24, 16), type, 65, seed += 3);
  }
  all.emplace_back(mla(16, 512, 64), KvType::int16, 70, 7);
  all.emplace_back(mla(128, 512, 64), KvType::int16, 66, 8);
  all.emplace_back(mla(1, 16, 4096), KvType::int16, 66, 9);  // a query that is larger than all results of a tile
  for (const Problem& p : all)
    if (p.type == KvType::int16 || p.type == KvType::int8)
      coded.push_back(p), coded.back().activations = Activations::int8;
  all.insert(all.end(), coded.begin(), coded.end());
  return all;
}

std::string name(const Problem& p) {
  return (p.latent() ? "latent, heads " : "heads ") + std::to_string(p.config.n_heads) + "/" + std::to_string(p.kv_heads()) +
         " x " + std::to_string(p.k_dim()) + ", window " + std::to_string(p.config.sliding_window) + ", type " +
         std::to_string(static_cast<int>(p.type)) + (p.activations == Activations::int8 ? ", 16-bit codes" : "") +
         (p.sinks.empty() ? "" : ", sinks");
}

bool same_bits(const float* a, const float* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
}

TEST_CASE("attention is that of double precision over the rounded cache") {
  for (const Problem& p : problems()) {
    const KvPool pool(p.shape());
    const KvSequence s = p.sequence(pool);
    const std::vector<float> keys = p.kept(false), values = p.kept(true);
    const std::int64_t step = p.out_width() > 2000 ? 13 : 1;
    std::vector<std::vector<double>> wanted;
    for (std::int64_t position = p.n - 1; position >= 0; position -= step) wanted.push_back(p.reference(position, keys, values));
    on_each_architecture([&] {
      const std::vector<float> out = p.run_all(s, 2);
      double worst = 0;
      std::int64_t position = p.n - 1;
      for (const std::vector<double>& row : wanted) {
        for (std::size_t i = 0; i < row.size(); ++i) {
          const double got = static_cast<double>(out[static_cast<std::size_t>(position * p.out_width()) + i]);
          worst = std::max(worst, std::isnan(got) ? 1e30 : std::abs(got - row[i]));
        }
        position -= step;
      }
      // Codes of 13 bits (12 of the values): the largest score, of about 4 standard deviations, moves by some 1e-3.
      CHECK_MESSAGE(worst < (p.activations == Activations::int8 ? 2e-3 : 5e-6), name(p) << ": largest difference " << worst);
    });
  }
}

#if defined(__x86_64__) && !defined(MOXIE_NO_SIMDE)
TEST_CASE("the emulation of AVX-512 gives the bits of the processor") {
  const moxie::kernels::Table* native = moxie::kernels::find_table("avx512");
  if (!native) {
    MESSAGE("skipped: this CPU has no AVX-512 VNNI");
    return;
  }
  for (const Problem& p : problems()) {
    CAPTURE(name(p));
    const KvPool pool(p.shape());
    const KvSequence s = p.sequence(pool);
    tested = native;
    const std::vector<float> out = p.run_all(s);
    tested = &test::avx512_emulated_table();
    CHECK(same_bits(p.run_all(s), out));
  }
  tested = &moxie::kernels::native_table();
}
#endif

TEST_CASE("a row's bits do not depend on the batch, its chunks or the threads") {
  on_each_architecture([&] {
    for (const Problem& p : problems()) {
      CAPTURE(name(p));
      const KvPool pool(p.shape());
      const KvSequence s = p.sequence(pool), other = p.sequence(pool);
      const std::vector<float> all = p.run_all(s);
      for (int threads = 2; threads <= 4; ++threads) CHECK(same_bits(p.run_all(s, threads), all));

      std::mt19937 engine(3);
      for (std::int64_t begin = 0; begin < p.n;) {  // alone and in chunks
        const std::int64_t end = std::min<std::int64_t>(p.n, begin + 1 + static_cast<std::int64_t>(engine() % 30));
        std::vector<AttendRow> rows;
        for (std::int64_t i = begin; i < end; ++i) rows.push_back({&s, i});
        CHECK(same_bits(p.run(rows, 3).data(), all.data() + begin * p.out_width(), (end - begin) * p.out_width()));
        for (const int threads : {1, 4, 16})  // pages are shared out where there are more threads than heads
          CHECK(same_bits(p.run({{&s, begin}}, threads).data(), all.data() + begin * p.out_width(), p.out_width()));
        begin = end;
      }
      std::vector<AttendRow> mixed;  // rows of two sequences in any order
      for (int i = 0; i < 60; ++i)
        mixed.push_back({engine() % 2 != 0 ? &s : &other, static_cast<std::int64_t>(engine() % static_cast<unsigned>(p.n))});
      const std::vector<float> out = p.run(mixed, 2);
      for (std::size_t i = 0; i < mixed.size(); ++i)
        CHECK(same_bits(out.data() + static_cast<std::int64_t>(i) * p.out_width(), all.data() + mixed[i].position * p.out_width(),
                        p.out_width()));
    }
  });
}

TEST_CASE("a long context gives the same bits with any number of threads") {
  on_each_architecture([&] {
    std::vector<Problem> all = {Problem(mla(16, 512, 64), KvType::int16, 2500), Problem(mla(20, 16, 8), KvType::f32, 5000),
                                Problem(gqa(8, 1, 128, 4000), KvType::bf16, 5000),
                                with_sinks(Problem(gqa(8, 1, 64), KvType::int16, 3000))};
    for (const std::size_t i : {std::size_t{0}, std::size_t{3}}) all.push_back(all[i]), all.back().activations = Activations::int8;
    for (const Problem& p : all) {
      CAPTURE(name(p));
      const KvPool pool(p.shape());
      const KvSequence s = p.sequence(pool);
      for (const std::int64_t position : {p.n - 1, p.n / 2}) {
        const std::vector<float> alone = p.run({{&s, position}}), both = p.run({{&s, p.n - 1}, {&s, position}}, 7);
        for (const int threads : {2, 3, 8}) CHECK(same_bits(p.run({{&s, position}}, threads), alone));
        CHECK(same_bits(both.data() + p.out_width(), alone.data(), p.out_width()));
      }
    }
  });
}

TEST_CASE("keys that a row does not see change nothing, even when they are not numbers") {
  on_each_architecture([&] {
    for (const Problem& p : problems()) {
      CAPTURE(name(p));
      const KvPool pool(p.shape());
      const KvSequence clean = p.sequence(pool);
      const std::vector<float> all = p.run_all(clean);
      for (const std::int64_t position : {std::int64_t{0}, std::int64_t{5}, std::int64_t{63}, std::int64_t{64}, p.n - 1}) {
        if (position >= p.n) continue;
        Problem dirty = p;
        const std::int64_t begin =
            p.config.sliding_window == 0 ? 0 : std::max<std::int64_t>(0, position - p.config.sliding_window + 1);
        for (std::int64_t j = 0; j < p.n; ++j) {
          if (j >= begin && j <= position) continue;
          for (std::int64_t d = 0; d < p.k_width(); ++d) {
            dirty.k[static_cast<std::size_t>(j * p.k_width() + d)] = std::nanf("");
            if (!p.latent()) dirty.v[static_cast<std::size_t>(j * p.k_width() + d)] = std::numeric_limits<float>::infinity();
          }
        }
        const KvSequence s = dirty.sequence(pool);
        CHECK(same_bits(dirty.run({{&s, position}}).data(), all.data() + position * p.out_width(), p.out_width()));
      }
    }
  });
}

TEST_CASE("keys and values that are not finite make the rows that see them not finite, and no other") {
  on_each_architecture([&] {
    const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
    for (const Activations activations : {Activations::f32, Activations::int8})
      for (const KvType type : {KvType::f32, KvType::f16, KvType::bf16, KvType::int16, KvType::int8})
        for (const bool latent : {false, true})
          for (const float bad : {nan, infinity, -infinity}) {
            Problem p(latent ? mla(4, 24, 16) : gqa(4, 1, 40), type, 140, 3);
            p.activations = activations;
            CAPTURE(name(p));
            const KvPool pool(p.shape());
            const std::vector<float> clean = p.run_all(p.sequence(pool));
            p.k[static_cast<std::size_t>(70 * p.k_width() + 20)] = nan;
            (latent ? p.k : p.v)[static_cast<std::size_t>(70 * p.k_width() + 3)] = bad;
            const std::vector<float> out = p.run_all(p.sequence(pool), 2);
            CHECK(same_bits(out.data(), clean.data(), 70 * p.out_width()));
            for (std::int64_t i = 70; i < p.n; ++i)
              for (std::int64_t h = 0; h < 4; ++h)
                CHECK(!std::isfinite(out[static_cast<std::size_t>(i * p.out_width() + h * p.v_dim() + 3)]));
          }
  });
}

TEST_CASE("pages of int16 hold keys and values of any size, and zeros") {
  on_each_architecture([&] {
    for (const Activations activations : {Activations::f32, Activations::int8}) {
      Problem p(gqa(4, 2, 40), KvType::int16, 130, 3);
      p.activations = activations;
      for (float& x : p.q) x *= 1e12f;
      for (float& x : p.k) x *= 1e-12f;
      for (float& x : p.v) x *= 1e12f;
      for (std::int64_t i = 50 * p.k_width(); i < 52 * p.k_width(); ++i)
        p.k[static_cast<std::size_t>(i)] = p.v[static_cast<std::size_t>(i)] = 0;
      const KvPool pool(p.shape());
      const std::vector<float> out = p.run_all(p.sequence(pool), 2), keys = p.kept(false), values = p.kept(true);
      double worst = 0;
      for (std::int64_t position = 0; position < p.n; ++position) {
        const std::vector<double> wanted = p.reference(position, keys, values);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          const double got = static_cast<double>(out[static_cast<std::size_t>(position * p.out_width()) + i]);
          worst = std::max(worst, std::isfinite(got) ? std::abs(got - wanted[i]) / 1e12 : 1e30);
        }
      }
      CHECK(worst < (activations == Activations::int8 ? 2e-3 : 5e-6));
      p.v[static_cast<std::size_t>(100 * p.k_width())] = 1e15f;  // what the codes could not weigh becomes NaN, no wrong number
      const std::vector<float> large = p.run_all(p.sequence(pool), 2);
      CHECK(std::isnan(large[static_cast<std::size_t>(101 * p.out_width())]));
      CHECK(same_bits(large.data(), out.data(), 100 * p.out_width()));
    }
  });
}

TEST_CASE("a sink of minus infinity changes no bit, one far above the scores takes everything") {
  on_each_architecture([&] {
    for (const Activations activations : {Activations::f32, Activations::int8}) {
      Problem p(gqa(4, 2, 32), KvType::int16, 100);
      p.activations = activations;
      const KvPool pool(p.shape());
      const KvSequence s = p.sequence(pool);
      const std::vector<float> plain = p.run_all(s);
      p.sinks.assign(4, -std::numeric_limits<float>::infinity());
      CHECK(same_bits(p.run_all(s), plain));
      p.sinks.assign(4, 1e4f);
      const std::vector<float> nothing = p.run_all(s);
      CHECK(std::all_of(nothing.begin(), nothing.end(), [](float x) { return x == 0.0f; }));
    }
  });
}

TEST_CASE("positions written token by token give the bits of a prompt written at once") {
  on_each_architecture([&] {
    std::vector<Problem> all;
    for (const KvType type : {KvType::f16, KvType::int16, KvType::int8})
      all.insert(all.end(), {Problem(gqa(8, 2, 32), type, 140), Problem(mla(4, 24, 16), type, 140)});
    for (Problem& p : all) {
      p.activations = Activations::int8;
      const KvPool pool(p.shape());
      const std::vector<float> at_once = p.run_all(p.sequence(pool));
      KvSequence s(pool);
      for (std::int64_t i = 0; i < p.n; ++i) {
        p.write(s, i, i + 1);
        CHECK(same_bits(p.run({{&s, i}}).data(), at_once.data() + i * p.out_width(), p.out_width()));
        s.advance(1);
      }
    }
  });
}

TEST_CASE("forks share pages, and writing after a fork does not change the other") {
  const Problem a(gqa(4, 2, 24), KvType::f16, 200, 10), b(gqa(4, 2, 24), KvType::f16, 200, 20);
  for (const std::int64_t shared : {1, 63, 64, 65, 128, 150}) {
    CAPTURE(shared);
    const KvPool pool(a.shape());
    KvSequence s(pool);
    a.write(s, 0, shared);
    s.advance(shared);
    s.reserve(shared + 100);
    KvSequence t = s.fork();
    const std::size_t pages = static_cast<std::size_t>((shared + 63) / 64);
    CHECK(pool.bytes_in_use() == pages * pool.page_bytes());
    CHECK(t.length() == shared);
    CHECK(s.pages()[0] == t.pages()[0]);
    CHECK_THROWS_AS(s.write(1, shared, a.k.data(), a.v.data()), moxie::ArgumentError);  // what was reserved is no longer

    const std::size_t copied = shared % 64 != 0 ? 1 : 0, more = (200 + 63) / 64 - pages;
    CHECK(t.bytes_to_reserve(200) == (copied + more) * pool.page_bytes());
    CHECK(t.bytes_to_reserve(shared) == 0);
    b.write(t, shared, 200);
    t.advance(200 - shared);
    CHECK(pool.bytes_in_use() == (pages + copied + more) * pool.page_bytes());
    CHECK(s.bytes_to_reserve(200) == more * pool.page_bytes());  // its last page is its own again
    a.write(s, shared, 200);
    s.advance(200 - shared);

    Problem mixed = a;  // t: a's prefix, then b
    std::copy(b.k.begin() + shared * b.k_width(), b.k.end(), mixed.k.begin() + shared * b.k_width());
    std::copy(b.v.begin() + shared * b.k_width(), b.v.end(), mixed.v.begin() + shared * b.k_width());
    const KvPool alone(a.shape());
    CHECK(same_bits(a.run_all(s), a.run_all(a.sequence(alone))));
    CHECK(same_bits(mixed.run_all(t), mixed.run_all(mixed.sequence(alone))));
  }
}

TEST_CASE("rows that share pages have the bits of each row alone") {
  on_each_architecture([&] {
    for (const KvType type : {KvType::int16, KvType::int8, KvType::f16})
      for (const Problem& base : {Problem(gqa(8, 2, 40), type, 330), with_sinks(Problem(gqa(4, 2, 128), type, 330)),
                                  Problem(mla(20, 24, 16), type, 330), Problem(gqa(6, 2, 32, 200), type, 330)})
        for (const Activations activations : {Activations::f32, Activations::int8}) {
          Problem a = base;
          a.activations = activations;
          CAPTURE(name(a));
          const KvPool pool(a.shape());
          std::vector<KvSequence> sequences;
          std::vector<Problem> own;
          const std::vector<std::pair<std::int64_t, std::int64_t>> forks = {
              {300, 301}, {300, 310}, {192, 192}, {192, 193}, {128, 255}, {260, 320}, {260, 321}, {70, 140}, {330, 330}};
          KvSequence trunk = a.sequence(pool);
          for (const auto& [shared, length] : forks) {  // the trunk's first positions, then its own
            sequences.push_back(trunk.fork());
            sequences.back().truncate(shared);
            Problem p = a;
            const Problem other(a.config, type, 330, static_cast<unsigned>(100 + sequences.size()));
            std::copy(other.k.begin() + shared * a.k_width(), other.k.end(), p.k.begin() + shared * a.k_width());
            if (!a.latent()) std::copy(other.v.begin() + shared * a.k_width(), other.v.end(), p.v.begin() + shared * a.k_width());
            p.write(sequences.back(), shared, length);
            sequences.back().advance(length - shared);
            own.push_back(p);
          }
          std::vector<AttendRow> rows;
          for (const KvSequence& s : sequences) rows.push_back({&s, s.length() - 1});
          for (const int threads : {1, 2, 3, 8}) {
            const std::vector<float> together = a.run(rows, threads);
            for (std::size_t i = 0; i < rows.size(); ++i) {
              CAPTURE(i);
              const KvPool alone(a.shape());
              const KvSequence s = own[i].sequence(alone);
              Problem p = own[i];
              p.q = a.q;
              CHECK(same_bits(together.data() + static_cast<std::int64_t>(i) * a.out_width(),
                              p.run({{&s, rows[i].position}}).data(), a.out_width()));
            }
          }
        }
  });
}

TEST_CASE("truncated positions can be written again, and pages go back to the pool") {
  const Problem a(gqa(4, 2, 16), KvType::bf16, 150, 10), b(gqa(4, 2, 16), KvType::bf16, 150, 20);
  const KvPool pool(a.shape());
  {
    KvSequence s = b.sequence(pool);
    CHECK(pool.bytes_in_use() == 3 * pool.page_bytes());
    s.truncate(64);
    CHECK(s.length() == 64);
    CHECK(pool.bytes_in_use() == pool.page_bytes());
    s.truncate(0);
    CHECK(pool.bytes_in_use() == 0);
    a.write(s, 0, 150);
    s.advance(150);
    const KvPool fresh(a.shape());
    CHECK(same_bits(a.run_all(s), a.run_all(a.sequence(fresh))));
    KvSequence moved = std::move(s);
    CHECK(moved.length() == 150);
    CHECK_THROWS_AS(moved.truncate(151), moxie::ArgumentError);
    CHECK_THROWS_AS(moved.advance(1), moxie::ArgumentError);
    CHECK_THROWS_AS(moved.reserve(149), moxie::ArgumentError);
  }
  CHECK(pool.bytes_in_use() == 0);
}

TEST_CASE("a budget that is too small changes nothing, and says what is missing") {
  const Problem p(gqa(4, 2, 16), KvType::f16, 200);
  const KvPool sizes(p.shape());
  const KvPool pool(p.shape(), 3 * sizes.page_bytes() + 5);
  KvSequence s(pool);
  p.write(s, 0, 100);
  s.advance(100);
  KvSequence t = s.fork();
  const std::vector<float> before = p.run({{&s, 99}});
  CHECK(t.bytes_to_reserve(129) == 2 * pool.page_bytes());  // one copy, one new; only one page is left
  try {
    t.reserve(129);
    FAIL("accepted");
  } catch (const moxie::MemoryError& e) {
    const std::string text = e.what();
    CHECK(text.find("needs 2 more pages of " + std::to_string(pool.page_bytes()) + " bytes") != std::string::npos);
    CHECK(text.find("only 1 pages (" + std::to_string(pool.page_bytes()) + " bytes)") != std::string::npos);
  }
  CHECK(t.reserved() == 100);
  CHECK(t.pages()[1] == s.pages()[1]);
  CHECK(pool.bytes_in_use() == 2 * pool.page_bytes());
  CHECK(same_bits(p.run({{&t, 99}}), before));
  t.reserve(128);
  CHECK_THROWS_AS(s.reserve(193), moxie::MemoryError);
  t.truncate(0);
  s.reserve(192);  // its last page is not shared any more
  CHECK(same_bits(p.run({{&s, 99}}), before));
  for (const KvPool& any : {pool, sizes}) {  // with and without a budget
    KvSequence huge(any);
    CHECK_THROWS_AS(huge.reserve(std::numeric_limits<std::int64_t>::max()), moxie::MemoryError);
    CHECK(huge.reserved() == 0);
  }
}

TEST_CASE("recurrent states are zeros at first, shared by forks and copied when one goes on, and cannot go back") {
  KvShape shape{1, 1, 16, 16, KvType::f16, 2, 48};
  const KvPool sizes(shape), pool(shape, 3 * sizes.page_bytes() + 2 * sizes.state_bytes());
  REQUIRE(sizes.state_bytes() == 2 * 48 * sizeof(float));
  const auto holds = [](KvSequence& s, float value) {
    for (const std::int64_t layer : {0, 1})
      for (std::int64_t i = 0; i < 48; ++i)
        if (s.state(layer)[i] != value + static_cast<float>(layer)) return false;
    return true;
  };
  const auto set = [](KvSequence& s, float value) {
    for (const std::int64_t layer : {0, 1}) std::fill_n(s.state(layer), 48, value + static_cast<float>(layer));
  };
  KvSequence s(pool);
  CHECK(pool.bytes_in_use() == 0);
  s.reserve(10);
  std::fill_n(s.state(1), 48, 1.0f);
  CHECK(holds(s, 0.0f));
  set(s, 5.0f);
  s.advance(10);
  CHECK(pool.bytes_in_use() == pool.page_bytes() + pool.state_bytes());
  CHECK_THROWS_AS(s.truncate(9), moxie::ArgumentError);
  s.truncate(10);

  KvSequence t = s.fork();
  CHECK(pool.bytes_in_use() == pool.page_bytes() + pool.state_bytes());
  CHECK(t.bytes_to_reserve(11) == pool.page_bytes() + pool.state_bytes());
  t.reserve(11);
  CHECK(holds(t, 5.0f));
  set(t, 7.0f);
  t.advance(1);
  CHECK(s.bytes_to_reserve(11) == 0);  // its own again
  s.reserve(11);
  CHECK(holds(s, 5.0f));

  KvSequence u = t.fork();
  try {
    u.reserve(12);
    FAIL("accepted");
  } catch (const moxie::MemoryError& e) {
    CHECK(std::string(e.what()).find("a state of " + std::to_string(pool.state_bytes())) != std::string::npos);
  }
  CHECK(u.length() == 11);
  t.fail();
  CHECK(t.length() == 0);
  u.reserve(12);
  CHECK(holds(u, 7.0f));
  s.truncate(0);
  CHECK(pool.bytes_in_use() == pool.page_bytes() + pool.state_bytes());
  s.reserve(1);
  for (const std::int64_t layer : {0, 1}) CHECK(std::all_of(s.state(layer), s.state(layer) + 48, [](float x) { return x == 0.0f; }));
  KvSequence moved = std::move(u);
  CHECK(holds(moved, 7.0f));

  KvSequence plain((KvPool(KvShape{1, 1, 16, 16, KvType::f16})));
  plain.reserve(5);
  plain.advance(5);
  plain.fail();  // nothing is lost
  CHECK(plain.length() == 5);
  for (const auto& [n, floats] : {std::pair(0, 16), std::pair(1, 0), std::pair(1, 20), std::pair(-1, 16)})
    CHECK_THROWS_AS(KvPool(KvShape{1, 1, 16, 16, KvType::f16, n, floats}), moxie::ArgumentError);
  CHECK_THROWS_AS(KvPool(KvShape{1, 1, 16, 16, KvType::f16, 1 << 20, std::int64_t{1} << 30}), moxie::ArgumentError);
}

TEST_CASE("a budget holds for what was given back too: pages make room for states, and states for pages") {
  const KvShape shape{1, 8, 4096, 4096, KvType::f32, 1, 1 << 22};  // a page and a state of 16 MB each
  const KvPool sizes(shape);
  REQUIRE(sizes.page_bytes() == sizes.state_bytes());
  const KvPool pool(shape, 4 * sizes.page_bytes());
  KvSequence one(pool);
  one.reserve(3 * 64);  // three pages and a state
  CHECK_THROWS_AS(one.reserve(4 * 64), moxie::MemoryError);
  one = KvSequence(pool);
  CHECK(pool.bytes_held() == 4 * sizes.page_bytes());
  KvSequence a(pool), b(pool);
  a.reserve(1);
  b.reserve(1);  // two pages and two states: a page was let go
  CHECK(pool.bytes_in_use() == 4 * sizes.page_bytes());
  CHECK(pool.bytes_held() == 4 * sizes.page_bytes());
  a = KvSequence(pool);
  b.reserve(3 * 64);
  CHECK(pool.bytes_held() == 4 * sizes.page_bytes());

  // Of one kind alone, what was given back is used again, and none of it is let go.
  const KvPool plain(KvShape{1, 8, 64, 64, KvType::f32}, 100 * KvPool(KvShape{1, 8, 64, 64, KvType::f32}).page_bytes());
  KvSequence all(plain);
  all.reserve(100 * 64);
  const std::byte* const first = all.pages()[0];
  all.truncate(0);
  all.reserve(50 * 64);
  CHECK(plain.bytes_held() == plain.budget_bytes());
  CHECK(std::count(all.pages(), all.pages() + 50, first) == 1);
}

TEST_CASE("shapes, layers and positions that do not fit are refused") {
  const Problem p(gqa(4, 2, 16), KvType::f16, 10);
  const KvPool pool(p.shape());
  KvSequence s = p.sequence(pool);
  CHECK_THROWS_AS(p.run({{nullptr, 0}}), moxie::ArgumentError);
  std::vector<float> q(64), out(64);
  AttentionScratch scratch;
  const auto run = [&](const AttentionConfig& config, std::int64_t layer, std::int64_t position) {
    const AttendRow row{&s, position};
    moxie::attend_gqa(context(), config, layer, q.data(), 64, {&row, 1}, out.data(), 64, scratch);
  };
  CHECK_NOTHROW(run(p.config, 1, 9));
  CHECK_THROWS_AS(run(p.config, 2, 9), moxie::ArgumentError);
  CHECK_THROWS_AS(run(p.config, 1, 10), moxie::ArgumentError);
  CHECK_THROWS_AS(run(p.config, 1, -1), moxie::ArgumentError);
  CHECK_THROWS_AS(run(gqa(4, 2, 8), 1, 9), moxie::ArgumentError);
  CHECK_THROWS_AS(run(gqa(5, 2, 16), 1, 9), moxie::ArgumentError);
  CHECK_THROWS_AS(run(gqa(4, 2, 16, -1), 1, 9), moxie::ArgumentError);
  const Problem other(p.config, KvType::f32, 10);
  const KvPool other_pool(other.shape());
  const KvSequence floats = other.sequence(other_pool);
  for (const Activations activations : {Activations::f32, Activations::int8}) {
    Problem mixed = p;
    mixed.activations = activations;
    CHECK_NOTHROW(mixed.run({{&floats, 9}}));
    CHECK_THROWS_AS(mixed.run({{&s, 9}, {&floats, 9}}), moxie::ArgumentError);
    CHECK_THROWS_AS(mixed.run({{&floats, 9}, {&s, 9}}), moxie::ArgumentError);
  }
  s.reserve(20);
  CHECK_THROWS_AS(s.write(2, 10, q.data(), q.data()), moxie::ArgumentError);
  CHECK_THROWS_AS(s.write(0, 9, q.data(), q.data()), moxie::ArgumentError);
  CHECK_THROWS_AS(s.write(0, 20, q.data(), q.data()), moxie::ArgumentError);
  for (const auto& [known, type] : moxie::kv_type_names) {
    CHECK(moxie::kv_type_of(known) == type);
    CHECK(moxie::name_of(type) == known);
  }
  CHECK_THROWS_WITH_AS(moxie::kv_type_of("q8_0"), doctest::Contains("must be one of int16, f16"), moxie::ArgumentError);
  CHECK_THROWS_AS(KvPool({0, 1, 16, 16, KvType::f16}), moxie::ArgumentError);
  CHECK_THROWS_AS(KvPool({1, 2, 16, 0, KvType::f16}), moxie::ArgumentError);
  CHECK_THROWS_AS(KvPool({1 << 20, 1 << 20, 1 << 20, 1 << 20, KvType::f32}), moxie::ArgumentError);
}

MOXIE_KERNELS_BEGIN
TEST_CASE("the kernels' exponential is within two units, and exact at its ends") {
  using Floats = moxie::kernels::Floats<moxie::kernels::Native>;
  const auto exp = [](float x) {
    float values[Floats::size];
    moxie::kernels::exp_fixed(Floats(x)).store_unaligned(values);
    return values[0];
  };
  for (float x = -87.0f; x <= 88.0f; x += 0.00917f) {
    const double wanted = std::exp(static_cast<double>(x));
    CHECK(std::abs(static_cast<double>(exp(x)) / wanted - 1) <= 2 * 1.2e-7);
  }
  CHECK(exp(0.0f) == 1.0f);
  CHECK(exp(-88.0f) == 0.0f);
  CHECK(exp(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(exp(89.0f) == std::numeric_limits<float>::infinity());
  CHECK(std::isnan(exp(std::nanf(""))));
}
MOXIE_KERNELS_END

}  // namespace
