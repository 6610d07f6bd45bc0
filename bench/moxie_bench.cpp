// Speed of a model beside what the machine allows.
//
//   moxie_bench MODEL [--pp 512] [--tg 64] [--batch 4,16] [--score 512] [--threads N] [--activations int8|f32] [--repeat 3]
//   [--json]
//
// Work: prefill of a prompt, decoding one sequence, decoding several at once, scoring (log-probabilities of given tokens over the
// whole vocabulary). The limit of a work is max(int8 operations / peak, bytes that must be read / stream read): the operations
// are those of the weights that a token goes through, by weight width; the bytes are the file's bytes of every matrix that a pass
// reads, counted from the experts that were really routed to, and the KV pages. Both limits are measured in the same run. Each
// number is the best of `repeat` runs.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <moxie/moxie.hpp>

#include "limits.hpp"

namespace {

using moxie::Index;

struct Options {
  std::string model;
  std::vector<std::int64_t> prefill{512}, batches{4, 16}, score{512};
  std::int64_t decode = 64;
  int threads = 0, repeat = 3;
  moxie::Activations activations = moxie::Activations::int8;
  bool json = false;
};

/// Operations by code bits, and bytes, of some matrices.
struct Cost {
  std::map<int, double> operations;  // multiply-adds count 2; key: code bits, 0 for float weights
  double bytes = 0.0;

  void add(const moxie::TensorView& tensor, double times = 1.0) {
    operations[bench::code_bits(tensor.dtype)] += times * 2.0 * static_cast<double>(tensor.elements());
    bytes += times * static_cast<double>(tensor.bytes);
  }
  double compute_seconds(const bench::Limits& limits) const {
    double total = 0.0;
    for (const auto& [bits, count] : operations)
      if (bits > 0) total += count / (limits.peak[bits] * 1e9);
    return total;
  }
};

/// What one token costs in each part of the model, from the file's own tensors.
struct ModelCost {
  Cost always;                              // attention, dense and shared networks of all layers
  std::vector<std::vector<double>> expert;  // [MoE layer][expert] bytes
  Cost chosen;                              // the experts of one token in all layers (operations)
  Cost output;

  explicit ModelCost(const std::string& path) {
    const bool gguf = moxie::detect_model(path) == moxie::ModelFileKind::gguf;
    std::optional<moxie::GgufFile> file;
    std::optional<moxie::HfFolder> folder;
    if (gguf)
      file.emplace(moxie::GgufFile::open(path));
    else
      folder.emplace(moxie::HfFolder::open(path));
    const auto description = gguf ? moxie::describe_gguf(file->metadata(), file->tensors(), path)
                                  : moxie::describe_hf(folder->config, folder->tensors(), path);
    const auto take = [](Cost& cost, const std::optional<moxie::Weight>& weight) {
      if (weight) cost.add(weight->tensor);
    };
    const auto network = [](Cost& cost, const moxie::FeedForwardTensors& t, double times = 1.0) {
      for (const auto* w : {&t.gate, &t.up, &t.down}) cost.add(w->tensor, times);
    };
    for (const moxie::LayerTensors& layer : description.tensors.layers) {
      for (const auto* weight : {&layer.q, &layer.k, &layer.v, &layer.q_a, &layer.q_b, &layer.kv_a, &layer.kv_b, &layer.k_b,
                                 &layer.v_b, &layer.router})
        take(always, *weight);
      always.add(layer.o.tensor);
      if (layer.dense) network(always, *layer.dense);
      if (layer.shared) network(always, *layer.shared);
      if (layer.experts.empty()) continue;
      expert.emplace_back();
      for (const auto& e : layer.experts) {
        Cost one;
        network(one, e);
        expert.back().push_back(one.bytes);
      }
      network(chosen, layer.experts.front(), static_cast<double>(description.config.moe.router.top_k));
    }
    output.add(description.tensors.output.value_or(description.tensors.embedding).tensor);
  }

