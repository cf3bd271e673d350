// What graph.cpp gives to shim.cpp. Its functions throw.
#pragma once

struct ConcordGraphs {
  // Begins to record the current stream, into the memory of another graph where one is given.
  void* (*begin)(const void* shares_with);
  void (*end)(void* graph);
  // On the current stream.
  void (*replay)(void* graph);
  void (*destroy)(void* graph);
};
