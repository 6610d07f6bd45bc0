// A token's hidden row, logits, logprobs and experts are the same bits in any company: random batches, chunks, threads 1 to 4,
// shared prefixes, decode and prefill, rewinds. And the tests of that have power: another order of summation gives other bits.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <moxie/generate/batch.hpp>
#include <moxie/grpo/logprobs.hpp>

#include "fidelity.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "shared.hpp"

using namespace moxie;

namespace {

using Ids = std::vector<std::int32_t>;

template <class T>
bool same_bits(const T* a, const T* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || same_bits(a.data(), b.data(), static_cast<std::int64_t>(a.size())));
}

/// A way to run a model: everything that may change bits.
struct Form {
  Activations activations;
  KvType kv;
};
const std::vector<Form> forms = {{Activations::int8, KvType::f16}, {Activations::int8, KvType::bf16}, {Activations::int8, KvType::f32},
                                 {Activations::f32, KvType::f16},  {Activations::f32, KvType::bf16},  {Activations::f32, KvType::f32},
                                 {Activations::int8, KvType::int8}, {Activations::f32, KvType::int8},
                                 {Activations::int8, KvType::int16}, {Activations::f32, KvType::int16}};

/// Float weights are packed in another way for each form of activations.
Model load(const std::string& path, const Form& form) { return Model::load(path, {.threads = 2, .activations = form.activations}); }

/// A sequence alone: one pass, one thread.
struct Alone {
  Ids ids;
  std::vector<float> hidden, logits;  // [T, hidden], [T, vocab]
  std::vector<PositionScore> scores;
  RoutingTrace routes;
};

class Runner {
 public:
  Runner(const Model& model, const Form& form) : model_(model), form_(form) {}

  Alone alone(const Ids& ids) {
    Alone result{ids, {}, {}, {}, {}};
    KvSequence kv(pool());
    const auto n = static_cast<std::int64_t>(ids.size());
    kv.reserve(n);
    std::vector<DecoderRow> rows;
    for (std::int64_t i = 0; i < n; ++i) rows.push_back({ids[static_cast<std::size_t>(i)], &kv, i});
    run(rows, 1, result.hidden, result.logits, result.scores, targets(ids, 0, n), result.routes);
    return result;
  }

  /// Hidden rows, logits, scores and routes of rows.
  void run(std::span<const DecoderRow> rows, int threads, std::vector<float>& hidden, std::vector<float>& logits, std::vector<PositionScore>& scores,
           const Ids& next, RoutingTrace& routes) {
    const Context context{model_.context().kernels, Threads(threads), form_.activations};
    const auto n = static_cast<Index>(rows.size());
    const Linear& output = model_.decoder().output();
    hidden.resize(static_cast<std::size_t>(n * output.inputs()));
    logits.resize(static_cast<std::size_t>(n * output.outputs()));
    scores.resize(rows.size());
    routes = empty_trace(model_);
    routes.resize(n);
    model_.decoder().forward(context, rows, hidden.data(), scratch_.decoder, &routes);
    const bool int8 = output.takes_int8(form_.activations);
    scratch_.prepared.assign(context, hidden.data(), n, output.inputs(), output.inputs(), int8, !int8);
    output.forward(context, scratch_.prepared, logits.data(), output.outputs());
    score_hidden(context, output, hidden.data(), next, 0.7f, 0, scores, logprob_scratch_);
  }

  static Ids targets(const Ids& ids, std::int64_t begin, std::int64_t end) {
    Ids next;
    for (std::int64_t i = begin + 1; i <= end; ++i) next.push_back(i < static_cast<std::int64_t>(ids.size()) ? ids[static_cast<std::size_t>(i)] : -1);
    return next;
  }

  KvPool pool() const { return KvPool(model_.decoder().kv_shape(form_.kv)); }
  const Model& model() const { return model_; }

 private:
  Model model_;
  Form form_;
  ForwardScratch scratch_;
  LogprobScratch logprob_scratch_;
};

