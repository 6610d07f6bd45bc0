#pragma once
// Tokenizers in Hugging Face's tokenizer.json: byte-level BPE, and SentencePiece's BPE as Llama 2 and Mixtral have it.
//
// Read: model (BPE: vocab, merges, ignore_merges, unk_token), added_tokens, normalizer (NFC), pre_tokenizer (Split, Digits,
// ByteLevel, Sequence), post_processor (TemplateProcessing: what add_special adds), decoder (ByteLevel).
// tokenizer_config.json: bos_token, eos_token; add_bos_token and add_eos_token, which overrule the post-processor where they are
// given. Anything else in a place where it would change the result is an UnsupportedError.
// Source: the `tokenizers` library, whose ids and decodes are the reference.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/json_parser.hpp>
#include <moxie/text/known_pre_tokenizers.hpp>
#include <moxie/text/tokenizer.hpp>

namespace moxie {

/// Checked access to the fields of a tokenizer.json. `path` is the place in the file ("model.vocab").
class HfField {
 public:
  HfField(const nlohmann::json& value, std::string file, std::string path)
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const nlohmann::json& value() const noexcept { return *value_; }
  Place place() const { return {file_, path_, {}}; }
  bool null() const noexcept { return value_->is_null(); }

  /// The member `name` of an object; a null where it is absent.
  HfField operator[](const std::string& name) const {
    static const nlohmann::json absent;
    if (!value_->is_object()) throw FormatError(place(), std::string("must be an object, is ") + value_->type_name());
    const auto found = value_->find(name);
    return {found == value_->end() ? absent : *found, file_, path_.empty() ? name : concat(path_, ".", name)};
  }
  HfField at(std::size_t index) const { return {(*value_)[index], file_, concat(path_, "[", index, "]")}; }

  std::size_t array_size() const {
    if (!value_->is_array()) throw FormatError(place(), std::string("must be an array, is ") + value_->type_name());
    return value_->size();
  }
  const std::string& string() const {
    if (!value_->is_string()) throw FormatError(place(), std::string("must be a string, is ") + value_->type_name());
    return value_->get_ref<const std::string&>();
  }
  bool boolean(bool otherwise) const {
    if (null()) return otherwise;
    if (!value_->is_boolean()) throw FormatError(place(), std::string("must be true or false, is ") + value_->type_name());
    return value_->get<bool>();
  }
  /// A token id below `limit`.
  std::int32_t id(std::size_t limit) const {
    if (!value_->is_number_unsigned() || value_->get<std::uint64_t>() >= limit) {
      throw FormatError(place(), concat("must be a token id from 0 to ", limit - 1, ", is ",
                                        value_->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)));
    }
    return value_->get<std::int32_t>();
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw UnsupportedError(place(), concat(what, " is not supported"));
  }

 private:
  const nlohmann::json* value_;
  std::string file_, path_;
};

/// The tokens of model.vocab and added_tokens. `bytes_of(text)` gives what a token stands for.
inline std::vector<TokenEntry> hf_tokens(const HfField& root, const std::function<std::string(const std::string&)>& bytes_of) {
  const HfField vocab = root["model"]["vocab"];
  if (!vocab.value().is_object() || vocab.value().empty()) throw FormatError(vocab.place(), "must be an object of token -> id");
  const HfField added = root["added_tokens"];
  const std::size_t added_count = added.null() ? 0 : added.array_size();
  // ids may have holes, but not so many that a broken id would make a giant table
  const std::size_t limit = 4 * (vocab.value().size() + added_count) + 65536;

  std::vector<TokenEntry> entries;
  const auto add = [&](std::int32_t id, const std::string& text, TokenKind kind, const Place& place) {
    const auto index = static_cast<std::size_t>(id);
    if (index >= entries.size()) entries.resize(index + 1);
    if (entries[index].kind != TokenKind::none && entries[index].text != text) {
      throw FormatError(place, concat("the tokens \"", entries[index].text, "\" and \"", text, "\" both have the id ", id));
    }
    entries[index] = {text, bytes_of(text), kind};
  };
  entries.reserve(vocab.value().size() + added_count);
  for (const auto& [text, id] : vocab.value().items()) {
    if (!id.is_number_unsigned() || id.template get<std::uint64_t>() >= limit) vocab[text].id(limit);
    add(id.template get<std::int32_t>(), text, TokenKind::normal, vocab.place());
  }
  for (std::size_t i = 0; i < added_count; ++i) {
    const HfField token = added.at(i);
    const std::string& text = token["content"].string();
    const auto same = vocab.value().find(text);
    const std::int32_t id = token["id"].id(limit);
    if (same != vocab.value().end() && same->get<std::int32_t>() != id) {
      throw FormatError(token["id"].place(),
                        concat("the token \"", text, "\" has the id ", same->dump(), " in model.vocab and ", id, " here"));
    }
    add(id, text, token["special"].boolean(false) ? TokenKind::special : TokenKind::added, token.place());
  }
  return entries;
}

