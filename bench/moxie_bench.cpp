// Speed of a model beside what the machine allows.
//
//   moxie_bench MODEL [--pp N,..] [--tg N] [--batch N,..] [--score N,..] [--depth N] [--fork] [--threads N] [--arch NAME]
//               [--chunk N] [--kv TYPE] [--activations int8|f32] [--repeat N] [--json | --markdown]
//
//   --pp 512      prefill of prompts of these lengths; 0: none
//   --tg 64       steps of decoding; 0: none
//   --batch 1,4,8,16,32   sequences that are decoded at once; one alone is always measured
//   --score 512   tokens whose log-probabilities over the whole vocabulary are computed, in sequences of at most 512; 0: none
//   --depth 0     tokens that are in the cache before prefill and decoding begin
//   --chunk 512   rows of a forward pass at most
//   --fork        sequences that are decoded at once are forks of one: they share these tokens, whose bytes count once
//
// A row is the fastest of `repeat` runs, and its share that run's: what the machine would need (model_cost.hpp), by limits
// measured right before and after the run, over what it took. The time split says in which stages the threads were, in percent of
// all threads' time (core/profile.hpp); "other" is everything that is no matrix product: embedding, norms, RoPE, quantization of
// activations, activation functions, choice of experts, combining, log-sum-exp.
//
// Peak resident memory is that of loading and running, without the memory that measuring takes.

#include <algorithm>
#include <array>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/moxie.hpp>

#include "limits.hpp"
#include "model_cost.hpp"
#include "system.hpp"

namespace {

using moxie::Index;
using moxie::Stage;

enum class Print { text, json, markdown };

struct Options {
  std::string model, arch;
  moxie::KvType kv = moxie::KvType::int16;
  std::vector<std::int64_t> prefill{512}, batches{1, 4, 8, 16, 32}, score{512};
  std::int64_t decode = 64, depth = 0, chunk = 512;
  int threads = 0, repeat = 3;
  bool fork = false;
  moxie::Activations activations = moxie::Activations::int8;
  Print print = Print::text;
};

inline constexpr auto n_stages = static_cast<std::size_t>(Stage::count);

struct Row {
  std::string work;
  std::int64_t n, batch;
  double tokens_per_s, share, gops, gbs;
  bench::Limits limits;
  std::array<double, n_stages> time{};  ///< share of all threads' time in each stage
  std::vector<double> idle;             ///< of each thread
};

class Bench {
 public:
  Bench(const moxie::Model& model, const Options& options, const bench::LimitMeter& meter, moxie::Profile& profile)
      : model_(model), options_(options), meter_(meter), profile_(profile), cost_(options.model, model.context()) {}

  template <class Done>
  void run(Done&& done) {
    for (const std::int64_t n : options_.prefill) done(prefill(n));
    if (options_.decode > 0) {
      done(decode(1));
      for (const std::int64_t batch : options_.batches)
        if (batch > 1) done(decode(batch));
    }
    for (const std::int64_t n : options_.score) done(score(n));
  }

 private:
  std::vector<std::int32_t> ids(std::int64_t n, std::uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<std::int32_t> result(static_cast<std::size_t>(n));
    for (auto& id : result) id = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(model_.config().vocab_size));
    return result;
  }

