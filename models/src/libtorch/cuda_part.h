// The interface of the CUDA shared object (graph.cpp, kernel.cpp, product.cpp) to shim.cpp. Its functions
// throw.
#pragma once

#include <cstddef>

// The launch of a kernel: the numbers of blocks and of threads in a block, and the bytes of dynamic shared
// memory of each block. If `begins_early` is set, the kernel may begin before the previous one has ended, and
// waits for it itself.
struct ConcordLaunch {
  unsigned blocks;
  unsigned threads;
  unsigned shared_bytes;
  bool begins_early;
};

// out [rows, outputs] = x [rows, inputs] · weights [outputs, inputs] transposed + bias [outputs], all
// contiguous, on the current device, in bf16 or fp16. The bias may be null.
struct ConcordProduct {
  const void* x;
  const void* weights;
  const void* bias;
  // A tensor to add, laid out like out; null if there is none.
  const void* added;
  void* out;
  long long rows;
  long long inputs;
  long long outputs;
  bool is_bf16;
  // Says whether GELU of product and bias follows; false if a tensor is added.
  bool has_gelu;
};

// An algorithm for a product, as cuBLASLt names it.
struct ConcordAlgorithm {
  unsigned long long data[8];
  unsigned long long workspace_bytes;
};

struct ConcordCuda {
  // Begins to record the current stream, in the memory of another graph if one is given.
  void* (*graph_begin)(const void* shares_with);
  void (*graph_end)(void* graph);
  // Replays a graph on the current stream.
  void (*graph_replay)(void* graph);
  void (*graph_destroy)(void* graph);

  // Returns the compute capability of a device, for instance 90; that of the current one if `device` is
  // negative.
  int (*architecture)(int device);
  // Returns NVRTC's version, for instance 13000.
  int (*compiler)();
  // Returns machine code for the current device, which must be freed by `free`.
  void* (*compile)(const char* source, std::size_t* bytes);
  // Returns a function of that code, which stays loaded for good.
  void* (*load)(const void* code, const char* name);
  // Launches a function on the current stream.
  void (*launch)(void* function, const ConcordLaunch* how, void** arguments);

  // Returns whether this c10::Stream is being recorded.
  bool (*is_capturing)(const void* stream);
  // Keeps this c10::Stream busy for this many cycles of the GPU's clock.
  void (*spin)(const void* stream, long long cycles);
  // Returns the number of multiprocessors of the current device.
  int (*multiprocessors)();

  // Writes the algorithms for a product, the most promising first, and returns their number, at most `most`.
  // The product's pointers are not used.
  int (*product_algorithms)(const ConcordProduct* product, ConcordAlgorithm* algorithms, int most);
  // Computes a product on the current stream; the workspace has the size that the algorithm asks for.
  void (*product)(const ConcordProduct* product, const ConcordAlgorithm* algorithm, void* workspace);
};
