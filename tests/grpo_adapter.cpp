// Adapters: gradients against PyTorch's and against finite differences, the same bits in sampling and scoring, PEFT folders.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <moxie/generate/batch.hpp>
#include <moxie/generate/session.hpp>
#include <moxie/grpo/hidden_gradients.hpp>
#include <moxie/grpo/logprob_gradients.hpp>
#include <moxie/grpo/logprobs.hpp>

#include "checks.hpp"
#include "child_process.hpp"
#include "io_files.hpp"
#include "random_model.hpp"
#include "safetensors_mini.hpp"
#include "shared.hpp"

using namespace moxie;
using namespace moxie::grpo;

namespace {

using Ids = std::vector<std::int32_t>;

using test::message_of;
using test::contains;
using test::same_bits;
using test::random_matrix;

RowMatrix matrix_of(const test::MiniTensor& tensor) {
  const auto values = tensor.as<float>();
  return Eigen::Map<const RowMatrix>(values.data(), tensor.shape[0], tensor.shape[1]);
}

/// A random adapter whose part of the logits is as large as theirs.
OutputAdapter random_adapter(const Context& context, Index hidden, Index vocab, Index rank, unsigned seed) {
  std::mt19937 random(seed);
  OutputAdapter adapter = OutputAdapter::create(hidden, vocab, rank, 16.0f, seed);
  adapter.b = random_matrix(random, vocab, rank, 0.5f / adapter.scale);
  adapter.pack(context);
  return adapter;
}

/// Largest difference, as a part of the largest expected value.
double relative(const RowMatrix& got, const RowMatrix& expected) {
  return static_cast<double>((got - expected).cwiseAbs().maxCoeff()) /
         std::max(1e-30, static_cast<double>(expected.cwiseAbs().maxCoeff()));
}

}  // namespace

