#pragma once
// Looks tensors up by name, checks shape, type and size of each, and reports everything that was wrong in one FormatError.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie::families {

enum class Presence { absent, optional, required };

using Shape = std::vector<std::int64_t>;

inline std::string shape_text(const Shape& shape) {
  TensorView view;
  view.shape = shape;
  return view.shape_text();
}

/// Elements [first, first + count) of a vector.
inline TensorView slice_vector(const TensorView& view, std::int64_t first, std::int64_t count) {
  TensorView part = view;
  const std::uint64_t element = dtype_info(view.dtype).block_bytes;
  part.shape = {count};
  part.data = view.data + static_cast<std::uint64_t>(first) * element;
  part.bytes = static_cast<std::uint64_t>(count) * element;
  part.offset = view.offset + static_cast<std::uint64_t>(first) * element;
  return part;
}

/// Looks tensors up, checks them, and remembers what was wrong.
class TensorFinder {
 public:
  TensorFinder(const TensorMap& tensors, std::string file) : tensors_(tensors), file_(std::move(file)) {}

  bool has(const std::string& name) const { return tensors_.find(name) != nullptr; }
  void ignore(const std::string& name) {
    if (const TensorView* view = tensors_.find(name)) used_.insert(view);
  }

  /// A matrix, or several of them stacked, of any weight type.
  std::optional<Weight> matrix(const std::string& name, const Shape& shape, Presence presence = Presence::required) {
    const TensorView* view = find(name, shape, presence);
    if (!view || !check_shape(*view, shape)) return std::nullopt;
    if (!is_weight_type(view->dtype))
      return wrong(name, concat("has type ", type_name(*view), "; it must be a floating-point or quantized type"));
    const DtypeInfo& info = dtype_info(view->dtype);
    if (view->columns() % info.block_elements != 0)
      return wrong(name, concat("has rows of ", view->columns(), " elements, no multiple of the block of ", type_name(*view),
                                ", ", info.block_elements));
    if (view->bytes != static_cast<std::uint64_t>(view->rows()) * view->row_stride())
      return wrong(name, concat("has ", view->bytes, " bytes, which does not fit its shape and type"));
    Weight weight{*view, std::nullopt};
    if (view->dtype == Dtype::F8_E4M3 && shape.size() > 2) return several_in_fp8(name);
    if (view->dtype == Dtype::F8_E4M3) {
      const Shape blocks{(shape[0] + 127) / 128, (shape.back() + 127) / 128};
      const TensorView* scale = find(concat(name, "_scale_inv"), blocks, Presence::required);
      if (!scale || !check_shape(*scale, blocks)) return std::nullopt;
      if (scale->dtype != Dtype::F32) return wrong(scale->name, concat("has type ", type_name(*scale), "; it must be F32"));
      weight.scale_inv = *scale;
    }
    return weight;
  }
  /// Bytes that mean something only beside others.
  std::optional<TensorView> bytes(const std::string& name, const Shape& shape) {
    const TensorView* view = find(name, shape, Presence::required);
    if (!view || !check_shape(*view, shape)) return std::nullopt;
    if (view->dtype != Dtype::U8) return wrong(name, concat("has type ", type_name(*view), "; it must be U8"));
    if (view->bytes != static_cast<std::uint64_t>(view->elements()))
      return wrong(name, concat("has ", view->bytes, " bytes, which does not fit its shape and type"));
    return *view;
  }
  /// The same as matrix(), of F32, F16 or BF16.
  std::optional<Weight> floats(const std::string& name, const Shape& shape) {
    std::optional<Weight> weight = matrix(name, shape);
    if (weight && (dtype_info(weight->tensor.dtype).block_elements != 1 || weight->scale_inv))
      return wrong(name, concat("has type ", type_name(weight->tensor), "; it must be F32, F16 or BF16"));
    return weight;
  }
  /// A vector of F32, F16 or BF16; [1, n], [n, 1] and [groups, n / groups] are taken as [n].
  std::optional<Weight> vector(const std::string& name, std::int64_t n, Presence presence = Presence::required,
                               std::int64_t groups = 1) {
    const TensorView* view = find(name, {n}, presence);
    if (!view) return std::nullopt;
    const bool flat = view->shape == Shape{n, 1} || view->shape == Shape{groups, n / groups};
    if (!flat && !check_shape(*view, {n})) return std::nullopt;
    if (view->dtype != Dtype::F32 && view->dtype != Dtype::F16 && view->dtype != Dtype::BF16)
      return wrong(name, concat("has type ", type_name(*view), "; it must be F32, F16 or BF16"));
    if (view->bytes != static_cast<std::uint64_t>(n) * dtype_info(view->dtype).block_bytes)
      return wrong(name, concat("has ", view->bytes, " bytes, which does not fit its shape and type"));
    Weight weight{*view, std::nullopt};
    weight.tensor.shape = {n};
    return weight;
  }

