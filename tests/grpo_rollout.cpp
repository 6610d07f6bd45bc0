// Group rollouts: the same completions however they are run, exact logprobs, prompts run and stored once, budgets, recorded routes.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/grpo/logprobs.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/grpo/routes_file.hpp>

#include "checks.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "shared.hpp"

using namespace moxie;
using nlohmann::json;

namespace {

using Ids = std::vector<std::int32_t>;

using test::message_of;
using test::contains;
using test::same_bits;

bool same(const grpo::Completion& a, const grpo::Completion& b) {
  return a.ids == b.ids && a.finish == b.finish && same_bits(a.logprobs, b.logprobs) && same_bits(a.kept, b.kept) &&
         same_bits(a.sampler_logprobs, b.sampler_logprobs) && a.routes.text() == b.routes.text();
}

/// Prompts of a few and of many tokens: questions, and one longer than a page of the KV cache.
std::vector<Ids> questions(const Model& model) {
  std::vector<Ids> prompts;
  for (const char* question : {"What is 12*7-5?", "What is 81+67?", "What is 90-2?", "What is 7*8-5?", "Sort 3 1 2"}) prompts.push_back(model.chat({{"user", question}}));
  std::mt19937 random(1);
  prompts.push_back(test::random_ids(random, 150, 300));
  prompts.push_back(test::random_ids(random, 128, 300));
  return prompts;
}

Ids joined(const Ids& prompt, const Ids& completion) {
  Ids all = prompt;
  all.insert(all.end(), completion.begin(), completion.end());
  return all;
}

}  // namespace

TEST_CASE("completions are the same bits whatever the group size, batch, budget, chunk, threads and the other prompts") {
  const Model model = Model::load(test::embedded_model(), {.threads = 2});
  const auto prompts = questions(model);
  const std::size_t page = KvPool(model.kv_shape()).page_bytes();
  const GenerateOptions generate{.temperature = 2.0f, .top_p = 0.98f, .presence_penalty = 0.2f, .seed = 17, .max_tokens = 22};
  const auto expected = grpo::rollout(model, prompts, {.group_size = 6, .generate = generate, .record_routes = true});
  REQUIRE(expected.size() == prompts.size());
  std::size_t stopped = 0;
  std::set<Ids> different;
  for (const auto& group : expected)
    for (const auto& completion : group.completions) {
      stopped += completion.finish == FinishReason::stop;
      different.insert(completion.ids);
    }
  CHECK(stopped > 5);
  CHECK(stopped < 6 * prompts.size());
  CHECK(different.size() > prompts.size());

  struct Way {
    std::int64_t group, batch, threads, chunk;
    std::size_t pages;
  };
  for (const Way& way : {Way{6, 1, 1, 512, 0}, Way{3, 4, 2, 7, 0}, Way{8, 100, 3, 33, 9}, Way{6, 5, 2, 64, 5}, Way{6, 32, 1, 512, 4}}) {
    CAPTURE(way.pages);
    CAPTURE(way.group);
    const Model other = Model::load(test::embedded_model(), {.threads = static_cast<int>(way.threads), .chunk = way.chunk});
    const auto groups = grpo::rollout(other, prompts, {.group_size = way.group, .generate = generate, .batch = way.batch, .kv_budget_bytes = way.pages * page, .record_routes = true});
    for (std::size_t p = 0; p < prompts.size(); ++p)
      for (std::size_t g = 0; g < std::min<std::size_t>(6, groups[p].completions.size()); ++g) CHECK(same(groups[p].completions[g], expected[p].completions[g]));
  }
  // One prompt alone, under its number.
  const auto alone = grpo::rollout(model, std::span(prompts).subspan(3, 1), {.group_size = 2, .generate = generate, .record_routes = true, .first_prompt = 3});
  for (std::size_t g = 0; g < 2; ++g) CHECK(same(alone[0].completions[g], expected[3].completions[g]));
  // The first completions left out.
  const auto rest = grpo::rollout(model, prompts, {.group_size = 6, .generate = generate, .record_routes = true, .skip = 15});
  for (std::size_t p = 0; p < prompts.size(); ++p)
    for (std::size_t g = 0; g < 6; ++g) {
      if (p * 6 + g < 15) {
        CHECK(rest[p].completions[g].ids.empty());
      } else {
        CHECK(same(rest[p].completions[g], expected[p].completions[g]));
      }
    }
}

