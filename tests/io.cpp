// Reading and writing of model files against references: golden.json beside the GGUF files (made with gguf-py and llama.cpp),
// Hugging Face folders, and round trips.

#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/io/detect.hpp>
#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_writer.hpp>
#include <moxie/io/hf_folder.hpp>
#include <moxie/io/safetensors.hpp>

#include "checks.hpp"
#include "io_files.hpp"
#include "shared.hpp"

using moxie::Dtype;
using moxie::GgufFile;
using moxie::GgufWriter;
using moxie::TensorView;

namespace {

using test::message_of;

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::span<const std::byte> bytes_of(const TensorView& view) { return {view.data, static_cast<std::size_t>(view.bytes)}; }
bool same_tensor(const TensorView& a, const TensorView& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes &&
         std::memcmp(a.data, b.data, a.bytes) == 0;
}

void add_copy(GgufWriter& writer, const TensorView& view) {
  writer.add_tensor(view.name, view.dtype, view.shape, [&view](const GgufWriter::Sink& sink) {
    const auto bytes = bytes_of(view);
    for (std::size_t at = 0; at < bytes.size(); at += 1000)
      sink(bytes.subspan(at, std::min<std::size_t>(1000, bytes.size() - at)));
  });
}

void add_floats(GgufWriter& writer, std::string name, std::vector<float> values) {
  const auto n = static_cast<std::int64_t>(values.size());
  writer.add_tensor(std::move(name), Dtype::F32, {n},
                    [values = std::move(values)](const GgufWriter::Sink& sink) { sink(std::as_bytes(std::span(values))); });
}

/// Part `no` of a split model with one tensor.
void write_part(const std::string& path, int no, int count, std::int32_t tensors) {
  GgufWriter writer(path);
  if (no == 0) writer.set("general.architecture", "test");
  writer.set("split.no", static_cast<std::uint16_t>(no));
  writer.set("split.count", static_cast<std::uint16_t>(count));
  writer.set("split.tensors.count", tensors);
  add_floats(writer, "t" + std::to_string(no), {static_cast<float>(no), 1.f, 2.f});
  writer.finish();
}

float first_float(const TensorView& view) {
  float value;
  std::memcpy(&value, view.data, sizeof value);
  return value;
}

}  // namespace

TEST_CASE("tensors and metadata of every GGUF family are those that gguf-py and llama.cpp see") {
  const auto root = test::shared_path("gguf");
  if (!root) return;
  int files = 0;
  for (const auto& folder : std::filesystem::directory_iterator(*root)) {
    if (!folder.is_directory()) continue;
    const nlohmann::json golden = nlohmann::json::parse(test::read_text(folder.path() / "golden.json"));
    for (const auto& [name, expected] : golden["files"].items()) {
      const std::string path = folder.path() / name;
      CAPTURE(path);
      const GgufFile model = GgufFile::open(path);
      CHECK(model.path() == path);
      CHECK(model.tensors().all().size() == expected["tensors"].size());
      for (const auto& item : expected["tensors"].items()) {
        const std::string tensor = item.key();
        const nlohmann::json& type_and_shape = item.value();
        CAPTURE(tensor);
        const TensorView* view = model.tensors().find(tensor);
        REQUIRE(view);
        CHECK(moxie::dtype_info(view->dtype).name == type_and_shape[0].get<std::string>());
        CHECK(nlohmann::json(view->shape) == type_and_shape[1]);
      }
      if (!expected.contains("metadata")) continue;
      for (const auto& item : expected["metadata"].items()) {
        const std::string key = item.key();
        const nlohmann::json& value = item.value();
        CAPTURE(key);
        REQUIRE(model.metadata().contains(key));
        CHECK(model.metadata()[key] == value);
        CHECK(model.metadata()[key].is_boolean() == value.is_boolean());
      }
      ++files;
    }
  }
  CHECK(files >= 17);
}