TEST_CASE("gradients of logprobs and entropies, through softcap, bias, scale and adapter, are the reference's") {
  const auto index = test::shared_path("grpo/logprobs.json");
  if (!index) return;
  double worst_score = 0.0, worst_gradient = 0.0;
  int cases = 0;
  for (const nlohmann::json& file : nlohmann::json::parse(test::read_text(*index))) {
    const test::MiniTensors tensors = test::read_safetensors(*test::shared_path("grpo/" + file.at("file").get<std::string>()));
    const Index d = file.at("D"), vocab = file.at("V"), rows = file.at("T");
    const test::MiniTensor& weight = tensors.at("weight");
    const Dtype dtype = weight.dtype == "BF16" ? Dtype::BF16 : Dtype::F32;
    TensorView view{"weight", dtype, {vocab, d}, weight.data.data(), weight.data.size(), {}, 0};
    RowMatrix w(vocab, d);
    decode_rows(dtype, weight.data.data(), w);
    const auto hidden = tensors.at("hidden").as<float>(), bias = tensors.at("bias").as<float>();
    const auto labels = tensors.at("labels").as<std::int32_t>();
    const auto g = tensors.at("grad_output_logprob").as<float>(), ge = tensors.at("grad_output_entropy").as<float>();
    OutputAdapter adapter;
    adapter.a = matrix_of(tensors.at("lora_a"));
    adapter.b = matrix_of(tensors.at("lora_b"));
    for (const bool one_dnn : {false, true}) {
      const Context context{&kernels::native_table(), Threads(2), one_dnn ? Activations::int8 : Activations::f32};
      const Linear output = Linear::pack(context, view);
      for (const nlohmann::json& c : file.at("cases")) {
        const auto id = c.at("id").get<std::string>();
        CAPTURE(id);
        OutputHead head{.logit_scale = c.at("logit_scale")};
        if (!c.at("softcap").is_null()) head.softcap = c.at("softcap");
        if (c.at("bias").get<bool>()) head.bias = bias;
        if (c.at("lora").get<bool>()) {
          adapter.scale = c.at("lora_scale");
          adapter.pack(context);
          head.adapter = &adapter;
        }
        const float temperature = c.at("temperature");
        Ids targets = labels;
        for (std::int32_t& target : targets) target = std::max(target, -1);
        std::vector<PositionScore> scores(labels.size());
        LogprobScratch scratch;
        score_hidden(context, output, hidden.data(), targets, temperature, 0, scores, scratch, head);
        std::vector<RowGradient> of_logprob(labels.size()), of_entropy(labels.size());
        const auto logprobs = tensors.at(id + ".logprobs").as<double>(), entropy = tensors.at(id + ".entropy").as<double>();
        for (std::size_t t = 0; t < labels.size(); ++t) {
          of_logprob[t] = {targets[t], g[t], 0.0f};
          if (targets[t] < 0) continue;
          of_entropy[t] = {targets[t], 0.0f, ge[t]};
          for (const auto& [got, expected] :
               {std::pair{scores[t].logprob, logprobs[t]}, std::pair{scores[t].entropy, entropy[t]}})
            worst_score =
                std::max(worst_score, std::abs(static_cast<double>(got) - expected) / std::max(1.0, std::abs(expected)));
        }
        GradientScratch memory;
        RowMatrix d_hidden(rows, d), d_entropy(rows, d), d_a = RowMatrix::Zero(adapter.rank(), d),
                                                         d_b = RowMatrix::Zero(vocab, adapter.rank());
        GradientSinks sinks{d_hidden.data(), nullptr, nullptr};
        if (head.adapter) sinks = {d_hidden.data(), &d_a, &d_b};
        hidden_gradients(context, output, hidden.data(), of_logprob, temperature, sinks, memory, head);
        hidden_gradients(context, output, hidden.data(), of_entropy, temperature, {d_entropy.data(), nullptr, nullptr}, memory,
                         head);
        std::vector<double> errors = {relative(d_hidden, matrix_of(tensors.at(id + ".grad_hidden")))};
        if (!head.adapter) {
          errors.push_back(relative(d_entropy, matrix_of(tensors.at(id + ".grad_hidden_of_entropy"))));
        } else {
          errors.push_back(relative(d_a, matrix_of(tensors.at(id + ".grad_lora_a"))));
          errors.push_back(relative(d_b, matrix_of(tensors.at(id + ".grad_lora_b"))));
        }
        for (const double error : errors) {
          CHECK(error < 2e-5);
          worst_gradient = std::max(worst_gradient, error);
        }
        ++cases;
      }
    }
  }
  CHECK(worst_score < 5e-5);
  MESSAGE(cases << " cases, scores within " << worst_score << ", gradients within " << worst_gradient);
  CHECK(cases == 104);
}

