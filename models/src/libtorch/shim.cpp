// Streams, events and memory of whatever device libtorch has loaded, and its attention by each back end, for
// Rust.
//
// c10::impl::VirtualGuardImpl asks the registry of device back ends at run time, so this needs no CUDA header
// and links no CUDA library. Every function catches what libtorch throws: an exception must not cross into
// Rust. On failure a function returns false (or null), and the message is kept for concord_last_error() on
// the same thread.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
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
#include <limits>
#include <optional>
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

// The attention kernels load 16 bytes at a time, eight values of two bytes.
constexpr std::int64_t vector_values = 8;

bool is_in_vectors(const at::Tensor& tensor) {
  for (std::int64_t axis = 0; axis + 1 < tensor.dim(); ++axis) {
    if (tensor.size(axis) > 1 && tensor.stride(axis) % vector_values != 0) {
      return false;
    }
  }
  return tensor.stride(-1) == 1 && reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// Back ends do not all check what libtorch ensures before it calls them: they would read values from the
// wrong place.
void check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "attention is of four dimensions");
  TORCH_CHECK(query.numel() > 0 && key.numel() > 0, "attention to nothing");
  TORCH_CHECK(key.sizes() == value.sizes() && query.size(0) == key.size(0), "keys and values are of other sizes");
  TORCH_CHECK(query.size(1) % key.size(1) == 0, "heads cannot share keys and values");
  TORCH_CHECK(query.size(3) == key.size(3) && key.size(3) % vector_values == 0, "heads are of an odd width");
  TORCH_CHECK(query.element_size() == 2, "attention is not of two bytes a value");
  TORCH_CHECK(query.scalar_type() == key.scalar_type(), "number formats differ");
  TORCH_CHECK(key.scalar_type() == value.scalar_type(), "number formats differ");
  TORCH_CHECK(query.device() == key.device() && key.device() == value.device(), "tensors are of different devices");
  TORCH_CHECK(is_in_vectors(query) && is_in_vectors(key) && is_in_vectors(value), "tensors are not aligned");
}

// Returns what is added to the logits. It must have the number format of the query: cuDNN would misread the
// bytes of another one (pytorch/pytorch#191612). A mask is turned into a bias as libtorch does it.
std::optional<at::Tensor> added_bias(const at::Tensor* bias, const at::Tensor& query) {
  if (bias == nullptr) {
    return std::nullopt;
  }
  at::Tensor added = *bias;
  if (added.scalar_type() == at::kBool) {
    const auto options = at::TensorOptions().dtype(query.scalar_type());
    added = at::where(added, 0.0, at::scalar_tensor(-std::numeric_limits<double>::infinity(), options));
  }
  TORCH_CHECK(added.dim() == 4, "the bias is not of four dimensions");
  TORCH_CHECK(added.size(1) == 1 || added.size(1) == query.size(1), "the bias is of other heads");
  TORCH_CHECK(added.scalar_type() == query.scalar_type(), "the bias is of another number format");
  TORCH_CHECK(added.device() == query.device(), "the bias is of another device");
  return added;
}

void* owned(const at::Tensor& tensor) {
  return new at::Tensor(tensor);
}

const at::Tensor& tensor_of(const void* pointer) {
  return *static_cast<const at::Tensor*>(pointer);
}

} // namespace

