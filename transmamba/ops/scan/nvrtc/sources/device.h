// What the kernels ask of a GPU: types, fast functions, shuffles, copies. Tests give the same names on a CPU instead.
// DTYPE of the activations: 0 float32, 1 bfloat16, 2 float16. No header is included, so that NVRTC needs none.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
#define DEV __device__ __forceinline__

DEV float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float rcp(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float swap(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
// a product in one instruction, which the compiler would otherwise take apart
DEV u64 wide(u32 a, u32 b) { u64 r; asm("mul.wide.u32 %0, %1, %2;" : "=l"(r) : "r"(a), "r"(b)); return r; }
// a pointer to global memory as one number, which the compiler would otherwise add up anew at every use
DEV char* settled(char* x) {
  u64 at = __cvta_generic_to_global(x);
  asm("" : "+l"(at));
  return (char*)__cvta_global_to_generic(at);
}
#define SYNC() __syncthreads()
#define SYNC_WARP() __syncwarp()

// from global to shared memory, past the registers; whoever copied may read after landed()
// or, if commit() closed every group of copies, after landed_but<GROUPS>(), which lets the last groups be under way
template <int BYTES> DEV void copy(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from), "n"(BYTES) : "memory");
}
DEV void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> DEV void landed_but() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }
DEV void landed() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if DTYPE == 1
DEV float low(u32 x) { return __uint_as_float(x << 16); }
DEV float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }
DEV u32 pack(float a, float b) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
#elif DTYPE == 2
DEV float half_as_float(u16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
DEV float low(u32 x) { return half_as_float((u16)x); }
DEV float high(u32 x) { return half_as_float((u16)(x >> 16)); }
DEV u32 pack(float a, float b) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
#endif

#if DTYPE
// Products on tensor cores. A lane (row, column) = (lane / 4, lane % 4 * 2) of the left factor has the columns `column` and
// `column + 1` of row `row` in x, of row `row + 8` in y; of the product, and of what is added, the same places.
#if DTYPE == 1
#define HALF_NAME "bf16"
#else
#define HALF_NAME "f16"
#endif
// (x; y) times an 8 x 8 matrix, of which a lane has the rows `column` and `column + 1` of column `row`
DEV float4 product8(u32 x, u32 y, u32 m, float4 c) {
  float4 r;
  asm("mma.sync.aligned.m16n8k8.row.col.f32." HALF_NAME "." HALF_NAME ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "r"(x), "r"(y), "r"(m), "f"(c.x), "f"(c.y), "f"(c.z), "f"(c.w));
  return r;
}
#endif
