#include "all_headers.hpp"

const void* other_unit();

#if __has_include(<moxie/kernels/kernels.hpp>)
const void* other_unit() { return &moxie::kernels::native_table(); }
#else
const void* other_unit() { return nullptr; }
#endif
