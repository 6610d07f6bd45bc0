#pragma once
// Where the KV cache's memory comes from: what a position takes, and a pool of pages of 64 positions and of recurrent states,
// shared between sequences by reference count.
//
// A page holds every layer of its positions, so that sharing a prefix is sharing whole pages. Inside a page, for each
// layer and kv head, in elements of KvType:
//   grouped-query attention   keys transposed [k_dim][64], then values [64][v_dim]: scores run over neighbouring positions and
//                             values over neighbouring dimensions, so neither sums across a vector
//   multi-head latent         one row for each position, [64][k_dim] = latent and rotated key; values are its first dimensions
// Rows are padded to 16 elements with zeros.
//
// Scales of codes, bf16, come first, those of keys, then those of values, so that a page is read from its begin to its end.
//
// int8: codes x / d in [-127, 127] with one scale d for each 32 dimensions of a position, of keys [blocks][64], of values (or
// latent rows) [64][blocks]. d is the largest |x| / 127 rounded up, so that no code is cut off.
//
// int16: codes x / u, u a power of two that gives the largest of the elements that share it 13 bits (of values: 12), in words of
// two (kernels/attention_tile.hpp). Keys below 2^-60 and values below 2^-45 lose bits; values of 2^45 and more count as not
// finite.
//   keys          words [blocks of 32 dimensions][16][64], u [blocks][64]
//   values        words [panels of 64 dimensions][32][64], u [64]
//   latent rows   words [64][blocks * 16], u [64][blocks]
//
// What shares a scale with an element that is not finite has a scale that is NaN.
//
// Recurrent layers (gated delta nets, Mamba-2, short convolutions) have a state of one size for the whole sequence instead:
// floats of all such layers in one block, as of the last position that was run. It is shared and copied as pages are, but it
// cannot go back to an earlier position.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/memory.hpp>
#include <moxie/kernels/attention_tile.hpp>

namespace moxie {

inline constexpr std::int64_t kv_page = kernels::kv_page;  ///< positions of a page

inline constexpr std::array<std::pair<std::string_view, KvType>, 5> kv_type_names = {
    {{"int16", KvType::int16}, {"f16", KvType::f16}, {"bf16", KvType::bf16}, {"f32", KvType::f32}, {"int8", KvType::int8}}};

constexpr std::string_view name_of(KvType type) noexcept {
  for (const auto& [name, value] : kv_type_names)
    if (value == type) return name;
  return {};
}
/// Throws ArgumentError when `name` is not in kv_type_names.
inline KvType kv_type_of(std::string_view name) {
  std::string known;
  for (const auto& [each, type] : kv_type_names) {
    if (each == name) return type;
    known += concat(known.empty() ? "" : ", ", each);
  }
  throw ArgumentError(concat("unknown type of the KV cache '", name, "'; must be one of ", known));
}

/// What a position takes. For multi-head latent attention n_heads = 1, k_dim = kv_lora_rank + qk_rope_head_dim, v_dim = 0.
struct KvShape {
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;  ///< kv heads
  std::int64_t k_dim = 0, v_dim = 0;
  KvType type = KvType::int16;
  std::int64_t n_states = 0;      ///< recurrent layers
  std::int64_t state_floats = 0;  ///< of each, a multiple of 16

