// The program moxie: what other programs rely on when they drive it.

#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tool_run.hpp"

using namespace test;
using nlohmann::json;

namespace {

const std::string mixed_lines =
    R"({"ids":[0,380,263,261,223,25,12,26,15,23,33,381,382,201]}
{"text":"What is 12*7-5?"}

{"prompt":"What is 7*8-5?","completion":"<think>\n7*8=56\n56-5=51\n</think>\n\n51"}
{"ids":[]}
{"ids":[7]}
{"text":"naïve \u0000 \ud83d\ude80 text","more":[1,{"is":"ignored"}]}
)";

/// One line that begins with "error: " and nothing else.
bool is_one_error_line(const std::string& err) {
  return err.starts_with("error: ") && err.find('\n') == err.size() - 1;
}

}  // namespace

TEST_CASE("score gives one line for each sequence, in order, with the lengths that were promised") {
  const auto lines = run_well({"score", tiny_r1(), "-", "--top", "3", "--routes", "--threads", "1"}, mixed_lines).lines();
  REQUIRE(lines.size() == 6);
  for (const json& line : lines) {
    const std::size_t n = line["ids"].size();
    CHECK(line["logprobs"].size() == (n == 0 ? 0 : n - 1));
    CHECK(line["entropy"].size() == n);
    REQUIRE(line["top"].size() == n);
    REQUIRE(line["routes"].size() == 2);
    REQUIRE(line["route_weights"].size() == 2);
    for (const char* key : {"routes", "route_weights"})
      for (const json& layer : line[key]) {
        CHECK(layer.size() == n);
        for (const json& token : layer) CHECK(token.size() == 2);
      }
    for (std::size_t t = 0; t < n; ++t) {
      REQUIRE(line["top"][t].size() == 3);
      CHECK(line["top"][t][0][1] >= line["top"][t][1][1]);
      for (const json& entry : line["top"][t])
        if (t + 1 < n && entry[0] == line["ids"][t + 1]) CHECK(entry[1] == line["logprobs"][t]);
    }
  }
  CHECK(lines[0]["ids"].size() == 14);
  CHECK(lines[1]["ids"][0] == 0);  // the tokenizer adds BOS
  CHECK(lines[2]["ids"][0] == 0);
  CHECK(lines[2]["ids"].back() == 19);
  CHECK(lines[3] == json{{"ids", json::array()}, {"logprobs", json::array()}, {"entropy", json::array()}, {"top", json::array()},
                         {"routes", {json::array(), json::array()}}, {"route_weights", {json::array(), json::array()}}});
  CHECK(lines[4]["ids"] == json{7});
}

TEST_CASE("score prints the same bytes for every --threads, --chunk and --batch") {
  for (const Args& precision : {Args{}, Args{"--activations", "f32", "--kv", "f32"}}) {
    const Args base = with({"score", tiny_r1(), "-", "--top", "2", "--routes", "--temperature", "0.7"}, precision);
    const std::string expected = run_well(with(base, {"--threads", "1"}), mixed_lines).out;
    for (const Args& options : {Args{"--threads", "2"}, Args{"--threads", "3", "--chunk", "7", "--batch", "4"}, Args{"--threads", "1", "--chunk", "1", "--batch", "1"},
                                Args{"--threads", "2", "--chunk", "7", "--batch", "1"}, Args{"--threads", "1", "--chunk", "512", "--batch", "4"}}) {
      CAPTURE(options.back());
      CHECK(run_well(with(base, options), mixed_lines).out == expected);
    }
  }
}

