// The common beginning of all kernels. Arithmetic is in fp32; tensors are of BF16, FP16 or FP32, whichever
// macro is defined. No header is needed.

#if defined(BF16)
using T = unsigned short;
__device__ float widen(T x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }
__device__ T narrow(float x) {
  T y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#elif defined(FP16)
using T = unsigned short;
__device__ float widen(T x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ T narrow(float x) {
  T y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#else
using T = float;
__device__ float widen(T x) { return x; }
__device__ T narrow(float x) { return x; }
#endif

// The number of values in one load of 16 bytes.
constexpr int PACK = 16 / sizeof(T);

struct alignas(16) Pack {
  T values[PACK];
};

__device__ Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
__device__ void store(T* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }

// Returns the sum over all threads of the block, in every thread.
__device__ float block_sum(float x) {
  __shared__ float partial[32];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warps = (blockDim.x + 31) >> 5;
  for (int step = 16; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xffffffffu, x, step);
  }
  __syncthreads();
  if (lane == 0) {
    partial[warp] = x;
  }
  __syncthreads();
  x = 0.0f;
  for (int index = 0; index < warps; ++index) {
    x += partial[index];
  }
  return x;
}

// Returns the maximum over all threads of the block, in every thread.
__device__ float block_max(float x) {
  __shared__ float partial[32];
  const int warps = (blockDim.x + 31) >> 5;
  for (int step = 16; step > 0; step >>= 1) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  __syncthreads();
  if ((threadIdx.x & 31) == 0) {
    partial[threadIdx.x >> 5] = x;
  }
  __syncthreads();
  x = 0.0f;
  for (int index = 0; index < warps; ++index) {
    x = fmaxf(x, partial[index]);
  }
  return x;
}