std::int64_t common_prefix(const Ids& a, const Ids& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}
std::int64_t between(std::mt19937& random, std::int64_t low, std::int64_t high) { return std::uniform_int_distribution<std::int64_t>(low, high)(random); }

/// Sequences of 1 to `longest` tokens, some of which begin alike.
std::vector<Ids> random_sequences(std::mt19937& random, std::int64_t n, std::int64_t longest, std::int64_t vocab) {
  std::vector<Ids> all;
  for (std::int64_t i = 0; i < n; ++i) {
    Ids ids = test::random_ids(random, between(random, 1, longest), vocab);
    if (i > 0 && between(random, 0, 2) != 0) {
      const Ids& other = all[static_cast<std::size_t>(between(random, 0, i - 1))];
      const auto shared = static_cast<std::ptrdiff_t>(between(random, 1, static_cast<std::int64_t>(other.size())));
      ids.insert(ids.begin(), other.begin(), other.begin() + shared);
    }
    all.push_back(ids);
  }
  return all;
}

/// Runs sequences together in random portions and compares each row with the sequence alone. Returns the number of rows compared.
std::int64_t run_in_company(Runner& runner, const std::vector<Alone>& references, std::mt19937& random) {
  struct Member {
    const Alone* reference;
    KvSequence kv;
    std::int64_t length() const { return static_cast<std::int64_t>(reference->ids.size()); }
  };
  const KvPool pool = runner.pool();
  std::vector<std::unique_ptr<Member>> members;
  std::vector<const Alone*> waiting;
  for (const Alone& reference : references) waiting.push_back(&reference);
  const Index width = runner.model().config().hidden_size, vocab = runner.model().config().vocab_size;
  std::int64_t compared = 0, rewinds = 0;

  while (!waiting.empty() || !members.empty()) {
    // Join: from nothing, or as a fork of a member that begins alike.
    while (!waiting.empty() && (members.empty() || between(random, 0, 1) == 0)) {
      const Alone* next = waiting.back();
      waiting.pop_back();
      KvSequence kv(pool);
      for (const auto& member : members) {
        const std::int64_t shared = std::min(common_prefix(member->reference->ids, next->ids), member->kv.length());
        if (shared == 0 || between(random, 0, 3) == 0) continue;
        const std::int64_t kept = std::min(shared, static_cast<std::int64_t>(next->ids.size()) - 1);
        if (kv.shape().recurrent() && kept != member->kv.length()) continue;  // states cannot go back
        kv = member->kv.fork();
        kv.truncate(kept);
        break;
      }
      members.push_back(std::make_unique<Member>(Member{next, std::move(kv)}));
    }
    // A step: one row (decode), a few, or the rest of some members, in any order.
    std::shuffle(members.begin(), members.end(), random);
    struct Portion {
      Member* member;
      std::int64_t begin, end;
    };
    std::vector<Portion> portions;
    for (const auto& member : members) {
      if (between(random, 0, 4) == 0 && !portions.empty()) continue;
      const std::int64_t begin = member->kv.length(), left = member->length() - begin;
      const std::int64_t kind = between(random, 0, 3);
      const std::int64_t n = kind == 0 ? 1 : kind == 1 ? left : between(random, 1, left);
      member->kv.reserve(begin + n);
      portions.push_back({member.get(), begin, begin + n});
    }
    struct Row {
      Member* member;
      std::int64_t position;
    };
    std::vector<Row> order;
    std::vector<DecoderRow> rows;
    Ids next;
    const bool mixed = between(random, 0, 2) == 0;  // rows of different sequences between each other
    std::vector<Portion> left = portions;
    while (!left.empty()) {
      const auto pick = static_cast<std::size_t>(mixed ? between(random, 0, static_cast<std::int64_t>(left.size()) - 1) : 0);
      Portion& portion = left[pick];
      const Ids& ids = portion.member->reference->ids;
      order.push_back({portion.member, portion.begin});
      rows.push_back({ids[static_cast<std::size_t>(portion.begin)], &portion.member->kv, portion.begin});
      next.push_back(Runner::targets(ids, portion.begin, portion.begin + 1).front());
      if (++portion.begin == portion.end) left.erase(left.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    std::vector<float> hidden, logits;
    std::vector<PositionScore> scores;
    RoutingTrace routes;
    runner.run(rows, static_cast<int>(between(random, 1, 4)), hidden, logits, scores, next, routes);
    for (std::size_t r = 0; r < order.size(); ++r) {
      const Alone& reference = *order[r].member->reference;
      const std::int64_t p = order[r].position;
      const auto row = static_cast<Index>(r);
      bool same = same_bits(hidden.data() + row * width, reference.hidden.data() + p * width, width) &&
                  same_bits(logits.data() + row * vocab, reference.logits.data() + p * vocab, vocab);
      const PositionScore &a = scores[r], &b = reference.scores[static_cast<std::size_t>(p)];
      same = same && same_bits(&a.logprob, &b.logprob, 1) && same_bits(&a.entropy, &b.entropy, 1) && same_bits(&a.lse, &b.lse, 1);
      for (Index l = 0; l < routes.n_layers(); ++l)
        same = same && same_bits(routes.ids(l).data() + row * routes.top_k(), reference.routes.ids(l).data() + p * routes.top_k(), routes.top_k()) &&
               same_bits(routes.weights(l).data() + row * routes.top_k(), reference.routes.weights(l).data() + p * routes.top_k(), routes.top_k());
      CAPTURE(p);
      REQUIRE(same);
    }
    compared += static_cast<std::int64_t>(order.size());
    for (const Portion& portion : portions) portion.member->kv.advance(portion.end - portion.begin);
    // Rewinds; members that are done leave.
    for (auto& member : members)
      if (rewinds < 4 && between(random, 0, 5) == 0) {
        member->kv.truncate(member->kv.shape().recurrent() ? 0 : between(random, 0, member->kv.length()));
        ++rewinds;
      }
    std::erase_if(members, [](const auto& member) { return member->kv.length() == member->length(); });
  }
  return compared;
}

struct Tally {
  std::int64_t cases = 0, rows = 0;
};

/// `n` random cases of a model in a form; the references are made once.
void check_in_company(const Model& model, const Form& form, std::int64_t n, std::int64_t longest, unsigned seed, Tally& tally) {
  std::mt19937 random(seed);
  Runner runner(model, form);
  std::vector<Alone> references;
  for (const Ids& ids : random_sequences(random, 4, longest, model.config().vocab_size)) references.push_back(runner.alone(ids));
  for (std::int64_t i = 0; i < n; ++i, ++tally.cases) {
    CAPTURE(i);
    tally.rows += run_in_company(runner, references, random);
  }
}

void check_all_types(const std::vector<ModelConfig (*)(Dtype)>& configs) {
  const test::TemporaryFolder folder;
  Tally tally;
  unsigned seed = 1;
  std::vector<Dtype> every_type = test::weight_types;
  every_type.insert(every_type.end(), test::read_only_types.begin(), test::read_only_types.end());
  for (std::size_t t = 0; t < every_type.size(); ++t) {
    const Dtype type = every_type[t];
    const ModelConfig config = configs[t % configs.size()](type);
    const std::string path = test::write_random_model(folder.file("model.gguf"), config, type, ++seed);
    for (const Form& form : forms) {
      const Model model = load(path, form);
      CAPTURE(dtype_info(type).name);
      CAPTURE(config.family);
      CAPTURE(static_cast<int>(form.activations));
      CAPTURE(static_cast<int>(form.kv));
      check_in_company(model, form, 3, 48, ++seed, tally);
    }
    std::filesystem::remove(path);
  }
  MESSAGE(tally.cases << " random cases, " << tally.rows << " rows compared");
}

}  // namespace

TEST_CASE("grouped-query attention: every weight type, activation form and KV type gives the same bits in any company") {
  check_all_types({test::qwen3_moe_config, test::qwen2_moe_config, test::mixtral_config, test::olmoe_config, test::gpt_oss_config, test::glm4_moe_config, test::granitemoe_config, test::hunyuan_config, test::afmoe_config});
}

TEST_CASE("recurrent layers: every weight type, activation form and KV type gives the same bits in any company") {
  check_all_types({test::qwen3_next_config, test::qwen3_5_moe_config, test::lfm2_moe_config, test::granitemoehybrid_config, test::nemotron_h_config, test::nemotron_h_latent_config});
}

TEST_CASE("latent attention: every weight type, activation form and KV type gives the same bits in any company") {
  check_all_types({test::deepseek_v3_config, test::deepseek_v2_config});
}

TEST_CASE("long sequences over many KV pages, with and without a window, give the same bits in any company") {
  const test::TemporaryFolder folder;
  Tally tally;
  unsigned seed = 100;
  for (ModelConfig (*config)(Dtype) : {test::qwen3_moe_config, test::mixtral_config, test::gpt_oss_config, test::deepseek_v3_config, test::qwen3_next_config, test::lfm2_moe_config, test::granitemoehybrid_config, test::nemotron_h_config, test::nemotron_h_latent_config, test::afmoe_config}) {
    const std::string path = test::write_random_model(folder.file("model.gguf"), config(Dtype::Q4_0), Dtype::Q4_0);
    for (const Form& form : {forms[0], forms[5]}) check_in_company(load(path, form), form, 4, 220, ++seed, tally);
  }
  const std::string embedded = test::embedded_model();
  for (const Form& form : {forms[0], forms[5]}) check_in_company(load(embedded, form), form, 4, 120, ++seed, tally);
  MESSAGE(tally.cases << " random cases, " << tally.rows << " rows compared");
}

TEST_CASE("FP8 weights with block scales, and gpt-oss's MXFP4, give the same bits in any company") {
  for (const char* model : {"models/deepseek_v3_fp8", "models/gpt_oss_mxfp4"}) {
    const auto folder = test::shared_path(model);
    if (!folder) return;
    Tally tally;
    for (const Form& form : {forms[0], forms[5]}) check_in_company(load(*folder, form), form, 3, 60, 7, tally);
  }
}

TEST_CASE("scores are the same bits for every batch, chunk, number of threads and KV budget") {
  const test::TemporaryFolder folder;
  std::mt19937 random(5);
  std::vector<std::string> paths = {test::embedded_model()};
  paths.push_back(test::write_random_model(folder.file("gqa.gguf"), test::qwen2_moe_config(Dtype::Q5_K), Dtype::Q5_K));
  paths.push_back(test::write_random_model(folder.file("mla.gguf"), test::deepseek_v2_config(Dtype::BF16), Dtype::BF16));
  paths.push_back(test::write_random_model(folder.file("sinks.gguf"), test::gpt_oss_config(Dtype::Q8_0), Dtype::Q8_0));
  paths.push_back(test::write_random_model(folder.file("delta.gguf"), test::qwen3_next_config(Dtype::Q4_0), Dtype::Q4_0));
  for (const std::string& path : paths) {
    const Model plain = Model::load(path, {.threads = 1});
    const std::vector<Ids> sequences = random_sequences(random, 7, 90, plain.config().vocab_size);
    std::vector<grpo::SequenceLogprobs> expected;
    for (const Ids& ids : sequences) expected.push_back(grpo::logprobs(plain, std::vector<Ids>{ids}, {.temperature = 0.8f, .top_n = 3, .record_routes = true}).front());
    for (int i = 0; i < 12; ++i) {
      const LoadOptions load{.threads = static_cast<int>(between(random, 1, 4)), .chunk = between(random, 1, 3) == 1 ? between(random, 1, 8) : between(random, 9, 300)};
      const Model model = Model::load(path, load);
      const KvPool sizes(model.kv_shape());
      const std::size_t page = sizes.page_bytes() + sizes.state_bytes();
      const grpo::LogprobOptions options{.temperature = 0.8f, .top_n = 3, .batch = between(random, 1, 9), .record_routes = true,
                                         .kv_budget_bytes = i % 3 == 0 ? page * static_cast<std::size_t>(between(random, 3, 6)) : 0};
      CAPTURE(load.threads);
      CAPTURE(load.chunk);
      CAPTURE(options.batch);
      CAPTURE(options.kv_budget_bytes);
      const auto got = grpo::logprobs(model, sequences, options);
      for (std::size_t s = 0; s < sequences.size(); ++s) {
        CHECK(same_bits(got[s].logprobs, expected[s].logprobs));
        CHECK(same_bits(got[s].entropy, expected[s].entropy));
        CHECK(same_bits(got[s].lse, expected[s].lse));
        for (Index l = 0; l < got[s].routes.n_layers(); ++l) {
          CHECK(got[s].routes.ids(l) == expected[s].routes.ids(l));
          CHECK(got[s].routes.weights(l) == expected[s].routes.weights(l));
        }
        for (std::size_t t = 0; t < got[s].top.size(); ++t)
          CHECK(std::equal(got[s].top[t].begin(), got[s].top[t].end(), expected[s].top[t].begin(), expected[s].top[t].end(),
                           [](const TokenLogprob& a, const TokenLogprob& b) { return a.id == b.id && a.logprob == b.logprob; }));
      }
    }
  }
}

TEST_CASE("batches that sequences join and leave at random draw the same tokens and logprobs as each sequence alone") {
  const test::TemporaryFolder folder;
  std::mt19937 random(9);
  std::vector<std::string> paths = {test::embedded_model()};
  paths.push_back(test::write_random_model(folder.file("gqa.gguf"), test::qwen3_moe_config(Dtype::Q6_K), Dtype::Q6_K));
  paths.push_back(test::write_random_model(folder.file("delta.gguf"), test::qwen3_5_moe_config(Dtype::Q8_0), Dtype::Q8_0));
  paths.push_back(test::write_random_model(folder.file("conv.gguf"), test::lfm2_moe_config(Dtype::Q4_1), Dtype::Q4_1));
  paths.push_back(test::write_random_model(folder.file("mamba.gguf"), test::granitemoehybrid_config(Dtype::Q5_0), Dtype::Q5_0));
  paths.push_back(test::write_random_model(folder.file("parts.gguf"), test::nemotron_h_config(Dtype::Q4_K), Dtype::Q4_K));
  for (const std::string& path : paths) {
    const Model plain = Model::load(path, {.threads = 1});
    for (int round = 0; round < 6; ++round) {
      CAPTURE(path);
      CAPTURE(round);
      const Model model = Model::load(path, {.threads = static_cast<int>(between(random, 1, 4)), .chunk = between(random, 2, 70)});
      const GenerateOptions options{.temperature = 0.9f, .seed = 77, .max_tokens = 24, .ignore_eos = round % 2 == 0};
      const std::vector<Ids> prompts = random_sequences(random, 4, 70, model.config().vocab_size);
      Batch batch(model, {.record_routes = true});
      std::map<Batch::Id, std::uint64_t> streams;  // of sequences to look at, finished or not
      std::uint64_t stream = 0;
      std::size_t started = 0;
      std::vector<std::pair<Batch::Id, std::uint64_t>> forked;
      while (started < prompts.size() || batch.active() > 0) {
        if (started < prompts.size() && (batch.active() == 0 || between(random, 0, 3) == 0)) {
          const auto ids = batch.add_group(prompts[started++], between(random, 1, 3), options, stream);
          for (const Batch::Id id : ids) streams[id] = stream++;
        }
        batch.step();
        if (between(random, 0, 9) == 0) {  // one leaves
          auto it = streams.begin();
          std::advance(it, between(random, 0, static_cast<std::int64_t>(streams.size()) - 1));
          batch.remove(it->first);
          streams.erase(it);
        }
        if (streams.empty()) continue;
      }
      for (const auto& [id, number] : streams) {
        const Batch::Sequence& got = batch.at(id);
        Session session(plain);
        session.feed(got.prompt());
        Session alone = session.fork(number);
        Generation generation = alone.generate(options);
        while (generation.step()) {}
        REQUIRE(generation.ids() == Ids(got.output().begin(), got.output().end()));
        CHECK(generation.finish_reason() == got.finish);
        const auto scored = grpo::logprobs(plain, std::vector<Ids>{got.ids}, {.temperature = options.temperature, .record_routes = true}).front();
        for (std::size_t i = 0; i < got.samples.size(); ++i) {
          const Sample &a = got.samples[i], &b = generation.samples()[i];
          CHECK(same_bits(&a.logprob, &b.logprob, 1));
          CHECK(same_bits(&a.sampler_logprob, &b.sampler_logprob, 1));
          CHECK(same_bits(&a.entropy, &b.entropy, 1));
          CHECK(same_bits(&a.logprob, &scored.logprobs[got.prompt_length - 1 + i], 1));
          CHECK(same_bits(&a.entropy, &scored.entropy[got.prompt_length - 1 + i], 1));
        }
        REQUIRE(got.routes.tokens() == static_cast<Index>(got.ids.size()) - 1);
        for (Index l = 0; l < got.routes.n_layers(); ++l)
          CHECK(same_bits(got.routes.ids(l).data(), scored.routes.ids(l).data(), got.routes.tokens() * got.routes.top_k()));
      }
    }
  }
}

// What the tests above would see if one kernel summed in another order: the same products, added in another order, differ in some bits.

TEST_CASE("a matrix product whose K is cut in two, or whose blocks are in another order, differs in some bits for every weight type") {
  const Index outputs = 96, rows = 9, k = 1024, half = k / 2;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const RowMatrix w = RowMatrix::NullaryExpr(outputs, k, [&] { return normal(random); });
  const RowMatrix x = RowMatrix::NullaryExpr(rows, k, [&] { return normal(random); });
  for (const Dtype type : test::weight_types) {
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      CAPTURE(dtype_info(type).name);
      CAPTURE(static_cast<int>(activations));
      const Context context{&kernels::native_table(), Threads(1), activations};
      const auto product = [&](const RowMatrix& weight, const RowMatrix& rows_of) {
        const Linear linear = Linear::from_rows(context, type, weight);
        PreparedRows prepared;
        const bool int8 = linear.takes_int8(activations);
        prepared.assign(context, rows_of.data(), rows, weight.cols(), weight.cols(), int8, !int8);
        RowMatrix y(rows, outputs);
        linear.forward(context, prepared, y.data(), outputs);
        return y;
      };
      const auto halves = [&](const RowMatrix& m) {
        RowMatrix swapped(m.rows(), k);
        swapped << m.rightCols(half), m.leftCols(half);
        return swapped;
      };
      const RowMatrix y = product(w, x);
      const RowMatrix again = product(w, x);
      const RowMatrix in_two = product(w.leftCols(half), x.leftCols(half)) + product(w.rightCols(half), x.rightCols(half));
      const RowMatrix swapped = product(halves(w), halves(x));
      CHECK(y == again);
      CHECK((y - in_two).cwiseAbs().maxCoeff() < 1e-3f * y.cwiseAbs().maxCoeff());
      CHECK((y - swapped).cwiseAbs().maxCoeff() < 1e-3f * y.cwiseAbs().maxCoeff());
      CHECK((y.array() != in_two.array()).count() > y.size() / 10);
      CHECK((y.array() != swapped.array()).count() > y.size() / 10);
    }
  }
}

