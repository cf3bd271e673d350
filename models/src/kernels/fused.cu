// The operations between the matrix products of a transformer, each in one pass over memory. Compiled after
// prelude.cu.

// As many values of e4m3 as a pack has values of T.
struct alignas(PACK) Bytes {
  unsigned char values[PACK];
};

// Stores x * factor as e4m3, rounded to nearest and clamped to the greatest finite value.
__device__ void store_fp8(unsigned char* to, const float* x, float factor) {
  Bytes bytes;
  for (int i = 0; i < PACK; i += 2) {
    unsigned short pair = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(x[i + 1] * factor), "f"(x[i] * factor));
#endif
    bytes.values[i] = static_cast<unsigned char>(pair & 0xff);
    bytes.values[i + 1] = static_cast<unsigned char>(pair >> 8);
  }
  *reinterpret_cast<Bytes*>(to) = bytes;
}

// Returns the factor that scales a row to e4m3, from the greatest magnitude in the row; stores its inverse in
// `scale`.
__device__ float fp8_factor(float largest, float* scale) {
  largest = fmaxf(block_max(largest), 1e-12f);
  if (threadIdx.x == 0) {
    *scale = largest * (1.0f / 448.0f);
  }
  return 1.0f / largest * 448.0f;
}

// sum = residual + x * scale; normed = norm(sum) over rows of `width`: one block a row, one pack a thread.
// Threads beyond the row take part in the block's sums only. `scale` and `bias` may be null; `centred` tells
// LayerNorm from RMSNorm. If `bytes` is given, the norm goes there as e4m3 with a scale for each row, and
// `normed` is not written.
extern "C" __global__ void add_norm(const T* residual, const T* x, const T* scale, const T* weight, const T* bias,
                                    T* sum, T* normed, unsigned char* bytes, float* scales, int width, float eps,
                                    int centred) {
  const long long row = static_cast<long long>(blockIdx.x) * width;
  const int column = threadIdx.x * PACK;
  const bool is_inside = column < width;
  float values[PACK];
  float total = 0.0f;
  if (is_inside) {
    const Pack old = load(residual + row + column);
    const Pack added = load(x + row + column);
    const Pack factors = scale != nullptr ? load(scale + column) : Pack{};
    Pack out;
    for (int i = 0; i < PACK; ++i) {
      const float factor = scale != nullptr ? widen(factors.values[i]) : 1.0f;
      out.values[i] = narrow(widen(old.values[i]) + widen(added.values[i]) * factor);
      // The norm is that of the sum as it is stored.
      values[i] = widen(out.values[i]);
      total += values[i];
    }
    store(sum + row + column, out);
  }
  const float mean = centred ? block_sum(total) / width : 0.0f;
  float squares = 0.0f;
  if (is_inside) {
    for (int i = 0; i < PACK; ++i) {
      values[i] -= mean;
      squares += values[i] * values[i];
    }
  }
  const float factor = rsqrtf(block_sum(squares) / width + eps);
  float largest = 0.0f;
  if (is_inside) {
    const Pack weights = load(weight + column);
    const Pack biases = bias != nullptr ? load(bias + column) : Pack{};
    Pack out;
    for (int i = 0; i < PACK; ++i) {
      const float shift = bias != nullptr ? widen(biases.values[i]) : 0.0f;
      out.values[i] = narrow(values[i] * factor * widen(weights.values[i]) + shift);
      values[i] = widen(out.values[i]);
      largest = fmaxf(largest, fabsf(values[i]));
    }
    if (bytes == nullptr) {
      store(normed + row + column, out);
    }
  }
  if (bytes != nullptr) {
    const float to_fp8 = fp8_factor(largest, scales + blockIdx.x);
    if (is_inside) {
      store_fp8(bytes + row + column, values, to_fp8);
    }
  }
}

// Rotates the first `heads` heads of every row of `rows` in place by the angles of its position: one block
// for each row, but for the first `prefix` rows of each sequence. Cosines and sines are [sequence - prefix,
// width]. Computes x * cos + (the halves of x exchanged, the new first one negated) * sin.
extern "C" __global__ void rotate(T* rows, const T* cosines, const T* sines, int sequence, int prefix, int stride,
                                  int heads, int width) {
  const int positions = sequence - prefix;
  const int position = blockIdx.x % positions;
  const long long row = static_cast<long long>(blockIdx.x / positions) * sequence + prefix + position;
  const int half = width / 2;
  const int packs = half / PACK;
  for (int index = threadIdx.x; index < heads * packs; index += blockDim.x) {
    const int column = (index % packs) * PACK;
    T* head = rows + row * stride + (index / packs) * width + column;
    const T* cosine = cosines + static_cast<long long>(position) * width + column;
    const T* sine = sines + static_cast<long long>(position) * width + column;
    const Pack first = load(head);
    const Pack second = load(head + half);
    const Pack cos1 = load(cosine), cos2 = load(cosine + half);
    const Pack sin1 = load(sine), sin2 = load(sine + half);
    Pack new_first, new_second;
    for (int i = 0; i < PACK; ++i) {
      const float a = widen(first.values[i]);
      const float b = widen(second.values[i]);
      new_first.values[i] = narrow(a * widen(cos1.values[i]) - b * widen(sin1.values[i]));
      new_second.values[i] = narrow(b * widen(cos2.values[i]) + a * widen(sin2.values[i]));
    }
    store(head, new_first);
    store(head + half, new_second);
  }
}

