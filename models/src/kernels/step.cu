// Takes one row through the layers of a decoder: products that are bound by the memory that holds the
// weights, and attention to the KV cache. Compiled after prelude.cu; for sm_90 and later, whose bulk copies
// and programmatic dependent launch it needs.
//
// A kernel may begin before the previous one has ended. Until wait_for_previous it reads nothing that was
// written in the same step, and writes nothing: a step begins with kernels of libtorch, which wait for the
// whole step before.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ void barrier_init(unsigned long long* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

__device__ void barrier_expect(unsigned long long* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ void barrier_wait(unsigned long long* barrier, unsigned phase) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// Copies global to shared memory; both are aligned to 16 bytes, and `bytes` is a multiple of 16. Weights are
// read once a step, so they are the first to be evicted from the L2 cache.
__device__ void copy_in(void* to, const void* from, unsigned bytes, unsigned long long* barrier) {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

struct Words {
  unsigned values[4];
};

// Loads 16 bytes of shared memory at once: left to itself, the compiler loads the values one by one.
__device__ Words load_shared(const void* from) {
  Words words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.values[0]), "=r"(words.values[1]), "=r"(words.values[2]), "=r"(words.values[3])
               : "r"(shared_address(from)));
  return words;
}

// Widens the two halves of a word, which are values of FP16.
__device__ void widen_halves(unsigned word, float* out) {
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(out[0]), "=f"(out[1])
      : "r"(word));
}

// The formats in which weights are stored: T, or e4m3 with a scale for each row.
struct Plain {
  static constexpr int VALUES = PACK;
  static __device__ void widen_all(const Words& words, float* out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if defined(BF16)
      out[2 * i] = __uint_as_float(words.values[i] << 16);
      out[2 * i + 1] = __uint_as_float(words.values[i] & 0xffff0000u);
#elif defined(FP16)
      widen_halves(words.values[i], out + 2 * i);
#else
      out[i] = __uint_as_float(words.values[i]);
#endif
    }
  }
};

struct Fp8 {
  static constexpr int VALUES = 16;
  static __device__ void widen_all(const Words& words, float* out) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned short pair = static_cast<unsigned short>(words.values[i / 2] >> (16 * (i % 2)));
      unsigned halves;
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
      widen_halves(halves, out + 2 * i);
    }
  }
};

__device__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xffffffffu, x, step);
  }
  return x;
}

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
// The bytes of a row that are copied at once, and the copies of two rows that a warp has in flight: 128 KiB a
// multiprocessor. With two smaller blocks on each multiprocessor a step took a tenth longer, probably because
// the blocks of one kernel were distributed unevenly.
constexpr int CHUNK_BYTES = 2048;
constexpr int STAGES = 4;
constexpr int RING_BYTES = STAGES * 2 * CHUNK_BYTES;

// Copies the row that is multiplied into shared memory, normalized (RMSNorm) if there is a weight for that.
__device__ void stage_row(const T* x, const T* norm_weight, float eps, int inputs, T* staged) {
  float squares = 0.0f;
  for (int column = threadIdx.x * PACK; column < inputs; column += THREADS * PACK) {
    const Pack pack = load(x + column);
    store(staged + column, pack);
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      squares += widen(pack.values[i]) * widen(pack.values[i]);
    }
  }
  if (norm_weight != nullptr) {
    const float factor = rsqrtf(block_sum(squares) / inputs + eps);
    for (int column = threadIdx.x * PACK; column < inputs; column += THREADS * PACK) {
      Pack pack = load(staged + column);
      const Pack weights = load(norm_weight + column);
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        pack.values[i] = narrow(widen(pack.values[i]) * factor * widen(weights.values[i]));
      }
      store(staged + column, pack);
    }
  }
  __syncthreads();
}

// Streams the weights, two rows at a time and chunk by chunk, through a ring buffer of each warp's own.
template <typename Weights, bool GATED>
struct Stream {
  const unsigned char* weights;
  int row_bytes;
  int outputs;
  int pairs;
  int chunks;
  unsigned char* ring;
  unsigned long long* barriers;
  // The next chunk to request, and the ring's place of the next chunk to use.
  int asked_pair;
  int asked_chunk = 0;
  int stage = 0;
  unsigned phase = 0;

