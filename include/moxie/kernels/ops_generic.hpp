#pragma once
// Primitives for any CPU: xsimd's floats, and vectors of 16 bytes as GCC and clang have them for every architecture. See
// kernels/ops.hpp.

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/simd.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/panel.hpp>

namespace moxie::kernels {

/// Ops::minus_sums of architectures whose dot() multiplies all three words by the zero point.
struct MinusSums {
  MOXIE_INLINE static void minus_sums(const std::int8_t*, std::int32_t low, std::int32_t high, std::int32_t (&x)[3]) noexcept {
    x[0] = -(low + high);
    x[1] = -low;
    x[2] = -high;
  }
};

template <class A>
struct Ops : MinusSums {
  using V = Floats<A>;
  using Shorts = Lanes<std::int16_t, 8>;
  using Four = Lanes<std::int32_t, 4>;
  using FourFloats = Lanes<float, 4>;
  static constexpr int parts = 16 / static_cast<int>(V::size);
  struct Bytes {
    panel::Bytes16 v[4];
  };
  struct Ints {
    Four v[4];
  };
  struct F {
    V v[parts];
  };

  MOXIE_INLINE static Bytes load_bytes(const std::byte* p) noexcept {
    Bytes x;
    __builtin_memcpy(x.v, p, 64);
    return x;
  }
  MOXIE_INLINE static void store_bytes(std::byte* p, const Bytes& x) noexcept { __builtin_memcpy(p, x.v, 64); }
  template <int shift, int mask>
  MOXIE_INLINE static Bytes bits(Bytes x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) {
      auto words = (Lanes<std::uint16_t, 8>)x.v[i];  // what crosses bytes is masked off
      if constexpr (shift > 0) words >>= shift;
      if constexpr (shift < 0) words <<= -shift;
      x.v[i] = (panel::Bytes16)words & static_cast<std::uint8_t>(mask);
    }
    return x;
  }
  MOXIE_INLINE static Bytes merge(Bytes a, const Bytes& b) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) a.v[i] |= b.v[i];
    return a;
  }

  MOXIE_INLINE static Bytes lookup(panel::Bytes16 table, Bytes x) noexcept {
    std::uint8_t values[16], codes[64];
    panel::store16(values, table);
    __builtin_memcpy(codes, x.v, 64);
    for (std::uint8_t& c : codes) c = values[c];
    __builtin_memcpy(x.v, codes, 64);
    return x;
  }

  MOXIE_INLINE static Bytes spread(panel::Bytes16 x) noexcept {
    Bytes y;
    std::uint8_t bytes[16], rows[64];
    panel::store16(bytes, x);
    for (int i = 0; i < 64; ++i) rows[i] = bytes[i / 4];
    __builtin_memcpy(y.v, rows, 64);
    return y;
  }

  template <class Fn>
  MOXIE_INLINE static F each(Fn&& f) noexcept {
    F x;
    MOXIE_UNROLL
    for (int i = 0; i < parts; ++i) x.v[i] = f(i);
    return x;
  }
  /// From 4 floats of each of 4 parts.
  template <class Fn>
  MOXIE_INLINE static F from_fours(Fn&& f) noexcept {
    FourFloats fours[4];
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) fours[i] = f(i);
    F x;
    __builtin_memcpy(x.v, fours, 64);
    return x;
  }
  template <class Fn>
  MOXIE_INLINE static F from_scalars(Fn&& f) noexcept {
    alignas(64) float values[16];
    for (int i = 0; i < 16; ++i) values[i] = f(i);
    return load(values);
  }
  MOXIE_INLINE static F load(const float* p) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return V::load_unaligned(p + i * static_cast<int>(V::size)); });
  }
  MOXIE_INLINE static void store(float* p, const F& x) noexcept {
    MOXIE_UNROLL
    for (int i = 0; i < parts; ++i) x.v[i].store_unaligned(p + i * static_cast<int>(V::size));
  }
  MOXIE_INLINE static F set1(float x) noexcept {
    return each([&](int) MOXIE_INLINE_LAMBDA { return V(x); });
  }
  MOXIE_INLINE static F add(const F& a, const F& b) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return a.v[i] + b.v[i]; });
  }
  MOXIE_INLINE static F mul(const F& a, const F& b) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return a.v[i] * b.v[i]; });
  }
  MOXIE_INLINE static F fma(const F& a, const F& b, const F& c) noexcept {
    return each([&](int i) MOXIE_INLINE_LAMBDA { return madd(a.v[i], b.v[i], c.v[i]); });
  }
  MOXIE_INLINE static F to_float(const Ints& x) noexcept {
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA { return __builtin_convertvector(x.v[i], FourFloats); });
  }
  MOXIE_INLINE static F load_f16(const std::byte* p) noexcept {
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA { return four_f16(load_words(p + 8 * i)); });
  }
  MOXIE_INLINE static F load_bf16(const std::byte* p) noexcept {
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA { return (FourFloats)(load_words(p + 8 * i) << 16); });
  }
  MOXIE_INLINE static F load_e4m3(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return e4m3_to_f32(as_u8(p)[i]); });
  }
  MOXIE_INLINE static F load_ue4m3(const std::byte* p) noexcept {  // the fields of an f16, whose exponents are 8 lower
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA { return four_f16(load_four_bytes(p + 4 * i) << 7) * 256.0f; });
  }
  MOXIE_INLINE static F load_e8m0_half(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return e8m0_half(as_u8(p)[i]); });
  }
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept {
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA { return __builtin_convertvector(load_four_bytes(p + 4 * i), FourFloats); });
  }
  MOXIE_INLINE static Ints halves(panel::Bytes16 bytes) noexcept {
    std::byte values[16];
    __builtin_memcpy(values, &bytes, 16);
    Ints x;
    MOXIE_UNROLL
    for (int i = 0; i < 4; ++i) x.v[i] = (Four)(load_four_bytes(values + 4 * i) << 24) >> 24;
    return x;
  }
  MOXIE_INLINE static F halves_float(const Ints& x) noexcept { return to_float(x); }
  MOXIE_INLINE static Ints load_ints(const std::byte* p) noexcept {
    Ints x;
    __builtin_memcpy(x.v, p, 64);
    return x;
  }
  MOXIE_INLINE static void store_ints(std::byte* p, const Ints& x) noexcept { __builtin_memcpy(p, x.v, 64); }
  template <int i, bool is_signed>
  MOXIE_INLINE static F code_floats(const Bytes& x) noexcept {
    return from_fours([&](int r) MOXIE_INLINE_LAMBDA {
      const auto top = (Lanes<std::uint32_t, 4>)x.v[r] << (24 - 8 * i);
      return __builtin_convertvector(is_signed ? (Four)top >> 24 : (Four)(top >> 24), FourFloats);
    });
  }

  static constexpr bool sums_in_registers = false;
  enum Kind { unsigned_codes, signed_codes, in_halves, signed_in_halves, in_float_halves };
  template <class P>
  static constexpr int dot_kind = has_float_halves<P> ? in_float_halves
                                  : P::has_halves     ? (is_signed(P::codes) ? signed_in_halves : in_halves)
                                                      : (is_signed(P::codes) ? signed_codes : unsigned_codes);
  static constexpr int panels = 1;
  static constexpr int unfetched = 0;
  /// Of 16 registers a token takes 4, the sums of 4 rows each; others: even and odd codes and inputs.
  template <int kind, bool offset, bool staged>
  static constexpr int tile = 2;
  template <class P>
  static constexpr int zero = P::zero;
  /// Any number of tokens: without kernels that unpack in registers half as much is compiled.
  template <int kind, bool offset>
  static constexpr int staged_from = 1;
  template <int kind, bool offset>
  static constexpr bool fours = false;
  template <class P>
  MOXIE_INLINE static Bytes operand(const Bytes& x) noexcept {
    return x;
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    return from_fours([&](int i) MOXIE_INLINE_LAMBDA {
      return __builtin_convertvector(h[0].v[i] * x.minus[1] + h[1].v[i] * x.minus[2], FourFloats);
    });
  }

  template <int kind, int zero, class Code, class Half, int T>
  MOXIE_INLINE static void dot(Code&& w, Half&& half, const Int8Block* x, F (&sums_out)[1][T]) noexcept {
    constexpr bool is_signed = kind == signed_codes || kind == signed_in_halves;
    constexpr bool halved = kind == in_halves || kind == signed_in_halves || kind == in_float_halves;
    Ints sums[T];
    // Registers [first, end) of codes, from zero * minus[part] on
    const auto add_registers = [&](int part, int first, int end) MOXIE_INLINE_LAMBDA {
      MOXIE_UNROLL
      for (int t = 0; t < T; ++t) {
        const std::int32_t start = zero * x[t].minus[part];
        MOXIE_UNROLL
        for (int r = 0; r < 4; ++r) sums[t].v[r] = Four{start, start, start, start};
      }
      for (int j = first; j < end; ++j) {
        const Bytes codes = w(0, j);
        Shorts even[T], odd[T];  // inputs 0 and 2, 1 and 3 for each row
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          std::int32_t four;
          __builtin_memcpy(&four, x[t].q + 4 * j, 4);
          const auto all = (Shorts)Four{four, four, four, four};
          even[t] = low_bytes<true>(all);
          odd[t] = high_bytes<true>(all);
        }
        MOXIE_UNROLL
        for (int r = 0; r < 4; ++r) {
          const auto pairs = (Shorts)codes.v[r];
          const Shorts low = low_bytes<is_signed>(pairs), high = high_bytes<is_signed>(pairs);
          MOXIE_UNROLL
          for (int t = 0; t < T; ++t) sums[t].v[r] += products(low, even[t]) + products(high, odd[t]);
        }
      }
    };
    if constexpr (kind == in_float_halves) {
      F low[T];
      add_registers(1, 0, 4);
      for (int t = 0; t < T; ++t) low[t] = mul(to_float(sums[t]), half(0, 0));
      add_registers(2, 4, 8);
      for (int t = 0; t < T; ++t) sums_out[0][t] = fma(to_float(sums[t]), half(0, 1), low[t]);
      return;
    } else if constexpr (halved) {
      Ints low[T];
      add_registers(1, 0, 4);
      Ints h = half(0, 0);
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < 4; ++r) low[t].v[r] = sums[t].v[r] * h.v[r];
      add_registers(2, 4, 8);
      h = half(0, 1);
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < 4; ++r) sums[t].v[r] = low[t].v[r] + sums[t].v[r] * h.v[r];
    } else {
      add_registers(0, 0, 8);
    }
    for (int t = 0; t < T; ++t) sums_out[0][t] = to_float(sums[t]);
  }

 private:
  /// Bytes of pairs as int16.
  template <bool is_signed>
  MOXIE_INLINE static Shorts low_bytes(Shorts x) noexcept {
    return is_signed ? x << 8 >> 8 : x & 0xff;
  }
  template <bool is_signed>
  MOXIE_INLINE static Shorts high_bytes(Shorts x) noexcept {
    return is_signed ? x >> 8 : (Shorts)((Lanes<std::uint16_t, 8>)x >> 8);
  }
  /// a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1] of int8 and codes of 6 bits or int8: a product is an int16.
  MOXIE_INLINE static Four products(Shorts a, Shorts b) noexcept {
#if defined(__SSE2__)
    return (Four)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const auto both = (Four)(a * b);
    return (both << 16 >> 16) + (both >> 16);
#endif
  }
  MOXIE_INLINE static Lanes<std::uint32_t, 4> load_words(const std::byte* p) noexcept {
    Lanes<std::uint16_t, 4> x;
    __builtin_memcpy(&x, p, 8);
    return __builtin_convertvector(x, Lanes<std::uint32_t, 4>);
  }
  MOXIE_INLINE static Lanes<std::uint32_t, 4> load_four_bytes(const std::byte* p) noexcept {
    const std::uint32_t x = load_u32(p);
    return Lanes<std::uint32_t, 4>{x, x >> 8, x >> 16, x >> 24} & 0xff;
  }
  /// Without subnormal floats, with which processors are slow: scales of K-quants are often subnormal f16.
  MOXIE_INLINE static FourFloats four_f16(Lanes<std::uint32_t, 4> half) noexcept {
    using U = Lanes<std::uint32_t, 4>;
    const U fields = (half & 0x7fff) << 13, exponent = fields & 0x0f800000, sign = (half & 0x8000) << 16;
    const U normal = fields + 0x38000000 + ((U)(exponent == 0x0f800000) & 0x38000000);  // infinity and NaN: moved twice
    const auto subnormal = (U)((FourFloats)(fields + 0x38800000) - 0x1p-14f);
    const auto is_subnormal = (U)(exponent == 0);
    return (FourFloats)((normal & ~is_subnormal) | (subnormal & is_subnormal) | sign);
  }
};

}  // namespace moxie::kernels
