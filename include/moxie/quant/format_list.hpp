#pragma once
// The list of weight formats: the one place that names them all. A new format is one new header and one line here.
//
// Kernel headers include this one (no containers, no exceptions); applications include quant/formats.hpp.

#include <moxie/quant/bf16.hpp>
#include <moxie/quant/f16.hpp>
#include <moxie/quant/f32.hpp>
#include <moxie/quant/f8_e4m3.hpp>
#include <moxie/quant/iq1_m.hpp>
#include <moxie/quant/iq1_s.hpp>
#include <moxie/quant/iq2_s.hpp>
#include <moxie/quant/iq2_xs.hpp>
#include <moxie/quant/iq2_xxs.hpp>
#include <moxie/quant/iq3_s.hpp>
#include <moxie/quant/iq3_xxs.hpp>
#include <moxie/quant/iq4_nl.hpp>
#include <moxie/quant/iq4_xs.hpp>
#include <moxie/quant/mxfp4.hpp>
#include <moxie/quant/nvfp4.hpp>
#include <moxie/quant/q2_k.hpp>
#include <moxie/quant/q3_k.hpp>
#include <moxie/quant/q4_0.hpp>
#include <moxie/quant/q4_1.hpp>
#include <moxie/quant/q4_k.hpp>
#include <moxie/quant/q5_0.hpp>
#include <moxie/quant/q5_1.hpp>
#include <moxie/quant/q5_k.hpp>
#include <moxie/quant/q6_k.hpp>
#include <moxie/quant/q8_0.hpp>
#include <moxie/quant/tq1_0.hpp>
#include <moxie/quant/tq2_0.hpp>

namespace moxie {

template <class... T>
struct TypeList {
  static constexpr int size = static_cast<int>(sizeof...(T));
};

using Formats = TypeList<F32, F16, BF16, F8_E4M3, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ1_S, IQ1_M,
                         IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0>;

/// A format that can be written; the others are only read.
template <class Format>
concept EncodableFormat = requires(const float* src, std::byte* dst, std::int64_t n) {
  Format::encode(src, dst, n);
};

}  // namespace moxie
