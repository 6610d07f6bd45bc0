// Promises of the kernels, for every architecture that this CPU runs or emulates.

#include <doctest/doctest.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <moxie/core/cpu.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/quant/formats.hpp>

#include "kernels_reference.hpp"
#include "tables.hpp"

using namespace moxie;
using kernels::ActivationRows;
using kernels::FormatKernels;
using kernels::MatmulArgs;
using kernels::Table;

namespace test {
const Table& avxvnni_emulated_table();
const Table& avxvnni_as_avx512_table();
}  // namespace test

namespace {

struct Tested {
  const Table* table;
  bool fused;  ///< has a fused multiply-add: its results are those of the model, bit for bit
};

std::vector<Tested> tables() {
  std::vector<Tested> list;
#if defined(__x86_64__)
  for (const Table* table : test::tables()) list.push_back({table, table->arch != std::string("generic")});
  [[maybe_unused]] const CpuFeatures cpu = cpu_features();
#if !defined(MOXIE_NO_SIMDE)
  if (cpu.avx2) list.push_back({&test::avxvnni_emulated_table(), true});
#endif
  if (cpu.avx512) list.push_back({&test::avxvnni_as_avx512_table(), true});
#else
  for (const Table* table : test::tables()) list.push_back({table, true});
#endif
  REQUIRE_FALSE(list.empty());
  return list;
}

struct Matrix {
  const FormatKernels* kernels;
  std::int64_t n, k;
  AlignedBuffer<std::byte> panels;

  Matrix(const Table& table, Dtype dtype, const test::FileRows& file, std::int64_t outputs, std::int64_t k_file)
      : kernels(table.find(dtype)), n(outputs), k((k_file + 31) / 32 * 32) {
    const auto bytes = static_cast<std::size_t>(kernels->panel_bytes(k));
    REQUIRE(bytes % 64 == 0);
    const std::int64_t count = (n + 15) / 16;
    panels.resize(bytes * static_cast<std::size_t>(count));
    for (std::int64_t p = 0; p < count; ++p) {
      const std::byte* rows[16] = {};
      for (std::int64_t r = 0; r < 16 && 16 * p + r < n; ++r) rows[r] = reinterpret_cast<const std::byte*>(file.row(16 * p + r));
      kernels->pack(rows, k_file, panels.data() + static_cast<std::size_t>(p) * bytes);
    }
  }
  /// [rows, n]; untouched elements stay -1.
  std::vector<float> multiply(bool int8, const ActivationRows& a, std::int64_t first, std::int64_t rows, std::int64_t begin, std::int64_t end) const {
    std::vector<float> out(static_cast<std::size_t>(rows * n), -1.0f);
    MatmulArgs args{panels.data(), n, k, begin, end, a, first, rows, out.data(), n};
    (int8 ? kernels->int8 : kernels->f32)(args);
    std::vector<float> again(out.size(), -1.0f);  // tuning changes nothing
    args.out = again.data();
    args.then = panels.data();
    for (const kernels::Tuning& tuning :
         {kernels::Tuning{false, false, 4096, 0, kernels->int8 ? 0 : 3072}, {true, false, 8192, 24}, {true, true, 4096, 1 << 20}}) {
      std::fill(again.begin(), again.end(), -1.0f);
      args.tuning = tuning;
      (int8 ? kernels->int8 : kernels->f32)(args);
      REQUIRE(std::memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0);
      if (!int8) break;
    }
    return out;
  }
};

/// Int8 rows as an architecture's kernels read them.
class Blocks {
 public:
  /// Rows `list` of a (all of them without one).
  Blocks(const Table& table, const test::Int8Rows& a, std::int64_t k, std::vector<std::int32_t> list = {}) {
    if (list.empty()) {
      list.resize(a.q.size() / static_cast<std::size_t>(k));
      std::iota(list.begin(), list.end(), 0);
    }
    blocks_.resize(list.size() * static_cast<std::size_t>(k / 32));
    rows_ = {blocks_.data(), static_cast<std::int64_t>(list.size()), k};
    for (std::int64_t r = 0; r < rows_.rows; ++r)
      for (std::int64_t b = 0; b < k / 32; ++b) {
        const std::int64_t row = list[static_cast<std::size_t>(r)];
        table.make_block(a.q.data() + row * k + 32 * b, a.d[static_cast<std::size_t>(row * (k / 32) + b)], rows_.block(r, b));
      }
  }
  ActivationRows view() const { return {nullptr, rows_}; }