  std::nullopt_t wrong(const std::string& name, const std::string& what) {
    if (problems_.size() < shown) problems_.emplace_back(name, what);
    ++count_;
    return std::nullopt;
  }
  /// Of a tensor that holds several matrices, with whose scales of blocks it would have to be split.
  std::nullopt_t several_in_fp8(const std::string& name) {
    return wrong(name,
                 "holds several matrices in FP8 with one scale for each 128 x 128; moxie has that for single matrices only");
  }
  /// So much is wrong that looking on would only cost time.
  bool hopeless() const noexcept { return count_ > 10000; }
  /// Throws FormatError when something was missing or wrong.
  void check() const {
    if (count_ == 0) return;
    std::string text = count_ == 1 ? problems_.front().second
                                   : concat(count_, (hopeless() ? " or more" : ""), " tensors are missing or wrong: ");
    if (count_ > 1) {
      for (std::size_t i = 0; i < problems_.size(); ++i)
        text += concat((i ? "; '" : "'"), problems_[i].first, "' ", problems_[i].second);
      if (count_ > problems_.size()) text += concat("; and ", count_ - problems_.size(), " more");
    }
    throw FormatError({file_, count_ == 1 ? concat("tensor '", problems_.front().first, "'") : std::string(), {}}, text);
  }
  /// Throws FormatError when the file has tensors that nobody asked for and that `belongs` says are part of the decoder.
  template <class F>
  void check_unused(const std::string& family, F&& belongs) const {
    std::string list;
    std::size_t unused = 0;
    for (const auto& [name, view] : tensors_.all()) {
      if (used_.contains(&view) || !belongs(name)) continue;
      if (++unused <= shown) list += concat((unused == 1 ? "'" : ", '"), name, "'");
    }
    if (unused == 0) return;
    if (unused > shown) list += concat(", and ", unused - shown, " more");
    throw FormatError({file_, {}, {}}, concat("the configuration (family ", family, ") has no place for ",
                                              (unused == 1 ? "this tensor: " : "these tensors: "), list,
                                              "; leaving them out would change the result"));
  }

 private:
  static constexpr std::size_t shown = 10;

  static bool is_weight_type(Dtype dtype) noexcept {
    switch (dtype) {
      case Dtype::I8:
      case Dtype::I16:
      case Dtype::I32:
      case Dtype::I64:
      case Dtype::F64:
      case Dtype::F8_E5M2:
      case Dtype::U8:
      case Dtype::U16:
      case Dtype::U32:
      case Dtype::U64:
      case Dtype::BOOL:
      case Dtype::F8_E8M0:
        return false;
      default:
        return true;
    }
  }
  static std::string type_name(const TensorView& view) { return std::string(dtype_info(view.dtype).name); }

  const TensorView* find(const std::string& name, const Shape& shape, Presence presence) {
    if (presence == Presence::absent) return nullptr;
    const TensorView* view = tensors_.find(name);
    if (view) used_.insert(view);
    if (!view && presence == Presence::required) wrong(name, concat("is missing; it must have the shape ", shape_text(shape)));
    return view;
  }
  bool check_shape(const TensorView& view, const Shape& shape) {
    if (view.shape == shape) return true;
    wrong(view.name, concat("has the shape ", view.shape_text(), "; it must be ", shape_text(shape)));
    return false;
  }

  const TensorMap& tensors_;
  std::string file_;
  std::unordered_set<const TensorView*> used_;
  std::vector<std::pair<std::string, std::string>> problems_;
  std::size_t count_ = 0;
};

}  // namespace moxie::families
