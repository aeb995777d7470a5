# Build settings and helpers that all folders share.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# One setting for all files: gcc drops a precompiled header whose flags differ.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
include(GNUInstallDirs)

find_program(FOVEA_CCACHE ccache)
if(FOVEA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} ${FOVEA_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
find_program(FOVEA_MOLD mold)
if(FOVEA_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# Flags of every target of ours; who uses an installed Fovea gets none of our warnings.
add_library(fovea_flags INTERFACE)
target_compile_features(fovea_flags INTERFACE $<INSTALL_INTERFACE:cxx_std_20>)
foreach(_option IN ITEMS -Wall -Wextra -Wno-missing-field-initializers
        $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess> $<$<BOOL:${FOVEA_WERROR}>:-Werror>)
  target_compile_options(fovea_flags INTERFACE
    $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:${_option}>>)
endforeach()
target_include_directories(fovea_flags INTERFACE
  $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/fovea>)

# fovea_library(NAME [PLAIN files] [TORCH files] [LINK targets]): a static library. PLAIN files
# include no Torch header, directly or not; TORCH files get the precompiled ATen header.
function(fovea_library name)
  cmake_parse_arguments(arg "" "" "PLAIN;TORCH;LINK" ${ARGN})
  add_library(${name} STATIC ${arg_PLAIN} ${arg_TORCH})
  add_library(Fovea::${name} ALIAS ${name})
  target_link_libraries(${name} PUBLIC fovea_flags ${arg_LINK})
  set_source_files_properties(${arg_PLAIN} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
  if(arg_TORCH)
    fovea_precompile(${name})
  endif()
  set_property(GLOBAL APPEND PROPERTY FOVEA_INSTALL_TARGETS ${name})
endfunction()

# Uses the precompiled ATen header in `target`; the first target that asks builds it.
function(fovea_precompile target)
  if(NOT TARGET fovea_pch)
    file(WRITE ${CMAKE_BINARY_DIR}/pch/pch.cpp "// Holds the precompiled header.\n")
    add_library(fovea_pch OBJECT ${CMAKE_BINARY_DIR}/pch/pch.cpp)
    target_link_libraries(fovea_pch PRIVATE fovea_flags LibTorch::LibTorch)
    target_precompile_headers(fovea_pch PRIVATE <ATen/ATen.h>)
  endif()
  target_precompile_headers(${target} REUSE_FROM fovea_pch)
  get_target_property(_type ${target} TYPE)
  if(_type STREQUAL "EXECUTABLE")
    # CMake gives programs -fPIE, with which gcc drops a header that was compiled with -fPIC.
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
endfunction()

# Libraries from the system, by their Debian package names.
macro(fovea_find_dependencies)
  find_package(Threads REQUIRED)
  find_package(nlohmann_json 3.11 QUIET)
  find_package(CLI11 2.1 QUIET)
  find_path(FOVEA_STB_DIR stb/stb_image.h)
  find_path(FOVEA_UTF8PROC_DIR utf8proc.h)
  # The static library, so that the program runs on machines without the package.
  find_library(FOVEA_UTF8PROC_LIBRARY NAMES libutf8proc.a utf8proc)
  set(_missing "")
  if(NOT nlohmann_json_FOUND)
    list(APPEND _missing nlohmann-json3-dev)
  endif()
  if(NOT CLI11_FOUND)
    list(APPEND _missing libcli11-dev)
  endif()
  if(NOT FOVEA_STB_DIR)
    list(APPEND _missing libstb-dev)
  endif()
  if(NOT FOVEA_UTF8PROC_DIR OR NOT FOVEA_UTF8PROC_LIBRARY)
    list(APPEND _missing libutf8proc-dev)
  endif()
  if(_missing)
    string(REPLACE ";" " " _missing "${_missing}")
    message(FATAL_ERROR "missing Debian packages: ${_missing} (./demo.sh installs them)")
  endif()
  add_library(fovea_utf8proc INTERFACE)
  # FoveaConfig.cmake looks for it again where an installed Fovea is used.
  target_include_directories(fovea_utf8proc SYSTEM INTERFACE
    $<BUILD_INTERFACE:${FOVEA_UTF8PROC_DIR}>)
  target_link_libraries(fovea_utf8proc INTERFACE $<BUILD_INTERFACE:${FOVEA_UTF8PROC_LIBRARY}>)

  set(FOVEA_HAS_FFMPEG OFF)
  if(NOT FOVEA_MEDIA STREQUAL "OFF")
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
      pkg_check_modules(FFMPEG QUIET IMPORTED_TARGET libavformat libavcodec libavutil libswscale
                        libavfilter)
    endif()
    if(FFMPEG_FOUND)
      set(FOVEA_HAS_FFMPEG ON)
    elseif(FOVEA_MEDIA STREQUAL "ON")
      message(FATAL_ERROR "FOVEA_MEDIA=ON, but the FFmpeg libraries are missing: libavformat-dev "
                          "libavcodec-dev libavutil-dev libswscale-dev libavfilter-dev pkg-config")
    endif()
  endif()
endmacro()

# nvcc, where wanted and found. The architectures are given by hand: CMake 3.25 knows neither
# C++20 for CUDA nor nvcc 13's list.
macro(fovea_enable_cuda)
  set(FOVEA_HAS_CUDA OFF)
  if(NOT FOVEA_CUDA STREQUAL "OFF" AND LibTorch_HAS_CUDA)
    cmake_path(GET LibTorch_ROOT PARENT_PATH _wheels)
    find_program(FOVEA_NVCC NAMES $ENV{CUDACXX} nvcc
      PATHS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin ${_wheels}/nvidia/cu13/bin)
    if(FOVEA_NVCC)
      set(CMAKE_CUDA_COMPILER ${FOVEA_NVCC})
      set(CMAKE_CUDA_ARCHITECTURES OFF)
      enable_language(CUDA)
      set(CMAKE_CUDA_STANDARD "")
      set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -std=c++20 -O3 --expt-relaxed-constexpr")
      foreach(_arch IN LISTS FOVEA_CUDA_ARCHS)
        string(APPEND CMAKE_CUDA_FLAGS " -gencode=arch=compute_${_arch},code=sm_${_arch}")
      endforeach()
      # The driver compiles this for GPUs that are newer than the list.
      string(APPEND CMAKE_CUDA_FLAGS " -gencode=arch=compute_80,code=compute_80")
      set(FOVEA_HAS_CUDA ON)
    endif()
  endif()
  if(FOVEA_CUDA STREQUAL "ON" AND NOT FOVEA_HAS_CUDA)
    message(FATAL_ERROR "FOVEA_CUDA=ON, but nvcc or the CUDA libraries of LibTorch are missing")
  endif()
endmacro()

# What c10d's headers include beside LibTorch's own: Gloo's, and for GPUs NCCL's and CUDA's, which
# come with LibTorch's wheel. The libraries are inside LibTorch.
macro(fovea_find_c10d)
  set(FOVEA_HAS_DISTRIBUTED OFF)
  set(FOVEA_HAS_NCCL OFF)
  if(NOT FOVEA_DISTRIBUTED STREQUAL "OFF")
    find_path(FOVEA_GLOO_DIR gloo/context.h)
    if(FOVEA_GLOO_DIR)
      set(FOVEA_HAS_DISTRIBUTED ON)
    elseif(FOVEA_DISTRIBUTED STREQUAL "ON")
      message(FATAL_ERROR "FOVEA_DISTRIBUTED=ON, but Gloo's headers are missing: libgloo-dev")
    endif()
  endif()
  set(FOVEA_C10D_INCLUDE_DIRS ${FOVEA_GLOO_DIR})
  if(FOVEA_HAS_DISTRIBUTED AND LibTorch_HAS_CUDA)
    cmake_path(GET LibTorch_ROOT PARENT_PATH _wheels)
    find_path(FOVEA_NCCL_DIR nccl.h HINTS ${_wheels}/nvidia/nccl/include)
    find_path(FOVEA_CUDART_DIR cuda_runtime_api.h HINTS ${_wheels}/nvidia/cu13/include
              ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} /usr/local/cuda/include)
    if(FOVEA_NCCL_DIR AND FOVEA_CUDART_DIR)
      set(FOVEA_HAS_NCCL ON)
      list(APPEND FOVEA_C10D_INCLUDE_DIRS ${FOVEA_NCCL_DIR} ${FOVEA_CUDART_DIR})
    endif()
  endif()
endmacro()

function(fovea_print_summary)
  message(STATUS "Fovea ${PROJECT_VERSION}: LibTorch ${LibTorch_VERSION} "
                 "(CUDA ${LibTorch_HAS_CUDA}), CUDA kernels ${FOVEA_HAS_CUDA}, "
                 "video files ${FOVEA_HAS_FFMPEG}, several processes ${FOVEA_HAS_DISTRIBUTED} "
                 "(NCCL ${FOVEA_HAS_NCCL}), tests ${FOVEA_BUILD_TESTS}")
endfunction()

# For the rest of a folder that has .cu files. CMake 3.25 knows no C++20 for CUDA: -std=c++20 is
# among the flags, and the option that CMake adds for the newest standard it knows must not
# contradict it.
macro(fovea_cuda_folder)
  unset(CMAKE_CUDA_STANDARD)
  unset(CMAKE_CXX_STANDARD)
  set(CMAKE_CUDA17_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA17_EXTENSION_COMPILE_OPTION -std=c++20)
endmacro()
