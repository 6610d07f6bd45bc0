#pragma once
// Memory aligned to 64 bytes (a cache line, an AVX-512 register) that is left uninitialized.

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include <moxie/core/error.hpp>

namespace moxie {

inline constexpr std::size_t memory_alignment = 64;

constexpr std::size_t round_up(std::size_t n, std::size_t to) noexcept { return (n + to - 1) / to * to; }

/// `count` elements of a trivial type; grows but never shrinks, and does not keep its content when it grows.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) { resize(count); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)), capacity_(std::exchange(other.capacity_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }

  /// Room for `count` elements. The content is undefined afterwards when the buffer grew. Throws MemoryError.
  void resize(std::size_t count) {
    if (count > capacity_) {
      if (count > (std::numeric_limits<std::size_t>::max() - memory_alignment) / sizeof(T))
        throw MemoryError("a buffer of " + std::to_string(count) + " elements is too large");
      data_.reset();
      capacity_ = 0;
      const std::size_t bytes = round_up(count * sizeof(T), memory_alignment);
      data_.reset(static_cast<T*>(std::aligned_alloc(memory_alignment, bytes)));
      if (!data_) throw MemoryError("out of memory: " + std::to_string(bytes) + " bytes were asked for");
      capacity_ = count;
    }
    size_ = count;
  }
  T* data() noexcept { return data_.get(); }
  const T* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }
  std::size_t capacity_bytes() const noexcept { return capacity_ * sizeof(T); }
  T& operator[](std::size_t i) noexcept { return data_.get()[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0, capacity_ = 0;
};

}  // namespace moxie
