#pragma once
// A model to a packed model: one file with everything, whose weights are mapped as they are (io/packed.hpp).
//
// Matrices that are only multiplied, of all types but F32 and BF16, lie in it as panels. Everything else lies in it as in the
// source: embeddings, norms, biases, routers, kv_b of latent attention, F32 and BF16 matrices (oneDNN has a layout of its own for
// each CPU), matrices whose rows are no multiple of 16, and the experts of gpt-oss's folders, which are packed when they are
// loaded (pack a GGUF file of the model instead). Memory: some megabytes of panels at a time. The file appears when it
// is complete.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/generate/model_source.hpp>
#include <moxie/io/detect.hpp>
#include <moxie/io/file_identity.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_writer.hpp>
#include <moxie/io/hf_folder.hpp>
#include <moxie/io/packed.hpp>
#include <moxie/kernels/kernels.hpp>
#include <moxie/linalg/linear.hpp>
#include <moxie/model/family.hpp>
#include <moxie/model/tensors.hpp>

namespace moxie {

struct PackOptions {
  int threads = 0;
  const kernels::Table* kernels = nullptr;  ///< that will multiply; nullptr: those of this CPU
  /// Told the bytes done and in all; may throw to stop.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

struct PackReport {
  std::uint64_t bytes_in = 0, bytes_out = 0;  ///< of tensors
  std::uint64_t bytes_packed = 0;             ///< of bytes_out, those that lie in panels
};

namespace detail {

/// Calls f(weight) for each matrix, [outputs, inputs], that is only multiplied.
template <class F>
void for_each_multiplied(const DecoderTensors& tensors, F&& f) {
  const auto one = [&](const std::optional<Weight>& weight) {
    if (weight) f(*weight);
  };
  const auto heads = [&](const std::optional<Weight>& weight) {  // stacked [heads, outputs, inputs]
    for (std::int64_t h = 0; weight && h < weight->tensor.shape[0]; ++h) f(Weight{weight->tensor.slice(h), {}});
  };
  const auto network = [&](const FeedForwardTensors& weights) {
    one(weights.gate);
    for (const Weight* weight : {&weights.up, &weights.down}) f(*weight);
  };
  one(tensors.output);
  for (const LayerTensors& layer : tensors.layers) {
    for (const auto* weight : {&layer.o, &layer.q, &layer.k, &layer.v, &layer.attn_gate, &layer.q_a, &layer.q_b, &layer.kv_a})
      one(*weight);
    if (layer.delta_net) {
      f(layer.delta_net->qkv);
      f(layer.delta_net->out);
      for (const auto* weight : {&layer.delta_net->z, &layer.delta_net->ba, &layer.delta_net->b, &layer.delta_net->a})
        one(*weight);
    }
    if (layer.mamba)
      for (const Weight* weight : {&layer.mamba->in, &layer.mamba->out}) f(*weight);
    if (layer.short_conv)
      for (const Weight* weight : {&layer.short_conv->in, &layer.short_conv->out}) f(*weight);
    heads(layer.k_b);
    heads(layer.v_b);
    one(layer.latent_in);
    one(layer.latent_out);
    if (layer.dense) network(*layer.dense);
    if (layer.shared) network(*layer.shared);
    for (const FeedForwardTensors& expert : layer.experts) network(expert);
  }
}

/// A tensor of the source that is to lie in panels.
struct PanelTensor {
  bool fits = true;
  std::optional<TensorView> scale_inv;
};

/// By name: the tensors all of whose uses are matrices that begin and end with a panel.
inline std::map<std::string, PanelTensor, std::less<>> panel_tensors(const kernels::Table& kernels, const TensorMap& source,
                                                                     const DecoderTensors& tensors) {
  std::map<std::string, PanelTensor, std::less<>> found;
  for_each_multiplied(tensors, [&](const Weight& weight) {
    const TensorView& part = weight.tensor;
    const TensorView& whole = *source.find(part.name);
    PanelTensor& tensor = found[part.name];
    if (weight.strided) {  // a matrix is no part of the tensor that could lie in panels
      tensor.fits = false;
      return;
    }
    const std::uint64_t stride = part.row_stride(), panel = stride * kernels::panel_rows;
    tensor.fits = tensor.fits && part.dtype != Dtype::F32 && part.dtype != Dtype::BF16 && kernels.find(part.dtype) &&
                  part.columns() == whole.columns() && part.rows() % kernels::panel_rows == 0 &&
                  (part.offset - whole.offset) % panel == 0 && whole.shape.size() >= 2 &&
                  whole.shape[whole.shape.size() - 2] % kernels::panel_rows == 0;
    tensor.scale_inv = weight.scale_inv;
  });
  std::erase_if(found, [](const auto& entry) { return !entry.second.fits; });
  return found;
}

/// Packs a tensor piece by piece into `sink`.
inline void write_panels(const Context& context, const TensorView& tensor, const PanelTensor& how, const TensorMap& source,
                         const GgufWriter::Sink& sink, const std::function<void(std::uint64_t)>& done) {
  constexpr std::uint64_t piece = std::uint64_t{16} << 20;
  constexpr Index unit = 128;  // rows of an FP8 scale, and of whole panels
  const auto step = static_cast<Index>(std::max<std::uint64_t>(1, piece / tensor.row_stride() / unit)) * unit;
  for (Index first = 0; first < tensor.rows(); first += step) {
    const TensorView rows = tensor.slice_rows(first, std::min(step, tensor.rows() - first));
    std::optional<TensorView> scales;
    if (how.scale_inv) scales = how.scale_inv->slice_rows(first / unit, (rows.rows() + unit - 1) / unit);
    const Linear packed = Linear::pack(context, rows, &source, scales ? &*scales : nullptr);
    sink(packed.panels());
    done(rows.bytes);
  }
}

/// The keys of io/packed.hpp that say how tensors lie in the file.
struct PackedTables {
  std::vector<std::string> names, types;
  std::vector<std::uint32_t> ranks;
  std::vector<std::int64_t> shapes;
  std::vector<std::uint64_t> panel_bytes;
  std::set<Dtype> formats;