 private:
  std::vector<kernels::Int8Block> blocks_;
  kernels::Int8Rows rows_;
};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

std::vector<float> decode(Dtype dtype, const test::FileRows& file, std::int64_t row, std::int64_t k) {
  std::vector<float> values(static_cast<std::size_t>(k));
  decode_row(dtype, reinterpret_cast<const std::byte*>(file.row(row)), values.data(), k);
  return values;
}

std::vector<float> random_floats(std::size_t n, unsigned seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace

#if defined(__x86_64__)
TEST_CASE("kernels are tuned for this CPU") {
  const CpuFeatures cpu = cpu_features();
  const bool intel = cpu.tuned_for == TunedFor::intel;
  const Table* avx512 = kernels::find_table("avx512");
  for (const char* arch : {"avx512", "avxvnni", "avx2", "generic"}) {
    const Table* table = kernels::find_table(arch);
    if (!table) continue;
    CAPTURE(std::string(arch));
    const bool zen4 = table == avx512 && cpu.tuned_for == TunedFor::zen4;
    for (const Dtype narrow : {Dtype::Q4_0, Dtype::Q6_K}) {
      CHECK(table->find(narrow)->tuning.fetch_second_level == (intel || zen4));
      CHECK(table->find(narrow)->tuning.fetch_distance == (intel ? 3072 : 8192));
      if (table == avx512) CHECK(table->find(narrow)->tuning.fetch_few == !zen4);
    }
    const kernels::Tuning wide = table->find(Dtype::Q8_0)->tuning;
    CHECK(wide.fetch_second_level == intel);
    CHECK(table->find(Dtype::F8_E4M3)->tuning.float_distance == (intel ? 3072 : 0));
    CHECK(wide.fetch_distance == (intel ? 3072 : zen4 ? 4096 : 8192));
    if (table == avx512)
      for (const bool does : {wide.fetch_few, wide.stage_from == 0}) CHECK(does == intel);
  }
  if (!avx512) MESSAGE("not tested: tuning for AVX-512 VNNI, which this CPU has not");
}
#endif

TEST_CASE("int8 products are the sums of exact block products in one order, bit for bit with fused multiply-adds") {
  for (const Tested& t : tables())
    for (const Dtype dtype : test::int8_formats)
      for (const std::int64_t k : {256, 1024}) {
        CAPTURE(std::string(t.table->arch));
        CAPTURE(std::string(dtype_info(dtype).name));
        const std::int64_t n = 37, rows = 5;
        const test::FileRows file = test::random_rows(dtype, n, k, 1);
        const test::Int8Rows a = test::random_int8_rows(rows, k, 2);
        const Matrix matrix(*t.table, dtype, file, n, k);
        const std::vector<float> out = matrix.multiply(true, Blocks(*t.table, a, k).view(), 0, rows, 0, 3);
        int wrong = 0;
        double worst = 0;
        for (std::int64_t o = 0; o < n; ++o) {
          const std::vector<float> w = decode(dtype, file, o, k);
          for (std::int64_t r = 0; r < rows; ++r) {
            const float got = out[static_cast<std::size_t>(r * n + o)];
            wrong += !same_bits(got, test::int8_model(dtype, file.row(o), a, r, k));
            double exact = 0, size = 0;
            for (std::int64_t i = 0; i < k; ++i) {
              const double product = static_cast<double>(w[static_cast<std::size_t>(i)]) * a.q[static_cast<std::size_t>(r * k + i)] *
                                     static_cast<double>(a.d[static_cast<std::size_t>((r * k + i) / 32)]);
              exact += product;
              size += std::fabs(product);
            }
            worst = std::max(worst, std::fabs(static_cast<double>(got) - exact) / size);
          }
        }
        CHECK(worst < 1e-6);
        if (t.fused) CHECK(wrong == 0);
      }
}

TEST_CASE("f32 products are sums of decoded weights in blocks of 32, bit for bit with fused multiply-adds") {
  for (const Tested& t : tables())
    for (int f = 0; f < t.table->n_formats; ++f) {
      const Dtype dtype = t.table->formats[f].dtype;
      CAPTURE(std::string(t.table->arch));
      CAPTURE(std::string(dtype_info(dtype).name));
      const std::int64_t n = 21, rows = 3, k_file = dtype_info(dtype).block_elements == 1 ? 250 : 512, k = (k_file + 31) / 32 * 32;
      const test::FileRows file = test::random_rows(dtype, n, k_file, 3);
      std::vector<float> x = random_floats(static_cast<std::size_t>(rows * k), 4);
      const Matrix matrix(*t.table, dtype, file, n, k_file);
      const std::vector<float> out = matrix.multiply(false, {x.data(), {}}, 0, rows, 0, 2);
      int wrong = 0;
      double worst = 0;
      for (std::int64_t o = 0; o < n; ++o) {
        std::vector<float> w = decode(dtype, file, o, k_file);
        w.resize(static_cast<std::size_t>(k));
        for (std::int64_t r = 0; r < rows; ++r) {
          float acc = 0;
          double exact = 0, size = 0;
          for (std::int64_t b = 0; b < k; b += 32) {
            float sum = 0;
            for (std::int64_t i = b; i < b + 32; ++i) {
              const float wi = w[static_cast<std::size_t>(i)], xi = x[static_cast<std::size_t>(r * k + i)];
              sum = std::fma(wi, xi, sum);
              exact += static_cast<double>(wi) * static_cast<double>(xi);
              size += std::fabs(static_cast<double>(wi) * static_cast<double>(xi));
            }
            acc += sum;
          }
          const float got = out[static_cast<std::size_t>(r * n + o)];
          wrong += !same_bits(got, acc);
          worst = std::max(worst, std::fabs(static_cast<double>(got) - exact) / size);
        }
      }
      CHECK(worst < 1e-6);
      if (t.fused) CHECK(wrong == 0);
    }
}

TEST_CASE("panels keep every weight: a product with a unit vector is the decoded weight") {
  for (const Tested& t : tables())
    for (int f = 0; f < t.table->n_formats; ++f) {
      const Dtype dtype = t.table->formats[f].dtype;
      CAPTURE(std::string(t.table->arch));
      CAPTURE(std::string(dtype_info(dtype).name));
      const std::int64_t n = 16, k = 512;
      const test::FileRows file = test::random_rows(dtype, n, k, 5);
      const Matrix matrix(*t.table, dtype, file, n, k);
      std::vector<float> units(static_cast<std::size_t>(k * k), 0.0f);
      for (std::int64_t i = 0; i < k; ++i) units[static_cast<std::size_t>(i * k + i)] = 1;
      const std::vector<float> out = matrix.multiply(false, {units.data(), {}}, 0, k, 0, 1);
      int wrong = 0;
      for (std::int64_t o = 0; o < n; ++o) {
        const std::vector<float> w = decode(dtype, file, o, k);
        for (std::int64_t i = 0; i < k; ++i) wrong += !(out[static_cast<std::size_t>(i * n + o)] == w[static_cast<std::size_t>(i)]);
      }
      CHECK(wrong == 0);
    }
}

TEST_CASE("an element's bits depend neither on the other rows, nor on lists, nor on panel ranges") {
  for (const Tested& t : tables())
    for (int f = 0; f < t.table->n_formats; ++f) {
      const Dtype dtype = t.table->formats[f].dtype;
      CAPTURE(std::string(t.table->arch));
      CAPTURE(std::string(dtype_info(dtype).name));
      for (const std::int64_t k : {dtype_info(dtype).block_elements == 256 ? 1280 : dtype_info(dtype).block_elements == 64 ? 704 : 672, 256}) {
        const std::int64_t n = 40, rows = 110;
        const test::FileRows file = test::random_rows(dtype, n, k, 6);
        const test::Int8Rows a = test::random_int8_rows(rows, k, 7);
        const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * k), 8);
        const Matrix matrix(*t.table, dtype, file, n, k);
        for (const bool int8 : {false, true}) {
          if (int8 && !matrix.kernels->int8) continue;
          const auto with = [&](const std::vector<std::int32_t>& list, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
            if (int8) return matrix.multiply(true, Blocks(*t.table, a, k, list).view(), first, count, begin, end);
            std::vector<float> listed;
            for (const std::int32_t row : list) listed.insert(listed.end(), x.begin() + row * k, x.begin() + (row + 1) * k);
            return matrix.multiply(false, {list.empty() ? x.data() : listed.data(), {}}, first, count, begin, end);
          };
          std::vector<float> single;
          for (std::int32_t r = 0; r < rows; ++r) {
            const std::vector<float> one = with({r}, 0, 1, 0, 3);
            single.insert(single.end(), one.begin(), one.end());
          }
          int wrong = 0;
          for (const std::int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 23, 24, 27, 33, 95, 97, 110}) {
            std::vector<std::int32_t> first_rows(static_cast<std::size_t>(count));
            std::iota(first_rows.begin(), first_rows.end(), 0);
            std::vector<float> batch = with(first_rows, 0, count, 0, 3);
            wrong += std::memcmp(batch.data(), single.data(), batch.size() * sizeof(float)) != 0;
            const std::int64_t first = rows - count;  // rows in the middle of groups
            batch = with({}, first, count, 0, 3);
            wrong += std::memcmp(batch.data(), single.data() + first * n, batch.size() * sizeof(float)) != 0;
          }
          CHECK(wrong == 0);
          std::vector<std::int32_t> list(19);
          for (std::size_t i = 0; i < list.size(); ++i) list[i] = static_cast<std::int32_t>(i * 37 % 110);
          for (std::int64_t begin = 0; begin < 3; ++begin)
            for (std::int64_t end = begin + 1; end <= 3; ++end) {
              const std::vector<float> part = with(list, 0, 19, begin, end);
              for (std::size_t i = 0; i < list.size(); ++i)
                for (std::int64_t o = 0; o < n; ++o) {
                  const bool inside = o >= 16 * begin && o < 16 * end;
                  const float want = inside ? single[static_cast<std::size_t>(list[i] * n + o)] : -1.0f;
                  wrong += !same_bits(part[i * static_cast<std::size_t>(n) + static_cast<std::size_t>(o)], want);
                }
            }
          CHECK(wrong == 0);
        }
      }
    }
}

