// moxie rollout and what moxie score makes of its lines: fields, kills and resumption, digits that agree, replayed routes, references.

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <deque>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <moxie/io/safetensors_writer.hpp>

#include "tool_run.hpp"

using namespace test;
using nlohmann::json;

namespace {

const std::string prompt_lines =
    R"({"messages":[{"role":"user","content":"What is 12*7-5?"}],"answer":"79"}
{"prompt":"What is 81+67?"}

{"prompt_ids":[0,380,263,261,223,25,12,26,381],"task":{"name":"mul"},"logprobs":"not ours"}
{"prompt":[{"role":"user","content":"What is 7*8-5?"}]}
)";

/// The numbers of a list in a line, as they were printed.
std::vector<std::string> digits_of(const std::string& line, const std::string& key) {
  std::vector<std::string> all;
  std::size_t at = line.find("\"" + key + "\":[") + key.size() + 4;
  while (line[at] != ']') {
    const std::size_t end = line.find_first_of(",]", at);
    all.push_back(line.substr(at, end - at));
    at = end + (line[end] == ',');
  }
  return all;
}
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> all;
  for (std::size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) all.push_back(text.substr(at, text.find('\n', at) - at));
  return all;
}
Args rollout(const Args& more) { return with({"rollout", tiny_r1()}, more); }

}  // namespace

TEST_CASE("rollout gives one line for each completion, in order, with TRL's and vLLM's names") {
  const auto result = run_well(rollout({"-", "--group", "3", "-n", "30", "--temperature", "1.5", "--top-p", "0.9", "--seed", "7", "--routes", "--threads", "1"}), prompt_lines);
  const auto lines = result.lines();
  REQUIRE(lines.size() == 12);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const json& line = lines[i];
    CHECK(line["prompt_index"] == i / 3);
    CHECK(line["index"] == i % 3);
    CHECK(line["seed"] == 7);
    CHECK(line["sampling"]["temperature"] == 1.5);
    CHECK(line["sampling"]["max_tokens"] == 30);
    CHECK(line["system_fingerprint"].get<std::string>().starts_with("weights-"));
    const std::size_t n = line["completion_ids"].size();
    CHECK(n >= 1);
    CHECK(n <= 30);
    for (const char* key : {"logprobs", "kept", "sampler_logprobs"}) CHECK(line[key].size() == n);
    for (std::size_t t = 0; t < n; ++t) {
      CHECK(line["kept"][t] >= 0.89);
      CHECK(line["sampler_logprobs"][t] >= line["logprobs"][t].get<double>() - 1e-5);
    }
    const bool stopped = line["completion_ids"].back() == 1;
    CHECK(line["finish_reason"] == (stopped ? "stop" : "length"));
    CHECK(line["routed_experts"].is_string());
    CHECK(line["text"].get<std::string>().find("end") == std::string::npos);  // the end-of-sequence token is no part of the text
  }
  CHECK(lines[0]["prompt"] == json::parse(prompt_lines.substr(0, prompt_lines.find('\n')))["messages"]);
  CHECK(lines[0]["answer"] == "79");
  CHECK(lines[3]["prompt"] == "What is 81+67?");
  CHECK(lines[3]["prompt_ids"][0] == 0);
  CHECK(lines[6]["prompt"].is_null());
  CHECK(lines[6]["prompt_ids"] == json({0, 380, 263, 261, 223, 25, 12, 26, 381}));
  CHECK(lines[6]["task"]["name"] == "mul");
  CHECK(lines[9]["prompt"][0]["role"] == "user");
  // the first completion of a chat prompt is what generate makes of stream 0
  const json greedy = run_well(rollout({"-", "--group", "2", "-n", "60", "--temperature", "0"}), prompt_lines).lines().back();
  CHECK(greedy["text"] == "<think>\n7*8=56\n56-5=51\n</think>\n\n51");
  CHECK_FALSE(greedy.contains("routed_experts"));
}