  __device__ int first_row(int pair) const { return GATED ? pair : 2 * pair; }
  __device__ int second_row(int pair) const { return GATED ? pair + outputs : min(2 * pair + 1, outputs - 1); }
  __device__ int bytes_of(int chunk) const { return min(CHUNK_BYTES, row_bytes - chunk * CHUNK_BYTES); }

  // Requests the next chunk into a place of the ring. Called by one thread of the warp.
  __device__ void ask(int place) {
    if (asked_pair >= pairs) {
      return;
    }
    const int bytes = bytes_of(asked_chunk);
    const long long offset = static_cast<long long>(asked_chunk) * CHUNK_BYTES;
    unsigned char* to = ring + place * 2 * CHUNK_BYTES;
    barrier_expect(barriers + place, 2 * bytes);
    copy_in(to, weights + static_cast<long long>(first_row(asked_pair)) * row_bytes + offset, bytes, barriers + place);
    copy_in(to + CHUNK_BYTES, weights + static_cast<long long>(second_row(asked_pair)) * row_bytes + offset, bytes,
            barriers + place);
    if (++asked_chunk == chunks) {
      asked_chunk = 0;
      asked_pair += gridDim.x * WARPS;
    }
  }

  // Adds this thread's share of the products of the next chunk.
  __device__ void use(int chunk, const T* staged, float* sums) {
    barrier_wait(barriers + stage, phase);
    const int lane = threadIdx.x & 31;
    const unsigned char* rows = ring + stage * 2 * CHUNK_BYTES;
    const int packs = bytes_of(chunk) / 16;
    const T* x = staged + chunk * (CHUNK_BYTES / 16) * Weights::VALUES;
#pragma unroll
    for (int begin = 0; begin < CHUNK_BYTES / 16; begin += 32) {
      const int index = begin + lane;
      if (index < packs) {
        float first[Weights::VALUES], second[Weights::VALUES];
        Weights::widen_all(load_shared(rows + index * 16), first);
        Weights::widen_all(load_shared(rows + index * 16 + CHUNK_BYTES), second);
#pragma unroll
        for (int part = 0; part < Weights::VALUES / PACK; ++part) {
          float values[PACK];
          Plain::widen_all(load_shared(x + index * Weights::VALUES + part * PACK), values);
#pragma unroll
          for (int i = 0; i < PACK; ++i) {
            sums[0] += first[part * PACK + i] * values[i];
            sums[1] += second[part * PACK + i] * values[i];
          }
        }
      }
    }
    // All lanes must have read the chunk before it is overwritten.
    __syncwarp();
    if (lane == 0) {
      ask(stage);
    }
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Computes out = weights · norm(x) + bias + residual; the residual may be `out` itself. If `wide` is given,
// the result goes there in fp32, rounded to T. If the product is gated, `weights` are those of up followed by
// as many of gate, and up · silu(gate) is written. Any number of blocks will do; as many as there are
// multiprocessors share the work evenly.
template <typename Weights, bool GATED>
__device__ void row_product_of(const unsigned char* weights, const float* scales, const T* x, const T* norm_weight,
                               const T* bias, const T* residual, T* out, float* wide, int inputs, int outputs,
                               float eps) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ unsigned long long barriers[WARPS][STAGES];
  let_next_begin();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x & 31;
  Stream<Weights, GATED> stream;
  stream.weights = weights;
  stream.row_bytes = inputs / Weights::VALUES * 16;
  stream.outputs = outputs;
  stream.pairs = GATED ? outputs : (outputs + 1) / 2;
  stream.chunks = (stream.row_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
  stream.ring = shared + warp * RING_BYTES;
  stream.barriers = barriers[warp];
  stream.asked_pair = blockIdx.x * WARPS + warp;
  T* staged = reinterpret_cast<T*>(shared + WARPS * RING_BYTES);
  if (lane == 0) {
    for (int place = 0; place < STAGES; ++place) {
      barrier_init(barriers[warp] + place);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    for (int place = 0; place < STAGES; ++place) {
      stream.ask(place);
    }
  }
  __syncwarp();
  wait_for_previous();
  stage_row(x, norm_weight, eps, inputs, staged);
  for (int pair = blockIdx.x * WARPS + warp; pair < stream.pairs; pair += gridDim.x * WARPS) {
    const int rows[2] = {stream.first_row(pair), stream.second_row(pair)};
    float scale[2] = {1.0f, 1.0f};
    float shift[2] = {0.0f, 0.0f};
    float old[2] = {0.0f, 0.0f};
    if (lane == 0) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        scale[row] = scales != nullptr ? scales[rows[row]] : 1.0f;
        shift[row] = bias != nullptr ? widen(bias[rows[row]]) : 0.0f;
        old[row] = residual != nullptr ? widen(residual[rows[row]]) : 0.0f;
      }
    }
    float sums[2] = {0.0f, 0.0f};
    for (int chunk = 0; chunk < stream.chunks; ++chunk) {
      stream.use(chunk, staged, sums);
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      sums[row] = widen(narrow(warp_sum(sums[row]) * scale[row] + shift[row]));
    }
    if (lane != 0) {
      continue;
    }
    if (GATED) {
      out[pair] = narrow(sums[1] / (1.0f + __expf(-sums[1])) * sums[0]);
      continue;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float sum = residual != nullptr ? sums[row] + old[row] : sums[row];
      // The second row of the last pair is the first one again if the number of rows is odd.
      if (row == 1 && rows[1] == rows[0]) {
        continue;
      }
      if (wide != nullptr) {
        wide[rows[row]] = sum;
      } else {
        out[rows[row]] = narrow(sum);
      }
    }
  }
}

#define ROW_PRODUCT(name, weights_as, is_gated)                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      name(const unsigned char* weights, const float* scales, const T* x, const T* norm_weight, const T* bias,        \
           const T* residual, T* out, float* wide, int inputs, int outputs, float eps) {                              \
    row_product_of<weights_as, is_gated>(weights, scales, x, norm_weight, bias, residual, out, wide, inputs, outputs, \
                                         eps);                                                                        \
  }