  /// Bytes of a pass: everything that is always read, and the distinct experts of its rows.
  double bytes(const moxie::RoutingTrace& routes, bool with_output) const {
    double total = always.bytes + (with_output ? output.bytes : 0.0);
    for (Index layer = 0; layer < routes.n_layers(); ++layer) {
      std::set<std::int32_t> used;
      for (Index i = 0; i < routes.ids(layer).size(); ++i) used.insert(routes.ids(layer).data()[i]);
      for (const std::int32_t e : used) total += expert[static_cast<std::size_t>(layer)][static_cast<std::size_t>(e)];
    }
    return total;
  }
  double compute_seconds(const bench::Limits& limits, bool with_output) const {
    return always.compute_seconds(limits) + chosen.compute_seconds(limits) + (with_output ? output.compute_seconds(limits) : 0.0);
  }
  double operations(bool with_output) const {
    double total = 0.0;
    for (const Cost* cost : {&always, &chosen})
      for (const auto& [bits, count] : cost->operations) total += count;
    if (with_output)
      for (const auto& [bits, count] : output.operations) total += count;
    return total;
  }
};

struct Row {
  std::string work;
  std::int64_t n, batch;
  double tokens_per_s, share, gops, gbs;
  std::map<std::string, double> time = {};  // share of the threads' time in each stage
  std::vector<double> idle = {};            // of each thread
};

class Bench {
 public:
  Bench(const moxie::Model& model, const Options& options, const bench::Limits& limits, moxie::Profile& profile)
      : model_(model), options_(options), limits_(limits), profile_(profile), cost_(options.model) {}

  std::vector<Row> run() {
    for (const std::int64_t n : options_.prefill) prefill(n);
    if (options_.decode > 0) decode(1);
    if (options_.decode > 0)
      for (const std::int64_t batch : options_.batches) decode(batch);
    for (const std::int64_t n : options_.score) score(n);
    return rows_;
  }

 private:
  std::vector<std::int32_t> ids(std::int64_t n, std::uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<std::int32_t> result(static_cast<std::size_t>(n));
    for (auto& id : result) id = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(model_.config().vocab_size));
    return result;
  }

  /// Runs `work` repeatedly; `seconds_at_limit` is what the machine would need.
  template <class Work>
  double best_of(Work&& work) {
    double best = 1e30;
    for (int i = 0; i < options_.repeat; ++i) {
      const double start = bench::seconds();
      profile_.start();
      work();
      profile_.stop();
      const double taken = bench::seconds() - start;
      if (taken >= best) continue;
      best = taken;
      best_profile_ = profile_;
    }
    return best;
  }
  void add(const char* work, std::int64_t n, std::int64_t batch, double tokens, double seconds, double limit_seconds,
           double operations, double bytes) {
    // Weights that stay in the caches are read faster than the stream: at most 1.
    rows_.push_back({work, n, batch, tokens / seconds, std::min(1.0, limit_seconds / seconds), operations / seconds * 1e-9,
                     bytes / seconds * 1e-9});
    for (int s = 0; s < static_cast<int>(moxie::Stage::count); ++s) {
      double total = 0.0;
      for (int t = 0; t < profile_.threads(); ++t) total += best_profile_.seconds(t, static_cast<moxie::Stage>(s));
      rows_.back().time[moxie::stage_name(static_cast<moxie::Stage>(s))] = total / (profile_.threads() * seconds);
    }
    for (int t = 0; t < profile_.threads(); ++t)
      rows_.back().idle.push_back(best_profile_.seconds(t, moxie::Stage::idle) / seconds);
    if (options_.json) return;
    const Row& r = rows_.back();
    std::printf("%-8s n %5lld  batch %3lld  %9.1f tokens/s  %5.1f%% of the limit  %7.0f GOP/s  %6.1f GB/s\n", r.work.c_str(),
                static_cast<long long>(n), static_cast<long long>(batch), r.tokens_per_s, 100.0 * r.share, r.gops, r.gbs);
    std::printf("        ");
    for (const auto& [stage, share] : r.time) std::printf(" %s %.1f%%", stage.c_str(), 100.0 * share);
    std::printf("; idle by thread");
    for (const double share : r.idle) std::printf(" %.1f%%", 100.0 * share);
    std::printf("\n");
    std::fflush(stdout);
  }