TEST_CASE("gradients equal central differences in double, for every weight format and shape") {
  std::mt19937 random(11);
  double worst = 0.0;
  struct Shape {
    Index rows, hidden, vocab, rank;
  };
  for (const Shape& shape : {Shape{5, 256, 70, 3}, Shape{3, 512, 601, 1}, Shape{2, 256, 1030, 20}}) {
    const RowMatrix w = random_matrix(random, shape.vocab, shape.hidden, 0.1f),
                    h = random_matrix(random, shape.rows, shape.hidden, 1.0f);
    for (const Dtype dtype : test::weight_types) {
      CAPTURE(dtype_text(dtype));
      const Context context{&kernels::native_table(), Threads(2), Activations::f32};
      const Linear output = Linear::from_rows(context, dtype, w);
      RowMatrix stored(shape.vocab, shape.hidden);  // what the codes mean
      decode_rows(dtype, encode_matrix(dtype, w).data(), stored);
      const auto stride = static_cast<Index>(round_up(static_cast<std::size_t>(shape.vocab), 16));
      AlignedBuffer<float> unpacked(static_cast<std::size_t>(shape.hidden * stride));
      for (Index first = 0; first < shape.hidden; first += Linear::unpack_inputs)
        output.unpack(0, shape.vocab, first, Linear::unpack_inputs, unpacked.data() + first * stride, stride);
      CHECK(same_bits(Eigen::Map<const RowMatrix>(unpacked.data(), shape.hidden, stride).leftCols(shape.vocab).transpose(),
                      stored));

      const OutputAdapter adapter = random_adapter(context, shape.hidden, shape.vocab, shape.rank, 5);
      std::vector<float> bias(static_cast<std::size_t>(shape.vocab));
      for (float& x : bias) x = std::normal_distribution<float>(0.0f, 0.3f)(random);
      const OutputHead head{.adapter = &adapter, .bias = bias, .logit_scale = 1.3f, .softcap = 4.0f};
      const float temperature = 0.8f;
      std::vector<RowGradient> rows;
      for (Index r = 0; r < shape.rows; ++r)
        rows.push_back({r == 1 ? -1 : static_cast<std::int32_t>((r * 997 + 511) % shape.vocab), 0.5f + static_cast<float>(r),
                        r == 0 ? 0.0f : 0.7f});
      RowMatrix d_hidden(shape.rows, shape.hidden), d_a = RowMatrix::Zero(shape.rank, shape.hidden),
                                                    d_b = RowMatrix::Zero(shape.vocab, shape.rank);
      GradientScratch scratch;
      hidden_gradients(context, output, h.data(), rows, temperature, {d_hidden.data(), &d_a, &d_b}, scratch, head);

      using Doubles = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
      const Doubles weights = stored.cast<double>();
      Doubles hidden = h.cast<double>(), a = adapter.a.cast<double>(), b = adapter.b.cast<double>();
      const auto loss = [&] {
        double sum = 0.0;
        for (Index r = 0; r < shape.rows; ++r) {
          const RowGradient& row = rows[static_cast<std::size_t>(r)];
          const Eigen::VectorXd u = static_cast<double>(adapter.scale) * (a * hidden.row(r).transpose());
          Eigen::ArrayXd z = (weights * hidden.row(r).transpose() + b * u).array();
          z += Eigen::Map<const Eigen::ArrayXf>(bias.data(), shape.vocab).cast<double>();
          z = (z * static_cast<double>(head.logit_scale) / 4.0).tanh() * 4.0 / static_cast<double>(temperature);
          const Eigen::ArrayXd logp = z - (z.maxCoeff() + std::log((z - z.maxCoeff()).exp().sum()));
          if (row.target >= 0) sum += static_cast<double>(row.d_logprob) * logp[row.target];
          sum -= static_cast<double>(row.d_entropy) * (logp.exp() * logp).sum();
        }
        return sum;
      };
      const auto compare = [&](Doubles& at, const RowMatrix& gradient) {
        const double most = static_cast<double>(gradient.cwiseAbs().maxCoeff());
        for (int i = 0; i < 6; ++i) {
          double& x = at.data()[std::uniform_int_distribution<Index>(0, at.size() - 1)(random)];
          const double before = x, step = 1e-5;
          x = before + step;
          const double above = loss();
          x = before - step;
          const double below = loss();
          x = before;
          const double error =
              std::abs((above - below) / (2.0 * step) - static_cast<double>(gradient.data()[&x - at.data()])) / most;
          CHECK(error < 1e-4);
          worst = std::max(worst, error);
        }
      };
      compare(hidden, d_hidden);
      compare(a, d_a);
      compare(b, d_b);
    }
  }
  MESSAGE("within " << worst);
}

