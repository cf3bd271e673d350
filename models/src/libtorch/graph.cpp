// CUDA graphs of libtorch, for shim.cpp.
//
// This is part of a shared object of its own: at::cuda::CUDAGraph lives in libtorch_cuda, which the program
// does not link. It is loaded after that library, whose symbols it uses. Nothing here catches exceptions: the
// caller does.

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/Sleep.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <memory>

#include "cuda_part.h"

int concord_architecture(int device);
int concord_compiler();
void* concord_compile(const char* source, std::size_t* bytes);
void* concord_load(const void* code, const char* name);
void concord_launch(void* function, const ConcordLaunch* how, void** arguments);
int concord_multiprocessors();
int concord_product_algorithms(const ConcordProduct* product, ConcordAlgorithm* algorithms, int most);
void concord_product(const ConcordProduct* product, const ConcordAlgorithm* algorithm, void* workspace);

namespace {

using at::cuda::CUDAGraph;

void* begin(const void* shares_with) {
  auto graph = std::make_unique<CUDAGraph>();
  at::cuda::MempoolId_t pool = at::cuda::graph_pool_handle();
  if (shares_with != nullptr) {
    pool = const_cast<CUDAGraph*>(static_cast<const CUDAGraph*>(shares_with))->pool();
  }
  // The mode is thread-local, since other threads, of other models, may allocate meanwhile.
  try {
    graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  } catch (...) {
    // The destructor of a graph that never began throws, which would end the process: a few hundred bytes are
    // leaked instead.
    graph.release();
    throw;
  }
  return graph.release();
}

void end(void* graph) {
  static_cast<CUDAGraph*>(graph)->capture_end();
}

void replay(void* graph) {
  static_cast<CUDAGraph*>(graph)->replay();
}

void destroy(void* graph) {
  delete static_cast<CUDAGraph*>(graph);
}

bool is_capturing(const void* stream) {
  const c10::cuda::CUDAStream cuda(*static_cast<const c10::Stream*>(stream));
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(cuda, &status));
  return status != cudaStreamCaptureStatusNone;
}

void spin(const void* stream, long long cycles) {
  // This sets the stream's device, too.
  const c10::StreamGuard current(*static_cast<const c10::Stream*>(stream));
  at::cuda::sleep(cycles);
}

} // namespace

extern "C" const ConcordCuda* concord_cuda() {
  static const ConcordCuda cuda = {begin,
                                   end,
                                   replay,
                                   destroy,
                                   concord_architecture,
                                   concord_compiler,
                                   concord_compile,
                                   concord_load,
                                   concord_launch,
                                   is_capturing,
                                   spin,
                                   concord_multiprocessors,
                                   concord_product_algorithms,
                                   concord_product};
  return &cuda;
}
