# LibTorch as it comes in Python's torch wheel or in a LibTorch archive.
#
# The wheel's own TorchConfig.cmake stops without a CUDA toolkit and forces architectures that
# nvcc 13 refuses, so the target is made here.
#
# In:   FOVEA_LIBTORCH, else ${CMAKE_SOURCE_DIR}/.venv, else $ENV{FOVEA_LIBTORCH}
# Out:  LibTorch_FOUND, LibTorch_ROOT, LibTorch_VERSION, LibTorch_HAS_CUDA,
#       target LibTorch::LibTorch

set(_roots "")
foreach(_hint IN ITEMS "${FOVEA_LIBTORCH}" "$ENV{FOVEA_LIBTORCH}" "${CMAKE_SOURCE_DIR}/.venv")
  if(_hint)
    file(GLOB _wheels "${_hint}/lib/python3*/site-packages/torch" "${_hint}/torch")
    list(APPEND _roots "${_hint}" ${_wheels})
  endif()
endforeach()

find_path(LibTorch_ROOT include/ATen/ATen.h HINTS ${_roots} NO_DEFAULT_PATH)
if(LibTorch_ROOT)
  foreach(_name torch torch_cpu c10)
    find_library(LibTorch_${_name}_LIBRARY ${_name} HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
    mark_as_advanced(LibTorch_${_name}_LIBRARY)
  endforeach()
  foreach(_name torch_cuda c10_cuda)
    find_library(LibTorch_${_name}_LIBRARY ${_name} HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
    mark_as_advanced(LibTorch_${_name}_LIBRARY)
  endforeach()
  file(STRINGS "${LibTorch_ROOT}/include/torch/headeronly/version.h" _version
       REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^;]*TORCH_VERSION_[A-Z]+ ([0-9]+)" "\\1" _version "${_version}")
  string(REPLACE ";" "." LibTorch_VERSION "${_version}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_ROOT LibTorch_torch_LIBRARY LibTorch_torch_cpu_LIBRARY LibTorch_c10_LIBRARY
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "run ./demo.sh, or pip install torch==2.11.0 into .venv, or set FOVEA_LIBTORCH")
mark_as_advanced(LibTorch_ROOT)

set(LibTorch_HAS_CUDA OFF)
if(LibTorch_FOUND)
  if(LibTorch_torch_cuda_LIBRARY AND LibTorch_c10_cuda_LIBRARY)
    set(LibTorch_HAS_CUDA ON)
  endif()
  if(NOT TARGET LibTorch::LibTorch)
    add_library(LibTorch::LibTorch INTERFACE IMPORTED)
    target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
      "${LibTorch_ROOT}/include" "${LibTorch_ROOT}/include/torch/csrc/api/include")
    # The libraries register operators when they are loaded: they must stay even if no symbol of
    # theirs is used. The C++ library goes first: libtorch exports parts of its own copy of it, and
    # std::filesystem::remove_all of that copy calls a null pointer.
    set(_cuda "")
    if(LibTorch_HAS_CUDA)
      set(_cuda "${LibTorch_torch_cuda_LIBRARY}" "${LibTorch_c10_cuda_LIBRARY}")
    endif()
    target_link_libraries(LibTorch::LibTorch INTERFACE
      -Wl,--push-state,--no-as-needed -lstdc++
      "${LibTorch_torch_LIBRARY}" "${LibTorch_torch_cpu_LIBRARY}" "${LibTorch_c10_LIBRARY}" ${_cuda}
      -Wl,--pop-state)
  endif()
endif()
