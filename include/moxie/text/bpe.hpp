#pragma once
// Byte-pair encoding: a word's symbols (at first one for each byte or character) are joined pair by pair, always the pair with
// the lowest rank, the leftmost of equals, until no adjacent pair is in the list of merges.
//
// Cost: O(n log n) for a word of n symbols.
// Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units".

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace moxie {

/// The merges: (left id, right id) -> rank and joined id. Open addressing, at most half full.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;  ///< none: not in the list
    std::int32_t id;
  };
  static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

  explicit MergeTable(std::size_t merges = 0) : slots_(std::bit_ceil(2 * merges + 2)) {}

  /// Adds a merge; false when the pair is there already (the first one stays). Holds at most the number given to the constructor.
  bool add(std::int32_t left, std::int32_t right, Merge merge) {
    const std::uint64_t key = key_of(left, right);
    std::size_t slot = hash(key);
    while (slots_[slot].merge.rank != none) {
      if (slots_[slot].key == key) return false;
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = {key, merge};
    return true;
  }

  Merge find(std::int32_t left, std::int32_t right) const noexcept {
    const std::uint64_t key = key_of(left, right);
    std::size_t slot = hash(key);
    while (slots_[slot].merge.rank != none) {
      if (slots_[slot].key == key) return slots_[slot].merge;
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return {none, -1};
  }

 private:
  struct Slot {
    std::uint64_t key = 0;
    Merge merge{none, -1};
  };
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) noexcept {
    return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
  }
  std::size_t hash(std::uint64_t key) const noexcept {
    key *= 0x9E3779B97F4A7C15u;
    return static_cast<std::size_t>(key ^ (key >> 32)) & (slots_.size() - 1);
  }
  std::vector<Slot> slots_;
};

/// Merges words; keeps its working memory between calls. One per thread.
class BpeMerger {
 public:
  /// The symbols to be merged: fill before merge(), read after it.
  std::vector<std::int32_t> symbols;

  void merge(const MergeTable& merges) {
    if (symbols.size() <= short_word) {
      merge_short(merges);
    } else {
      merge_long(merges);
    }
  }

 private:
  // up to here looking at every pair costs less than a heap
  static constexpr std::size_t short_word = 32;

  void merge_short(const MergeTable& merges) {
    MergeTable::Merge pairs[short_word];
    std::size_t n = symbols.size();
    for (std::size_t i = 0; i + 1 < n; ++i) pairs[i] = merges.find(symbols[i], symbols[i + 1]);
    while (n > 1) {
      std::size_t best = 0;
      for (std::size_t i = 1; i + 1 < n; ++i) {
        if (pairs[i].rank < pairs[best].rank) best = i;
      }
      if (pairs[best].rank == MergeTable::none) break;
      symbols[best] = pairs[best].id;
      --n;
      for (std::size_t i = best + 1; i < n; ++i) {
        symbols[i] = symbols[i + 1];
        pairs[i - 1] = pairs[i];
      }
      if (best + 1 < n) pairs[best] = merges.find(symbols[best], symbols[best + 1]);
      if (best > 0) pairs[best - 1] = merges.find(symbols[best - 1], symbols[best]);
    }
    symbols.resize(n);
  }

  void merge_long(const MergeTable& merges) {
    const auto n = static_cast<std::uint32_t>(symbols.size());
    links_.resize(n);
    for (std::uint32_t i = 0; i < n; ++i) links_[i] = {i - 1, i + 1};  // before the first: UINT32_MAX; after the last: n
    heap_.clear();
    const auto add = [&](std::uint32_t left, std::uint32_t right) {
      const MergeTable::Merge merge = merges.find(symbols[left], symbols[right]);
      if (merge.rank == MergeTable::none) return false;
      heap_.push_back({merge.rank, left, symbols[left], symbols[right], merge.id});
      return true;
    };
    for (std::uint32_t i = 0; i + 1 < n; ++i) add(i, i + 1);
    std::make_heap(heap_.begin(), heap_.end());
    const auto push = [&](std::uint32_t left, std::uint32_t right) {
      if (add(left, right)) std::push_heap(heap_.begin(), heap_.end());
    };
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      const std::uint32_t left = best.position;
      if (symbols[left] != best.left) continue;  // merged meanwhile
      const std::uint32_t right = links_[left].next;
      if (right >= n || symbols[right] != best.right) continue;
      symbols[left] = best.merged;
      symbols[right] = gone;
      const std::uint32_t after = links_[right].next;
      links_[left].next = after;
      if (after < n) links_[after].previous = left;
      if (links_[left].previous < n) push(links_[left].previous, left);
      if (after < n) push(left, after);
    }
    symbols.erase(std::remove(symbols.begin(), symbols.end(), gone), symbols.end());
  }

  static constexpr std::int32_t gone = std::numeric_limits<std::int32_t>::min();
  struct Link {
    std::uint32_t previous, next;
  };
  struct Candidate {
    std::uint32_t rank, position;
    std::int32_t left, right, merged;
    // the standard heap has its largest on top: the lowest rank, then the leftmost
    friend bool operator<(const Candidate& a, const Candidate& b) noexcept {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    }
  };
  std::vector<Link> links_;
  std::vector<Candidate> heap_;
};

}  // namespace moxie
