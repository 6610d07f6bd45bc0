#pragma once
// A model file or folder to a GGUF file with weights of another type.
//
// From GGUF: the metadata are copied as they are, every tensor is decoded and encoded anew (one that has its type already is
// copied). From Hugging Face folders: metadata and tensors are written as llama.cpp's converter names and orders them, so that it
// can read the file too; FP8 weights are multiplied with their block scales first. model/quantize_mix.hpp says which tensor gets
// which type. Memory: a few megabytes of rows at a time; of latent attention one layer's kv_b. The file appears when it is
// complete.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/generate/model_source.hpp>
#include <moxie/io/gguf_writer.hpp>
#include <moxie/model/families/gguf_names.hpp>
#include <moxie/model/quantize_mix.hpp>
#include <moxie/model/weights.hpp>
#include <moxie/quant/quantize.hpp>
#include <moxie/text/gguf_tokenizer_writer.hpp>

namespace moxie {

struct QuantizeOptions {
  std::string type = "Q4_K_M";  ///< a name of model/quantize_mix.hpp
  bool pure = false;            ///< all matrices in the type itself where their rows allow it
  int threads = 0;
  /// Told the number of weights done and in all; may throw to stop.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

struct QuantizeReport {
  std::uint64_t parameters = 0, bytes_in = 0, bytes_out = 0;  ///< of weights
  std::string no_tokenizer;  ///< why the file has no tokenizer although the folder has one; empty otherwise
};

namespace detail {

/// Writes row r, of the columns of a tensor, as floats.
using RowReader = std::function<void(Index r, float* to)>;

/// A tensor of the file to be written, and where its rows come from.
struct TensorSource {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<Weight> weights;           // whose rows follow each other
  std::vector<std::int64_t> row_order, column_order = {};  // as in GgufTensor
  std::function<RowReader()> open = {};  // instead of the rows of `weights`
  Dtype dtype = Dtype::F32;

  Index columns() const { return shape.back(); }
  Index rows() const {
    Index n = 1;
    for (const std::int64_t size : shape) n *= size;
    return n / columns();
  }
  /// The bytes can be copied as they are.
  bool is_copy() const {
    return !open && row_order.empty() && column_order.empty() &&
           std::all_of(weights.begin(), weights.end(), [&](const Weight& w) {
             return w.tensor.dtype == dtype && !w.scale_inv && !w.strided && w.stored_as == StoredAs::itself;
           });
  }
  /// One tensor of the input, read from low to high.
  bool in_file_order() const { return !open && row_order.empty() && weights.size() == 1 && !weights.front().strided; }
  Place place() const { return weights.empty() ? Place{{}, concat("tensor '", name, "'"), {}} : weights.front().tensor.place(); }