TEST_CASE("the largest codes and activations do not saturate") {
  for (const Tested& t : tables())
    for (const Dtype dtype : test::int8_formats)
      for (const int fill : {0xff, 0x00, 0x80, 0x7f})
        for (const int pattern : {0, 1, 2, 3}) {
          CAPTURE(std::string(t.table->arch));
          CAPTURE(std::string(dtype_info(dtype).name));
          const std::int64_t n = 16, k = 256;
          test::FileRows file = test::random_rows(dtype, n, k, 9);
          std::vector<std::uint8_t> scales = file.bytes;
          std::fill(file.bytes.begin(), file.bytes.end(), static_cast<std::uint8_t>(fill));
          const DtypeInfo& info = dtype_info(dtype);
          for (std::size_t i = 0; i < file.bytes.size(); i += info.block_bytes)
            for (const int field : test::f16_fields(dtype)) std::memcpy(&file.bytes[i + static_cast<std::size_t>(field)], &scales[i + static_cast<std::size_t>(field)], 2);
          std::vector<std::int8_t> q(static_cast<std::size_t>(k));
          for (std::size_t i = 0; i < q.size(); ++i)
            q[i] = static_cast<std::int8_t>(pattern == 0 ? 127 : pattern == 1 ? -127 : (pattern == 2 ? i % 2 : i / 2 % 2) ? 127 : -127);
          for (std::size_t i = 0; i < file.bytes.size(); i += info.block_bytes) {
            const std::size_t scale_bytes = dtype == Dtype::MXFP4 ? 1 : dtype == Dtype::NVFP4 ? 4 : 0;
            std::copy_n(scales.begin() + static_cast<std::ptrdiff_t>(i), scale_bytes, file.bytes.begin() + static_cast<std::ptrdiff_t>(i));
            if (dtype == Dtype::IQ1_M)
              for (const std::size_t at : {49u, 51u, 53u, 55u}) file.bytes[i + at] = static_cast<std::uint8_t>(scales[i + at] / 16 * 16 + fill % 16);
          }
          CHECK(std::isfinite(test::int8_model(dtype, file.row(0), test::int8_rows(std::vector<std::int8_t>(256), 10), 0, k)));
          const test::Int8Rows a = test::int8_rows(q, 10);
          const Matrix matrix(*t.table, dtype, file, n, k);
          const std::vector<float> out = matrix.multiply(true, Blocks(*t.table, a, k).view(), 0, 1, 0, 1);
          double worst = 0;
          int wrong = 0;
          for (std::int64_t o = 0; o < n; ++o) {
            const float model = test::int8_model(dtype, file.row(o), a, 0, k);
            wrong += !same_bits(out[static_cast<std::size_t>(o)], model);
            worst = std::max(worst, std::fabs(static_cast<double>(out[static_cast<std::size_t>(o)] - model)) / (1 + std::fabs(static_cast<double>(model))));
          }
          CHECK(worst < 1e-5);
          if (t.fused) CHECK(wrong == 0);
        }
}

