#pragma once
// Primitives for aarch64 with the dot products of Armv8.2 (FEAT_DotProd). See kernels/ops.hpp.
//
// sdot adds the products of 4 signed bytes and 4 signed bytes to an int32, exactly. Codes of 4, 5 and 6 bits are at most 63, so all
// codes are signed bytes as they are. A block's activations are two registers; sdot by element takes 4 bytes of one, so that
// nothing is broadcast. The largest values, activations at +-127:
//
//   codes            products in a lane   largest sum of products       largest result
//   u4, u5, u6       32                   32 *  63 * 127 = 256032       32 * 63 * 127 = 256032
//   s8               32                   32 * 128 * 127 = 520192       the same
//   u6 in halves     16 for each          16 *  63 * 127 = 128016       2 * 128 * 16 * 32 * 127 = 16646144, below 2^24

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/ops_generic.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie::kernels {

template <>
struct Ops<Neon> : MinusSums {
  struct Bytes {  // register i: rows 4 i to 4 i + 3, here and below
    uint8x16_t v[4];
  };
  struct Ints {
    int32x4_t v[4];
  };
  struct F {
    float32x4_t v[4];
  };

  MOXIE_INLINE static Bytes load_bytes(const std::byte* p) noexcept {
    Bytes x;
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] = vld1q_u8(as_u8(p) + 16 * i);
    return x;
  }
  MOXIE_INLINE static void store_bytes(std::byte* p, const Bytes& x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_u8(as_u8(p) + 16 * i, x.v[i]);
  }
  template <int shift, int mask>
  MOXIE_INLINE static Bytes bits(Bytes x) noexcept {
    constexpr int right = shift > 0 ? shift : 0, left = shift < 0 ? -shift : 0;
    constexpr int kept = 0xff >> right << left & 0xff;  // what a shift alone leaves
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (right > 0) x.v[i] = vshrq_n_u8(x.v[i], right);
      if constexpr (left > 0) x.v[i] = vshlq_n_u8(x.v[i], left);
      if constexpr ((kept & ~mask) != 0) x.v[i] = vandq_u8(x.v[i], vdupq_n_u8(mask));
    }
    return x;
  }
  MOXIE_INLINE static Bytes merge(Bytes a, const Bytes& b) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u8(a.v[i], b.v[i]);
    return a;
  }

  MOXIE_INLINE static Bytes lookup(panel::Bytes16 table, Bytes x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] = vqtbl1q_u8((uint8x16_t)table, x.v[i]);
    return x;
  }

  MOXIE_INLINE static Bytes spread(panel::Bytes16 x) noexcept {
    const auto row = vreinterpretq_u8_u32(uint32x4_t{0x00000000, 0x01010101, 0x02020202, 0x03030303});
    Bytes y;
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) y.v[i] = vqtbl1q_u8((uint8x16_t)x, vaddq_u8(row, vdupq_n_u8(static_cast<std::uint8_t>(4 * i))));
    return y;
  }

  template <class Fn>
  MOXIE_INLINE static F each(Fn&& f) noexcept {
    F x;
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] = f(i);
    return x;
  }
  MOXIE_INLINE static F load(const float* p) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return vld1q_f32(p + 4 * i); });
  }
  MOXIE_INLINE static void store(float* p, const F& x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
  }
  MOXIE_INLINE static F set1(float x) noexcept {
    return each([&](int) MOXIE_INLINE_LAMBDA { return vdupq_n_f32(x); });
  }
  MOXIE_INLINE static F add(const F& a, const F& b) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return vaddq_f32(a.v[i], b.v[i]); });
  }
  MOXIE_INLINE static F mul(const F& a, const F& b) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return vmulq_f32(a.v[i], b.v[i]); });
  }
  MOXIE_INLINE static F fma(const F& a, const F& b, const F& c) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  MOXIE_INLINE static F to_float(const Ints& x) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return vcvtq_f32_s32(x.v[i]); });
  }
  MOXIE_INLINE static F load_f16(const std::byte* p) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return from_f16(load_words(p + 8 * i)); });
  }
  MOXIE_INLINE static F load_bf16(const std::byte* p) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA {
      return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(load_words(p + 8 * i)), 16));
    });
  }
  /// As f16: the same fields moved give 2^-8 of the value. NaN is the code 0x7F.
  MOXIE_INLINE static F load_e4m3(const std::byte* p) noexcept {
    const uint8x16_t codes = vld1q_u8(as_u8(p));
    const auto half = [](uint8x8_t x) MOXIE_INLINE_LAMBDA {
      const uint16x8_t code = vmovl_u8(x), rest = vandq_u16(code, vdupq_n_u16(0x7f));
      const uint16x8_t nan = vandq_u16(vceqq_u16(rest, vdupq_n_u16(0x7f)), vdupq_n_u16(0x7e00));
      const uint16x8_t sign = vshlq_n_u16(vandq_u16(code, vdupq_n_u16(0x80)), 8);
      return vorrq_u16(vorrq_u16(sign, nan), vshlq_n_u16(rest, 7));
    };
    const uint16x8_t low = half(vget_low_u8(codes)), high = half(vget_high_u8(codes));
    return mul({from_f16(vget_low_u16(low)), from_f16(vget_high_u16(low)), from_f16(vget_low_u16(high)),
                from_f16(vget_high_u16(high))},
               set1(256));
  }
  MOXIE_INLINE static F load_ue4m3(const std::byte* p) noexcept {
    const uint8x16_t codes = vld1q_u8(as_u8(p));
    const uint16x8_t low = vshll_n_u8(vget_low_u8(codes), 7), high = vshll_n_u8(vget_high_u8(codes), 7);
    return mul(
        {from_f16(vget_low_u16(low)), from_f16(vget_high_u16(low)), from_f16(vget_low_u16(high)), from_f16(vget_high_u16(high))},
        set1(256));
  }
  MOXIE_INLINE static F load_e8m0_half(const std::byte* p) noexcept {
    const uint8x16_t x = vld1q_u8(as_u8(p));
    const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
    const auto power = [](uint32x4_t e, std::uint32_t bias) MOXIE_INLINE_LAMBDA {
      return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(e, vdupq_n_u32(bias)), 23));
    };
    const auto scale = [&](uint16x4_t words) MOXIE_INLINE_LAMBDA {
      const uint32x4_t c = vmovl_u16(words), half = vshrq_n_u32(c, 1);
      return vmulq_f32(power(half, 64), power(vsubq_u32(c, half), 62));
    };
    return {scale(vget_low_u16(low)), scale(vget_high_u16(low)), scale(vget_low_u16(high)), scale(vget_high_u16(high))};
  }
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept {
    const uint8x16_t x = vld1q_u8(as_u8(p));
    const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))};
  }
  MOXIE_INLINE static Ints halves(panel::Bytes16 bytes) noexcept {
    const auto x = (int8x16_t)bytes;
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
    return {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
            vmovl_s16(vget_high_s16(high))};
  }
  MOXIE_INLINE static F halves_float(const Ints& x) noexcept { return to_float(x); }
  MOXIE_INLINE static Ints load_ints(const std::byte* p) noexcept {
    Ints x;
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] = vreinterpretq_s32_u8(vld1q_u8(as_u8(p) + 16 * i));
    return x;
  }
  MOXIE_INLINE static void store_ints(std::byte* p, const Ints& x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_u8(as_u8(p) + 16 * i, vreinterpretq_u8_s32(x.v[i]));
  }
  template <int i, bool is_signed>
  MOXIE_INLINE static F code_floats(const Bytes& x) noexcept {
    return each([&](int r) MOXIE_INLINE_LAMBDA {
      const uint32x4_t top = vshlq_n_u32(vreinterpretq_u32_u8(x.v[r]), 24 - 8 * i);
      if constexpr (is_signed)
        return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(top), 24));
      else
        return vcvtq_f32_u32(vshrq_n_u32(top, 24));
    });
  }

  static constexpr bool sums_in_registers = false;
  /// Unpacked bytes are kept in the first-level cache: unpacking would take the pipes that the products need.
  template <int kind, bool offset>
  static constexpr int staged_from = 5;
  template <int kind, bool offset>
  static constexpr bool fours = false;
  enum Kind { whole, in_halves, in_float_halves };
  static constexpr bool halved(int kind) noexcept { return kind != whole; }
  template <class P>
  static constexpr int dot_kind = has_float_halves<P> ? in_float_halves
                                  : P::has_halves     ? in_halves
                                                      : whole;
  template <class P>
  static constexpr int zero = P::zero;
  static constexpr int panels = 1;
  static constexpr int unfetched = 0;
  /// Of 32 registers a token takes 3: the sums of 8 rows (of 4 rows in two halves) and half a block of activations; others: codes.
  /// A load of codes or activations then feeds 4 sdot, and 16 sums in flight cover a latency of 4 at 4 a cycle.
  template <int kind, bool offset, bool staged>
  static constexpr int tile = 8;

  template <class P>
  MOXIE_INLINE static Bytes operand(const Bytes& x) noexcept {
    return x;
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA {
      return vcvtq_f32_s32(vmlaq_n_s32(vmulq_n_s32(h[0].v[i], x.minus[1]), h[1].v[i], x.minus[2]));
    });
  }

  template <int kind, int zero, class Code, class Half, int T>
  MOXIE_INLINE static void dot(Code&& w, Half&& half, const Int8Block* x, F (&sums)[1][T]) noexcept {
    constexpr int together = (halved(kind) ? 2 : 4) / (T > 4 ? 2 : 1);  // registers of rows whose sums are in registers at once
    const decltype(half(0, 0)) h[2] = {half(0, 0), half(0, 1)};
    unroll_constant<4 / together>([&](auto pass) MOXIE_INLINE_LAMBDA {
      constexpr int row = pass.value * together;
      __asm__ volatile("" : "+r"(x));  // starts are loaded again in each pass: kept, they would take registers
      int32x4_t sum[2][T][together];
      unroll_constant<2>([&](auto part) MOXIE_INLINE_LAMBDA {
        constexpr int of = halved(kind) ? part.value : 0;  // the sums of the two halves of the block, or one for both
        int8x16_t a[T];
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          a[t] = vld1q_s8(x[t].q + 16 * part.value);
          if constexpr (part.value == of) {
            int32x4_t start = vdupq_n_s32(0);
            if constexpr (zero != 0) start = vshlq_n_s32(vdupq_n_s32(x[t].minus[halved(kind) ? 1 + of : 0]), __builtin_ctz(zero));
            MOXIE_UNROLL
            for (int r = 0; r < together; ++r) sum[of][t][r] = start;
          }
        }
        unroll_constant<4>([&](auto j) MOXIE_INLINE_LAMBDA {
          const Bytes code = w(0, 4 * part.value + j.value);
          MOXIE_UNROLL
          for (int r = 0; r < together; ++r) {
            MOXIE_UNROLL
            for (int t = 0; t < T; ++t)
              sum[of][t][r] = in_order(vdotq_laneq_s32(sum[of][t][r], vreinterpretq_s8_u8(code.v[row + r]), a[t], j.value));
          }
        });
      });
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) {
        MOXIE_UNROLL
        for (int r = 0; r < together; ++r) {
          int32x4_t total = sum[0][t][r];
          if constexpr (kind == in_float_halves) {
            const float32x4_t low = vmulq_f32(vcvtq_f32_s32(total), h[0].v[row + r]);
            sums[0][t].v[row + r] = vfmaq_f32(low, vcvtq_f32_s32(sum[1][t][r]), h[1].v[row + r]);
          } else {
            if constexpr (kind == in_halves) total = vmlaq_s32(vmulq_s32(total, h[0].v[row + r]), sum[1][t][r], h[1].v[row + r]);
            sums[0][t].v[row + r] = vcvtq_f32_s32(total);
          }
        }
      }
    });
  }

 private:
  /// Compilers keep the order written in dot(), whose operands fit in registers.
  MOXIE_INLINE static int32x4_t in_order(int32x4_t x) noexcept {
    __asm__ volatile("" : "+w"(x));
    return x;
  }
  MOXIE_INLINE static uint16x4_t load_words(const std::byte* p) noexcept { return vreinterpret_u16_u8(vld1_u8(as_u8(p))); }
  MOXIE_INLINE static float32x4_t from_f16(uint16x4_t x) noexcept { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
};

}  // namespace moxie::kernels

#endif