TEST_CASE("a rollout that was killed goes on without a lost, doubled or torn line, and gives the same bytes") {
  const TemporaryFolder folder;
  std::string prompts;
  for (int i = 0; i < 8; ++i) prompts += json{{"prompt", "What is " + std::to_string(i + 11) + "*7?"}}.dump() + "\n";
  const std::string in = folder.write("prompts.jsonl", prompts);
  const Args base = rollout({in, "--group", "6", "-n", "40", "--temperature", "1.2", "--seed", "3", "--ignore-eos", "--routes"});
  const std::string expected = run_well(with(base, {"--threads", "2"})).out;
  REQUIRE(lines_of(expected).size() == 48);

  const std::string out = folder / "out.jsonl";
  const Args writing = with(base, {"--out", out, "--threads", "1", "--batch", "2"});
  bool killed_between = false;
  for (int kill = 0; kill < 3; ++kill) {
    const std::size_t before = std::filesystem::exists(out) ? std::filesystem::file_size(out) : 0;
    Process process(writing, "/dev/null", folder / "stdout", folder / "stderr");
    for (int i = 0; i < 20000 && process.running(); ++i) {
      if (std::filesystem::exists(out) && std::filesystem::file_size(out) > before + expected.size() / 10) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    process.signal(SIGKILL);
    process.wait();
    const std::string text = read_text(out);
    CHECK(expected.starts_with(text));
    killed_between = killed_between || (!text.empty() && text.size() < expected.size());
  }
  CHECK(killed_between);
  // A kill in the middle of a line.
  std::filesystem::resize_file(out, read_text(out).size() - 17);
  const Result resumed = run_well(with(base, {"--out", out, "--threads", "2", "--kv-budget", "100KB"}));
  CHECK(resumed.err.find("were there") != std::string::npos);
  CHECK(read_text(out) == expected);
  // Complete already, and cut anywhere.
  run_well(writing);
  CHECK(read_text(out) == expected);
  for (const std::size_t cut : {std::size_t{1}, lines_of(expected)[0].size(), expected.size() - 1}) {
    std::filesystem::resize_file(out, cut);
    run_well(with(base, {"--out", out}));
    CHECK(read_text(out) == expected);
  }
  // Ctrl-C, and another run at the same time.
  std::filesystem::remove(out);
  Process process(writing, "/dev/null", folder / "stdout", folder / "stderr");
  for (int i = 0; i < 20000 && process.running() && (!std::filesystem::exists(out) || std::filesystem::file_size(out) == 0); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const Result second = run_tool(writing);
  CHECK(second.code == 1);
  CHECK(second.err.find("another program is writing") != std::string::npos);
  process.signal(SIGINT);
  CHECK(process.wait() == 128 + SIGINT);
  CHECK(read_text(folder / "stderr") == "error: interrupted\n");
  run_well(writing);
  CHECK(read_text(out) == expected);
}

TEST_CASE("a file of another run is left alone") {
  const TemporaryFolder folder;
  const std::string in = folder.write("prompts.jsonl", prompt_lines), out = folder / "out.jsonl";
  const Args base = rollout({in, "--group", "2", "-n", "5", "--out", out});
  run_well(base);
  const std::string text = read_text(out);
  const std::string other = folder.write("other.jsonl", "{\"prompt\":\"a\"}\n");
  for (const Args& args : {with(base, {"--seed", "1"}), with(base, {"--temperature", "0.5"}), with(base, {"--routes"}), rollout({in, "--group", "3", "-n", "5", "--out", out}),
                           rollout({other, "--group", "2", "-n", "5", "--out", out}), rollout({in, "--group", "2", "-n", "6", "--out", out})}) {
    const Result result = run_tool(args);
    CHECK(result.code == 1);
    CHECK(result.err.find("out.jsonl:") != std::string::npos);
    CHECK(result.err.find("give another --out") != std::string::npos);
    CHECK(read_text(out) == text);
  }
  // Another model, adapter, or precision: the error says which.
  const std::string quantized = folder / "q8.gguf";
  run_well({"quantize", tiny_r1(), quantized, "--type", "Q4_0"});
  const std::string same_model = folder / "copy.gguf";
  std::filesystem::copy_file(tiny_r1(), same_model);
  const Args more = {in, "--group", "2", "-n", "5", "--out", out};
  run_well(with({"rollout", same_model}, more));
  for (const auto& [args, part] : {std::pair{with({"rollout", quantized}, more), "weights-"}, std::pair{with(base, {"--kv", "f32"}), "int8 f32 "},
                                   std::pair{with(base, {"--activations", "f32"}), "f32 int16 "}}) {
    const Result result = run_tool(args);
    CHECK(result.code == 1);
    CHECK(result.err.find("out.jsonl:1: is a completion of \"weights-") != std::string::npos);
    CHECK(result.err.find(std::string("this command has \"weights-")) != std::string::npos);
    CHECK(result.err.find(part, result.err.find("this command has")) != std::string::npos);
    CHECK(read_text(out) == text);
  }
}

TEST_CASE("a file that is no rollout is left alone, whether its last line has an end or not") {
  const TemporaryFolder folder;
  const std::string in = folder.write("prompts.jsonl", prompt_lines), out = folder / "out.jsonl";
  const Args base = rollout({in, "--group", "2", "-n", "5", "--out", out});
  run_well(base);
  const std::string text = read_text(out), first = text.substr(0, text.find('\n') + 1);
  for (const std::string& foreign :
       {std::string("my notes\nand more"), std::string("my notes"), std::string("{\"prompt\":\"1+1=\"}"), first + "my notes",
        first + first.substr(0, 50), text + "my notes", text + text.substr(0, 20)}) {
    folder.write("out.jsonl", foreign);
    const Result result = run_tool(base);
    CAPTURE(foreign);
    CHECK(result.code == 1);
    CHECK(result.err.find("or no rollout; give another --out") != std::string::npos);
    CHECK(read_text(out) == foreign);
  }
  const std::string prompts = folder.write("p.jsonl", R"({"prompt":"1+1="})");
  CHECK(run_tool(rollout({prompts, "--group", "1", "-n", "4", "--out", prompts})).code == 1);
  CHECK(read_text(prompts) == R"({"prompt":"1+1="})");
}

TEST_CASE("lines are gone on with where the prompts' other fields are the same, and only there") {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  // Fields of the prompts that look like the program's own.
  const std::string odd =
      R"({"messages":[{"role":"user","content":"a","system_fingerprint":"x"}],"answer":"1","task":{"a":"b","finish_reason":"stop","routed_experts":"x"},"z":2})";
  for (const Args& routes : {Args{}, Args{"--routes"}}) {
    std::filesystem::remove(out);
    const auto command = [&](const std::string& prompts) {
      return with(rollout({folder.write("in.jsonl", prompts + "\n"), "--group", "2", "-n", "5", "--out", out}), routes);
    };
    run_well(command(odd));
    const std::string text = read_text(out);
    std::filesystem::resize_file(out, text.size() - 5);
    run_well(command(odd));
    CHECK(read_text(out) == text);
    json other_answer = json::parse(odd), fewer = other_answer, more = other_answer;
    other_answer["answer"] = "2";
    fewer.erase("answer");
    more["zz"] = 3;
    for (const json& prompts : {other_answer, fewer, more}) {
      const Result result = run_tool(command(prompts.dump()));
      CHECK(result.code == 1);
      CHECK(result.err.find("out.jsonl:1: is not what this command would write there") != std::string::npos);
      CHECK(read_text(out) == text);
    }
  }
}

TEST_CASE("only files that a model or an adapter is read from decide whether lines are its own") {
  const auto model = shared_path("trained/tiny-r1");
  if (!model) return;
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "model");
  for (const auto& entry : std::filesystem::directory_iterator(*model))
    if (entry.is_regular_file() && entry.path().extension() != ".gguf")
      std::filesystem::copy_file(entry.path(), folder / ("model/" + entry.path().filename().string()));
  const std::string in = folder.write("in.jsonl", "{\"prompt\":\"a\"}\n"), out = folder / "out.jsonl";
  const Args command = {"rollout", folder / "model", in, "--group", "2", "-n", "3", "--out", out};
  run_well(command);
  for (const char* name : {"model/notes.json", "model/other.safetensors"}) folder.write(name, "{}");
  run_well(command);
  const std::string settings = "model/generation_config.json";  // it names the tokens that end a completion
  folder.write(settings, R"({"eos_token_id":[1,2]})");
  CHECK(run_tool(command).err.find("out.jsonl:1: is a completion of") != std::string::npos);
}

TEST_CASE("score of a rollout prints the digits of its logprobs, and a replay of its own routes changes no byte") {
  const TemporaryFolder folder;
  const std::string in = folder.write("prompts.jsonl", prompt_lines), out = folder / "out.jsonl";
  for (const Args& precision : {Args{}, Args{"--activations", "f32", "--kv", "f32"}}) {
    std::filesystem::remove(out);
    run_well(with(rollout({in, "--group", "4", "-n", "40", "--temperature", "1.4", "--top-k", "50", "--presence-penalty", "0.5", "--seed", "5", "--routes", "--out", out}), precision));
    const Args score = with({"score", tiny_r1(), out, "--temperature", "1.4", "--routes"}, precision);
    const std::string plain = run_well(with(score, {"--threads", "1"})).out;
    const auto rolled = lines_of(read_text(out)), scored = lines_of(plain);
    REQUIRE(rolled.size() == scored.size());
    for (std::size_t i = 0; i < rolled.size(); ++i) {
      const auto ours = digits_of(rolled[i], "logprobs");
      auto all = digits_of(scored[i], "logprobs");
      CHECK(std::vector<std::string>(all.end() - static_cast<std::ptrdiff_t>(ours.size()), all.end()) == ours);
    }
    CHECK(run_well(with(score, {"--routes-from", out, "--threads", "2", "--batch", "3"})).out == plain);
    // what score itself wrote can be replayed as well
    CHECK(run_well(with(score, {"--routes-from", folder.write("scored.jsonl", plain)})).out == plain);
  }
  // In another format of the weights: recorded experts are used, so that the first layer's are those of the rollout.
  const auto q4 = shared_path("trained/tiny-r1/tiny-r1-Q4_0.gguf");
  if (!q4) return;
  const std::string scored = run_well({"score", tiny_r1(), out, "--routes", "--activations", "f32", "--kv", "f32"}).out;
  const auto own = run_well({"score", *q4, out, "--routes"}).lines(), replayed = run_well({"score", *q4, out, "--routes", "--routes-from", out}).lines();
  Result reference;
  reference.out = scored;
  const auto expected = reference.lines();
  int changed = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (std::size_t t = 0; t + 1 < expected[i]["ids"].size(); ++t) CHECK(replayed[i]["routes"][layer][t] == expected[i]["routes"][layer][t]);
    changed += own[i]["routes"] != expected[i]["routes"];
  }
  CHECK(changed > 0);
}

