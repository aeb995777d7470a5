# cmake -D BUILD_DIR=.. -D WORK_DIR=.. -D SOURCE_DIR=.. -D CXX_COMPILER=.. -P run.cmake
file(REMOVE_RECURSE ${WORK_DIR}/prefix ${WORK_DIR}/example)

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE _status OUTPUT_VARIABLE _out ERROR_VARIABLE _out)
  message("${_out}")
  if(NOT _status EQUAL 0)
    message(FATAL_ERROR "${ARGV}: ended with ${_status}")
  endif()
  set(output "${_out}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE_DIR} -B ${WORK_DIR}/example
    -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
    -D CMAKE_PREFIX_PATH=${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/example)
run(${WORK_DIR}/example/attend)
foreach(line "attention \\[2, 3, 1024, 32\\]" "self: window on cpu \\(2 times\\)" "apart: yes")
  if(NOT output MATCHES "${line}")
    message(FATAL_ERROR "the example did not print '${line}'")
  endif()
endforeach()