/// added_tokens, for finding them in text.
inline void add_hf_added_tokens(const HfField& root, TokenizerParts& parts) {
  const HfField added = root["added_tokens"];
  for (std::size_t i = 0; !added.null() && i < added.value().size(); ++i) {
    const HfField field = added.at(i);
    AddedToken token;
    token.content = field["content"].string();
    token.id = field["id"].value().get<std::int32_t>();
    token.special = field["special"].boolean(false);
    token.normalized = field["normalized"].boolean(!token.special);
    token.lstrip = field["lstrip"].boolean(false);
    token.rstrip = field["rstrip"].boolean(false);
    token.single_word = field["single_word"].boolean(false);
    if (token.normalized && parts.nfc) token.content = nfc(token.content);
    (token.normalized ? parts.normalized_added : parts.added).add(std::move(token));
  }
}

/// model.merges: strings "LEFT RIGHT" or pairs of strings.
inline MergeTable hf_merges(const HfField& root, const Vocabulary& vocabulary) {
  const HfField merges = root["model"]["merges"];
  MergeTable table(merges.array_size());
  for (std::size_t i = 0; i < merges.value().size(); ++i) {
    const nlohmann::json& merge = merges.value()[i];
    std::string left, right;
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else {
      const std::string& text = merges.at(i).string();
      const std::size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        throw FormatError(merges.at(i).place(), concat("\"", text, "\" must be two tokens with a space between"));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    }
    if (!add_merge(
            vocabulary, left, right, i, [&] { return merges.at(i).place(); }, table)) {
      throw FormatError(merges.at(i).place(), concat("the merge of \"", left, "\" and \"", right, "\" makes the token \"", left,
                                                     right, "\", which does not exist"));
    }
  }
  return table;
}

inline SplitBehavior hf_split_behavior(const HfField& field) {
  const std::string& name = field.string();
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  throw FormatError(
      field.place(),
      concat("\"", name, "\" is no behavior; there are Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous"));
}

/// A literal string as a regular expression.
inline std::string regex_escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && !(c >= '0' && c <= '9') && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z') && c > ' ')
      escaped += '\\';
    escaped += c;
  }
  return escaped;
}