TEST_CASE("each metadata type keeps its value and type through reading and writing") {
  const test::TemporaryFolder folder;
  GgufWriter writer(folder.file("a.gguf"));
  writer.set("u8", std::uint8_t{255});
  writer.set("i8", std::int8_t{-128});
  writer.set("u16", std::uint16_t{65535});
  writer.set("i16", std::int16_t{-32768});
  writer.set("u32", 4294967295u);
  writer.set("i32", -2147483647);
  writer.set("u64", ~std::uint64_t{0});
  writer.set("i64", std::int64_t{-1} << 63);
  writer.set("f32", 1e-6f);
  writer.set("f64", 1e-6);
  writer.set("bool", true);
  writer.set("string", "na\xc3\xafve \xff");
  writer.set("strings", std::vector<std::string>{"a", "", "a longer string than fits inside"});
  writer.set("floats", std::vector<float>{0.5f, -0.25f});
  writer.set("booleans", std::vector<bool>{true, false});
  writer.set("replaced", 1);
  writer.set("replaced", "now a string");
  writer.set("removed", 1);
  writer.remove("removed");
  writer.finish();

  const GgufFile first = GgufFile::open(folder.file("a.gguf"));
  GgufWriter copy(folder.file("b.gguf"));
  copy.copy_metadata(first);
  copy.finish();
  const GgufFile second = GgufFile::open(folder.file("b.gguf"));
  for (const GgufFile* model : {&first, &second}) {
    const nlohmann::json& m = model->metadata();
    CHECK(m["u8"] == 255);
    CHECK(m["i8"] == -128);
    CHECK(m["u16"] == 65535);
    CHECK(m["i16"] == -32768);
    CHECK(m["u32"] == 4294967295u);
    CHECK(m["i32"] == -2147483647);
    CHECK(m["u64"].get<std::uint64_t>() == ~std::uint64_t{0});
    CHECK(m["i64"].get<std::int64_t>() == std::int64_t{-1} << 63);
    CHECK(m["f32"].get<float>() == 1e-6f);
    CHECK(m["f64"].get<double>() == 1e-6);
    CHECK(m["bool"].is_boolean());
    CHECK(m["string"].get<std::string>() == "na\xc3\xafve \xff");
    CHECK(m["strings"] == nlohmann::json({"a", "", "a longer string than fits inside"}));
    CHECK(m["floats"] == nlohmann::json({0.5, -0.25}));
    CHECK(m["booleans"] == nlohmann::json({true, false}));
    CHECK(m["replaced"] == "now a string");
    CHECK_FALSE(m.contains("removed"));
  }
  REQUIRE(first.key_values().size() == second.key_values().size());
  for (std::size_t i = 0; i < first.key_values().size(); ++i) CHECK(first.key_values()[i].type == second.key_values()[i].type);
}

TEST_CASE("a rewritten model has the same metadata and tensors, at any alignment") {
  const std::string path = test::data_path("io/malformed/ok_plain.gguf");
  const GgufFile original = GgufFile::open(path);
  const test::TemporaryFolder folder;
  for (const std::uint32_t alignment : {1u, 32u, 512u}) {
    GgufWriter writer(folder.file("copy.gguf"));
    writer.copy_metadata(original);
    writer.set("general.alignment", alignment);
    for (const auto& [name, view] : original.tensors().all()) add_copy(writer, view);
    writer.finish();
    const GgufFile copy = GgufFile::open(folder.file("copy.gguf"));
    nlohmann::json expected = original.metadata();
    expected["general.alignment"] = alignment;
    CHECK(copy.metadata() == expected);
    REQUIRE(copy.tensors().all().size() == original.tensors().all().size());
    for (const auto& [name, view] : original.tensors().all()) {
      CHECK(same_tensor(view, *copy.tensors().find(name)));
      CHECK(copy.tensors().find(name)->offset % alignment == 0);
    }
  }
}

TEST_CASE("a failed write leaves no file, and an older file as it was") {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("model.gguf");
  const auto write = [&](const GgufWriter::Producer& producer) {
    GgufWriter writer(path);
    add_floats(writer, "good", {1, 2, 3});
    writer.add_tensor("bad", Dtype::F32, {4}, producer);
    writer.finish();
  };
  const float values[5] = {};
  const auto bytes = std::as_bytes(std::span(values));
  CHECK_THROWS_AS(write([](const GgufWriter::Sink&) { throw std::runtime_error("stop"); }), std::runtime_error);
  CHECK(has(message_of([&] { write([&](const GgufWriter::Sink& sink) { sink(bytes); }); }),
            "'bad': the producer gave more than the tensor's 16 bytes"));
  CHECK(has(message_of([&] { write([&](const GgufWriter::Sink& sink) { sink(bytes.first(12)); }); }), "gave fewer"));
  CHECK(folder.empty());

  write([&](const GgufWriter::Sink& sink) { sink(bytes.first(16)); });
  const std::string before = test::read_text(path);
  CHECK_THROWS(write([&](const GgufWriter::Sink& sink) { sink(bytes); }));
  CHECK(test::read_text(path) == before);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  CHECK(has(message_of([&] { GgufWriter(folder.file("none/model.gguf")).finish(); }), "none/model.gguf: cannot create"));
}

