#pragma once
// A gated short convolution in place of a layer's attention (LFM2): of [B, C, x], three projections of a row, B * x is convolved
// over the last tokens, each channel by itself, and multiplied by C; output projection. What it carries from token to token, a
// state of the sequence in the KV cache, are the last products, [kernel - 1][hidden], the earliest first. Source: transformers,
// modeling_lfm2_moe.py.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include <moxie/linalg/linear.hpp>
#include <moxie/model/config.hpp>
#include <moxie/model/mixer.hpp>
#include <moxie/model/weights.hpp>

namespace moxie {

class ShortConvBlock {
 public:
  /// `state`: its number among the recurrent layers.
  ShortConvBlock(const Context& context, const ModelConfig& model, std::int64_t state, const ShortConvTensors& tensors,
                 const TensorMap& source)
      : kernel_(model.short_conv_kernel),
        state_(state),
        in_(load_matrix(context, tensors.in, source)),
        out_(load_matrix(context, tensors.out, source)),
        conv_(load_rows(tensors.conv, model.hidden_size).transpose()) {}

  /// y [rows, hidden] = convolution(x [rows, hidden]); the sequences' states move on by their rows.
  void forward(const Context& context, const float* x, std::span<const DecoderRow> rows, const SequenceRuns& runs, float* y,
               MixerBuffers& buffers) const {
    const auto n = static_cast<Index>(rows.size());
    const Index width = out_.inputs();
    buffers.projected.resize(static_cast<std::size_t>(n * 3 * width));
    for (AlignedBuffer<float>* buffer : {&buffers.v, &buffers.attended}) buffer->resize(static_cast<std::size_t>(n * width));
    float *const bcx = buffers.projected.data(), *const bx = buffers.v.data(), *const convolved = buffers.attended.data();
    detail::project(context, in_, Vector(), x, n, in_.inputs(), bcx, 3 * width, buffers.prepared);
    const auto multiply = [&](const float* a, const float* b, float* to) {  // a convolution that sees one token
      context.kernels->causal_conv(&a, b, width, 1, width, false, to);
    };
    {
      const StageScope stage(context.profile(), Stage::attention);
      context.threads.for_each(
          n, [&](std::int64_t r, int) { multiply(bcx + r * 3 * width, bcx + r * 3 * width + 2 * width, bx + r * width); }, 16);
      context.threads.for_each(
          n,
          [&](std::int64_t i, int) {
            const Index row = runs.rows()[static_cast<std::size_t>(i)];
            std::array<const float*, max_conv_kernel> taps{};
            runs.inputs(i, kernel_, runs.run_of(i).sequence->state(state_), width, bx, width, taps.data());
            float* const to = convolved + row * width;
            context.kernels->causal_conv(taps.data(), conv_.data(), width, kernel_, width, false, to);
            multiply(bcx + row * 3 * width + width, to, to);
          },
          16);
      context.threads.for_each(std::ssize(runs.runs()), [&](std::int64_t i, int) {
        const SequenceRuns::Run& run = runs.runs()[static_cast<std::size_t>(i)];
        runs.keep_inputs(run, kernel_ - 1, width, run.sequence->state(state_),
                         [&](Index row, float* to) { std::copy_n(bx + row * width, width, to); });
      });
    }
    detail::project(context, out_, Vector(), convolved, n, width, y, out_.outputs(), buffers.prepared);
  }

  std::size_t bytes() const noexcept { return in_.bytes() + out_.bytes(); }

 private:
  std::int64_t kernel_, state_;
  Linear in_, out_;
  RowMatrix conv_;  // [kernel, hidden]
};

}  // namespace moxie