  /// Runs `pass` repeatedly, `work` being what it does.
  template <class Pass>
  Row measure(const char* name, std::int64_t n, std::int64_t batch, const bench::Work& work, Pass&& pass) {
    Row row{name, n, batch, 0, 0, 0, 0, {}, {}, {}};
    bench::Limits before = meter_.measure();
    for (int i = 0; i < options_.repeat; ++i) {
      const double start = bench::seconds();
      profile_.start();
      pass();
      profile_.stop();
      const double taken = bench::seconds() - start;
      bench::Limits around = meter_.measure();
      std::swap(before, around);
      around.take_better(before);
      if (work.tokens / taken <= row.tokens_per_s) continue;
      row.tokens_per_s = work.tokens / taken;
      // Weights that stay in the caches are read faster than the stream: at most 1.
      row.share = std::min(1.0, cost_.seconds_at_limit(work, around) / taken);
      row.gops = work.operations / taken * 1e-9;
      row.gbs = work.bytes / taken * 1e-9;
      row.limits = around;
      row.time = {};
      row.idle.clear();
      for (int t = 0; t < profile_.threads(); ++t) {
        for (std::size_t s = 0; s < n_stages; ++s)
          row.time[s] += profile_.seconds(t, static_cast<Stage>(s)) / (taken * profile_.threads());
        row.idle.push_back(profile_.seconds(t, Stage::idle) / taken);
      }
    }
    return row;
  }

  /// A pass over rows of some sequences; routes go to `routes` when asked for.
  void forward(std::vector<moxie::DecoderRow>& rows, moxie::RoutingTrace* routes) {
    scratch_.hidden.resize(rows.size() * static_cast<std::size_t>(model_.config().hidden_size));
    if (routes) routes->resize(static_cast<Index>(rows.size()));
    model_.decoder().forward(model_.context(), rows, scratch_.hidden.data(), scratch_.decoder, routes);
  }

  /// A sequence with `depth` positions of random keys and values: only their number matters for the speed.
  moxie::KvSequence sequence(const moxie::KvPool& pool) const {
    moxie::KvSequence kv(pool);
    kv.reserve(options_.depth);
    const moxie::KvShape& shape = kv.shape();
    std::mt19937 random(4);
    std::vector<float> values(static_cast<std::size_t>(shape.n_heads * (shape.k_dim + shape.v_dim)) + 64);
    for (float& x : values) x = static_cast<float>(random()) * 0x1p-31f - 1.0f;
    model_.context().threads.for_each(
        options_.depth,
        [&](std::int64_t position, int) {
          const float* k = values.data() + position % 64;
          for (std::int64_t layer = 0; layer < shape.n_layers; ++layer)
            kv.write(layer, position, k, k + shape.n_heads * shape.k_dim);
        },
        16);
    kv.advance(options_.depth);
    return kv;
  }
  double kv_bytes(const moxie::KvShape& shape, std::int64_t position) const {
    return bench::kv_bytes(model_.config(), shape, position);
  }
  /// Bytes of a sequence's recurrent states, read and written by each pass.
  static double state_bytes(const moxie::KvShape& shape) { return 2.0 * static_cast<double>(shape.state_bytes()); }

  Row prefill(std::int64_t n) {
    const auto tokens = ids(n, 1);
    moxie::KvSequence start = sequence(moxie::KvPool(model_.kv_shape()));
    const auto pass = [&](bench::Work* work) {
      moxie::KvSequence kv = start.fork();
      kv.reserve(options_.depth + n);
      std::vector<moxie::DecoderRow> rows;
      for (std::int64_t first = 0; first < n; first += model_.options().chunk) {
        const std::int64_t end = std::min(n, first + model_.options().chunk);
        rows.clear();
        for (std::int64_t i = first; i < end; ++i) rows.push_back({tokens[static_cast<std::size_t>(i)], &kv, options_.depth + i});
        moxie::RoutingTrace routes = moxie::empty_trace(model_);
        forward(rows, work ? &routes : nullptr);
        kv.advance(end - first);
        if (work)
          cost_.add_pass(*work, static_cast<double>(end - first), end == n ? 1 : 0, routes,
                         kv_bytes(kv.shape(), options_.depth + end - 1) + state_bytes(kv.shape()));
      }
      const Index last = static_cast<Index>(rows.size()) - 1;
      moxie::compute_logits(model_, scratch_.hidden.data() + last * model_.config().hidden_size, 1, scratch_);
    };
    bench::Work work;
    work.tokens = static_cast<double>(n);
    pass(&work);
    return measure("prefill", n, 1, work, [&] { pass(nullptr); });
  }

