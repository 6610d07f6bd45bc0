#pragma once
// Reads the tables of one GGUF file: header, metadata, tensor infos. gguf.hpp joins the parts of a split model.
//
//   u32 magic "GGUF", u32 version, u64 tensor count, u64 metadata count
//   metadata:  string key, u32 type, value            string: u64 length, bytes; array: u32 type, u64 count, values
//   tensors:   string name, u32 n_dims, u64 dims[n_dims] (fastest first), u32 type, u64 offset into the data section
//   data section: from the next multiple of general.alignment (32 where that key is absent)
//
// Every count is compared with the bytes that are left before anything is allocated for it. Tensors must lie inside the file,
// aligned and apart; a gap between two, or bytes after the last, do no harm. Also refused: booleans other than 0 and 1, empty
// names, tensors without elements or dimensions. Strings are kept as raw bytes: tokens need not be UTF-8. Errors: FormatError
// with key or tensor and byte offset. Source: the GGUF specification; ggml's gguf.cpp for what it leaves open.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/io/byte_reader.hpp>
#include <moxie/io/gguf_types.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/json_tree.hpp>
#include <moxie/io/memory_budget.hpp>

namespace moxie {

/// A metadata entry as it lies in the file; the views are valid as long as the GgufFile lives.
struct GgufKeyValue {
  std::string_view key;
  GgufType type = GgufType::u8;
  std::span<const std::byte> value;  ///< the bytes after the type
};

struct GgufTables {
  JsonTree metadata{nlohmann::json::object()};
  std::vector<GgufKeyValue> key_values;  ///< in the file's order
  std::uint64_t tensor_count = 0;
  std::span<const std::byte> bytes;  ///< all tables, as they lie in the file
};

namespace gguf {

using Tensors = std::map<std::string, TensorView, std::less<>>;

class TableReader {
 public:
  TableReader(const MappedFile& file, MemoryBudget& budget) : file_(file), in_(file), budget_(budget) {}

  /// Adds this file's tensors to `tensors`.
  GgufTables read(Tensors& tensors) {
    GgufTables tables;
    in_.set_item("header");
    read_magic_and_version();
    const std::uint64_t tensor_count = read_count("tensors", 8 + 4 + 4 + 8);
    const std::uint64_t key_count = read_count("metadata entries", 8 + 1 + 4 + 1);
    charge(MemoryBudget::allocation(key_count * sizeof(GgufKeyValue)));
    tables.key_values.reserve(static_cast<std::size_t>(key_count));
    for (std::uint64_t i = 0; i < key_count; ++i) read_key_value(i, tables);
    tables.tensor_count = tensor_count;

    charge(MemoryBudget::allocation(tensor_count * sizeof(TensorView*)));
    std::vector<TensorView*> views;
    views.reserve(static_cast<std::size_t>(tensor_count));
    for (std::uint64_t i = 0; i < tensor_count; ++i) views.push_back(&read_tensor_info(i, tensors));
    tables.bytes = {file_.data(), static_cast<std::size_t>(in_.position())};
    place_tensors(views);
    return tables;
  }

 private:
  void charge(std::uint64_t bytes) {
    budget_.charge(bytes, [&] { return in_.place(); });
  }

  void read_magic_and_version() {
    const auto found = in_.read<std::uint32_t>("the magic number");
    if (found != magic) {
      in_.fail_at(0, found == 0x47475546 ? "the magic number is in big-endian order; moxie reads little-endian GGUF files"
                                         : "not a GGUF file: it must begin with the four bytes 'GGUF'");
    }
    const auto v = in_.read<std::uint32_t>("the version");
    if (v == 2 || v == version) return;
    in_.fail_at(4, (v != 0 && (v & 0xffffu) == 0) ? "the file is big-endian; moxie reads little-endian GGUF files"
                                                  : concat("GGUF version ", v, " is not supported; versions 2 and 3 are"));
  }

  std::uint64_t read_count(const char* what, std::uint64_t least) {
    const std::uint64_t at = in_.position();
    const auto count = in_.read<std::uint64_t>("the header");
    if (count > in_.remaining() / least) {
      in_.fail_at(at, concat("the file claims ", count, " ", what, ", but its remaining ", in_.remaining(),
                             " bytes hold at most ", in_.remaining() / least));
    }
    return count;
  }

  GgufType read_type() {
    const std::uint64_t at = in_.position();
    const auto id = in_.read<std::uint32_t>("a value's type");
    if (!is_type(id)) in_.fail_at(at, concat("value type ", id, " is unknown; types go from 0 (u8) to 12 (f64)"));
    return static_cast<GgufType>(id);
  }

