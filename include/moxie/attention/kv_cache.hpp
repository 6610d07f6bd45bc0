#pragma once
// The keys and values of a sequence, in pages of a pool (kv_pool.hpp says how they lie there): written position by position,
// shared by forks, copied when one of them goes on.
//
// One sequence is used by one thread at a time, except write(); different sequences of a pool may be used at once.

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <moxie/attention/kv_pool.hpp>
#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/floats.hpp>
#include <moxie/kernels/attention_tile.hpp>

namespace moxie {

/// The keys and values of one sequence: positions [0, length) are complete, [length, reserved) may be written. Its recurrent
/// states, if the shape has them, are those after position length - 1, until the next ones are run.
class KvSequence {
 public:
  explicit KvSequence(const KvPool& pool) : state_(pool.state_) {}
  ~KvSequence() {
    drop_pages(0);
    drop_recurrent();
  }
  KvSequence(KvSequence&& other) noexcept { swap(other); }
  KvSequence& operator=(KvSequence&& other) noexcept {
    KvSequence old(std::move(other));
    swap(old);
    return *this;
  }

  const KvShape& shape() const noexcept { return state_->shape; }
  std::int64_t length() const noexcept { return length_; }
  std::int64_t reserved() const noexcept { return reserved_; }

  /// What reserve() of more positions would copy, because others hold it too.
  struct Shared {
    const std::byte* data = nullptr;
    std::int64_t holders = 0;
    std::size_t bytes = 0;
  };
  /// The page of position length() and the recurrent state; holders is 0 or 1 for what is not there or not shared.
  std::array<Shared, 2> shared() const noexcept {
    const auto of = [](const KvPool::Block* block, std::size_t bytes) {
      return block ? Shared{block->data.get(), block->references.load(std::memory_order_acquire), bytes} : Shared{};
    };
    const std::size_t last = full_pages();
    return {of(last < pages_.size() ? pages_[last] : nullptr, state_->pages.size), of(recurrent_, state_->states.size)};
  }
  /// Bytes that reserve(n) would take from the pool.
  std::size_t bytes_to_reserve(std::int64_t n) const noexcept {
    return pages_to_take(n, copies_last_page(n)) * state_->pages.size + (takes_state(n) ? state_->states.size : 0);
  }
  /// Makes positions [length, n) writable; a last page and a state that others share are copied first. Throws MemoryError, and
  /// then nothing has changed, or ArgumentError when n is below the length.
  void reserve(std::int64_t n) {
    if (n < length_)
      throw ArgumentError(concat("cannot reserve ", n, " positions of a sequence of length ", length_, "; truncate it first"));
    const bool copy = copies_last_page(n), with_state = takes_state(n);  // asked once: other holders may end at any time
    const std::size_t taken = pages_to_take(n, copy);
    KvPool::Block* state = nullptr;
    try {
      state = state_->take(taken, pages_, data_, with_state);
    } catch (const std::bad_alloc&) {
      throw MemoryError(concat("out of memory: ", taken, " pages of the KV cache were asked for, ", state_->pages.size,
                               " bytes each", (with_state ? concat(", and a state of ", state_->states.size) : std::string())));
    }
    if (copy) {
      const std::size_t last = full_pages();
      std::memcpy(data_.back(), data_[last], state_->pages.size);
      std::swap(pages_[last], pages_.back());
      std::swap(data_[last], data_.back());
      state_->give_back(pages_.back(), state_->pages);
      pages_.pop_back();
      data_.pop_back();
    }
    if (state) {
      if (recurrent_)
        std::memcpy(state->data.get(), recurrent_->data.get(), state_->states.size);
      else
        std::memset(state->data.get(), 0, state_->states.size);
      drop_recurrent();
      recurrent_ = state;
    }
    reserved_ = std::max(reserved_, n);
  }
  /// The state of recurrent layer i, floats of KvShape::state_floats, zeros before the first position; only while positions are
  /// reserved.
  float* state(std::int64_t i) noexcept {
    return reinterpret_cast<float*>(recurrent_->data.get()) + i * state_->shape.state_floats;
  }
  /// Writes the keys [n_heads * k_dim] and values [n_heads * v_dim] of one position (for a latent cache `v` is not read).
  /// Different positions may be written by different threads at once. Throws ArgumentError when the position is not
  /// reserved or the layer does not exist.
  void write(std::int64_t layer, std::int64_t position, const float* k, const float* v) {
    if (position < length_ || position >= reserved_ || layer < 0 || layer >= state_->shape.n_layers)
      throw ArgumentError(concat("cannot write layer ", layer, " of position ", position, "; layers are 0 to ",
                                 state_->shape.n_layers - 1, ", and positions ", length_, " to ", reserved_ - 1,
                                 " are reserved"));
    switch (state_->shape.type) {
      case KvType::f32:
        write_as<float>(layer, position, k, v, [](float x) { return x; });
        break;
      case KvType::f16:
        write_as<std::uint16_t>(layer, position, k, v, [](float x) { return f32_to_f16(x); });
        break;
      case KvType::bf16:
        write_as<std::uint16_t>(layer, position, k, v, [](float x) { return f32_to_bf16(x); });
        break;
      case KvType::int16:
        write_int16(layer, position, k, v);
        break;
      case KvType::int8:
        write_int8(layer, position, k, v);
        break;
    }
  }
  /// The next n positions, written in all layers, are complete. Throws ArgumentError when they were not reserved.
  void advance(std::int64_t n) {
    if (n < 0 || n > reserved_ - length_)
      throw ArgumentError(concat("cannot advance by ", n, " positions; ", reserved_ - length_, " are reserved"));
    length_ += n;
  }
  /// Forgets positions n and later, reserved ones too. Throws ArgumentError when n is above the length, or, of a sequence with
  /// recurrent states, neither that nor 0.
  void truncate(std::int64_t n) {
    if (n < 0 || n > length_) throw ArgumentError(concat("cannot truncate a sequence of length ", length_, " to ", n));
    if (recurrent_ && n != length_ && n != 0)
      throw ArgumentError(concat("cannot truncate a sequence of length ", length_, " to ", n,
                                 ": its recurrent states are those of its end; run it again from position 0, or from a fork"));
    length_ = reserved_ = n;
    drop_pages(pages_for(n));
    if (n == 0) drop_recurrent();
  }
  /// Says that a pass over reserved positions failed: recurrent states that it may have changed are lost, and with them all
  /// positions. Without such states nothing is.
  void fail() noexcept {
    if (!recurrent_) return;
    length_ = reserved_ = 0;
    drop_pages(0);
    drop_recurrent();
  }
  /// A sequence with the same positions [0, length), sharing their pages. What this one had reserved must be reserved again.
  KvSequence fork() {
    truncate(length_);
    KvSequence other(state_);
    other.data_ = data_;
    other.pages_.reserve(pages_.size());
    for (KvPool::Block* page : pages_) {
      page->references.fetch_add(1, std::memory_order_relaxed);
      other.pages_.push_back(page);
    }
    if (recurrent_) recurrent_->references.fetch_add(1, std::memory_order_relaxed);
    other.recurrent_ = recurrent_;
    other.length_ = other.reserved_ = length_;
    return other;
  }

