#pragma once
// Session: one sequence of a model. Feed tokens, generate, fork, rewind.
//
// A Session is used from one thread at a time; only cancel() may be called from another. Several sessions may share a Model.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/generate/forward.hpp>
#include <moxie/generate/options.hpp>
#include <moxie/generate/sampler.hpp>
#include <moxie/generate/stop_texts.hpp>
#include <moxie/model/token_ids.hpp>
#include <moxie/text/stream_decoder.hpp>

namespace moxie {

enum class FinishReason { none, stop, length, cancelled };

constexpr std::string_view name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    default:
      return "none";
  }
}

/// Told how many tokens of a prompt have been run, and of how many.
using PromptProgress = std::function<void(std::int64_t done, std::int64_t total)>;

class Generation;

class Session {
 public:
  /// `kv_budget_bytes`: what the pages and recurrent states of this session and its forks may take together (the states that it
  /// keeps to go back to give way to its own need, not to that of its forks); 0: no limit. `adapter` (may be nullptr)
  /// must outlive the session and its forks. Throws ArgumentError when the adapter does not fit.
  explicit Session(const Model& model, std::size_t kv_budget_bytes = 0, const OutputAdapter* adapter = nullptr)
      : model_(model),
        pool_(model.kv_shape(), kv_budget_bytes),
        kv_(pool_),
        adapter_(adapter),
        cancelled_(std::make_shared<std::atomic<bool>>(false)) {
    if (adapter_) adapter_->check(model_.config().vocab_size, model_.config().hidden_size);
  }

  /// Appends tokens and runs them. Throws ArgumentError for an id outside the vocabulary or past the model's context, MemoryError
  /// when the budget is too small, Cancelled; the session is then as before.
  void feed(std::span<const std::int32_t> ids, const PromptProgress& progress = {}) {
    for (const std::int32_t id : ids) check_token_id(id, model_.config().vocab_size);
    const std::int64_t before = length();
    if (const std::int64_t context = model_.config().context_length; before + static_cast<std::int64_t>(ids.size()) > context)
      throw ArgumentError(concat("the sequence would have ", before + static_cast<std::int64_t>(ids.size()),
                                 " tokens; the model's context is ", context));
    const std::int64_t last = checkpoints_.empty() ? 0 : checkpoints_.back().kv.length();
    const bool keeps =
        kv_.shape().recurrent() && !ids.empty() && before + static_cast<std::int64_t>(ids.size()) - last >= worth_a_checkpoint;
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    try {
      run(progress, keeps ? before : -1);
      if (keeps) checkpoint();
    } catch (...) {
      restore(before);
      throw;
    }
  }
  /// Appends a text: special tokens in it are recognised, and the first text begins with the beginning-of-sequence token where
  /// the tokenizer adds one.
  void feed(std::string_view text, const PromptProgress& progress = {}) {
    feed(model_.tokenizer().encode(text, true, ids_.empty()), progress);
  }

  /// Draws one token and appends it. The next call (or feed) runs it. Throws ArgumentError when nothing has been fed, the model's
  /// context is full, or an option is out of range.
  Sample next(const GenerateOptions& options, std::int64_t prompt_length) {
    options.check();
    if (length() >= model_.config().context_length)
      throw ArgumentError(concat("the sequence has ", length(), " tokens, all of the model's context"));
    run({});
    const std::span<const float> z = logits();
    const auto all = std::span<const std::int32_t>(ids_);
    const auto split = static_cast<std::size_t>(std::clamp<std::int64_t>(prompt_length, 0, length()));
    const Sample sample = sampler_.draw(*model_.context().kernels, z, options, all.first(split), all.subspan(split), stream_,
                                        static_cast<std::uint64_t>(length()));
    ids_.push_back(sample.id);
    return sample;
  }

  /// The answer piece by piece, drawn as the range is iterated. The session must outlive it, and not be used meanwhile. Throws
  /// ArgumentError when an option is out of range or nothing has been fed.
  Generation generate(const GenerateOptions& options = {});

  /// Logits [vocab] of the next token, valid until the session changes. Throws ArgumentError when nothing has been fed.
  std::span<const float> logits() {
    if (ids_.empty()) throw ArgumentError("the session is empty: feed a prompt first");
    run({});
    if (!logits_valid_) {
      compute_logits(model_, hidden_.data(), 1, scratch_, adapter_);
      logits_valid_ = true;
    }
    return {scratch_.logits.data(), static_cast<std::size_t>(model_.config().vocab_size)};
  }

