#pragma once
// What every computation is given: the kernels of this CPU, the threads, and how activations are multiplied.

#include <moxie/core/memory.hpp>
#include <moxie/core/threads.hpp>
#include <moxie/kernels/table.hpp>

namespace moxie {

/// Form of the activations in matrix products with quantized weights.
enum class Activations {
  int8,  ///< rounded to int8 in blocks of 32: the fast path
  f32    ///< exact f32: the reference path
};

struct Context {
  const kernels::Table* kernels = nullptr;
  Threads threads{1};
  Activations activations = Activations::int8;
  Arena* arena = nullptr;  ///< where matrices are packed to; nullptr: each into memory of its own

  /// Of the threads; nullptr: none.
  Profile* profile() const noexcept { return threads.profile(); }
};

}  // namespace moxie
