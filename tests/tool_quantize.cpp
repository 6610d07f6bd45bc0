// moxie quantize: the file loads, says the same, has the types that llama.cpp's quantizer chooses, and is there only when it is complete.

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <moxie/io/gguf.hpp>
#include <moxie/io/gguf_writer.hpp>

#include "tool_run.hpp"

using namespace test;
using nlohmann::json;

namespace {

const Args f32{"--activations", "f32", "--kv", "f32", "--threads", "1"};

Result scores(const std::string& model, const std::string& lines) { return run_well(with({"score", model, "-"}, f32), lines); }

int vocabulary(const std::string& model) { return run_well({"inspect", model, "--json"}).lines().at(0)["vocab_size"]; }

}  // namespace

TEST_CASE("a quantized file in f32 gives the same scores, and one of 8 bits nearly the same") {
  const TemporaryFolder folder;
  const std::string wide = folder / "wide.gguf", narrow = folder / "narrow.gguf", again = folder / "again.gguf";
  run_well({"quantize", tiny_r1(), wide, "--type", "f32"});
  run_well({"quantize", wide, narrow, "--type", "Q8_0"});
  run_well({"quantize", narrow, again, "--type", "Q8_0"});
  const std::string lines = R"({"text":"<｜User｜>What is 7*8-5?<｜Assistant｜><think>\n7*8=56\n56-5=51\n</think>\n\n51"})";
  const Result original = scores(tiny_r1(), lines), in_f32 = scores(wide, lines), in_q8 = scores(narrow, lines);
  CHECK(largest_difference(original, in_f32, "logprobs") < 1e-3);
  CHECK(largest_difference(original, in_q8, "logprobs") < 0.2);
  CHECK(in_q8.out == scores(again, lines).out);
  const json model = run_well({"inspect", narrow, "--json"}).lines().at(0);
  CHECK(model["formats"][0]["type"] == "Q8_0");
  CHECK(model["tokenizer"]["tokens"] == 384);
  CHECK(run_well({"generate", narrow, "--chat", "What is 7*8-5?", "--temperature", "0", "--threads", "1"}).out.ends_with("51\n"));
}

