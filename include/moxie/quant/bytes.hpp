#pragma once
// Fields of packed blocks, at any alignment. All files that moxie reads are little-endian, as the machines it runs on.
// Used by kernel headers: nothing here may be emitted out of line.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <moxie/core/floats.hpp>

namespace moxie {

MOXIE_INLINE const std::uint8_t* as_u8(const std::byte* p) noexcept { return reinterpret_cast<const std::uint8_t*>(p); }
MOXIE_INLINE std::uint8_t* as_u8(std::byte* p) noexcept { return reinterpret_cast<std::uint8_t*>(p); }

MOXIE_INLINE std::uint16_t load_u16(const void* p) noexcept {
  std::uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
MOXIE_INLINE std::uint32_t load_u32(const void* p) noexcept {
  std::uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
MOXIE_INLINE void store_u16(void* p, std::uint16_t v) noexcept { std::memcpy(p, &v, sizeof v); }
MOXIE_INLINE void store_u32(void* p, std::uint32_t v) noexcept { std::memcpy(p, &v, sizeof v); }

MOXIE_INLINE float load_f16(const void* p) noexcept { return f16_to_f32(load_u16(p)); }

}  // namespace moxie
