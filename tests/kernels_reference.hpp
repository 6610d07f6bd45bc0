#pragma once
// Weights of every format as random bytes of a file, and what they mean, written down once more from the formats' definitions.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <moxie/core/dtype.hpp>
#include <moxie/core/floats.hpp>

namespace test {

using moxie::Dtype;

inline const Dtype int8_formats[] = {Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q2_K, Dtype::Q3_K, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K, Dtype::IQ4_NL, Dtype::IQ4_XS, Dtype::MXFP4};
inline const Dtype float_formats[] = {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3};

/// 32 consecutive weights: w[i] = scale * half[i / 16] * code[i] + offset * half_offset[i / 16]; `code` has the zero point
/// subtracted.
struct BlockMeaning {
  int code[32];
  int half[2] = {1, 1}, half_offset[2] = {1, 1};
  float scale = 0, offset = 0;
};

inline float f16_at(const std::uint8_t* p) {
  std::uint16_t h;
  std::memcpy(&h, p, 2);
  return moxie::f16_to_f32(h);
}

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
    default: break;
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
    case Dtype::MXFP4: return {};
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
  const bool chunk_scale = dtype == Dtype::Q6_K || dtype == Dtype::Q3_K;
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
    acc = std::fma(static_cast<float>(isum), m.scale * d, acc);
    if (dtype == Dtype::Q2_K)
      acc = std::fma(static_cast<float>(m.half_offset[0] * sums[0] + m.half_offset[1] * sums[1]), m.offset * d, acc);
    else if (f16_fields(dtype).size() == 2)
      acc = std::fma(m.offset, static_cast<float>(sums[0] + sums[1]) * d, acc);
  }
  return acc;
}

}  // namespace test
