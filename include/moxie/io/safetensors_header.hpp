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
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
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

/// Takes the parser's events and fills the tables; offsets in the views are relative to the data until read_header() places them.
class HeaderEvents {
 public:
  HeaderEvents(const MappedFile& file, std::string_view header, MemoryBudget& budget, Tensors& tensors, Metadata& metadata)
      : file_(file), header_(header), read_(header.data()), budget_(budget), tensors_(tensors), metadata_(metadata) {}

  void parse() {
    try {
      parse_characters(header_, &read_, [this](int, Event event, nlohmann::json& value) { return take(event, value); });
    } catch (const nlohmann::json::parse_error& error) {
      throw FormatError({file_.path(), "header", header_begin + (error.byte == 0 ? 0 : error.byte - 1)},
                        json_error_text(error.what()));
    }
  }
  std::vector<TensorView*>& added() noexcept { return added_; }

 private:
  using Event = nlohmann::json::parse_event_t;

  /// Whether the parser shall keep `value` in its tree: containers until they end, which is where they are left out.
  bool take(Event event, const nlohmann::json& value) {
    switch (event) {
      case Event::object_start:
        start_object();
        return true;
      case Event::array_start:
        start_array();
        return true;
      case Event::key:
        key(value.get_ref<const std::string&>());
        return state_ != State::metadata;
      case Event::object_end:
        end_object();
        return false;
      case Event::array_end:
        state_ = State::tensor;
        return false;
      case Event::value:
        break;
    }
    if (value.is_string()) {
      string(value.get_ref<const std::string&>());
    } else if (value.is_number_unsigned()) {
      number(value.get<std::uint64_t>());
    } else {
      unexpected(concat(value.is_number_float() ? "the number " : value.is_number() ? "the negative number " : "", value.dump()));
    }
    return false;
  }

  void number(std::uint64_t value) {
    if (state_ == State::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        fail(concat("dimension ", value, " does not fit 63 bits"));
      if (view_.shape.size() == max_dims) {
        throw UnsupportedError(place(), concat("the tensor has more than ", max_dims, " dimensions, which moxie does not read"));
      }
      view_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == State::offsets) {
      if (n_offsets_ == 2) fail("data_offsets must have two numbers, begin and end");
      offsets_[n_offsets_++] = value;
    } else {
      unexpected(concat("the number ", value));
    }
  }

  void string(const std::string& value) {
    if (state_ == State::metadata) {
      charge(MemoryBudget::map_node(2 * sizeof(std::string)) + MemoryBudget::string(name_.size()) +
             MemoryBudget::string(value.size()));
      if (!metadata_.emplace(name_, value).second) fail("the key appears twice");
    } else if (state_ == State::tensor && field_ == dtype_field) {
      type_ = find_type(value);
      if (!type_) {
        throw UnsupportedError(place(), concat("dtype ", in_quotes(value),
                                               " is not supported; moxie reads BOOL, U8, I8, F8_E4M3, F8_E5M2, F8_E8M0, "
                                               "I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64"));
      }
    } else {
      unexpected(concat("the string ", in_quotes(value)));
    }
  }

  void start_object() {
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
  }

  void key(const std::string& value) {
    if (state_ == State::tensor) {
      field_ = value == "dtype" ? dtype_field : value == "shape" ? shape_field : value == "data_offsets" ? offsets_field : 0;
      if (field_ == 0) fail(concat("has the unknown field ", in_quotes(value), "; dtype, shape and data_offsets are defined"));
      if (seen_ & field_) fail(concat("has the field ", in_quotes(value), " twice"));
      seen_ |= field_;
    } else {
      name_ = value;
    }
  }

  void end_object() {
    if (state_ == State::tensor) add_tensor();
    state_ = state_ == State::top ? State::end : State::top;
  }

