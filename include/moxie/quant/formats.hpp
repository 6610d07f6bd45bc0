#pragma once
// From an element type known at run time to its format: with_format, and rows decoded and encoded through it.
//
// The list itself is quant/format_list.hpp. Errors: UnsupportedError names the formats that would be right.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/quant/format_list.hpp>

namespace moxie {

/// "F32, F16, .., Q6_K": all formats, or those that can be written.
template <class... Format>
std::string format_names(TypeList<Format...>, bool only_encodable = false) {
  std::string names;
  const auto add = [&](const char* name, bool wanted) {
    if (wanted) names += (names.empty() ? "" : ", ") + std::string(name);
  };
  (add(Format::name, !only_encodable || EncodableFormat<Format>), ...);
  return names;
}

/// The name of a type, or "type 99" for an id that is not known.
inline std::string dtype_text(Dtype dtype) {
  const auto id = static_cast<std::uint32_t>(dtype);
  const DtypeInfo* info = find_dtype(id);
  return info ? std::string(info->name) : concat("type ", id);
}

constexpr bool is_format(Dtype dtype) noexcept {
  return []<class... Format>(TypeList<Format...>, Dtype d) { return ((d == Format::dtype) || ...); }(Formats{}, dtype);
}

namespace detail {
template <class First, class... Rest, class F>
decltype(auto) with_format_of(TypeList<First, Rest...>, Dtype dtype, F&& f, Place&& place) {
  if (dtype == First::dtype) return f(First{});
  if constexpr (sizeof...(Rest) > 0)
    return with_format_of(TypeList<Rest...>{}, dtype, std::forward<F>(f), std::move(place));
  else
    throw UnsupportedError(std::move(place), concat("weights of ", dtype_text(dtype), " are not supported; supported are ",
                                                    format_names(Formats{})));
}
}  // namespace detail

/// f(Format{}) for the format of this type. Throws UnsupportedError at `place` when there is none.
template <class F>
decltype(auto) with_format(Dtype dtype, F&& f, Place place = {}) {
  return detail::with_format_of(Formats{}, dtype, std::forward<F>(f), std::move(place));
}

namespace detail {
/// Block and name of a type that has a format. Throws UnsupportedError at `place` when it has none.
inline const DtypeInfo& format_info(Dtype dtype, Place place = {}) {
  with_format(
      dtype, [](auto) {}, std::move(place));
  return dtype_info(dtype);
}
inline void check_row_length(Dtype dtype, std::int64_t n) {
  const DtypeInfo& format = format_info(dtype);
  if (const auto block = static_cast<std::int64_t>(format.block_elements); n < 0 || n % block != 0)
    throw ArgumentError(
        concat("a row of ", n, " elements cannot be ", format.name, ": its length must be a multiple of ", block));
}
template <class Format>
void check_encodable() {
  if constexpr (!EncodableFormat<Format>)
    throw UnsupportedError(
        concat(Format::name, " can be read but not written; what can be written is ", format_names(Formats{}, true)));
}
}  // namespace detail

// Not inlined: the decoders of all formats in one place of the program, instead of in every caller.

/// One row: src is n elements as they lie in a file, at any alignment; dst is n floats.
/// Throws UnsupportedError, or ArgumentError when n is not a multiple of the type's block.
[[gnu::noinline]] inline void decode_row(Dtype dtype, const std::byte* src, float* dst, std::int64_t n) {
  detail::check_row_length(dtype, n);
  with_format(dtype, [&]<class Format>(Format) { Format::decode(src, dst, n); });
}

/// One row of n finite floats to the type's blocks (row_bytes(dtype, n) bytes). What NaN, infinity and magnitudes beyond f16
/// become in block formats is unspecified; encode_rows of quant/quantize.hpp rejects them.
/// Throws UnsupportedError, or ArgumentError when n is not a multiple of the type's block.
[[gnu::noinline]] inline void encode_row(Dtype dtype, const float* src, std::byte* dst, std::int64_t n) {
  detail::check_row_length(dtype, n);
  with_format(dtype, [&]<class Format>(Format) {
    detail::check_encodable<Format>();
    if constexpr (EncodableFormat<Format>) Format::encode(src, dst, n);
  });
}

}  // namespace moxie