  /// Forgets all but the first n tokens. Throws ArgumentError when there are fewer. The states of recurrent layers cannot go
  /// back: of models that have some, two are kept, of the begin and the end of a feed() that ends 64 tokens or more after the
  /// last one kept, and tokens are run again from the nearest before n, else from the first one. (fork() before what is to be
  /// undone, and nothing is run again.)
  void rewind(std::int64_t n) {
    if (n < 0 || n > length()) throw ArgumentError(concat("cannot rewind to ", n, " tokens: the session has ", length()));
    restore(n);
  }

  /// A session that continues from the same tokens and shares their pages; `stream` numbers its random draws.
  Session fork(std::uint64_t stream = 0) {
    take_checkpoint();
    Session other(model_, pool_, kv_.fork());
    other.ids_ = ids_;
    other.hidden_ = hidden_;
    other.stream_ = stream;
    other.adapter_ = adapter_;
    return other;
  }

  std::int64_t length() const noexcept { return static_cast<std::int64_t>(ids_.size()); }
  std::span<const std::int32_t> ids() const noexcept { return ids_; }
  const Model& model() const noexcept { return model_; }
  std::size_t kv_bytes() const noexcept { return pool_.bytes_in_use(); }

  /// Stops the feed or the generation that is running, or else the next one; may be called from any thread.
  void cancel() noexcept { cancelled_->store(true); }

 private:
  friend class Generation;
  Session(Model model, KvPool pool, KvSequence kv)
      : model_(std::move(model)),
        pool_(std::move(pool)),
        kv_(std::move(kv)),
        cancelled_(std::make_shared<std::atomic<bool>>(false)) {}

  bool take_cancel() noexcept { return cancelled_->exchange(false); }

  /// Goes on from the last checkpoint where that is further, after restore() or a pass that failed.
  void take_checkpoint() {
    if (checkpoints_.empty() || checkpoints_.back().kv.length() <= kv_.length()) return;
    kv_ = checkpoints_.back().kv.fork();
    hidden_ = checkpoints_.back().hidden;
    logits_valid_ = false;
  }

  /// Runs all tokens that have not been run, so that hidden_ is the last token's row. On the way the sequence is remembered as it
  /// is after its first `keep_at` tokens, in place of what was before.
  void run(const PromptProgress& progress, std::int64_t keep_at = -1) {
    take_checkpoint();
    const std::int64_t total = length(), begin = kv_.length();
    if (begin == total) return;
    reserve(total);
    const Index width = model_.config().hidden_size;
    for (std::int64_t done = begin; done < total;) {
      if (take_cancel()) throw Cancelled(concat("cancelled after ", done - begin, " of ", total - begin, " tokens"));
      if (done == keep_at) {
        checkpoints_.clear();
        checkpoint();
        reserve(total);  // what is shared now is copied
      }
      const std::int64_t n = std::min(model_.options().chunk, (done < keep_at ? keep_at : total) - done);
      rows_.clear();
      for (std::int64_t i = done; i < done + n; ++i) rows_.push_back({ids_[static_cast<std::size_t>(i)], &kv_, i});
      scratch_.hidden.resize(static_cast<std::size_t>(n * width));
      model_.decoder().forward(model_.context(), rows_, scratch_.hidden.data(), scratch_.decoder);
      kv_.advance(n);
      done += n;
      const float* last = scratch_.hidden.data() + (n - 1) * width;
      hidden_.assign(last, last + width);
      logits_valid_ = false;
      if (progress) progress(done - begin, total - begin);
    }
  }

  /// Room for the first n tokens; checkpoints give way to it.
  void reserve(std::int64_t n) {
    try {
      kv_.reserve(n);
    } catch (const MemoryError&) {
      if (checkpoints_.empty()) throw;
      checkpoints_.clear();
      kv_.reserve(n);
    }
  }

  /// Back to the first n tokens; some are run again when needed, which gives the same bits.
  void restore(std::int64_t n) noexcept {
    ids_.resize(static_cast<std::size_t>(n));
    logits_valid_ = false;
    std::erase_if(checkpoints_, [&](const Checkpoint& c) { return c.kv.length() > n; });
    if (kv_.length() > n) kv_.truncate(kv_.shape().recurrent() ? 0 : std::max<std::int64_t>(0, n - 1));
    // else hidden_ is the row of the last token that was run
  }