  bool recurrent() const noexcept { return n_states != 0; }
  std::size_t state_bytes() const noexcept { return static_cast<std::size_t>(n_states * state_floats) * sizeof(float); }
  bool latent() const noexcept { return v_dim == 0; }
  /// Bytes of one layer and head in a page: scales, keys (latent: rows), values.
  std::size_t scale_bytes() const noexcept {
    return static_cast<std::size_t>(kernels::kv_key_scale_bytes(type, k_dim) +
                                    (latent() ? 0 : kernels::kv_value_scale_bytes(type, v_dim)));
  }
  std::size_t key_bytes() const noexcept { return static_cast<std::size_t>(kernels::kv_key_bytes(type, k_dim, latent())); }
  std::size_t value_bytes() const noexcept {
    return latent() ? 0 : static_cast<std::size_t>(kernels::kv_value_bytes(type, v_dim));
  }
  /// Byte offsets in a page.
  std::size_t scale_offset(std::int64_t layer, std::int64_t head) const noexcept {
    return static_cast<std::size_t>(layer * n_heads + head) * (scale_bytes() + key_bytes() + value_bytes());
  }
  std::size_t key_offset(std::int64_t layer, std::int64_t head) const noexcept {
    return scale_offset(layer, head) + scale_bytes();
  }
  std::size_t value_offset(std::int64_t layer, std::int64_t head) const noexcept {
    return key_offset(layer, head) + (latent() ? 0 : key_bytes());
  }
  std::size_t page_bytes() const noexcept { return scale_offset(n_layers, 0); }

  /// Throws ArgumentError when a size is not positive (of recurrent layers, not 0) or a page or state would be larger than 2^40
  /// bytes.
  void check() const {
    const auto bad = [](const char* item, std::int64_t value) {
      throw ArgumentError({{}, item, {}}, concat("must be between 1 and 2^20, got ", value));
    };
    constexpr std::int64_t most = 1 << 20;
    if (n_layers < 1 || n_layers > most) bad("KvShape.n_layers", n_layers);
    if (n_heads < 1 || n_heads > most) bad("KvShape.n_heads", n_heads);
    if (k_dim < 1 || k_dim > most) bad("KvShape.k_dim", k_dim);
    if (v_dim < 0 || v_dim > most) bad("KvShape.v_dim", v_dim);
    if (latent() && n_heads != 1)
      throw ArgumentError({{}, "KvShape.n_heads", {}}, concat("a latent cache (v_dim = 0) has 1 head, got ", n_heads));
    // sizes are below 2^20 each, so every product of two is exact
    const auto head_bytes = static_cast<std::int64_t>(scale_bytes() + key_bytes() + value_bytes());
    constexpr std::int64_t most_bytes = std::int64_t{1} << 40;
    if (n_layers * n_heads > most_bytes / head_bytes)
      throw ArgumentError({{}, "KvShape", {}}, "a page of 64 positions would take more than 2^40 bytes");
    if (n_states == 0 && state_floats == 0) return;
    if (n_states < 1 || n_states > most) bad("KvShape.n_states", n_states);
    if (state_floats < 1 || state_floats > most_bytes / 4 || state_floats % 16 != 0)
      throw ArgumentError({{}, "KvShape.state_floats", {}},
                          concat("must be a multiple of 16 from 16 to 2^38, got ", state_floats));
    if (n_states > most_bytes / 4 / state_floats)
      throw ArgumentError({{}, "KvShape", {}}, "the state of a sequence would take more than 2^40 bytes");
  }
};

class KvSequence;

/// Where sequences take their pages from. A handle: copies share the pool, and sequences keep it alive.
class KvPool {
 public:
  /// Pages and states together take at most `budget_bytes`; 0: no limit. Throws ArgumentError when the shape is out of range.
  explicit KvPool(const KvShape& shape, std::size_t budget_bytes = 0) : state_(std::make_shared<State>(shape, budget_bytes)) {}

  const KvShape& shape() const noexcept { return state_->shape; }
  std::size_t page_bytes() const noexcept { return state_->pages.size; }
  std::size_t state_bytes() const noexcept { return state_->states.size; }  ///< of a sequence's recurrent layers, else 0
  /// Bytes of the pages and states that sequences hold; what several share counts once.
  std::size_t bytes_in_use() const noexcept {
    const std::lock_guard lock(state_->guard);
    return state_->in_use();
  }
  /// The same with those that were given back and will be used again; never more than the budget.
  std::size_t bytes_held() const noexcept {
    const std::lock_guard lock(state_->guard);
    return state_->pages.held() + state_->states.held();
  }
  std::size_t budget_bytes() const noexcept { return state_->budget; }