TEST_CASE("logits around 8192 have the gradients that they have around 0") {
  std::mt19937 random(4);
  const Index n = 5, width = 64, vocab = 1100;
  // sixteenths, so that logits are exact at either place
  const auto sixteenths = [&](Index rows, Index columns) {
    std::uniform_int_distribution<int> numerator(-24, 24);
    return RowMatrix(RowMatrix::NullaryExpr(rows, columns, [&] { return static_cast<float>(numerator(random)) / 16.0f; }));
  };
  const RowMatrix w = sixteenths(vocab, width) / 4.0f, h = sixteenths(n, width);
  const std::vector<float> bias(static_cast<std::size_t>(vocab), 8192.0f);
  std::vector<RowGradient> rows;
  for (Index r = 0; r < n; ++r) rows.push_back({static_cast<std::int32_t>(r * 31), 1.0f, 0.5f});
  const Context context{&kernels::native_table(), Threads(2), Activations::f32};
  const Linear output = Linear::from_rows(context, Dtype::F32, w);
  RowMatrix near_zero(n, width), far(n, width);
  GradientScratch scratch;
  hidden_gradients(context, output, h.data(), rows, 1.0f, {near_zero.data()}, scratch);
  hidden_gradients(context, output, h.data(), rows, 1.0f, {far.data()}, scratch, {.bias = bias});
  CHECK(relative(far, near_zero) < 1e-6);
}

TEST_CASE("a vocabulary of which 16 rows of logits do not fit in 40 MB has the same gradients, computed in parts") {
  std::mt19937 random(14);
  const Index n = 3, width = 40, vocab = 700001, rank = 2;
  REQUIRE(gradient_blocks(vocab, rank).tiles < vocabulary_tiles(vocab));
  const RowMatrix w = random_matrix(random, vocab, width, 0.2f), h = random_matrix(random, n, width, 1.0f);
  const std::vector<RowGradient> rows = {{5, 1.0f, 0.0f}, {700000, -0.5f, 0.3f}, {350000, 2.0f, 0.0f}};
  const Context context{&kernels::native_table(), Threads(2), Activations::f32};
  const Linear output = Linear::from_rows(context, Dtype::F32, w);
  const OutputAdapter adapter = random_adapter(context, width, vocab, rank, 5);
  RowMatrix d_hidden(n, width), d_a = RowMatrix::Zero(rank, width), d_b = RowMatrix::Zero(vocab, rank);
  GradientScratch scratch;
  hidden_gradients(context, output, h.data(), rows, 1.0f, {d_hidden.data(), &d_a, &d_b}, scratch, {.adapter = &adapter});

  using Doubles = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Doubles weights = w.cast<double>(), a = adapter.a.cast<double>(), b = adapter.b.cast<double>(), hidden = h.cast<double>();
  const double scale = static_cast<double>(adapter.scale);
  Doubles z = hidden * weights.transpose() + scale * (hidden * a.transpose()) * b.transpose();
  for (Index r = 0; r < n; ++r) {
    const RowGradient& row = rows[static_cast<std::size_t>(r)];
    const double most = z.row(r).maxCoeff();
    const Eigen::ArrayXd log_p = z.row(r).transpose().array() - most - std::log((z.row(r).array() - most).exp().sum());
    const double entropy = -(log_p.exp() * log_p).sum();
    z.row(r) = -(log_p.exp() * (static_cast<double>(row.d_logprob) + static_cast<double>(row.d_entropy) * (log_p + entropy)))
                    .matrix()
                    .transpose();
    z(r, row.target) += static_cast<double>(row.d_logprob);
  }
  const Doubles low = scale * z * b;
  CHECK(relative(d_hidden, (z * weights + low * a).cast<float>()) < 1e-5);
  CHECK(relative(d_a, (low.transpose() * hidden).cast<float>()) < 1e-5);
  CHECK(relative(d_b, (scale * z.transpose() * (hidden * a.transpose())).cast<float>()) < 1e-5);
}