TEST_CASE("the smallest scales give the same bits on every architecture") {
  for (const Tested& t : tables())
    for (const Dtype dtype : test::int8_formats) {
      if (!t.fused) continue;
      CAPTURE(std::string(t.table->arch));
      CAPTURE(std::string(dtype_info(dtype).name));
      const std::int64_t n = 16, k = 256, rows = 4;
      const test::FileRows file = test::random_rows(dtype, n, k, 12);
      test::Int8Rows a = test::random_int8_rows(rows, k, 13);
      for (std::size_t i = 0; i < a.d.size(); ++i) a.d[i] *= std::ldexp(1.0f, -110 - static_cast<int>(i % 16));
      const std::vector<float> out = Matrix(*t.table, dtype, file, n, k).multiply(true, Blocks(*t.table, a, k).view(), 0, rows, 0, 1);
      int wrong = 0;
      for (std::int64_t o = 0; o < n; ++o)
        for (std::int64_t r = 0; r < rows; ++r)
          wrong += !same_bits(out[static_cast<std::size_t>(r * n + o)], test::int8_model(dtype, file.row(o), a, r, k));
      CHECK(wrong == 0);
    }
}

TEST_CASE("zeros of MXFP4 have an ordinary scale in a panel: subnormal ones are slow") {
  std::byte block[17] = {}, panel[320];
  block[5] = std::byte{0x80};  // minus zero
  const std::byte* rows[16] = {block};
  for (const Tested& t : tables()) {
    const FormatKernels& kernels = *t.table->find(Dtype::MXFP4);
    kernels.pack(rows, 32, panel);
    for (int r = 0; r < 16; ++r) CHECK(panel[256 + r] == std::byte{127});
    block[5] = std::byte{0x90};
    kernels.pack(rows, 32, panel);
    CHECK(panel[256] == std::byte{0});
    CHECK(panel[257] == std::byte{127});
    block[5] = std::byte{0x80};
  }
}

#if defined(__linux__)
TEST_CASE("products read and write nothing behind their matrices, activations and results") {
  // Memory whose next page cannot be touched.
  struct Guarded {
    explicit Guarded(std::int64_t size) : pages((static_cast<std::size_t>(size) + page - 1) / page * page) {
      void* memory = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      REQUIRE(memory != MAP_FAILED);
      begin = static_cast<std::byte*>(memory);
      REQUIRE(mprotect(begin + pages, page, PROT_NONE) == 0);
      data = begin + pages - size;
    }
    ~Guarded() { munmap(begin, pages + page); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), pages;
    std::byte *begin, *data;
  };
  for (const Tested& t : tables())
    for (const Dtype dtype : test::int8_formats)
      for (const std::int64_t n : {24, 48})
        for (const std::int64_t rows : {1, 3, 6, 11, 31}) {
          const std::int64_t k = 512, panels = (n + 15) / 16;
          const Matrix matrix(*t.table, dtype, test::random_rows(dtype, n, k, 9), n, k);
          const Blocks blocks(*t.table, test::random_int8_rows(rows, k, 10), k);
          const std::int64_t bytes = panels * matrix.kernels->panel_bytes(k),
                             block_bytes = rows * (k / 32) * static_cast<std::int64_t>(sizeof(kernels::Int8Block));
          const Guarded weights(bytes), activations(block_bytes), out(rows * n * 4);
          std::memcpy(weights.data, matrix.panels.data(), static_cast<std::size_t>(bytes));
          std::memcpy(activations.data, blocks.view().q.blocks, static_cast<std::size_t>(block_bytes));
          const kernels::Int8Rows q{reinterpret_cast<kernels::Int8Block*>(activations.data), rows, k};
          float* to = reinterpret_cast<float*>(out.data);
          matrix.kernels->int8({weights.data, n, k, 0, panels, {nullptr, q}, 0, rows, to, n});
          const std::vector<float> want = matrix.multiply(true, blocks.view(), 0, rows, 0, panels);
          CHECK(std::memcmp(to, want.data(), want.size() * sizeof(float)) == 0);
        }
}
#endif

