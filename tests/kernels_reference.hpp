#pragma once
// Weights of every format as random bytes of a file, and what they mean, written down once more from the formats' definitions; but
// for the grids of IQ formats, whose entries are what decode() gives (tests/quant.cpp compares these with ggml's).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/quant/formats.hpp>

namespace test {

using moxie::Dtype;

inline const Dtype int8_formats[] = {Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q2_K, Dtype::Q3_K, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K, Dtype::IQ1_S, Dtype::IQ1_M, Dtype::IQ2_XXS, Dtype::IQ2_XS, Dtype::IQ2_S, Dtype::IQ3_XXS, Dtype::IQ3_S, Dtype::IQ4_NL, Dtype::IQ4_XS, Dtype::MXFP4, Dtype::NVFP4, Dtype::TQ1_0, Dtype::TQ2_0};
inline const Dtype float_formats[] = {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3};

/// 32 consecutive weights: w[i] = scale * half[i / 16] * float_half[i / 16] * code[i] + offset * half_offset[i / 16]; `code` has
/// the zero point subtracted.
struct BlockMeaning {
  int code[32];
  int half[2] = {1, 1}, half_offset[2] = {1, 1};
  float float_half[2] = {1, 1};
  float scale = 0, offset = 0;
};

inline float f16_at(const std::uint8_t* p) {
  std::uint16_t h;
  std::memcpy(&h, p, 2);
  return moxie::f16_to_f32(h);
}

/// The 4-bit or 3-bit factor of the h-th 16 elements of a superblock of an IQ format whose codes are those of a grid.
inline int grid_factor(Dtype dtype, const std::uint8_t* p, int h) {
  const int b = h / 2, odd = h % 2;
  switch (dtype) {
    case Dtype::IQ1_S: return p[35 + 2 * b] / 16 % 8;
    case Dtype::IQ1_M: return (p[48 + h / 4 * 2] + 256 * p[49 + h / 4 * 2]) >> 3 * (h % 4) & 7;
    case Dtype::IQ2_XXS: return p[2 + 8 * b + 7] / 16;
    case Dtype::IQ2_XS: return odd ? p[66 + b] / 16 : p[66 + b] % 16;
    case Dtype::IQ2_S: return odd ? p[74 + b] / 16 : p[74 + b] % 16;
    case Dtype::IQ3_XXS: return p[66 + 4 * b + 3] / 16;
    case Dtype::IQ3_S: return b % 2 ? p[106 + b / 2] / 16 : p[106 + b / 2] % 16;
    default: return 0;
  }
}
constexpr bool is_grid_format(Dtype dtype) {
  return dtype == Dtype::IQ1_S || dtype == Dtype::IQ1_M || dtype == Dtype::IQ2_XXS || dtype == Dtype::IQ2_XS || dtype == Dtype::IQ2_S ||
         dtype == Dtype::IQ3_XXS || dtype == Dtype::IQ3_S;
}
constexpr bool is_ternary(Dtype dtype) { return dtype == Dtype::TQ1_0 || dtype == Dtype::TQ2_0; }

/// Block b of 32 of a row.
inline BlockMeaning meaning(Dtype dtype, const std::uint8_t* row, int b) {
  BlockMeaning m;
  const auto legacy = [&](int bytes, bool offset, bool fifth, int zero) {
    const std::uint8_t* p = row + bytes * b;
    m.scale = f16_at(p);
    p += 2;
    if (offset) m.offset = f16_at(p), p += 2;
    std::uint32_t high = 0;
    if (fifth) std::memcpy(&high, p, 4), p += 4;
    for (int i = 0; i < 32; ++i) {
      const int low = i < 16 ? p[i] & 15 : p[i - 16] >> 4;
      m.code[i] = low + (fifth ? static_cast<int>(high >> i & 1u) * 16 : 0) - zero;
    }
  };
  const auto scale_min = [](const std::uint8_t* s, int i, int& scale, int& min) {
    scale = i < 4 ? s[i] % 64 : s[i + 4] % 16 + s[i - 4] / 64 * 16;
    min = i < 4 ? s[i + 4] % 64 : s[i + 4] / 16 + s[i] / 64 * 16;
  };
  switch (dtype) {
    case Dtype::Q8_0:
      m.scale = f16_at(row + 34 * b);
      for (int i = 0; i < 32; ++i) m.code[i] = static_cast<std::int8_t>(row[34 * b + 2 + i]);
      break;
    case Dtype::Q4_0: legacy(18, false, false, 8); break;
    case Dtype::Q4_1: legacy(20, true, false, 0); break;
    case Dtype::Q5_0: legacy(22, false, true, 16); break;
    case Dtype::Q5_1: legacy(24, true, true, 0); break;
    case Dtype::Q4_K:
    case Dtype::Q5_K: {
      const bool five = dtype == Dtype::Q5_K;
      const std::uint8_t* p = row + (five ? 176 : 144) * (b / 8);
      int scale = 0, min = 0;
      scale_min(p + 4, b % 8, scale, min);
      m.scale = f16_at(p) * static_cast<float>(scale);
      m.offset = -(f16_at(p + 2) * static_cast<float>(min));
      const std::uint8_t* q = p + (five ? 48 : 16) + 32 * (b % 8 / 2);
      for (int i = 0; i < 32; ++i) m.code[i] = (b % 2 ? q[i] >> 4 : q[i] & 15) + (five ? (p[16 + i] >> (b % 8) & 1) * 16 : 0);
      break;
    }
    case Dtype::Q2_K: {
      const std::uint8_t* p = row + 84 * (b / 8);
      m.scale = f16_at(p + 80);
      m.offset = -f16_at(p + 82);
      for (int h = 0; h < 2; ++h) m.half[h] = p[2 * (b % 8) + h] % 16, m.half_offset[h] = p[2 * (b % 8) + h] / 16;
      for (int i = 0; i < 32; ++i) m.code[i] = p[16 + 32 * (b % 8 / 4) + i] >> 2 * (b % 4) & 3;
      break;
    }
    case Dtype::Q3_K: {
      const std::uint8_t* p = row + 110 * (b / 8);
      m.scale = f16_at(p + 108);
      for (int h = 0; h < 2; ++h) {
        const int s = 2 * (b % 8) + h;
        m.half[h] = (s < 8 ? p[96 + s] % 16 : p[96 + s - 8] / 16) + (p[104 + s % 4] >> 2 * (s / 4) & 3) * 16 - 32;
      }
      for (int i = 0; i < 32; ++i) m.code[i] = (p[32 + 32 * (b % 8 / 4) + i] >> 2 * (b % 4) & 3) + (p[i] >> b % 8 & 1) * 4 - 4;
      break;
    }
    case Dtype::Q6_K: {
      const std::uint8_t* p = row + 210 * (b / 8);
      m.scale = f16_at(p + 208);
      for (int h = 0; h < 2; ++h) m.half[h] = static_cast<std::int8_t>(p[192 + 2 * (b % 8) + h]);
      for (int i = 0; i < 32; ++i) {
        const int e = 32 * (b % 8) + i, half = e / 128, in = e % 128;  // element of the superblock
        const int low = p[64 * half + in % 64] >> (in / 64 * 4) & 15;
        const int high = p[128 + 32 * half + in % 32] >> (in / 32 * 2) & 3;
        m.code[i] = low + 16 * high - 32;
      }
      break;
    }
    case Dtype::IQ4_NL:
    case Dtype::IQ4_XS: {
      const int values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
      const bool xs = dtype == Dtype::IQ4_XS;
      const std::uint8_t* p = row + (xs ? 136 * (b / 8) : 18 * b);
      m.scale = f16_at(p);
      if (xs) {
        const int in = b % 8, low = p[4 + in / 2] / (in % 2 ? 16 : 1) % 16, high = (p[2] + 256 * p[3]) / (1 << 2 * in) % 4;
        m.scale *= static_cast<float>(low + 16 * high - 32);
      }
      const std::uint8_t* q = p + (xs ? 8 + 16 * (b % 8) : 2);
      for (int i = 0; i < 32; ++i) m.code[i] = values[i < 16 ? q[i] & 15 : q[i - 16] >> 4];
      break;
    }
    case Dtype::MXFP4: {
      const int values[8] = {0, 1, 2, 3, 4, 6, 8, 12};
      const std::uint8_t* p = row + 17 * b;
      m.scale = std::ldexp(1.0f, p[0] - 128);
      for (int i = 0; i < 32; ++i) {
        const int q = i < 16 ? p[1 + i] & 15 : p[1 + i - 16] >> 4;
        m.code[i] = q < 8 ? values[q] : -values[q - 8];
      }
      break;
    }
    case Dtype::NVFP4: {
      const int values[8] = {0, 1, 2, 3, 4, 6, 8, 12};
      const std::uint8_t* p = row + 36 * (b / 2);
      m.scale = 0.5f;
      for (int h = 0; h < 2; ++h) {
        const int part = 2 * (b % 2) + h, e = p[part] / 8 % 16, mantissa = p[part] % 8;
        m.float_half[h] = p[part] == 0x7f ? 0 : e == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), e - 10);
        for (int i = 0; i < 16; ++i) {
          const int q = i < 8 ? p[4 + 8 * part + i] % 16 : p[4 + 8 * part + i - 8] / 16;
          m.code[16 * h + i] = q < 8 ? values[q] : -values[q - 8];
        }
      }
      break;
    }
    case Dtype::TQ1_0:
    case Dtype::TQ2_0: {
      const bool packed = dtype == Dtype::TQ1_0;
      const std::uint8_t* p = row + (packed ? 54 : 66) * (b / 8);
      m.scale = f16_at(p + (packed ? 52 : 64));
      m.offset = -m.scale;
      for (int i = 0; i < 32; ++i) {
        const int e = 32 * (b % 8) + i;
        if (packed) {
          const int byte = e < 160 ? e % 32 : e < 240 ? 32 + e % 16 : 48 + e % 4, digit = e < 160 ? e / 32 : e < 240 ? (e - 160) / 16 : (e - 240) / 4;
          const int power[5] = {1, 3, 9, 27, 81};
          m.code[i] = p[byte] * power[digit] % 256 * 3 / 256;
        } else {
          m.code[i] = p[e / 128 * 32 + e % 32] >> 2 * (e / 32 % 4) & 3;
        }
      }
      break;
    }
    default: break;
  }
  if (is_grid_format(dtype)) {
    const bool four = dtype == Dtype::IQ3_XXS || dtype == Dtype::IQ3_S;
    const std::uint8_t* p = row + moxie::dtype_info(dtype).block_bytes * static_cast<unsigned>(b / 8);
    float d = f16_at(p), weights[256];
    if (dtype == Dtype::IQ1_M) {
      const std::uint8_t bytes[2] = {static_cast<std::uint8_t>(p[49] / 16 + p[51] / 16 * 16), static_cast<std::uint8_t>(p[53] / 16 + p[55] / 16 * 16)};
      d = f16_at(bytes);
    }
    moxie::decode_row(dtype, reinterpret_cast<const std::byte*>(p), weights, 256);
    for (int h = 0; h < 2; ++h) m.half[h] = 1 + 2 * grid_factor(dtype, p, 2 * (b % 8) + h);
    m.scale = d / (four ? 4 : 8);
    for (int i = 0; i < 32; ++i)
      m.code[i] = static_cast<int>(std::lround(weights[32 * (b % 8) + i] / (m.scale * static_cast<float>(m.half[i / 16]))));
    if (four) m.scale *= static_cast<float>(m.half[0]), m.half[0] = m.half[1] = 1;
  }
  return m;
}