  void read_key_value(std::uint64_t i, GgufTables& tables) {
    in_.set_item(concat("metadata entry ", i));
    const std::uint64_t at = in_.position();
    const std::string_view key = in_.string("a key", max_key_length);
    if (key.empty()) in_.fail_at(at, "the key is empty");
    in_.set_item(concat("key ", in_quotes(key)));
    const GgufType type = read_type();
    const std::uint64_t begin = in_.position();
    charge(MemoryBudget::map_node(sizeof(std::string) + sizeof(nlohmann::json)) + MemoryBudget::string(key.size()));
    const auto [entry, added] = tables.metadata.value.emplace(std::string(key), nullptr);
    if (!added) in_.fail_at(at, "the key appears twice");
    *entry = read_value(type, 0);
    tables.key_values.push_back({key, type, {file_.data() + begin, static_cast<std::size_t>(in_.position() - begin)}});
    if (key == "general.alignment") {
      if (type != GgufType::u32) in_.fail_at(begin, concat("has the type ", type_name(type), "; it must be u32"));
      alignment_ = entry->get<std::uint32_t>();
      if (!is_alignment(alignment_)) in_.fail_at(begin, concat("is ", alignment_, "; it must be a power of two"));
    }
  }

  template <class T>
  nlohmann::json read_number() {
    return nlohmann::json(in_.read<T>("a value"));
  }

  nlohmann::json read_value(GgufType type, int depth) {
    switch (type) {
      case GgufType::u8:
        return read_number<std::uint8_t>();
      case GgufType::i8:
        return read_number<std::int8_t>();
      case GgufType::u16:
        return read_number<std::uint16_t>();
      case GgufType::i16:
        return read_number<std::int16_t>();
      case GgufType::u32:
        return read_number<std::uint32_t>();
      case GgufType::i32:
        return read_number<std::int32_t>();
      case GgufType::f32:
        return read_number<float>();
      case GgufType::u64:
        return read_number<std::uint64_t>();
      case GgufType::i64:
        return read_number<std::int64_t>();
      case GgufType::f64:
        return read_number<double>();
      case GgufType::boolean:
        return read_boolean();
      case GgufType::string:
        return read_string();
      case GgufType::array:
        break;
    }
    return read_array(depth);
  }

  nlohmann::json read_boolean() {
    const std::uint64_t at = in_.position();
    const auto byte = in_.read<std::uint8_t>("a boolean");
    if (byte > 1) in_.fail_at(at, concat("a boolean has the value ", byte, "; it must be 0 or 1"));
    return nlohmann::json(byte == 1);
  }

  nlohmann::json read_string() {
    const std::string_view text = in_.string("a string", std::numeric_limits<std::int64_t>::max());
    charge(MemoryBudget::allocation(sizeof(std::string)) + MemoryBudget::string(text.size()));
    return nlohmann::json(std::string(text));
  }

  nlohmann::json read_array(int depth) {
    if (depth == max_array_depth) in_.fail(concat("arrays are nested more than ", max_array_depth, " deep"));
    const GgufType type = read_type();
    const std::uint64_t at = in_.position();
    const auto count = in_.read<std::uint64_t>("an array's count");
    if (count > in_.remaining() / least_bytes(type)) {
      in_.fail_at(at, concat("an array of ", count, " values of type ", type_name(type), " does not fit into the remaining ",
                             in_.remaining(), " bytes of the file"));
    }
    charge(MemoryBudget::allocation(sizeof(nlohmann::json::array_t)) + MemoryBudget::allocation(count * sizeof(nlohmann::json)));
    JsonTree array(nlohmann::json::array());
    auto& values = array.value.get_ref<nlohmann::json::array_t&>();
    values.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(read_value(type, depth + 1));
    return std::move(array.value);
  }