TEST_CASE("panels are at most 3% larger than the file's blocks, those of grids and ternary codes as large as documented") {
  for (const Tested& t : tables())
    for (int f = 0; f < t.table->n_formats; ++f) {
      const FormatKernels& kernels = t.table->formats[f];
      const auto file = static_cast<double>(16 * row_bytes(kernels.dtype, 2048));
      double most = 1.03 * file;
      switch (kernels.dtype) {
        case Dtype::IQ1_S:
        case Dtype::IQ1_M: most = 2.5 / 8 * 16 * 2048; break;
        case Dtype::IQ2_XXS:
        case Dtype::IQ2_XS:
        case Dtype::IQ2_S: most = 3.375 / 8 * 16 * 2048; break;
        case Dtype::IQ3_XXS:
        case Dtype::IQ3_S: most = 4.25 / 8 * 16 * 2048; break;
        case Dtype::TQ1_0:
        case Dtype::TQ2_0: most = 2.625 / 8 * 16 * 2048; break;
        default: break;
      }
      CHECK(static_cast<double>(kernels.panel_bytes(2048)) <= most);
    }
}

TEST_CASE("F8_E4M3 weights are multiplied by the scale of their 128 inputs") {
  for (const Tested& t : tables()) {
    const std::int64_t n = 16, k = 300, padded = 320;
    const test::FileRows file = test::random_rows(Dtype::F8_E4M3, n, k, 11);
    const FormatKernels* kernels = t.table->find(Dtype::F8_E4M3);
    AlignedBuffer<std::byte> panel(static_cast<std::size_t>(kernels->panel_bytes(padded)));
    const std::byte* rows[16];
    for (std::int64_t r = 0; r < 16; ++r) rows[r] = reinterpret_cast<const std::byte*>(file.row(r));
    const float scales[3] = {0.37f, 1.9e-3f, 12.1f};
    kernels->pack_scaled(rows, k, scales, panel.data());
    std::vector<float> units(static_cast<std::size_t>(padded * padded), 0.0f), out(static_cast<std::size_t>(padded * n));
    for (std::int64_t i = 0; i < padded; ++i) units[static_cast<std::size_t>(i * padded + i)] = 1;
    kernels->f32({panel.data(), n, padded, 0, 1, {units.data(), {}}, 0, padded, out.data(), n});
    int wrong = 0;
    for (std::int64_t o = 0; o < n; ++o)
      for (std::int64_t i = 0; i < padded; ++i) {
        const float want = i < k ? e4m3_to_f32(file.row(o)[i]) * scales[i / 128] : 0.0f;
        wrong += !(out[static_cast<std::size_t>(i * n + o)] == want);
      }
    CHECK(wrong == 0);
  }
}

TEST_CASE("every f16 and bf16 code is decoded exactly, subnormal ones, infinities and NaN too") {
  const std::int64_t n = 16, k = 4096;
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(n * k));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i);
  for (const Tested& t : tables())
    for (const Dtype dtype : {Dtype::F16, Dtype::BF16}) {
      CAPTURE(t.table->arch);
      CAPTURE(static_cast<int>(dtype));
      const FormatKernels* kernels = t.table->find(dtype);
      AlignedBuffer<std::byte> panel(static_cast<std::size_t>(kernels->panel_bytes(k)));
      AlignedBuffer<float> out(codes.size());
      const std::byte* rows[16];
      for (std::int64_t r = 0; r < n; ++r) rows[r] = reinterpret_cast<const std::byte*>(codes.data() + r * k);
      kernels->pack(rows, k, panel.data());
      kernels->unpack(panel.data(), k, 0, static_cast<int>(k / 32), out.data(), n);
      int wrong = 0;
      for (std::int64_t r = 0; r < n; ++r)
        for (std::int64_t i = 0; i < k; ++i) {
          const std::uint16_t code = codes[static_cast<std::size_t>(r * k + i)];
          const float want = dtype == Dtype::F16 ? f16_to_f32(code) : bf16_to_f32(code), got = out.data()[i * n + r];
          wrong += std::isnan(want) ? !std::isnan(got) : std::bit_cast<std::uint32_t>(got) != std::bit_cast<std::uint32_t>(want);
        }
      CHECK(wrong == 0);
    }
}

TEST_CASE("every e4m3 code is decoded exactly, NaN too") {
  for (const Tested& t : tables()) {
    const std::int64_t n = 16, k = 32;
    test::FileRows file = test::random_rows(Dtype::F8_E4M3, n, k, 12);
    for (int half = 0; half < 2; ++half) {
      // rows hold codes 128 half + 8 r + (i % 8); the unit vector i reads column i
      for (std::int64_t r = 0; r < n; ++r)
        for (std::int64_t i = 0; i < k; ++i) file.bytes[static_cast<std::size_t>(r * k + i)] = static_cast<std::uint8_t>(128 * half + 8 * r + i % 8);
      const Matrix matrix(*t.table, Dtype::F8_E4M3, file, n, k);
      for (std::int64_t i = 0; i < 8; ++i) {
        // all other weights are multiplied by 0: take the row with the NaN out of the comparison of numbers
        std::vector<float> x(32, 0.0f);
        x[static_cast<std::size_t>(i)] = 1;
        const std::vector<float> out = matrix.multiply(false, {x.data(), {}}, 0, 1, 0, 1);
        for (int r = 0; r < 15; ++r) CHECK(out[static_cast<std::size_t>(r)] == e4m3_to_f32(static_cast<std::uint8_t>(128 * half + 8 * r + i)));
        CHECK(std::isnan(out[15]));
      }
    }
  }
}

