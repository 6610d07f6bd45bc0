#pragma once
// Memory aligned to 64 bytes (a cache line, an AVX-512 register) that is left uninitialized. What has 2 MiB or more lies in large
// pages where the system has them.

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/platform.hpp>

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
        throw MemoryError(concat("a buffer of ", count, " elements is too large"));
      data_.reset();
      capacity_ = 0;
      const std::size_t bytes = round_up(count * sizeof(T), memory_alignment);
      const bool large = bytes >= huge_page_bytes;
      void* memory = nullptr;
      if (::posix_memalign(&memory, large ? huge_page_bytes : memory_alignment, bytes) != 0)
        throw MemoryError(concat("out of memory: ", bytes, " bytes were asked for"));
      data_.reset(static_cast<T*>(memory));
      if (large) advise_huge_pages(memory, bytes);
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

/// Uninitialized bytes, freed with the last copy of the pointer. Throws MemoryError.
inline std::shared_ptr<std::byte> allocate_shared_bytes(std::size_t bytes) {
  const auto buffer = std::make_shared<AlignedBuffer<std::byte>>(bytes);
  return {buffer, buffer->data()};
}

/// Pieces of large buffers, so that many matrices that are smaller than a large page share such pages. From any thread. What was
/// handed out outlives the arena; a buffer is freed with its last piece.
class Arena {
 public:
  /// `bytes` of uninitialized memory. Throws MemoryError.
  std::shared_ptr<std::byte> allocate(std::size_t bytes) {
    if (bytes > buffer_bytes / 8) return allocate_shared_bytes(bytes);
    const std::size_t step = round_up(bytes, memory_alignment);
    const std::lock_guard lock(guard_);
    if (!buffer_ || step > buffer_bytes - used_) {
      buffer_ = allocate_shared_bytes(buffer_bytes);
      used_ = 0;
    }
    std::byte* const piece = buffer_.get() + used_;
    used_ += step;
    return {buffer_, piece};
  }

 private:
  // 32 large pages; what the last piece leaves is never touched, so that it takes no memory but the rest of one page
  static constexpr std::size_t buffer_bytes = std::size_t{64} << 20;
  std::mutex guard_;
  std::shared_ptr<std::byte> buffer_;
  std::size_t used_ = 0;
};

}  // namespace moxie
