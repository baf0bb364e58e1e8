// The CUDA sources on a CPU: every thread of a block is a fiber, a barrier or shuffle waits for the others of the block
// or warp. With a seed, whoever can run is chosen at random, warps far apart, so that a missing barrier shows.
// Flags of a variant are looked up at run time, so that one library serves all variants of a shape.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
#define DEV inline
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

static int flags;
#define SOFTPLUS (flags & 1)
#define ORDERS (flags & 2)
#define BY_STEP (flags & 4)
#define RESTART (flags & 8)
#define PAIRED (flags & 16)
#define MERGED (flags & 32)
#define FULL (flags & 64)
#define ONE (flags & 128)
#define WIDE (flags & 256)
#define SAVE (flags & 512)

namespace fibers {
enum State { READY, WARP, BLOCK, DONE };
struct Copy { void* to; const void* from; int bytes, group; };
struct Fiber { jmp_buf at; ucontext_t context; State state; int turn, group; float slot[2]; u32 words[2][3]; std::vector<Copy> copies; };
constexpr int MOST = 1024;
static Fiber all[MOST];
static jmp_buf host;
static ucontext_t creator;
static char* stacks;
static std::function<void(int)> body;
static int self, made;

static void leave(State state) {
  all[self].state = state;
  if (!_setjmp(all[self].at)) _longjmp(host, 1);
}
static void life(int number) {
  if (!_setjmp(all[number].at)) swapcontext(&all[number].context, &creator);
  for (;;) {
    body(self);
    leave(DONE);
  }
}
static void make(int threads) {
  const size_t size = 1 << 17;
  // memory that only the stacks in use take: every shape has a library with stacks of its own
  if (!stacks) stacks = (char*)malloc(size * MOST);
  for (; made < threads; made++) {
    ucontext_t& context = all[made].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + made * size;
    context.uc_stack.ss_size = size;
    context.uc_link = 0;
    makecontext(&context, (void (*)())life, 1, made);
    swapcontext(&creator, &context);
  }
}
static void resume(int number) {
  self = number;
  if (!_setjmp(host)) _longjmp(all[number].at, 1);
}
// releases those who waited for each other; false if all are done
static bool release(int threads) {
  bool alive = false, blocked = true;
  for (int w = 0; w < threads; w += 32) {
    bool together = true;
    for (int i = w; i < w + 32; i++) {
      alive |= all[i].state != DONE;
      together &= all[i].state == WARP || all[i].state == DONE;
      blocked &= all[i].state == BLOCK || all[i].state == DONE;
    }
    for (int i = w; together && i < w + 32; i++)
      if (all[i].state == WARP) all[i].state = READY;
  }
  for (int i = 0; blocked && i < threads; i++)
    if (all[i].state == BLOCK) all[i].state = READY;
  return alive;
}
// false if threads wait for each other in vain
static bool run(int threads, std::mt19937* random, std::function<void(int)> what) {
  body = what;
  make(threads);
  std::vector<int> order(threads), warps(threads / 32);
  for (int i = 0; i < threads; i++) { order[i] = i; all[i].state = READY; all[i].turn = all[i].group = 0; all[i].copies.clear(); }
  for (size_t w = 0; w < warps.size(); w++) warps[w] = w;
  while (release(threads)) {
    bool moved = false;
    if (random) {
      // one warp runs as far as it comes, its lanes in any order; the others stand still
      std::shuffle(warps.begin(), warps.end(), *random);
      for (int w : warps) {
        std::vector<int> lanes(32);
        for (int i = 0; i < 32; i++) lanes[i] = w * 32 + i;
        std::shuffle(lanes.begin(), lanes.end(), *random);
        for (int i : lanes) if (all[i].state == READY) { resume(i); moved = true; }
        if (moved) break;
      }
    } else {
      for (int i : order) if (all[i].state == READY) { resume(i); moved = true; }
    }
    if (!moved) return false;
  }
  return true;
}
}  // namespace fibers

static inline float ex2(float x) { return exp2f(x); }
static inline float rcp(float x) { return 1.f / x; }
static inline float swap(float x, int mask) {
  using namespace fibers;
  int me = self, turn = all[me].turn ^= 1;
  all[me].slot[turn] = x;
  leave(WARP);
  return all[me ^ mask].slot[turn];
}
static inline u64 wide(u32 a, u32 b) { return (u64)a * b; }
static inline char* settled(char* x) { return x; }
static inline void SYNC() { fibers::leave(fibers::BLOCK); }
static inline void SYNC_WARP() { fibers::leave(fibers::WARP); }
template <int BYTES> inline void copy(void* to, const void* from) {
  auto& me = fibers::all[fibers::self];
  me.copies.push_back({to, from, BYTES, me.group});
}
static inline void commit() { fibers::all[fibers::self].group++; }
// nothing has landed before someone waits for it
template <int GROUPS> inline void landed_but() {
  auto& me = fibers::all[fibers::self];
  auto& copies = me.copies;
  auto rest = std::find_if(copies.begin(), copies.end(), [&](const fibers::Copy& c) { return c.group >= me.group - GROUPS; });
  for (auto c = copies.begin(); c != rest; c++) memcpy(c->to, c->from, c->bytes);
  copies.erase(copies.begin(), rest);
}
static inline void landed() { commit(); landed_but<0>(); }
#if DTYPE == 1
static inline float low(u32 x) { u32 y = x << 16; float f; memcpy(&f, &y, 4); return f; }
static inline float high(u32 x) { return low(x >> 16); }
static inline u32 half_of(float x) { u32 u; memcpy(&u, &x, 4); return (u + 0x7fff + ((u >> 16) & 1)) >> 16 & 0xffff; }
static inline u32 pack(float a, float b) { return half_of(a) | half_of(b) << 16; }
#elif DTYPE == 2
static inline float low(u32 x) { u16 y = x; _Float16 f; memcpy(&f, &y, 2); return f; }
static inline float high(u32 x) { return low(x >> 16); }
static inline u32 half_of(float x) { _Float16 f = x; u16 y; memcpy(&y, &f, 2); return y; }
static inline u32 pack(float a, float b) { return half_of(a) | half_of(b) << 16; }
#endif