TEST_CASE("floats are printed with the fewest digits that read back as the same float") {
  const auto result = run_well({"score", tiny_r1(), "-", "--threads", "1"}, R"({"ids":[0,380,263,261]})");
  const std::size_t begin = result.out.find("\"entropy\":[") + 11, end = result.out.find(']', begin);
  std::istringstream numbers(result.out.substr(begin, end - begin));
  int count = 0;
  for (std::string text; std::getline(numbers, text, ','); ++count) {
    const float value = std::strtof(text.c_str(), nullptr);
    for (int digits = 1; digits <= 9; ++digits) {
      char printed[32];
      std::snprintf(printed, sizeof printed, "%.*g", digits, static_cast<double>(value));
      if (std::strtof(printed, nullptr) != value) continue;
      CHECK(std::strtod(printed, nullptr) == std::strtod(text.c_str(), nullptr));
      break;
    }
  }
  CHECK(count == 4);
  CHECK(result.err.find("perplexity") != std::string::npos);
  CHECK(result.err.find("tokens/s") != std::string::npos);
}

TEST_CASE("generate reports the logprobs that score gives for the same tokens, bit for bit") {
  for (const char* temperature : {"0", "0.7"}) {
    const auto made = run_well({"generate", tiny_r1(), "--chat", "What is 7*8-5?", "-n", "24", "--temperature", temperature, "--seed", "3", "--top-k", "40", "--json",
                                "--threads", "2"});
    const json object = made.lines().at(0);
    json ids = object["prompt_ids"];
    for (const json& id : object["ids"]) ids.push_back(id);
    CHECK(object["logprobs"].size() == object["ids"].size());
    const json scored = run_well({"score", tiny_r1(), "-", "--temperature", std::strcmp(temperature, "0") == 0 ? "1" : temperature, "--threads", "1"},
                                 json{{"ids", ids}}.dump()).lines().at(0);
    const std::size_t prompt = object["prompt_ids"].size();
    for (std::size_t i = 0; i < object["ids"].size(); ++i) CHECK(object["logprobs"][i].get<float>() == scored["logprobs"][prompt - 1 + i].get<float>());
  }
}

