#pragma once
// GGUF's constants: value types of metadata, limits, and which tensor types a file may hold.
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

#include <cstdint>
#include <string>
#include <string_view>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>

namespace moxie {

enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

namespace gguf {

inline constexpr std::uint32_t magic = 0x46554747;  // "GGUF"
inline constexpr std::uint32_t version = 3;
inline constexpr std::uint32_t default_alignment = 32;
inline constexpr std::uint64_t max_key_length = 65535;
inline constexpr std::uint64_t max_name_length = 64;
inline constexpr int max_array_depth = 8;  // ggml reads no nested arrays at all, the format's text sets no limit

constexpr bool is_type(std::uint32_t id) noexcept { return id <= static_cast<std::uint32_t>(GgufType::f64); }

constexpr std::string_view type_name(GgufType type) noexcept {
  constexpr std::string_view names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
  return names[static_cast<std::uint32_t>(type)];
}

/// The fewest bytes that a value takes in a file.
constexpr std::uint64_t least_bytes(GgufType type) noexcept {
  constexpr std::uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return sizes[static_cast<std::uint32_t>(type)];
}

constexpr bool is_alignment(std::uint64_t n) noexcept { return n != 0 && (n & (n - 1)) == 0 && n <= 0x80000000u; }

/// nullptr where GGUF has no such tensor type, or has it no more.
constexpr const DtypeInfo* find_tensor_type(std::uint32_t id) noexcept { return id < 1000 ? find_dtype(id) : nullptr; }

inline std::string tensor_type_error(std::uint32_t id) {
  const bool removed = id == 4 || id == 5 || (id >= 31 && id <= 33) || (id >= 36 && id <= 38);
  return concat("tensor type ", id,
                (removed ? " was removed from GGUF; convert the model again with a current converter"
                         : " is unknown; the types end at 40 (NVFP4): the file is corrupt, or newer than this version of moxie"));
}

}  // namespace gguf
}  // namespace moxie
