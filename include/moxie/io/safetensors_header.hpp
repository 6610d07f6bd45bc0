#pragma once
// Reads the header of one safetensors file.
//
//   u64 length of the header (at most 100 000 000), the header, the data
//   header: a JSON object, padded with spaces: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//           "__metadata__": {"key": "value"}}; offsets count from the begin of the data
//
// The header is read as a stream of events, without a tree in memory. Names and fields must be unique, the tensors must cover
// the data from the first byte to the last without holes or overlaps, and dtype, shape and offsets must agree. Also refused:
// fields that the format does not define, tensors of more than 16 dimensions. Errors: FormatError or UnsupportedError with
// tensor and byte offset. Source: the format's text in the safetensors README.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/byte_reader.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_text.hpp>
#include <moxie/io/memory_budget.hpp>

namespace moxie::safetensors {

inline constexpr std::uint64_t max_header_bytes = 100'000'000;
inline constexpr std::size_t max_dims = 16;

using Tensors = std::map<std::string, TensorView, std::less<>>;
using Metadata = std::map<std::string, std::string, std::less<>>;

/// nullptr where the format has no such type, or moxie has none.
constexpr const DtypeInfo* find_type(std::string_view name) noexcept {
  constexpr Dtype types[] = {Dtype::BOOL, Dtype::U8,  Dtype::I8,  Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F8_E8M0,
                             Dtype::I16,  Dtype::U16, Dtype::F16, Dtype::BF16,    Dtype::I32,     Dtype::U32,
                             Dtype::F32,  Dtype::F64, Dtype::I64, Dtype::U64};
  for (const Dtype type : types) {
    if (dtype_info(type).name == name) return &dtype_info(type);
  }
  return nullptr;
}

/// Characters of the header; tells how far the parser has read.
class HeaderIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  HeaderIterator(const char* at, const char** read) : at_(at), read_(read) {}
  reference operator*() const noexcept { return *at_; }
  HeaderIterator& operator++() noexcept {
    *read_ = ++at_;
    return *this;
  }
  bool operator==(const HeaderIterator& other) const noexcept { return at_ == other.at_; }
  bool operator!=(const HeaderIterator& other) const noexcept { return at_ != other.at_; }

 private:
  const char* at_;
  const char** read_;
};

