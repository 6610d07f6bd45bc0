# Tests of the NEON kernels, and of attention and the MoE layers on them, on a machine of another kind: compiled for aarch64 by
# Debian's cross compiler, run by qemu as a Neoverse N1 (packages g++-aarch64-linux-gnu and qemu-user-static). Without them the
# test says so and is skipped; on aarch64 itself the other tests do all this.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  return()
endif()
find_program(MOXIE_AARCH64_GXX NAMES aarch64-linux-gnu-g++ aarch64-linux-gnu-g++-12)
find_program(MOXIE_QEMU_AARCH64 NAMES qemu-aarch64-static qemu-aarch64)
mark_as_advanced(MOXIE_AARCH64_GXX MOXIE_QEMU_AARCH64)
if(NOT MOXIE_AARCH64_GXX OR NOT MOXIE_QEMU_AARCH64)
  add_test(NAME neon COMMAND sh -c "echo 'skipped: NEON is tested with the packages g++-aarch64-linux-gnu and qemu-user-static'; exit 77")
  set_tests_properties(neon PROPERTIES LABELS unit SKIP_RETURN_CODE 77)
  return()
endif()

# Of the system's headers only those that are the same for every CPU, through links: the others are not for this compiler.
set(neon_dir ${CMAKE_CURRENT_BINARY_DIR}/neon)
file(MAKE_DIRECTORY ${neon_dir}/include)
foreach(header doctest/doctest.h xsimd/xsimd.hpp dnnl.hpp)
  find_path(neon_found ${header} NO_CACHE REQUIRED)
  string(REGEX REPLACE "/.*|[.]hpp" "" name ${header})
  file(GLOB paths ${neon_found}/${name} ${neon_found}/${name}[._]*)
  foreach(path IN LISTS paths)
    cmake_path(GET path FILENAME file)
    file(CREATE_LINK ${path} ${neon_dir}/include/${file} SYMBOLIC)
  endforeach()
  unset(neon_found)
endforeach()
get_target_property(eigen Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)

# -O1: half of the time that -O2 takes to compile; the kernels, whose loops are written out from -O2 on, have that.
set(neon_flags -std=c++20 -O1 -fopenmp -ffp-contract=off ${MOXIE_NEON_FLAGS} ${MOXIE_WARNINGS} ${MOXIE_GNU_WARNINGS} -D MOXIE_DISPATCH
               -I ${PROJECT_SOURCE_DIR}/include -isystem ${neon_dir}/include -isystem ${eigen})
set(neon_objects)
foreach(source tests/main.cpp tests/neon_tables.cpp tests/kernels.cpp tests/attention.cpp tests/moe.cpp tests/moe_layer.cpp
               cmake/dispatch/select.cpp cmake/dispatch/neon.cpp)
  cmake_path(GET source FILENAME name)
  set(object ${neon_dir}/${name}.o)
  set(optimization)
  if(name STREQUAL neon.cpp)
    set(optimization -O2)
  endif()
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${MOXIE_AARCH64_GXX} ${neon_flags} ${optimization} -MD -MF ${object}.d -c ${PROJECT_SOURCE_DIR}/${source}
            -o ${object}
    DEPENDS ${PROJECT_SOURCE_DIR}/${source}
    DEPFILE ${object}.d
    COMMENT "${source}: ${MOXIE_AARCH64_GXX}"
    VERBATIM)
  list(APPEND neon_objects ${object})
endforeach()
# There is no oneDNN for this CPU here, and what is tested never calls it.
add_custom_command(
  OUTPUT ${neon_dir}/test_neon
  COMMAND ${MOXIE_AARCH64_GXX} -static -fopenmp -Wl,--unresolved-symbols=ignore-all,--no-warnings ${neon_objects} -o ${neon_dir}/test_neon
  DEPENDS ${neon_objects}
  COMMENT "test_neon"
  VERBATIM)
add_custom_target(test_neon ALL DEPENDS ${neon_dir}/test_neon)
# Without the tests that encode many weights or attend in many ways, which takes qemu some minutes.
set(neon_slow "every format with f32 activations*,int8 activations stay*,a row has the same bits in any batch*,weights in the format*")
string(APPEND neon_slow ",a row's bits do not depend*")
add_test(NAME neon COMMAND ${MOXIE_QEMU_AARCH64} -cpu neoverse-n1 ${neon_dir}/test_neon -tce=${neon_slow})
set_tests_properties(neon PROPERTIES LABELS unit TIMEOUT 600 ENVIRONMENT OMP_WAIT_POLICY=passive)
