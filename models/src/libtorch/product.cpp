// Matrix products by cuBLASLt, by an algorithm that the caller has chosen.
//
// libtorch takes the first algorithm that cuBLASLt's heuristic proposes; here all of them can be had, to be
// measured. The library is the one that libtorch has loaded. The declarations of cublasLt.h are repeated:
// that header comes in a wheel of 400 MB.

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_part.h"

namespace {

using Handle = struct OpaqueHandle*;
using Description = struct OpaqueDescription*;
using Layout = struct OpaqueLayout*;
using Preference = struct OpaquePreference*;
using Status = int;

struct Algorithm {
  std::uint64_t data[8];
};

// Mirrors cublasLtMatmulHeuristicResult_t.
struct Guess {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

constexpr int COMPUTE_32F = 68;
constexpr int TRANSPOSED = 1;
constexpr int DESCRIPTION_TRANSA = 3, DESCRIPTION_EPILOGUE = 7, DESCRIPTION_BIAS_POINTER = 8;
constexpr int EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4, EPILOGUE_GELU = 32;
constexpr int PREFERENCE_WORKSPACE_BYTES = 1, PREFERENCE_REDUCTIONS = 3;
// CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: partial sums are added in fp32 in a workspace, not in the number
// format of the output.
constexpr std::uint32_t REDUCTIONS = 2;
constexpr std::size_t WORKSPACE_BYTES_MAX = 32 << 20;

void* library() {
  static void* loaded =
      dlopen(("libcublasLt.so." + std::to_string(CUDART_VERSION / 1000)).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  return loaded;
}

template <typename... Arguments>
void call(const char* name, Arguments... arguments) {
  void* found = library() != nullptr ? dlsym(library(), name) : nullptr;
  if (found == nullptr) {
    throw std::runtime_error(std::string(name) + " could not be found");
  }
  const Status status = reinterpret_cast<Status (*)(Arguments...)>(found)(arguments...);
  if (status != 0) {
    throw std::runtime_error(std::string(name) + " failed: " + std::to_string(status));
  }
}

// Returns the handle of the current device, which is kept for good: several threads may use it at once.
Handle handle() {
  static std::mutex mutex;
  static std::map<int, Handle> handles;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    throw std::runtime_error("there is no current device");
  }
  const std::lock_guard<std::mutex> guard(mutex);
  Handle& one = handles[device];
  if (one == nullptr) {
    call("cublasLtCreate", &one);
  }
  return one;
}

// The description of a product for cuBLASLt. Its matrices are stored by columns: ours, stored by rows, are
// transposed to it. So it is asked for out transposed, which is the transpose of the transposed weights times
// x transposed.
class Problem {
 public:
  explicit Problem(const ConcordProduct& product) {
    const int type = product.is_bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const auto rows = static_cast<std::uint64_t>(product.rows);
    const auto inputs = static_cast<std::uint64_t>(product.inputs);
    const auto outputs = static_cast<std::uint64_t>(product.outputs);
    call("cublasLtMatmulDescCreate", &description, COMPUTE_32F, static_cast<int>(CUDA_R_32F));
    set(DESCRIPTION_TRANSA, TRANSPOSED);
    const int gelu = product.has_gelu ? EPILOGUE_GELU : 0;
    if (product.bias != nullptr) {
      set(DESCRIPTION_EPILOGUE, EPILOGUE_BIAS | gelu);
      set(DESCRIPTION_BIAS_POINTER, product.bias);
    } else {
      set(DESCRIPTION_EPILOGUE, gelu != 0 ? gelu : EPILOGUE_NONE);
    }
    call("cublasLtMatrixLayoutCreate", &weights, type, inputs, outputs, static_cast<std::int64_t>(product.inputs));
    call("cublasLtMatrixLayoutCreate", &x, type, inputs, rows, static_cast<std::int64_t>(product.inputs));
    call("cublasLtMatrixLayoutCreate", &out, type, outputs, rows, static_cast<std::int64_t>(product.outputs));
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  ~Problem() {
    destroy("cublasLtMatrixLayoutDestroy", out);
    destroy("cublasLtMatrixLayoutDestroy", x);
    destroy("cublasLtMatrixLayoutDestroy", weights);
    destroy("cublasLtMatmulDescDestroy", description);
  }

  Description description = nullptr;
  Layout weights = nullptr;
  Layout x = nullptr;
  Layout out = nullptr;

 private:
  template <typename Value>
  void set(int attribute, Value value) {
    call("cublasLtMatmulDescSetAttribute", description, attribute, static_cast<const void*>(&value), sizeof(value));
  }

  template <typename Thing>
  static void destroy(const char* name, Thing thing) {
    if (thing == nullptr) {
      return;
    }
    try {
      call(name, thing);
    } catch (const std::exception&) {
      // A few hundred bytes are leaked.
    }
  }
};

} // namespace

int concord_product_algorithms(const ConcordProduct* product, ConcordAlgorithm* algorithms, int most) {
  const Problem problem(*product);
  Preference preference = nullptr;
  call("cublasLtMatmulPreferenceCreate", &preference);
  std::vector<Guess> guesses(static_cast<std::size_t>(most));
  int found = 0;
  try {
    const auto set = [&](int attribute, const void* value, std::size_t bytes) {
      call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value, bytes);
    };
    set(PREFERENCE_WORKSPACE_BYTES, &WORKSPACE_BYTES_MAX, sizeof(WORKSPACE_BYTES_MAX));
    set(PREFERENCE_REDUCTIONS, &REDUCTIONS, sizeof(REDUCTIONS));
    call("cublasLtMatmulAlgoGetHeuristic", handle(), problem.description, problem.weights, problem.x, problem.out,
         problem.out, preference, most, guesses.data(), &found);
  } catch (...) {
    call("cublasLtMatmulPreferenceDestroy", preference);
    throw;
  }
  call("cublasLtMatmulPreferenceDestroy", preference);
  int count = 0;
  for (int index = 0; index < found; ++index) {
    const Guess& guess = guesses[static_cast<std::size_t>(index)];
    if (guess.state == 0) {
      ConcordAlgorithm& to = algorithms[count++];
      for (int word = 0; word < 8; ++word) {
        to.data[word] = guess.algorithm.data[word];
      }
      to.workspace_bytes = guess.workspace_bytes;
    }
  }
  return count;
}

void concord_product(const ConcordProduct* product, const ConcordAlgorithm* algorithm, void* workspace) {
  const Problem problem(*product);
  Algorithm by = {};
  for (int word = 0; word < 8; ++word) {
    by.data[word] = algorithm->data[word];
  }
  const float one = 1.0f;
  const float share_of_added = product->added != nullptr ? 1.0f : 0.0f;
  const void* added = product->added != nullptr ? product->added : product->out;
  call("cublasLtMatmul", handle(), problem.description, static_cast<const void*>(&one), product->weights,
       problem.weights, product->x, problem.x, static_cast<const void*>(&share_of_added),
       added, problem.out, product->out, problem.out,
       static_cast<const Algorithm*>(&by), workspace, static_cast<std::size_t>(algorithm->workspace_bytes),
       c10::cuda::getCurrentCUDAStream().stream());
}
