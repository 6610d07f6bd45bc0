#pragma once
// Tensors as they lie in files: names, shapes, types and the mapped bytes. Filled by io/, read by model/.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>

namespace moxie {

/// A tensor in mapped memory. `data` may have any alignment; it lives as long as the TensorMap (or file) it came from.
struct TensorView {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;  ///< fastest dimension last: a matrix is [rows (outputs), columns (inputs)]
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  std::string file;
  std::uint64_t offset = 0;  ///< of `data` in `file`
  /// 0: rows of blocks. Else 16 rows each lie in a panel of so many bytes, as kernels/ multiplies them (a packed model); such rows
  /// cannot be read one by one.
  std::uint64_t panel_bytes = 0;

  std::int64_t elements() const noexcept {
    std::int64_t n = 1;
    for (const std::int64_t d : shape) n *= d;
    return n;
  }
  std::int64_t columns() const noexcept { return shape.empty() ? 1 : shape.back(); }
  std::int64_t rows() const noexcept { return columns() == 0 ? 0 : elements() / columns(); }
  std::uint64_t row_stride() const noexcept {
    return panel_bytes != 0 ? panel_bytes / 16 : row_bytes(dtype, static_cast<std::uint64_t>(columns()));
  }
  Place place() const { return {file, concat("tensor '", name, "'"), offset}; }

  std::string shape_text() const {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) text += concat((i ? ", " : ""), shape[i]);
    return concat(text, "]");
  }

  /// Rows [first, first + count) as a matrix view.
  TensorView slice_rows(std::int64_t first, std::int64_t count) const {
    TensorView part = *this;
    part.shape = {count, columns()};
    part.data = data + static_cast<std::uint64_t>(first) * row_stride();
    part.bytes = static_cast<std::uint64_t>(count) * row_stride();
    part.offset = offset + static_cast<std::uint64_t>(first) * row_stride();
    return part;
  }
  /// Element i of the first dimension, e.g. one expert of [experts, rows, columns].
  TensorView slice(std::int64_t i) const {
    TensorView part = *this;
    part.shape.erase(part.shape.begin());
    const std::uint64_t step = bytes / static_cast<std::uint64_t>(shape[0]);
    part.data = data + static_cast<std::uint64_t>(i) * step;
    part.bytes = step;
    part.offset = offset + static_cast<std::uint64_t>(i) * step;
    return part;
  }
};

/// All tensors of a model, by name. Copies share the mapping.
class TensorMap {
 public:
  using Release = std::function<void(const std::byte*, std::uint64_t)>;

  TensorMap() = default;
  /// `keep` owns the mappings; `release` tells the system that these mapped bytes will not be read again soon (may be empty).
  TensorMap(std::map<std::string, TensorView, std::less<>> tensors, std::shared_ptr<const void> keep, Release release)
      : tensors_(std::move(tensors)), keep_(std::move(keep)), release_(std::move(release)) {}

  const TensorView* find(std::string_view name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }
  const std::map<std::string, TensorView, std::less<>>& all() const noexcept { return tensors_; }
  /// What keeps the mapped bytes.
  const std::shared_ptr<const void>& owner() const noexcept { return keep_; }
  /// Other tensors in the same mapped bytes.
  TensorMap with_tensors(std::map<std::string, TensorView, std::less<>> tensors) const {
    return {std::move(tensors), keep_, release_};
  }
  void release(const TensorView& view) const {
    if (release_) release_(view.data, view.bytes);
  }

 private:
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::shared_ptr<const void> keep_;
  Release release_;
};

}  // namespace moxie