TEST_CASE("what GGUF cannot hold is refused when it is declared") {
  GgufWriter writer("unused.gguf");
  const GgufWriter::Producer nothing = [](const GgufWriter::Sink&) {};
  writer.add_tensor("t", Dtype::Q4_K, {2, 256}, nothing);
  CHECK(has(message_of([&] { writer.add_tensor("t", Dtype::F32, {1}, nothing); }), "the name is there already"));
  CHECK(has(message_of([&] { writer.add_tensor("u", Dtype::Q4_K, {256, 32}, nothing); }), "needs a multiple of 256"));
  CHECK(has(message_of([&] { writer.add_tensor("u", Dtype::U8, {1}, nothing); }), "GGUF has no tensor type U8"));
  CHECK(has(message_of([&] { writer.add_tensor("u", Dtype::F32, {}, nothing); }), "1 to 4 dimensions"));
  CHECK(has(message_of([&] { writer.add_tensor("u", Dtype::F32, {0}, nothing); }), "must be positive"));
  CHECK(has(message_of([&] { writer.add_tensor("u", Dtype::F32, {1LL << 40, 1LL << 40}, nothing); }), "product"));
  CHECK(has(message_of([&] { writer.add_tensor(std::string(64, 'x'), Dtype::F32, {1}, nothing); }), "1 to 63 bytes"));
  CHECK(has(message_of([&] { writer.set("", 1); }), "1 to 65535 bytes"));
  CHECK(has(message_of([&] { writer.set("general.alignment", 33u); }), "power of two"));
}

TEST_CASE("any part of a split model opens all parts") {
  const test::TemporaryFolder folder;
  const std::string parts[] = {folder.file("m-00001-of-00002.gguf"), folder.file("m-00002-of-00002.gguf")};
  for (int i = 0; i < 2; ++i) write_part(parts[i], i, 2, 2);
  for (const std::string& part : parts) {
    const GgufFile model = GgufFile::open(part);
    CHECK(model.metadata()["general.architecture"] == "test");
    CHECK(model.path() == parts[0]);
    REQUIRE(model.tensors().all().size() == 2);
    for (int i = 0; i < 2; ++i) {
      const TensorView* view = model.tensors().find("t" + std::to_string(i));
      REQUIRE(view);
      CHECK(view->file == parts[i]);
      CHECK(first_float(*view) == static_cast<float>(i));
      model.tensors().release(*view);
      CHECK(first_float(*view) == static_cast<float>(i));
    }
  }

  write_part(parts[1], 1, 2, 3);
  write_part(parts[0], 0, 2, 3);
  CHECK(has(message_of([&] { GgufFile::open(parts[0]); }), "the parts hold 2 tensors, but the model should have 3"));
  write_part(parts[1], 0, 2, 2);
  CHECK(has(message_of([&] { GgufFile::open(parts[0]); }), "'split.no': is 0, but by the name of the file it must be 1"));
  std::filesystem::rename(parts[0], folder.file("renamed.gguf"));
  CHECK(has(message_of([&] { GgufFile::open(folder.file("renamed.gguf")); }), "its name must end with '-00001-of-00002.gguf'"));
  write_part(parts[0], 0, 2, 2);
  std::filesystem::remove(parts[1]);
  const std::string error = message_of([&] { GgufFile::open(parts[0]); });
  CHECK(error.starts_with(parts[1] + ": part 2 of 2"));
}

