#pragma once
// moxie tokenize: {"s":".."} to {"ids":[..],"text":".."}, line by line; text is the decode of the ids.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common.hpp"
#include "text_io.hpp"

namespace tool {

struct TokenizeOptions {
  std::string model, file;
  CommonOptions common;
};

inline moxie::Tokenizer folder_tokenizer(const moxie::HfFolder& folder) {
  return moxie::Tokenizer::from_hf(folder.load_tokenizer_json(), folder.tokenizer_config,
                                   (std::filesystem::path(folder.path()) / "tokenizer.json").string());
}

/// The tokenizer of a model, a folder with tokenizer files only, or a GGUF file with a vocabulary only. Of a packed model the
/// panels do not matter: they may be another machine's.
inline moxie::Tokenizer load_tokenizer(const std::string& path) {
  if (moxie::detect_model(path) == moxie::ModelFileKind::gguf) {
    const moxie::GgufFile file = moxie::GgufFile::open(path);
    if (moxie::is_packed(file)) {
      const moxie::packed::Reader reader(file, moxie::kernels::native_table());
      reader.check_version();
      reader.check_digest();
      if (auto texts = reader.folder()) return folder_tokenizer(moxie::HfFolder::from_texts(path, *std::move(texts), {}));
    }
    return moxie::Tokenizer::from_gguf(file.metadata(), path);
  }
  return folder_tokenizer(moxie::HfFolder::open_tokenizer(path));
}

inline int tokenize(const TokenizeOptions& options) {
  JsonLines lines(options.file);
  const moxie::Tokenizer tokenizer = load_tokenizer(options.model);
  Output output;
  nlohmann::json object;
  std::string out;
  while (lines.next(object)) {
    if (!object.contains("s") || !object["s"].is_string()) lines.fail(R"(must be {"s":".."} with a string)");
    const std::vector<std::int32_t> ids = tokenizer.encode(object["s"].get_ref<const std::string&>());
    out += "{\"ids\":";
    append_json_list(out, ids);
    out += ",\"text\":";
    append_json(out, tokenizer.decode(ids));
    out += "}\n";
    if (out.size() > 65536) {
      output.write(out);
      out.clear();
    }
  }
  output.write(out);
  output.finish();
  return 0;
}

inline void add_tokenize(CLI::App& app, Run& run) {
  CLI::App& command = *app.add_subcommand("tokenize", "token ids of texts, and the text they decode to");
  auto options = std::make_shared<TokenizeOptions>();
  command.add_option("MODEL_OR_FOLDER", options->model, "GGUF file (a vocabulary is enough) or folder with tokenizer.json")
      ->required();
  command.add_option("FILE", options->file, R"(JSON lines {"s":".."}; "-": standard input)")->required();
  options->common.add(command);
  command.callback([options, &run] { run = [options] { return tokenize(*options); }; });
}

}  // namespace tool
