#pragma once
// OneDnnMatrix: weights of f32 or bf16, [outputs, inputs], multiplied by oneDNN (2.6 of Debian 12, or 3.x).
//
// oneDNN chooses its blocking, and with it the order of summation, by the shape of a product and by the number of threads.
// Here every product of a matrix has one shape, [a tile of rows, padded with zeros] x [inputs] x [64 outputs], and one thread, so
// that the bits of a row depend neither on the rows beside it, nor on its place among them, nor on the columns and threads of a
// call.
//
// A tile has 4 rows of activations on AVX-512, 8 of bf16 parts: that runs at 96% (f32) and 97% (bf16) of the speed of 16 rows
// (Zen 5, 2048 inputs), because 4 rows x 64 outputs are 16 accumulators, twice what latency (4) times throughput (2) asks for; and
// one row alone costs 4, not 16. oneDNN's product for AVX2 has its speed only at 16. 64 outputs are one block of oneDNN's own
// layout for AVX-512; wider chunks measured the same speed, narrower ones less.
//
// Layout: chunk c holds outputs [64 c, 64 c + 64) in the layout that oneDNN asks for; inputs are padded to a multiple of 32 and
// outputs to a multiple of 64, with zeros. With bf16 weights an activation is the sum of two bf16 numbers, x ~ hi + lo with
// hi = bf16(x), lo = bf16(x - hi): two rows of one tile, whose f32 sums are added. That keeps 16 bits of x where one would keep
// 8, at the speed of f32 but with half of its weights to read.
//
// Errors of oneDNN are thrown as moxie::Error.

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <dnnl.hpp>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

class OneDnnMatrix {
 public:
  static constexpr Index chunk_outputs = 64;

  /// F32 everywhere; BF16 where the CPU multiplies it (AVX512_BF16).
  static bool supports(Dtype dtype) noexcept {
    if (dtype != Dtype::BF16) return dtype == Dtype::F32;
    return has(dnnl::cpu_isa::avx512_core_bf16);
  }

  OneDnnMatrix() = default;

