# cmake --install: static libraries, public headers, the program, and a package for
# find_package(Fovea [COMPONENTS core ...]). Each folder's library is one component.

get_property(_libraries GLOBAL PROPERTY FOVEA_INSTALL_TARGETS)
# What apps/ is made of stays inside the program.
list(FILTER _libraries INCLUDE REGEX "^fovea_(kernels|core|models|pipelines)$")
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Fovea)

install(TARGETS fovea_flags fovea_utf8proc ${_libraries} EXPORT FoveaTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT FoveaTargets NAMESPACE Fovea:: DESTINATION ${_package_dir})

# Headers keep their paths: #include "core/check.h" with include/fovea as the include folder.
foreach(_folder IN ITEMS kernels core models pipelines)
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/${_folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea
    FILES_MATCHING PATTERN "*.h")
endforeach()

if(TARGET fovea)
  # The program finds the LibTorch that it was linked with.
  set_target_properties(fovea PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS fovea RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

include(CMakePackageConfigHelpers)
list(TRANSFORM _libraries REPLACE "^fovea_" "" OUTPUT_VARIABLE FOVEA_COMPONENTS)
configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/FoveaConfig.cmake.in
  ${CMAKE_BINARY_DIR}/FoveaConfig.cmake INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/FoveaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/FoveaConfig.cmake ${CMAKE_BINARY_DIR}/FoveaConfigVersion.cmake
  ${CMAKE_SOURCE_DIR}/cmake/FindLibTorch.cmake DESTINATION ${_package_dir})
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