  /// A pass over rows of some sequences; routes go to `routes` when asked for.
  void forward(std::vector<moxie::DecoderRow>& rows, moxie::RoutingTrace* routes = nullptr) {
    scratch_.hidden.resize(rows.size() * static_cast<std::size_t>(model_.config().hidden_size));
    if (routes) routes->resize(static_cast<Index>(rows.size()));
    model_.decoder().forward(model_.context(), rows, scratch_.hidden.data(), scratch_.decoder, routes);
  }

  void prefill(std::int64_t n) {
    const auto tokens = ids(n, 1);
    double bytes = 0.0;
    const auto pass = [&](bool count) {
      moxie::KvSequence kv(moxie::KvPool(model_.decoder().kv_shape(model_.options().kv)));
      kv.reserve(n);
      std::vector<moxie::DecoderRow> rows;
      for (std::int64_t first = 0; first < n; first += model_.options().chunk) {
        rows.clear();
        for (std::int64_t i = first; i < std::min(n, first + model_.options().chunk); ++i)
          rows.push_back({tokens[static_cast<std::size_t>(i)], &kv, i});
        moxie::RoutingTrace routes = moxie::empty_trace(model_);
        forward(rows, count ? &routes : nullptr);
        if (count) bytes += cost_.bytes(routes, false);
        kv.advance(static_cast<std::int64_t>(rows.size()));
      }
      const Index last = static_cast<Index>(rows.size()) - 1;
      moxie::compute_logits(model_, scratch_.hidden.data() + last * model_.config().hidden_size, 1, scratch_);
    };
    pass(true);
    const double seconds = best_of([&] { pass(false); });
    const double compute = static_cast<double>(n) * cost_.compute_seconds(limits_, false) + cost_.output.compute_seconds(limits_);
    bytes += cost_.output.bytes;
    add("prefill", n, 1, static_cast<double>(n), seconds, std::max(compute, bytes / (limits_.stream * 1e9)),
        static_cast<double>(n) * cost_.operations(false), bytes);
  }

  void decode(std::int64_t batch) {
    const moxie::KvPool pool(model_.decoder().kv_shape(model_.options().kv));
    std::vector<moxie::KvSequence> sequences;
    for (std::int64_t b = 0; b < batch; ++b) sequences.emplace_back(pool);
    std::mt19937 random(2);
    double limit = 0.0, bytes = 0.0;
    const auto pass = [&](bool count) {
      for (auto& s : sequences) s.truncate(0);
      std::vector<moxie::DecoderRow> rows;
      for (std::int64_t step = 0; step < options_.decode; ++step) {
        rows.clear();
        for (auto& s : sequences) {
          s.reserve(step + 1);
          rows.push_back(
              {static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(model_.config().vocab_size)), &s, step});
        }
        moxie::RoutingTrace routes = moxie::empty_trace(model_);
        forward(rows, count ? &routes : nullptr);
        moxie::compute_logits(model_, scratch_.hidden.data(), batch, scratch_);
        for (auto& s : sequences) s.advance(1);
        if (!count) continue;
        const double read = cost_.bytes(routes, true);
        bytes += read;
        limit += std::max(static_cast<double>(batch) * cost_.compute_seconds(limits_, true), read / (limits_.stream * 1e9));
      }
    };
    random.seed(2);
    pass(true);
    const double seconds = best_of([&] {
      random.seed(2);
      pass(false);
    });
    const double tokens = static_cast<double>(batch * options_.decode);
    add("decode", options_.decode, batch, tokens, seconds, limit, tokens * cost_.operations(true), bytes);
  }

  void score(std::int64_t n) {
    const std::vector<std::vector<std::int32_t>> sequences{ids(n, 3)};
    double bytes = 0.0;
    const auto counted = moxie::grpo::logprobs(model_, sequences, {.record_routes = true});
    bytes = cost_.bytes(counted[0].routes, true);
    const double seconds = best_of([&] { moxie::grpo::logprobs(model_, sequences); });
    const double compute = static_cast<double>(n) * cost_.compute_seconds(limits_, true);
    add("score", n, 1, static_cast<double>(n), seconds, std::max(compute, bytes / (limits_.stream * 1e9)),
        static_cast<double>(n) * cost_.operations(true), bytes);
  }

  const moxie::Model& model_;
  const Options& options_;
  const bench::Limits& limits_;
  moxie::Profile& profile_;
  moxie::Profile best_profile_;
  ModelCost cost_;
  moxie::ForwardScratch scratch_;
  std::vector<Row> rows_;
};

