# The CUDA library, from CUDA_SOURCES. Sets CUDA_BUILT (the compiler), CUDA_MACHINE_CODE, CUDA_PTX
# and CUDA_CONTENT, or CUDA_MISSING: why it is left out, which `doctor` prints and which is an error
# with COSURFGS_CUDA=ON.
set(CUDA_CONTENT "")
if(COSURFGS_CUDA STREQUAL "OFF")
  set(CUDA_MISSING "COSURFGS_CUDA=OFF was set")
else()
  find_program(NVCC nvcc
    HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT NVCC)
    set(CUDA_MISSING "nvcc was not found; put the one of CUDA 12 or 13 on the PATH")
  else()
    # By the environment: check_language tries nothing where CMAKE_CUDA_COMPILER is set, and an nvcc
    # that does not take this C++ compiler must not stop the build.
    set(ENV{CUDACXX} "${NVCC}")
    if(NOT CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
    endif()
    # Given to nvcc below: which ones there are depends on its version.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(CUDA_MISSING "nvcc (${NVCC}) does not work with ${COMPILER}")
    else()
      enable_language(CUDA)
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
        set(CUDA_MISSING "nvcc is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}; 12 or newer is needed")
      endif()
    endif()
  endif()
endif()
if(CUDA_MISSING)
  if(COSURFGS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "COSURFGS_CUDA=ON: ${CUDA_MISSING}")
  endif()
  return()
endif()

include("${CMAKE_CURRENT_LIST_DIR}/cuda_architectures.cmake")
execute_process(
  COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code
  OUTPUT_VARIABLE KNOWN COMMAND_ERROR_IS_FATAL ANY)
cosurfgs_cuda_architectures("${COSURFGS_CUDA_ARCHITECTURES}" "${KNOWN}" nvidia-smi)
if(CUDA_PROBLEM)
  message(FATAL_ERROR "${CUDA_PROBLEM}")
endif()
set(CUDA_FLAGS "")
foreach(architecture ${CUDA_MACHINE_CODE})
  list(APPEND CUDA_FLAGS "-gencode=arch=compute_${architecture},code=sm_${architecture}")
endforeach()
list(APPEND CUDA_FLAGS "-gencode=arch=compute_${CUDA_PTX},code=compute_${CUDA_PTX}")
set(CUDA_BUILT "nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")

add_library(cosurfgs_cuda MODULE ${CUDA_SOURCES})
set_target_properties(cosurfgs_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_include_directories(cosurfgs_cuda PRIVATE ${NATIVE})
target_include_directories(cosurfgs_cuda SYSTEM PRIVATE
  ${XLA_FFI_INCLUDE} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# No --use_fast_math: non-finite inputs are detected in these files, as on the CPU.
target_compile_options(cosurfgs_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:${CUDA_FLAGS};--threads=0> $<$<COMPILE_LANGUAGE:CXX>:${WARNINGS}>)
set(CONTENT_DEFINITION "COSURFGS_CUDA_CONTENT=\"${CUDA_CONTENT}\"")
target_compile_definitions(cosurfgs_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CXX>:${CONTENT_DEFINITION}>")
# cudart is inside and stays there: another one may be in the process.
target_link_options(cosurfgs_cuda PRIVATE "LINKER:--exclude-libs,ALL" "LINKER:--no-undefined")
install(TARGETS cosurfgs_cuda LIBRARY DESTINATION cosurfgs_jax/lib)
