// With two.cpp: every header in two translation units of one program, linked and started.
#include "all_headers.hpp"

const void* other_unit();

#if __has_include(<moxie/kernels/kernels.hpp>)
static const void* this_unit() { return &moxie::kernels::native_table(); }
#else
static const void* this_unit() { return nullptr; }
#endif

int main() { return this_unit() == other_unit() ? 0 : 1; }