std::vector<std::int64_t> numbers(const std::string& text) {
  std::vector<std::int64_t> list;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t used = 0;
    list.push_back(std::stoll(text.substr(at), &used));
    if (list.back() < 1) throw std::invalid_argument(text);
    at += used + 1;
  }
  return list;
}

moxie::Activations activations(const std::string& text) {
  if (text != "int8" && text != "f32") throw std::invalid_argument("--activations must be int8 or f32");
  return text == "f32" ? moxie::Activations::f32 : moxie::Activations::int8;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] {
      if (i + 1 >= argc) throw std::invalid_argument(arg + " needs a value");
      return std::string(argv[++i]);
    };
    if (arg == "--json")
      options.json = true;
    else if (arg == "--pp")
      options.prefill = numbers(value());
    else if (arg == "--tg")
      options.decode = std::stoll(value());
    else if (arg == "--batch")
      options.batches = numbers(value());
    else if (arg == "--score")
      options.score = numbers(value());
    else if (arg == "--threads")
      options.threads = std::stoi(value());
    else if (arg == "--repeat")
      options.repeat = std::stoi(value());
    else if (arg == "--activations")
      options.activations = activations(value());
    else if (arg.starts_with("-") || !options.model.empty())
      throw std::invalid_argument(arg);
    else
      options.model = arg;
  }
  if (options.model.empty()) throw std::invalid_argument("no model");
  if (options.repeat < 1 || options.decode < 0) throw std::invalid_argument("--repeat must be at least 1 and --tg at least 0");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  try {
    options = parse(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr,
                 "%s\nusage: moxie_bench MODEL [--pp N,..] [--tg N] [--batch N,..] [--score N,..] [--threads N] [--activations "
                 "int8|f32] [--repeat N] [--json]\n",
                 error.what());
    return 2;
  }
  try {
    const moxie::Threads threads(options.threads);
    const bench::Limits limits(threads);
    bench::reset_peak_resident();
    moxie::Profile profile;
    const moxie::Model model = moxie::Model::load(
        options.model, {.threads = options.threads, .activations = options.activations, .profile = &profile});
    const double peak = *std::max_element(std::begin(limits.peak), std::end(limits.peak));
    if (!options.json) {
      std::printf("%s, kernels %s, %d threads; %s, %.2f bits per weight, loaded in %.2f s\n", bench::cpu_name().c_str(),
                  model.context().kernels->arch, threads.count(), model.config().family.c_str(), model.info().bits_per_weight,
                  model.info().load_seconds);
      std::printf("int8 peak %.0f (4-bit) %.0f (5-bit) %.0f (6-bit) %.0f (8-bit) GOP/s, stream read %.1f GB/s\n\n",
                  limits.peak[4], limits.peak[5], limits.peak[6], limits.peak[8], limits.stream);
    }
    Bench bench(model, options, limits, profile);
    const std::vector<Row> rows = bench.run();
    const double rss = bench::peak_resident_mb();
    if (options.json) {
      nlohmann::ordered_json out{
          {"cpu", bench::cpu_name()},
          {"arch", model.context().kernels->arch},
          {"threads", threads.count()},
          {"peak_gops", peak},
          {"peak_gops_by_bits", {{"4", limits.peak[4]}, {"5", limits.peak[5]}, {"6", limits.peak[6]}, {"8", limits.peak[8]}}},
          {"stream_gbs", limits.stream},
          {"load_s", model.info().load_seconds},
          {"peak_rss_mb", rss}};
      out["rows"] = nlohmann::ordered_json::array();
      for (const Row& r : rows)
        out["rows"].push_back({{"work", r.work},
                               {"n", r.n},
                               {"batch", r.batch},
                               {"tokens_per_s", r.tokens_per_s},
                               {"share", r.share},
                               {"gops", r.gops},
                               {"gbs", r.gbs},
                               {"time", r.time},
                               {"idle", r.idle}});
      std::printf("%s\n", out.dump().c_str());
    } else {
      std::printf("\npeak resident memory %.0f MB\n", rss);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
