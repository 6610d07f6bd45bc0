#pragma once
// Model: a decoder with its tokenizer and chat format, loaded from a GGUF file, a packed model or a Hugging Face folder.
//
// Immutable and cheap to copy (copies share the weights); a const Model may be used from several threads at once.

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/io/detect.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/hf_folder.hpp>
#include <moxie/io/packed.hpp>
#include <moxie/io/peft_folder.hpp>
#include <moxie/kernels/kernels.hpp>
#include <moxie/linalg/context.hpp>
#include <moxie/model/adapter.hpp>
#include <moxie/model/decoder.hpp>
#include <moxie/model/family.hpp>
#include <moxie/text/chat.hpp>
#include <moxie/text/chat_template.hpp>
#include <moxie/text/tokenizer.hpp>
#include <moxie/text/tokenizer_gguf.hpp>

namespace moxie {

struct LoadOptions {
  int threads = 0;  ///< 0: one for each processor
  Activations activations = Activations::int8;
  KvType kv = KvType::int16;
  std::int64_t chunk = 512;  ///< rows of a forward pass at most; more take more memory, and change no bit
  std::string adapter = {};  ///< folder of a PEFT adapter, of any linear layers (io/peft_folder.hpp); empty: none
  AdapterMode adapter_mode = AdapterMode::beside;  ///< beside the weights, or merged into them (model/adapter.hpp)
  LoadProgress progress = {};
  Profile* profile = nullptr;  ///< takes the times of all passes; the model then belongs to one thread of the program at a time
  const kernels::Table* kernels = nullptr;  ///< nullptr: the best ones for this CPU
};

/// What was loaded.
struct ModelInfo {
  std::string path;
  std::uint64_t file_bytes = 0;
  std::uint64_t parameters = 0;
  std::uint64_t active_parameters = 0;  ///< multiplied for one token: the chosen experts only, embedding rows not counted;
                                        ///< layers for further tokens are
  double bits_per_weight = 0.0;
  double load_seconds = 0.0;
};

/// Sizes of a model by its description; path and load_seconds stay empty.
inline ModelInfo count_parameters(const ModelConfig& config, const TensorMap& tensors) {
  ModelInfo info;
  for (const auto& [name, tensor] : tensors.all()) {
    info.file_bytes += tensor.bytes;
    auto weights = static_cast<std::uint64_t>(tensor.elements());
    if (tensor.dtype == Dtype::U8) weights = name.ends_with("_blocks") ? 2 * weights : 0;  // MXFP4: two a byte, and exponents
    info.parameters += weights;
  }
  if (info.parameters > 0)
    info.bits_per_weight = 8.0 * static_cast<double>(info.file_bytes) / static_cast<double>(info.parameters);
  const std::int64_t matrices = config.moe.gated ? 3 : 2;
  const auto expert = static_cast<std::uint64_t>(matrices * config.moe.expert_input() * config.moe.moe_intermediate_size);
  const auto idle = static_cast<std::uint64_t>(config.moe.router.n_experts - config.moe.router.top_k) * expert *
                    static_cast<std::uint64_t>(config.n_moe_layers());
  const auto embedding = static_cast<std::uint64_t>(config.vocab_size * config.hidden_size);
  info.active_parameters = info.parameters - std::min(info.parameters, idle + embedding);
  return info;
}

/// The chat template of a folder: of chat_template.jinja, else of tokenizer_config.json (where it has several, the one called
/// "default"); may be empty.
inline std::string hf_chat_template(const HfFolder& folder) {
  if (std::optional<std::string> text = folder.load_chat_template()) return *text;
  if (!folder.tokenizer_config.is_object() || !folder.tokenizer_config.contains("chat_template")) return {};
  const nlohmann::json& field = folder.tokenizer_config["chat_template"];
  if (field.is_string()) return field.get<std::string>();
  if (!field.is_array()) return {};
  for (const nlohmann::json& entry : field)
    if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" && entry.contains("template") &&
        entry["template"].is_string())
      return entry["template"].get<std::string>();
  return {};
}

class Model {
 public:
  /// Loads a GGUF file (the first part of a split one), a packed model or a Hugging Face folder. Throws FormatError, UnsupportedError or
  /// SystemError.
  static Model load(const std::string& path, const LoadOptions& options = {}) {
    const auto start = std::chrono::steady_clock::now();
    if (options.chunk < 1) throw ArgumentError(concat("chunk must be at least 1 row, got ", options.chunk));
    auto state = std::make_shared<State>();
    state->options = options;
    state->context = {options.kernels ? options.kernels : &kernels::native_table(), Threads(options.threads, options.profile),
                      options.activations};
    state->info.path = path;
    if (detect_model(path) == ModelFileKind::gguf) {
      load_gguf(*state, path);
    } else {
      load_folder(*state, HfFolder::open(path), path);
    }
    state->info.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return Model(std::move(state));
  }

