#pragma once
// Writes a GGUF file of version 3: metadata and tensors are declared first, finish() writes everything.
//
// Each tensor's bytes come from a callback that hands them over in pieces, so a model of any size needs little memory. The file
// appears under its name only when it is complete; an error or exception before that leaves nothing behind and an older file as
// it was. Errors: ArgumentError for what the format does not allow, SystemError. Source: the GGUF specification; layout in
// gguf_tables.hpp.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <ranges>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_types.hpp>
#include <moxie/io/in_quotes.hpp>

namespace moxie {

class GgufWriter {
 public:
  /// Takes the next piece of a tensor's bytes.
  using Sink = std::function<void(std::span<const std::byte>)>;
  /// Hands all bytes of a tensor to the sink, from low to high. Called once by finish().
  using Producer = std::function<void(const Sink&)>;

  explicit GgufWriter(std::string path) : path_(std::move(path)) {}

  /// Sets a key, or replaces its value in place. The C++ type decides the type in the file: bool, integers of 8 to 64 bits,
  /// float, double, strings, and ranges of these. general.alignment (std::uint32_t, a power of two) also sets the alignment of
  /// what is written.
  template <class T>
  void set(std::string_view key, const T& value) {
    std::string bytes;
    if constexpr (std::convertible_to<const T&, std::string_view>) {
      append_string(bytes, value);
      set_raw(key, GgufType::string, std::move(bytes));
    } else if constexpr (std::ranges::sized_range<const T>) {
      using Element = std::ranges::range_value_t<const T>;
      append(bytes, static_cast<std::uint32_t>(type_of<Element>()));
      append(bytes, static_cast<std::uint64_t>(std::ranges::size(value)));
      for (const auto& element : value) append_value<Element>(bytes, element);
      set_raw(key, GgufType::array, std::move(bytes));
    } else {
      append_value(bytes, value);
      set_raw(key, type_of<T>(), std::move(bytes));
    }
  }

  /// Copies all keys of a model with their types and bytes, except split.*: what is written is one file.
  void copy_metadata(const GgufFile& model) {
    for (const GgufKeyValue& entry : model.key_values()) {
      if (entry.key.starts_with("split.")) continue;
      set_raw(entry.key, entry.type, std::string(reinterpret_cast<const char*>(entry.value.data()), entry.value.size()));
    }
  }

