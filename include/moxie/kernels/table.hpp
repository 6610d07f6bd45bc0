#pragma once
// The hot loops as one table of functions for each CPU architecture: raw pointers in and out, no allocation, no I/O,
// no exceptions. Everything above calls kernels through such a table, and never asks which architecture it is.
//
// Shapes. A weight matrix [n outputs, k inputs] lies in memory as ceil(n / 16) panels of 16 rows (missing rows are zero);
// k is padded to a multiple of 32 with zeros for float formats. Activations are rows, one token a row.
//
// Order of summation: for each output element, blocks of 32 inputs from low k to high k, one f32 accumulator; what is
// inside a block is fixed by the format. No element's bits depend on how many rows or panels a call covers.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/kernels/attention_tile.hpp>

namespace moxie::kernels {

inline constexpr int panel_rows = 16;  // a full AVX-512 register of f32
inline constexpr int block_k = 32;     // activations have one scale for each 32 inputs

/// k inputs with those that fill the last block.
MOXIE_INLINE constexpr std::int64_t padded(std::int64_t k) noexcept { return (k + block_k - 1) / block_k * block_k; }

/// 32 inputs of a row of int8 activations: x[i] = d * q[i], q in [-127, 127].
struct Int8Block {
  std::int8_t q[block_k];
  float d;
  float sum_d;            ///< float(sum of q) * d, for formats with an offset
  std::int32_t minus[3];  ///< minus the sum of q, of its first 16 and of its last 16, as the architecture's dot products start
};

/// Rows of int8 activations [rows, k], k a multiple of 32, in groups of 12 rows (the last one may have fewer) as the tiles of a
/// product read them: the first blocks of the group's rows, then their second blocks, ..
struct Int8Rows {
  static constexpr std::int64_t group = 12;  ///< a multiple of the rows of most tiles

  Int8Block* blocks = nullptr;
  std::int64_t rows = 0, k = 0;

  static constexpr std::int64_t count(std::int64_t rows, std::int64_t k) noexcept { return rows * (k / block_k); }
  /// Blocks between two of a row.
  std::int64_t step(std::int64_t row) const noexcept {
    const std::int64_t left = rows - row / group * group;
    return left < group ? left : group;
  }
  Int8Block* block(std::int64_t row, std::int64_t b) const noexcept {
    return blocks + row / group * group * (k / block_k) + b * step(row) + row % group;
  }
};

/// Rows of activations, all with k inputs, in the forms that some kernels read.
struct ActivationRows {
  const float* x = nullptr;  ///< f32 [rows, k], k padded with zeros to a multiple of 32
  Int8Rows q;
};

/// What products do by CpuFeatures::tuned_for. It changes no bit.
struct Tuning {
  bool fetch_few = true;            ///< fetch weights ahead for few rows too
  bool fetch_second_level = false;  ///< for few rows to the second-level cache
  int fetch_distance = 8192;        ///< bytes, for few rows
  int stage_from = 0;               ///< rows from which unpacked codes are kept, where that can be of use
  int float_distance = 0;           ///< bytes that float weights are fetched ahead, to the second-level cache; 0: not at all
};

/// out[i * out_stride + o] = sum over inputs of w[o][.] * a[first_row + i][.], for o in [16 * panel_begin, min(n, 16 * panel_end)).
struct MatmulArgs {
  const std::byte* panels;  ///< panel 0 of the matrix
  std::int64_t n, k;        ///< outputs; inputs, padded to a multiple of 32
  std::int64_t panel_begin, panel_end;
  ActivationRows a;
  std::int64_t first_row, n_rows;
  float* out;  ///< row i at out + i * out_stride
  std::int64_t out_stride;
  const std::int32_t* list = nullptr;  ///< f32 kernels: row i is row list[first_row + i]
  const std::byte* then = nullptr;     ///< int8 kernels: what will be read after these panels, to be fetched before they end
  Tuning tuning = {};                  ///< int8 kernels: FormatKernels::tuning
};

/// Part of a log-sum-exp over logits z (already divided by the temperature): sum = sum exp(z - max), weighted = sum exp(z - max)
/// (z - max), at most 0. Both are NaN where a logit is.
struct SoftmaxPartial {
  float max, sum, weighted;
};

/// The columns of a gated delta net's or Mamba-2's state that lie together (kernels/delta_net.hpp).
inline constexpr std::int64_t delta_columns = 32;

/// The gated delta rule for up to delta_columns columns of a head's state, over rows of one sequence in their order.
struct DeltaRule {
  const std::int32_t* rows = nullptr;  ///< [n_rows]
  std::int64_t n_rows = 0;
  const float *q = nullptr, *k = nullptr;  ///< row r at r * qk_stride, [k_dim]
  std::int64_t qk_stride = 0;
  const float* v = nullptr;  ///< row r at r * v_stride, [columns]
  std::int64_t v_stride = 0;
  const float *decay = nullptr, *beta = nullptr;  ///< of row r at r * gate_stride
  std::int64_t gate_stride = 0;
  float* state = nullptr;  ///< [k_dim][delta_columns]; columns that do not exist hold anything
  float* out = nullptr;    ///< row r at r * v_stride, [columns]
  std::int64_t k_dim = 0, columns = 0;
  bool subtracts = true;  ///< from v what the state has for k; false: v is added as it is, as in Mamba-2
};

using MatmulFn = void (*)(const MatmulArgs&);

/// One entry for each weight format that a matmul knows.
struct FormatKernels {
  Dtype dtype;
  std::int64_t (*panel_bytes)(std::int64_t k);  ///< bytes of one panel of 16 rows x k inputs, a multiple of 64
  /// Packs 16 rows: rows[i] points to row i as it lies in a file ([k_file] elements), nullptr for a missing row (zeros).
  void (*pack)(const std::byte* const* rows, std::int64_t k_file, std::byte* panel);
  /// The same with a scale for each 128 inputs, shared by the 16 rows [ceil(k_file / 128)]; F8_E4M3 only, else nullptr. pack()
  /// takes 1 for all.
  void (*pack_scaled)(const std::byte* const* rows, std::int64_t k_file, const float* scales, std::byte* panel);
  MatmulFn int8;  ///< nullptr for float formats (F32, F16, BF16, F8_E4M3): they multiply f32 activations
  MatmulFn f32;
  /// Blocks [first, first + blocks) of a panel of k inputs as f32 [blocks * 32][16], rows `stride` floats apart, each aligned to
  /// 64 bytes; first is a multiple of 8, and blocks are 8 or those up to k.
  void (*unpack)(const std::byte* panel, std::int64_t k, std::int64_t first, int blocks, float* out, std::int64_t stride);
  Tuning tuning;  ///< what int8() does best on the CPU that the table is for
};

struct Table {
  const char* arch;  ///< "generic", "avx2", "avx512", ..
  const FormatKernels* formats;
  int n_formats;

