# Fails where FILE has more than MOST bytes.
file(SIZE ${FILE} size)
if(size GREATER MOST)
  message(FATAL_ERROR "${FILE} has ${size} bytes, more than ${MOST}: see what a program came to compile")
endif()
message(STATUS "${size} bytes, at most ${MOST}")
