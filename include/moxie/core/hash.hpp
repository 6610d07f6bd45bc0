#pragma once
// XXH64: a fast 64-bit hash of bytes, to notice changes; not against somebody who makes collisions on purpose.
//
// Source: xxHash fast digest algorithm, version 0.1.1 (github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moxie {

inline std::uint64_t xxh64(const void* bytes, std::size_t n, std::uint64_t seed = 0) noexcept {
  constexpr std::uint64_t p1 = 0x9E3779B185EBCA87, p2 = 0xC2B2AE3D27D4EB4F, p3 = 0x165667B19E3779F9, p4 = 0x85EBCA77C2B2AE63,
                          p5 = 0x27D4EB2F165667C5;
  const auto* p = static_cast<const unsigned char*>(bytes);
  const auto load = [&]<class T>(T) {
    T value;
    std::memcpy(&value, p, sizeof value);
    p += sizeof value;
    return static_cast<std::uint64_t>(value);
  };
  const auto round = [&](std::uint64_t sum, std::uint64_t lane) { return std::rotl(sum + lane * p2, 31) * p1; };
  std::size_t left = n;
  std::uint64_t hash = seed + p5;
  if (left >= 32) {
    std::uint64_t sums[4] = {seed + p1 + p2, seed + p2, seed, seed - p1};
    for (; left >= 32; left -= 32)
      for (std::uint64_t& sum : sums) sum = round(sum, load(std::uint64_t{}));
    hash = std::rotl(sums[0], 1) + std::rotl(sums[1], 7) + std::rotl(sums[2], 12) + std::rotl(sums[3], 18);
    for (const std::uint64_t sum : sums) hash = (hash ^ round(0, sum)) * p1 + p4;
  }
  hash += n;
  for (; left >= 8; left -= 8) hash = std::rotl(hash ^ round(0, load(std::uint64_t{})), 27) * p1 + p4;
  for (; left >= 4; left -= 4) hash = std::rotl(hash ^ load(std::uint32_t{}) * p1, 23) * p2 + p3;
  for (; left >= 1; left -= 1) hash = std::rotl(hash ^ load(std::uint8_t{}) * p5, 11) * p1;
  hash = (hash ^ hash >> 33) * p2;
  hash = (hash ^ hash >> 29) * p3;
  return hash ^ hash >> 32;
}

}  // namespace moxie
