// How kernels are started on a GPU, without one: launch.h over a runtime that writes down what it is asked. `plain` as
// an argument is HEADCOUNT_CUDA_PLAIN=1.
#define __CUDACC__
#include "cuda/launch.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "tests/expect.h"

using namespace headcount::test;

namespace {

void kernel(int, float*) {}

// What a launch that may start early throws, or "".
std::string started() {
  Launch launch;
  launch.name = "some_kernel";
  launch.cluster = 2;
  launch.dependent = true;
  try {
    start(launch, nullptr, kernel, 1, nullptr);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool began_with(const std::string& text, const std::string& beginning) { return text.rfind(beginning, 0) == 0; }

bool asked_for(cudaLaunchAttributeID id) {
  return std::count(fake_cuda::attributes.begin(), fake_cuda::attributes.end(), id) == 1;
}

void check_launches(bool plain) {
  expect(started().empty(), "a launch");
  expect(asked_for(cudaLaunchAttributeClusterDimension), "a cluster in either mode");
  expect(asked_for(cudaLaunchAttributeProgrammaticStreamSerialization) != plain, "an early start unless plain");
  expect(fake_cuda::waits == (plain ? 1 : 0), "a wait for each kernel where plain");
  fake_cuda::capturing = true;
  expect(started().empty() && fake_cuda::waits == (plain ? 1 : 0), "no wait for a stream that is capturing");
  fake_cuda::capturing = false;
  fake_cuda::of_wait = cudaErrorIllegalAddress;
  expect(started() == (plain ? "some_kernel, running: an illegal address" : ""), "a fault is its kernel's where plain");
  fake_cuda::of_launch = cudaErrorIllegalAddress;
  const std::string refused = started();
  expect(began_with(refused, plain ? "some_kernel, launch: " : "some_kernel, launch, or a kernel before it"), refused);
}

}  // namespace

int main(int count, char** arguments) {
  const bool plain = count > 1 && std::string(arguments[1]) == "plain";
  setenv("HEADCOUNT_CUDA_PLAIN", "yes", 1);
  expect(started() == "HEADCOUNT_CUDA_PLAIN: expected 1 or 0, found 'yes'", "a word it does not know");
  plain ? setenv("HEADCOUNT_CUDA_PLAIN", "1", 1) : unsetenv("HEADCOUNT_CUDA_PLAIN");
  check_launches(plain);
  return finish(plain ? "cuda_launch, plain" : "cuda_launch");
}