#if DTYPE
// entry (i, j) of the left factor, and (j, i) of the right one, is in a half of a word of lane 4 i + j / 2
static inline float4 product8(u32 x, u32 y, u32 m, float4 c) {
  using namespace fibers;
  int me = self, turn = all[me].turn ^= 1, row = me % 32 / 4, column = me % 4 * 2;
  u32* words = all[me].words[turn];
  words[0] = x; words[1] = y; words[2] = m;
  leave(WARP);
  auto at = [&](int word, int i, int j) {
    u32 w = all[(me & ~31) + i * 4 + j / 2].words[turn][word];
    return j % 2 ? high(w) : low(w);
  };
  float r[4] = {c.x, c.y, c.z, c.w};
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 8; k++) r[i] += at(i / 2, row, k) * at(2, column + i % 2, k);
  return {r[0], r[1], r[2], r[3]};
}
#endif

#include "steps.h"
#include "forward.h"
#include "backward.h"
#include "single.h"
#include "single_forward.h"
#include "single_backward.h"
#include "shared.h"
#include "shared_backward.h"
#include "chain.h"

template <class Shared, class Body> static int over(int threads, const int* grid, u32 seed, Body body) {
  static_assert(!SHARED || std::is_empty<Shared>::value || sizeof(Shared) == SHARED, "the host asks for another size");
  alignas(16) static Shared m;
  std::mt19937 random(seed);
  for (int z = 0; z < grid[2]; z++)
    for (int y = 0; y < grid[1]; y++)
      for (int x = 0; x < grid[0]; x++) {
        memset((void*)&m, 0xff, sizeof m);  // not a number until written
        if (!fibers::run(threads, seed ? &random : 0, [&](int t) { body(m, x, y, z, t); })) return 1;
      }
  return 0;
}
// zero if all went well, one if threads wait for each other in vain
extern "C" int emulate(int kernel, const Arguments* p, const int* grid, u32 seed) {
  flags = p->flags;
  constexpr int THREADS = 32 * WARPS;
#if KIND == 0 || KIND == 2
#if KIND == 0
  typedef ForwardShared<STATES, LANE_STATES, WARPS, STEPS> Shared;
#else
  typedef SingleForwardShared<DIRECTIONS> Shared;
#endif
  auto block = [&](auto mode) {
    return over<Shared>(THREADS, grid, seed, [&](Shared& m, int x, int y, int z, int t) {
#if KIND == 0
      forward_block<decltype(mode)::value, STATES, LANE_STATES, WARPS, STEPS>(*p, m, x, y, z, t);
#else
      single_forward_block<decltype(mode)::value, DIRECTIONS, WARPS>(*p, m, x, y, z, grid[1], t);
#endif
    });
  };
  struct Nothing {};
  auto chain = [&](Nothing&, int x, int y, int, int t) { chain_block(*p, STATES, kernel == 4, x, y, t); };
  switch (kernel) {
    case 0: return block(std::integral_constant<Mode, SCAN>());
    case 1: return block(std::integral_constant<Mode, SUMMARY>());
    case 2: return block(std::integral_constant<Mode, ADJOINT>());
    default: return over<Nothing>(CHAIN, grid, seed, chain);
  }
#elif KIND == 1
  typedef BackwardShared<STATES, LANE_STATES, LANE_CHANNELS, WARPS> Shared;
  return over<Shared>(THREADS, grid, seed, [&](Shared& m, int x, int y, int z, int t) {
    backward_block<STATES, LANE_STATES, LANE_CHANNELS, WARPS, PART>(*p, m, x, y, z, grid[0], t);
  });
#elif KIND == 3
  return over<SingleBackwardShared<WARPS>>(THREADS, grid, seed, [&](auto& m, int x, int y, int z, int t) {
    single_backward_block<WARPS>(*p, m, x, y, z, grid[0], grid[1], t);
  });
#elif KIND == 4
  typedef SharedDecayShared<STATES, LANE_STATES, WARPS, STEPS, DIRECTIONS> Shared;
  return over<Shared>(THREADS, grid, seed, [&](Shared& m, int x, int y, int z, int t) {
    shared_decay_block<STATES, LANE_STATES, WARPS, STEPS, DIRECTIONS>(*p, m, x, y, z, t);
  });
#elif KIND == 5
  typedef SharedBackwardShared<STATES, LANE_STATES, WARPS, DIRECTIONS> Shared;
  return over<Shared>(THREADS, grid, seed, [&](Shared& m, int x, int y, int z, int t) {
    shared_backward_block<STATES, LANE_STATES, WARPS, DIRECTIONS, PART>(*p, m, x, y, z, grid[0], t);
  });
#endif
}