  /// k floats of a row to int8 blocks, `step` apart (quantize.hpp). Zero blocks have d = 0, blocks that are not finite a d that is
  /// not.
  void (*quantize)(const float* x, std::int64_t k, Int8Block* to, std::int64_t step);
  /// The block of given codes [32] and scale.
  void (*make_block)(const std::int8_t* q, float d, Int8Block* to);
  /// y = x / sqrt(mean(x^2) + eps) * w; w may be nullptr (all ones). y may be x.
  void (*rms_norm)(const float* x, const float* w, float eps, std::int64_t n, float* y);
  /// y = silu(gate) * up. y may be gate or up.
  void (*swiglu)(const float* gate, const float* up, std::int64_t n, float* y);
  /// gpt-oss: y = (u + 1) * g * sigmoid(1.702 g), g = min(gate, limit), u = up kept within -limit and limit. y may be gate or up.
  void (*clamped_swiglu)(const float* gate, const float* up, float limit, std::int64_t n, float* y);
  /// y = max(x, 0)^2. y may be x.
  void (*relu_squared)(const float* x, std::int64_t n, float* y);
  /// y += a * x, fused multiply-add
  void (*axpy)(float a, const float* x, std::int64_t n, float* y);
  /// y += sum over r of a[r] * x[r], rows x [n_rows, n] `stride` floats apart: axpy() with one row after the other.
  void (*axpy_rows)(const float* a, const float* x, std::int64_t n_rows, std::int64_t stride, std::int64_t n, float* y);
  /// y += x
  void (*add)(const float* x, std::int64_t n, float* y);
  /// high = bf16(x), low = bf16(x - high); n a multiple of 16. A NaN has one in high.
  void (*split_bf16)(const float* x, std::int64_t n, std::uint16_t* high, std::uint16_t* low);
  /// Partial softmax of n logits, each divided by the temperature first.
  SoftmaxPartial (*softmax_partial)(const float* logits, std::int64_t n, float temperature);
  /// Gradient of g * logprob + e * entropy with respect to n logits, without the part of the target (+ g / temperature):
  /// out = -p (g + e (log p + entropy)) / temperature, log p = z / temperature - max - log_sum. out may be logits.
  void (*softmax_gradient)(const float* logits, std::int64_t n, float temperature, float max, float log_sum, float entropy,
                           float g, float e, float* out);
  /// The gated delta rule (and Mamba-2's recurrence), y = silu(convolution) and y *= sigmoid(gate) (delta_net.hpp).
  void (*delta_rule)(const DeltaRule&);
  void (*causal_conv)(const float* const* x, const float* w, std::int64_t w_stride, std::int64_t taps, std::int64_t n,
                      bool activate, float* y);
  void (*sigmoid_gate)(const float* gate, std::int64_t n, float* y);
  /// Grouped-query attention, and multi-head latent attention over latent rows (attention.hpp).
  void (*attend_gqa)(const AttentionTile&);
  void (*attend_mla)(const AttentionTile&);
  /// The same on 16-bit codes, for pages of int16 and int8 (attention_int16.hpp); nullptr where that is not faster.
  void (*attend_gqa_int16)(const AttentionTile&);
  void (*attend_mla_int16)(const AttentionTile&);
  void (*merge_attention)(const AttentionMerge&);

  const FormatKernels* find(Dtype dtype) const noexcept {
    for (int i = 0; i < n_formats; ++i)
      if (formats[i].dtype == dtype) return &formats[i];
    return nullptr;
  }
};

}  // namespace moxie::kernels
