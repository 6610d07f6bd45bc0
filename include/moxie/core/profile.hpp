#pragma once
// Profile: where the time of the threads goes, by stages of a token's way.
//
// Each thread is in one stage at any moment and writes only its own slot, so that over a measured stretch the times of every
// thread add up to its length. Threads that wait, inside a parallel loop or between two of them, are idle. A switch of stages
// takes one reading of the steady clock, some 20 ns. Without a profile, a StageScope is one test of a pointer.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace moxie {

enum class Stage : unsigned char {
  other,        ///< embedding, norms, RoPE, quantization, activation functions, softmax, combining, and what is between
  experts,      ///< matrix products of experts, shared experts and dense feed-forward networks
  projections,  ///< matrix products of attention
  attention,    ///< scores, softmax and values over KV pages
  router,       ///< matrix product and choice of experts
  output,       ///< matrix product with the output matrix
  idle,
  count
};

inline const char* stage_name(Stage stage) noexcept {
  constexpr const char* names[] = {"other", "experts", "projections", "attention", "router", "output", "idle"};
  return names[static_cast<std::size_t>(stage)];
}

class Profile {
 public:
  /// Room for `n` threads, before they use it.
  void grow(int n) {
    if (n > threads()) slots_.resize(static_cast<std::size_t>(n));
  }
  int threads() const noexcept { return static_cast<int>(slots_.size()); }

  /// From the thread that calls the model, outside parallel loops: all times are zero from here on.
  void start() {
    const std::int64_t now = clock();
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i] = {now, i == 0 ? Stage::other : Stage::idle, {}};
  }
  /// From the same thread: times up to now are counted.
  void stop() {
    const std::int64_t now = clock();
    for (Slot& slot : slots_) slot.add(now);
  }
  /// Time of a thread in a stage between start() and stop(), in seconds.
  double seconds(int thread, Stage stage) const {
    return 1e-9 * static_cast<double>(slots_[static_cast<std::size_t>(thread)].spent[static_cast<std::size_t>(stage)]);
  }

  /// What `thread`, the caller's number in its team, is in.
  Stage stage(int thread) const noexcept { return slots_[static_cast<std::size_t>(thread)].stage; }
  /// `thread`, the caller's number in its team, goes on to another stage; returns the one it was in.
  Stage enter(int thread, Stage stage) noexcept {
    Slot& slot = slots_[static_cast<std::size_t>(thread)];
    slot.add(clock());
    return std::exchange(slot.stage, stage);
  }

 private:
  struct alignas(64) Slot {
    std::int64_t since = 0;
    Stage stage = Stage::idle;
    std::array<std::int64_t, static_cast<std::size_t>(Stage::count)> spent{};
    void add(std::int64_t now) noexcept {
      spent[static_cast<std::size_t>(stage)] += now - since;
      since = now;
    }
  };
  static std::int64_t clock() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  std::vector<Slot> slots_;
};

/// Until its end, `thread` is in `stage`: number 0 outside of parallel loops, else what Threads::for_each() gave.
class StageScope {
 public:
  StageScope(Profile* profile, Stage stage, int thread = 0) noexcept : profile_(profile), thread_(thread) {
    if (profile_) before_ = profile_->enter(thread_, stage);
  }
  ~StageScope() {
    if (profile_) profile_->enter(thread_, before_);
  }
  StageScope(const StageScope&) = delete;
  StageScope& operator=(const StageScope&) = delete;

 private:
  Profile* profile_;
  int thread_;
  Stage before_ = Stage::other;
};

}  // namespace moxie