  /// Room for weights [outputs, inputs]; pack() fills it. `kernels` has to live as long. Throws UnsupportedError unless
  /// supports(dtype), ArgumentError for an empty shape.
  OneDnnMatrix(const kernels::Table& kernels, Dtype dtype, Index outputs, Index inputs)
      : kernels_(&kernels), bf16_(dtype == Dtype::BF16), outputs_(outputs), inputs_(inputs) {
    if (!supports(dtype))
      throw UnsupportedError(
          concat("oneDNN multiplies F32, and BF16 on a CPU with AVX512_BF16, not ", dtype_info(dtype).name, " on this one"));
    if (outputs < 1 || inputs < 1)
      throw ArgumentError(concat("a matrix needs at least one output and one input, got [", outputs, ", ", inputs, "]"));
    guarded([&] {
      engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
      const Index k = padded_inputs();
      tile_rows_ = has(dnnl::cpu_isa::avx512_core) ? 4 : most_tile_rows;
      const Index rows = tile_rows_ * parts();
      const dnnl::memory::desc source({rows, k}, element(), dnnl::memory::format_tag::ab);
      const dnnl::memory::desc any({k, chunk_outputs}, element(), dnnl::memory::format_tag::any);
      const dnnl::memory::desc target({rows, chunk_outputs}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab);
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::matmul::primitive_desc description(engine_, source, any, target, attributes);
#else
      const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, any, target), attributes, engine_);
#endif
      product_ = dnnl::matmul(description);
      source_ = source;
      target_ = target;
      scratchpad_ = description.scratchpad_desc();
      weights_ = description.weights_desc();

      const std::size_t chunk_bytes = round_up(weights_.get_size(), memory_alignment);
      const auto chunks = static_cast<std::size_t>((outputs + chunk_outputs - 1) / chunk_outputs);
      data_.resize(chunk_bytes * chunks);
      chunks_.reserve(chunks);
      for (std::size_t c = 0; c < chunks; ++c) chunks_.emplace_back(weights_, engine_, data_.data() + c * chunk_bytes);
    });
  }

  Index outputs() const noexcept { return outputs_; }
  Index inputs() const noexcept { return inputs_; }
  std::size_t bytes() const noexcept { return data_.capacity_bytes(); }

  /// Packs outputs [begin, end), begin a multiple of chunk_outputs, end too or outputs(): row(o) points to the `inputs` weights
  /// of output o, of any alignment. Threads may pack different chunks at the same time.
  template <class Row>
  void pack(Index begin, Index end, Row&& row) {
    guarded([&] {
      const Index k = padded_inputs();
      const std::size_t size = bf16_ ? 2 : 4, width = static_cast<std::size_t>(k) * size,
                        used = static_cast<std::size_t>(inputs_) * size;
      AlignedBuffer<std::byte> rows(width * chunk_outputs);
      const dnnl::memory::desc dense({k, chunk_outputs}, element(), dnnl::memory::format_tag::ba);
      dnnl::memory from(dense, engine_, rows.data());
      const dnnl::reorder reorder = reordering(dense, weights_);
      dnnl::stream stream(engine_);
      for (Index first = begin; first < end; first += chunk_outputs) {
        for (Index i = 0; i < chunk_outputs; ++i) {
          std::byte* to = rows.data() + static_cast<std::size_t>(i) * width;
          const std::size_t present = first + i < outputs_ ? used : 0;
          if (present != 0) std::memcpy(to, row(first + i), present);
          std::memset(to + present, 0, width - present);
        }
        reorder.execute(stream, from, chunks_[static_cast<std::size_t>(first / chunk_outputs)]);
        stream.wait();
      }
    });
  }

  /// What multiply() leaves of n activations: x - hi - lo for bf16 weights. false, and nothing is written, where it takes them
  /// whole.
  bool rest(const float* x, Index n, float* out) const noexcept {
    if (!bf16_) return false;
    for (Index i = 0; i < n; ++i) {
      const float low = x[i] - bf16_to_f32(f32_to_bf16(x[i]));
      out[i] = low - bf16_to_f32(f32_to_bf16(low));
    }
    return true;
  }

  /// out[i * stride + o] is the weight of input first + i, i < count, and output begin + o: begin a multiple of chunk_outputs,
  /// end too or outputs(); first a multiple of 256, first + count too or inputs(). From any thread.
  void unpack(Index begin, Index end, Index first, Index count, float* out, Index stride) const {
    guarded([&] {
      const Index k = kernels::padded(count);
      AlignedBuffer<float> columns(static_cast<std::size_t>(k * chunk_outputs));
      const dnnl::memory::desc dense({k, chunk_outputs}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab);
      const dnnl::memory::desc part = weights_.submemory_desc({k, chunk_outputs}, {first, 0});
      dnnl::memory to(dense, engine_, columns.data());
      const dnnl::reorder reorder = reordering(part, dense);
      dnnl::stream stream(engine_);
      for (Index chunk = begin; chunk < end; chunk += chunk_outputs) {
        dnnl::memory from(part, engine_, chunks_[static_cast<std::size_t>(chunk / chunk_outputs)].get_data_handle());
        reorder.execute(stream, from, to);
        stream.wait();
        const auto bytes = static_cast<std::size_t>(std::min(end - chunk, chunk_outputs)) * sizeof(float);
        for (Index i = 0; i < count; ++i)
          std::memcpy(out + i * stride + (chunk - begin), columns.data() + i * chunk_outputs, bytes);
      }
    });
  }

  /// out[i * out_stride + o] = sum over inputs of w[o][.] * x[i][.] for o in [begin, end), begin a multiple of chunk_outputs, end
  /// too or outputs(). x is dense, its rows padded with zeros to a multiple of 32 floats. From any thread.
  void multiply(const float* x, Index n_rows, Index begin, Index end, float* out, Index out_stride) const {
    guarded([&] {
      const Index k = padded_inputs();
      const auto tile_bytes = static_cast<std::size_t>(tile_rows_ * k) * 4;  // of f32, or of two bf16
      const bool in_place = !bf16_;                                          // whole tiles of x are read where they are
      const Index tiles = (std::min(rows_together, n_rows) + tile_rows_ - 1) / tile_rows_;
      AlignedBuffer<std::byte> staged(tile_bytes * static_cast<std::size_t>(in_place ? 1 : tiles));
      AlignedBuffer<std::byte> scratchpad(scratchpad_.get_size());
      alignas(memory_alignment) float result[most_tile_rows * chunk_outputs];

      dnnl::stream stream(engine_);
      dnnl::memory source(source_, engine_, staged.data()), target(target_, engine_, result);
      std::unordered_map<int, dnnl::memory> arguments{
          {DNNL_ARG_SRC, source},
          {DNNL_ARG_WEIGHTS, chunks_.front()},
          {DNNL_ARG_DST, target},
          {DNNL_ARG_SCRATCHPAD, dnnl::memory(scratchpad_, engine_, scratchpad.data())}};
      const auto whole = [&](Index row) { return in_place && n_rows - row >= tile_rows_; };
      for (Index group = 0; group < n_rows; group += rows_together) {
        const Index group_end = std::min(n_rows, group + rows_together);
        const auto staged_tile = [&](Index row) {
          return staged.data() + static_cast<std::size_t>(in_place ? 0 : (row - group) / tile_rows_) * tile_bytes;
        };
        for (Index row = group; row < group_end; row += tile_rows_)
          if (!whole(row)) stage(x, row, std::min(tile_rows_, group_end - row), staged_tile(row));

        for (Index first = begin; first < end; first += chunk_outputs) {
          arguments[DNNL_ARG_WEIGHTS] = chunks_[static_cast<std::size_t>(first / chunk_outputs)];
          const auto width = static_cast<std::size_t>(std::min(chunk_outputs, end - first));
          for (Index row = group; row < group_end; row += tile_rows_) {
            source.set_data_handle(whole(row) ? const_cast<float*>(x + row * k) : static_cast<void*>(staged_tile(row)));
            product_.execute(stream, arguments);
            stream.wait();
            for (Index i = 0; i < std::min(tile_rows_, group_end - row); ++i) {
              float* to = out + (row + i) * out_stride + first;
              const float* from = result + i * chunk_outputs;
              std::memcpy(to, from, width * sizeof(float));
              if (bf16_)
                for (std::size_t o = 0; o < width; ++o) to[o] += from[tile_rows_ * chunk_outputs + static_cast<Index>(o)];
            }
          }
        }
      }
    });
  }

 private:
  static constexpr Index most_tile_rows = 16;
  static constexpr Index rows_together =
      128;  // a chunk of weights is read once for so many rows, whose tiles stay in the cache beside it

  static bool has(dnnl::cpu_isa isa) noexcept {  // the value of an instruction set contains the bits of those it extends
    const auto bits = static_cast<unsigned>(isa);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & bits) == bits;
  }

  /// Runs f with one thread for oneDNN's primitives, made or executed; the thread count belongs to the calling thread and comes
  /// back.
  template <class F>
  static void guarded(F&& f) {
    struct OneThread {
      int before = omp_get_max_threads();
      OneThread() { omp_set_num_threads(1); }
      ~OneThread() { omp_set_num_threads(before); }
      OneThread(const OneThread&) = delete;
      OneThread& operator=(const OneThread&) = delete;
    } const one_thread;
    try {
      f();
    } catch (const dnnl::error& error) {
      throw Error(std::string("oneDNN failed: ") + error.what());
    }
  }

  /// One thread at a time, of all matrices: oneDNN 2.6 looks implementations up in a std::map of the process that it fills at the
  /// first use of a pair of types, without a lock. Kernels come from its cache of primitives, so that repeating this is cheap.
  dnnl::reorder reordering(const dnnl::memory::desc& from, const dnnl::memory::desc& to) const {
    static std::mutex alone;
    const std::lock_guard lock(alone);
    return dnnl::reorder(dnnl::reorder::primitive_desc(engine_, from, engine_, to));
  }

  dnnl::memory::data_type element() const noexcept {
    return bf16_ ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  }
  Index padded_inputs() const noexcept { return kernels::padded(inputs_); }
  /// Rows of a tile that one row of activations takes.
  Index parts() const noexcept { return bf16_ ? 2 : 1; }

  /// Rows [first, first + count) of the list as one tile, the missing ones zero; for bf16 the high parts of all, then the low
  /// ones.
  void stage(const float* x, Index first, Index count, std::byte* tile) const {
    const Index k = padded_inputs();
    const std::size_t width = static_cast<std::size_t>(k) * sizeof(float);
    if (count < tile_rows_) std::memset(tile, 0, static_cast<std::size_t>(tile_rows_) * width);
    for (Index i = 0; i < count; ++i) {
      const float* row = x + (first + i) * k;
      if (bf16_) {
        auto* high = reinterpret_cast<std::uint16_t*>(tile) + i * k;
        kernels_->split_bf16(row, k, high, high + tile_rows_ * k);
      } else {
        std::memcpy(tile + static_cast<std::size_t>(i) * width, row, width);
      }
    }
  }

  const kernels::Table* kernels_ = nullptr;
  bool bf16_ = false;
  Index outputs_ = 0, inputs_ = 0, tile_rows_ = 0;
  dnnl::engine engine_;
  dnnl::matmul product_;
  dnnl::memory::desc source_, weights_, target_, scratchpad_;
  AlignedBuffer<std::byte> data_;
  std::vector<dnnl::memory> chunks_;  ///< views of data_
};

}  // namespace moxie