TEST_CASE("a group's prompt is run and stored once, and the budget is kept") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1, .chunk = 64});
  const std::size_t page = KvPool(model.kv_shape()).page_bytes();
  std::mt19937 random(5);
  const Ids prompt = test::random_ids(random, 200, 300);  // 3 full pages and one that is not
  Batch batch(model);
  const auto ids = batch.add_group(prompt, 8, {.seed = 1, .max_tokens = 30, .ignore_eos = true});
  std::size_t most = 0;
  int steps = 0;
  for (; batch.at(ids.back()).samples.empty(); ++steps) batch.step();
  CHECK(steps == 4);  // 200 rows at 64 a step: run once
  while (batch.active() > 0) {
    batch.step();
    most = std::max(most, batch.kv_bytes());
  }
  CHECK(most == (3 + 8) * page);
  // The last holder of a shared page writes into it without a copy, so 3 + 8 pages are enough.
  Batch tight(model, {.kv_budget_bytes = (3 + 8) * page});
  const auto same_ids = tight.add_group(prompt, 8, {.seed = 1, .max_tokens = 30, .ignore_eos = true});
  while (tight.active() > 0) tight.step();
  for (std::size_t g = 0; g < 8; ++g) CHECK(tight.at(same_ids[g]).ids == batch.at(ids[g]).ids);

  // Held sequences draw nothing, and go on when they are released.
  Batch held(model);
  const auto group = held.add_group(prompt, 3, {.seed = 1, .max_tokens = 30, .ignore_eos = true});
  held.hold(group[1]);
  held.hold(group[2]);
  for (int i = 0; i < 10; ++i) held.step();
  CHECK(held.at(group[1]).samples.empty());
  CHECK_FALSE(held.at(group[0]).samples.empty());
  CHECK(held.kv_bytes() == 5 * page);
  held.remove(group[0]);
  for (const Batch::Id id : {group[1], group[2]}) held.release(id);
  while (held.active() > 0) held.step();
  for (const std::size_t g : {std::size_t{1}, std::size_t{2}}) CHECK(held.at(group[g]).ids == batch.at(ids[g]).ids);
}

TEST_CASE("every budget that holds one completion is enough, and gives the same completions") {
  const test::TemporaryFolder folder;
  const Model embedded = Model::load(test::embedded_model(), {.threads = 2});
  const Model recurrent = Model::load(test::write_random_model(folder.file("model.gguf"), test::qwen3_next_config(Dtype::Q8_0), Dtype::Q8_0), {.threads = 2});
  std::mt19937 random(9);
  const auto between = [&](std::int64_t low, std::int64_t high) { return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1)); };
  for (int round = 0; round < 24; ++round) {
    const Model& model = round < 15 ? embedded : recurrent;
    const std::size_t page = KvPool(model.kv_shape()).page_bytes(), state = KvPool(model.kv_shape()).state_bytes();
    std::vector<Ids> prompts;
    std::int64_t longest = 0;
    for (std::int64_t i = between(1, 5); i > 0; --i) {
      prompts.push_back(test::random_ids(random, round % 3 == 0 ? 64 * between(1, 3) : between(1, 200), 384));
      longest = std::max(longest, static_cast<std::int64_t>(prompts.back().size()));
    }
    const std::int64_t max_tokens = between(0, 80), group = between(1, 7);
    const GenerateOptions generate{.temperature = 3.0f, .seed = static_cast<std::uint64_t>(round), .max_tokens = max_tokens, .ignore_eos = round % 2 == 0};
    const auto least = static_cast<std::size_t>((longest + std::max<std::int64_t>(0, max_tokens - 1) + 63) / 64);
    const auto expected = grpo::rollout(model, prompts, {.group_size = group, .generate = generate});
    const std::size_t budget = (least + static_cast<std::size_t>(between(0, 6))) * page + static_cast<std::size_t>(between(1, 4)) * state;
    const auto groups = grpo::rollout(model, prompts, {.group_size = group, .generate = generate, .batch = between(1, 12), .kv_budget_bytes = budget});
    for (std::size_t p = 0; p < prompts.size(); ++p)
      for (std::size_t g = 0; g < groups[p].completions.size(); ++g) CHECK(same(groups[p].completions[g], expected[p].completions[g]));
    CHECK_THROWS_AS(grpo::rollout(model, prompts, {.generate = generate, .kv_budget_bytes = least * page + state - 1}), MemoryError);
  }
}

