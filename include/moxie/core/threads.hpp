#pragma once
// Threads: a number of OpenMP threads and the loops that use them. A value, not a pool: nothing global is touched.
//
// Results never depend on the thread count: a task writes only its own output, and no task's arithmetic depends on
// which thread runs it. (OpenMP itself ends the process when the system refuses it threads: ask for no more than there can be.)

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/profile.hpp>

namespace moxie {

/// Waking a team and waiting for it takes some microseconds: less work than this many multiply-adds is done by the calling thread
/// alone.
inline constexpr std::int64_t worth_a_team = std::int64_t{1} << 19;

class Threads {
 public:
  /// `n` threads; 0 means one for each processor of the machine. `profile`, which must outlive the object, takes the threads'
  /// times: only one thread of the program may then use the object at a time. Throws ArgumentError when n is negative or above
  /// 4096.
  explicit Threads(int n = 0, Profile* profile = nullptr) : n_(n == 0 ? hardware() : n), profile_(profile) {
    if (n < 0 || n > 4096) throw ArgumentError(concat("threads must be 0 (all processors) to 4096, got ", n));
    if (profile_) profile_->grow(n_);
  }
  int count() const noexcept { return n_; }
  Profile* profile() const noexcept { return profile_; }

  /// Calls f(i, thread) once for each i of [0, n), `grain` neighbours at a time, taken dynamically; `thread` is in [0, count()).
  /// All are in the caller's stage of the profile. The first exception is thrown again here after all threads have stopped.
  template <class F>
  void for_each(std::int64_t n, F&& f, std::int64_t grain = 1) const {
    for_each_range(
        n,
        [&](std::int64_t begin, std::int64_t end, int thread) {
          for (std::int64_t i = begin; i < end; ++i) f(i, thread);
        },
        grain);
  }

  /// The same with f(begin, end, thread) for ranges that together are [0, n): long ones first, so that a thread mostly goes on
  /// where its memory does, down to `grain` at the end, so that all threads end together.
  template <class F>
  void for_each_range(std::int64_t n, F&& f, std::int64_t grain = 1) const {
    using Body = std::remove_reference_t<F>;
    run(n, grain, const_cast<std::remove_const_t<Body>*>(std::addressof(f)),
        [](void* body, std::int64_t begin, std::int64_t end, int thread) { (*static_cast<Body*>(body))(begin, end, thread); });
  }

 private:
  /// One loop for all bodies: a template would be compiled anew for each.
  void run(std::int64_t n, std::int64_t grain, void* body, void (*call)(void*, std::int64_t, std::int64_t, int)) const {
    if (n <= 0) return;
    const int team = static_cast<int>(std::min<std::int64_t>(n_, (n + grain - 1) / grain));
    if (team <= 1) {
      call(body, 0, n, 0);
      return;
    }
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    std::mutex guard;
    const Stage stage = profile_ ? profile_->stage(0) : Stage::other;
#pragma omp parallel num_threads(team)
    {
      const int thread = omp_get_thread_num();
      if (profile_) profile_->enter(thread, stage);
      try {
        while (!failed.load(std::memory_order_relaxed)) {
          std::int64_t begin = next.load(std::memory_order_relaxed), end = 0;
          do {
            if (begin >= n) break;
            const std::int64_t rest = n - begin;
            end = begin + std::min(rest, std::max(grain, rest / (8 * team)));
          } while (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed));
          if (begin >= n) break;
          call(body, begin, end, thread);
        }
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
        const std::lock_guard lock(guard);
        if (!error) error = std::current_exception();
      }
      if (profile_) profile_->enter(thread, Stage::idle);
    }
    if (profile_) profile_->enter(0, stage);
    if (error) std::rethrow_exception(error);
  }

  static int hardware() noexcept {
    const unsigned n = std::thread::hardware_concurrency();
    return n == 0 ? 1 : static_cast<int>(n);
  }
  int n_;
  Profile* profile_;
};

}  // namespace moxie