// Applies RMSNorm and rotation, in place, to each of the first `heads` heads of each row: the first `queries`
// of them use one weight, the others another. width / PACK threads hold a head, a power of two of at most 32,
// so that the halves that rotation exchanges are in lanes that differ in one bit.
extern "C" __global__ void norm_rotate(T* rows, const T* query_weight, const T* key_weight, const T* cosines,
                                       const T* sines, long long all_heads, int sequence, int stride, int queries,
                                       int heads, int width, float eps) {
  const int lanes = width / PACK;
  const long long index = (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  // Threads beyond the last head take part in the exchanges only.
  const bool is_inside = index < all_heads;
  const int head = static_cast<int>(index % heads);
  const long long row = index / heads;
  const int column = lane * PACK;
  T* place = rows + row * stride + static_cast<long long>(head) * width + column;
  float values[PACK];
  float squares = 0.0f;
  const Pack old = is_inside ? load(place) : Pack{};
  for (int i = 0; i < PACK; ++i) {
    values[i] = widen(old.values[i]);
    squares += values[i] * values[i];
  }
  for (int step = lanes / 2; step > 0; step >>= 1) {
    squares += __shfl_xor_sync(0xffffffffu, squares, step);
  }
  const float factor = rsqrtf(squares / width + eps);
  const Pack weights = load((head < queries ? query_weight : key_weight) + column);
  const long long angle = (row % sequence) * width + column;
  const Pack cosine = is_inside ? load(cosines + angle) : Pack{};
  const Pack sine = is_inside ? load(sines + angle) : Pack{};
  const float sign = lane < lanes / 2 ? -1.0f : 1.0f;
  Pack out;
  for (int i = 0; i < PACK; ++i) {
    const float own = values[i] * factor * widen(weights.values[i]);
    const float other = __shfl_xor_sync(0xffffffffu, own, lanes / 2);
    out.values[i] = narrow(own * widen(cosine.values[i]) + sign * other * widen(sine.values[i]));
  }
  if (is_inside) {
    store(place, out);
  }
}

// Computes x * Phi(x), with Phi by the error function or by a hyperbolic tangent. Results of 8 or 11 bits
// leave room for forms without branches: for the error function, Abramowitz and Stegun, "Handbook of
// Mathematical Functions", 7.1.26 (an error of 1.5e-7 at most); 1 + tanh(u) = 2 / (1 + exp(-2u)).
__device__ float gelu_of(float x, bool is_tanh) {
  const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
#if defined(BF16) || defined(FP16)
  if (is_tanh) {
    return __fdividef(x, 1.0f + __expf(-2.0f * inner));
  }
  const float z = fabsf(x) * 0.70710678118654752f;
  const float t = __fdividef(1.0f, 1.0f + 0.3275911f * z);
  const float series =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * series * __expf(-z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
#else
  const float part = is_tanh ? tanhf(inner) : erff(x * 0.70710678118654752f);
  return 0.5f * x * (1.0f + part);
#endif
}

// Computes x * Phi(x) in place, with Phi by the error function or by a hyperbolic tangent.
extern "C" __global__ void gelu(T* x, long long packs, int is_tanh) {
  for (long long index = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; index < packs;
       index += static_cast<long long>(gridDim.x) * blockDim.x) {
    Pack pack = load(x + index * PACK);
    for (int i = 0; i < PACK; ++i) {
      pack.values[i] = narrow(gelu_of(widen(pack.values[i]), is_tanh));
    }
    store(x + index * PACK, pack);
  }
}

// Computes silu(gate) * up for rows [up | gate], each half `inner` wide.
extern "C" __global__ void silu_gated(const T* rows, T* out, int inner, long long packs) {
  const int in_row = inner / PACK;
  for (long long index = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; index < packs;
       index += static_cast<long long>(gridDim.x) * blockDim.x) {
    const long long row = index / in_row;
    const int column = static_cast<int>(index % in_row) * PACK;
    const Pack up = load(rows + row * 2 * inner + column);
    const Pack gate = load(rows + row * 2 * inner + inner + column);
    Pack result;
    for (int i = 0; i < PACK; ++i) {
      const float x = widen(gate.values[i]);
      result.values[i] = narrow(x / (1.0f + __expf(-x)) * widen(up.values[i]));
    }
    store(out + row * inner + column, result);
  }
}

// The operation that is applied to values before they are quantized: nothing, or GELU in one of two forms.
constexpr int NOTHING = 0, GELU_TANH = 2;
// The number of packs of a row that a thread keeps in registers.
constexpr int KEPT_PACKS = 4;

// Quantizes rows of `width` values to e4m3 with a scale for each row, one block a row: x itself, or an
// activation of it. Values are rounded to T before they are quantized, as if they had been stored.
extern "C" __global__ void __launch_bounds__(1024)
    quantise(const T* x, unsigned char* bytes, float* scales, int width, int before) {
  const long long row = static_cast<long long>(blockIdx.x) * width;
  float values[KEPT_PACKS][PACK];
  float largest = 0.0f;
#pragma unroll
  for (int kept = 0; kept < KEPT_PACKS; ++kept) {
    const int column = (kept * blockDim.x + threadIdx.x) * PACK;
    if (column < width) {
      const Pack pack = load(x + row + column);
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        float value = widen(pack.values[i]);
        if (before != NOTHING) {
          value = widen(narrow(gelu_of(value, before == GELU_TANH)));
        }
        values[kept][i] = value;
        largest = fmaxf(largest, fabsf(value));
      }
    }
  }
  const float factor = fp8_factor(largest, scales + blockIdx.x);
#pragma unroll
  for (int kept = 0; kept < KEPT_PACKS; ++kept) {
    const int column = (kept * blockDim.x + threadIdx.x) * PACK;
    if (column < width) {
      store_fp8(bytes + row + column, values[kept], factor);
    }
  }
}
