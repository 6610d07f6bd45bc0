#pragma once
// Primitives for AVX2 with FMA and F16C. See kernels/ops.hpp.
//
// vpmaddubsw multiplies unsigned codes by signed activations and adds pairs to int16, saturating at 32767: a pair of 6-bit codes
// reaches 2 * 63 * 127 = 16002. Its results are added in int16 as long as the sum fits, and only then widened by vpmaddwd
// (for halves with the 16-wide scales as factors, which cost nothing there). Additions wrap, so only the last sum has to fit:
//
//   codes                  terms in a lane   largest sum
//   u4                     16                16 * 15 * 127 = 30480
//   u4 around 8            16                16 *  8 * 127 = 16256     the lane starts at -zero times the sum of its activations
//   u5 around 16           16                16 * 16 * 127 = 32512     likewise
//   u5                      8                 8 * 31 * 127 = 31496     two such sums
//   u6 around 32            8                 8 * 32 * 127 = 32512     each half of 16 has its own start and scale
//   u5 around 16            8                 8 * 16 * 127 = 16256     likewise, in halves (IQ1, NVFP4)
//   u3 around 4, u2         8                 8 *  4 * 127 =  4064     likewise
//   s8                      2                 2 * 128 * 127 = 32512    |code| times the activation with the code's sign
//   s7                      4                 4 *  64 * 127 = 32512    likewise

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <moxie/core/floats.hpp>
#include <moxie/kernels/arch.hpp>
#include <moxie/kernels/ops_generic.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/kernels/unroll.hpp>
#include <moxie/quant/panel.hpp>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
namespace moxie::kernels {

template <>
struct Ops<Avx2> {
  struct Bytes {
    __m256i lo, hi;
  };
  using Ints = Bytes;
  struct F {
    __m256 lo, hi;
  };

