#if __has_include(<moxie/moxie.hpp>)
#include <moxie/moxie.hpp>
#else
#include <moxie/core/threads.hpp>
#endif
#include <iostream>

int main() {
  try {
    const moxie::Threads threads(-1);
    return 1;
  } catch (const moxie::Error& error) {
    std::cout << error.what() << '\n';
  }
}