/// Offsets of the f16 fields of a block.
inline std::vector<int> f16_fields(Dtype dtype) {
  switch (dtype) {
    case Dtype::Q4_1:
    case Dtype::Q5_1:
    case Dtype::Q4_K:
    case Dtype::Q5_K: return {0, 2};
    case Dtype::Q2_K: return {80, 82};
    case Dtype::Q3_K: return {108};
    case Dtype::Q6_K: return {208};
    case Dtype::TQ1_0: return {52};
    case Dtype::TQ2_0: return {64};
    case Dtype::MXFP4:
    case Dtype::NVFP4:
    case Dtype::IQ1_M: return {};
    default: return {0};
  }
}

/// Rows of random codes with scales of usual size, [rows][row bytes].
struct FileRows {
  std::vector<std::uint8_t> bytes;
  std::size_t stride;
  const std::uint8_t* row(std::int64_t r) const { return bytes.data() + static_cast<std::size_t>(r) * stride; }
};

inline FileRows random_rows(Dtype dtype, std::int64_t rows, std::int64_t k, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> small(-0.06f, 0.06f);
  FileRows file;
  const moxie::DtypeInfo& info = moxie::dtype_info(dtype);
  file.stride = moxie::row_bytes(dtype, static_cast<std::uint64_t>(k));
  file.bytes.resize(static_cast<std::size_t>(rows) * file.stride);
  for (std::uint8_t& b : file.bytes) b = static_cast<std::uint8_t>(random());
  const std::size_t n = file.bytes.size();
  if (dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16) {
    for (std::size_t i = 0; i < n; i += info.block_bytes) {
      const float x = small(random);
      const std::uint16_t h = dtype == Dtype::F16 ? moxie::f32_to_f16(x) : moxie::f32_to_bf16(x);
      std::memcpy(&file.bytes[i], dtype == Dtype::F32 ? static_cast<const void*>(&x) : &h, info.block_bytes);
    }
  } else if (dtype == Dtype::F8_E4M3) {
    for (std::uint8_t& b : file.bytes)
      if ((b & 0x7f) == 0x7f) b = 0x7e;
  } else if (dtype == Dtype::MXFP4) {
    for (std::size_t i = 0; i < n; i += info.block_bytes) file.bytes[i] = static_cast<std::uint8_t>(118 + file.bytes[i] % 6);
  } else if (dtype == Dtype::IQ1_M) {
    for (std::size_t i = 0; i < n; i += info.block_bytes) {
      const std::uint16_t h = moxie::f32_to_f16(small(random));
      for (std::size_t nibble = 0; nibble < 4; ++nibble) {
        std::uint8_t& b = file.bytes[i + 49 + 2 * nibble];
        b = static_cast<std::uint8_t>(b % 16 | (h >> 4 * nibble & 15) << 4);
      }
    }
  } else {
    for (std::size_t i = 0; i < n; i += info.block_bytes)
      for (const int field : f16_fields(dtype)) {
        const std::uint16_t h = moxie::f32_to_f16(small(random));
        std::memcpy(&file.bytes[i + static_cast<std::size_t>(field)], &h, 2);
      }
  }
  return file;
}