TEST_CASE("every type that is offered makes a file that loads") {
  const TemporaryFolder folder;
  for (const std::string type : {"F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "q4_k_m", "Q5_K", "Q6_K"}) {
    CAPTURE(type);
    run_well({"quantize", tiny_r1(), folder / "out.gguf", "--type", type});
    const auto lines = run_well({"score", folder / "out.gguf", "-", "--threads", "1"}, R"({"text":"What is 7*8-5?"})").lines();
    CHECK(lines.at(0)["logprobs"].size() == 9);
  }
  run_well({"quantize", tiny_r1(), folder / "out.gguf", "--type", "Q4_0", "--pure"});
  const json formats = run_well({"inspect", folder / "out.gguf", "--json"}).lines().at(0)["formats"];
  CHECK(formats.size() == 2);  // and F32
}

TEST_CASE("a Hugging Face folder in a type that holds its weights gives the folder's scores") {
  struct Case {
    std::string folder, type;
    double tolerance;  // 0: the same bytes. Others: q and k, or columns of ssm_out, are permuted in GGUF, their products are summed in another order
  };
  for (const Case& c : {Case{"models/qwen3_5_moe", "BF16", 5e-5}, Case{"models/glm4_moe_lite", "F32", 0}, Case{"models/qwen3_vl_moe", "BF16", 0}, Case{"models/granitemoehybrid", "BF16", 5e-5}, Case{"models/nemotron_h", "F32", 0}, Case{"models/nemotron_h_latent", "F32", 0}, Case{"models/afmoe", "F32", 0}, Case{"models/bailing_moe_v2", "F32", 0}, Case{"models/solar_open", "F32", 0}, Case{"models/exaone_moe", "F32", 0}, Case{"trained/tiny-r1", "BF16", 0}, Case{"trained/tiny-shakespeare", "BF16", 0}, Case{"models/mixtral", "BF16", 5e-5},
                        Case{"models/deepseek_v2", "BF16", 0}, Case{"models/deepseek_v3", "BF16", 0}, Case{"models/deepseek_v3_fp8", "F32", 0},
                        Case{"models/qwen2_moe", "BF16", 0}, Case{"models/qwen3_moe_yarn", "BF16", 0}, Case{"models/olmoe", "BF16", 0}, Case{"models/olmoe_clip", "BF16", 0},
                        Case{"models/gpt_oss", "BF16", 0}, Case{"models/gpt_oss_mxfp4", "BF16", 0}, Case{"models/glm4_moe", "BF16", 0}, Case{"models/glm4_moe_air", "BF16", 0}, Case{"models/dots1", "BF16", 0},
                        Case{"models/minimax_m2", "F32", 0}, Case{"models/ernie4_5_moe", "F32", 0}, Case{"models/granitemoe", "BF16", 5e-5},
                        Case{"models/granitemoeshared", "BF16", 5e-5}, Case{"models/hunyuan_v1_moe", "F32", 0}, Case{"models/qwen3_next", "BF16", 0}, Case{"models/lfm2_moe", "F32", 0}}) {
    const bool own = std::filesystem::exists(data_path(c.folder));
    const auto model = own ? std::optional(data_path(c.folder)) : shared_path(c.folder);
    if (!model) return;
    CAPTURE(c.folder);
    const TemporaryFolder folder;
    run_well({"quantize", *model, folder / "out.gguf", "--type", c.type});
    const std::string lines = id_lines(vocabulary(*model));
    const Result expected = scores(*model, lines), found = scores(folder / "out.gguf", lines);
    if (c.tolerance == 0) CHECK(found.out == expected.out);
    CHECK(largest_difference(expected, found, "logprobs") <= c.tolerance);
    CHECK(largest_difference(expected, found, "entropy") <= c.tolerance);
  }
}

TEST_CASE("tensors have the names, shapes and types that llama.cpp's converter and quantizer give, and in Q8_0 the same bytes") {
  for (const std::string name : {"tiny-r1", "tiny-shakespeare"}) {
    for (const std::string type : {"Q8_0", "Q6_K", "Q4_K_M", "Q4_0"}) {
      const auto model = shared_path("trained/" + name);
      if (!model) return;
      CAPTURE(name);
      CAPTURE(type);
      const TemporaryFolder folder;
      run_well({"quantize", *model, folder / "out.gguf", "--type", type});
      const auto ours = moxie::GgufFile::open(folder / "out.gguf"), theirs = moxie::GgufFile::open(*model + "/" + name + "-" + type + ".gguf");
      REQUIRE(ours.tensors().all().size() == theirs.tensors().all().size());
      for (const auto& entry : theirs.tensors().all()) {
        const moxie::TensorView& expected = entry.second;
        INFO(expected.name);
        const moxie::TensorView* found = ours.tensors().find(expected.name);
        REQUIRE(found);
        CHECK(found->dtype == expected.dtype);
        CHECK(found->shape == expected.shape);
        if (type == "Q8_0") CHECK(std::equal(found->data, found->data + found->bytes, expected.data, expected.data + expected.bytes));
      }
      for (const std::string key : {"general.architecture", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                              "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"}) {
        CAPTURE(key);
        CHECK(ours.metadata().value(key, json()) == theirs.metadata().value(key, json()));
      }
    }
  }
}

TEST_CASE("a model's own files are not written over") {
  const TemporaryFolder folder;
  const std::string copy = folder.write("copy.gguf", read_text(tiny_r1()));
  std::filesystem::create_symlink(copy, folder / "link.gguf");
  std::vector<std::pair<std::string, std::string>> cases = {
      {copy, copy}, {copy, folder / "./copy.gguf"}, {copy, folder / "link.gguf"}, {folder / "link.gguf", copy}};
  const auto whole = moxie::GgufFile::open(copy);
  const std::string parts[] = {folder / "split-00001-of-00002.gguf", folder / "split-00002-of-00002.gguf"};
  for (std::uint16_t part = 0; part < 2; ++part) {
    moxie::GgufWriter writer(parts[part]);
    if (part == 0) writer.copy_metadata(whole);
    writer.set("split.no", part);
    writer.set("split.count", std::uint16_t{2});
    writer.set("split.tensors.count", static_cast<std::int32_t>(whole.tensors().all().size()));
    std::size_t n = 0;
    for (const auto& [name, tensor] : whole.tensors().all())
      if (n++ % 2 == part)
        writer.add_tensor(name, tensor.dtype, tensor.shape,
                          [bytes = std::span(tensor.data, tensor.bytes)](const auto& sink) { sink(bytes); });
    writer.finish();
  }
  for (const std::string& part : parts) cases.emplace_back(parts[0], part);
  std::filesystem::create_directory(folder / "model");
  if (const auto model = shared_path("models/deepseek_v3")) {
    for (const auto& entry : std::filesystem::directory_iterator(*model))
      if (entry.is_regular_file())
        std::filesystem::copy_file(entry.path(), folder / ("model/" + entry.path().filename().string()));
    for (const char* name : {"config.json", "model.safetensors"})
      cases.emplace_back(folder / "model", folder / (std::string("model/") + name));
  }
  for (const auto& entry : cases) {
    const std::string &from = entry.first, &to = entry.second;
    const std::string before = read_text(to);
    for (const Args& args : {Args{"quantize", from, to, "--type", "Q8_0"}, Args{"pack", from, to}}) {
      const Result result = run_tool(args);
      CAPTURE(to);
      CHECK(result.code == 1);
      CHECK(result.err.find("is the model itself, or one of its files") != std::string::npos);
      CHECK(read_text(to) == before);
    }
  }
}

TEST_CASE("an interrupted run leaves the file as it was") {
  const auto model = shared_path("trained/tiny-shakespeare");
  if (!model) return;
  for (const int signal : {SIGKILL, SIGINT, SIGTERM}) {
    CAPTURE(signal);
    const TemporaryFolder folder;
    folder.write("out.gguf", "what was there before");
    Process process({"quantize", *model, folder / "out.gguf", "--type", "Q4_K_M", "--threads", "1"}, "/dev/null", "/dev/null", "/dev/null");
    while (process.running() && folder.names().size() < 2) std::this_thread::yield();  // until it has begun to write
    process.signal(signal);
    const int code = process.wait();
    CHECK(code == (signal == SIGKILL ? -SIGKILL : 128 + signal));
    CHECK(read_text(folder / "out.gguf") == "what was there before");
    if (signal != SIGKILL) CHECK(folder.names().size() == 1);
  }
}

TEST_CASE("a file limit or a full disk is an error that leaves nothing behind") {
  const TemporaryFolder folder;
  const std::string run = std::string(" '") + MOXIE_TOOL + "' quantize '" + tiny_r1() + "' '" + folder / "out.gguf" + "' --type f32 --threads 1 2> '" + folder / "err" + "'";
  const int status = std::system(("ulimit -f 100;" + run).c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(read_text(folder / "err").find("out.gguf: cannot write: File too large") != std::string::npos);
  CHECK(folder.names() == std::vector<std::string>{"err"});
}