ROW_PRODUCT(row_product, Plain, false)
ROW_PRODUCT(row_product_gated, Plain, true)
ROW_PRODUCT(row_product_fp8, Fp8, false)
ROW_PRODUCT(row_product_gated_fp8, Fp8, true)

// Attention of one position to itself and all before it, for heads of queries that share keys and values.
constexpr int SPLIT = 64;  // positions that one block attends to
constexpr int ATTEND_THREADS = 256;
constexpr int ATTEND_WARPS = ATTEND_THREADS / 32;
constexpr int GROUP_MAX = 8;

// Returns the sum over neighbouring lanes, in each of them.
template <int LANES>
__device__ float team_sum(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step >>= 1) {
    x += __shfl_xor_sync(0xffffffffu, x, step);
  }
  return x;
}

// Applies RMSNorm and rotation to a head that LANES neighbouring lanes hold, a pack each; the result is
// rounded to T.
template <int LANES>
__device__ void norm_and_rotate(float* values, const Pack& weights, const Pack& cosines, const Pack& sines, float eps) {
  const int lane = threadIdx.x % LANES;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PACK; ++i) {
    squares += values[i] * values[i];
  }
  const float factor = rsqrtf(team_sum<LANES>(squares) / (LANES * PACK) + eps);
  const float sign = lane < LANES / 2 ? -1.0f : 1.0f;
#pragma unroll
  for (int i = 0; i < PACK; ++i) {
    const float own = values[i] * factor * widen(weights.values[i]);
    const float other = __shfl_xor_sync(0xffffffffu, own, LANES / 2);
    values[i] = widen(narrow(own * widen(cosines.values[i]) + sign * other * widen(sines.values[i])));
  }
}

// Combines the partial results of one head of keys, from all its blocks, into the attention of its group of
// heads.
template <int WIDTH>
__device__ void put_together(const float* parts, const float2* norms, int used, int group, T* out, float* factors) {
  __shared__ float totals[GROUP_MAX];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x & 31;
  for (int which = warp; which < group; which += ATTEND_WARPS) {
    float top = -1e30f;
    for (int part = lane; part < used; part += 32) {
      top = fmaxf(top, __ldcg(norms + part * group + which).x);
    }
    for (int step = 16; step > 0; step >>= 1) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    float total = 0.0f;
    for (int part = lane; part < used; part += 32) {
      const float2 norm = __ldcg(norms + part * group + which);
      const float factor = __expf(norm.x - top);
      factors[part * group + which] = factor;
      total += factor * norm.y;
    }
    total = warp_sum(total);
    if (lane == 0) {
      totals[which] = total;
    }
  }
  __syncthreads();
  for (int index = threadIdx.x * 4; index < group * WIDTH; index += ATTEND_THREADS * 4) {
    const int which = index / WIDTH;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int part = 0; part < used; ++part) {
      const float4 value = __ldcg(reinterpret_cast<const float4*>(parts + part * group * WIDTH + index));
      const float factor = factors[part * group + which];
      sum.x += factor * value.x;
      sum.y += factor * value.y;
      sum.z += factor * value.z;
      sum.w += factor * value.w;
    }
    const float inverse = 1.0f / totals[which];
    out[index] = narrow(sum.x * inverse);
    out[index + 1] = narrow(sum.y * inverse);
    out[index + 2] = narrow(sum.z * inverse);
    out[index + 3] = narrow(sum.w * inverse);
  }
}