TEST_CASE("int8 activations are as near as rounding by the largest value is, on every architecture the same") {
  const std::int64_t k = 320;
  std::vector<float> x = random_floats(static_cast<std::size_t>(k), 13);
  for (std::size_t i = 32; i < 64; ++i) x[i] = 0;
  for (std::size_t i = 64; i < 96; ++i) x[i] *= 1e-40f;  // subnormal
  for (std::size_t i = 96; i < 128; ++i) x[i] *= 1e-20f;
  for (std::size_t i = 128; i < 160; ++i) x[i] *= 1e30f;
  std::vector<std::int8_t> first;
  for (const Tested& t : tables()) {
    CAPTURE(std::string(t.table->arch));
    std::vector<kernels::Int8Block> blocks(10);
    t.table->quantize(x.data(), k, blocks.data(), 1);
    std::vector<std::int8_t> q;
    std::vector<float> d;
    for (const kernels::Int8Block& block : blocks) {
      q.insert(q.end(), block.q, block.q + 32);
      d.push_back(block.d);
    }
    if (first.empty()) first = q;
    CHECK(first == q);
    for (std::size_t b = 0; b < 10; ++b) {
      CAPTURE(b);
      double largest = 0, error = 0, usual = 0;
      int extreme = 0;
      for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
      for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) {
        const double scale = largest / 127, xi = static_cast<double>(x[i]), code = scale > 0 ? std::nearbyint(xi / scale) : 0;
        error += std::pow(xi - static_cast<double>(d[b]) * q[i], 2);
        usual += std::pow(xi - scale * code, 2);
        extreme = std::max(extreme, std::abs(static_cast<int>(q[i])));
      }
      CHECK(extreme <= 127);
      kernels::Int8Block made;  // the words beside the codes are those of the codes
      t.table->make_block(q.data() + 32 * b, d[b], &made);
      CHECK(std::memcmp(&made, &blocks[b], sizeof made) == 0);
      if (largest > 1e-30) CHECK(error <= usual * 1.00001);
    }
    CHECK(d[1] == 0.0f);
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> broken = x;
      broken[5] = bad;
      t.table->quantize(broken.data(), k, blocks.data(), 1);
      CHECK_FALSE(std::isfinite(blocks[0].d));
      CHECK(std::isfinite(blocks[1].d));
    }
  }
}

TEST_CASE("row operations agree with double precision, whatever the length and the alignment") {
  for (const Tested& t : tables()) {
    CAPTURE(std::string(t.table->arch));
    for (const std::size_t n : {1u, 7u, 16u, 31u, 100u, 515u, 2048u}) {
      const std::vector<float> x = random_floats(n + 1, 14, 3), w = random_floats(n + 1, 15);
      for (const std::size_t shift : {0u, 1u}) {  // the same numbers at another alignment: the same bits
        std::vector<float> a(n + shift), b(n + shift), y(n + shift);
        std::copy_n(x.begin(), n, a.begin() + static_cast<std::ptrdiff_t>(shift));
        std::copy_n(w.begin(), n, b.begin() + static_cast<std::ptrdiff_t>(shift));
        const float *pa = a.data() + shift, *pb = b.data() + shift;
        float* py = y.data() + shift;
        static std::vector<float> first;
        const auto steady = [&](std::vector<float>& kept) {
          const std::vector<float> now(py, py + n);
          if (shift == 0) kept = now;
          return std::memcmp(kept.data(), now.data(), n * sizeof(float)) == 0;
        };
        double squares = 0;
        for (std::size_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);

        t.table->rms_norm(pa, pb, 1e-6f, static_cast<std::int64_t>(n), py);
        for (std::size_t i = 0; i < n; ++i)
          REQUIRE(static_cast<double>(py[i]) == doctest::Approx(static_cast<double>(x[i]) * factor * static_cast<double>(w[i])).epsilon(4e-7));
        static std::vector<float> kept[6];
        CHECK(steady(kept[0]));
        t.table->rms_norm(pa, nullptr, 1e-6f, static_cast<std::int64_t>(n), py);
        CHECK(steady(kept[1]));

        t.table->swiglu(pa, pb, static_cast<std::int64_t>(n), py);
        for (std::size_t i = 0; i < n; ++i) {
          const auto g = static_cast<double>(x[i]);
          REQUIRE(static_cast<double>(py[i]) == doctest::Approx(g / (1 + std::exp(-g)) * static_cast<double>(w[i])).epsilon(1e-6));
        }
        CHECK(steady(kept[2]));

        t.table->clamped_swiglu(pa, pb, 1.5f, static_cast<std::int64_t>(n), py);
        for (std::size_t i = 0; i < n; ++i) {
          const double g = std::min(static_cast<double>(x[i]), 1.5), u = std::clamp(static_cast<double>(w[i]), -1.5, 1.5);
          REQUIRE(static_cast<double>(py[i]) == doctest::Approx((u + 1) * g / (1 + std::exp(-1.702 * g))).epsilon(2e-6));
        }
        CHECK(steady(kept[4]));

        t.table->relu_squared(pa, static_cast<std::int64_t>(n), py);
        for (std::size_t i = 0; i < n; ++i) REQUIRE(same_bits(py[i], x[i] > 0.0f ? x[i] * x[i] : 0.0f));
        CHECK(steady(kept[5]));

        std::copy_n(pa, n, py);
        t.table->axpy(0.3f, pb, static_cast<std::int64_t>(n), py);
        for (std::size_t i = 0; i < n; ++i) {
          const float fused = std::fma(0.3f, w[i], x[i]);
          if (t.fused) REQUIRE(same_bits(py[i], fused));
          REQUIRE(py[i] == doctest::Approx(fused).epsilon(1e-5));
        }
        t.table->add(pa, static_cast<std::int64_t>(n), py);
        CHECK(steady(kept[3]));

        for (const float temperature : {1.0f, 0.7f}) {
          const kernels::SoftmaxPartial p = t.table->softmax_partial(pa, static_cast<std::int64_t>(n), temperature);
          double sum = 0, weighted = 0;
          const float top = *std::max_element(pa, pa + n) / temperature;
          for (std::size_t i = 0; i < n; ++i) {
            const double z = static_cast<double>(pa[i] / temperature) - static_cast<double>(top);
            sum += std::exp(z);
            weighted += std::exp(z) * z;
          }
          CHECK(same_bits(p.max, top));
          CHECK(static_cast<double>(p.sum) == doctest::Approx(sum).epsilon(1e-6));
          CHECK(std::fabs(static_cast<double>(p.weighted) - weighted) < 1e-5 * sum);
        }
      }
    }
  }
}