TEST_CASE("routes that do not fit are named by file and line, before anything is printed") {
  const TemporaryFolder folder;
  const std::string in = folder.write("prompts.jsonl", prompt_lines), out = folder / "out.jsonl";
  run_well(rollout({in, "--group", "1", "-n", "6", "--routes", "--out", out}));
  const auto lines = lines_of(read_text(out));
  const auto routes_of = [&](const std::string& line) { return json::parse(line)["routed_experts"].get<std::string>(); };
  const std::string ids = json::parse(lines[1])["prompt_ids"].dump();
  const auto joined = [&](const std::string& second) { return lines[0] + "\n" + second + "\n" + lines[2] + "\n" + lines[3] + "\n"; };
  std::string short_trace = lines[1];
  short_trace.replace(short_trace.find(routes_of(lines[1])), routes_of(lines[1]).size() - 8, routes_of(lines[1]).substr(0, routes_of(lines[1]).size() - 16));
  const std::string long_ids = R"({"ids":[1,2,3],"routes":[[[0,1],[2,3],[4,5]],[[0,1],[2,3],[4,5]]]})";
  const std::pair<std::string, const char*> cases[] = {
      {joined(short_trace), "routes.jsonl:2: routed_experts: the .npy file's data do not fit its shape: it is cut off"},
      {joined(lines[0]), "routes.jsonl:2: these routes are of other token ids"},
      {joined(long_ids), "routes.jsonl:2: these routes are of other token ids"},
      {joined(R"({"routes":[[[0,1]],[[0,1]]]})"), "routes.jsonl:2: the routes are of 1 tokens"},
      {joined(R"({"routes":[[[0,1]],[[0,1]],[[0,1]]]})"), "routes.jsonl:2: the routes have 3 MoE layers, the model has 2"},
      {joined(R"({"routed_experts":[[[0,1,2],[0,1,2]]]})"), "routes.jsonl:2: the routes have 3 experts per token, the model has 2"},
      {joined(R"({"ids":[1]})"), "routes.jsonl:2: has no \"routed_experts\""},
      {joined(R"({"routed_experts":"AAA"})"), "routes.jsonl:2: base64"},
      {lines[0] + "\n", "routes of 1 sequences, 4 are to be scored"},
      {joined(lines[1]) + lines[3] + "\n", "routes.jsonl:5: only 4 sequences"},
      {joined("{"), "routes.jsonl:2: JSON"},
  };
  for (const auto& [text, part] : cases) {
    const Result result = run_tool({"score", tiny_r1(), out, "--routes-from", folder.write("routes.jsonl", text)});
    CAPTURE(result.err);
    CHECK(result.code == 1);
    CHECK(result.err.find(part) != std::string::npos);
    CHECK(result.out.empty());
  }
  CHECK(run_tool({"score", tiny_r1(), out, "--routes-from", folder / "none.jsonl"}).err.find("none.jsonl") != std::string::npos);
}