  /// Page p holds positions [64 p, 64 p + 64); a page of [0, length) or of the reserved positions.
  const std::byte* const* pages() const noexcept { return data_.data(); }

 private:
  explicit KvSequence(std::shared_ptr<KvPool::State> state) : state_(std::move(state)) {}

  static std::size_t pages_for(std::int64_t n) noexcept { return static_cast<std::size_t>(n / kv_page + (n % kv_page != 0)); }
  std::size_t full_pages() const noexcept { return static_cast<std::size_t>(length_ / kv_page); }
  bool copies_last_page(std::int64_t n) const noexcept { return n > length_ && shared()[0].holders > 1; }
  bool takes_state(std::int64_t n) const noexcept {
    return n > length_ && state_->shape.recurrent() && (!recurrent_ || shared()[1].holders > 1);
  }
  std::size_t pages_to_take(std::int64_t n, bool copy) const noexcept {
    const std::size_t needed = pages_for(n);
    return (needed > pages_.size() ? needed - pages_.size() : 0) + copy;
  }
  void drop_pages(std::size_t kept) noexcept {
    while (pages_.size() > kept) {
      state_->give_back(pages_.back(), state_->pages);
      pages_.pop_back();
    }
    data_.resize(std::min(data_.size(), kept));
  }
  void drop_recurrent() noexcept {
    if (recurrent_) state_->give_back(std::exchange(recurrent_, nullptr), state_->states);
  }
  void swap(KvSequence& other) noexcept {
    std::swap(state_, other.state_);
    std::swap(pages_, other.pages_);
    std::swap(data_, other.data_);
    std::swap(recurrent_, other.recurrent_);
    std::swap(length_, other.length_);
    std::swap(reserved_, other.reserved_);
  }