 private:
  friend class KvSequence;
  /// A page, or a recurrent state.
  struct Block {
    std::shared_ptr<std::byte> data;
    std::atomic<std::int64_t> references{1};
  };
  /// Blocks of one size.
  struct Stock {
    std::size_t size;
    std::vector<std::unique_ptr<Block>> free = {};
    std::size_t in_use = 0;

    std::size_t held() const noexcept { return (in_use + free.size()) * size; }
    /// Makes n blocks free: those that were given back are used again.
    void fill(std::size_t n, Arena* arena) {
      free.reserve(in_use + free.size() + n);  // so that giving back never allocates
      while (free.size() < n) {
        auto block = std::make_unique<Block>();
        block->data = arena ? arena->allocate(size) : allocate_shared_bytes(size);
        std::memset(block->data.get(), 0, size);
        free.push_back(std::move(block));
      }
    }
    Block* take() noexcept {
      Block* block = free.back().release();
      free.pop_back();
      block->references.store(1, std::memory_order_relaxed);
      ++in_use;
      return block;
    }
  };
  struct State {
    State(const KvShape& s, std::size_t budget_bytes)
        : shape(s), budget(budget_bytes), pages{s.page_bytes()}, states{s.state_bytes()} {
      shape.check();
    }
    std::size_t in_use() const noexcept { return pages.in_use * pages.size + states.in_use * states.size; }

    /// n pages with one reference each, appended to `taken`, their memory to `data`, and a state where `with_state`; all or
    /// nothing.
    Block* take(std::size_t n, std::vector<Block*>& taken, std::vector<std::byte*>& data, bool with_state) {
      const std::lock_guard lock(guard);
      const std::size_t used = in_use(), left = (budget != 0 ? std::max(budget, used) : most_bytes) - used;
      const std::size_t state = with_state ? states.size : 0;
      if (state > left || n > (left - state) / pages.size)
        throw MemoryError(concat("the KV cache needs ", n, " more pages of ", pages.size, " bytes",
                                 (with_state ? concat(" and a state of ", state) : std::string()), ", but of ",
                                 (budget != 0 ? concat("its budget of ", budget) : concat("the address space of ", most_bytes)),
                                 " bytes only ", left / pages.size, " pages (",
                                 (with_state ? left : left / pages.size * pages.size),
                                 " bytes) are available; end or truncate a sequence, or give a larger budget"));
      taken.reserve(taken.size() + n);
      data.reserve(data.size() + n);
      // What was given back makes room for blocks of the other kind; alone it is used again before there is more.
      const auto exceeds = [&] {
        return in_use() + std::max(pages.free.size(), n) * pages.size +
                   std::max<std::size_t>(states.free.size(), with_state) * states.size >
               budget;
      };
      while (budget != 0 && pages.free.size() > n && exceeds()) pages.free.pop_back();
      while (budget != 0 && states.free.size() > with_state && exceeds()) states.free.pop_back();
      Arena* const shared = budget == 0 || !shape.recurrent() ? &arena : nullptr;  // else blocks are freed one by one
      pages.fill(n, shared);
      states.fill(with_state, shared);
      for (std::size_t i = 0; i < n; ++i) {
        taken.push_back(pages.take());
        data.push_back(taken.back()->data.get());
      }
      return with_state ? states.take() : nullptr;
    }
    void give_back(Block* block, Stock& to) noexcept {
      if (block->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
      const std::lock_guard lock(guard);
      to.free.push_back(std::unique_ptr<Block>(block));
      --to.in_use;
    }

    static constexpr std::size_t most_bytes = std::size_t{1} << 47;
    const KvShape shape;
    const std::size_t budget;
    std::mutex guard;
    Arena arena;
    Stock pages, states;
  };
  std::shared_ptr<State> state_;
};

}  // namespace moxie
