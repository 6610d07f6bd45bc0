// Products with F32 and BF16 matrices: moxie's, of one fixed shape so that bits depend on nothing else, beside oneDNN's own, which
// takes all rows and outputs at once. Alternately, with the same threads; the weights go round 64 MB, as they come from memory.
//
//   unquantized [THREADS]
//
// GOP/s count a product's multiplications and additions once. moxie takes an activation as two bf16 numbers with BF16 weights, so
// that it multiplies twice as much as oneDNN, which has bf16 activations here.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dnnl.hpp>
#include <exception>
#include <random>
#include <unordered_map>
#include <vector>

#include <moxie/kernels/kernels.hpp>
#include <moxie/linalg/linear.hpp>

#include "system.hpp"

namespace {

using moxie::Dtype;

/// oneDNN's own product of rows [rows, inputs] with weights [outputs, inputs], and its copies of the weights.
class OneDnn {
 public:
  OneDnn(Dtype dtype, std::int64_t rows, std::int64_t outputs, std::int64_t inputs, const std::vector<moxie::TensorView>& weights)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using memory = dnnl::memory;
    const auto type = dtype == Dtype::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc source({rows, inputs}, type, memory::format_tag::ab), any({inputs, outputs}, type, memory::format_tag::any);
    const memory::desc target({rows, outputs}, memory::data_type::f32, memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine_, source, any, target);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, any, target), engine_);
#endif
    product_ = dnnl::matmul(description);
    source_ = memory(source, engine_), target_ = memory(target, engine_);
    std::fill_n(static_cast<std::byte*>(source_.get_data_handle()), source.get_size(), std::byte{0x3f});  // 0.7
    const memory::desc dense({inputs, outputs}, type, memory::format_tag::ba);
    for (const moxie::TensorView& view : weights) {
      memory from(dense, engine_, const_cast<std::byte*>(view.data));
      weights_.emplace_back(description.weights_desc(), engine_);
      dnnl::reorder(from, weights_.back()).execute(stream_, from, weights_.back());
      stream_.wait();
    }
  }
  void multiply(std::size_t i) {
    product_.execute(stream_, {{DNNL_ARG_SRC, source_}, {DNNL_ARG_WEIGHTS, weights_[i]}, {DNNL_ARG_DST, target_}});
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul product_;
  dnnl::memory source_, target_;
  std::vector<dnnl::memory> weights_;
};

void compare(const moxie::Context& context, Dtype dtype, std::int64_t outputs, std::int64_t inputs) {
  const std::size_t size = dtype == Dtype::BF16 ? 2 : 4, bytes = static_cast<std::size_t>(outputs * inputs) * size;
  const std::size_t count = std::max<std::size_t>(2, (std::size_t{64} << 20) / bytes);
  std::vector<std::vector<std::byte>> data(count, std::vector<std::byte>(bytes));
  std::vector<moxie::TensorView> views;
  std::vector<moxie::Linear> matrices;
  std::mt19937 random(1);
  for (std::vector<std::byte>& weights : data) {
    for (std::byte& b : weights) b = static_cast<std::byte>(0x30 | (random() & 15));  // small finite numbers
    views.push_back({"weights", dtype, {outputs, inputs}, weights.data(), bytes, {}, 0});
    matrices.push_back(moxie::Linear::pack(context, views.back()));
  }
  for (const std::int64_t rows : {1, 4, 16, 32, 128, 512}) {
    OneDnn whole(dtype, rows, outputs, inputs, views);
    std::vector<float> x(static_cast<std::size_t>(rows * inputs), 0.5f), out(static_cast<std::size_t>(rows * outputs));
    moxie::PreparedRows prepared;
    prepared.assign(context, x.data(), rows, inputs, inputs, false, true);
    const double operations = 2.0 * static_cast<double>(rows * outputs * inputs);
    const int calls = std::max(static_cast<int>(count), static_cast<int>(2e9 / operations));  // some milliseconds
    double best[2] = {1e30, 1e30};
    for (int round = 0; round < 5; ++round)
      for (const bool own : {false, true}) {
        const double start = bench::seconds();
        for (int i = 0; i < calls; ++i) {
          const std::size_t matrix = static_cast<std::size_t>(i) % count;
          own ? matrices[matrix].forward(context, prepared, out.data(), outputs) : whole.multiply(matrix);
        }
        best[own] = std::min(best[own], (bench::seconds() - start) / calls);
      }
    std::printf("| %s | %lld x %lld | %lld | %.0f | %.0f | %.0f%% |\n", std::string(moxie::dtype_info(dtype).name).c_str(),
                static_cast<long long>(outputs), static_cast<long long>(inputs), static_cast<long long>(rows),
                1e-9 * operations / best[1], 1e-9 * operations / best[0], 100 * best[0] / best[1]);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const moxie::Context context{&moxie::kernels::native_table(), moxie::Threads(argc > 1 ? std::atoi(argv[1]) : 0)};
    omp_set_num_threads(context.threads.count());
    std::printf("%s, %d threads\n\n| weights | outputs x inputs | rows | moxie, GOP/s | oneDNN, GOP/s | share |\n|---|---|---|---|---|---|\n",
                bench::cpu_name().c_str(), context.threads.count());
    for (const Dtype dtype : {Dtype::F32, Dtype::BF16}) {
      if (!moxie::OneDnnMatrix::supports(dtype)) continue;
      compare(context, dtype, 768, 2048);
      compare(context, dtype, 4096, 2048);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