  void remove(std::string_view key) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.key == key; });
    if (key == "general.alignment") alignment_ = gguf::default_alignment;
  }

  /// Declares the next tensor; `shape` has its fastest dimension last, as in TensorView.
  void add_tensor(std::string name, Dtype dtype, std::vector<std::int64_t> shape, Producer producer) {
    const auto fail = [&](const std::string& message) {
      throw ArgumentError({path_, concat("tensor ", in_quotes(name)), {}}, message);
    };
    if (name.empty() || name.size() >= gguf::max_name_length) fail("a tensor's name must have 1 to 63 bytes");
    const DtypeInfo* type = gguf::find_tensor_type(static_cast<std::uint32_t>(dtype));
    if (!type) fail(concat("GGUF has no tensor type ", dtype_info(dtype).name));
    if (shape.empty() || shape.size() > 4) fail(concat("a tensor must have 1 to 4 dimensions, not ", shape.size()));
    std::int64_t elements = 1;
    for (const std::int64_t dim : shape) {
      if (dim < 1 || dim > (std::numeric_limits<std::int64_t>::max() >> 4) / elements)
        fail("dimensions must be positive, their product below 2^59");
      elements *= dim;
    }
    if (shape.back() % type->block_elements != 0) {
      fail(concat("the last dimension is ", shape.back(), ", but type ", type->name, " needs a multiple of ",
                  type->block_elements));
    }
    if (!names_.insert(name).second) fail("the name is there already");
    const std::uint64_t bytes = row_bytes(dtype, static_cast<std::uint64_t>(elements));
    tensors_.push_back({std::move(name), dtype, std::move(shape), bytes, std::move(producer)});
  }

  /// Header, metadata and tensor infos, as finish() writes them.
  std::string tables() const {
    std::string out;
    append(out, gguf::magic);
    append(out, gguf::version);
    append(out, static_cast<std::uint64_t>(tensors_.size()));
    append(out, static_cast<std::uint64_t>(entries_.size()));
    for (const Entry& entry : entries_) {
      append_string(out, entry.key);
      append(out, static_cast<std::uint32_t>(entry.type));
      out += entry.value;
    }
    std::uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      append_string(out, tensor.name);
      append(out, static_cast<std::uint32_t>(tensor.shape.size()));
      for (auto dim = tensor.shape.rbegin(); dim != tensor.shape.rend(); ++dim) append(out, static_cast<std::uint64_t>(*dim));
      append(out, static_cast<std::uint32_t>(tensor.dtype));
      append(out, offset);
      offset += (tensor.bytes + alignment_ - 1) / alignment_ * alignment_;
    }
    return out;
  }

  /// Writes the file. Throws SystemError, ArgumentError when a producer gives another number of bytes than its tensor has, and
  /// whatever a producer throws; the file does not exist then. The writer may be used again.
  void finish() const {
    AtomicFile file(path_);
    const std::string encoded = tables();
    file.write(encoded.data(), encoded.size());
    pad(file);
    for (const Tensor& tensor : tensors_) {
      std::uint64_t left = tensor.bytes;
      const auto fail = [&](const std::string& message) {
        throw ArgumentError({path_, concat("tensor ", in_quotes(tensor.name)), {}},
                            concat("the producer gave ", message, " than the tensor's ", tensor.bytes, " bytes"));
      };
      tensor.producer([&](std::span<const std::byte> piece) {
        if (piece.size() > left) fail("more");
        left -= piece.size();
        file.write(piece.data(), piece.size());
      });
      if (left != 0) fail("fewer");
      pad(file);
    }
    file.commit();
  }

 private:
  struct Entry {
    std::string key;
    GgufType type;
    std::string value;
  };
  struct Tensor {
    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t bytes;
    Producer producer;
  };

  template <class T>
  static constexpr GgufType type_of() {
    if constexpr (std::same_as<T, bool>) {
      return GgufType::boolean;
    } else if constexpr (std::same_as<T, float>) {
      return GgufType::f32;
    } else if constexpr (std::same_as<T, double>) {
      return GgufType::f64;
    } else if constexpr (std::convertible_to<const T&, std::string_view>) {
      return GgufType::string;
    } else {
      static_assert(std::integral<T> && sizeof(T) <= 8, "GGUF has no such type");
      constexpr GgufType types[2][4] = {{GgufType::u8, GgufType::u16, GgufType::u32, GgufType::u64},
                                        {GgufType::i8, GgufType::i16, GgufType::i32, GgufType::i64}};
      return types[std::is_signed_v<T>][sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3];
    }
  }

  template <class T>
  requires std::is_arithmetic_v<T>
  static void append(std::string& out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out.append(bytes, sizeof(T));
  }
  static void append_string(std::string& out, std::string_view text) {
    append(out, static_cast<std::uint64_t>(text.size()));
    out.append(text);
  }
  template <class T>
  static void append_value(std::string& out, const T& value) {
    if constexpr (type_of<T>() == GgufType::string) {
      append_string(out, value);
    } else {
      append(out, value);
    }
  }

  void set_raw(std::string_view key, GgufType type, std::string value) {
    const auto fail = [&](const std::string& message) {
      throw ArgumentError({path_, concat("key ", in_quotes(key)), {}}, message);
    };
    if (key.empty() || key.size() > gguf::max_key_length) fail("a key must have 1 to 65535 bytes");
    if (key == "general.alignment") {
      std::uint32_t alignment = 0;
      if (type == GgufType::u32) std::memcpy(&alignment, value.data(), sizeof alignment);
      if (!gguf::is_alignment(alignment)) fail("must be a u32 and a power of two");
      alignment_ = alignment;
    }
    const auto it = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
    if (it == entries_.end()) {
      entries_.push_back({std::string(key), type, std::move(value)});
    } else {
      it->type = type;
      it->value = std::move(value);
    }
  }

  void pad(AtomicFile& file) const {
    constexpr char zeros[256] = {};
    std::uint64_t left = (alignment_ - file.written() % alignment_) % alignment_;
    for (; left > 0; left -= std::min<std::uint64_t>(left, sizeof zeros))
      file.write(zeros, static_cast<std::size_t>(std::min<std::uint64_t>(left, sizeof zeros)));
  }

  std::string path_;
  std::uint32_t alignment_ = gguf::default_alignment;
  std::vector<Entry> entries_;
  std::set<std::string> names_;
  std::vector<Tensor> tensors_;
};

}  // namespace moxie