TEST_CASE("score --ref adds the reference's logprobs and the k3 estimate") {
  const TemporaryFolder folder;
  const std::string in = folder.write("in.jsonl", R"({"prompt":"What is 7*8-5?","completion":"<think>\n7*8=56\n56-5=51\n</think>\n\n51"})" "\n" R"({"ids":[]})" "\n" R"({"ids":[5]})" "\n");
  for (const json& line : run_well({"score", tiny_r1(), in, "--ref", tiny_r1()}).lines()) {
    CHECK(line["ref_logprobs"] == line["logprobs"]);
    CHECK(line["kl"] == json(std::vector<double>(line["logprobs"].size(), 0.0)));
  }
  const std::string quantized = folder / "q4.gguf";
  run_well({"quantize", tiny_r1(), quantized, "--type", "Q4_0"});
  const auto result = run_well({"score", tiny_r1(), in, "--ref", quantized});
  const json line = result.lines().at(0);
  CHECK(line["ref_logprobs"] == run_well({"score", quantized, in}).lines().at(0)["logprobs"]);
  double sum = 0.0;
  for (std::size_t t = 0; t < line["kl"].size(); ++t) {
    const double d = line["ref_logprobs"][t].get<double>() - line["logprobs"][t].get<double>();
    CHECK(line["kl"][t].get<double>() == doctest::Approx(std::exp(d) - d - 1.0).epsilon(1e-4));
    sum += line["kl"][t].get<double>();
  }
  CHECK(sum > 0.0);
  CHECK(result.err.find("KL to the reference") != std::string::npos);
  if (const auto other = shared_path("gguf/qwen3moe/Q4_0.gguf")) CHECK(run_tool({"score", tiny_r1(), in, "--ref", *other}).err.find("vocabulary") != std::string::npos);
}

