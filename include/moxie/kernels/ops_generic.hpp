#pragma once
// Primitives for any CPU: xsimd's floats, integer loops that compilers vectorize. See kernels/ops.hpp.

#include <cstddef>
#include <cstdint>

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
  static constexpr int parts = 16 / static_cast<int>(V::size);
  struct Bytes {
    std::uint8_t v[64];
  };
  struct Ints {
    std::int32_t v[16];
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
    for (std::uint8_t& v : x.v) {
      if constexpr (shift >= 0)
        v = static_cast<std::uint8_t>(v >> shift & mask);
      else
        v = static_cast<std::uint8_t>(v << -shift & mask);
    }
    return x;
  }
  MOXIE_INLINE static Bytes merge(Bytes a, const Bytes& b) noexcept {
    for (int i = 0; i < 64; ++i) a.v[i] = static_cast<std::uint8_t>(a.v[i] | b.v[i]);
    return a;
  }

  MOXIE_INLINE static Bytes lookup(panel::Bytes16 table, Bytes x) noexcept {
    std::uint8_t values[16];
    panel::store16(values, table);
    for (std::uint8_t& v : x.v) v = values[v];
    return x;
  }

  MOXIE_INLINE static Bytes spread(panel::Bytes16 bytes) noexcept {
    Bytes x;
    for (int i = 0; i < 64; ++i) x.v[i] = bytes[i / 4];
    return x;
  }

  template <class Fn>
  MOXIE_INLINE static F each(Fn&& f) noexcept {
    F x;
    MOXIE_UNROLL
    for (int i = 0; i < parts; ++i) x.v[i] = f(i);
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
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return static_cast<float>(x.v[i]); });
  }
  MOXIE_INLINE static F load_f16(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return moxie::load_f16(p + 2 * i); });
  }
  MOXIE_INLINE static F load_bf16(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return bf16_to_f32(load_u16(p + 2 * i)); });
  }
  MOXIE_INLINE static F load_e4m3(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return e4m3_to_f32(as_u8(p)[i]); });
  }
  MOXIE_INLINE static F load_ue4m3(const std::byte* p) noexcept {  // the fields of an f16, whose exponents are 8 lower
    return from_scalars([&](int i)
                            MOXIE_INLINE_LAMBDA { return f16_to_f32(static_cast<std::uint16_t>(as_u8(p)[i] << 7)) * 256; });
  }
  MOXIE_INLINE static F load_e8m0_half(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return e8m0_half(as_u8(p)[i]); });
  }
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept {
    return from_scalars([&](int i) MOXIE_INLINE_LAMBDA { return static_cast<float>(as_u8(p)[i]); });
  }
  MOXIE_INLINE static Ints halves(panel::Bytes16 bytes) noexcept {
    Ints x;
    for (int i = 0; i < 16; ++i) x.v[i] = static_cast<std::int8_t>(bytes[i]);
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
    return from_scalars([&](int r) MOXIE_INLINE_LAMBDA {
      const std::uint8_t code = x.v[4 * r + i];
      return is_signed ? static_cast<float>(static_cast<std::int8_t>(code)) : static_cast<float>(code);
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
  template <int kind, bool offset, bool staged>
  static constexpr int tile = 4;
  template <class P>
  static constexpr int zero = P::zero;
  /// Its registers of codes are memory anyway, and so much less is compiled.
  template <int kind, bool offset>
  static constexpr int staged_from = 1;
  template <int kind, bool offset>
  static constexpr bool fours = false;
  template <class P>
  MOXIE_INLINE static Bytes operand(const Bytes& x) noexcept {
    return x;
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    return from_scalars([&](int i)
                            MOXIE_INLINE_LAMBDA { return static_cast<float>(x.minus[1] * h[0].v[i] + x.minus[2] * h[1].v[i]); });
  }

  template <int kind, int zero, class Code, class Half, int T>
  MOXIE_INLINE static void dot(Code&& w, Half&& half, const Int8Block* x, F (&sums_out)[1][T]) noexcept {
    constexpr bool is_signed = kind == signed_codes || kind == signed_in_halves;
    constexpr bool halved = kind == in_halves || kind == signed_in_halves || kind == in_float_halves;
    Ints sums[T];
    for (int t = 0; t < T; ++t) {
      const std::int32_t first = zero * x[t].minus[halved ? 1 : 0];
      for (std::int32_t& s : sums[t].v) s = first;
    }
    const auto add_registers = [&](int first, int end) MOXIE_INLINE_LAMBDA {
      for (int j = first; j < end; ++j) {
        const Bytes codes = w(0, j);
        for (int t = 0; t < T; ++t) {
          std::int32_t a[4];
          for (int i = 0; i < 4; ++i) a[i] = x[t].q[4 * j + i];
          for (int r = 0; r < 16; ++r) {
            std::int32_t s = 0;
            for (int i = 0; i < 4; ++i) {
              const std::uint8_t code = codes.v[4 * r + i];
              s += (is_signed ? static_cast<std::int8_t>(code) : code) * a[i];
            }
            sums[t].v[r] += s;
          }
        }
      }
    };
    if constexpr (kind == in_float_halves) {
      F low[T];
      add_registers(0, 4);
      for (int t = 0; t < T; ++t) {
        low[t] = mul(to_float(sums[t]), half(0, 0));
        for (std::int32_t& s : sums[t].v) s = zero * x[t].minus[2];
      }
      add_registers(4, 8);
      for (int t = 0; t < T; ++t) sums_out[0][t] = fma(to_float(sums[t]), half(0, 1), low[t]);
      return;
    } else if constexpr (halved) {
      add_registers(0, 4);
      const Ints h[2] = {half(0, 0), half(0, 1)};
      Ints low[T];
      for (int t = 0; t < T; ++t) {
        const std::int32_t second = zero * x[t].minus[2];
        for (int r = 0; r < 16; ++r) low[t].v[r] = sums[t].v[r] * h[0].v[r], sums[t].v[r] = second;
      }
      add_registers(4, 8);
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < 16; ++r) sums[t].v[r] = low[t].v[r] + sums[t].v[r] * h[1].v[r];
    } else {
      add_registers(0, 8);
    }
    for (int t = 0; t < T; ++t) sums_out[0][t] = to_float(sums[t]);
  }
};

}  // namespace moxie::kernels