extern "C" {

const char* concord_last_error() {
  return last_error.c_str();
}

// The CUDA half registers itself when it is loaded; it stays loaded for good.
bool concord_load_cuda() {
  // Only the library beside the libc10 that this program runs with will do: another may be of another build.
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

// Loads the shared object of graph.cpp, kernel.cpp and product.cpp, after libtorch_cuda, whose symbols it
// uses. It stays loaded for good.
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

// The following functions need the shared object.
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

// Returns the compute capability of the current device and NVRTC's version; false if there is no such thing.
bool concord_kernel_versions(int* architecture, int* compiler) {
  return caught(false, [&] {
    *architecture = part->architecture(-1);
    *compiler = part->compiler();
    return true;
  });
}

// Returns the compute capability of a device, for instance 90; negative on failure.
int concord_architecture_of(int device) {
  return caught(-1, [&] { return part->architecture(device); });
}

// Returns the number of multiprocessors of the current device; negative on failure.
int concord_multiprocessors() {
  return caught(-1, [&] { return part->multiprocessors(); });
}

// Returns the number of algorithms for a product; negative on failure.
int concord_product_algorithms(const ConcordProduct* product, ConcordAlgorithm* algorithms, int most) {
  return caught(-1, [&] { return part->product_algorithms(product, algorithms, most); });
}

bool concord_product(const ConcordProduct* product, const ConcordAlgorithm* algorithm, void* workspace) {
  return caught(false, [&] {
    part->product(product, algorithm, workspace);
    return true;
  });
}

// The result must be freed by concord_free.
void* concord_kernel_compile(const char* source, std::size_t* bytes) {
  return caught<>(static_cast<void*>(nullptr), [&] { return part->compile(source, bytes); });
}

void concord_free(void* memory) {
  std::free(memory);
}

void* concord_kernel_load(const void* code, const char* name) {
  return caught<>(static_cast<void*>(nullptr), [&] { return part->load(code, name); });
}

bool concord_kernel_launch(void* function, const ConcordLaunch* how, void** arguments) {
  return caught(false, [&] {
    part->launch(function, how, arguments);
    return true;
  });
}

// Returns the free and the total bytes of a device, as the driver reports them. This is the caching
// allocator's own method, which is virtual: calling it needs no CUDA header.
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

// Makes a device the thread's current one and returns the previous one; negative on failure.
int concord_device_exchange(int device) {
  return caught(-1, [&] { return static_cast<int>(guard().exchangeDevice(cuda(device)).index()); });
}

// Makes `stream` the current one on this thread, for its device, and returns the previous one.
void* concord_stream_exchange(void* stream) {
  return caught<>(static_cast<void*>(nullptr), [&]() -> void* {
    return new c10::Stream(guard().exchangeStream(*static_cast<c10::Stream*>(stream)));
  });
}

// Returns the stream that is current on this thread.
void* concord_stream_current(int device) {
  return caught<>(static_cast<void*>(nullptr), [&]() -> void* {
    return new c10::Stream(guard().getStream(cuda(device)));
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

// Returns the milliseconds between two recorded events; NaN if they cannot be compared.
double concord_event_elapsed_ms(void* from, void* to) {
  return caught(std::nan(""), [&] {
    return static_cast<c10::Event*>(from)->elapsedTime(*static_cast<c10::Event*>(to));
  });
}

// Returns whether this stream is being recorded: 1 or 0, negative on failure. The shared object must be
// loaded.
int concord_stream_is_capturing(const void* stream) {
  return caught(-1, [&] { return part->is_capturing(stream) ? 1 : 0; });
}

// Keeps the stream busy. The shared object must be loaded.
bool concord_stream_spin(const void* stream, long long cycles) {
  return caught(false, [&] {
    part->spin(stream, cycles);
    return true;
  });
}

// Attention of [batch, heads, positions, width] by one back end; heads share keys and values if there are
// fewer of those. Tensors are at::Tensor. The result is owned by the caller; it is null on failure.
void* concord_flash_attention(const void* query, const void* key, const void* value) {
  return caught<>(static_cast<void*>(nullptr), [&] {
    const auto &q = tensor_of(query), &k = tensor_of(key), &v = tensor_of(value);
    check_attention(q, k, v);
    return owned(std::get<0>(at::_scaled_dot_product_flash_attention(q, k, v)));
  });
}

// `bias` may be null.
void* concord_efficient_attention(const void* query, const void* key, const void* value, const void* bias) {
  return caught<>(static_cast<void*>(nullptr), [&] {
    const auto &q = tensor_of(query), &k = tensor_of(key), &v = tensor_of(value);
    check_attention(q, k, v);
    TORCH_CHECK(q.size(1) == k.size(1), "heads do not share keys and values here");
    auto added = added_bias(static_cast<const at::Tensor*>(bias), q);
    if (added.has_value()) {
      added = added->expand({q.size(0), q.size(1), q.size(2), k.size(2)});
      TORCH_CHECK(is_in_vectors(*added), "the bias is not aligned");
    }
    return owned(std::get<0>(at::_scaled_dot_product_efficient_attention(q, k, v, added, false)));
  });
}

// `bias` may be null.
void* concord_cudnn_attention(const void* query, const void* key, const void* value, const void* bias) {
  return caught<>(static_cast<void*>(nullptr), [&] {
    const auto &q = tensor_of(query), &k = tensor_of(key), &v = tensor_of(value);
    check_attention(q, k, v);
    const auto added = added_bias(static_cast<const at::Tensor*>(bias), q);
    return owned(std::get<0>(at::_scaled_dot_product_cudnn_attention(q, k, v, added, false)));
  });
}

// Returns the bytes in tensors now, in tensors at most, and taken from the device.
bool concord_allocated_memory(int device, std::uint64_t* bytes) {
  return caught(false, [&] {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)
                           ->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    // The first entry of the statistics is that of all allocations together.
    bytes[0] = static_cast<std::uint64_t>(stats.allocated_bytes[0].current);
    bytes[1] = static_cast<std::uint64_t>(stats.allocated_bytes[0].peak);
    bytes[2] = static_cast<std::uint64_t>(stats.reserved_bytes[0].current);
    return true;
  });
}

// Releases to the devices the memory that is in no tensor.
bool concord_release_memory() {
  return caught(false, [&] {
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
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