/// Takes the parser's events and fills the tables; offsets in the views are relative to the data until read_header() places them.
class HeaderEvents final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderEvents(const MappedFile& file, std::string_view header, MemoryBudget& budget, Tensors& tensors, Metadata& metadata)
      : file_(file), header_(header), read_(header.data()), budget_(budget), tensors_(tensors), metadata_(metadata) {}

  void parse() {
    const char* end = header_.data() + header_.size();
    nlohmann::json::sax_parse(HeaderIterator(header_.data(), &read_), HeaderIterator(end, &read_), this);
  }
  std::vector<TensorView*>& added() noexcept { return added_; }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { unexpected("the negative number " + std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { unexpected("the number " + in_quotes(text)); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        fail("dimension " + std::to_string(value) + " does not fit 63 bits");
      if (view_.shape.size() == max_dims) {
        throw UnsupportedError(place(),
                               "the tensor has more than " + std::to_string(max_dims) + " dimensions, which moxie does not read");
      }
      view_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == State::offsets) {
      if (n_offsets_ == 2) fail("data_offsets must have two numbers, begin and end");
      offsets_[n_offsets_++] = value;
    } else {
      unexpected("the number " + std::to_string(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::metadata) {
      charge(MemoryBudget::map_node(2 * sizeof(std::string)) + MemoryBudget::string(name_.size()) +
             MemoryBudget::string(value.size()));
      if (!metadata_.emplace(name_, value).second) fail("the key appears twice");
    } else if (state_ == State::tensor && field_ == dtype_field) {
      type_ = find_type(value);
      if (!type_) {
        throw UnsupportedError(place(), "dtype " + in_quotes(value) +
                                            " is not supported; moxie reads BOOL, U8, I8, F8_E4M3, F8_E5M2, F8_E8M0, "
                                            "I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64");
      }
    } else {
      unexpected("the string " + in_quotes(value));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (state_ == State::begin) {
      state_ = State::top;
    } else if (state_ == State::top) {
      state_ = name_ == "__metadata__" ? State::metadata : State::tensor;
      if (state_ == State::metadata && std::exchange(metadata_seen_, true)) fail("appears twice");
      view_ = {};
      type_ = nullptr;
      seen_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (state_ == State::tensor) {
      field_ = value == "dtype" ? dtype_field : value == "shape" ? shape_field : value == "data_offsets" ? offsets_field : 0;
      if (field_ == 0) fail("has the unknown field " + in_quotes(value) + "; dtype, shape and data_offsets are defined");
      if (seen_ & field_) fail("has the field " + in_quotes(value) + " twice");
      seen_ |= field_;
    } else {
      name_ = value;
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::tensor) add_tensor();
    state_ = state_ == State::top ? State::end : State::top;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::tensor && field_ == shape_field) {
      state_ = State::shape;
    } else if (state_ == State::tensor && field_ == offsets_field) {
      state_ = State::offsets;
      n_offsets_ = 0;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    state_ = State::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    throw FormatError({file_.path(), "header", header_begin + (position == 0 ? 0 : position - 1)}, json_error_text(error.what()));
  }

 private:
  static constexpr std::uint64_t header_begin = 8;
  static constexpr unsigned dtype_field = 1, shape_field = 2, offsets_field = 4;
  enum class State { begin, top, metadata, tensor, shape, offsets, end };

  Place place() const {
    std::string item = "header";
    if (state_ != State::begin && state_ != State::end && (state_ != State::top || !name_.empty()))
      item = "entry " + in_quotes(name_);
    return {file_.path(), std::move(item), header_begin + static_cast<std::uint64_t>(read_ - header_.data())};
  }
  [[noreturn]] void fail(const std::string& message) const { throw FormatError(place(), message); }
  [[noreturn]] void unexpected(const std::string& what) const {
    switch (state_) {
      case State::begin:
        fail("the header must be a JSON object, not " + what);
      case State::top:
        fail("must be a JSON object, not " + what);
      case State::metadata:
        fail("a value of __metadata__ must be a string, not " + what);
      case State::shape:
        fail("a dimension must be a non-negative integer, not " + what);
      case State::offsets:
        fail("data_offsets must be non-negative integers, not " + what);
      case State::tensor:
        fail(std::string(field_ == dtype_field   ? "dtype must be a string"
                         : field_ == shape_field ? "shape must be an array"
                                                 : "data_offsets must be an array") +
             ", not " + what);
      case State::end:
        break;
    }
    fail("unexpected " + what);
  }
  void charge(std::uint64_t bytes) {
    budget_.charge(bytes, [&] { return place(); });
  }

  void add_tensor() {
    if (!(seen_ & dtype_field)) fail("the field dtype is missing");
    if (!(seen_ & shape_field)) fail("the field shape is missing");
    if (!(seen_ & offsets_field)) fail("the field data_offsets is missing");
    if (n_offsets_ != 2) fail("data_offsets must have two numbers, begin and end");
    const auto [begin, end] = offsets_;
    if (begin > end) fail("data_offsets end at " + std::to_string(end) + ", before they begin at " + std::to_string(begin));
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    std::uint64_t bytes = type_->block_bytes;
    for (const std::int64_t dim : view_.shape) {
      const auto size = static_cast<std::uint64_t>(dim);
      if (size != 0 && bytes > most / size) fail("the size of shape " + view_.shape_text() + " does not fit 63 bits");
      bytes *= size;
    }
    if (bytes != end - begin) {
      fail("shape " + view_.shape_text() + " of type " + std::string(type_->name) + " needs " + std::to_string(bytes) +
           " bytes, but data_offsets span " + std::to_string(end - begin));
    }
    charge(MemoryBudget::map_node(sizeof(std::string) + sizeof(TensorView)) + 2 * MemoryBudget::string(name_.size()) +
           MemoryBudget::string(file_.path().size()) + MemoryBudget::allocation(view_.shape.size() * sizeof(std::int64_t)) +
           4 * sizeof(TensorView*));
    const auto [entry, added] = tensors_.try_emplace(name_);
    if (!added)
      fail("the tensor's name appears twice" + (entry->second.file == file_.path() ? "" : "; first in " + entry->second.file));
    TensorView& view = entry->second;
    view.name = name_;
    view.dtype = type_->dtype;
    view.shape = view_.shape;
    view.bytes = bytes;
    view.file = file_.path();
    view.offset = begin;
    added_.push_back(&view);
  }

  const MappedFile& file_;
  std::string_view header_;
  const char* read_;
  MemoryBudget& budget_;
  Tensors& tensors_;
  Metadata& metadata_;
  std::vector<TensorView*> added_;

  State state_ = State::begin;
  std::string name_;
  unsigned field_ = 0, seen_ = 0;
  bool metadata_seen_ = false;
  TensorView view_;
  const DtypeInfo* type_ = nullptr;
  std::uint64_t offsets_[2] = {};
  int n_offsets_ = 0;
};

/// Adds the file's tensors and metadata; a name that is there already is an error.
inline void read_header(const MappedFile& file, MemoryBudget& budget, Tensors& tensors, Metadata& metadata) {
  ByteReader in(file);
  in.set_item("header");
  const auto length = in.read<std::uint64_t>("the length of the header");
  if (length > max_header_bytes) {
    in.fail_at(0, "the header's length is " + std::to_string(length) + " bytes; the format allows at most " +
                      std::to_string(max_header_bytes));
  }
  const auto bytes = in.take(length, "the header");
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!header.starts_with('{')) in.fail_at(8, "the header must begin with '{'; this is no safetensors file, or it is corrupt");
  check_json_bounds(header, file.path(), header.size(), 8);  // no tree is built: any number of values
  HeaderEvents events(file, header, budget, tensors, metadata);
  events.parse();

  const std::uint64_t data_begin = in.position(), data_bytes = in.remaining();
  std::vector<TensorView*>& views = events.added();
  std::sort(views.begin(), views.end(), [](const TensorView* a, const TensorView* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  std::uint64_t expected = 0;
  for (TensorView* view : views) {
    in.set_item("tensor " + in_quotes(view->name));
    if (view->bytes > data_bytes || view->offset > data_bytes - view->bytes) {
      in.fail_at(data_begin, "data_offsets [" + std::to_string(view->offset) + ", " + std::to_string(view->offset + view->bytes) +
                                 "] end past the data, which have " + std::to_string(data_bytes) +
                                 " bytes; the file is cut off or corrupt");
    }
    if (view->offset != expected) {
      in.fail_at(data_begin + view->offset, "data_offsets begin at " + std::to_string(view->offset) + "; they must begin at " +
                                                std::to_string(expected) +
                                                ", where the tensor before ends (no holes, no overlaps)");
    }
    expected += view->bytes;
    view->offset += data_begin;
    view->data = file.data() + view->offset;
  }
  if (expected != data_bytes) {
    in.set_item("data");
    in.fail_at(data_begin + expected, "the tensors end here, but " + std::to_string(data_bytes - expected) +
                                          " more bytes follow; the tensors must cover all data");
  }
}

}  // namespace moxie::safetensors