  RowReader reader() const {
    if (open) return open();
    return [this](Index r, float* to) {
      Index row = r;
      std::size_t part = 0;
      for (; part + 1 < weights.size() && row >= weights[part].tensor.rows(); ++part) row -= weights[part].tensor.rows();
      const Weight& weight = weights[part];
      if (!row_order.empty()) row = row_order[static_cast<std::size_t>(row)];
      if (weight.scale_inv) {
        decode_fp8_blocks(weight.tensor, *weight.scale_inv, row, 1, to);
      } else if (weight.strided) {
        std::vector<std::byte> memory;
        decode_row(weight.tensor.dtype, plain_rows(weight, row, 1, memory).data, to, columns());
      } else {
        const std::uint64_t stride = row_bytes(weight.tensor.dtype, static_cast<std::uint64_t>(columns()));
        decode_row(weight.tensor.dtype, weight.tensor.data + static_cast<std::uint64_t>(row) * stride, to, columns());
      }
      if (weight.stored_as != StoredAs::itself)
        for (Index c = 0; c < columns(); ++c) to[c] = from_stored(weight.stored_as, to[c]);
      if (column_order.empty()) return;
      const std::vector<float> in_file(to, to + columns());
      for (std::size_t c = 0; c < in_file.size(); ++c) to[c] = in_file[static_cast<std::size_t>(column_order[c])];
    };
  }
};

/// attn_k_b [heads, kv_lora, nope] (transposed) and attn_v_b [heads, v, kv_lora] of kv_b [heads * (nope + v), kv_lora].
inline void split_kv_b(const AttentionConfig& a, const Weight& kv_b, const std::string& name, std::vector<TensorSource>& out) {
  const Index nope = a.qk_nope_head_dim, v = a.v_head_dim, latent = a.kv_lora_rank;
  const auto decode = [kv_b, rows = a.n_heads * (nope + v)] { return std::make_shared<const RowMatrix>(load_rows(kv_b, rows)); };
  const std::string stem = name.substr(0, name.rfind("attn_kv_b.weight"));
  TensorSource keys{concat(stem, "attn_k_b.weight"), {a.n_heads, latent, nope}, {kv_b}, {}};
  keys.open = [=] {
    return [=, all = decode()](Index r, float* to) {
      const Index first = r / latent * (nope + v), column = r % latent;
      for (Index i = 0; i < nope; ++i) to[i] = (*all)(first + i, column);
    };
  };
  TensorSource values{concat(stem, "attn_v_b.weight"), {a.n_heads, v, latent}, {kv_b}, {}};
  values.open = [=] {
    return [=, all = decode()](Index r, float* to) {
      const float* row = all->data() + (r / v * (nope + v) + nope + r % v) * latent;
      std::copy(row, row + latent, to);
    };
  };
  out.push_back(std::move(keys));
  out.push_back(std::move(values));
}

inline std::vector<TensorSource> hf_sources(const ModelConfig& config, const DecoderTensors& tensors) {
  std::vector<TensorSource> out;
  for (const GgufTensor& tensor : gguf_tensors(config, tensors)) {
    if (tensor.name.ends_with("attn_kv_b.weight")) {
      split_kv_b(config.attention, *tensor.parts.front(), tensor.name, out);
      continue;
    }
    TensorSource source{tensor.name, tensor.shape(), {}, tensor.row_order, tensor.column_order};
    for (const Weight* part : tensor.parts) source.weights.push_back(*part);
    out.push_back(std::move(source));
  }
  if (const std::vector<float> factors = gguf_rope_freqs(config); !factors.empty()) {
    TensorSource source{"rope_freqs.weight", {static_cast<std::int64_t>(factors.size())}, {}, {}};
    source.open = [factors] { return [factors](Index, float* to) { std::copy(factors.begin(), factors.end(), to); }; };
    out.push_back(std::move(source));
  }
  return out;
}

/// A JSON value as the GGUF type it stands for: integers uint32 (in arrays int32), numbers float32.
inline void set_gguf_value(GgufWriter& writer, const std::string& key, const nlohmann::json& value) {
  if (value.is_boolean()) return writer.set(key, value.get<bool>());
  if (value.is_number_integer()) return writer.set(key, value.get<std::uint32_t>());
  if (value.is_number()) return writer.set(key, value.get<float>());
  if (value.is_string()) return writer.set(key, value.get_ref<const std::string&>());
  if (value.empty() || value.front().is_string()) return writer.set(key, value.get<std::vector<std::string>>());
  if (value.front().is_boolean()) {
    const auto flags = value.get<std::vector<bool>>();
    return writer.set(key, flags);
  }
  if (value.front().is_number_integer()) return writer.set(key, value.get<std::vector<std::int32_t>>());
  writer.set(key, value.get<std::vector<float>>());
}

/// tokenizer.* of a folder; none when it has no tokenizer. Returns why a tokenizer was left out.
inline std::string write_hf_tokenizer(const HfFolder& folder, std::int64_t vocab_size, GgufWriter& writer) {
  const std::filesystem::path file = std::filesystem::path(folder.path()) / "tokenizer.json";
  nlohmann::json metadata = {{"tokenizer.ggml.model", "none"}};
  std::string left_out;
  std::error_code ignored;
  if (std::filesystem::exists(file, ignored)) {
    try {
      metadata = gguf_tokenizer_metadata(folder.load_tokenizer_json(), folder.tokenizer_config, file.string(), vocab_size);
    } catch (const UnsupportedError& error) {
      left_out = error.what();
    }
    // Further end tokens: the first ones of generation_config.json that are not the tokenizer's own.
    const nlohmann::json& generation = folder.generation_config;
    nlohmann::json ends =
        generation.is_object() && generation.contains("eos_token_id") ? generation["eos_token_id"] : nlohmann::json::array();
    if (!ends.is_array()) ends = nlohmann::json::array({ends});
    for (const nlohmann::json& id : ends) {
      if (!left_out.empty() || !id.is_number_unsigned() || id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocab_size))
        continue;
      for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
        if (!metadata.contains(key)) metadata[key] = id;
        if (metadata[key] == id) break;
      }
    }
    if (const std::string text = hf_chat_template(folder); !text.empty()) metadata["tokenizer.chat_template"] = text;
  }
  for (const auto& [key, value] : metadata.items()) set_gguf_value(writer, key, value);
  return left_out;
}

/// Encodes a tensor piece by piece into `sink`. `done` is told the weights of each piece.
inline void encode_tensor(const TensorSource& source, Threads threads, const TensorMap& mapped, const GgufWriter::Sink& sink,
                          const std::function<void(std::uint64_t)>& done) {
  constexpr Index piece_weights = Index{1} << 21;  // 8 MB of floats
  const Index columns = source.columns(), rows = source.rows();
  const std::uint64_t stride = row_bytes(source.dtype, static_cast<std::uint64_t>(columns));
  const RowReader read = source.reader();
  std::vector<AlignedBuffer<float>> buffers(static_cast<std::size_t>(threads.count()));
  std::vector<std::byte> bytes;
  for (Index first = 0; first < rows;) {
    const Index n = std::min(rows - first, std::max<Index>(1, piece_weights / columns));
    bytes.resize(static_cast<std::size_t>(n) * stride);
    threads.for_each(
        n,
        [&](std::int64_t i, int thread) {
          AlignedBuffer<float>& row = buffers[static_cast<std::size_t>(thread)];
          row.resize(static_cast<std::size_t>(columns));
          read(first + i, row.data());
          for (Index c = 0; c < columns; ++c)
            if (!(std::fabs(row[static_cast<std::size_t>(c)]) <= largest_encodable(source.dtype)))
              throw FormatError(source.place(),
                                concat("row ", first + i, ", column ", c, " is ", row[static_cast<std::size_t>(c)], ", which ",
                                       dtype_text(source.dtype), " cannot hold; choose BF16 or F32, or repair the model"));
          encode_row(source.dtype, row.data(), bytes.data() + static_cast<std::uint64_t>(i) * stride, columns);
        },
        std::max<Index>(1, 8192 / columns));
    sink(bytes);
    done(static_cast<std::uint64_t>(n * columns));
    if (source.in_file_order()) {
      TensorView part = source.weights.front().tensor;
      part.data += static_cast<std::uint64_t>(first) * part.row_stride();
      part.bytes = static_cast<std::uint64_t>(n) * part.row_stride();
      mapped.release(part);
    }
    first += n;
  }
  for (const Weight& weight : source.weights) release(mapped, weight);
}

/// Adds tensors and general keys, and writes the file.
inline void write_quantized(GgufWriter& writer, std::vector<TensorSource>& sources, const TensorMap& mapped,
                            const QuantizedModel& model, const QuantizeOptions& options, QuantizeReport& report) {
  const QuantizeMix& mix = quantize_mix(options.type);
  const Threads threads(options.threads);
  writer.set("general.file_type", mix.file_type);
  writer.set("general.quantization_version", std::uint32_t{2});
  for (TensorSource& source : sources) {
    source.dtype = quantized_type(mix, options.pure, model, source.name, source.shape);
    for (const Weight& weight : source.weights)
      detail::format_info(weight.tensor.dtype, weight.tensor.place());  // throws where it cannot be decoded
    report.parameters += static_cast<std::uint64_t>(source.rows() * source.columns());
    report.bytes_out +=
        static_cast<std::uint64_t>(source.rows()) * row_bytes(source.dtype, static_cast<std::uint64_t>(source.columns()));
  }
  for (const auto& [name, tensor] : mapped.all()) report.bytes_in += tensor.bytes;
  std::uint64_t done = 0;
  const auto add = [&](std::uint64_t weights) {
    done += weights;
    if (options.progress) options.progress(done, report.parameters);
  };
  for (const TensorSource& source : sources)
    writer.add_tensor(source.name, source.dtype, source.shape, [&, threads](const GgufWriter::Sink& sink) {
      if (!source.is_copy()) return encode_tensor(source, threads, mapped, sink, add);
      for (const Weight& weight : source.weights) {
        copy_bytes(weight.tensor, mapped, sink, [](std::uint64_t) {});
        add(static_cast<std::uint64_t>(weight.tensor.elements()));
      }
    });
  writer.finish();
}

}  // namespace detail