  void start_array() {
    if (state_ == State::tensor && field_ == shape_field) {
      state_ = State::shape;
    } else if (state_ == State::tensor && field_ == offsets_field) {
      state_ = State::offsets;
      n_offsets_ = 0;
    } else {
      unexpected("an array");
    }
  }

  static constexpr std::uint64_t header_begin = 8;
  static constexpr unsigned dtype_field = 1, shape_field = 2, offsets_field = 4;
  enum class State { begin, top, metadata, tensor, shape, offsets, end };

  Place place() const {
    std::string item = "header";
    if (state_ != State::begin && state_ != State::end && (state_ != State::top || !name_.empty()))
      item = concat("entry ", in_quotes(name_));
    return {file_.path(), std::move(item), header_begin + static_cast<std::uint64_t>(read_ - header_.data())};
  }
  [[noreturn]] void fail(const std::string& message) const { throw FormatError(place(), message); }
  [[noreturn]] void unexpected(const std::string& what) const {
    switch (state_) {
      case State::begin:
        fail(concat("the header must be a JSON object, not ", what));
      case State::top:
        fail(concat("must be a JSON object, not ", what));
      case State::metadata:
        fail(concat("a value of __metadata__ must be a string, not ", what));
      case State::shape:
        fail(concat("a dimension must be a non-negative integer, not ", what));
      case State::offsets:
        fail(concat("data_offsets must be non-negative integers, not ", what));
      case State::tensor:
        fail(concat(field_ == dtype_field   ? "dtype must be a string"
                    : field_ == shape_field ? "shape must be an array"
                                            : "data_offsets must be an array",
                    ", not ", what));
      case State::end:
        break;
    }
    fail(concat("unexpected ", what));
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
    if (begin > end) fail(concat("data_offsets end at ", end, ", before they begin at ", begin));
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    std::uint64_t bytes = type_->block_bytes;
    for (const std::int64_t dim : view_.shape) {
      const auto size = static_cast<std::uint64_t>(dim);
      if (size != 0 && bytes > most / size) fail(concat("the size of shape ", view_.shape_text(), " does not fit 63 bits"));
      bytes *= size;
    }
    if (bytes != end - begin) {
      fail(concat("shape ", view_.shape_text(), " of type ", type_->name, " needs ", bytes, " bytes, but data_offsets span ",
                  end - begin));
    }
    charge(MemoryBudget::map_node(sizeof(std::string) + sizeof(TensorView)) + 2 * MemoryBudget::string(name_.size()) +
           MemoryBudget::string(file_.path().size()) + MemoryBudget::allocation(view_.shape.size() * sizeof(std::int64_t)) +
           4 * sizeof(TensorView*));
    const auto [entry, added] = tensors_.try_emplace(name_);
    if (!added)
      fail(concat("the tensor's name appears twice",
                  (entry->second.file == file_.path() ? "" : concat("; first in ", entry->second.file))));
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
    in.fail_at(0, concat("the header's length is ", length, " bytes; the format allows at most ", max_header_bytes));
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
    in.set_item(concat("tensor ", in_quotes(view->name)));
    if (view->bytes > data_bytes || view->offset > data_bytes - view->bytes) {
      in.fail_at(data_begin, concat("data_offsets [", view->offset, ", ", view->offset + view->bytes,
                                    "] end past the data, which have ", data_bytes, " bytes; the file is cut off or corrupt"));
    }
    if (view->offset != expected) {
      in.fail_at(data_begin + view->offset, concat("data_offsets begin at ", view->offset, "; they must begin at ", expected,
                                                   ", where the tensor before ends (no holes, no overlaps)"));
    }
    expected += view->bytes;
    view->offset += data_begin;
    view->data = file.data() + view->offset;
  }
  if (expected != data_bytes) {
    in.set_item("data");
    in.fail_at(data_begin + expected, concat("the tensors end here, but ", data_bytes - expected,
                                             " more bytes follow; the tensors must cover all data"));
  }
}

}  // namespace moxie::safetensors