TEST_CASE("the gated delta rule agrees with double precision, and gives the same bits in any portions of rows and columns") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  const auto fill = [&](std::size_t n, auto& distribution) {
    std::vector<float> values(n);
    for (float& v : values) v = distribution(random);
    return values;
  };
  for (const std::int64_t k_dim : {1, 4, 22, 128})
    for (const std::int64_t columns : {1, 5, 16, 31, 32}) {
      CAPTURE(k_dim);
      CAPTURE(columns);
      constexpr std::int64_t n = 9, stride = 140, gates = 3;
      std::vector<std::int32_t> rows(n);
      std::iota(rows.begin(), rows.end(), 0);
      std::shuffle(rows.begin(), rows.end(), random);
      const auto size = static_cast<std::size_t>(n * stride);
      std::vector<float> q = fill(size, normal), k = fill(size, normal), v = fill(size, normal);
      for (float& x : k) x /= std::sqrt(static_cast<float>(k_dim));
      const std::vector<float> decay = fill(n * gates, unit), beta = fill(n * gates, unit);
      const std::vector<float> start = fill(static_cast<std::size_t>(k_dim * kernels::delta_columns), normal);

      std::vector<double> state(start.begin(), start.end()), expected(size);
      for (const std::int32_t r : rows)
        for (std::int64_t c = 0; c < columns; ++c) {
          const auto at = [&](std::int64_t d) -> double& { return state[static_cast<std::size_t>(d * kernels::delta_columns + c)]; };
          const auto of = [&](const std::vector<float>& x, std::int64_t d) { return static_cast<double>(x[static_cast<std::size_t>(r * stride + d)]); };
          const auto gate = static_cast<std::size_t>(r * gates + 1);
          double seen = 0.0, out = 0.0;
          for (std::int64_t d = 0; d < k_dim; ++d) seen += of(k, d) * (at(d) *= static_cast<double>(decay[gate]));
          const double change = static_cast<double>(beta[gate]) * (of(v, c) - seen);
          for (std::int64_t d = 0; d < k_dim; ++d) out += of(q, d) * (at(d) += of(k, d) * change);
          expected[static_cast<std::size_t>(r * stride + c)] = out;
        }
      for (const Tested& t : tables()) {
        CAPTURE(std::string(t.table->arch));
        const auto run = [&](std::int64_t cut, std::int64_t width, std::vector<float>& s) {
          std::vector<float> out(size, -7.0f);
          for (const auto& [begin, end] : {std::pair(std::int64_t{0}, cut), std::pair(cut, n)})
            t.table->delta_rule({.rows = rows.data() + begin,
                                 .n_rows = end - begin,
                                 .q = q.data(),
                                 .k = k.data(),
                                 .qk_stride = stride,
                                 .v = v.data(),
                                 .v_stride = stride,
                                 .decay = decay.data() + 1,
                                 .beta = beta.data() + 1,
                                 .gate_stride = gates,
                                 .state = s.data(),
                                 .out = out.data(),
                                 .k_dim = k_dim,
                                 .columns = width});
          return out;
        };
        std::vector<float> s = start, s_cut = start, s_narrow = start;
        const std::vector<float> out = run(0, columns, s), cut = run(4, columns, s_cut), narrow = run(0, (columns + 1) / 2, s_narrow);
        CHECK(std::memcmp(out.data(), cut.data(), size * sizeof(float)) == 0);
        double scale = 1.0;
        for (const double x : expected) scale = std::max(scale, std::abs(x));
        for (std::int64_t r = 0; r < n; ++r)
          for (std::int64_t c = 0; c < stride; ++c) {
            const auto i = static_cast<std::size_t>(r * stride + c);
            if (c >= columns) {
              REQUIRE(out[i] == -7.0f);  // nothing is written beside the columns
              continue;
            }
            REQUIRE(std::abs(static_cast<double>(out[i]) - expected[i]) < 2e-6 * scale);
            if (c < (columns + 1) / 2) REQUIRE(same_bits(out[i], narrow[i]));
          }
        for (std::int64_t d = 0; d < k_dim; ++d)
          for (std::int64_t c = 0; c < columns; ++c) {
            const auto i = static_cast<std::size_t>(d * kernels::delta_columns + c);
            REQUIRE(std::abs(static_cast<double>(s[i]) - state[i]) < 2e-6 * scale);
            REQUIRE(same_bits(s[i], s_cut[i]));
          }
      }
    }
}

