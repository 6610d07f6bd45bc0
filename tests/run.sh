#!/bin/sh
# tests/run.sh [ctest options]: installs what is missing, builds everything in build/, runs the tests.
# `tests/run.sh -R quant` runs those whose name matches; CXX=clang++-14 before the first run builds with clang.
set -eu
cd "$(dirname "$0")/.."
sh cmake/debian-packages.sh tests
cmake -S . -B build -G Ninja -D MOXIE_BUILD_TESTS=ON -D MOXIE_BUILD_EXAMPLES=ON -D MOXIE_BUILD_BENCH=ON
cmake --build build
exec ctest --test-dir build --output-on-failure --parallel 2 "$@"