  Row decode(std::int64_t batch) {
    const moxie::KvPool pool(model_.kv_shape());
    std::vector<moxie::KvSequence> starts, sequences;
    for (std::int64_t b = 0; b < batch; ++b) starts.push_back(options_.fork && b > 0 ? starts.front().fork() : sequence(pool));
    const double shared = options_.fork && options_.depth > 0 ? kv_bytes(pool.shape(), options_.depth - 1) : 0.0;
    const auto tokens = ids(batch * options_.decode, 2);
    const auto pass = [&](bench::Work* work) {
      sequences.clear();
      for (auto& start : starts) sequences.push_back(start.fork());
      std::vector<moxie::DecoderRow> rows;
      for (std::int64_t step = 0; step < options_.decode; ++step) {
        const std::int64_t position = options_.depth + step;
        rows.clear();
        for (auto& s : sequences) {
          s.reserve(position + 1);
          rows.push_back({tokens[static_cast<std::size_t>(step * batch) + rows.size()], &s, position});
        }
        moxie::RoutingTrace routes = moxie::empty_trace(model_);
        forward(rows, work ? &routes : nullptr);
        moxie::compute_logits(model_, scratch_.hidden.data(), batch, scratch_);
        for (auto& s : sequences) s.advance(1);
        const auto n = static_cast<double>(batch);
        if (work)
          cost_.add_pass(*work, n, n, routes,
                         n * (kv_bytes(pool.shape(), position) + state_bytes(pool.shape())) - (n - 1) * shared);
      }
    };
    bench::Work work;
    work.tokens = static_cast<double>(batch * options_.decode);
    pass(&work);
    return measure("decode", options_.decode, batch, work, [&] { pass(nullptr); });
  }

  Row score(std::int64_t n) {
    std::vector<std::vector<std::int32_t>> sequences;
    for (std::int64_t first = 0; first < n; first += 512)
      sequences.push_back(ids(std::min<std::int64_t>(512, n - first), static_cast<std::uint32_t>(3 + first)));
    moxie::RoutingTrace routes = moxie::empty_trace(model_);
    for (const auto& counted : moxie::grpo::logprobs(model_, sequences, {.record_routes = true}))
      routes.append(counted.routes, 0, counted.routes.tokens());
    bench::Work work;
    work.tokens = static_cast<double>(n);
    cost_.add_pass(work, work.tokens, work.tokens, routes, 0.0);
    return measure("score", n, static_cast<std::int64_t>(sequences.size()), work,
                   [&] { moxie::grpo::logprobs(model_, sequences); });
  }

  const moxie::Model& model_;
  const Options& options_;
  const bench::LimitMeter& meter_;
  moxie::Profile& profile_;
  bench::ModelCost cost_;
  moxie::ForwardScratch scratch_;
};

std::vector<std::int64_t> numbers(const std::string& option, const std::string& text) {
  std::vector<std::int64_t> list;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t used = 0;
    list.push_back(std::stoll(text.substr(at), &used));
    at += used;
    if (list.back() < 0 || (at < text.size() && text[at] != ','))
      throw std::invalid_argument(option + " needs numbers that are not negative, separated by commas");
    ++at;
  }
  std::erase(list, 0);
  return list;
}

