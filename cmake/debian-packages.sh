#!/bin/sh
# debian-packages.sh build|tests: installs the Debian packages that are missing for building programs with moxie, or for
# everything in this repository. Needs root or sudo when one is missing; without either it names the packages and fails.
# Where dpkg does not exist it does nothing: CMake says what it does not find.
set -eu

# dnnl's CMake configuration asks for OpenCL, which its package only recommends.
packages="g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libxsimd-dev libdnnl-dev ocl-icd-opencl-dev
  libpcre2-dev libutf8proc-dev libcli11-dev"
case "${1-}" in
  build) ;;
  tests) packages="$packages doctest-dev libbenchmark-dev libsimde-dev clang-14 libomp-14-dev ccache
    g++-aarch64-linux-gnu qemu-user-static" ;;
  *) echo "usage: $0 build|tests" >&2; exit 2 ;;
esac

command -v dpkg-query >/dev/null || exit 0
missing=
for package in $packages; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=env
elif command -v sudo >/dev/null; then
  as_root="sudo env"
else
  echo "These packages are missing, and without root or sudo they cannot be installed here:$missing" >&2
  echo "As root: apt-get install$missing" >&2
  exit 1
fi
echo "Installing:$missing"
$as_root DEBIAN_FRONTEND=noninteractive sh -c '
  apt-get -o DPkg::Lock::Timeout=300 update -qq && apt-get -o DPkg::Lock::Timeout=300 install -qq --yes --no-install-recommends "$@"
' sh $missing >/dev/null || {
  echo "apt-get failed. As root: apt-get update && apt-get install$missing" >&2
  exit 1
}