  const ModelConfig& config() const noexcept { return state_->decoder->config(); }
  const ModelInfo& info() const noexcept { return state_->info; }
  const Decoder& decoder() const noexcept { return *state_->decoder; }
  const Context& context() const noexcept { return state_->context; }
  const LoadOptions& options() const noexcept { return state_->options; }
  /// What a position of its KV caches takes.
  KvShape kv_shape() const { return decoder().kv_shape(options().kv); }

  bool has_tokenizer() const noexcept { return state_->tokenizer.has_value(); }
  /// Throws UnsupportedError when the file has no tokenizer that moxie knows.
  const Tokenizer& tokenizer() const {
    if (!state_->tokenizer) throw UnsupportedError({state_->info.path, {}, {}}, state_->no_tokenizer);
    return *state_->tokenizer;
  }
  /// True for tokens that end an answer.
  bool is_end(std::int32_t id) const noexcept {
    return std::find(state_->end_ids.begin(), state_->end_ids.end(), id) != state_->end_ids.end();
  }

  /// Ids of a text, with the beginning-of-sequence token where the tokenizer adds one.
  std::vector<std::int32_t> encode(std::string_view text) const { return tokenizer().encode(text, true, true); }
  /// Ids of a conversation as the model's chat template writes it, ready for the assistant's answer. A model without template
  /// takes the format that is usual for its family. Throws UnsupportedError where there is neither, or the template is not Jinja
  /// that moxie knows; ArgumentError for conversations that the template refuses.
  std::vector<std::int32_t> chat(std::span<const Message> messages, const ChatOptions& options = {}) const {
    return tokenizer().encode(chat_text(messages, options), true, false);
  }
  std::vector<std::int32_t> chat(std::initializer_list<Message> messages, const ChatOptions& options = {}) const {
    return chat(std::span<const Message>(messages.begin(), messages.size()), options);
  }
  /// Messages as Hugging Face and OpenAI write them, whose fields the template sees as they are and in their order.
  template <std::same_as<nlohmann::ordered_json> Json>
  std::vector<std::int32_t> chat(const Json& messages, const ChatOptions& options = {}) const {
    return tokenizer().encode(chat_text(messages, options), true, false);
  }
  std::string chat_text(std::span<const Message> messages, const ChatOptions& options = {}) const {
    const std::optional<ChatTemplate> own = chat_template();
    return own ? own->render(messages, with_tokens(options)) : render_chat(usual_format(), messages, with_tokens(options));
  }
  template <std::same_as<nlohmann::ordered_json> Json>
  std::string chat_text(const Json& messages, const ChatOptions& options = {}) const {
    const std::optional<ChatTemplate> own = chat_template();
    return own ? own->render(messages, with_tokens(options))
               : render_chat(usual_format(), messages_from_json(messages), with_tokens(options));
  }
  /// The model's answer as a message of the conversation.
  Message answer_message(std::string_view text) const {
    const std::optional<ChatTemplate> own = chat_template();
    return own ? own->answer_message(text) : moxie::answer_message(usual_format(), text);
  }
  /// The model's own template, read anew; none where the model has none. Throws UnsupportedError where it cannot be read.
  std::optional<ChatTemplate> chat_template() const {
    if (state_->chat_template.empty()) return std::nullopt;
    try {
      return ChatTemplate(state_->chat_template);
    } catch (const FormatError& error) {
      throw UnsupportedError({state_->info.path, {}, {}}, error.what());
    }
  }
  /// Throws UnsupportedError where chat() would for every conversation.
  void require_chat() const {
    tokenizer();
    if (!chat_template()) usual_format();
  }