template <class T>
T choice(const std::string& option, const std::string& text, const std::vector<std::pair<const char*, T>>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw std::invalid_argument(option + " must be one of " + names + ", got '" + text + "'");
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] {
      if (i + 1 >= argc) throw std::invalid_argument(arg + " needs a value");
      return std::string(argv[++i]);
    };
    const auto number = [&](std::int64_t least) {
      const std::string text = value();
      std::size_t used = 0;
      const std::int64_t n = std::stoll(text, &used);
      if (used != text.size() || n < least)
        throw std::invalid_argument(arg + " needs a number of at least " + std::to_string(least) + ", got '" + text + "'");
      return n;
    };
    try {
      if (arg == "--json")
        options.print = Print::json;
      else if (arg == "--markdown")
        options.print = Print::markdown;
      else if (arg == "--pp")
        options.prefill = numbers(arg, value());
      else if (arg == "--tg")
        options.decode = number(0);
      else if (arg == "--batch")
        options.batches = numbers(arg, value());
      else if (arg == "--score")
        options.score = numbers(arg, value());
      else if (arg == "--depth")
        options.depth = number(0);
      else if (arg == "--fork")
        options.fork = true;
      else if (arg == "--threads")
        options.threads = static_cast<int>(number(0));
      else if (arg == "--chunk")
        options.chunk = number(1);
      else if (arg == "--repeat")
        options.repeat = static_cast<int>(number(1));
      else if (arg == "--arch")
        options.arch = value();
      else if (arg == "--kv")
        options.kv = moxie::kv_type_of(value());
      else if (arg == "--activations")
        options.activations =
            choice<moxie::Activations>(arg, value(), {{"int8", moxie::Activations::int8}, {"f32", moxie::Activations::f32}});
      else if (arg.starts_with("-") || !options.model.empty())
        throw std::invalid_argument("unknown argument " + arg);
      else
        options.model = arg;
    } catch (const std::out_of_range&) {
      throw std::invalid_argument(arg + ": the number is too large");
    } catch (const std::invalid_argument& error) {
      const std::string text = error.what();
      throw std::invalid_argument(text.starts_with("sto") ? arg + " needs numbers" : text);
    }
  }
  if (options.model.empty()) throw std::invalid_argument("no model");
  return options;
}

const moxie::kernels::Table& kernels(const std::string& arch) {
  if (arch.empty()) return moxie::kernels::native_table();
  if (const auto* table = moxie::kernels::find_table(arch.c_str())) return *table;
  throw std::invalid_argument("--arch " + arch + ": this program or this CPU does not have it; the best one here is " +
                              moxie::kernels::native_table().arch);
}

void print_text(const Row& r) {
  std::printf("%-8s n %5lld  batch %3lld  %9.1f tokens/s  %5.1f%% of the limit  %7.0f GOP/s  %6.1f GB/s of %.1f\n",
              r.work.c_str(), static_cast<long long>(r.n), static_cast<long long>(r.batch), r.tokens_per_s, 100.0 * r.share,
              r.gops, r.gbs, r.limits.stream());
  std::printf("        ");
  for (std::size_t s = 0; s < n_stages; ++s)
    std::printf(" %s %.1f%%", moxie::stage_name(static_cast<Stage>(s)), 100.0 * r.time[s]);
  if (r.idle.size() > 1) {
    std::printf(" (by thread");
    for (const double share : r.idle) std::printf(" %.1f%%", 100.0 * share);
    std::printf(")");
  }
  std::printf("\n");
}

void print_markdown(const Row& r) {
  std::printf("| %s %lld%s | %.0f | %.0f%% | %.0f | %.1f of %.1f |", r.work.c_str(), static_cast<long long>(r.n),
              r.batch > 1 ? (", " + std::to_string(r.batch) + " sequences").c_str() : "", r.tokens_per_s, 100.0 * r.share, r.gops,
              r.gbs, r.limits.stream());
  for (std::size_t s = 0; s < n_stages; ++s) std::printf(" %.1f |", 100.0 * r.time[s]);
  std::printf("\n");
}