/// Rows of int8 activations: codes [rows, k], scales of 32.
struct Int8Rows {
  std::vector<std::int8_t> q;
  std::vector<float> d;
};

inline Int8Rows int8_rows(std::vector<std::int8_t> codes, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(0.001f, 0.05f);
  Int8Rows a;
  a.q = std::move(codes);
  a.d.resize(a.q.size() / 32);
  for (float& d : a.d) d = scale(random);
  return a;
}
inline Int8Rows random_int8_rows(std::int64_t rows, std::int64_t k, unsigned seed) {
  std::mt19937 random(seed + 1);
  std::vector<std::int8_t> q(static_cast<std::size_t>(rows * k));
  for (std::int8_t& v : q) v = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  return int8_rows(std::move(q), seed);
}

/// The order of operations that kernels/panel_int8.hpp promises, for one output element.
inline float int8_model(Dtype dtype, const std::uint8_t* w, const Int8Rows& a, std::int64_t row, std::int64_t k) {
  const bool chunk_scale = dtype == Dtype::Q6_K || dtype == Dtype::Q3_K || (is_grid_format(dtype) && dtype != Dtype::IQ3_XXS && dtype != Dtype::IQ3_S);
  float acc = 0, part = 0;
  for (std::int64_t b = 0; b < k / 32; ++b) {
    const BlockMeaning m = meaning(dtype, w, static_cast<int>(b));
    const std::int8_t* q = a.q.data() + row * k + 32 * b;
    const float d = a.d[static_cast<std::size_t>(row * (k / 32) + b)];
    int products[2] = {0, 0}, sums[2] = {0, 0};
    for (int i = 0; i < 32; ++i) products[i / 16] += m.code[i] * q[i], sums[i / 16] += q[i];
    const int isum = m.half[0] * products[0] + m.half[1] * products[1];
    if (chunk_scale) {
      part = std::fma(static_cast<float>(isum), d, part);
      if (b % 8 == 7) acc = std::fma(part, m.scale, acc), part = 0;
      continue;
    }
    if (dtype == Dtype::NVFP4) {
      const float sum = std::fma(static_cast<float>(products[1]), m.float_half[1], static_cast<float>(products[0]) * m.float_half[0]);
      acc = std::fma(sum, m.scale * d, acc);
      continue;
    }
    acc = std::fma(static_cast<float>(isum), m.scale * d, acc);
    if (dtype == Dtype::Q2_K || is_ternary(dtype))
      acc = std::fma(static_cast<float>(m.half_offset[0] * sums[0] + m.half_offset[1] * sums[1]), m.offset * d, acc);
    else if (f16_fields(dtype).size() == 2)
      acc = std::fma(m.offset, static_cast<float>(sums[0] + sums[1]) * d, acc);
  }
  return acc;
}

}  // namespace test