/// Adds the steps of `field`; true when ByteLevel is among them.
inline bool add_hf_pre_tokenizer(const HfField& field, PreTokenizer& pre_tokenizer) {
  if (field.null()) return false;
  const std::string& type = field["type"].string();
  if (type == "Sequence") {
    const HfField steps = field["pretokenizers"];
    bool byte_level = false;
    for (std::size_t i = 0; i < steps.array_size(); ++i) {
      if (byte_level) steps.at(i).unsupported("a pre-tokenizer after ByteLevel");
      byte_level = add_hf_pre_tokenizer(steps.at(i), pre_tokenizer);
    }
    return byte_level;
  }
  if (type == "Split") {
    const HfField pattern = field["pattern"];
    const bool literal = !pattern["String"].null();
    const HfField text = pattern[literal ? "String" : "Regex"];
    pre_tokenizer.add_split(Regex(literal ? regex_escaped(text.string()) : text.string(), text.place()),
                            hf_split_behavior(field["behavior"]), field["invert"].boolean(false));
    return false;
  }
  if (type == "Digits") {
    pre_tokenizer.add_split(Regex(field["individual_digits"].boolean(false) ? R"(\p{N})" : R"(\p{N}+)"));
    return false;
  }
  if (type == "ByteLevel") {
    if (field["add_prefix_space"].boolean(true)) pre_tokenizer.add_prefix_space();
    if (field["use_regex"].boolean(true)) pre_tokenizer.add_split(Regex(gpt2_pattern));
    return true;
  }
  field.unsupported(concat("the pre-tokenizer \"", type, "\""));
}

/// True when the normalizer is NFC, false when it does nothing.
inline bool hf_normalizer_is_nfc(const HfField& field) {
  if (field.null()) return false;
  const std::string& type = field["type"].string();
  if (type == "NFC") return true;
  if (type != "Sequence") field.unsupported(concat("the normalizer \"", type, "\""));
  const HfField steps = field["normalizers"];
  bool any = false;
  for (std::size_t i = 0; i < steps.array_size(); ++i) any = hf_normalizer_is_nfc(steps.at(i)) || any;
  return any;
}

/// What the post-processor puts around the ids.
inline void add_hf_post_processor(const HfField& field, TokenizerParts& parts) {
  if (field.null()) return;
  const std::string& type = field["type"].string();
  if (type == "ByteLevel") return;  // changes offsets only
  if (type == "Sequence") {
    const HfField steps = field["processors"];
    for (std::size_t i = 0; i < steps.array_size(); ++i) add_hf_post_processor(steps.at(i), parts);
    return;
  }
  if (type != "TemplateProcessing") field.unsupported(concat("the post-processor \"", type, "\""));
  const HfField single = field["single"];
  std::vector<std::int32_t> before, after;
  bool text_seen = false;
  for (std::size_t i = 0; i < single.array_size(); ++i) {
    const HfField part = single.at(i);
    if (part["SpecialToken"].null()) {
      if (std::exchange(text_seen, true)) part.unsupported("a template that repeats the text");
      continue;
    }
    const HfField ids = field["special_tokens"][part["SpecialToken"]["id"].string()]["ids"];
    for (std::size_t k = 0; k < ids.array_size(); ++k) {
      (text_seen ? after : before).push_back(ids.at(k).id(static_cast<std::size_t>(parts.vocabulary.size())));
    }
  }
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
}

/// bos_token, eos_token, add_bos_token and add_eos_token of tokenizer_config.json.
inline void add_hf_config(const HfField& config, TokenizerParts& parts) {
  if (config.null()) return;
  const auto token = [&](const std::string& name) -> std::optional<std::int32_t> {
    const HfField field = config[name];
    if (field.null()) return std::nullopt;
    const std::string& text = field.value().is_object() ? field["content"].string() : field.string();
    if (text.empty()) return std::nullopt;
    const auto id = parts.vocabulary.find(text);
    if (!id) throw FormatError(field.place(), concat("\"", text, "\" is no token of tokenizer.json"));
    return id;
  };
  const auto overrule = [&](const std::string& key, std::optional<std::int32_t> id, std::vector<std::int32_t>& ids) {
    const HfField field = config[key];
    if (field.null()) return;
    ids.clear();
    if (!field.boolean(false)) return;
    if (!id) throw FormatError(field.place(), "is true, but the file does not say which token that is");
    ids.push_back(*id);
  };
  parts.bos = token("bos_token");
  parts.eos = token("eos_token");
  overrule("add_bos_token", parts.bos, parts.prefix);
  overrule("add_eos_token", parts.eos, parts.suffix);
}