TEST_CASE("what cannot be rolled out is said before anything is run") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1});
  const std::size_t page = KvPool(model.kv_shape()).page_bytes();
  const std::vector<Ids> prompts = {{1, 2, 3}, Ids(100, 5)};
  const auto message = [&](const grpo::RolloutOptions& options, const std::vector<Ids>& what) {
    int finished = 0;
    const std::string text = message_of([&] { grpo::rollout(model, what, options, [&](auto&&...) { ++finished; }); });
    CHECK(finished == 0);
    return text;
  };
  CHECK(contains(message({.generate = {.max_tokens = 100}, .kv_budget_bytes = 3 * page}, prompts), "prompt 1 of 100 tokens and 100 new ones may take " + std::to_string(4 * page)));
  CHECK(contains(message({.group_size = 0}, prompts), "group_size must be 1 to 2^31"));
  CHECK(contains(message({.group_size = (std::int64_t{1} << 31) + 1}, prompts), "group_size must be 1 to 2^31"));
  for (const std::uint64_t first : {(std::uint64_t{1} << 32) - 1, ~std::uint64_t{0}})
    CHECK(contains(message({.first_prompt = first}, prompts), "prompts are numbered below 2^32"));
  CHECK(contains(message({.batch = 0}, prompts), "batch"));
  CHECK(contains(message({.skip = -1}, prompts), "skip"));
  CHECK(contains(message({.generate = {.stop = {"x"}}}, prompts), "stop"));
  CHECK(contains(message({.generate = {.temperature = -1.0f}}, prompts), "temperature"));
  CHECK(contains(message({}, {{1}, {}}), "prompt 1 has no tokens"));
  CHECK(contains(message({}, {{1}, {2, 384}}), "prompt 1: token id 384"));
  CHECK(contains(message({}, {Ids(513, 1)}), "prompt 0 has 513 tokens"));
  CHECK(grpo::rollout(model, std::vector<Ids>{}).empty());
  // No new tokens, or no room for them, and a stop from outside.
  const auto silent = grpo::rollout(model, prompts, {.group_size = 3, .generate = {.max_tokens = 0}, .batch = 2, .record_routes = true});
  CHECK(silent[1].completions[2].ids.empty());
  CHECK(silent[1].completions[2].finish == FinishReason::length);
  CHECK(silent[1].completions[2].routes.tokens() == 100);
  CHECK(grpo::rollout(model, std::vector<Ids>{Ids(512, 1)}, {.group_size = 2})[0].completions[1].finish == FinishReason::length);
  std::vector<std::int64_t> seen;
  const auto stop = [&](const grpo::RolloutProgress& progress) {
    CHECK(progress.total == 16);
    seen.push_back(progress.tokens);
    if (progress.completions > 3) throw Cancelled("stopped");
  };
  CHECK_THROWS_AS(grpo::rollout(model, prompts, {.generate = {.max_tokens = 12}, .batch = 4, .progress = stop}), Cancelled);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("logits that are not finite are an error that names prompt and completion") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1});
  OutputAdapter adapter = OutputAdapter::create(model.config().hidden_size, model.config().vocab_size, 2, 1e30f, 1);
  adapter.b.setConstant(1e30f);
  adapter.pack(model.context());
  // The first two completions are not wanted: the batch's own numbers would be others.
  const std::string text = message_of([&] {
    grpo::rollout(model, std::vector<Ids>{{1, 2}, {3, 4}}, {.group_size = 2, .adapter = &adapter, .skip = 3});
  });
  CHECK(contains(text, "completion 1 of prompt 1: "));
}

