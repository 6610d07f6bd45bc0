// moxie pack: a packed model is the model, bit for bit; stale, foreign and damaged ones are refused.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/hash.hpp>
#include <moxie/io/gguf.hpp>

#include "tool_run.hpp"

using namespace test;
using nlohmann::json;

namespace {

const std::string tiny = std::string(MOXIE_SOURCE_DIR) + "/examples/models/tiny-r1.gguf";

std::string packed(const TemporaryFolder& folder, const std::string& model, const std::string& name = "packed") {
  run_well({"pack", model, folder / name, "--threads", "2"});
  return folder / name;
}

json inspect(const std::string& model) { return run_well({"inspect", model, "--json"}).lines().at(0); }

/// Scores on the fast path and on the reference path.
std::string scores(const std::string& model) {
  const std::string lines = id_lines(inspect(model)["vocab_size"]);
  return run_well({"score", model, "-", "--threads", "2", "--top", "3"}, lines).out +
         run_well({"score", model, "-", "--threads", "1", "--activations", "f32"}, lines).out;
}

/// The place of a key's value in a GGUF file: offset and bytes.
std::pair<std::size_t, std::size_t> value_of(const std::string& path, const std::string& key) {
  const moxie::GgufFile file = moxie::GgufFile::open(path);
  for (const moxie::GgufKeyValue& entry : file.key_values())
    if (entry.key == "moxie.packed." + key) return {static_cast<std::size_t>(entry.value.data() - file.tables().data()), entry.value.size()};
  FAIL("no key " << key);
  return {};
}

/// Makes the digest fit changed tables again. False where they are no GGUF tables any more.
bool seal(const std::string& path, std::string bytes, std::size_t digest) {
  write_file(path, bytes);
  std::size_t size = 0;
  try {
    size = moxie::GgufFile::open(path).tables().size();
  } catch (const moxie::Error&) {
    return false;
  }
  std::memset(bytes.data() + digest, 0, 8);
  const std::uint64_t hash = moxie::xxh64(bytes.data(), size);
  std::memcpy(bytes.data() + digest, &hash, 8);
  write_file(path, bytes);
  return true;
}

/// The one line on stderr of a run that must end with an error, not with a signal.
std::string refusal(const Args& args) {
  const Result result = run_tool(args, R"({"ids":[1,2,3]})");
  CHECK(result.code == 1);
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  return result.err;
}
bool has(const std::string& text, std::string_view part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) MESSAGE("not in: " << text);
  return found;
}

}  // namespace

TEST_CASE("a packed model gives its source's bytes: scores, top tokens, answers, tokens and what inspect says") {
  const TemporaryFolder folder;
  std::vector<std::string> models{tiny};
  for (const char* type : {"Q4_K_M", "Q5_0", "F16"}) {
    models.push_back(folder / (std::string(type) + ".gguf"));
    run_well({"quantize", tiny, models.back(), "--type", type});
  }
  for (const char* name : {"models/deepseek_v3_fp8", "models/qwen2_moe", "models/gpt_oss", "models/gpt_oss_mxfp4", "gguf/gpt-oss/MXFP4.gguf", "trained/tiny-shakespeare"})
    if (const auto model = shared_path(name)) models.push_back(*model);
  for (const char* name : {"models/qwen3_5_moe", "models/glm4_moe_lite", "models/qwen3_vl_moe", "models/granitemoehybrid", "models/nemotron_h", "models/nemotron_h_latent", "models/afmoe", "models/bailing_moe_v2", "models/solar_open"}) models.push_back(data_path(name));
  for (const std::string& model : models) {
    CAPTURE(model);
    const std::string file = packed(folder, model);
    CHECK(scores(file) == scores(model));
    json ours = inspect(file), theirs = inspect(model);
    CHECK(ours["kind"] == "packed");
    CHECK(ours["packed"]["from"].size() >= 1);
    for (const char* key : {"path", "kind", "packed", "file_bytes", "bits_per_weight", "formats"}) {
      ours.erase(key);
      theirs.erase(key);
    }
    CHECK(ours == theirs);
    if (theirs["tokenizer"].is_null()) continue;
    const Args chat{"-p", "What is 7*8-5?", "-n", "12", "--temperature", "1", "--seed", "3", "--threads", "1"};
    CHECK(run_well(with({"generate", file}, chat)).out == run_well(with({"generate", model}, chat)).out);
    const std::string text = folder.write("text", R"({"s":"What is 7*8-5?"})");
    CHECK(run_well({"tokenize", file, text}).out == run_well({"tokenize", model, text}).out);
  }
}