TEST_CASE("attention over the same keys in another order differs in some bits") {
  const Context context{&kernels::native_table(), Threads(1), Activations::f32};
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const std::int64_t positions = 200, d = 48;
  for (const bool latent : {false, true}) {
    AttentionConfig config;
    config.n_heads = config.n_kv_heads = 1;
    config.head_dim = d;
    config.scale = 0.15f;
    if (latent) {
      config.kind = AttentionKind::mla;
      config.kv_lora_rank = d - 16;
      config.qk_rope_head_dim = 16;
    }
    const KvPool pool(KvShape{1, 1, d, latent ? 0 : d, KvType::f32});
    const RowMatrix k = RowMatrix::NullaryExpr(positions, d, [&] { return normal(random); });
    const RowMatrix v = RowMatrix::NullaryExpr(positions, d, [&] { return normal(random); });
    const Vector q = Vector::NullaryExpr(d, [&] { return normal(random); });
    const auto attend_over = [&](const auto& order) {
      KvSequence kv(pool);
      kv.reserve(positions);
      for (std::int64_t p = 0; p < positions; ++p) kv.write(0, p, k.row(order(p)).data(), v.row(order(p)).data());
      const std::vector<AttendRow> rows = {{&kv, positions - 1}};
      Vector out = Vector::Zero(d);
      AttentionScratch scratch;
      if (latent) attend_mla(context, config, 0, q.data(), d, rows, out.data(), d, scratch);
      else attend_gqa(context, config, 0, q.data(), d, rows, out.data(), d, scratch);
      return out;
    };
    const Vector straight = attend_over([](std::int64_t p) { return p; });
    const Vector reversed = attend_over([&](std::int64_t p) { return positions - 1 - p; });
    const Vector pages = attend_over([](std::int64_t p) { return p < 64 ? p + 64 : p < 128 ? p - 64 : p; });  // two pages swapped
    CHECK((straight - reversed).cwiseAbs().maxCoeff() < 1e-5f);
    CHECK((straight.array() != reversed.array()).any());
    CHECK((straight.array() != pages.array()).any());
  }
}

