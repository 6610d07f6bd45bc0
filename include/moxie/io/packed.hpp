#pragma once
// Packed models: weights as they lie in memory, in panels, so that a model is mapped instead of packed when it starts.
//
// A packed model is one GGUF file. It has the metadata of the model it was made from and these keys:
//
//   moxie.packed.version              u32      1
//   moxie.packed.digest               u64      XXH64 of all tables of the file, this value taken as 0
//   moxie.packed.arch                 string   whose kernels packed it; for messages
//   moxie.packed.formats              string[] formats that lie in panels
//   moxie.packed.layouts              u64[]    the hash of each one's layout, panel_layout()
//   moxie.packed.names, .types        string[] tensors that lie in the file as bytes (I8, one dimension), and their types
//   moxie.packed.ranks                u32[]    how many dimensions each has
//   moxie.packed.shapes               i64[]    the dimensions, fastest last, of one tensor after the other
//   moxie.packed.panel_bytes          u64[]    bytes of each one's panels of 16 rows, 0: rows of blocks
//   moxie.packed.source.files, .sizes, .modified, .samples, .hashes     what it was made from: FileIdentity
//   moxie.packed.folder.config, .generation_config, .tokenizer_config, .tokenizer, .chat_template
//                                     string   the files of a Hugging Face folder, where it was made from one
//
// Refused with a FormatError: another version, tables that are not those that were written, a layout that is not that of the
// kernels at hand (another architecture, another version of moxie), and a source that lies where it lay but has changed. Without
// its source a packed model is used as it is. The panels themselves are not hashed, as that would read them all; any bits are
// weights, if wrong ones. Every size is checked before it is used.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/dtype.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/hash.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/tensor.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/io/file_identity.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/hf_folder.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/kernels/table.hpp>
#include <moxie/linalg/panel_layout.hpp>

namespace moxie {

namespace packed {

inline constexpr std::uint32_t version = 1;
inline constexpr std::string_view prefix = "moxie.packed.";

inline std::string key(std::string_view name) { return std::string(prefix) + std::string(name); }

/// Hash of a file's tables, `digest` (8 bytes in them) taken as 0.
inline std::uint64_t hash_tables(std::string tables, std::size_t digest) {
  std::memset(tables.data() + digest, 0, 8);
  return xxh64(tables.data(), tables.size());
}

/// Reads and checks the keys of one file; read_packed() is its interface.
class Reader {
 public:
  Reader(const GgufFile& file, const kernels::Table& kernels) : file_(file), kernels_(kernels) {}

  void check_version() const {
    const auto found = integer<std::uint32_t>(get("version"), "version");
    if (found != version) fail("version", concat("is ", found, "; this moxie reads version ", version, ": pack the model again"));
  }

  void check_digest() const {
    const std::string name = key("digest");
    const auto entry = std::find_if(file_.key_values().begin(), file_.key_values().end(),
                                    [&](const GgufKeyValue& value) { return value.key == name; });
    if (entry == file_.key_values().end()) fail("digest", "is missing; the file is damaged");
    if (entry->type != GgufType::u64) fail("digest", "must be a u64; the file is damaged");
    const auto* begin = file_.tables().data();
    std::uint64_t digest = 0;
    std::memcpy(&digest, entry->value.data(), sizeof digest);
    const std::string tables(reinterpret_cast<const char*>(begin), file_.tables().size());
    if (hash_tables(tables, static_cast<std::size_t>(entry->value.data() - begin)) != digest)
      fail("digest", "is not that of the file's tables; the file is damaged, pack the model again");
  }

  void check_layouts() {
    const std::vector<std::string> names = strings("formats");
    const auto hashes = integers<std::uint64_t>("layouts", names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      const DtypeInfo* info = find_dtype(names[i]);
      const kernels::FormatKernels* format = info ? kernels_.find(info->dtype) : nullptr;
      if (!format) fail("formats", concat("has ", in_quotes(names[i]), ", which this moxie does not multiply"));
      if (panel_layout(*format) != hashes[i])
        fail("layouts", concat("the weights of type ", names[i], " are packed for ", in_quotes(arch()),
                               " in another layout than that of this program's kernels, '", kernels_.arch,
                               "'; pack the model again, with this program"));
      panels_.push_back(format);
    }
  }