TEST_CASE("what rollout cannot do is one line that names the file and the line") {
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"text":"a"})", "must be"},
      {R"({"prompt":"a","prompt_ids":[1]})", "must be"},
      {R"({"prompt":3})", "a text or an array of messages"},
      {R"({"messages":"a"})", "must be an array of messages"},
      {R"({"messages":[{"content":"a"}]})", "role"},
      {R"({"prompt_ids":[]})", "no tokens"},
      {R"({"prompt_ids":[384]})", "384"},
      {R"({"prompt_ids":["a"]})", "no token id"},
      {"[]", "object"},
  };
  for (const auto& [line, part] : cases) {
    const std::string in = folder.write("in.jsonl", std::string("{\"prompt\":\"a\"}\n") + line + "\n");
    const Result result = run_tool(rollout({in, "--out", folder / "out.jsonl"}));
    CAPTURE(result.err);
    CHECK(result.code == 1);
    CHECK(result.err.find("in.jsonl:2: ") != std::string::npos);
    CHECK(result.err.find(part) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(folder / "out.jsonl"));
  }
  const std::string in = folder.write("in.jsonl", "{\"prompt\":\"a\"}\n");
  CHECK(run_tool(rollout({in, "--kv-budget", "1KB"})).err.find("budget") != std::string::npos);
  CHECK(run_tool(rollout({in, "--group", "0"})).code == 2);
  for (const char* size : {"much", "-1", "-1GB", ""}) CHECK(run_tool(rollout({in, "--kv-budget", size})).code == 2);
  CHECK(run_tool(rollout({in, "--kv-budget", "1", "--out", folder / "out.jsonl"})).code == 1);
  CHECK_FALSE(std::filesystem::exists(folder / "out.jsonl"));
  CHECK(run_tool(rollout({in, "--out", folder / ""})).code == 1);
  CHECK(run_well(rollout({folder.write("empty", ""), "--group", "4"})).out.empty());
}