TEST_CASE("blocks of logits, and so of gradients, take 40 MB for every vocabulary and rank") {
  for (const Index vocab : {1, 512, 32000, 151936, 262144, 700000, 4000000, 100000000})
    for (const Index rank : {0, 1, 16, 256, 2048}) {
      const GradientBlocks blocks = gradient_blocks(vocab, rank);
      CHECK(blocks.rows >= 16);
      CHECK(blocks.rows % 16 == 0);
      CHECK(blocks.rows * blocks.tiles * (vocabulary_tile + rank) * 4 <= 40 << 20);
      CHECK((blocks.tiles == vocabulary_tiles(vocab) || blocks.rows == 16));  // parts cost a second product
    }
}

TEST_CASE("gradients are the same bits for any number of threads, and sums over rows continue those of earlier calls") {
  std::mt19937 random(12);
  const Index n = 150, width = 96, vocab = 5003, rank = 5;  // two blocks of rows
  const RowMatrix w = random_matrix(random, vocab, width, 0.1f), h = random_matrix(random, n, width, 1.0f);
  std::vector<RowGradient> rows;
  for (Index r = 0; r < n; ++r) rows.push_back({static_cast<std::int32_t>(r * 31), 1.0f / static_cast<float>(r + 1), 0.1f});
  RowMatrix first_hidden, first_a, first_b;
  for (const int threads : {1, 2, 3, 8}) {
    const Context context{&kernels::native_table(), Threads(threads), Activations::int8};
    const Linear output = Linear::from_rows(context, Dtype::Q8_0, w);
    const OutputAdapter adapter = random_adapter(context, width, vocab, rank, 5);
    RowMatrix d_hidden(n, width), d_a = RowMatrix::Zero(rank, width), d_b = RowMatrix::Zero(vocab, rank);
    GradientScratch scratch;
    if (threads == 3) {
      hidden_gradients(context, output, h.data(), std::span(rows).first(41), 1.0f, {d_hidden.data(), &d_a, &d_b}, scratch,
                       {.adapter = &adapter});
      hidden_gradients(context, output, h.row(41).data(), std::span(rows).subspan(41), 1.0f,
                       {d_hidden.row(41).data(), &d_a, &d_b}, scratch, {.adapter = &adapter});
    } else {
      hidden_gradients(context, output, h.data(), rows, 1.0f, {d_hidden.data(), &d_a, &d_b}, scratch, {.adapter = &adapter});
    }
    if (threads == 1) {
      first_hidden = d_hidden;
      first_a = d_a;
      first_b = d_b;
    }
    CHECK(same_bits(d_hidden, first_hidden));
    CHECK(same_bits(d_a, first_a));
    CHECK(same_bits(d_b, first_b));
  }
}

