// Speed of the matrix kernels alone, on one thread: every weight format x architecture that this CPU has x number of tokens.
//
//   kernels [--benchmark_filter=avx512/Q4_K/.*] [other options of Google Benchmark]
//
// One call multiplies an expert's matrix, 768 x 2048. Calls go round matrices of 256 MB together, so that weights come from
// memory as they do in a model. Counters: GOP/s, and its share of the peak of the best instruction sequence in registers for the
// format on the architecture (peak.hpp); with few tokens GB/s of packed weights too, and its share of what one thread reads from
// memory (limits.hpp). Formats of integer codes multiply int8 activations, float formats f32.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/memory.hpp>
#include <moxie/kernels/kernels.hpp>
#include <moxie/quant/formats.hpp>

#include "limits.hpp"

namespace {

using moxie::AlignedBuffer;
namespace kernels = moxie::kernels;

constexpr std::int64_t outputs = 768, inputs = 2048, most_tokens = 512;
constexpr std::size_t weights_bytes = std::size_t{256} << 20;

/// What all calls share: activations of every form, and results.
struct Activations {
  AlignedBuffer<float> x{most_tokens * inputs}, out{most_tokens * outputs};
  AlignedBuffer<kernels::Int8Block> blocks{most_tokens * inputs / kernels::block_k};

  Activations() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random);
  }
  kernels::ActivationRows int8(const kernels::Table& table, std::int64_t tokens) {
    const kernels::Int8Rows rows{blocks.data(), tokens, inputs};
    for (std::int64_t r = 0; r < tokens; ++r) table.quantize(x.data() + r * inputs, inputs, rows.block(r, 0), rows.step(r));
    return {nullptr, rows};
  }
};

/// Packed matrices of one format; kept for the next benchmark, which mostly has the same format.
class Weights {
 public:
  const std::byte* matrix(std::size_t i) const { return panels_.data() + i % count_ * bytes_; }
  std::size_t bytes() const { return bytes_; }

  void prepare(const kernels::FormatKernels& format) {
    if (std::exchange(pack_, format.pack) == format.pack) return;
    // Bytes that are finite, normal numbers in every format: the speed depends on nothing else.
    const std::vector<std::byte> row(static_cast<std::size_t>(moxie::row_bytes(format.dtype, inputs)), std::byte{0x38});
    const std::byte* pointers[kernels::panel_rows];
    for (const std::byte*& pointer : pointers) pointer = row.data();
    const auto panel = static_cast<std::size_t>(format.panel_bytes(inputs));
    bytes_ = outputs / kernels::panel_rows * panel;
    count_ = weights_bytes / bytes_;
    panels_.resize(weights_bytes);
    format.pack(pointers, inputs, panels_.data());
    for (std::size_t at = panel; at + panel <= count_ * bytes_; at += panel)
      std::memcpy(panels_.data() + at, panels_.data(), panel);
  }

 private:
  void (*pack_)(const std::byte* const*, std::int64_t, std::byte*) = nullptr;
  AlignedBuffer<std::byte> panels_;
  std::size_t bytes_ = 0, count_ = 0;
};

double peak(const char* arch, int bits) {
  static std::map<std::pair<std::string, int>, double> known;
  double& best = known[{arch, bits}];
  if (best == 0.0)
    for (const bench::Sequence& s : bench::sequences_for(arch, bits))
      best = std::max(best, bench::sequence_gops(s, moxie::Threads(1), 5));
  return best;
}
double stream() {
  static const double gbs = [] {
    const moxie::Threads one(1);
    return std::max(bench::StreamMemory(one, false).read(one, 3), bench::StreamMemory(one, true).read(one, 3));
  }();
  return gbs;
}

void run(benchmark::State& state, const kernels::Table& table, const kernels::FormatKernels& format, std::int64_t tokens) {
  static Activations activations;
  static Weights weights;
  weights.prepare(format);
  const double most = peak(table.arch, format.int8 ? bench::code_bits(format.dtype) : bench::f32_weights);
  const kernels::ActivationRows rows =
      format.int8 ? activations.int8(table, tokens) : kernels::ActivationRows{activations.x.data(), {}};
  std::size_t calls = 0;
  const double start = bench::cpu_seconds();
  for (auto _ : state) {
    (format.int8 ? format.int8 : format.f32)({weights.matrix(calls++), outputs, inputs, 0, outputs / kernels::panel_rows, rows, 0,
                                              tokens, activations.out.data(), outputs, nullptr, nullptr, format.tuning});
    benchmark::ClobberMemory();
  }
  const double taken = (bench::cpu_seconds() - start) / static_cast<double>(calls);
  const double gops = 2e-9 * static_cast<double>(outputs * inputs * tokens) / taken;
  state.counters["GOP/s"] = gops;
  state.counters["share"] = gops / most;
  if (tokens > 4) return;
  const double gbs = 1e-9 * static_cast<double>(weights.bytes()) / taken;
  state.counters["GB/s"] = gbs;
  state.counters["share_of_stream"] = gbs / stream();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  std::string short_runs = "--benchmark_min_time=0.05";  // unless the command line says otherwise
  arguments.insert(arguments.begin() + 1, short_runs.data());
  int n_arguments = static_cast<int>(arguments.size());
  benchmark::Initialize(&n_arguments, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(n_arguments, arguments.data())) return 2;
  benchmark::AddCustomContext("cpu", bench::cpu_name());
  for (const char* arch : {"avx512", "avxvnni", "avx2", "neon", "generic"}) {
    const kernels::Table* table = kernels::find_table(arch);
    if (!table) continue;
    for (int f = 0; f < table->n_formats; ++f) {
      const kernels::FormatKernels& format = table->formats[f];
      for (const std::int64_t tokens : {1, 2, 4, 8, 16, 32, 128, 512})
        benchmark::RegisterBenchmark(
            (std::string(arch) + "/" + std::string(moxie::dtype_info(format.dtype).name) + "/" + std::to_string(tokens)).c_str(),
            [table, &format, tokens](benchmark::State& state) { run(state, *table, format, tokens); })
            ->Unit(benchmark::kMicrosecond);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