TEST_CASE("one name in two parts of a split model is refused") {
  const test::TemporaryFolder folder;
  for (int i = 0; i < 2; ++i) {
    GgufWriter writer(folder.file("m-0000" + std::to_string(i + 1) + "-of-00002.gguf"));
    writer.set("split.no", static_cast<std::uint16_t>(i));
    writer.set("split.count", std::uint16_t{2});
    add_floats(writer, "same", {1});
    writer.finish();
  }
  CHECK(has(message_of([&] { GgufFile::open(folder.file("m-00001-of-00002.gguf")); }), "'same' (byte"));
}

TEST_CASE("golden safetensors files open with the shapes that their notes give") {
  const auto path = test::shared_path("gguf/qwen3moe/golden.safetensors");
  if (!path) return;
  const moxie::SafetensorsFile golden = moxie::SafetensorsFile::open(*path);
  const TensorView* ids = golden.tensors().find("BF16.gguf/ids.1");
  if (!ids) ids = golden.tensors().find("BF16/ids.1");
  REQUIRE(ids);
  CHECK(ids->dtype == Dtype::I32);
  CHECK(ids->shape == std::vector<std::int64_t>{17});
}

TEST_CASE("safetensors of every dtype have their size, at odd offsets too") {
  const test::TemporaryFolder folder;
  const struct {
    const char* name;
    int bytes;
  } types[] = {{"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2},
               {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4},     {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  for (const auto& type : types) {
    const std::string end = std::to_string(3 * type.bytes + 1);
    const std::string header = R"({"odd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":")" +
                               std::string(type.name) + R"(","shape":[3],"data_offsets":[1,)" + end + "]}}";
    test::write_file(folder.file("t.safetensors"),
                     test::safetensors_bytes(header, std::string(static_cast<std::size_t>(3 * type.bytes + 1), '\7')));
    const moxie::SafetensorsFile file = moxie::SafetensorsFile::open(folder.file("t.safetensors"));
    const TensorView* view = file.tensors().find("t");
    REQUIRE(view);
    CHECK(moxie::dtype_info(view->dtype).name == type.name);
    CHECK(view->bytes == static_cast<std::uint64_t>(3 * type.bytes));
  }
}

TEST_CASE("a sharded Hugging Face folder opens as its index says") {
  const auto path = test::shared_path("models/qwen3_moe_yarn");
  if (!path) return;
  CHECK(moxie::detect_model(*path) == moxie::ModelFileKind::hf_folder);
  const moxie::HfFolder folder = moxie::HfFolder::open(*path);
  CHECK(folder.config["model_type"] == "qwen3_moe");
  CHECK(folder.generation_config.is_null());
  const nlohmann::json index = nlohmann::json::parse(test::read_text(*path + "/model.safetensors.index.json"));
  std::uint64_t total = 0;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const TensorView* view = folder.tensors().find(name);
    REQUIRE(view);
    CHECK(view->file == *path + "/" + file.get<std::string>());
    total += view->bytes;
  }
  CHECK(folder.tensors().all().size() == index["weight_map"].size());
  CHECK(total == index["metadata"]["total_size"].get<std::uint64_t>());
}

TEST_CASE("a folder with nothing but a tokenizer opens for text only") {
  const auto path = test::shared_path("tokenizers/mixtral");
  if (!path) return;
  const moxie::HfFolder folder = moxie::HfFolder::open_tokenizer(*path);
  CHECK(folder.tensors().all().empty());
  CHECK(folder.config.is_null());
  CHECK(folder.tokenizer_config.is_object());
  CHECK(folder.load_tokenizer_json().contains("model"));
  CHECK_FALSE(folder.load_chat_template());
  CHECK(has(message_of([&] { moxie::HfFolder::open(*path); }), "config.json: the file is missing"));
}

