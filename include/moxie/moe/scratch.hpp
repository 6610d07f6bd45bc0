#pragma once
// MoeScratch: the working memory of MoE and feed-forward layers. One object serves all layers of a model, one call at a time;
// once it has seen the largest batch, a call allocates nothing.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <moxie/core/memory.hpp>
#include <moxie/linalg/prepared_rows.hpp>
#include <moxie/moe/dispatch.hpp>
#include <moxie/moe/experts.hpp>

namespace moxie {

struct MoeScratch {
  PreparedRows x, latent_x;
  AlignedBuffer<float> latent, projected;  ///< [rows, latent_size], [rows, hidden]
  AlignedBuffer<float> scores;        ///< [rows, n_experts]
  AlignedBuffer<std::int32_t> ids;    ///< [rows, top_k]
  AlignedBuffer<float> weights;       ///< [rows, top_k]
  AlignedBuffer<float> shared_scale;  ///< [rows]
  Dispatch dispatch;
  FeedForwardScratch networks;

  std::size_t bytes() const noexcept {
    return x.bytes() + latent_x.bytes() + latent.capacity_bytes() + projected.capacity_bytes() + scores.capacity_bytes() +
           ids.capacity_bytes() + weights.capacity_bytes() + shared_scale.capacity_bytes() + networks.bytes();
  }
};

/// Scratch objects for calls that may come from several threads at once.
class ScratchPool {
 public:
  /// A scratch object on loan; it goes back when the loan ends.
  class Loan {
   public:
    explicit Loan(ScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
    ~Loan() { pool_.give(std::move(scratch_)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    MoeScratch& operator*() const noexcept { return *scratch_; }

   private:
    ScratchPool& pool_;
    std::unique_ptr<MoeScratch> scratch_;
  };

 private:
  std::unique_ptr<MoeScratch> take() {
    const std::lock_guard lock(guard_);
    if (idle_.empty()) {
      idle_.reserve(++lent_);  // so that give() does not allocate
      return std::make_unique<MoeScratch>();
    }
    std::unique_ptr<MoeScratch> scratch = std::move(idle_.back());
    idle_.pop_back();
    return scratch;
  }
  void give(std::unique_ptr<MoeScratch> scratch) noexcept {
    const std::lock_guard lock(guard_);
    idle_.push_back(std::move(scratch));
  }

  std::mutex guard_;
  std::vector<std::unique_ptr<MoeScratch>> idle_;
  std::size_t lent_ = 0;  ///< objects that exist
};

}  // namespace moxie
