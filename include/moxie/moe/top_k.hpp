#pragma once
// The k largest of n values, stable: larger values first, equal values in the order of their indices.

#include <cstdint>

#include <moxie/core/matrix.hpp>

namespace moxie {

/// Writes the indices of the k largest of value(0), .., value(n - 1) to `ids` [k] and the values to `top` [k]. 1 <= k <= n; no
/// NaN.
template <class Value>
void stable_top_k(Index n, Index k, Value&& value, std::int32_t* ids, float* top) {
  Index found = 0;
  for (Index i = 0; i < n; ++i) {
    const float v = value(i);
    if (found == k && !(v > top[k - 1])) continue;
    Index at = found < k ? found++ : k - 1;
    for (; at > 0 && v > top[at - 1]; --at) {
      top[at] = top[at - 1];
      ids[at] = ids[at - 1];
    }
    top[at] = v;
    ids[at] = static_cast<std::int32_t>(i);
  }
}

}  // namespace moxie