TEST_CASE("recorded routes go through text and come back; replayed, they change no bit") {
  const test::TemporaryFolder folder;
  const Model model = Model::load(test::embedded_model(), {.threads = 2});
  const auto prompts = questions(model);
  const auto groups = grpo::rollout(model, prompts, {.group_size = 2, .generate = {.temperature = 1.5f, .seed = 4, .max_tokens = 30}, .record_routes = true});
  std::vector<Ids> sequences;
  std::vector<RoutingTrace> traces;
  for (std::size_t p = 0; p < prompts.size(); ++p)
    for (const auto& completion : groups[p].completions) {
      sequences.push_back(joined(prompts[p], completion.ids));
      const auto tokens = static_cast<Index>(sequences.back().size());
      CHECK(completion.routes.tokens() == tokens - 1);
      CHECK(completion.routes.bytes() == static_cast<std::size_t>((tokens - 1) * 2 * 2));  // 2 MoE layers, top 2 of 8
      traces.push_back(grpo::read_routes({{"routed_experts", completion.routes.text()}}, empty_trace(model), tokens));
      const RoutingTrace direct = completion.routes.trace(tokens);
      for (Index l = 0; l < direct.n_layers(); ++l) CHECK(direct.ids(l) == traces.back().ids(l));
    }
  const auto plain = grpo::logprobs(model, sequences, {.record_routes = true});
  const auto replayed = grpo::logprobs(model, sequences, {.batch = 3, .record_routes = true, .replay = traces});
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    CHECK(same_bits(replayed[s].logprobs, plain[s].logprobs));
    CHECK(same_bits(replayed[s].entropy, plain[s].entropy));
    for (Index l = 0; l < 2; ++l) CHECK(replayed[s].routes.weights(l) == plain[s].routes.weights(l));
  }
  // In a model of another format the recorded experts are used, where its own router would choose others.
  const Model f32 = Model::load(test::embedded_model(), {.threads = 2, .activations = Activations::f32, .kv = KvType::f32});
  const auto forced = grpo::logprobs(f32, sequences, {.record_routes = true, .replay = traces});
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (Index l = 0; l < 2; ++l) CHECK(forced[s].routes.ids(l).topRows(traces[s].tokens() - 1) == traces[s].ids(l).topRows(traces[s].tokens() - 1));
}

