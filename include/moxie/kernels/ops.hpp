#pragma once
// The primitives of an architecture on which the loops of panel_int8.hpp and panel_f32.hpp are written: Ops<Arch>.
//
//   Bytes     64 codes, one register of a panel's block (quant/panel.hpp)
//   Ints, F   16 int32, 16 f32: one for each row of a panel
//
//   bits<shift, mask>(x)       (x >> shift) & mask in each byte; a negative shift goes left      merge(a, b)   a | b
//   lookup(table, x)           byte x of the 16 of `table` for each byte x, which is below 16
//   spread(x)                  each of the 16 bytes four times
//   halves(x)                  the 16 signed bytes x, scales of halves of blocks, as dot() and offset_sums() want them
//   code_floats<i, sign>(x)    byte 4 r + i of each row r as f32
//   halves_float(x)            what halves gives, as f32
//   load, store, set1, add, mul, fma, to_float, load_f16, load_bf16, load_e4m3, load_ue4m3 (16 bytes without
//   sign, 0x7F is 480), load_e8m0_half, load_u8, load_ints,
//   store_ints, load_bytes, store_bytes
//
// and the dot products of a tile of tokens with one block of 32 inputs, which every architecture does in its own way:
//
//   dot_kind<Panel>            the way for the codes of a format; formats with one kind share their compiled loops
//   operand<Panel>(x)          codes in the form in which dot() wants them
//   zero<Panel>                what dot() subtracts from the operand's codes, 0 or a power of two
//   minus_sums(q, low, high, x)      the words of an Int8Block that carry the zero point
//   dot<kind, zero>(code, half, x, sums)      sums[p][t], of panel p: float(sum over the block of (code - zero) * x[t].q), exact.
//                              With halves, the sums of 16 are multiplied by half(p, 0) and half(p, 1) first; those of floats
//                              give fma(float(second sum), half(p, 1), float(first sum) * half(p, 0)), of which only the end may
//                              be rounded. code(p, j) gives register j.
//   offset_sums(x, h)          -float(h[0] * sum of the first 16 of x.q + h[1] * sum of the last 16), exact
//   staged_from<kind, offset>  the least number of tokens for which unpacked codes are kept in the first-level cache, if they are
//                              no fewer than Tuning::stage_from; 1: always
//   sums_in_registers          whether the float sums of a tile fit in registers beside the integer ones
//   panels                     panels of which a tile may take all at once
//   tile<kind, offset, staged> tokens of a full tile: as many as the registers hold
//   fours<kind, offset>        whether tiles of 4 tokens are faster than larger ones
//   unfetched                  tokens of tiles that nothing is fetched ahead for, unless the CPU wants it (Tuning, and
//                              panel_int8.hpp)
//
// All integer sums are exact, so every architecture gives the same ones.

#include <moxie/kernels/ops_generic.hpp>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <moxie/kernels/ops_avx2.hpp>
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#include <moxie/kernels/ops_avxvnni.hpp>
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <moxie/kernels/ops_neon.hpp>
#endif
#if defined(MOXIE_AVX512) || defined(MOXIE_AVX512_EMULATED)
#include <moxie/kernels/ops_avx512.hpp>
#endif
