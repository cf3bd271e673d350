// What the shared object of CUDA's part (graph.cpp, kernel.cpp) gives to shim.cpp. Its functions throw.
#pragma once

#include <cstddef>

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
  void (*launch)(void* function, unsigned blocks, unsigned threads, void** arguments);
};