  void add(const TensorView& tensor, std::uint64_t panel) {
    names.push_back(tensor.name);
    types.emplace_back(dtype_info(tensor.dtype).name);
    ranks.push_back(static_cast<std::uint32_t>(tensor.shape.size()));
    shapes.insert(shapes.end(), tensor.shape.begin(), tensor.shape.end());
    panel_bytes.push_back(panel);
    if (panel != 0) formats.insert(tensor.dtype);
  }

  void write(const kernels::Table& kernels, GgufWriter& writer) const {
    std::vector<std::string> format_names;
    std::vector<std::uint64_t> layouts;
    for (const Dtype format : formats) {
      format_names.emplace_back(dtype_info(format).name);
      layouts.push_back(panel_layout(*kernels.find(format)));
    }
    writer.set(packed::key("version"), packed::version);
    writer.set(packed::key("arch"), std::string_view(kernels.arch));
    writer.set(packed::key("formats"), format_names);
    writer.set(packed::key("layouts"), layouts);
    writer.set(packed::key("names"), names);
    writer.set(packed::key("types"), types);
    writer.set(packed::key("ranks"), ranks);
    writer.set(packed::key("shapes"), shapes);
    writer.set(packed::key("panel_bytes"), panel_bytes);
  }
};

/// Writes the tensors in the source's order, beginning with pages of the file.
inline void add_packed_tensors(const Context& context, const TensorMap& source, const DecoderTensors& tensors,
                               const PackOptions& options, GgufWriter& writer, PackReport& report) {
  writer.set("general.alignment", std::uint32_t{4096});
  const auto panels = panel_tensors(*context.kernels, source, tensors);
  std::vector<const TensorView*> order;
  for (const auto& [name, tensor] : source.all()) {
    if (tensor.bytes != 0) order.push_back(&tensor);
    report.bytes_in += tensor.bytes;
  }
  std::sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return std::pair(std::string_view(a->file), a->offset) < std::pair(std::string_view(b->file), b->offset);
  });
  const auto done = [&options, total = report.bytes_in, sum = std::make_shared<std::uint64_t>(0)](std::uint64_t bytes) {
    *sum += bytes;
    if (options.progress) options.progress(*sum, total);
  };
  PackedTables tables;
  for (const TensorView* tensor : order) {
    if (const auto how = panels.find(tensor->name); how != panels.end()) {
      const auto inputs = kernels::padded(tensor->columns());
      const auto panel = static_cast<std::uint64_t>(context.kernels->find(tensor->dtype)->panel_bytes(inputs));
      const auto bytes = static_cast<std::uint64_t>(tensor->rows() / kernels::panel_rows) * panel;
      tables.add(*tensor, panel);
      report.bytes_packed += bytes;
      report.bytes_out += bytes;
      writer.add_tensor(tensor->name, Dtype::I8, {static_cast<std::int64_t>(bytes)},
                        [=, &context, &source, how = how->second](const GgufWriter::Sink& sink) {
                          write_panels(context, *tensor, how, source, sink, done);
                        });
      continue;
    }
    const auto write = [=, &source](const GgufWriter::Sink& sink) { copy_bytes(*tensor, source, sink, done); };
    report.bytes_out += tensor->bytes;
    if (gguf::find_tensor_type(static_cast<std::uint32_t>(tensor->dtype)) && !tensor->shape.empty() &&
        tensor->shape.size() <= 4) {
      writer.add_tensor(tensor->name, tensor->dtype, tensor->shape, write);
    } else {
      tables.add(*tensor, 0);
      writer.add_tensor(tensor->name, Dtype::I8, {static_cast<std::int64_t>(tensor->bytes)}, write);
    }
  }
  tables.write(*context.kernels, writer);
}

inline void write_identities(const std::set<std::string>& files, Threads threads, GgufWriter& writer) {
  std::vector<std::string> paths;
  std::vector<std::uint64_t> sizes, samples, hashes;
  std::vector<std::int64_t> modified;
  for (const std::string& file : files) {
    const FileIdentity identity = identify_file(file, threads);
    paths.push_back(identity.path);
    sizes.push_back(identity.size);
    modified.push_back(identity.modified);
    samples.push_back(identity.sample);
    hashes.push_back(identity.content);
  }
  writer.set(packed::key("source.files"), paths);
  writer.set(packed::key("source.sizes"), sizes);
  writer.set(packed::key("source.modified"), modified);
  writer.set(packed::key("source.samples"), samples);
  writer.set(packed::key("source.hashes"), hashes);
}

/// The last key: what seals the tables.
inline void write_digest(GgufWriter& writer) {
  const std::string key = packed::key("digest");
  writer.set(key, std::uint64_t{0});
  const std::string tables = writer.tables();
  writer.set(key, packed::hash_tables(tables, tables.rfind(key) + key.size() + sizeof(std::uint32_t)));
}

}  // namespace detail

