# Tests of the headers as such:
#   headers_alone    every header compiles on its own, included twice, without warnings, with g++ and with clang++;
#   headers_linked   all headers in two translation units of one program;
#   headers_folders  a folder includes only the folders above it.
# backend/ needs toolkits that a machine may lack: a header of it takes part where its toolkit is found.

file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/include/moxie/*.hpp)

find_path(MOXIE_CUDA_INCLUDE cuda_runtime.h PATHS /usr/local/cuda/include)
find_path(MOXIE_MPI_INCLUDE mpi.h PATH_SUFFIXES mpi openmpi mpich PATHS /usr/lib/x86_64-linux-gnu/openmpi/include)
mark_as_advanced(MOXIE_CUDA_INCLUDE MOXIE_MPI_INCLUDE)
set(toolkit_cuda ${MOXIE_CUDA_INCLUDE})
set(toolkit_mpi ${MOXIE_MPI_INCLUDE})

# g++ checks for any x86-64 (the tests themselves are compiled for this machine), clang++ for this machine.
find_program(MOXIE_GXX NAMES g++-12 g++)
find_program(MOXIE_CLANGXX NAMES clang++-14 clang++)
mark_as_advanced(MOXIE_GXX MOXIE_CLANGXX)
set(gcc_command ${MOXIE_GXX})
set(clang_command ${MOXIE_CLANGXX})
if(MOXIE_CLANGXX AND MOXIE_NATIVE)
  list(APPEND clang_command -march=native)
endif()

set(include_flags -I ${PROJECT_SOURCE_DIR}/include)
foreach(dependency IN LISTS MOXIE_DEPENDENCIES)
  get_target_property(directories ${dependency} INTERFACE_INCLUDE_DIRECTORIES)
  foreach(directory IN LISTS directories)
    if(NOT directory MATCHES "^(/usr/include|directories-NOTFOUND)$" AND IS_DIRECTORY "${directory}")
      list(APPEND include_flags -isystem ${directory})
    endif()
  endforeach()
endforeach()

set(stamps)
foreach(header IN LISTS headers)
  set(toolkit_flags)
  if(header MATCHES "^moxie/backend/([a-z]+)\\.hpp$")
    if(NOT toolkit_${CMAKE_MATCH_1})
      continue()
    endif()
    set(toolkit_flags -isystem ${toolkit_${CMAKE_MATCH_1}})
  endif()
  foreach(compiler gcc clang)
    if(${compiler}_command)
      set(stamp ${CMAKE_CURRENT_BINARY_DIR}/headers/${compiler}/${header}.stamp)
      cmake_path(GET stamp PARENT_PATH directory)
      file(MAKE_DIRECTORY ${directory})
      add_custom_command(
        OUTPUT ${stamp}
        COMMAND ${${compiler}_command} -std=c++20 -fsyntax-only -fopenmp ${MOXIE_WARNINGS} ${include_flags} ${toolkit_flags}
                -include ${header} -include ${header} -MD -MF ${stamp}.d -MT ${stamp} -x c++ /dev/null
        COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
        DEPENDS ${PROJECT_SOURCE_DIR}/include/${header}
        DEPFILE ${stamp}.d
        COMMENT "${compiler}: <${header}> alone"
        VERBATIM)
      list(APPEND stamps ${stamp})
    endif()
  endforeach()
endforeach()
add_custom_target(check_headers DEPENDS ${stamps})
add_test(NAME headers_alone COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target check_headers --parallel)

set(all_headers)
foreach(header IN LISTS headers)
  if(NOT header MATCHES "^moxie/backend/")
    string(APPEND all_headers "#include <${header}>\n")
  endif()
endforeach()
file(CONFIGURE OUTPUT headers/all_headers.hpp CONTENT "${all_headers}")
add_executable(test_headers_linked headers/one.cpp headers/two.cpp)
target_link_libraries(test_headers_linked PRIVATE moxie_warnings)
target_include_directories(test_headers_linked PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/headers)
target_compile_options(test_headers_linked PRIVATE -O0 $<$<BOOL:${MOXIE_NATIVE}>:-march=native>)
add_test(NAME headers_linked COMMAND test_headers_linked)

add_test(NAME headers_folders
         COMMAND ${CMAKE_COMMAND} -D INCLUDE=${PROJECT_SOURCE_DIR}/include -P ${CMAKE_CURRENT_SOURCE_DIR}/headers/folders.cmake)

set_tests_properties(headers_alone headers_linked headers_folders PROPERTIES LABELS headers TIMEOUT 600)