  template <class T, class Convert>
  void write_as(std::int64_t layer, std::int64_t position, const float* k, const float* v, Convert convert) noexcept {
    const KvShape& shape = state_->shape;
    std::byte* page = data_[static_cast<std::size_t>(position / kv_page)];
    const std::int64_t slot = position % kv_page, stride = kernels::kv_row_stride(shape.latent() ? shape.k_dim : shape.v_dim);
    for (std::int64_t head = 0; head < shape.n_heads; ++head) {
      T* keys = reinterpret_cast<T*>(page + shape.key_offset(layer, head));
      if (shape.latent()) {
        for (std::int64_t d = 0; d < shape.k_dim; ++d) keys[slot * stride + d] = convert(k[d]);
        continue;
      }
      for (std::int64_t d = 0; d < shape.k_dim; ++d) keys[d * kv_page + slot] = convert(k[head * shape.k_dim + d]);
      T* values = reinterpret_cast<T*>(page + shape.value_offset(layer, head)) + slot * stride;
      for (std::int64_t d = 0; d < shape.v_dim; ++d) values[d] = convert(v[head * shape.v_dim + d]);
    }
  }

  /// The unit of codes of n elements, the largest of which gets `bits` bits, as if it were at least `least`: a power of two, or
  /// NaN if it is not below `bound`.
  static float unit_of(const float* x, std::int64_t n, int bits, float least, float bound) noexcept {
    std::uint32_t largest = std::bit_cast<std::uint32_t>(least);  // bits of |x|, ordered as their values, NaN last
    for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
    if (largest >= std::bit_cast<std::uint32_t>(bound)) return std::numeric_limits<float>::quiet_NaN();
    return std::bit_cast<float>(largest & 0x7f800000u) / static_cast<float>(1 << (bits - 1));
  }
  /// x * inverse rounded to a code (half to even): 1.5 * 2^23 has an ulp of 1.
  static std::int16_t code_of(float x, float inverse) noexcept {
    return static_cast<std::int16_t>(std::bit_cast<std::int32_t>(x * inverse + 12582912.0f));
  }

  void write_int16(std::int64_t layer, std::int64_t position, const float* k, const float* v) noexcept {
    using kernels::kv_block, kernels::kv_blocks, kernels::kv_pairs, kernels::kv_page_pairs, kernels::kv_panel;
    const KvShape& shape = state_->shape;
    const bool latent = shape.latent();
    std::byte* page = data_[static_cast<std::size_t>(position / kv_page)];
    const std::int64_t slot = position % kv_page, blocks = kv_blocks(shape.k_dim);
    const auto store_unit = [](std::byte* units, std::int64_t i, float unit) {
      const std::uint16_t bits = f32_to_bf16(unit);
      std::memcpy(units + 2 * i, &bits, 2);
    };
    for (std::int64_t head = 0; head < shape.n_heads; ++head) {
      std::byte *keys = page + shape.key_offset(layer, head), *units = page + shape.scale_offset(layer, head);
      for (std::int64_t b = 0; b < blocks; ++b) {
        const float* x = k + head * shape.k_dim + b * kv_block;
        const std::int64_t n = std::min(kv_block, shape.k_dim - b * kv_block);
        const float unit = unit_of(x, n, kernels::kv_key_bits, kernels::kv_key_least, std::numeric_limits<float>::infinity()),
                    inverse = 1.0f / unit;
        std::int16_t codes[kv_block] = {};
        for (std::int64_t i = 0; i < n; ++i) codes[i] = code_of(x[i], inverse);
        for (std::int64_t i = 0; i < kv_pairs; ++i) {
          const std::int16_t word[2] = {codes[i], codes[i + kv_pairs]};
          const std::int64_t p = b * kv_pairs + i;
          std::memcpy(keys + 4 * (latent ? slot * blocks * kv_pairs + p : p * kv_page + slot), word, 4);
        }
        store_unit(units, latent ? slot * blocks + b : b * kv_page + slot, unit);
      }
      if (latent) continue;
      const float* x = v + head * shape.v_dim;
      const float unit = unit_of(x, shape.v_dim, kernels::kv_value_bits, kernels::kv_value_least, kernels::kv_value_bound),
                  inverse = 1.0f / unit;
      std::byte* values = page + shape.value_offset(layer, head);
      const std::int64_t pair = slot / kv_block * kv_pairs + slot % kv_pairs, half = slot / kv_pairs % 2;
      for (std::int64_t d = 0; d < shape.v_dim; ++d) {
        const std::int16_t code = code_of(x[d], inverse);
        std::memcpy(values + 4 * ((d / kv_panel * kv_page_pairs + pair) * kv_panel + d % kv_panel) + 2 * half, &code, 2);
      }
      store_unit(units + kernels::kv_key_scale_bytes(KvType::int16, shape.k_dim), slot, unit);
    }
  }

