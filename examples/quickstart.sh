#!/bin/sh
# Installs what is missing, builds quickstart.cpp for this machine, and runs it on the model in this folder.
set -eu
cd "$(dirname "$0")/.."
sh cmake/debian-packages.sh build
cmake -S . -B build/quickstart -G Ninja -D MOXIE_BUILD_TESTS=OFF -D MOXIE_BUILD_BENCH=OFF -D MOXIE_BUILD_DISPATCH=OFF >/dev/null
cmake --build build/quickstart --target quickstart
exec build/quickstart/examples/quickstart examples/models/tiny-r1.gguf
