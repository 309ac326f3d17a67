# The CUDA kernels twice: by nvcc as headcount_cuda, and by the host's compiler as headcount_cuda_emulated, for tests.
set(CUDA_KERNELS attention/constants attention/ring attention/rows attention/bidirectional decode/decode hopper/attend linear/projections
  linear/vocabulary)
set(CUDA_HOST_SOURCES csrc/cuda/decode/pack.cc csrc/cuda/decode/schedule.cc csrc/cuda/decode/validate.cc)

if(DEFINED CACHE{ENGINE_CUDA} OR NOT "$ENV{ENGINE_CUDA}" STREQUAL "")
  unset(ENGINE_CUDA CACHE)  # or an older build folder, which remembers it, would never configure again
  message(FATAL_ERROR "ENGINE_CUDA is set: this is called HEADCOUNT_CUDA now, and is OFF, the default, ON or AUTO; "
                      "unset ENGINE_CUDA, set that one and configure again")
endif()

# Why there is no headcount_cuda; empty where it is built.
set(HEADCOUNT_WITHOUT_CUDA "")
if(HEADCOUNT_CUDA STREQUAL "OFF")
  set(HEADCOUNT_WITHOUT_CUDA "the CMake option HEADCOUNT_CUDA was OFF when this was installed, and ON builds the kernels")
elseif(NOT HEADCOUNT_CUDA STREQUAL "AUTO" AND NOT HEADCOUNT_CUDA STREQUAL "ON")
  message(FATAL_ERROR "HEADCOUNT_CUDA: expected OFF, ON or AUTO, found ${HEADCOUNT_CUDA}")
elseif(NOT HEADCOUNT_PYTHON)
  set(HEADCOUNT_WITHOUT_CUDA "only the Python module needs it, and HEADCOUNT_PYTHON is OFF")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(HEADCOUNT_WITHOUT_CUDA
        "nvcc, with a C++ compiler it takes, was not found when this was installed; PATH or CUDACXX may name it")
  else()
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # named below
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      set(HEADCOUNT_WITHOUT_CUDA
          "nvcc ${CMAKE_CUDA_COMPILER_VERSION} was found when this was installed, older than 12.0")
    endif()
  endif()
endif()
if(HEADCOUNT_WITHOUT_CUDA AND HEADCOUNT_CUDA STREQUAL "ON")
  message(FATAL_ERROR "HEADCOUNT_CUDA=ON: ${HEADCOUNT_WITHOUT_CUDA}")
endif()

if(NOT HEADCOUNT_WITHOUT_CUDA)
  # hopper_attend is empty but in code for 90a, which a Hopper GPU takes before any other it could run.
  if(NOT HEADCOUNT_CUDA_ARCHITECTURES MATCHES "(^|;)90a(-real)?(;|$)|^8[0-9]-real(;8[0-9]-real)*$")
    message(FATAL_ERROR "HEADCOUNT_CUDA_ARCHITECTURES: expected 90a-real in the list, or nothing but machine code for 80 "
                        "to 89 as in 80-real;89-real, found ${HEADCOUNT_CUDA_ARCHITECTURES}")
  endif()
  list(TRANSFORM CUDA_KERNELS REPLACE "(.+)" "csrc/cuda/\\1.cu" OUTPUT_VARIABLE sources)
  add_library(headcount_cuda STATIC ${sources} ${CUDA_HOST_SOURCES})
  set_target_properties(headcount_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
    CUDA_ARCHITECTURES "${HEADCOUNT_CUDA_ARCHITECTURES}")
  target_include_directories(headcount_cuda PUBLIC csrc)
  target_compile_options(headcount_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
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