TEST_CASE("a rollout that began with an adapter goes on with that one only, and one that began without goes on without") {
  const TemporaryFolder folder;
  const auto write_adapter = [&](const std::string& name, float size) {
    std::filesystem::create_directory(folder / name);
    const moxie::RowMatrix a = moxie::RowMatrix::Constant(2, 256, size), b = moxie::RowMatrix::Constant(384, 2, size);
    moxie::SafetensorsWriter writer;
    writer.add("base_model.model.lm_head.lora_A.weight", a);
    writer.add("base_model.model.lm_head.lora_B.weight", b);
    writer.write(folder / (name + "/adapter_model.safetensors"));
    folder.write(name + "/adapter_config.json", R"({"peft_type":"LORA","r":2,"lora_alpha":2})");
    return folder / name;
  };
  const std::string first = write_adapter("first", 0.01f), second = write_adapter("second", 0.02f),
                    same = write_adapter("same", 0.01f);
  const std::string in = folder.write("in.jsonl", "{\"prompt\":\"a\"}\n"), out = folder / "out.jsonl";
  const Args plain = rollout({in, "--group", "2", "-n", "3", "--out", out});
  const Args with_first = with(plain, {"--adapter", first}), with_second = with(plain, {"--adapter", second}),
             merged = with(with_first, {"--merge-adapter"});
  for (const auto& [began, others] :
       {std::pair{plain, std::vector{with_first, merged}}, std::pair{with_first, std::vector{plain, with_second, merged}}}) {
    std::filesystem::remove(out);
    run_well(began);
    const std::string text = read_text(out);
    for (const std::size_t size : {text.size(), text.size() - 9}) {  // complete, and killed in a line
      std::filesystem::resize_file(out, size);
      for (const Args& other : others) {
        const Result result = run_tool(other);
        CHECK(result.code == 1);
        CHECK(result.err.find("out.jsonl:1: is a completion of \"weights-") != std::string::npos);
        CHECK(result.err.find("(model, adapter, activations, KV cache, kernels); run it with the same") != std::string::npos);
        CHECK(read_text(out) == text.substr(0, size));
      }
    }
    run_well(began);
    CHECK(read_text(out) == text);
  }
  const std::string text = read_text(out);
  run_well(with(plain, {"--adapter", same}));  // the same contents in another folder
  CHECK(read_text(out) == text);
}

