// What the shared object of CUDA's part (graph.cpp, kernel.cpp, product.cpp) gives to shim.cpp. Its functions throw.
#pragma once

#include <cstddef>

// How a kernel is launched: on as many blocks of as many threads, each block with so much of shared memory as it is told
// of; where `begins_early` is set, perhaps before the kernel before it has ended, for which it waits by itself.
struct ConcordLaunch {
  unsigned blocks;
  unsigned threads;
  unsigned shared_bytes;
  bool begins_early;
};

// out [rows, outputs] = x [rows, inputs] · weights [outputs, inputs] transposed + bias [outputs], all contiguous, on the
// current device, in bf16 or fp16. The bias may be null.
struct ConcordProduct {
  const void* x;
  const void* weights;
  const void* bias;
  // Laid out like out; null: nothing is added.
  const void* added;
  void* out;
  long long rows;
  long long inputs;
  long long outputs;
  bool is_bf16;
  // Of the sum of product and bias; not where something is added.
  bool has_gelu;
};

// A way to compute it, as cuBLASLt names it.
struct ConcordAlgorithm {
  unsigned long long data[8];
  unsigned long long workspace_bytes;
};

struct ConcordCuda {
  // Begins to record the current stream, into the memory of another graph where one is given.
  void* (*graph_begin)(const void* shares_with);
  void (*graph_end)(void* graph);
  // On the current stream.
  void (*graph_replay)(void* graph);
  void (*graph_destroy)(void* graph);

  // Compute capability of a device, for instance 90; of the current one where it is negative.
  int (*architecture)(int device);
  // NVRTC's version, for instance 13000.
  int (*compiler)();
  // Machine code for the current device; to be freed by `free`.
  void* (*compile)(const char* source, std::size_t* bytes);
  // A function of that code, which stays loaded for good.
  void* (*load)(const void* code, const char* name);
  // On the current stream.
  void (*launch)(void* function, const ConcordLaunch* how, void** arguments);

  // Whether work on this c10::Stream is being recorded.
  bool (*is_capturing)(const void* stream);
  // Keeps this c10::Stream busy for so many cycles of the GPU's clock.
  void (*spin)(const void* stream, long long cycles);
  // How many multiprocessors the current device has.
  int (*multiprocessors)();

  // Ways to compute a product, the most promising first; how many there are, at most `most`. Pointers are not used.
  int (*product_algorithms)(const ConcordProduct* product, ConcordAlgorithm* algorithms, int most);
  // On the current stream; the work space is of the size that the algorithm wants.
  void (*product)(const ConcordProduct* product, const ConcordAlgorithm* algorithm, void* workspace);
};