  void check_sources(Threads threads) const {
    const std::vector<std::string> files = this->files();
    const auto sizes = integers<std::uint64_t>("source.sizes", files.size()),
               samples = integers<std::uint64_t>("source.samples", files.size()),
               hashes = integers<std::uint64_t>("source.hashes", files.size());
    const auto modified = integers<std::int64_t>("source.modified", files.size());
    for (std::size_t i = 0; i < files.size(); ++i)
      if (const std::string what = difference({files[i], sizes[i], modified[i], samples[i], hashes[i]}, threads); !what.empty())
        throw FormatError({file_.path(), {}, {}}, concat("is stale: it was packed from ", in_quotes(files[i]),
                                                         ", which has changed since (", what, "); pack the model again"));
  }

  TensorMap tensors() const {
    std::map<std::string, TensorView, std::less<>> views = file_.tensors().all();
    const std::vector<std::string> names = strings("names"), types = strings("types", names.size());
    const auto ranks = integers<std::uint32_t>("ranks", names.size());
    const auto panel_bytes = integers<std::uint64_t>("panel_bytes", names.size());
    const auto dimensions = integers<std::int64_t>("shapes");
    std::size_t next = 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto view = views.find(names[i]);
      if (view == views.end()) fail("names", concat("has ", in_quotes(names[i]), ", but the file has no such tensor"));
      TensorView& tensor = view->second;
      const auto wrong = [&](const std::string& message) { throw FormatError(tensor.place(), message); };
      if (tensor.dtype != Dtype::I8 || tensor.shape.size() != 1) wrong("a packed tensor must be one row of I8");
      const DtypeInfo* info = find_dtype(types[i]);
      if (!info) wrong(concat("its element type ", in_quotes(types[i]), " is unknown"));
      if (ranks[i] > 4 || ranks[i] > dimensions.size() - next) wrong("its shape is missing, or has more than 4 dimensions");
      std::vector<std::int64_t> shape(dimensions.begin() + static_cast<std::ptrdiff_t>(next),
                                      dimensions.begin() + static_cast<std::ptrdiff_t>(next + ranks[i]));
      next += ranks[i];
      const std::uint64_t expected = byte_size(shape, *info, panel_bytes[i], tensor.bytes);
      if (expected != tensor.bytes) wrong(concat("its shape and type ", info->name, " do not fit its ", tensor.bytes, " bytes"));
      if (panel_bytes[i] != 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % memory_alignment != 0)
        wrong(concat("packed weights must begin at a multiple of ", memory_alignment, " bytes"));
      tensor.dtype = info->dtype;
      tensor.shape = std::move(shape);
      tensor.panel_bytes = panel_bytes[i];
    }
    if (next != dimensions.size()) fail("shapes", "has more dimensions than the tensors");
    return file_.tensors().with_tensors(std::move(views));
  }

  std::string arch() const { return text("arch"); }
  std::vector<std::string> files() const { return strings("source.files"); }
  std::optional<HfTexts> folder() const {
    if (!file_.metadata().contains(key("folder.config"))) return std::nullopt;
    return HfTexts{text("folder.config"), text("folder.generation_config"), text("folder.tokenizer_config"),
                   text("folder.tokenizer"), text("folder.chat_template")};
  }

 private:
  [[noreturn]] void fail(std::string_view name, const std::string& message) const {
    throw FormatError({file_.path(), concat("key ", in_quotes(key(name))), {}}, message);
  }

