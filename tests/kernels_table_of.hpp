#pragma once
// A table that differs from another in the int8 products only, and in the rows that they read.

#include <moxie/kernels/kernels.hpp>

namespace test {

/// `rest` with the int8 products of architecture A.
template <class A>
class TableOf {
 public:
  TableOf(const char* name, const moxie::kernels::Table& rest) : table_(rest) {
    add(moxie::Formats{});
    table_.arch = name;
    table_.quantize = &moxie::kernels::quantize<A>;
    table_.make_block = &moxie::kernels::make_block<A>;
    table_.formats = formats_;
    table_.n_formats = moxie::Formats::size;
  }
  const moxie::kernels::Table& get() const { return table_; }

 private:
  template <class... Format>
  void add(moxie::TypeList<Format...>) {
    for (int i = 0; i < moxie::Formats::size; ++i) formats_[i] = table_.formats[i];
    int i = 0;
    (set<Format>(formats_[i++]), ...);
  }
  template <class Format>
  void set(moxie::kernels::FormatKernels& kernels) {
    if constexpr (!moxie::kernels::f32::FloatPanel<Format>) kernels.int8 = &moxie::kernels::matmul_int8<A, Format>;
  }

  moxie::kernels::Table table_;
  moxie::kernels::FormatKernels formats_[moxie::Formats::size];
};

}  // namespace test