/// Packs the model at `from`, a GGUF file or a Hugging Face folder, into the file `to`. Throws what loading throws,
/// ArgumentError where `to` is a file of the model itself, and SystemError; the file does not exist then, or is as it was.
inline PackReport pack_model(const std::string& from, const std::string& to, const PackOptions& options = {}) {
  std::error_code ignored;  // where the file cannot be made, the writer says so
  if (std::filesystem::is_directory(to, ignored)) throw SystemError({to, {}, {}}, "is a folder; name the file to write");
  const Context context{options.kernels ? options.kernels : &kernels::native_table(), Threads(options.threads)};
  PackReport report;
  GgufWriter writer(to);
  const auto write = [&](const TensorMap& source, const std::set<std::string>& files, const ModelDescription& description) {
    detail::add_packed_tensors(context, source, description.tensors, options, writer, report);
    detail::write_identities(files, context.threads, writer);  // before the weights are read: a later change is noticed
    detail::write_digest(writer);
    writer.finish();
  };
  if (detect_model(from) == ModelFileKind::gguf) {
    const GgufFile file = GgufFile::open(from);
    const std::set<std::string> files = source_files(file);
    detail::check_not_source(to, files);
    if (is_packed(file)) throw ArgumentError({from, {}, {}}, "is packed already; pack the model that it was packed from");
    writer.copy_metadata(file);
    write(file.tensors(), files, describe_gguf(file.metadata(), file.tensors(), from));
    return report;
  }
  const HfFolder folder = HfFolder::open(from);
  const std::set<std::string> files = source_files(folder);
  detail::check_not_source(to, files);
  const HfTexts texts = folder.texts();
  writer.set("general.architecture", std::string_view("moxie-packed"));
  for (const auto& [name, text] : {std::pair("config", &texts.config), std::pair("generation_config", &texts.generation_config),
                                   std::pair("tokenizer_config", &texts.tokenizer_config),
                                   std::pair("tokenizer", &texts.tokenizer), std::pair("chat_template", &texts.chat_template)})
    if (!text->empty()) writer.set(packed::key(concat("folder.", name)), *text);
  const ModelDescription description = describe_hf(folder.config, folder.tensors(), from);
  const std::optional<TensorMap> text = hf_text_model(folder.config, folder.tensors());  // whose names are short enough for GGUF
  write(text ? *text : folder.tensors(), files, description);
  return report;
}

}  // namespace moxie
