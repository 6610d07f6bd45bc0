#pragma once
// F8_E4M3: FP8 e4m3fn (OCP 8-bit floating point specification), one element a block; no infinities, NaN at 0x7F and 0xFF.
//
// Only safetensors files hold it, with a scale for each 128 x 128 block in a second tensor (decode_fp8_blocks of
// quant/quantize.hpp); what is decoded here is the bare code. It is read, never written.

#include <cstddef>
#include <cstdint>

#include <moxie/core/dtype.hpp>
#include <moxie/quant/bytes.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie {

struct F8_E4M3 {
  static constexpr Dtype dtype = Dtype::F8_E4M3;
  static constexpr const char* name = "F8_E4M3";
  static constexpr int block = 1, block_bytes = 1;

  MOXIE_INLINE static void decode(const std::byte* src, float* dst, std::int64_t n) noexcept {
    for (std::int64_t i = 0; i < n; ++i) dst[i] = e4m3_to_f32(as_u8(src)[i]);
  }
};

/// The 16 rows' elements of one input beside each other; after all inputs, one f32 scale for each 128 of them
/// (the scale of the 128 x 128 block that the 16 rows lie in).
template <>
struct Panel<F8_E4M3> {
  static constexpr int chunk = 1, chunk_bytes = 16;

  template <class O>
  MOXIE_INLINE static typename O::F load(const std::byte* p) noexcept {
    return O::load_e4m3(p);
  }
};

}  // namespace moxie