  MOXIE_INLINE static Bytes load_bytes(const std::byte* p) noexcept { return {load_256(p), load_256(p + 32)}; }
  MOXIE_INLINE static void store_bytes(std::byte* p, Bytes x) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.hi);
  }
  template <int shift, int mask>
  MOXIE_INLINE static Bytes bits(Bytes x) noexcept {  // shifted by words: what crosses bytes is masked off
    if constexpr (shift > 0) x = {_mm256_srli_epi16(x.lo, shift), _mm256_srli_epi16(x.hi, shift)};
    if constexpr (shift < 0) x = {_mm256_slli_epi16(x.lo, -shift), _mm256_slli_epi16(x.hi, -shift)};
    const __m256i m = _mm256_set1_epi8(mask);
    return {_mm256_and_si256(x.lo, m), _mm256_and_si256(x.hi, m)};
  }
  MOXIE_INLINE static Bytes merge(Bytes a, Bytes b) noexcept {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
  }

  MOXIE_INLINE static Bytes lookup(panel::Bytes16 table, Bytes x) noexcept {
    const __m256i t = _mm256_broadcastsi128_si256((__m128i)table);
    return {_mm256_shuffle_epi8(t, x.lo), _mm256_shuffle_epi8(t, x.hi)};
  }

  MOXIE_INLINE static Bytes spread(panel::Bytes16 x) noexcept {
    const __m256i both = _mm256_broadcastsi128_si256((__m128i)x);
    const __m256i row =
        _mm256_setr_epi32(0x00000000, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606, 0x07070707);
    return {_mm256_shuffle_epi8(both, row), _mm256_shuffle_epi8(both, _mm256_or_si256(row, _mm256_set1_epi8(8)))};
  }

  MOXIE_INLINE static F load(const float* p) noexcept { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  MOXIE_INLINE static void store(float* p, F x) noexcept {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  MOXIE_INLINE static F set1(float x) noexcept { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  MOXIE_INLINE static F add(F a, F b) noexcept { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  MOXIE_INLINE static F mul(F a, F b) noexcept { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  MOXIE_INLINE static F fma(F a, F b, F c) noexcept {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  MOXIE_INLINE static F to_float(Ints x) noexcept { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
  MOXIE_INLINE static F load_f16(const std::byte* p) noexcept {
    return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 16))};
  }
  MOXIE_INLINE static F load_bf16(const std::byte* p) noexcept {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p + 16)), 16))};
  }
  /// As f16: the same fields moved give 2^-8 of the value. NaN is the code 0x7F.
  MOXIE_INLINE static F load_e4m3(const std::byte* p) noexcept {
    const __m256i code = _mm256_cvtepu8_epi16(load_128(p)), rest = _mm256_and_si256(code, _mm256_set1_epi16(0x7f));
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(rest, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
    const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), code), 8);
    const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(rest, 7));
    return mul({_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))}, set1(256));
  }
  MOXIE_INLINE static F load_ue4m3(const std::byte* p) noexcept {
    const __m256i half = _mm256_slli_epi16(_mm256_cvtepu8_epi16(load_128(p)), 7);
    return mul({_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))}, set1(256));
  }
  MOXIE_INLINE static F load_e8m0_half(const std::byte* p) noexcept {
    const auto power = [](__m256i e, int bias) MOXIE_INLINE_LAMBDA {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(bias)), 23));
    };
    const auto scale = [&](__m256i c) MOXIE_INLINE_LAMBDA {
      const __m256i half = _mm256_srli_epi32(c, 1);
      return _mm256_mul_ps(power(half, 64), power(_mm256_sub_epi32(c, half), 62));
    };
    const __m128i x = load_128(p);
    return {scale(_mm256_cvtepu8_epi32(x)), scale(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
  }
  MOXIE_INLINE static F load_u8(const std::byte* p) noexcept {
    const __m128i x = load_128(p);
    return to_float({_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))});
  }
  /// Each scale as a pair of equal int16, the factors of vpmaddwd.
  MOXIE_INLINE static Ints halves(panel::Bytes16 bytes) noexcept {
    const __m256i x = _mm256_cvtepi8_epi16((__m128i)bytes);
    const __m256i low = _mm256_unpacklo_epi16(x, x), high = _mm256_unpackhi_epi16(x, x);
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  }
  MOXIE_INLINE static F halves_float(Ints x) noexcept {
    return to_float({_mm256_srai_epi32(x.lo, 16), _mm256_srai_epi32(x.hi, 16)});
  }
  MOXIE_INLINE static Ints load_ints(const std::byte* p) noexcept { return load_bytes(p); }
  MOXIE_INLINE static void store_ints(std::byte* p, Ints x) noexcept { store_bytes(p, x); }
  template <int i, bool is_signed>
  MOXIE_INLINE static F code_floats(Bytes x) noexcept {
    if constexpr (i < 3) x = {_mm256_slli_epi32(x.lo, 24 - 8 * i), _mm256_slli_epi32(x.hi, 24 - 8 * i)};
    if constexpr (is_signed)
      return to_float({_mm256_srai_epi32(x.lo, 24), _mm256_srai_epi32(x.hi, 24)});
    else
      return to_float({_mm256_srli_epi32(x.lo, 24), _mm256_srli_epi32(x.hi, 24)});
  }

  static constexpr bool sums_in_registers = false;
  enum Kind { eight_sums, four_sums, in_halves, signed_codes, signed_pairs, signed_pairs_in_halves, in_float_halves };
  /// Unpacked bytes are kept in the first-level cache: unpacking would take the ports that the products need.
  template <int kind, bool offset>
  static constexpr int staged_from = 5;
  template <int kind, bool offset>
  static constexpr bool fours = false;
  template <class P>
  static constexpr int zero = P::zero;
  template <class P>
  static constexpr int dot_kind = has_float_halves<P>     ? in_float_halves
                                  : P::codes == Codes::s8 ? signed_codes
                                  : P::codes == Codes::s7 ? (P::has_halves ? signed_pairs_in_halves : signed_pairs)
                                  : P::has_halves         ? in_halves
                                  : P::codes == Codes::u4 || P::zero != 0 ? eight_sums
                                                                          : four_sums;
  static constexpr int panels = 1;
  static constexpr int unfetched = 0;
  /// Of 16 registers a token takes 2 (the int16 sums of 8 rows each); others: 2 of codes, one broadcast,
  /// one product (and ones, or the codes' absolute values). Float sums live in cache.
  template <int kind, bool offset, bool staged>
  static constexpr int tile = kind == eight_sums  ? 6
                              : kind == four_sums ? 5
                                                  : 4;

  template <class P>
  MOXIE_INLINE static Bytes operand(Bytes x) noexcept {
    return x;
  }
  /// Pairs of int16: the sums that the even and the odd pairs of codes of a half (of both) give.
  MOXIE_INLINE static void minus_sums(const std::int8_t* q, std::int32_t, std::int32_t, std::int32_t (&x)[3]) noexcept {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    pairs = _mm256_sub_epi16(_mm256_setzero_si256(), pairs);
    const __m128i low = _mm256_castsi256_si128(pairs), high = _mm256_extracti128_si256(pairs, 1);
    x[0] = _mm_cvtsi128_si32(_mm_add_epi16(low, high));
    x[1] = _mm_cvtsi128_si32(low);
    x[2] = _mm_cvtsi128_si32(high);
  }

  MOXIE_INLINE static F offset_sums(const Int8Block& x, const Ints (&h)[2]) noexcept {
    const __m256i first = _mm256_set1_epi32(x.minus[1]), second = _mm256_set1_epi32(x.minus[2]);
    return to_float({_mm256_add_epi32(_mm256_madd_epi16(first, h[0].lo), _mm256_madd_epi16(second, h[1].lo)),
                     _mm256_add_epi32(_mm256_madd_epi16(first, h[0].hi), _mm256_madd_epi16(second, h[1].hi))});
  }

  template <int kind, int zero, class Code, class Half, int T>
  MOXIE_INLINE static void dot(Code&& w, Half&& half, const Int8Block* x, F (&sums_out)[1][T]) noexcept {
    Ints sums[T];
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (kind == signed_codes) {
      MOXIE_UNROLL
      for (int j = 0; j < 8; ++j) {
        const Bytes code = w(0, j);
        const Bytes size{_mm256_abs_epi8(code.lo), _mm256_abs_epi8(code.hi)};
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          const __m256i a = broadcast(x[t].q + 4 * j);
          const __m256i lo = _mm256_madd_epi16(_mm256_maddubs_epi16(size.lo, _mm256_sign_epi8(a, code.lo)), ones);
          const __m256i hi = _mm256_madd_epi16(_mm256_maddubs_epi16(size.hi, _mm256_sign_epi8(a, code.hi)), ones);
          if (j == 0)
            sums[t] = {lo, hi};
          else
            sums[t] = {sum32(sums[t].lo, lo), sum32(sums[t].hi, hi)};
        }
      }
    } else if constexpr (kind == signed_pairs || kind == signed_pairs_in_halves) {
      MOXIE_UNROLL
      for (int pair = 0; pair < 4; ++pair) {
        Bytes lanes[T];
        MOXIE_UNROLL
        for (int j = 2 * pair; j < 2 * pair + 2; ++j) {
          const Bytes code = w(0, j);
          const Bytes size{_mm256_abs_epi8(code.lo), _mm256_abs_epi8(code.hi)};
          MOXIE_UNROLL
          for (int t = 0; t < T; ++t) {
            const __m256i a = broadcast(x[t].q + 4 * j);
            const __m256i lo = _mm256_maddubs_epi16(size.lo, _mm256_sign_epi8(a, code.lo));
            const __m256i hi = _mm256_maddubs_epi16(size.hi, _mm256_sign_epi8(a, code.hi));
            if (j == 2 * pair)
              lanes[t] = {lo, hi};
            else
              lanes[t] = {sum16(lanes[t].lo, lo), sum16(lanes[t].hi, hi)};
          }
        }
        const Bytes factor = kind == signed_pairs ? Bytes{ones, ones} : half(0, pair / 2);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          const __m256i lo = _mm256_madd_epi16(lanes[t].lo, factor.lo), hi = _mm256_madd_epi16(lanes[t].hi, factor.hi);
          if (pair == 0)
            sums[t] = {lo, hi};
          else
            sums[t] = {_mm256_add_epi32(sums[t].lo, lo), _mm256_add_epi32(sums[t].hi, hi)};
        }
      }
    } else {
      // Registers [first, end) of codes, summed in int16, then widened into `sums`
      const auto add_group = [&](int first, int end, int part, Bytes factor, bool more) MOXIE_INLINE_LAMBDA {
        Bytes lanes[T];
        MOXIE_UNROLL
        for (int j = first; j < end; ++j) {
          const Bytes code = w(0, j);
          MOXIE_UNROLL
          for (int t = 0; t < T; ++t) {
            const __m256i a = broadcast(x[t].q + 4 * j);
            const __m256i lo = _mm256_maddubs_epi16(code.lo, a), hi = _mm256_maddubs_epi16(code.hi, a);
            if (j == first) {
              if constexpr (zero != 0) {
                const __m256i s = _mm256_slli_epi16(_mm256_set1_epi32(x[t].minus[part]), __builtin_ctz(zero == 0 ? 1 : zero));
                lanes[t] = {sum16(s, lo), sum16(s, hi)};
              } else {
                lanes[t] = {lo, hi};
              }
            } else {
              lanes[t] = {sum16(lanes[t].lo, lo), sum16(lanes[t].hi, hi)};
            }
          }
        }
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) {
          const __m256i lo = _mm256_madd_epi16(lanes[t].lo, factor.lo), hi = _mm256_madd_epi16(lanes[t].hi, factor.hi);
          if (more)
            sums[t] = {_mm256_add_epi32(sums[t].lo, lo), _mm256_add_epi32(sums[t].hi, hi)};
          else
            sums[t] = {lo, hi};
        }
      };
      if constexpr (kind == in_float_halves) {
        add_group(0, 4, 1, Bytes{ones, ones}, false);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) sums_out[0][t] = mul(to_float(sums[t]), half(0, 0));
        add_group(4, 8, 2, Bytes{ones, ones}, false);
        MOXIE_UNROLL
        for (int t = 0; t < T; ++t) sums_out[0][t] = fma(to_float(sums[t]), half(0, 1), sums_out[0][t]);
        return;
      } else if constexpr (kind == eight_sums) {
        add_group(0, 8, 0, Bytes{ones, ones}, false);
      } else {
        add_group(0, 4, 1, kind == in_halves ? half(0, 0) : Bytes{ones, ones}, false);
        add_group(4, 8, 2, kind == in_halves ? half(0, 1) : Bytes{ones, ones}, true);
      }
    }
    MOXIE_UNROLL
    for (int t = 0; t < T; ++t) sums_out[0][t] = to_float(sums[t]);
  }

 private:
  // Compilers must not balance the additions of a lane into a tree: its leaves would not fit in registers.
  MOXIE_INLINE static __m256i sum16(__m256i a, __m256i b) noexcept {
    a = _mm256_add_epi16(a, b);
    __asm__("" : "+x"(a));
    return a;
  }
  MOXIE_INLINE static __m256i sum32(__m256i a, __m256i b) noexcept {
    a = _mm256_add_epi32(a, b);
    __asm__("" : "+x"(a));
    return a;
  }
  MOXIE_INLINE static __m128i load_128(const std::byte* p) noexcept {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  MOXIE_INLINE static __m256i load_256(const std::byte* p) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  /// vbroadcastss is a load alone. vpbroadcastd, which compilers take for integers, is more with 256 bits: on Zen 5, 8 of them
  /// and 16 vpaddd take 5 cycles instead of 4.
  MOXIE_INLINE static __m256i broadcast(const std::int8_t* p) noexcept {
    __m256i four;
    __asm__("vbroadcastss %1, %0" : "=x"(four) : "m"(*reinterpret_cast<const std::int8_t(*)[4]>(p)));
    return four;
  }
};

}  // namespace moxie::kernels
#endif