TEST_CASE("a causal convolution and the sigmoid gate agree with double precision, whatever the length") {
  std::mt19937 random(18);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const std::int64_t n : {1, 3, 16, 21, 64, 77})
    for (const std::int64_t taps : {1, 3, 4, 16}) {
      CAPTURE(n);
      CAPTURE(taps);
      const auto size = static_cast<std::size_t>(n * taps);
      std::vector<float> w(size), x(size), y(static_cast<std::size_t>(n) + 1, -7.0f);
      for (float& f : w) f = normal(random);
      for (float& f : x) f = normal(random);
      std::vector<const float*> inputs;
      for (std::int64_t t = 0; t < taps; ++t) inputs.push_back(x.data() + (taps - 1 - t) * n);
      for (const Tested& t : tables()) {
        CAPTURE(std::string(t.table->arch));
        for (const bool activate : {false, true}) {
          t.table->causal_conv(inputs.data(), w.data(), n, taps, n, activate, y.data());
          for (std::int64_t c = 0; c < n; ++c) {
            double sum = 0.0, magnitude = 1.0;
            for (std::int64_t tap = 0; tap < taps; ++tap) {
              const double product = static_cast<double>(w[static_cast<std::size_t>(tap * n + c)]) * static_cast<double>(inputs[static_cast<std::size_t>(tap)][c]);
              sum += product;
              magnitude += std::abs(product);
            }
            const double expected = activate ? sum / (1.0 + std::exp(-sum)) : sum;
            REQUIRE(std::abs(static_cast<double>(y[static_cast<std::size_t>(c)]) - expected) < 1e-6 * magnitude);
          }
          REQUIRE(y.back() == -7.0f);
        }
        std::copy_n(x.begin(), n, y.begin());
        t.table->sigmoid_gate(w.data(), n, y.data());
        for (std::int64_t c = 0; c < n; ++c) {
          const auto i = static_cast<std::size_t>(c);
          REQUIRE(static_cast<double>(y[i]) == doctest::Approx(static_cast<double>(x[i]) / (1.0 + std::exp(-static_cast<double>(w[i])))).epsilon(1e-6));
        }
        REQUIRE(y.back() == -7.0f);
      }
    }
}

TEST_CASE("a float is split into two bf16 as each is rounded, NaN too") {
  std::vector<float> x = random_floats(992, 3);
  std::mt19937 random(5);
  for (int i = 0; i < 1000; ++i) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));  // of any kind
  for (const std::uint32_t bits : {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fffffffu, 0xffffffffu, 0x7f7fffffu,
                                   1u, 0x3f808000u, 0x3f818000u, 0x3f808001u})
    x.push_back(std::bit_cast<float>(bits));
  while (x.size() % 16 != 0) x.push_back(1.0f);
  for (const Tested& t : tables()) {
    CAPTURE(std::string(t.table->arch));
    std::vector<std::uint16_t> high(x.size()), low(x.size());
    t.table->split_bf16(x.data(), static_cast<std::int64_t>(x.size()), high.data(), low.data());
    int wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::uint16_t whole = f32_to_bf16(x[i]), rest = f32_to_bf16(x[i] - bf16_to_f32(whole));
      // Which NaN an operation gives is not said.
      wrong += high[i] != whole || (std::isnan(bf16_to_f32(rest)) ? !std::isnan(bf16_to_f32(low[i])) : low[i] != rest);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("logits of minus infinity have probability zero") {
  const float none = -std::numeric_limits<float>::infinity();
  for (const Tested& t : tables()) {
    std::vector<float> z(37, none);
    CHECK(t.table->softmax_partial(z.data(), 37, 1).sum == 0.0f);
    CHECK(t.table->softmax_partial(z.data(), 37, 1).weighted == 0.0f);
    CHECK(t.table->softmax_partial(z.data(), 37, 1).max == none);
    z[20] = 3;
    const kernels::SoftmaxPartial p = t.table->softmax_partial(z.data(), 37, 1);
    CHECK(p.max == 3.0f);
    CHECK(p.sum == 1.0f);
    CHECK(p.weighted == 0.0f);
  }
}

TEST_CASE("logits that are no numbers make the sums of a softmax NaN, wherever they lie and whatever the others are") {
  const auto n = std::size_t{512};
  for (const Tested& t : tables()) {
    CAPTURE(std::string(t.table->arch));
    for (const float other : {1.0f, -std::numeric_limits<float>::infinity()})
      for (const std::size_t count : {1u, 37u, 64u, 511u, 512u})
        for (const std::size_t first : {std::size_t{0}, (n - count) / 2, n - count}) {
          CAPTURE(other);
          CAPTURE(count);
          CAPTURE(first);
          std::vector<float> z(n, other);
          std::fill_n(z.begin() + static_cast<std::ptrdiff_t>(first), count, std::numeric_limits<float>::quiet_NaN());
          const kernels::SoftmaxPartial p = t.table->softmax_partial(z.data(), static_cast<std::int64_t>(n), 0.7f);
          CHECK(std::isnan(p.sum));
          CHECK(std::isnan(p.weighted));
        }
  }
}
