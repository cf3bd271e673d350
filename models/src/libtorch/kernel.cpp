// The project's own kernels: compiled by NVRTC, loaded and launched by the driver's functions.
//
// Both libraries are looked up at run time: NVRTC is missing on some machines, and the driver is already
// loaded by libcudart wherever there is a GPU. NVRTC lies beside libcudart in NVIDIA's wheels.

#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda_part.h"

namespace {

// These are declared as in nvrtc.h, which comes in a wheel of 90 MB.
using Program = struct OpaqueProgram*;
using CreateProgram = int (*)(Program*, const char*, const char*, int, const char* const*, const char* const*);
using CompileProgram = int (*)(Program, int, const char* const*);
using Text = int (*)(Program, char*);
using Size = int (*)(Program, std::size_t*);
using Version = int (*)(int*, int*);

template <typename Function>
Function find(void* library, const char* name) {
  void* found = library != nullptr ? dlsym(library, name) : nullptr;
  if (found == nullptr) {
    throw std::runtime_error(std::string(name) + " could not be found");
  }
  return reinterpret_cast<Function>(found);
}

void* driver() {
  static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return library;
}

void* open_compiler() {
  const std::string major = std::to_string(CUDART_VERSION / 1000);
  const std::string name = "libnvrtc.so." + major;
  // NVRTC opens its built-ins by their name alone, which is found only if they are loaded already.
  const std::string builtins = "libnvrtc-builtins.so." + major + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  Dl_info runtime;
  if (dladdr(reinterpret_cast<void*>(&cudaDeviceGetAttribute), &runtime) != 0 && runtime.dli_fname != nullptr) {
    const std::string path = runtime.dli_fname;
    const auto slash = path.rfind('/');
    if (slash != std::string::npos) {
      const std::string folder = path.substr(0, slash + 1);
      dlopen((folder + builtins).c_str(), RTLD_NOW | RTLD_GLOBAL);
      void* library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) {
        return library;
      }
    }
  }
  return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* compiler_library() {
  static void* library = open_compiler();
  if (library == nullptr) {
    throw std::runtime_error("NVRTC (libnvrtc) could not be loaded");
  }
  return library;
}

void check(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(what) + " failed: CUDA error " + std::to_string(result));
  }
}

int attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  if ((device < 0 && cudaGetDevice(&device) != cudaSuccess) ||
      cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    throw std::runtime_error("the device does not tell what it has");
  }
  return value;
}

void set(CUfunction function, CUfunction_attribute attribute, int value) {
  using Set = CUresult (*)(CUfunction, CUfunction_attribute, int);
  static const Set set_attribute = find<Set>(driver(), "cuFuncSetAttribute");
  check(set_attribute(function, attribute, value), "preparing a kernel");
}

} // namespace

int concord_architecture(int device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

int concord_compiler() {
  int major = 0;
  int minor = 0;
  find<Version>(compiler_library(), "nvrtcVersion")(&major, &minor);
  return 1000 * major + minor;
}

void* concord_compile(const char* source, std::size_t* bytes) {
  void* library = compiler_library();
  const std::string architecture = "--gpu-architecture=sm_" + std::to_string(concord_architecture(-1));
  const char* options[] = {architecture.c_str(), "--std=c++17"};
  Program program = nullptr;
  if (find<CreateProgram>(library, "nvrtcCreateProgram")(&program, source, "kernels.cu", 0, nullptr, nullptr) != 0) {
    throw std::runtime_error("NVRTC takes no program");
  }
  if (find<CompileProgram>(library, "nvrtcCompileProgram")(program, 2, options) != 0) {
    std::size_t length = 0;
    find<Size>(library, "nvrtcGetProgramLogSize")(program, &length);
    std::string log(length, '\0');
    find<Text>(library, "nvrtcGetProgramLog")(program, log.data());
    throw std::runtime_error("a kernel does not compile: " + log);
  }
  find<Size>(library, "nvrtcGetCUBINSize")(program, bytes);
  char* code = static_cast<char*>(std::malloc(*bytes));
  if (code == nullptr || find<Text>(library, "nvrtcGetCUBIN")(program, code) != 0) {
    std::free(code);
    throw std::runtime_error("NVRTC gives no code");
  }
  find<int (*)(Program*)>(library, "nvrtcDestroyProgram")(&program);
  return code;
}

void* concord_load(const void* code, const char* name) {
  CUmodule module = nullptr;
  check(find<CUresult (*)(CUmodule*, const void*)>(driver(), "cuModuleLoadData")(&module, code), "loading kernels");
  CUfunction function = nullptr;
  check(find<CUresult (*)(CUfunction*, CUmodule, const char*)>(driver(), "cuModuleGetFunction")(&function, module, name),
        "finding a kernel");
  return function;
}

int concord_multiprocessors() {
  return attribute(cudaDevAttrMultiProcessorCount, -1);
}

void concord_launch(void* function, const ConcordLaunch* how, void** arguments) {
  using Launch = CUresult (*)(const CUlaunchConfig*, CUfunction, void**, void**);
  static const Launch launch = find<Launch>(driver(), "cuLaunchKernelEx");
  const auto kernel = static_cast<CUfunction>(function);
  // The shared memory that every kernel may have without opting in.
  constexpr unsigned FREE_SHARED_BYTES = 48 * 1024;
  if (how->shared_bytes > FREE_SHARED_BYTES) {
    set(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(how->shared_bytes));
  }
  CUlaunchAttribute early = {};
  early.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  early.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config = {};
  config.gridDimX = how->blocks;
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = how->threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = how->shared_bytes;
  config.hStream = c10::cuda::getCurrentCUDAStream().stream();
  if (how->begins_early) {
    // A multiprocessor that has to repartition its memory for the next kernel lets it begin only when it is
    // empty.
    set(kernel, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CU_SHAREDMEM_CARVEOUT_MAX_SHARED);
    config.attrs = &early;
    config.numAttrs = 1;
  }
  check(launch(&config, kernel, arguments, nullptr), "launching a kernel");
}
