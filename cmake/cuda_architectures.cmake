# Which GPUs the CUDA library is compiled for.
#
# cosurfgs_cuda_architectures(WANTED KNOWN QUERY): sets in the caller
#   CUDA_MACHINE_CODE  compute capabilities with machine code, as 90 for 9.0
#   CUDA_PTX           the one whose PTX is in the library, which the driver of any newer GPU
#                      compiles at the first call
#   CUDA_CONTENT       both in words
#   CUDA_PROBLEM       or why nothing can be said
# WANTED: "" for all GPUs that are about, a list of numbers, or "native" for those of this machine.
# KNOWN: what `nvcc --list-gpu-code` prints. QUERY: the program to ask for the GPUs of this machine
# as nvidia-smi is, if WANTED is "native".
#
# PTX of 9.0 and not of the newest: it is what the GPUs without machine code of their own (10.3 has
# that of 10.0; 11.0 and what comes later do not) compile from, and the kernels use nothing that
# came after it. A second PTX of 12.0 would add to the size and be the same instructions. Lists
# without 90 get that of the newest below it, else of the oldest: what runs on most GPUs.
function(cosurfgs_cuda_architectures WANTED KNOWN QUERY)
  set(CUDA_MACHINE_CODE "" PARENT_SCOPE)
  set(CUDA_PTX "" PARENT_SCOPE)
  set(CUDA_CONTENT "" PARENT_SCOPE)
  set(CUDA_PROBLEM "" PARENT_SCOPE)
  string(REGEX REPLACE "[, ]+" ";" wanted "${WANTED}")
  if(wanted STREQUAL "native")
    set(wanted "")
    execute_process(COMMAND "${QUERY}" --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE printed ERROR_QUIET RESULT_VARIABLE result)
    if(result EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" wanted "${printed}")
      string(REPLACE "." "" wanted "${wanted}")
    endif()
    if(NOT wanted)
      string(CONCAT problem "COSURFGS_CUDA_ARCHITECTURES=native, but nvidia-smi finds no GPU on "
        "this machine; give a list such as 90, or leave it away")
      set(CUDA_PROBLEM "${problem}" PARENT_SCOPE)
      return()
    endif()
  elseif(wanted STREQUAL "")
    foreach(architecture 80 86 89 90 100 120)
      if(KNOWN MATCHES "sm_${architecture}[^0-9]")
        list(APPEND wanted ${architecture})
      endif()
    endforeach()
  endif()
  list(REMOVE_DUPLICATES wanted)
  list(SORT wanted COMPARE NATURAL)
  list(GET wanted 0 ptx)
  set(content "machine code of")
  foreach(architecture ${wanted})
    if(NOT architecture MATCHES "^[0-9]+$")
      string(CONCAT problem "COSURFGS_CUDA_ARCHITECTURES: expected native or a list of compute "
        "capabilities as 80;90, got ${WANTED}")
      set(CUDA_PROBLEM "${problem}" PARENT_SCOPE)
      return()
    endif()
    if(architecture LESS 80)
      string(CONCAT problem "COSURFGS_CUDA_ARCHITECTURES: compute capability 8.0 (Ampere) or newer "
        "is needed, got ${architecture}")
      set(CUDA_PROBLEM "${problem}" PARENT_SCOPE)
      return()
    endif()
    if(NOT KNOWN MATCHES "sm_${architecture}[^0-9]")
      string(CONCAT problem "COSURFGS_CUDA_ARCHITECTURES: this nvcc does not know ${architecture}; "
        "a newer one is needed")
      set(CUDA_PROBLEM "${problem}" PARENT_SCOPE)
      return()
    endif()
    if(NOT architecture GREATER 90)
      set(ptx ${architecture})
    endif()
    string(REGEX REPLACE "(.)$" ".\\1" dotted "${architecture}")
    string(APPEND content " ${dotted}")
  endforeach()
  set(CUDA_MACHINE_CODE "${wanted}" PARENT_SCOPE)
  set(CUDA_PTX "${ptx}" PARENT_SCOPE)
  string(REGEX REPLACE "(.)$" ".\\1" dotted "${ptx}")
  set(CUDA_CONTENT "${content} and PTX of ${dotted}" PARENT_SCOPE)
endfunction()
