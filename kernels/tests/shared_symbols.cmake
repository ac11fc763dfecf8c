# Fails where an object file built for one instruction set defines a weak symbol that another
# could define too: the linker keeps one of them, perhaps the one that this CPU cannot run.
# Used with cmake -DNM=... -DISA=... "-DOBJECTS=a.o;b.o" -P
set(COUNT 0)
foreach(OBJECT IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -C ${OBJECT} OUTPUT_VARIABLE TEXT RESULT_VARIABLE STATUS)
  if(STATUS)
    message(FATAL_ERROR "${NM} cannot read ${OBJECT}")
  endif()
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" LINES "${TEXT}")
  foreach(LINE IN LISTS LINES)
    if(LINE MATCHES "^[0-9a-fA-F]+ " AND NOT LINE MATCHES "tenarai::${ISA}::")
      message("${OBJECT}: ${LINE}")
      math(EXPR COUNT "${COUNT} + 1")
    endif()
  endforeach()
endforeach()
if(COUNT)
  message(FATAL_ERROR "${COUNT} symbols are not of tenarai::${ISA} alone: make them static or "
                      "give them always_inline")
endif()
