# The CUDA kernels twice: by nvcc as headcount_cuda, and by the host's compiler as headcount_cuda_emulated, for tests.
set(CUDA_KERNELS attention_constants attention_ring attention_rows attention_whole decode hopper_attend projections
  vocabulary)
set(CUDA_HOST_SOURCES csrc/cuda/decode_pack.cc csrc/cuda/decode_schedule.cc csrc/cuda/decode_validate.cc)

# Why there is no headcount_cuda; empty where it is built.
set(ENGINE_WITHOUT_CUDA "")
if(ENGINE_CUDA STREQUAL "OFF")
  set(ENGINE_WITHOUT_CUDA "ENGINE_CUDA=OFF was asked for when this was installed")
elseif(NOT ENGINE_CUDA STREQUAL "AUTO" AND NOT ENGINE_CUDA STREQUAL "ON")
  message(FATAL_ERROR "ENGINE_CUDA: expected AUTO, ON or OFF, found ${ENGINE_CUDA}")
elseif(NOT HEADCOUNT_PYTHON)
  set(ENGINE_WITHOUT_CUDA "only the Python module needs it")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(ENGINE_WITHOUT_CUDA "nvcc, with a C++ compiler it takes, was not found when this was installed")
  else()
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # named below
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      set(ENGINE_WITHOUT_CUDA "nvcc ${CMAKE_CUDA_COMPILER_VERSION} was found when this was installed, older than 12.0")
    endif()
  endif()
  if(ENGINE_WITHOUT_CUDA AND ENGINE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ENGINE_CUDA=ON: ${ENGINE_WITHOUT_CUDA}")
  endif()
endif()

# Machine code for Ampere, which Ada runs, and for Hopper; and PTX that drivers of newer GPUs compile.
if(NOT ENGINE_WITHOUT_CUDA)
  list(TRANSFORM CUDA_KERNELS REPLACE "(.+)" "csrc/cuda/\\1.cu" OUTPUT_VARIABLE sources)
  add_library(headcount_cuda STATIC ${sources} ${CUDA_HOST_SOURCES})
  set_target_properties(headcount_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)
  target_include_directories(headcount_cuda PUBLIC csrc)
  target_compile_options(headcount_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_80,code=sm_80
    -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90 -lineinfo>)
  if(HEADCOUNT_CUDA_TRAP)
    target_compile_definitions(headcount_cuda PRIVATE HEADCOUNT_CUDA_TRAP=2000000000)  # nanoseconds
  endif()
endif()

# Not under a sanitizer: it knows one stack for each thread, and every thread of the GPU has its own.
if(HEADCOUNT_EMULATED_CUDA AND NOT HEADCOUNT_SANITIZE)
  add_library(headcount_cuda_emulated STATIC csrc/cuda/emulated/fibers.cc csrc/cuda/emulated/launch.cc ${CUDA_HOST_SOURCES})
  foreach(name ${CUDA_KERNELS})  # a file each that is C++ to CMake
    set(source ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cc)
    file(CONFIGURE OUTPUT ${source} CONTENT "#include \"cuda/${name}.cu\"\n")
    target_sources(headcount_cuda_emulated PRIVATE ${source})
  endforeach()
  target_include_directories(headcount_cuda_emulated PUBLIC csrc)
  target_compile_options(headcount_cuda_emulated PUBLIC -Wno-unknown-pragmas)
  target_compile_definitions(headcount_cuda_emulated PUBLIC HEADCOUNT_CUDA_EMULATED)
endif()