nlohmann::ordered_json to_json(const Row& r) {
  nlohmann::ordered_json time = nlohmann::ordered_json::object();
  for (std::size_t s = 0; s < n_stages; ++s) time[moxie::stage_name(static_cast<Stage>(s))] = r.time[s];
  return {{"work", r.work},
          {"n", r.n},
          {"batch", r.batch},
          {"tokens_per_s", r.tokens_per_s},
          {"share", r.share},
          {"gops", r.gops},
          {"gbs", r.gbs},
          {"stream_gbs", r.limits.stream()},
          {"peak_gops", r.limits.int8_peak()},
          {"time", time},
          {"idle", r.idle}};
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  const moxie::kernels::Table* table = nullptr;
  try {
    options = parse(argc, argv);
    table = &kernels(options.arch);
  } catch (const std::exception& error) {
    std::fprintf(
        stderr,
        "%s\nusage: moxie_bench MODEL [--pp N,..] [--tg N] [--batch N,..] [--score N,..] [--depth N] [--fork] [--threads N]\n"
        "       [--arch generic|avx2|avx512|..] [--kv int16|f16|bf16|f32|int8] [--activations int8|f32] [--chunk N] [--repeat N]\n"
        "       [--json | --markdown]\n",
        error.what());
    return 2;
  }
  try {
    const moxie::Threads threads(options.threads);
    const bench::LimitMeter meter(threads, table->arch);
    bench::Limits limits = meter.measure(5);
    bench::reset_peak_resident();
    moxie::Profile profile;
    const moxie::Model model = moxie::Model::load(options.model, {.threads = options.threads,
                                                                  .activations = options.activations,
                                                                  .kv = options.kv,
                                                                  .chunk = options.chunk,
                                                                  .profile = &profile,
                                                                  .kernels = table});
    if (options.print != Print::json) {
      std::printf("%s, kernels %s, %d threads; %s, %.2f bits per weight, loaded in %.2f s\n", bench::cpu_name().c_str(),
                  table->arch, threads.count(), model.config().family.c_str(), model.info().bits_per_weight,
                  model.info().load_seconds);
      std::printf(
          "int8 peak %.0f (4-bit) %.0f (5-bit) %.0f (6-bit) %.0f (8-bit) GOP/s, bf16 %.0f, f32 %.0f; stream read %.1f GB/s from "
          "pages of 4 KB, %.1f from 2 MB\n\n",
          limits.peak[4], limits.peak[5], limits.peak[6], limits.peak[8], limits.peak[bench::bf16_weights],
          limits.peak[bench::f32_weights], limits.stream_small, limits.stream_large);
    }
    if (options.print == Print::markdown) {
      std::printf("| work | tokens/s | share of the limit | GOP/s | GB/s |");
      for (std::size_t s = 0; s < n_stages; ++s) std::printf(" %s %% |", moxie::stage_name(static_cast<Stage>(s)));
      std::printf("\n|---|---|---|---|---|");
      for (std::size_t s = 0; s < n_stages; ++s) std::printf("---|");
      std::printf("\n");
    }
    std::vector<Row> rows;
    Bench(model, options, meter, profile).run([&](const Row& row) {
      rows.push_back(row);
      limits.take_better(row.limits);
      if (options.print == Print::text) print_text(row);
      if (options.print == Print::markdown) print_markdown(row);
      std::fflush(stdout);
    });
    const double rss = bench::peak_resident_mb() - meter.resident_mb();
    if (options.print != Print::json) {
      std::printf("\npeak resident memory %.0f MB\n", rss);
      return 0;
    }
    nlohmann::ordered_json out{{"cpu", bench::cpu_name()},
                               {"arch", table->arch},
                               {"threads", threads.count()},
                               {"peak_gops", limits.int8_peak()},
                               {"peak_gops_by_bits", nlohmann::ordered_json::object()},
                               {"stream_gbs", limits.stream()},
                               {"load_s", model.info().load_seconds},
                               {"peak_rss_mb", rss},
                               {"depth", options.depth},
                               {"fork", options.fork},
                               {"kv", moxie::name_of(options.kv)}};
    for (const auto& [bits, gops] : limits.peak) out["peak_gops_by_bits"][std::to_string(bits)] = gops;
    out["rows"] = nlohmann::ordered_json::array();
    for (const Row& r : rows) out["rows"].push_back(to_json(r));
    std::printf("%s\n", out.dump().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