TEST_CASE("a routing record is the text that NumPy and vLLM read and write") {
  // base64.b64encode of numpy.save of arange(12).reshape(3, 2, 2), as uint8, int16 and int64 (numpy 2.4.6)
  const std::string u1 =
      "k05VTVBZAQB2AHsnZGVzY3InOiAnfHUxJywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDMsIDIsIDIpLCB9ICAgICAgICAgICAgICAgICAg"
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAQIDBAUGBwgJCgs=";
  const std::string i2 =
      "k05VTVBZAQB2AHsnZGVzY3InOiAnPGkyJywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDMsIDIsIDIpLCB9ICAgICAgICAgICAgICAgICAg"
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAEAAgADAAQABQAGAAcACAAJAAoACwA=";
  const std::string i8 =
      "k05VTVBZAQB2AHsnZGVzY3InOiAnPGk4JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDMsIDIsIDIpLCB9ICAgICAgICAgICAgICAgICAg"
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAAAAAAEAAAAAAAAAAgAAAAAAAAADAAAAAAAAAAQAAAAAAAAABQAAAAAAAAAGAAAA"
      "AAAAAAcAAAAAAAAACAAAAAAAAAAJAAAAAAAAAAoAAAAAAAAACwAAAAAAAAA=";
  const std::string u2 =
      "k05VTVBZAQB2AHsnZGVzY3InOiAnPHUyJywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDMsIDIsIDIpLCB9ICAgICAgICAgICAgICAgICAg"
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAABQAKAA8AFAAZAB4AIwAoAC0AMgA3AA=";
  const RoutingTrace shape(2, 16, 2), wide(2, 300, 2);
  RoutingTrace trace = shape, large = wide;
  trace.resize(3);
  large.resize(3);
  for (Index t = 0; t < 3; ++t)
    for (Index l = 0; l < 2; ++l)
      for (Index k = 0; k < 2; ++k) large.ids(l)(t, k) = 20 * (trace.ids(l)(t, k) = static_cast<std::int32_t>((t * 2 + l) * 2 + k));
  CHECK(grpo::RoutingRecord(trace).text() == u1);
  CHECK(grpo::RoutingRecord(large).text() == u2);
  for (const std::string& text : {u1, i2, i8})
    for (Index l = 0; l < 2; ++l) CHECK(grpo::read_routes({{"routed_experts", text}}, shape, 3).ids(l) == trace.ids(l));
  for (Index l = 0; l < 2; ++l) CHECK(grpo::read_routes({{"routed_experts", u2}}, wide, 3).ids(l) == large.ids(l));
  CHECK(grpo::RoutingRecord(large).id(2, 1, 1) == 220);

  const json nested = {{{0, 1}, {2, 3}}, {{4, 5}, {6, 7}}, {{8, 9}, {10, 11}}};
  const RoutingTrace longer = grpo::read_routes({{"routed_experts", nested}}, shape, 4);
  CHECK(longer.ids(1).topRows(3) == trace.ids(1));
  CHECK(longer.ids(1)(3, 0) == router_chooses);
  CHECK(grpo::read_routes({{"routes", {{{0, 1}, {4, 5}}, {{2, 3}, {6, 7}}}}}, shape, 2).ids(1) == trace.ids(1).topRows(2));
  CHECK(grpo::read_routes({{"routed_experts", {{{-1, -1}, {2, 3}}}}}, shape, 1).ids(0)(0, 1) == router_chooses);
  CHECK(grpo::read_routes({{"routed_experts", json::array()}}, shape, 1).ids(0)(0, 0) == router_chooses);

  const auto message = [&](const json& line, Index tokens) { return message_of([&] { grpo::read_routes(line, shape, tokens); }); };
  CHECK(contains(message({{"routed_experts", u1}}, 5), "of 3 tokens, the sequence has 5"));
  CHECK(contains(message({{"routed_experts", u1}}, 2), "of 3 tokens, the sequence has 2"));
  CHECK(contains(message_of([&] { grpo::read_routes({{"routed_experts", u1}}, RoutingTrace(3, 16, 2), 3); }), "2 MoE layers, the model has 3"));
  CHECK(contains(message_of([&] { grpo::read_routes({{"routed_experts", u1}}, RoutingTrace(2, 16, 4), 3); }), "2 experts per token, the model has 4"));
  CHECK(contains(message_of([&] { grpo::read_routes({{"routed_experts", u1}}, RoutingTrace(2, 10, 2), 3); }), "token 2 in MoE layer 1: expert 10 does not exist"));
  CHECK(contains(message({{"routed_experts", u1.substr(0, u1.size() - 4)}}, 3), "cut off"));
  CHECK(contains(message({{"routed_experts", u1.substr(0, u1.size() - 3)}}, 3), "cut off"));
  CHECK(contains(message({{"routed_experts", u1.substr(0, 40)}}, 3), "cut off"));
  CHECK(contains(message({{"routed_experts", "AAAA"}}, 3), "no .npy file"));
  CHECK(contains(message({{"routed_experts", "A*AA"}}, 3), "no base64 digit"));
  CHECK(contains(message({{"routed_experts", 3}}, 3), "three levels"));
  CHECK(contains(message({{"routed_experts", {{{0, 1}, {2}}}}}, 1), "three levels"));
  CHECK(contains(message({{"routed_experts", {{{0, 1}, {2, 2}}}}}, 1), "expert 2 occurs twice"));
  CHECK(contains(message({{"routed_experts", {{{0, 1}, {-1, 2}}}}}, 1), "not all"));
  CHECK(contains(message({{"routed_experts", {{{0, 1}, {99999999999999999, 2}}}}}, 1), "does not exist"));
  CHECK(contains(message({{"text", "a"}}, 1), "moxie rollout --routes"));
  // Every text one byte shorter or with one byte changed is read or refused, never more.
  std::mt19937 random(8);
  for (int i = 0; i < 2000; ++i) {
    std::string text = u1;
    text[random() % text.size()] = static_cast<char>(random() % 128);
    message({{"routed_experts", text}}, 3);
  }
}

TEST_CASE("base64 is that of RFC 4648") {
  const std::pair<std::string, std::string> cases[] = {{"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : cases) {
    CHECK(to_base64(bytes) == text);
    CHECK(from_base64(text) == bytes);
  }
  for (const char* bad : {"Zg=", "Zg", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm9v\n", "Zm 9"}) CHECK_THROWS_AS(from_base64(bad), FormatError);
}
