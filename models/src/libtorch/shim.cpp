// Streams, events and memory of whatever device libtorch has loaded, for Rust.
//
// c10::impl::VirtualGuardImpl asks the registry of device back ends at run time, so this needs no
// CUDA header and links no CUDA library. Every function catches what libtorch throws: an exception
// must not cross into Rust. On failure it returns false (or null) and the text is kept for
// concord_last_error() of the same thread.

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <string>

#include "cuda_part.h"

namespace {

const ConcordCuda* part = nullptr;

thread_local std::string last_error;

c10::Device cuda(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

const c10::impl::VirtualGuardImpl guard() {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA);
}

// Runs `work`, turning an exception into `failed`.
template <typename Work, typename Result>
Result caught(Result failed, Work work) {
  try {
    return work();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an unknown C++ exception";
  }
  return failed;
}

} // namespace

extern "C" {

const char* concord_last_error() {
  return last_error.c_str();
}

// The CUDA half registers itself when it is loaded; it stays loaded for good.
bool concord_load_cuda() {
  // Only the one beside the libc10 that this program runs with: another may be of another build.
  Dl_info loaded;
  if (dladdr(reinterpret_cast<void*>(&c10::DeviceTypeName), &loaded) == 0 || loaded.dli_fname == nullptr) {
    last_error = "libc10.so could not be found";
    return false;
  }
  const std::string c10_path = loaded.dli_fname;
  const auto slash = c10_path.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : c10_path.substr(0, slash + 1);
  if (dlopen((folder + "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) {
    return true;
  }
  const char* why = dlerror();
  last_error = why != nullptr ? why : "libtorch_cuda.so could not be loaded";
  return false;
}

// Loads the compiled graph.cpp and kernel.cpp; after libtorch_cuda, whose symbols it takes. It stays loaded for good.
bool concord_load_cuda_part(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  void* found = library != nullptr ? dlsym(library, "concord_cuda") : nullptr;
  if (found == nullptr) {
    const char* why = dlerror();
    last_error = why != nullptr ? why : "the shared object could not be loaded";
    return false;
  }
  part = reinterpret_cast<const ConcordCuda* (*)()>(found)();
  return true;
}

// The following need it.
void* concord_graph_begin(const void* shares_with) {
  return caught<>(static_cast<void*>(nullptr), [&] { return part->graph_begin(shares_with); });
}

bool concord_graph_end(void* graph) {
  return caught(false, [&] {
    part->graph_end(graph);
    return true;
  });
}

bool concord_graph_replay(void* graph) {
  return caught(false, [&] {
    part->graph_replay(graph);
    return true;
  });
}

void concord_graph_delete(void* graph) {
  caught(false, [&] {
    part->graph_destroy(graph);
    return true;
  });
}

// Compute capability of the current device and NVRTC's version; false where there is no such thing.
bool concord_kernel_versions(int* architecture, int* compiler) {
  return caught(false, [&] {
    *architecture = part->architecture(-1);
    *compiler = part->compiler();
    return true;
  });
}

// Compute capability of a device, for instance 90; negative where it does not tell.
int concord_architecture_of(int device) {
  return caught(-1, [&] { return part->architecture(device); });
}

// To be freed by concord_free.
void* concord_kernel_compile(const char* source, std::size_t* bytes) {
  return caught<>(static_cast<void*>(nullptr), [&] { return part->compile(source, bytes); });
}

void concord_free(void* memory) {
  std::free(memory);
}

void* concord_kernel_load(const void* code, const char* name) {
  return caught<>(static_cast<void*>(nullptr), [&] { return part->load(code, name); });
}

bool concord_kernel_launch(void* function, unsigned blocks, unsigned threads, void** arguments) {
  return caught(false, [&] {
    part->launch(function, blocks, threads, arguments);
    return true;
  });
}

// Free and all bytes of a device, as the driver says. By the caching allocator's own method, which is virtual: calling
// it needs no CUDA header.
bool concord_memory_info(int device, uint64_t* free_bytes, uint64_t* total_bytes) {
  return caught(false, [&] {
    const auto [free, total] =
        c10::getDeviceAllocator(c10::DeviceType::CUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    *free_bytes = free;
    *total_bytes = total;
    return true;
  });
}

void* concord_stream_new(int device) {
  return caught<>(static_cast<void*>(nullptr), [&]() -> void* {
    return new c10::Stream(guard().getNewStream(cuda(device)));
  });
}

void concord_stream_delete(void* stream) {
  delete static_cast<c10::Stream*>(stream);
}

// Makes `stream` current on this thread and gives back the one that was.
void* concord_stream_exchange(void* stream) {
  return caught<>(static_cast<void*>(nullptr), [&]() -> void* {
    return new c10::Stream(guard().exchangeStream(*static_cast<c10::Stream*>(stream)));
  });
}

bool concord_stream_synchronize(void* stream) {
  return caught(false, [&] {
    guard().synchronizeStream(*static_cast<c10::Stream*>(stream));
    return true;
  });
}

void* concord_event_new() {
  return caught<>(static_cast<void*>(nullptr), [&]() -> void* {
    // BACKEND_DEFAULT is the flag that leaves CUDA's timing on.
    return new c10::Event(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
  });
}

void concord_event_delete(void* event) {
  delete static_cast<c10::Event*>(event);
}

bool concord_event_record(void* event, void* stream) {
  return caught(false, [&] {
    static_cast<c10::Event*>(event)->record(*static_cast<c10::Stream*>(stream));
    return true;
  });
}

bool concord_event_block(void* event, void* stream) {
  return caught(false, [&] {
    static_cast<c10::Event*>(event)->block(*static_cast<c10::Stream*>(stream));
    return true;
  });
}

bool concord_event_synchronize(void* event) {
  return caught(false, [&] {
    static_cast<c10::Event*>(event)->synchronize();
    return true;
  });
}

// Milliseconds between two recorded events; NaN when they cannot be compared.
double concord_event_elapsed_ms(void* from, void* to) {
  return caught(std::nan(""), [&] {
    return static_cast<c10::Event*>(from)->elapsedTime(*static_cast<c10::Event*>(to));
  });
}

// Bytes in tensors now, in tensors at most, and taken from the device.
bool concord_allocated_memory(int device, std::uint64_t* bytes) {
  return caught(false, [&] {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)
                           ->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    // The first of the statistics is that of all allocations together.
    bytes[0] = static_cast<std::uint64_t>(stats.allocated_bytes[0].current);
    bytes[1] = static_cast<std::uint64_t>(stats.allocated_bytes[0].peak);
    bytes[2] = static_cast<std::uint64_t>(stats.reserved_bytes[0].current);
    return true;
  });
}

bool concord_reset_peak_memory(int device) {
  return caught(false, [&] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)
        ->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    return true;
  });
}

} // extern "C"