// Computes the attention of `row`, which holds the heads of queries, followed by those of keys and of values,
// before norm and rotation. The grid has a block for each head of keys and each SPLIT positions of the
// capacity. The new key and value are written at `position`; `keys` and `values` are [key heads, capacity,
// width]. For each block and head of its group, `parts` has room for `width` numbers and `norms` for two.
// `counters`, initially zero, has one number for each head of keys, by which the last of its blocks knows
// that it combines the parts.
template <int LANES>
__device__ void attend_row_of(const T* row, const T* query_weight, const T* key_weight, const T* cosines,
                              const T* sines, const long long* position, T* keys, T* values, float* parts,
                              float2* norms, unsigned* counters, T* out, int key_heads, int group, int capacity,
                              float eps) {
  constexpr int WIDTH = LANES * PACK;
  constexpr int TEAMS = ATTEND_THREADS / LANES;
  constexpr int EACH = (SPLIT + TEAMS - 1) / TEAMS;
  // Shared memory: [group, width], [group, SPLIT], and the sums of each warp, [warps, group, width], later
  // the factors of the parts. It is as little as possible, so that blocks of the next kernels find room
  // beside it.
  extern __shared__ __align__(16) float room[];
  float* queries = room;
  float* weights = queries + group * WIDTH;
  float* scratch = weights + group * SPLIT;
  __shared__ float2 own_norms[GROUP_MAX];
  __shared__ Pack new_key[LANES];
  __shared__ bool is_last;
  let_next_begin();
  const int splits = (capacity + SPLIT - 1) / SPLIT;
  const int split = blockIdx.x % splits;
  const int head = blockIdx.x / splits;
  const int lane = threadIdx.x % LANES;
  const int team = threadIdx.x / LANES;
  const int warp = threadIdx.x / 32;
  const int column = lane * PACK;
  // The cache is of earlier steps, and the position is that of the whole step: neither has to wait for the
  // previous kernel.
  const int at = static_cast<int>(*position);
  const int begin = split * SPLIT;
  if (begin > at) {
    return;
  }
  const int count = min(SPLIT, at + 1 - begin);
  T* own_keys = keys + (static_cast<long long>(head) * capacity + begin) * WIDTH + column;
  T* own_values = values + (static_cast<long long>(head) * capacity + begin) * WIDTH + column;
  const Pack query_weights = load(query_weight + column);
  const Pack key_weights = load(key_weight + column);
  const Pack cosine = load(cosines + static_cast<long long>(at) * WIDTH + column);
  const Pack sine = load(sines + static_cast<long long>(at) * WIDTH + column);
  Pack kept_keys[EACH], kept_values[EACH];
#pragma unroll
  for (int each = 0; each < EACH; ++each) {
    const int index = each * TEAMS + team;
    const bool is_old = index < count && begin + index != at;
    kept_keys[each] = is_old ? load(own_keys + index * WIDTH) : Pack{};
    kept_values[each] = is_old ? load(own_values + index * WIDTH) : Pack{};
  }
  wait_for_previous();
  const Pack new_value = load(row + (key_heads * (group + 1) + head) * WIDTH + column);
  // The heads of the group, followed by the key: whole warps take each turn of the loop together.
  for (int first = 0; first <= group; first += TEAMS) {
    const int which = first + team;
    const bool is_key = which == group;
    const int source = is_key ? key_heads * group + head : head * group + which;
    const Pack pack = which <= group ? load(row + source * WIDTH + column) : Pack{};
    float held[PACK];
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      held[i] = widen(pack.values[i]);
    }
    norm_and_rotate<LANES>(held, is_key ? key_weights : query_weights, cosine, sine, eps);
    if (which < group) {
      const float scale = rsqrtf(static_cast<float>(WIDTH));
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        queries[which * WIDTH + column + i] = held[i] * scale;
      }
    } else if (is_key) {
      Pack key;
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        key.values[i] = narrow(held[i]);
      }
      new_key[lane] = key;
    }
  }
  __syncthreads();