/// Quantizes the model at `from`, a GGUF file or a Hugging Face folder, to the GGUF file `to`. Throws what loading throws,
/// ArgumentError for an unknown type and where `to` is a file of the model itself, FormatError for weights that the type cannot
/// hold, SystemError; the file does not exist then, or is as it was.
inline QuantizeReport quantize_model(const std::string& from, const std::string& to, const QuantizeOptions& options) {
  quantize_mix(options.type);
  std::error_code ignored;  // where the file cannot be made, the writer says so
  if (std::filesystem::is_directory(to, ignored)) throw SystemError({to, {}, {}}, "is a folder; name the file to write");
  QuantizeReport report;
  GgufWriter writer(to);
  std::vector<detail::TensorSource> sources;
  const auto model_of = [](const ModelDescription& d) {
    return QuantizedModel{d.config.n_layers, d.config.moe.router.n_experts, d.tensors.output.has_value()};
  };
  if (detect_model(from) == ModelFileKind::gguf) {
    const GgufFile file = GgufFile::open(from);
    detail::check_not_source(to, source_files(file));
    if (is_packed(file)) throw ArgumentError({from, {}, {}}, "is a packed model; quantize the model that it was packed from");
    const ModelDescription description = describe_gguf(file.metadata(), file.tensors(), from);  // what is written can be loaded
    writer.copy_metadata(file);
    for (const auto& [name, tensor] : file.tensors().all()) sources.push_back({name, tensor.shape, {{tensor, {}}}, {}});
    const auto where = [](const detail::TensorSource& s) {
      return std::pair(std::string_view(s.weights.front().tensor.file), s.weights.front().tensor.offset);
    };
    std::sort(sources.begin(), sources.end(), [&](const auto& a, const auto& b) { return where(a) < where(b); });
    detail::write_quantized(writer, sources, file.tensors(), model_of(description), options, report);
    return report;
  }
  const HfFolder folder = HfFolder::open(from);
  detail::check_not_source(to, source_files(folder));
  const ModelDescription description = describe_hf(folder.config, folder.tensors(), from);
  const ModelConfig& config = description.config;
  const families::Family& family = family_of(config);
  if (family.gguf.o_bias && !description.tensors.layers.front().o_bias)
    throw UnsupportedError({from, "config.json, attention_bias", {}},
                           concat("is false; GGUF files of the family ", family.name, " have biases of q, k, v and o"));
  sources = detail::hf_sources(config, description.tensors);
  const nlohmann::json metadata = gguf_metadata(config, config.attention.kind == AttentionKind::mla);
  writer.set("general.architecture", gguf_architecture(config));
  writer.set("general.type", "model");
  writer.set("general.name",
             config.name.empty() ? std::filesystem::weakly_canonical(from, ignored).filename().string() : config.name);
  for (const auto& [key, value] : metadata.items()) detail::set_gguf_value(writer, key, value);
  report.no_tokenizer = detail::write_hf_tokenizer(folder, config.vocab_size, writer);
  detail::write_quantized(writer, sources, folder.tensors(), model_of(description), options, report);
  return report;
}

}  // namespace moxie