TEST_CASE("with an adapter, scores are the bits that sampling reported; an adapter whose b is zero changes no bit") {
  const test::TemporaryFolder folder;
  std::vector<std::string> paths = {test::embedded_model()};
  paths.push_back(test::write_random_model(folder.file("gqa.gguf"), test::qwen3_moe_config(Dtype::Q4_K), Dtype::Q4_K));
  paths.push_back(test::write_random_model(folder.file("mla.gguf"), test::deepseek_v2_config(Dtype::F16), Dtype::F16));
  std::mt19937 random(7);
  for (const std::string& path : paths)
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      CAPTURE(path);
      const Model model = Model::load(path, {.threads = 2, .activations = activations, .chunk = 50});
      const Index hidden = model.config().hidden_size, vocab = model.config().vocab_size;
      const OutputAdapter adapter = random_adapter(model.context(), hidden, vocab, 7, 3);
      OutputAdapter zero = OutputAdapter::create(hidden, vocab, 4, 8.0f, 3);
      zero.pack(model.context());
      for (const float temperature : {0.0f, 0.7f, 1.5f}) {
        const GenerateOptions options{.temperature = temperature,
                                      .top_p = temperature == 0.7f ? 0.9f : 1.0f,
                                      .seed = random(),
                                      .max_tokens = 20,
                                      .ignore_eos = true};
        Batch rollout(model, {.adapter = &adapter}), plain(model), with_zero(model, {.adapter = &zero});
        const Ids prompt = test::random_ids(random, 9, model.config().vocab_size);
        for (Batch* batch : {&rollout, &plain, &with_zero}) {
          batch->add_group(prompt, 3, options);
          while (batch->active() > 0) batch->step();
        }
        Session session(model, 0, &adapter);
        session.feed(prompt);
        Generation answer = session.generate(options);
        while (answer.step()) {
        }
        CHECK(answer.ids() == Ids(rollout.at(0).output().begin(), rollout.at(0).output().end()));
        bool differs = false;
        for (Batch::Id id = 0; id < 3; ++id) {
          const auto reported = [id](const Batch& batch) {
            std::vector<float> values;
            for (const Sample& sample : batch.at(id).samples) values.insert(values.end(), {sample.logprob, sample.entropy});
            return values;
          };
          CHECK(same_bits(reported(plain), reported(with_zero)));
          differs = differs || !same_bits(reported(plain), reported(rollout));
          const auto score = logprobs(model, std::vector<Ids>{rollout.at(id).ids},
                                      {.temperature = options.logprob_temperature(), .adapter = &adapter})
                                 .front();
          std::vector<float> scored;
          for (std::size_t t = prompt.size() - 1; t < score.logprobs.size(); ++t)
            scored.insert(scored.end(), {score.logprobs[t], score.entropy[t]});
          CHECK(same_bits(reported(rollout), scored));
          if (id == 0) {
            std::vector<float> alone;
            for (const Sample& sample : answer.samples()) alone.insert(alone.end(), {sample.logprob, sample.entropy});
            CHECK(same_bits(alone, scored));
          }
        }
        CHECK(differs);
      }
    }
}

TEST_CASE("gradients of sequences are those of their hidden rows, and those of scoring") {
  const Model model = Model::load(test::embedded_model(), {.threads = 2, .activations = Activations::f32, .chunk = 40});
  const Index hidden = model.config().hidden_size, vocab = model.config().vocab_size;
  OutputAdapter adapter = random_adapter(model.context(), hidden, vocab, 4, 3);
  std::mt19937 random(5);
  const std::vector<Ids> sequences = {test::random_ids(random, 60, vocab), {}, {7}, test::random_ids(random, 33, vocab)};
  std::vector<std::vector<float>> d_logprobs, d_entropy;
  for (const Ids& ids : sequences) {
    d_logprobs.emplace_back(ids.empty() ? 0 : ids.size() - 1);
    d_entropy.emplace_back(ids.size());
    for (std::size_t t = 10; t < d_logprobs.back().size(); ++t) d_logprobs.back()[t] = std::normal_distribution<float>()(random);
    for (std::size_t t = 20; t < d_entropy.back().size(); ++t) d_entropy.back()[t] = 0.3f;
  }
  const LogprobOptions options{.temperature = 1.2f, .adapter = &adapter};
  const LogprobGradients gradients = logprob_gradients(model, sequences, d_logprobs, d_entropy, options, true);
  CHECK(gradients.d_hidden.size() == 4);
  CHECK(gradients.d_hidden[0].topRows(10).isZero(0.0f));
  CHECK_FALSE(gradients.d_hidden[0].row(10).isZero(0.0f));
  const auto loss = [&] {
    double sum = 0.0;
    const auto scores = logprobs(model, sequences, options);
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      for (std::size_t t = 0; t < scores[s].logprobs.size(); ++t)
        sum += static_cast<double>(d_logprobs[s][t]) * static_cast<double>(scores[s].logprobs[t]);
      for (std::size_t t = 0; t < scores[s].entropy.size(); ++t)
        sum += static_cast<double>(d_entropy[s][t]) * static_cast<double>(scores[s].entropy[t]);
    }
    return sum;
  };
  for (RowMatrix* parameter : {&adapter.a, &adapter.b}) {  // along a random direction: scores are f32
    const RowMatrix& gradient = parameter == &adapter.a ? gradients.d_a : gradients.d_b;
    const RowMatrix before = *parameter, direction = random_matrix(random, before.rows(), before.cols(), 1e-3f);
    *parameter = before + direction;
    adapter.pack(model.context());
    const double above = loss();
    *parameter = before - direction;
    adapter.pack(model.context());
    const double below = loss();
    *parameter = before;
    adapter.pack(model.context());
    const double expected = gradient.cast<double>().cwiseProduct(direction.cast<double>()).sum();
    CHECK((above - below) / 2.0 == doctest::Approx(expected).epsilon(0.02));
  }
  // Neither batching nor other sequences change the rows' gradients.
  const LogprobGradients alone = logprob_gradients(model, std::span(sequences).last(1), std::span(d_logprobs).last(1),
                                                   std::span(d_entropy).last(1), options, true);
  CHECK(same_bits(alone.d_hidden[0], gradients.d_hidden[3]));

  const auto message = [&](std::span<const std::vector<float>> d_logprob, std::span<const std::vector<float>> d_entropies,
                           const LogprobOptions& o, bool want_hidden) {
    return message_of([&] { logprob_gradients(model, sequences, d_logprob, d_entropies, o, want_hidden); });
  };
  CHECK(contains(message(d_logprobs, d_entropy, {}, false), "adapter"));
  CHECK(contains(message(std::span(d_logprobs).first(2), d_entropy, options, false), "d_logprobs of 2 sequences"));
  CHECK(contains(message(d_logprobs, std::span(d_entropy).first(1), options, false), "d_entropy of 1 sequences"));
  CHECK(contains(message(d_entropy, {}, options, false), "sequence 0: 60 numbers of d_logprobs were given for 60 tokens"));
}