#pragma unroll
  for (int each = 0; each < EACH; ++each) {
    const int index = each * TEAMS + team;
    if (begin + index == at) {
      kept_keys[each] = new_key[lane];
      kept_values[each] = new_value;
      store(own_keys + index * WIDTH, kept_keys[each]);
      store(own_values + index * WIDTH, new_value);
    }
  }
  for (int which = 0; which < group; ++which) {
    float query[PACK];
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      query[i] = queries[which * WIDTH + column + i];
    }
#pragma unroll
    for (int each = 0; each < EACH; ++each) {
      float product = 0.0f;
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        product += widen(kept_keys[each].values[i]) * query[i];
      }
      product = team_sum<LANES>(product);
      const int index = each * TEAMS + team;
      if (lane == 0 && index < SPLIT) {
        weights[which * SPLIT + index] = product;
      }
    }
  }
  __syncthreads();
  // Each warp computes the maximum, the exponentials and their sum for one head.
  for (int which = warp; which < group; which += ATTEND_WARPS) {
    const int in_warp = threadIdx.x & 31;
    float top = -1e30f;
#pragma unroll
    for (int index = in_warp; index < SPLIT; index += 32) {
      top = index < count ? fmaxf(top, weights[which * SPLIT + index]) : top;
    }
    for (int step = 16; step > 0; step >>= 1) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    float sum = 0.0f;
#pragma unroll
    for (int index = in_warp; index < SPLIT; index += 32) {
      const float weight = index < count ? __expf(weights[which * SPLIT + index] - top) : 0.0f;
      weights[which * SPLIT + index] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (in_warp == 0) {
      own_norms[which] = float2{top, sum};
    }
  }
  __syncthreads();
  for (int which = 0; which < group; ++which) {
    float sums[PACK] = {};
#pragma unroll
    for (int each = 0; each < EACH; ++each) {
      const int index = each * TEAMS + team;
      const float weight = index < SPLIT ? weights[which * SPLIT + index] : 0.0f;
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        sums[i] += weight * widen(kept_values[each].values[i]);
      }
    }
    // Sums over the teams of a warp.
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
#pragma unroll
      for (int step = LANES; step < 32; step <<= 1) {
        sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], step);
      }
    }
    if ((threadIdx.x & 31) < LANES) {
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        scratch[(warp * group + which) * WIDTH + column + i] = sums[i];
      }
    }
  }
  __syncthreads();
  float* own = parts + static_cast<long long>(blockIdx.x) * group * WIDTH;
  for (int index = threadIdx.x; index < group * WIDTH; index += ATTEND_THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int other = 0; other < ATTEND_WARPS; ++other) {
      sum += scratch[other * group * WIDTH + index];
    }
    own[index] = sum;
  }
  if (threadIdx.x < group) {
    norms[blockIdx.x * group + threadIdx.x] = own_norms[threadIdx.x];
  }
  __syncthreads();
  const int used = at / SPLIT + 1;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(counters + head, 1u) == static_cast<unsigned>(used - 1);
    if (is_last) {
      counters[head] = 0;
    }
    __threadfence();
  }
  __syncthreads();
  if (is_last) {
    const int first = head * splits;
    put_together<WIDTH>(parts + static_cast<long long>(first) * group * WIDTH, norms + first * group, used, group,
                        out + head * group * WIDTH, scratch);
  }
}

#define ATTEND_ROW(name, lanes)                                                                                       \
  extern "C" __global__ void __launch_bounds__(ATTEND_THREADS)                                                        \
      name(const T* row, const T* query_weight, const T* key_weight, const T* cosines, const T* sines,                \
           const long long* position, T* keys, T* values, float* parts, float2* norms, unsigned* counters, T* out,    \
           int key_heads, int group, int capacity, float eps) {                                                       \
    attend_row_of<lanes>(row, query_weight, key_weight, cosines, sines, position, keys, values, parts, norms,         \
                         counters, out, key_heads, group, capacity, eps);                                             \
  }

// The kernels by the number of lanes that hold a head.
ATTEND_ROW(attend_row_4, 4)
ATTEND_ROW(attend_row_8, 8)
ATTEND_ROW(attend_row_16, 16)
ATTEND_ROW(attend_row_32, 32)

#endif