 private:
  struct State {
    LoadOptions options;
    Context context;
    ModelInfo info;
    std::unique_ptr<const Decoder> decoder;
    std::optional<Tokenizer> tokenizer;
    std::string no_tokenizer = "the model has no tokenizer; give token ids instead of text";
    std::string chat_template;  // its text; programs that never chat compile nothing that reads it
    std::vector<std::int32_t> end_ids;
  };
  explicit Model(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  ChatOptions with_tokens(ChatOptions options) const {
    const Tokenizer& t = tokenizer();
    if (!options.bos && t.bos_id()) options.bos = std::string(t.piece(*t.bos_id()));
    if (!options.eos && t.eos_id()) options.eos = std::string(t.piece(*t.eos_id()));
    return options;
  }
  ChatFormat usual_format() const {
    try {
      return usual_chat_format(config().family);
    } catch (const UnsupportedError& error) {
      throw UnsupportedError({state_->info.path, {}, {}}, error.what());
    }
  }

  static void load_gguf(State& state, const std::string& path) {
    const GgufFile file = GgufFile::open(path);
    const nlohmann::json& metadata = file.metadata();
    TensorMap tensors = file.tensors();
    if (is_packed(file)) {
      const PackedModel packed = read_packed(file, *state.context.kernels, state.context.threads);
      if (packed.folder) return load_folder(state, *packed.folder, path);
      tensors = packed.tensors;
    }
    const GgufTokenizerKeys keys(metadata, path);
    if (gguf_tokenizer_kind(keys)) take_tokenizer(state, [&] { return Tokenizer::from_gguf(metadata, path); });
    build(state, describe_gguf(metadata, tensors, path), tensors);
    state.chat_template = keys.string("tokenizer.chat_template").value_or("");
    if (!state.tokenizer) return;
    const auto tokens = static_cast<std::size_t>(state.tokenizer->vocab_size());
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
      if (const auto id = keys.id(key, tokens)) state.end_ids.push_back(*id);
    add_known_end_tokens(state);
  }

  static void load_folder(State& state, const HfFolder& folder, const std::string& path) {
    if (folder.has_tokenizer())
      take_tokenizer(state, [&] { return Tokenizer::from_hf(folder.load_tokenizer_json(), folder.tokenizer_config, path); });
    ModelDescription description = describe_hf(folder.config, folder.tensors(), path);
    const std::optional<TensorMap> text = hf_text_model(folder.config, folder.tensors());
    build(state, std::move(description), text ? *text : folder.tensors());
    state.chat_template = hf_chat_template(folder);
    if (folder.generation_config.is_object() && folder.generation_config.contains("eos_token_id")) {
      const nlohmann::json& eos = folder.generation_config["eos_token_id"];
      for (const nlohmann::json& id : eos.is_array() ? eos : nlohmann::json::array({eos}))
        if (id.is_number_integer()) state.end_ids.push_back(id.get<std::int32_t>());
    }
    if (!state.tokenizer) return;
    if (state.tokenizer->eos_id()) state.end_ids.push_back(*state.tokenizer->eos_id());
    add_known_end_tokens(state);
  }

  /// A tokenizer of a kind that moxie lacks leaves the model usable with ids; a broken one is an error.
  template <class F>
  static void take_tokenizer(State& state, F&& make) {
    try {
      state.tokenizer = make();
    } catch (const UnsupportedError& error) {
      state.no_tokenizer = error.what();
    }
  }

  /// End tokens that chat models use beside the one their file names.
  static void add_known_end_tokens(State& state) {
    for (const char* text : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|return|>", "<|call|>",
                             "<\xEF\xBD\x9C"
                             "end\xE2\x96\x81"
                             "of\xE2\x96\x81sentence\xEF\xBD\x9C>"})
      if (const auto id = state.tokenizer->find(text); id && state.tokenizer->is_special(*id)) state.end_ids.push_back(*id);
  }

  static void build(State& state, ModelDescription description, const TensorMap& tensors) {
    const ModelConfig& config = description.config;
    if (state.tokenizer && static_cast<std::int64_t>(state.tokenizer->vocab_size()) > config.vocab_size)
      throw FormatError({state.info.path, {}, {}}, concat("the tokenizer has ", state.tokenizer->vocab_size(),
                                                          " tokens, the model's embedding only ", config.vocab_size));
    ModelInfo info = count_parameters(config, tensors);
    info.path = std::move(state.info.path);
    state.info = std::move(info);
    MergedWeights merged;
    if (!state.options.adapter.empty()) {
      const PeftFolder folder = PeftFolder::open(state.options.adapter);
      merged = apply_adapter(state.context, config, description.tensors, folder.adapter(), state.options.adapter_mode);
    }
    state.decoder = std::make_unique<const Decoder>(state.context, config, description.tensors, tensors, state.options.progress);
  }

  std::shared_ptr<const State> state_;
};

}  // namespace moxie