TEST_CASE("a packed model needs no source, and is refused where its source has changed") {
  const TemporaryFolder folder;
  const std::string source = folder / "source.gguf", original = read_text(tiny);
  write_file(source, original);
  const std::string file = packed(folder, source), expected = scores(source);
  const auto use = [&] { return refusal({"score", file, "-"}); };

  std::string changed = original;
  changed[changed.size() / 2] ^= 1;
  write_file(source, changed);
  CHECK(has(use(), "is stale: it was packed from '" + source + "', which has changed since"));
  write_file(source, original + "more");
  CHECK(has(use(), "then it had"));
  write_file(source, original);
  std::filesystem::last_write_time(source, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  CHECK(scores(file) == expected);
  std::filesystem::remove(source);
  CHECK(scores(file) == expected);
}

TEST_CASE("what cannot be packed, or not be done with a packed model, is an error that says what can") {
  const TemporaryFolder folder;
  const std::string file = packed(folder, tiny);
  CHECK(has(refusal({"pack", file, folder / "again"}), "is packed already"));
  CHECK(has(refusal({"pack", file, file}), "is the model itself"));
  CHECK(has(refusal({"quantize", file, folder / "out.gguf", "--type", "Q8_0"}), "quantize the model that it was packed from"));
  CHECK(has(refusal({"pack", tiny, folder.path()}), "is a folder"));
  CHECK(folder.names().size() == 1);
}

TEST_CASE("panels of another layout are refused, and so is another version") {
  const TemporaryFolder folder;
  const std::string file = packed(folder, tiny), bytes = read_text(file);
  const std::size_t digest = value_of(file, "digest").first;
  const auto patched = [&](const char* key, std::size_t offset) {
    std::string copy = bytes;
    copy[value_of(file, key).first + offset] ^= 1;
    const std::string path = folder / "patched";
    REQUIRE(seal(path, copy, digest));
    return refusal({"score", path, "-"});
  };
  CHECK(has(patched("layouts", 12), "in another layout than that of this program's kernels"));
  const std::string text = folder.write("text", R"({"s":"What is 7*8-5?"})");
  CHECK(run_well({"tokenize", folder / "patched", text}).out == run_well({"tokenize", tiny, text}).out);  // needs no panels
  CHECK(has(patched("version", 0), "this moxie reads version 1"));
}

TEST_CASE("damaged packed models give errors that name the file, never a crash") {
  const TemporaryFolder folder;
  const std::string file = packed(folder, tiny), bytes = read_text(file), path = folder / "damaged";
  const std::size_t tables = moxie::GgufFile::open(file).tables().size(), digest = value_of(file, "digest").first;
  std::mt19937 random(1);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };

  for (const std::size_t size : {std::size_t{0}, std::size_t{3}, tables / 2, tables, tables + 5000, bytes.size() - 4097}) {
    CAPTURE(size);
    write_file(path, bytes.substr(0, size));
    CHECK(has(refusal({"score", path, "-"}), path));
  }
  // Where a flipped bit leaves GGUF tables, the digest does not fit.
  for (int i = 0; i < 15; ++i) {
    std::string copy = bytes;
    const std::size_t at = 24 + below(tables - 24);
    CAPTURE(at);
    copy[at] = static_cast<char>(copy[at] ^ 1 << below(8));
    write_file(path, copy);
    CHECK(has(refusal({"score", path, "-"}), path));
  }
  // With a digest that fits, what the keys say is checked.
  for (const char* key : {"names", "types", "ranks", "shapes", "panel_bytes", "formats"})
    for (int i = 0; i < 6; ++i) {
      std::string copy = bytes;
      const auto [begin, size] = value_of(file, key);
      const std::size_t at = begin + below(size);
      CAPTURE(key);
      CAPTURE(at);
      copy[at] = static_cast<char>(copy[at] ^ 1 << below(8));
      if (!seal(path, copy, digest)) continue;
      CHECK(has(refusal({"score", path, "-"}), path));
    }
}