  void write_int8(std::int64_t layer, std::int64_t position, const float* k, const float* v) noexcept {
    const KvShape& shape = state_->shape;
    std::byte* page = data_[static_cast<std::size_t>(position / kv_page)];
    const std::int64_t slot = position % kv_page;
    /// Codes code_step apart, scales scale_step apart.
    const auto quantize = [](const float* x, std::int64_t n, std::byte* codes, std::int64_t code_step, std::byte* scales,
                             std::int64_t scale_step) {
      for (std::int64_t begin = 0; begin < n; begin += kernels::kv_block) {
        const std::int64_t end = std::min(n, begin + kernels::kv_block);
        std::uint32_t bits = 0;  // of |x|, ordered as their values, NaN last
        for (std::int64_t d = begin; d < end; ++d) bits = std::max(bits, std::bit_cast<std::uint32_t>(x[d]) & 0x7fffffffu);
        const float most = std::bit_cast<float>(bits);
        const auto up = static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(most / 127.0f) + 0xffffu) >> 16);
        const std::uint16_t scale = most < 0x1p120f ? up : 0x7fc0;
        const float inverse = most >= 0x1p-100f && most < 0x1p120f ? 1.0f / bf16_to_f32(scale) : 0.0f;
        for (std::int64_t d = begin; d < end; ++d)
          codes[d * code_step] = static_cast<std::byte>(inverse == 0.0f ? 0 : std::lrintf(x[d] * inverse));
        std::memcpy(scales + begin / kernels::kv_block * scale_step, &scale, 2);
      }
    };
    for (std::int64_t head = 0; head < shape.n_heads; ++head) {
      std::byte* keys = page + shape.key_offset(layer, head);
      std::byte* rows = shape.latent() ? keys : page + shape.value_offset(layer, head);
      const std::int64_t dim = shape.latent() ? shape.k_dim : shape.v_dim, stride = kernels::kv_row_stride(dim);
      const float* row = shape.latent() ? k : v + head * shape.v_dim;
      std::byte* scales = page + shape.scale_offset(layer, head);
      std::byte* row_scales = scales + (shape.latent() ? 0 : kernels::kv_key_scale_bytes(KvType::int8, shape.k_dim));
      quantize(row, dim, rows + slot * stride, 1, row_scales + slot * kernels::kv_blocks(dim) * 2, 2);
      if (!shape.latent()) quantize(k + head * shape.k_dim, shape.k_dim, keys + slot, kv_page, scales + slot * 2, kv_page * 2);
    }
  }

  std::shared_ptr<KvPool::State> state_;
  std::vector<KvPool::Block*> pages_;
  std::vector<std::byte*> data_;  // of pages_
  KvPool::Block* recurrent_ = nullptr;
  std::int64_t length_ = 0, reserved_ = 0;
};

}  // namespace moxie
