# Tests of the headers as such:
#   headers_alone    every header compiles on its own, included twice, without warnings; and all of them together with g++ and
#                    clang++, for any x86-64 and for this machine;
#   headers_linked   all headers in two translation units of one program;
#   headers_folders  a folder includes only the folders above it.
# backend/ needs toolkits that a machine may lack: a header of it takes part where its toolkit is found.

file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/include/moxie/*.hpp)

find_path(MOXIE_CUDA_INCLUDE cuda_runtime.h PATHS /usr/local/cuda/include)
find_path(MOXIE_MPI_INCLUDE mpi.h PATH_SUFFIXES mpi openmpi mpich PATHS /usr/lib/x86_64-linux-gnu/openmpi/include)
mark_as_advanced(MOXIE_CUDA_INCLUDE MOXIE_MPI_INCLUDE)
set(toolkit_cuda ${MOXIE_CUDA_INCLUDE})
set(toolkit_mpi ${MOXIE_MPI_INCLUDE})

set(include_flags -I ${PROJECT_SOURCE_DIR}/include)
foreach(dependency IN LISTS MOXIE_DEPENDENCIES)
  get_target_property(directories ${dependency} INTERFACE_INCLUDE_DIRECTORIES)
  foreach(directory IN LISTS directories)
    if(NOT directory MATCHES "^(/usr/include|directories-NOTFOUND)$" AND IS_DIRECTORY "${directory}")
      list(APPEND include_flags -isystem ${directory})
    endif()
  endforeach()
endforeach()

# Adds a check to `stamps`: COMPILER accepts a source that consists of the includes in FLAGS.
function(check_includes name compiler)
  set(stamp ${CMAKE_CURRENT_BINARY_DIR}/headers/${name}.stamp)
  cmake_path(GET stamp PARENT_PATH directory)
  file(MAKE_DIRECTORY ${directory})
  set(warnings ${MOXIE_WARNINGS})
  if(compiler MATCHES "g\\+\\+[-0-9.]*$" AND NOT compiler MATCHES "clang")
    list(APPEND warnings ${MOXIE_GNU_WARNINGS})
  endif()
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND ${compiler} -std=c++20 -fsyntax-only -fopenmp ${warnings} ${include_flags} ${ARGN}
            -MD -MF ${stamp}.d -MT ${stamp} -x c++ /dev/null
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPFILE ${stamp}.d
    COMMENT "${name}: ${compiler}"
    VERBATIM)
  set(stamps ${stamps} ${stamp} PARENT_SCOPE)
endfunction()

set(stamps)
set(all_headers)
foreach(header IN LISTS headers)
  if(NOT header MATCHES "^moxie/backend/([a-z]+)\\.hpp$")
    string(APPEND all_headers "#include <${header}>\n")
    check_includes(${header} ${CMAKE_CXX_COMPILER} -include ${header} -include ${header})
  elseif(toolkit_${CMAKE_MATCH_1})
    check_includes(${header} ${CMAKE_CXX_COMPILER} -include ${header} -include ${header} -isystem ${toolkit_${CMAKE_MATCH_1}})
  endif()
endforeach()

file(CONFIGURE OUTPUT headers/all_headers.hpp CONTENT "${all_headers}")
find_program(MOXIE_GXX NAMES g++-12 g++)
find_program(MOXIE_CLANGXX NAMES clang++-14 clang++)
mark_as_advanced(MOXIE_GXX MOXIE_CLANGXX)
foreach(compiler ${MOXIE_GXX} ${MOXIE_CLANGXX})
  cmake_path(GET compiler FILENAME compiler_name)
  check_includes(all_${compiler_name} ${compiler} -include ${CMAKE_CURRENT_BINARY_DIR}/headers/all_headers.hpp)
  if(MOXIE_NATIVE)
    check_includes(all_${compiler_name}_native ${compiler} -march=native -include ${CMAKE_CURRENT_BINARY_DIR}/headers/all_headers.hpp)
  endif()
endforeach()
add_custom_target(check_headers DEPENDS ${stamps})
add_test(NAME headers_alone COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target check_headers --parallel)

add_executable(test_headers_linked headers/one.cpp headers/two.cpp)
target_link_libraries(test_headers_linked PRIVATE moxie_warnings)
target_include_directories(test_headers_linked PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/headers)
target_compile_options(test_headers_linked PRIVATE -O0 $<$<BOOL:${MOXIE_NATIVE}>:-march=native>)
add_test(NAME headers_linked COMMAND test_headers_linked)

add_test(NAME headers_folders
         COMMAND ${CMAKE_COMMAND} -D INCLUDE=${PROJECT_SOURCE_DIR}/include -P ${CMAKE_CURRENT_SOURCE_DIR}/headers/folders.cmake)

set_tests_properties(headers_alone headers_linked headers_folders PROPERTIES LABELS headers TIMEOUT 600)