TEST_CASE("adapters and heads that do not fit are errors") {
  const Model model = Model::load(test::embedded_model(), {.threads = 1});
  const Index hidden = model.config().hidden_size, vocab = model.config().vocab_size;
  const OutputAdapter unpacked = OutputAdapter::create(hidden, vocab, 2, 4.0f, 1);
  CHECK(unpacked.scale == 2.0f);
  CHECK(static_cast<double>(unpacked.a.cwiseAbs().maxCoeff()) <= 1.0 / std::sqrt(static_cast<double>(hidden)));
  const OutputAdapter other = random_adapter(model.context(), hidden, vocab + 1, 2, 1);
  for (const auto& wrong : {std::pair{&unpacked, "pack()"}, std::pair{&other, "the output matrix is ["}}) {
    const OutputAdapter* adapter = wrong.first;
    const char* part = wrong.second;
    CHECK(contains(message_of([&] { Session(model, 0, adapter); }), part));
    CHECK(contains(message_of([&] { Batch(model, {.adapter = adapter}); }), part));
    CHECK(contains(message_of([&] { logprobs(model, std::vector<Ids>{{1, 2}}, {.adapter = adapter}); }), part));
  }
  CHECK_THROWS_AS(OutputAdapter::create(hidden, 0, 2, 4.0f, 1), ArgumentError);
  OutputAdapter bad = OutputAdapter::create(hidden, vocab, 2, 4.0f, 1);
  bad.b.resize(vocab, 3);
  CHECK(contains(message_of([&] { bad.pack(model.context()); }), "b [vocab, rank]"));

  const Context& context = model.context();
  const Linear& output = model.decoder().output();
  const std::vector<float> rows(static_cast<std::size_t>(hidden)), bias(3);
  const std::vector<RowGradient> row = {{0, 1.0f, 0.0f}}, outside = {{static_cast<std::int32_t>(vocab), 1.0f, 0.0f}};
  GradientScratch scratch;
  RowMatrix wrong(1, 1);
  const auto message = [&](std::span<const RowGradient> r, const GradientSinks& sinks, const OutputHead& head) {
    return message_of([&] { hidden_gradients(context, output, rows.data(), r, 1.0f, sinks, scratch, head); });
  };
  CHECK(contains(message(outside, {}, {}), "outside the vocabulary"));
  CHECK(contains(message(row, {nullptr, &wrong, nullptr}, {}), "the head has none"));
  CHECK(contains(message(row, {}, {.bias = bias}), "a bias of 3 entries"));
  CHECK(contains(message(row, {}, {.softcap = -1.0f}), "softcap"));
  CHECK(contains(message(row, {}, {.logit_scale = 0.0f}), "logit_scale"));
  const OutputAdapter fits = random_adapter(context, hidden, vocab, 2, 1);
  CHECK(contains(message(row, {nullptr, &wrong, nullptr}, {.adapter = &fits}), "d_a must be"));
  CHECK(contains(message(row, {nullptr, nullptr, &wrong}, {.adapter = &fits}), "d_b must be"));
}