TEST_CASE("generate streams the text that --json has, and ends for the reason it gives") {
  const Args base{"generate", tiny_r1(), "--chat", "What is 7*8-5?", "--temperature", "0", "--threads", "1"};
  const json object = run_well(with(base, {"--json"})).lines().at(0);
  CHECK(object["text"] == "<think>\n7*8=56\n56-5=51\n</think>\n\n51");
  CHECK(object["finish_reason"] == "stop");
  for (const char* key : {"load_seconds", "prompt_seconds", "generate_seconds", "generate_tokens_per_s"}) CHECK(object["timings"][key].is_number());
  CHECK(run_well(base).out == object["text"].get<std::string>() + "\n");
  CHECK(run_well(with(base, {"-n", "5", "--json"})).lines().at(0)["finish_reason"] == "length");
  CHECK(run_well(with(base, {"-n", "0", "--json"})).lines().at(0)["ids"] == json::array());
  CHECK(run_well(with(base, {"--stop", "56\n"})).out == "<think>\n7*8=\n");
  // the same prompt as ids
  std::string ids;
  for (const json& id : object["prompt_ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
  CHECK(run_well({"generate", tiny_r1(), "--ids", ids, "--temperature", "0", "--threads", "1", "--json"}).lines().at(0)["ids"] == object["ids"]);
  CHECK(run_well({"generate", tiny_r1(), "-p", "What", "-n", "1", "--threads", "1", "--json"}).lines().at(0)["prompt_ids"][0] == 0);
}

TEST_CASE("a model without a tokenizer generates from ids") {
  const auto model = shared_path("gguf/qwen3moe/Q4_0.gguf");
  if (!model) return;
  const Args base{"generate", *model, "--ids", "1,2,3", "-n", "4", "--temperature", "0", "--threads", "1"};
  const json object = run_well(with(base, {"--json"})).lines().at(0);
  CHECK(object["text"].is_null());
  CHECK(object["ids"].size() == 4);
  std::string ids;
  for (const json& id : object["ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
  CHECK(run_well(base).out == ids + "\n");
  const Result text = run_tool({"generate", *model, "-p", "hello"});
  CHECK(text.code == 1);
  CHECK(text.err.find("token ids") != std::string::npos);
}

TEST_CASE("tokenize gives the reference's ids, from a GGUF file and from a folder that has only a tokenizer") {
  const TemporaryFolder folder;
  std::filesystem::copy(data_path("text/tiny-r1.tokenizer.json"), folder / "tokenizer.json");
  std::filesystem::copy(data_path("text/tiny-r1.tokenizer_config.json"), folder / "tokenizer_config.json");
  const std::string golden = data_path("text/tiny-r1.jsonl");
  Result reference;
  reference.out = read_text(golden);
  const auto expected = reference.lines();
  const std::string root = folder / ".";
  for (const std::string& model : {root, tiny_r1()}) {
    const auto lines = run_well({"tokenize", model, golden}).lines();
    REQUIRE(lines.size() == expected.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      CHECK(lines[i]["ids"] == expected[i]["ids"]);
      CHECK(lines[i]["text"] == (expected[i].contains("decoded") ? expected[i]["decoded"] : expected[i]["s"]));
    }
    CHECK(run_well({"inspect", model, "--json"}).lines().at(0)["tokenizer"]["tokens"] == 384);
  }
}

TEST_CASE("a file that has tokens and does not say of which tokenizer is broken for every command") {
  const TemporaryFolder folder;
  std::string bytes = read_text(tiny_r1());
  const std::string key = "tokenizer.ggml.model";
  bytes.replace(bytes.find(key), key.size(), "tokenizer.ggml.modex");
  const std::string broken = folder.write("broken.gguf", bytes);
  for (const Args& args : {Args{"inspect", broken}, Args{"tokenize", broken, "-"}, Args{"generate", broken, "--ids", "1", "-n", "1"}}) {
    const Result result = run_tool(args);
    CHECK(result.code == 1);
    CHECK(is_one_error_line(result.err));
    CHECK(result.err.find("broken.gguf: tokenizer.ggml.model") != std::string::npos);
  }
}

TEST_CASE("tokenize reads a GGUF file with nothing but a vocabulary") {
  const auto model = shared_path("text/llama_cpp_vocab/ggml-vocab-gpt-2.gguf");
  if (!model) return;
  CHECK(run_well({"tokenize", *model, "-"}, R"({"s":"Hello world"})").out == "{\"ids\":[15496,995],\"text\":\"Hello world\"}\n");
}

TEST_CASE("inspect says what the model is, in words and as JSON") {
  const json model = run_well({"inspect", tiny_r1(), "--json"}).lines().at(0);
  CHECK(model["family"] == "deepseek_v3");
  CHECK(model["moe"]["n_experts"] == 8);
  CHECK(model["moe"]["top_k"] == 2);
  CHECK(model["attention"]["kind"] == "mla");
  CHECK(model["chat_format"] == "template");
  CHECK(model["tokenizer"]["tokens"] == 384);
  std::uint64_t bytes = 0;
  for (const json& format : model["formats"]) bytes += format["bytes"].get<std::uint64_t>();
  CHECK(bytes == model["file_bytes"]);
  CHECK(run_well({"inspect", tiny_r1()}).out.find("deepseek_v3") != std::string::npos);
}

TEST_CASE("wrong usage ends with code 2 and one line that says what would be right") {
  const std::string m = tiny_r1();
  const std::pair<Args, const char*> cases[] = {
      {{}, "subcommand"},
      {{"train"}, "subcommand"},
      {{"score", m}, "FILE"},
      {{"score", m, "-", "--temperature", "0"}, "--temperature"},
      {{"score", m, "-", "--batch", "0"}, "--batch"},
      {{"generate", m}, "-p TEXT"},
      {{"generate", m, "-p", "a", "--chat", "b"}, "one of"},
      {{"generate", m, "--ids", "1,,2"}, "1,2,3"},
      {{"generate", m, "--ids", ""}, "1,2,3"},
      {{"generate", m, "--ids", "-1"}, "1,2,3"},
      {{"generate", m, "-p", "a", "--temperature", "-1"}, "0.001"},
      {{"generate", m, "-p", "a", "--top-p", "2"}, "--top-p"},
      {{"generate", m, "-p", "a", "--min-p", "nan"}, "from 0 to 1"},
      {{"generate", m, "-p", "a", "--seed", "18446744073709551616"}, "2^64"},
      {{"generate", m, "-p", "a", "--seed", "-1"}, "2^64"},
      {{"generate", m, "-p", "a", "--threads", "many"}, "--threads"},
      {{"generate", m, "-p", "a", "--kv", "q8"}, "f16"},
      {{"generate", m, "-p", "a", "--activations", "int4"}, "int8"},
      {{"generate", m, "-p", "a", "--no-such-option"}, "--no-such-option"},
      {{"quantize", m, "out.gguf"}, "--type"},
      {{"quantize", m, "out.gguf", "--type", "Q3"}, "Q4_K_M"},
  };
  for (const auto& [args, part] : cases) {
    const Result result = run_tool(args);
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(is_one_error_line(result.err));
    CHECK(result.err.find(part) != std::string::npos);
    CHECK(result.out.empty());
  }
  const Result help = run_tool({"score", "--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("--routes") != std::string::npos);
}

TEST_CASE("errors end with code 1 and one line that names the file and what to do") {
  const TemporaryFolder folder;
  const std::string m = tiny_r1();
  const std::string broken = folder.write("broken.gguf", "GGUF");
  const std::pair<Args, const char*> cases[] = {
      {{"inspect", folder / "none.gguf"}, "no such file"},
      {{"inspect", broken}, "broken.gguf"},
      {{"generate", broken, "-p", "a"}, "broken.gguf"},
      {{"score", m, folder / "none.jsonl"}, "none.jsonl"},
      {{"score", m, folder / ""}, "folder"},
      {{"generate", m, "--ids", "99999"}, "384"},
      {{"generate", m, "-p", std::string(3000, 'x')}, "512"},
      {{"tokenize", folder / "", "-"}, "GGUF"},
      {{"quantize", m, folder / "no/folder/out.gguf", "--type", "Q8_0"}, "out.gguf"},
      {{"quantize", m, folder / "", "--type", "Q8_0"}, "folder"},
      {{"quantize", m, "", "--type", "Q8_0"}, "no name"},
      {{"quantize", m, "/dev/null", "--type", "Q8_0"}, "device"},
      {{"score", m, "/dev/null", "--out", folder / ""}, "folder"},
      {{"quantize", broken, folder / "out.gguf", "--type", "Q8_0"}, "broken.gguf"},
  };
  for (const auto& [args, part] : cases) {
    const Result result = run_tool(args);
    CAPTURE(result.err);
    CHECK(result.code == 1);
    CHECK(is_one_error_line(result.err));
    CHECK(result.err.find(part) != std::string::npos);
    CHECK(result.out.empty());
  }
  CHECK(folder.names() == std::vector<std::string>{"broken.gguf"});
}

TEST_CASE("a broken line of input is named by file and line, before anything is printed") {
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"ids":[1,2})", "JSON (byte 11)"},
      {R"([1,2])", "must be a JSON object"},
      {R"({"ids":[1,"2"]})", "no token id"},
      {R"({"ids":[1,-2]})", "no token id"},
      {R"({"ids":[1,2.5]})", "no token id"},
      {R"({"ids":[1,384]})", "384"},
      {R"({"ids":3})", "array"},
      {R"({"text":3})", "string"},
      {R"({"prompt":"a"})", "completion"},
      {R"({"text":"a","ids":[1]})", "must be"},
      {R"({"tokens":[1]})", "must be"},
      {"{\"text\":\"\xff\"}", "UTF-8"},
      {R"({"ids":[99999999999999999999]})", "no token id"},
  };
  for (const auto& [line, part] : cases) {
    const std::string file = folder.write("in.jsonl", std::string("{\"ids\":[1,2]}\n\n") + line + "\n");
    const Result result = run_tool({"score", tiny_r1(), file, "--out", folder / "out.jsonl"});
    CAPTURE(result.err);
    CHECK(result.code == 1);
    CHECK(is_one_error_line(result.err));
    CHECK(result.err.find("in.jsonl:3: ") != std::string::npos);
    CHECK(result.err.find(part) != std::string::npos);
    CHECK(result.out.empty());
  }
  CHECK(folder.names() == std::vector<std::string>{"in.jsonl"});
  const Result tokenize = run_tool({"tokenize", tiny_r1(), "-"}, "{\"s\":\"a\"}\n{\"text\":\"a\"}\n");
  CHECK(tokenize.code == 1);
  CHECK(tokenize.err.find("standard input:2: ") != std::string::npos);
}

TEST_CASE("a sequence that is longer than the context is named by its line, before anything is printed") {
  const TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += json{{"ids", std::vector<int>(512, 7)}}.dump() + "\n";  // more than are scored at a time
  const Result result =
      run_tool({"score", tiny_r1(), folder.write("in.jsonl", lines + json{{"ids", std::vector<int>(513, 7)}}.dump() + "\n")});
  CHECK(result.code == 1);
  CHECK(is_one_error_line(result.err));
  CHECK(result.err.find("in.jsonl:41: has 513 tokens; the context of ") != std::string::npos);
  CHECK(result.err.find(" is 512") != std::string::npos);
  CHECK(result.out.empty());
}

TEST_CASE("score --out writes what it would print") {
  const TemporaryFolder folder;
  run_well({"score", tiny_r1(), "-", "--threads", "1", "--out", folder / "out.jsonl"}, mixed_lines);
  CHECK(read_text(folder / "out.jsonl") == run_well({"score", tiny_r1(), "-", "--threads", "1"}, mixed_lines).out);
}

TEST_CASE("output that cannot be written is an error") {
  if (!std::filesystem::exists("/dev/full")) return;
  const TemporaryFolder folder;
  for (const Args& args : {Args{"inspect", tiny_r1()}, Args{"score", tiny_r1(), folder.write("in", "{\"ids\":[1,2]}")}, Args{"generate", tiny_r1(), "-p", "a", "-n", "2"}}) {
    Process process(args, "/dev/null", "/dev/full", folder / "err");
    CHECK(process.wait() == 1);
    CHECK(read_text(folder / "err").find("standard output: cannot write") != std::string::npos);
  }
}

TEST_CASE("a conversation goes through a pipe: questions, /regenerate, /reset, unknown commands, /exit") {
  const Result result = run_well({"chat", tiny_r1(), "--temperature", "0", "--threads", "1"},
                                 "What is 7*8-5?\n/regenerate\n/reset\n/regenerate\n/help\n\nWhat is 7*8-5?\n/exit\nWhat is 1+1?\n");
  const std::string answer = "<think>\n7*8=56\n56-5=51\n</think>\n\n51\n";
  CHECK(result.out == answer + answer + answer);
  CHECK(result.err.find("tokens/s") != std::string::npos);
  CHECK(result.err.find("no question yet") != std::string::npos);
  CHECK(result.err.find("/help") != std::string::npos);
}

TEST_CASE("a conversation goes on when the context is full: the oldest questions are forgotten, and a question too long is refused") {
  std::string lines;
  for (int i = 0; i < 12; ++i) lines += "Sort 31 2 17 40 5 12 " + std::to_string(i) + std::string(30, ' ') + "\n";
  const Result result = run_well({"chat", tiny_r1(), "--temperature", "0", "--threads", "1"}, lines + std::string(3000, 'x') + "\n/reset\nWhat is 7*8-5?\n");
  CHECK(result.err.find("the oldest question is forgotten; /reset") != std::string::npos);
  CHECK(result.err.find("error: the question alone takes 3003 tokens") != std::string::npos);
  CHECK(result.out.ends_with("<think>\n7*8=56\n56-5=51\n</think>\n\n51\n"));
}

TEST_CASE("a conversation's second answer is that of its whole text") {
  const Result result = run_well({"chat", tiny_r1(), "--temperature", "0", "--threads", "1", "-n", "40"}, "What is 3+4?\nWhat is 7*8-5?\n");
  const json first = run_well({"generate", tiny_r1(), "--chat", "What is 3+4?", "--temperature", "0", "--threads", "1", "-n", "40", "--json"}).lines().at(0);
  const std::string text = first["text"];
  const std::string all = "<｜begin▁of▁sentence｜><｜User｜>What is 3+4?<｜Assistant｜>" + text + "<｜end▁of▁sentence｜><｜User｜>What is 7*8-5?<｜Assistant｜>";
  const json ids = run_well({"tokenize", tiny_r1(), "-"}, json{{"s", all}}.dump()).lines().at(0)["ids"];
  std::string list;
  for (const json& id : ids) list += (list.empty() ? "" : ",") + id.dump();
  const std::string second = run_well({"generate", tiny_r1(), "--ids", list, "--temperature", "0", "--threads", "1", "-n", "40"}).out;
  CHECK(result.out == text + "\n" + second);
}

namespace {

/// moxie chat that reads from a pipe which stays open.
class Chat {
 public:
  explicit Chat(const Args& options) {
    REQUIRE(::mkfifo((folder_ / "in").c_str(), 0600) == 0);
    in_ = ::open((folder_ / "in").c_str(), O_RDWR);  // both ends, so that opening does not wait
    process_.emplace(with({"chat", tiny_r1(), "--threads", "1"}, options), folder_ / "in", folder_ / "out", folder_ / "err");
  }
  ~Chat() { ::close(in_); }
  void say(const std::string& line) const {
    REQUIRE(::write(in_, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
  }
  /// Until "out" or "err" has this many bytes.
  bool wait_for(const char* name, std::size_t size) {
    for (int i = 0; i < 3000 && process_->running(); ++i) {
      if (std::filesystem::exists(folder_ / name) && std::filesystem::file_size(folder_ / name) >= size) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  Process& process() { return *process_; }
  std::string out() const { return read_text(folder_ / "out"); }

 private:
  TemporaryFolder folder_;
  int in_ = -1;
  std::optional<Process> process_;
};

}  // namespace

TEST_CASE("Ctrl-C stops an answer and not the conversation") {
  Chat chat({"--temperature", "0"});
  chat.say("What is 7*8-5?\n");
  REQUIRE(chat.wait_for("out", 1));  // the answer has begun
  chat.process().signal(SIGINT);
  REQUIRE(chat.wait_for("err", 10));  // its tokens/s
  chat.process().signal(SIGINT);      // between answers
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(chat.process().running());
  chat.say("/reset\nWhat is 7*8-5?\n/exit\n");
  CHECK(chat.process().wait() == 0);
  CHECK(chat.out().ends_with("<think>\n7*8=56\n56-5=51\n</think>\n\n51\n"));
}

TEST_CASE("SIGTERM ends a conversation, in an answer and between answers") {
  for (const int questions : {100, 1}) {
    Chat chat({"--temperature", "0"});
    std::string lines;
    for (int i = 0; i < questions; ++i) lines += "/reset\nWhat is 7*8-5?\n";
    chat.say(lines);
    REQUIRE(chat.wait_for("err", 10));  // the first answer has ended
    chat.process().signal(SIGTERM);
    for (int i = 0; i < 1000 && chat.process().running(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK_FALSE(chat.process().running());
    CHECK(chat.process().wait() == 128 + SIGTERM);
  }
}
