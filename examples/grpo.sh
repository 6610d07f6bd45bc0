#!/bin/sh
# Installs what is missing, builds grpo.cpp for this machine, and trains the model in this folder; options are passed on.
set -eu
cd "$(dirname "$0")/.."
sh cmake/debian-packages.sh build
cmake -S . -B build/quickstart -G Ninja -D MOXIE_BUILD_TESTS=OFF -D MOXIE_BUILD_BENCH=OFF -D MOXIE_BUILD_DISPATCH=OFF >/dev/null
cmake --build build/quickstart --target grpo
exec build/quickstart/examples/grpo "$@"