TEST_CASE("child: gradients of long sequences" * doctest::skip()) {
  if (test::child_argument().empty()) return;
  const Model model = Model::load(test::child_argument(), {.threads = 2});
  const Index hidden = model.config().hidden_size, vocab = model.config().vocab_size, rank = 16, tokens = 4096;
  const OutputAdapter adapter = random_adapter(model.context(), hidden, vocab, rank, 1);
  std::mt19937 random(1);
  const std::vector<Ids> sequences = {test::random_ids(random, tokens, vocab)};
  const std::vector<std::vector<float>> ones = {std::vector<float>(tokens - 1, 1.0f)};
  const RowMatrix h = random_matrix(random, tokens, hidden, 1.0f);
  std::vector<RowGradient> rows;
  for (const std::int32_t id : sequences.front()) rows.push_back({id, 1.0f, 0.5f});
  RowMatrix d_a = RowMatrix::Zero(rank, hidden), d_b = RowMatrix::Zero(vocab, rank), d_hidden = RowMatrix::Zero(tokens, hidden);
  // The peak of resident memory beside what was resident before; pages of the model's file that are read meanwhile are the
  // model's.
  const auto measure = [](const char* name, const auto& run) {
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak begins anew
    const std::int64_t before = test::process_bytes("VmRSS"), file = test::process_bytes("RssFile");
    const std::int64_t results = run();
    const std::int64_t read = test::process_bytes("RssFile") - file;
    std::cout << name << "=" << test::process_bytes("VmHWM") - before - read - results << "\n";
  };
  measure("rows", [&] {
    GradientScratch scratch;
    hidden_gradients(model.context(), model.decoder().output(), h.data(), rows, 1.0f, {d_hidden.data(), &d_a, &d_b}, scratch,
                     {.adapter = &adapter});
    return 0;  // they were there before
  });
  measure("sequences", [&] {
    const LogprobGradients gradients = logprob_gradients(model, sequences, ones, {}, {.adapter = &adapter}, true);
    return (gradients.d_a.size() + gradients.d_b.size() + gradients.d_hidden[0].size()) * 4;
  });
}

TEST_CASE("gradients of 4096 tokens over a vocabulary of 150,000 take at most 96 MB beside the model and the gradients") {
  const test::TemporaryFolder folder;
  ModelConfig config = test::qwen3_moe_config(Dtype::Q8_0);
  config.vocab_size = 150000;
  config.context_length = 4096;
  const std::string output = test::run_child("child: gradients of long sequences",
                                             test::write_random_model(folder.file("model.gguf"), config, Dtype::Q8_0));
  const std::int64_t rows = test::number_in(output, "rows"), sequences = test::number_in(output, "sequences");
  MESSAGE("beside the model: " << rows / 1000000 << " MB for hidden rows, " << sequences / 1000000
                               << " MB for sequences, with the KV pages; the logits would take " << 4096ll * 150000 * 4 / 1000000
                               << " MB");
  CHECK(rows > 16 << 20);  // it was measured
  for (const std::int64_t extra : {rows, sequences}) CHECK(extra <= 96 << 20);
}
