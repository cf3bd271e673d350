// CUDA graphs of libtorch, for shim.cpp.
//
// A shared object of its own: at::cuda::CUDAGraph lives in libtorch_cuda, which the program does not link. It is
// loaded after that library, whose symbols it takes. Nothing here catches: the caller does.

#include <ATen/cuda/CUDAGraph.h>

#include "graph.h"

namespace {

using at::cuda::CUDAGraph;

void* begin(const void* shares_with) {
  auto graph = std::make_unique<CUDAGraph>();
  at::cuda::MempoolId_t pool = at::cuda::graph_pool_handle();
  if (shares_with != nullptr) {
    pool = const_cast<CUDAGraph*>(static_cast<const CUDAGraph*>(shares_with))->pool();
  }
  // Other threads, of other models, may allocate meanwhile.
  graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
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

} // namespace

extern "C" const ConcordGraphs* concord_graphs() {
  static const ConcordGraphs graphs = {begin, end, replay, destroy};
  return &graphs;
}