  /// The view's offset is relative to the data section, until place_tensors().
  TensorView& read_tensor_info(std::uint64_t i, Tensors& tensors) {
    in_.set_item(concat("tensor entry ", i));
    const std::uint64_t at = in_.position();
    const std::string_view name = in_.string("a tensor's name", max_name_length);
    if (name.empty()) in_.fail_at(at, "the tensor's name is empty");
    in_.set_item(concat("tensor ", in_quotes(name)));
    const std::vector<std::int64_t> shape = read_shape();
    const std::uint64_t type_at = in_.position();
    const auto type_id = in_.read<std::uint32_t>("a tensor's type");
    const DtypeInfo* type = find_tensor_type(type_id);
    if (!type) in_.fail_at(type_at, tensor_type_error(type_id));

    // read_shape() has checked that the number of elements fits 63 bits; a type has at most 8 bytes for an element.
    const auto columns = static_cast<std::uint64_t>(shape.back());
    if (columns % type->block_elements != 0) {
      in_.fail_at(type_at, concat("the first dimension is ", columns, ", but type ", type->name, " needs a multiple of ",
                                  type->block_elements));
    }
    std::uint64_t elements = 1;
    for (const std::int64_t d : shape) elements *= static_cast<std::uint64_t>(d);
    const std::uint64_t blocks = elements / type->block_elements;
    if (blocks > file_.size() / type->block_bytes) {
      in_.fail_at(
          at, concat(elements, " elements of type ", type->name, " are more than the file of ", file_.size(), " bytes can hold"));
    }
    const std::uint64_t offset_at = in_.position();
    const auto offset = in_.read<std::uint64_t>("a tensor's offset");
    if (offset % alignment_ != 0) {
      in_.fail_at(offset_at, concat("the offset ", offset, " is not a multiple of the alignment ", alignment_));
    }
    charge(MemoryBudget::map_node(sizeof(std::string) + sizeof(TensorView)) + 2 * MemoryBudget::string(name.size()) +
           MemoryBudget::string(file_.path().size()) + MemoryBudget::allocation(shape.size() * sizeof(std::int64_t)));
    const auto [entry, added] = tensors.try_emplace(std::string(name));
    TensorView& view = entry->second;
    if (!added)
      in_.fail_at(at,
                  concat("the tensor's name appears twice", (view.file == file_.path() ? "" : concat("; first in ", view.file))));
    view = {std::string(name), type->dtype, shape, nullptr, blocks * type->block_bytes, file_.path(), offset};
    return view;
  }

  /// 1 to 4 dimensions, turned into row-major order.
  std::vector<std::int64_t> read_shape() {
    const std::uint64_t at = in_.position();
    const auto n_dims = in_.read<std::uint32_t>("a tensor's shape");
    if (n_dims < 1 || n_dims > 4) in_.fail_at(at, concat("the tensor has ", n_dims, " dimensions; it must have 1 to 4"));
    std::vector<std::int64_t> shape(n_dims);
    std::uint64_t elements = 1;
    for (std::uint32_t d = 0; d < n_dims; ++d) {
      const std::uint64_t dim_at = in_.position();
      const auto size = in_.read<std::uint64_t>("a tensor's shape");
      constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      if (size == 0 || size > most) in_.fail_at(dim_at, concat("dimension ", d, " is ", size, "; it must be 1 to 2^63 - 1"));
      if (size > most / elements) in_.fail_at(dim_at, "the number of elements does not fit 63 bits");
      elements *= size;
      shape[n_dims - 1 - d] = static_cast<std::int64_t>(size);
    }
    return shape;
  }

  void place_tensors(std::vector<TensorView*>& views) {
    if (views.empty()) return;
    const std::uint64_t tables_end = in_.position();
    const std::uint64_t data_begin = (tables_end + alignment_ - 1) / alignment_ * alignment_;
    in_.set_item("data section");
    if (data_begin > file_.size()) {
      in_.fail_at(tables_end, concat("the tensors' data begin at byte ", data_begin, ", but the file has only ", file_.size(),
                                     " bytes; it is cut off, or general.alignment is wrong"));
    }
    const std::uint64_t data_bytes = file_.size() - data_begin;
    std::sort(views.begin(), views.end(), [](const TensorView* a, const TensorView* b) { return a->offset < b->offset; });
    const TensorView* previous = nullptr;
    for (TensorView* view : views) {
      in_.set_item(concat("tensor ", in_quotes(view->name)));
      if (view->offset > data_bytes || view->bytes > data_bytes - view->offset) {
        in_.fail_at(data_begin, concat("the tensor takes ", view->bytes, " bytes at offset ", view->offset,
                                       " of the data section, which has ", data_bytes, " bytes; the file is cut off or corrupt"));
      }
      view->offset += data_begin;
      view->data = file_.data() + view->offset;
      if (previous && previous->offset + previous->bytes > view->offset) {
        in_.fail_at(view->offset, concat("the tensor overlaps with tensor ", in_quotes(previous->name), ", which ends at byte ",
                                         previous->offset + previous->bytes));
      }
      previous = view;
    }
  }

  const MappedFile& file_;
  ByteReader in_;
  MemoryBudget& budget_;
  std::uint32_t alignment_ = default_alignment;
};

}  // namespace gguf
}  // namespace moxie