TEST_CASE("a folder that is not complete says what is missing") {
  const test::TemporaryFolder folder;
  const auto open = [&] { return message_of([&] { moxie::HfFolder::open(folder.path()); }); };
  CHECK(has(open(), "config.json: the file is missing"));
  test::write_file(folder.file("config.json"), "{\"a\": tru}");
  CHECK(has(open(), "config.json: JSON (byte 9): "));
  // Python's infinity is read as a large number, where it is one.
  test::write_file(folder.file("config.json"), R"({"a": [Infinity, -Infinity], "Infinity": "Infinity \" Infinity \\", "b": tru})");
  CHECK(has(open(), "config.json: JSON (byte 76): "));
  CHECK(moxie::parse_json(moxie::with_finite_numbers(R"({"a": [Infinity, -Infinity], "Infinity": "Infinity \" Infinity \\", "b":Infinity})"), "x") ==
        nlohmann::json::parse(R"({"a": [9.99e307, -9.99e307], "Infinity": "Infinity \" Infinity \\", "b": 9.99e307})"));
  CHECK(has(message_of([] { moxie::parse_json(moxie::with_finite_numbers("{\"a\": Infinit}"), "x"); }), "x: JSON (byte 6): "));
  test::write_file(folder.file("config.json"), "[1]");
  CHECK(has(open(), "config.json: must hold a JSON object, not array"));
  test::write_file(folder.file("config.json"), std::string(5000, '['));
  CHECK(has(open(), "nested more than 128 deep"));
  test::write_file(folder.file("config.json"), "{\"a\": 1e999}");
  CHECK(has(open(), "config.json: JSON"));
  test::write_file(folder.file("config.json"), "{}");
  CHECK(has(open(), "neither model.safetensors nor model.safetensors.index.json"));
  test::write_file(folder.file("pytorch_model.bin"), "PK");
  CHECK(has(open(), "pytorch_model.bin is not read"));

  const std::string index = folder.file("model.safetensors.index.json");
  test::write_file(index, R"({"weight_map": {"t": "s1.safetensors", "u": "s2.safetensors"}})");
  CHECK(open().starts_with(folder.file("s1.safetensors") + ": the file is missing"));
  const std::string shard =
      test::safetensors_bytes(R"({"__metadata__":{"format":"pt"},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("v":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                              "ab");
  test::write_file(folder.file("s1.safetensors"), shard);
  test::write_file(folder.file("s2.safetensors"), shard);
  CHECK(has(open(), "weight_map 'u': the file 's2.safetensors' does not hold this tensor"));
  test::write_file(index, R"({"weight_map": {"t": "s1.safetensors", "v": "s2.safetensors"}})");
  const moxie::HfFolder model = moxie::HfFolder::open(folder.path());
  CHECK(model.tensors().all().size() == 2);
  CHECK(model.tensors().find("t")->file == folder.file("s1.safetensors"));
  CHECK(model.tensors().find("v")->file == folder.file("s2.safetensors"));
  test::write_file(index, R"({"weight_map": {"t": "../s1.safetensors"}})");
  CHECK(has(open(), "must be the name of a file beside the index"));
  test::write_file(index, R"({"weight_map": {"t": ")" + std::string(300, 'x') + R"("}})");  // longer than a file's name can be
  CHECK(has(open(), "the file is missing"));
  test::write_file(index, R"({"weight_map": 3})");
  CHECK(has(open(), "key 'weight_map'"));
}

TEST_CASE("a path that is no model is refused with what to do") {
  const test::TemporaryFolder folder;
  const auto detect = [&](const std::string& path) { return message_of([&] { moxie::detect_model(path); }); };
  CHECK(has(detect(folder.file("none")), "none: no such file or folder"));
  CHECK(has(detect(folder.path()), "the folder is empty"));
  test::write_file(folder.file("README"), "text");
  CHECK(has(detect(folder.path()), "the folder holds no model"));
  CHECK(has(detect(folder.file("README")), "neither a GGUF file"));
  test::write_file(folder.file("m.gguf"), "");
  CHECK(has(detect(folder.path()), "the folder holds GGUF files"));
  CHECK(moxie::detect_model(folder.file("m.gguf")) == moxie::ModelFileKind::gguf);
  test::write_file(folder.file("m.bin"), "PK\x03\x04");
  CHECK(has(detect(folder.file("m.bin")), "PyTorch"));
  test::write_file(folder.file("m.safetensors"), "");
  CHECK(has(detect(folder.file("m.safetensors")), "name the folder"));
  CHECK(moxie::detect_model(folder.path()) == moxie::ModelFileKind::hf_folder);
  CHECK(has(message_of([&] { GgufFile::open(folder.path()); }), "not a regular file"));
  CHECK(has(message_of([&] { GgufFile::open(folder.file("none")); }), "cannot open the file"));
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  CHECK(has(detect(folder.file("pipe")), "not a regular file"));  // and at once, though nobody writes to it
}
