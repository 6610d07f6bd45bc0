// Every header in one translation unit, with the kernels' table, so that they are compiled. It is linked twice.
#include "all_headers.hpp"

[[maybe_unused]] static const moxie::kernels::Table* const table = &moxie::kernels::native_table();
