# Tests of the headers as such:
#   headers_alone    every header compiles on its own, without warnings; and all of them together with g++ and clang++, for any
#                    x86-64 and for this machine;
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
set(own_headers)
foreach(header IN LISTS headers)
  if(NOT header MATCHES "^moxie/backend/([a-z]+)\\.hpp$")
    string(APPEND all_headers "#include <${header}>\n")
    list(APPEND own_headers ${header})
  elseif(toolkit_${CMAKE_MATCH_1})
    check_includes(${header} ${CMAKE_CXX_COMPILER} -include ${header} -isystem ${toolkit_${CMAKE_MATCH_1}})
  endif()
endforeach()

# One run of the compiler checks a chain of headers, each of which includes those before it: it finds nothing there that it would
# not have brought along, so it compiles in the chain only if it compiles alone. That takes a third of the time of a run for each.
foreach(header IN LISTS own_headers)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/${header})
  file(STRINGS ${PROJECT_SOURCE_DIR}/include/${header} lines REGEX "^#include <moxie/")
  list(TRANSFORM lines REPLACE "^#include <([^>]*)>.*" "\\1" OUTPUT_VARIABLE includes_${header})
endforeach()
set(by_size)
foreach(header IN LISTS own_headers)
  set(open ${includes_${header}})
  set(all_${header})  # what it includes, directly or not
  while(open)
    list(POP_BACK open next)
    if(NOT next IN_LIST all_${header})
      list(APPEND all_${header} ${next})
      list(APPEND open ${includes_${next}})
    endif()
  endwhile()
  list(LENGTH all_${header} size)
  math(EXPR size "1000 + ${size}")
  list(APPEND by_size ${size}:${header})
endforeach()
list(SORT by_size ORDER DESCENDING)
list(TRANSFORM by_size REPLACE "^[0-9]+:" "")
while(by_size)
  list(POP_FRONT by_size name)
  set(first ${name})
  set(chain -include ${name})
  set(others)
  foreach(header IN LISTS by_size)
    if(header IN_LIST all_${first} AND NOT first IN_LIST all_${header})
      set(first ${header})
      list(PREPEND chain -include ${header})
    else()
      list(APPEND others ${header})
    endif()
  endforeach()
  set(by_size ${others})
  check_includes(${name} ${CMAKE_CXX_COMPILER} ${chain})
endwhile()

file(CONFIGURE OUTPUT headers/all_headers.hpp CONTENT "${all_headers}")
find_program(MOXIE_GXX NAMES g++-12 g++)
find_program(MOXIE_CLANGXX NAMES clang++-14 clang++)
mark_as_advanced(MOXIE_GXX MOXIE_CLANGXX)
foreach(compiler ${MOXIE_GXX} ${MOXIE_CLANGXX})
  cmake_path(GET compiler FILENAME compiler_name)
  file(REAL_PATH ${compiler} real_compiler)
  file(REAL_PATH ${CMAKE_CXX_COMPILER} own_compiler)
  if(NOT real_compiler STREQUAL own_compiler)  # the build's own compiler reads the chains
    check_includes(all_${compiler_name} ${compiler} -include ${CMAKE_CURRENT_BINARY_DIR}/headers/all_headers.hpp)
  endif()
  if(MOXIE_NATIVE)
    check_includes(all_${compiler_name}_native ${compiler} -march=native -include ${CMAKE_CURRENT_BINARY_DIR}/headers/all_headers.hpp)
  endif()
endforeach()
add_custom_target(check_headers DEPENDS ${stamps})
add_test(NAME headers_alone COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target check_headers --parallel)

# The second unit is a copy of the first one's object: what a header defines more than once in a program clashes all the same.
add_library(headers_unit OBJECT headers/unit.cpp)
target_link_libraries(headers_unit PRIVATE moxie_warnings)
target_include_directories(headers_unit PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/headers)
target_compile_options(headers_unit PRIVATE -O0 $<$<BOOL:${MOXIE_NATIVE}>:-march=native>)
set(second_unit ${CMAKE_CURRENT_BINARY_DIR}/headers/second_unit${CMAKE_CXX_OUTPUT_EXTENSION})
add_custom_command(OUTPUT ${second_unit} COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_OBJECTS:headers_unit> ${second_unit}
                   DEPENDS headers_unit $<TARGET_OBJECTS:headers_unit> VERBATIM)
add_executable(test_headers_linked headers/main.cpp $<TARGET_OBJECTS:headers_unit> ${second_unit})
set_source_files_properties(${second_unit} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_link_libraries(test_headers_linked PRIVATE moxie_warnings)
add_test(NAME headers_linked COMMAND test_headers_linked)

add_test(NAME headers_folders
         COMMAND ${CMAKE_COMMAND} -D INCLUDE=${PROJECT_SOURCE_DIR}/include -P ${CMAKE_CURRENT_SOURCE_DIR}/headers/folders.cmake)

set_tests_properties(headers_alone headers_linked headers_folders PROPERTIES LABELS headers TIMEOUT 600)
set_tests_properties(headers_alone PROPERTIES PROCESSORS 2)