  /// A sequence as it was, for recurrent states, which cannot go back.
  struct Checkpoint {
    KvSequence kv;
    std::vector<float> hidden;
  };
  /// Tokens after the last checkpoint from which on there is another one: to run fewer again costs about what a copied state
  /// does.
  static constexpr std::int64_t worth_a_checkpoint = 64;

  /// Remembers the sequence as it is now.
  void checkpoint() {
    if (kv_.length() != 0) checkpoints_.push_back({kv_.fork(), hidden_});
  }

  Model model_;
  KvPool pool_;
  KvSequence kv_;
  std::vector<Checkpoint> checkpoints_;
  const OutputAdapter* adapter_ = nullptr;
  std::vector<std::int32_t> ids_;
  std::vector<float> hidden_;  // of the last token that was run
  std::vector<DecoderRow> rows_;
  ForwardScratch scratch_;
  bool logits_valid_ = false;
  Sampler sampler_;
  std::uint64_t stream_ = 0;
  std::shared_ptr<std::atomic<bool>> cancelled_;
};

/// The pieces of an answer as text, as an input range of std::string_view; a piece never ends inside a UTF-8 character.
/// What was drawn is kept: ids (an end token included), samples, why it ended.
class Generation {
 public:
  class Iterator {
   public:
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    Iterator() = default;
    explicit Iterator(Generation* generation) : generation_(generation) {}
    std::string_view operator*() const noexcept { return generation_->piece_; }
    Iterator& operator++() {
      if (!generation_->advance()) generation_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(const Iterator& other) const noexcept { return generation_ == other.generation_; }

   private:
    Generation* generation_ = nullptr;
  };

  Generation(Session& session, GenerateOptions options)
      : session_(&session), options_(std::move(options)), prompt_length_(session.length()), stops_(options_.stop) {
    options_.check();
    if (session.length() == 0) throw ArgumentError("the session is empty: feed a prompt first");
    if (session.model().has_tokenizer()) decoder_.emplace(session.model().tokenizer());
    if (!decoder_ && !options_.stop.empty()) session.model().tokenizer();  // throws: stop texts need a tokenizer
  }

  Iterator begin() {
    Iterator it(this);
    ++it;
    return it;
  }
  Iterator end() noexcept { return {}; }

  /// Draws one token, or ends the generation; false when it had ended before, or ends without more text. piece() is the text that
  /// became complete, often empty.
  bool step() {
    piece_.clear();
    if (finish_ != FinishReason::none) return false;
    if (session_->cancelled_->exchange(false)) return finish(FinishReason::cancelled);
    const bool full = session_->length() >= session_->model().config().context_length;
    if (static_cast<std::int64_t>(samples_.size()) >= options_.max_tokens || full) return finish(FinishReason::length);
    Sample sample;
    try {
      sample = session_->next(options_, prompt_length_);
    } catch (const Cancelled&) {
      return finish(FinishReason::cancelled);
    }
    samples_.push_back(sample);
    if (!options_.ignore_eos && session_->model().is_end(sample.id)) {
      finish(FinishReason::stop);
      return true;
    }
    if (decoder_) {
      piece_ = stops_.push(decoder_->add(sample.id));
      text_ += piece_;
      if (stops_.matched()) finish_ = FinishReason::stop;
    }
    return true;
  }

  std::string_view piece() const noexcept { return piece_; }
  const std::string& text() const noexcept { return text_; }
  const std::vector<Sample>& samples() const noexcept { return samples_; }
  std::vector<std::int32_t> ids() const {
    std::vector<std::int32_t> ids;
    for (const Sample& sample : samples_) ids.push_back(sample.id);
    return ids;
  }
  FinishReason finish_reason() const noexcept { return finish_; }

 private:
  /// Steps until there is text or nothing more comes.
  bool advance() {
    while (step())
      if (!piece_.empty()) return true;
    return false;
  }

  /// Gives out what was held back; false when that is nothing.
  bool finish(FinishReason reason) {
    finish_ = reason;
    if (decoder_) {
      piece_ = stops_.push(decoder_->finish());
      piece_ += stops_.finish();
      text_ += piece_;
    }
    return !piece_.empty();
  }

  Session* session_;
  GenerateOptions options_;
  std::int64_t prompt_length_;
  StopTexts stops_;
  std::optional<StreamDecoder> decoder_;
  std::vector<Sample> samples_;
  std::string piece_, text_;
  FinishReason finish_ = FinishReason::none;
};

inline Generation Session::generate(const GenerateOptions& options) { return Generation(*this, options); }

}  // namespace moxie