  /// Of a tensor with this shape, or 0 where it cannot have one of at most `most` bytes.
  std::uint64_t byte_size(const std::vector<std::int64_t>& shape, const DtypeInfo& info, std::uint64_t panel_bytes,
                          std::uint64_t most) const {
    std::uint64_t rows = 1;
    const std::int64_t columns = shape.empty() ? 1 : shape.back();
    // no type has less than a bit for an element, so that nothing below overflows
    if (columns < 1 || columns % info.block_elements != 0 || static_cast<std::uint64_t>(columns) / 8 > most) return 0;
    for (std::size_t d = 0; d + 1 < shape.size(); ++d)
      if (shape[d] < 1 || __builtin_mul_overflow(rows, static_cast<std::uint64_t>(shape[d]), &rows)) return 0;
    std::uint64_t bytes = 0, row = row_bytes(info.dtype, static_cast<std::uint64_t>(columns));
    if (panel_bytes != 0) {
      const auto format =
          std::find_if(panels_.begin(), panels_.end(), [&](const auto* panel) { return panel->dtype == info.dtype; });
      const std::int64_t inputs = kernels::padded(columns);
      if (format == panels_.end() || shape.size() < 2 || shape[shape.size() - 2] % kernels::panel_rows != 0 ||
          static_cast<std::uint64_t>((*format)->panel_bytes(inputs)) != panel_bytes)
        return 0;
      rows /= kernels::panel_rows;
      row = panel_bytes;
    }
    return __builtin_mul_overflow(rows, row, &bytes) ? 0 : bytes;
  }

  const nlohmann::json& get(std::string_view name) const {
    const auto it = file_.metadata().find(key(name));
    if (it == file_.metadata().end()) fail(name, "is missing");
    return *it;
  }
  /// Empty where it is missing.
  std::string text(std::string_view name) const {
    const auto it = file_.metadata().find(key(name));
    if (it == file_.metadata().end()) return {};
    if (!it->is_string()) fail(name, "must be a string");
    return it->get<std::string>();
  }
  template <class T>
  T integer(const nlohmann::json& value, std::string_view name) const {
    const bool good = std::is_signed_v<T> ? value.is_number_integer() : value.is_number_unsigned();
    if (!good) fail(name, "must hold integers");
    return value.get<T>();
  }
  const nlohmann::json& array(std::string_view name, std::optional<std::size_t> size) const {
    const nlohmann::json& value = get(name);
    if (!value.is_array() || (size && value.size() != *size))
      fail(name, concat("must be an array", (size ? concat(" of ", *size, " values") : std::string())));
    return value;
  }
  template <class T>
  std::vector<T> integers(std::string_view name, std::optional<std::size_t> size = {}) const {
    std::vector<T> values;
    for (const nlohmann::json& value : array(name, size)) values.push_back(integer<T>(value, name));
    return values;
  }
  std::vector<std::string> strings(std::string_view name, std::optional<std::size_t> size = {}) const {
    std::vector<std::string> values;
    for (const nlohmann::json& value : array(name, size)) {
      if (!value.is_string()) fail(name, "must hold strings");
      values.push_back(value.get<std::string>());
    }
    return values;
  }

  const GgufFile& file_;
  const kernels::Table& kernels_;
  std::vector<const kernels::FormatKernels*> panels_;  ///< formats whose layout was checked
};

}  // namespace packed

/// Whether a GGUF file is a packed model.
inline bool is_packed(const GgufFile& file) { return file.metadata().contains(packed::key("version")); }

struct PackedModel {
  TensorMap tensors;               ///< with the names, types and shapes that they have in the source
  std::optional<HfFolder> folder;  ///< where it was packed from one; else the metadata are those of a GGUF file
  std::string arch;                ///< whose kernels packed it
  std::vector<std::string> files;  ///< that it was packed from
};

/// Throws FormatError.
inline PackedModel read_packed(const GgufFile& file, const kernels::Table& kernels, Threads threads) {
  packed::Reader reader(file, kernels);
  reader.check_version();
  reader.check_digest();
  reader.check_layouts();
  reader.check_sources(threads);
  PackedModel model{reader.tensors(), {}, reader.arch(), reader.files()};
  if (std::optional<HfTexts> texts = reader.folder())
    model.folder = HfFolder::from_texts(file.path(), *std::move(texts), model.tensors);
  return model;
}

}  // namespace moxie