/// True for the fields of SentencePiece's tokenizers: ▁ put first and for each space, byte fallback, one word, and back.
inline bool is_hf_sentencepiece(const HfField& root) {
  static const auto normalizer =
      parse_trusted_json(R"([{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}])");
  static const auto decoders =
      parse_trusted_json(R"([{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},)"
                         R"({"type":"Strip","content":" ","start":1,"stop":0}])");
  return root["pre_tokenizer"].null() && !root["normalizer"].null() && root["normalizer"]["normalizers"].value() == normalizer &&
         !root["decoder"].null() && root["decoder"]["decoders"].value() == decoders &&
         root["model"]["byte_fallback"].boolean(false);
}

inline Tokenizer Tokenizer::from_hf(const nlohmann::json& tokenizer_json, const nlohmann::json& tokenizer_config,
                                    std::string file) {
  const HfField root(tokenizer_json, file, "");
  const HfField model = root["model"];
  if (const HfField type = model["type"]; !type.null() && type.string() != "BPE")
    type.unsupported(concat("the model \"", type.string(), "\""));
  if (const HfField dropout = model["dropout"]; !dropout.null() && dropout.value() != 0) dropout.unsupported("dropout");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const HfField field = model[affix]; !field.null() && !field.string().empty())
      field.unsupported("a prefix or suffix of subwords");
  }
  const bool sentencepiece = is_hf_sentencepiece(root);
  const bool ignore_merges = model["ignore_merges"].boolean(false);
  PreTokenizer pre_tokenizer;
  if (sentencepiece) {
    if (ignore_merges) model["ignore_merges"].unsupported("a SentencePiece tokenizer that ignores merges");
  } else {
    if (!add_hf_pre_tokenizer(root["pre_tokenizer"], pre_tokenizer)) {
      root["pre_tokenizer"].unsupported(
          "a tokenizer that is neither byte-level (pre-tokenizer ByteLevel) nor like Llama 2's and Mixtral's");
    }
    if (const HfField decoder = root["decoder"]; decoder.null() || decoder["type"].string() != "ByteLevel") {
      decoder.unsupported("a byte-level tokenizer with another decoder than ByteLevel");
    }
  }

  std::vector<TokenEntry> tokens = hf_tokens(root, [&](const std::string& text) {
    if (!sentencepiece) return from_byte_level(text).value_or(text);
    const auto byte = byte_token(text);
    return byte ? std::string(1, *byte) : without_space_markers(text);
  });
  for (TokenEntry& token : tokens) {
    if (sentencepiece && token.kind == TokenKind::normal && byte_token(token.text)) token.kind = TokenKind::byte;
  }
  auto parts = std::make_shared<TokenizerParts>(std::move(tokens), model["vocab"].place(), AddedTokenRule::leftmost_longest);
  parts->sentencepiece = sentencepiece;
  parts->nfc = !sentencepiece && hf_normalizer_is_nfc(root["normalizer"]);
  add_hf_added_tokens(root, *parts);
  add_hf_post_processor(root["post_processor"], *parts);
  add_hf_config(HfField(tokenizer_config, concat("tokenizer_config.json beside ", file), ""), *parts);

  std::int32_t unknown = -1;
  if (const HfField field = model["unk_token"]; !field.null()) {
    const auto id = parts->vocabulary.find(field.string());
    if (!id) throw FormatError(field.place(), concat("\"", field.string(), "\" is no token of model.vocab"));
    unknown = *id;
  }
  MergeTable merges = hf_merges(root, parts->vocabulary);
  if (sentencepiece) {
    parts->model = std::make_unique<SentencePieceMerges>(parts->vocabulary, std::move(merges), unknown);
  } else {
    parts->model =
        std::make_unique<ByteLevelBpe>(parts->vocabulary, std::move(pre_tokenizer), std::move(merges), ignore_merges, unknown);
  }
  return Tokenizer(std::move(parts));
}

}  // namespace moxie
