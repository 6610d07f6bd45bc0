#!/bin/sh
# No code that was compiled for a wider architecture may be shared with the rest of the program: every symbol that the objects
# of avx2.cpp, avxvnni.cpp, avx512.cpp and neon.cpp define weakly (inline functions, templates) must name its architecture.
# The arrays of quant/iq_grids.hpp are no code. xsimd's functions on NEON's vectors are the same with and without dot products. NM names the tool for objects of another CPU.
# Exit status 1 and a list of symbols when one does not; other objects are skipped.
#
# usage: dispatch_symbols.sh OBJECT...
status=0
for object in "$@"; do
  case $object in
    *avxvnni.cpp*) own='kernels::AvxVnni' ;;
    *avx*.cpp*) own='kernels::Avx(2|512)|xsimd::(fma3<xsimd::)?avx' ;;
    *neon.cpp*) own='kernels::Neon|xsimd::' ;;
    *) continue ;;
  esac
  shared=$(${NM:-nm} -C --defined-only "$object" | grep -E '^[0-9a-f]+ [WVu] ' | grep -vE "$own|moxie::grid::[a-z0-9_]+$|__gxx_personality")
  if [ -n "$shared" ]; then
    echo "$object defines symbols that other objects may define too, compiled for another CPU:"
    echo "$shared"
    status=1
  fi
done
exit $status
