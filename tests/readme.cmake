# Every ```cpp block of README.md is a whole program: compiled here, and run as a test in the folder of the embedded model.
set(readme ${PROJECT_SOURCE_DIR}/README.md)
if(NOT EXISTS ${readme})
  return()
endif()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${readme})
file(READ ${readme} rest)
set(number 0)
while(TRUE)
  string(FIND "${rest}" "\n```cpp\n" begin)
  if(begin EQUAL -1)
    break()
  endif()
  math(EXPR begin "${begin} + 8")
  string(SUBSTRING "${rest}" ${begin} -1 rest)
  string(FIND "${rest}" "\n```\n" end)
  string(SUBSTRING "${rest}" 0 ${end} program)
  math(EXPR number "${number} + 1")
  file(CONFIGURE OUTPUT readme/program${number}.cpp CONTENT "${program}\n" @ONLY)
  add_executable(readme_program${number} ${CMAKE_CURRENT_BINARY_DIR}/readme/program${number}.cpp)
  target_link_libraries(readme_program${number} PRIVATE moxie_own)
  add_test(NAME readme_program${number} COMMAND readme_program${number} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}/examples/models)
  # How long a program compiles goes with how much it compiles to, which any machine can tell: 2.3 MB, 0.5 MB for the chat
  # templates that a program which chats reads (4 to 5 of 38 s), 0.24 MB for recurrent layers and the families that have them (2 of 33
  # s), and the 36 KB of quant/iq_grids.hpp, which are data and take no time.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_BUILD_TYPE STREQUAL Release)
    add_test(NAME readme_program${number}_size
             COMMAND ${CMAKE_COMMAND} -D FILE=$<TARGET_OBJECTS:readme_program${number}> -D MOST=3100000
                     -P ${CMAKE_CURRENT_SOURCE_DIR}/file_size.cmake)
    set_tests_properties(readme_program${number}_size PROPERTIES LABELS readme)
  endif()
  set_tests_properties(readme_program${number} PROPERTIES LABELS readme TIMEOUT 600)
endwhile()