TEST_CASE("with --adapter, rollout and score agree to the digit; the reference is the model without it; --merge-adapter is close to it") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "adapter");
  std::deque<moxie::RowMatrix> matrices;  // the writer refers to them
  moxie::SafetensorsWriter writer;
  unsigned seed = 0;
  for (const auto& [module, outputs] : {std::pair("model.layers.1.self_attn.o_proj", 256), std::pair("model.layers.2.mlp.experts.3.gate_proj", 256), std::pair("lm_head", 384)}) {
    const auto random = [&seed] { return static_cast<float>(static_cast<int>((seed = seed * 1103515245u + 12345u) >> 16 & 1023) - 512) / 4096.0f; };
    writer.add(std::string("base_model.model.") + module + ".lora_A.weight", matrices.emplace_back(moxie::RowMatrix::NullaryExpr(4, 256, random)));
    writer.add(std::string("base_model.model.") + module + ".lora_B.weight", matrices.emplace_back(moxie::RowMatrix::NullaryExpr(outputs, 4, random)));
  }
  writer.write(folder / "adapter/adapter_model.safetensors");
  folder.write("adapter/adapter_config.json", R"({"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["o_proj","gate_proj","lm_head"]})");
  const std::string in = folder.write("prompts.jsonl", prompt_lines), out = folder / "out.jsonl";
  const Args adapted = {"--adapter", folder / "adapter"}, merged = with(adapted, {"--merge-adapter"});
  const Args base = rollout({in, "--group", "3", "-n", "30", "--temperature", "1.2", "--seed", "2"});
  run_well(with(base, with(adapted, {"--out", out})));
  CHECK(read_text(out) != run_well(base).out);
  const Args score = {"score", tiny_r1(), out, "--temperature", "1.2"};
  const std::string scored = run_well(with(score, adapted)).out;
  const auto rolled = lines_of(read_text(out)), lines = lines_of(scored);
  REQUIRE(rolled.size() == 12);
  for (std::size_t i = 0; i < rolled.size(); ++i) {
    const auto ours = digits_of(rolled[i], "logprobs");
    const auto all = digits_of(lines[i], "logprobs");
    CHECK(std::vector<std::string>(all.end() - static_cast<std::ptrdiff_t>(ours.size()), all.end()) == ours);
  }
  CHECK(run_well(with(score, with(adapted, {"--threads", "1", "--batch", "2", "--chunk", "5"}))).out == scored);
  const auto plain = run_well(score).lines(), compared = run_well(with(score, with(adapted, {"--ref", tiny_r1()}))).lines(), close = run_well(with(score, merged)).lines();
  double difference = 0.0, change = 0.0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(compared[i]["ref_logprobs"] == plain[i]["logprobs"]);
    for (std::size_t t = 0; t < plain[i]["logprobs"].size(); ++t) {
      const auto logprob = compared[i]["logprobs"][t].get<double>();
      difference += std::abs(close[i]["logprobs"][t].get<double>() - logprob);
      change += std::abs(plain[i]["logprobs"][t].get<double>() - logprob);
    }
  }
  CHECK(difference < 0.2 * change);
  const Args generate = {"generate", tiny_r1(), "--ids", "1,2,3", "-n", "8", "--json"};
  CHECK(run_well(with(generate, adapted)).lines().at(0)["logprobs"] != run_well(generate).lines().at(0)["logprobs"]);
  CHECK(run_tool(with(generate, {"--merge-adapter"})).code == 2);
  const Result missing = run_tool(with(generate, {"--adapter", folder / "none"}));
  CHECK(missing.code == 1);
  CHECK(missing.err.find("none: not a folder") != std::string::npos);
}
