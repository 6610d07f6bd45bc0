// The hash of core/hash.hpp is XXH64.

#include <cstdint>
#include <string_view>

#include <doctest/doctest.h>

#include <moxie/core/hash.hpp>

TEST_CASE("XXH64 gives the values that its authors and python-xxhash publish") {
  const auto hash = [](std::string_view text, std::uint64_t seed = 0) { return moxie::xxh64(text.data(), text.size(), seed); };
  CHECK(hash("") == 0xef46db3751d8e999u);
  CHECK(hash("a") == 0xd24ec4f1a98c6e5bu);
  CHECK(hash("abc") == 0x44bc2cf5ad770999u);
  CHECK(hash("Nobody inspects the spammish repetition") == 0xfbcea83c8a378bf1u);
  CHECK(hash("xxhash", 20141025) == 0xb559b98d844e0635u);
}