TEST_CASE("experts combined in another order of their slots, and a log-sum-exp over swapped tiles, differ in some bits") {
  const test::TemporaryFolder folder;
  const Model model = Model::load(test::write_random_model(folder.file("model.gguf"), test::deepseek_v3_config(Dtype::F32), Dtype::F32), {.threads = 1});
  std::mt19937 random(6);
  const Ids ids = test::random_ids(random, 40, model.config().vocab_size);
  const test::ForwardResult plain = test::run(model, ids);
  RoutingTrace trace = plain.routes;
  CHECK(same_bits(test::run(model, ids, &trace).hidden, plain.hidden));
  for (Index l = 0; l < trace.n_layers(); ++l)
    for (Index t = 0; t < trace.tokens(); ++t) std::swap(trace.ids(l)(t, 0), trace.ids(l)(t, 2));
  const test::ForwardResult swapped = test::run(model, ids, &trace);
  CHECK(test::relative_difference(swapped.hidden, plain.hidden) < 1e-4);
  CHECK_FALSE(same_bits(swapped.hidden, plain.hidden));

  const kernels::Table& kernels = *model.context().kernels;
  const std::int64_t vocab = 64 * vocabulary_tile;
  int different = 0;
  for (int i = 0; i < 200; ++i) {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    std::vector<float> z(static_cast<std::size_t>(vocab));
    for (float& value : z) value = normal(random);
    std::vector<kernels::SoftmaxPartial> partials(64);
    softmax_partials(kernels, z.data(), vocab, 1.0f, partials.data());
    const LogSumExp forwards = combine_partials(partials);
    std::reverse(partials.begin(), partials.end());
    const LogSumExp backwards = combine_partials(partials);
    CHECK(forwards.lse == doctest::Approx(backwards.lse).epsilon(1e-12));
    different += forwards.lse != backwards.lse || forwards.entropy != backwards.entropy;
  }
  CHECK(different > 20);
}
