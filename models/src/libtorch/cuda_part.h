// What the shared object of CUDA's part (graph.cpp, kernel.cpp) gives to shim.cpp. Its functions throw.
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
};
