#pragma once
// The tables of kernels: table<Arch>() is the one of an architecture, native_table() the best one.
//
// With MOXIE_DISPATCH defined (the CMake target moxie::dispatch does it), native_table() lies in a library that was compiled
// once for each architecture and asks the CPU at run time; else it is the best one that the compiler's flags allow.
// find_table() gives the others that the program has and the CPU runs, by name.

#include <cstddef>
#include <cstdint>

#include <moxie/core/cpu.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/attention.hpp>
#include <moxie/kernels/attention_int16.hpp>
#include <moxie/kernels/delta_net.hpp>
#include <moxie/kernels/elementwise.hpp>
#include <moxie/kernels/panel_f32.hpp>
#include <moxie/kernels/panel_int8.hpp>
#include <moxie/kernels/quantize.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/quant/format_list.hpp>

namespace moxie::kernels {

namespace detail {

template <class A, class Format>
std::int64_t panel_bytes(std::int64_t k) noexcept {
  return f32::panel_bytes<Format>(k);
}

/// scales: of each 128 inputs, nullptr for ones; only F8_E4M3 has them.
template <class A, class Format>
void pack_scaled(const std::byte* const* rows, std::int64_t k_file, const float* scales, std::byte* panel) noexcept {
  using P = Panel<Format>;
  __builtin_memset(panel + panel_bytes<A, Format>((k_file + block_k - 1) / block_k * block_k) - 64, 0, 64);  // where it is padded
  if constexpr (f32::FloatPanel<Format>) {
    constexpr int size = Format::block_bytes, together = 16 / size;
    const std::int64_t k = (k_file + block_k - 1) / block_k * block_k;
    std::int64_t i = 0;
    for (; i + together <= k_file; i += together)
      panel::place_rows<size>([&](int r)
                                  MOXIE_INLINE_CALL { return rows[r] ? panel::load16(rows[r] + i * size) : panel::Bytes16{}; },
                              panel + i * panel_rows * size);
    for (; i < k; ++i)
      for (int r = 0; r < panel_rows; ++r) {
        std::byte* to = panel + (i * panel_rows + r) * size;
        if (rows[r] && i < k_file)
          __builtin_memcpy(to, rows[r] + i * size, size);
        else
          __builtin_memset(to, 0, size);
      }
    if constexpr (f32::has_block_scales<Format>)
      for (std::int64_t b = 0; b < (k + f32::scale_inputs - 1) / f32::scale_inputs; ++b) {
        const float scale = scales ? scales[b] : 1.0f;
        __builtin_memcpy(panel + k * panel_rows + b * 4, &scale, 4);
      }
  } else {
    static_assert(P::chunk == Format::block);
    const std::byte missing[Format::block_bytes] = {};
    for (std::int64_t c = 0; c < k_file / P::chunk; ++c) {
      const std::byte* block[panel_rows];
      for (int r = 0; r < panel_rows; ++r) block[r] = rows[r] ? rows[r] + c * Format::block_bytes : missing;
      P::pack(block, panel + c * P::chunk_bytes);
    }
  }
}
template <class A, class Format>
void pack(const std::byte* const* rows, std::int64_t k_file, std::byte* panel) noexcept {
  pack_scaled<A, Format>(rows, k_file, nullptr, panel);
}

template <class A, class Format>
constexpr FormatKernels format_kernels(TunedFor cpu) noexcept {
  using Layout = typename LayoutOf<Format>::type;
  FormatKernels k{};
  k.dtype = Format::dtype;
  k.panel_bytes = &panel_bytes<A, Layout>;
  k.pack = &pack<A, Format>;
  if constexpr (f32::has_block_scales<Format>) k.pack_scaled = &pack_scaled<A, Format>;
#if defined(__x86_64__)
  const bool intel = cpu == TunedFor::intel;
#else
  constexpr bool intel = false;
#endif
  if constexpr (!f32::FloatPanel<Format>) {
    using P = Panel<Format>;
    constexpr bool narrow = int8::block_bytes<Format> < block_k * panel_rows;
    k.int8 = &matmul_int8<A, Layout>;
    constexpr bool avx512 = Ops<A>::unfetched > 0;  // kernels of others are the same on all of AMD's
    const bool zen4 = avx512 && cpu == TunedFor::zen4, zen5 = avx512 && cpu == TunedFor::zen5;
    // IQ1, IQ2 and Q3_K are dear to unpack; Q6_K and NVFP4 are faster without a stage at up to 96 rows
    const int zen4_stages = P::codes == Codes::u6 || has_float_halves<P> ? 1 << 20 : 12;
    const int distance = intel ? 3072 : zen4 && !narrow ? 4096 : 8192;
    const int staged = zen5 ? 24 : zen4 ? zen4_stages : 0;
    k.tuning = {intel || (zen5 && narrow), intel || (zen4 && narrow), distance, staged};
  } else {
    k.tuning.float_distance = intel ? 3072 : 0;
  }
  k.f32 = &matmul_f32<A, Layout>;
  k.unpack = &f32::unpack<A, Layout>;
  return k;
}

template <class A, TunedFor cpu, class List>
struct FormatTable;
template <class A, TunedFor cpu, class... Format>
struct FormatTable<A, cpu, TypeList<Format...>> {
  static constexpr int size = sizeof...(Format);
  static constexpr FormatKernels entries[] = {format_kernels<A, Format>(cpu)...};
};

template <class A, TunedFor cpu>
constexpr Table make_table() noexcept {
  Table t{};
  t.arch = A::name;
  t.formats = FormatTable<A, cpu, Formats>::entries;
  t.n_formats = FormatTable<A, cpu, Formats>::size;
  t.quantize = &quantize<A>;
  t.make_block = &make_block<A>;
  t.rms_norm = &rms_norm<A>;
  t.swiglu = &swiglu<A>;
  t.clamped_swiglu = &clamped_swiglu<A>;
  t.relu_squared = &relu_squared<A>;
  t.axpy = &axpy<A>;
  t.axpy_rows = &axpy_rows<A>;
  t.add = &add<A>;
  t.split_bf16 = &split_bf16<A>;
  t.softmax_partial = &softmax_partial<A>;
  t.softmax_gradient = &softmax_gradient<A>;
  t.delta_rule = &delta_rule<A>;
  t.causal_conv = &causal_conv<A>;
  t.sigmoid_gate = &sigmoid_gate<A>;
  t.attend_gqa = &attend<A, false>;
  t.attend_mla = &attend<A, true>;
  if constexpr (PairOps<A>::available) {
    t.attend_gqa_int16 = &attend_int16<A, false>;
    t.attend_mla_int16 = &attend_int16<A, true>;
  }
  t.merge_attention = &merge_attention<A>;
  return t;
}

template <class A, TunedFor cpu>
inline constexpr Table table_of = make_table<A, cpu>();

}  // namespace detail

/// For a CPU with this CpuFeatures::tuned_for.
template <class A>
const Table& table(TunedFor cpu = TunedFor::intel) noexcept {
  switch (cpu) {
    case TunedFor::zen4:
      return detail::table_of<A, TunedFor::zen4>;
    case TunedFor::zen5:
      return detail::table_of<A, TunedFor::zen5>;
    default:
      return detail::table_of<A, TunedFor::intel>;
  }
}

#if defined(MOXIE_DISPATCH)
const Table& native_table() noexcept;
/// The table whose `arch` is this text; nullptr when the program has none or this CPU cannot run it.
const Table* find_table(const char* arch) noexcept;
#else
inline const Table& native_table() noexcept {
  static const CpuFeatures cpu = cpu_features();
  return table<Native>(cpu.tuned_for);
}
inline const Table* find_table(const char* arch) noexcept {
  return __builtin_strcmp(arch, Native::name) == 0 ? &native_table() : nullptr;
}
#endif

}  // namespace moxie::kernels
