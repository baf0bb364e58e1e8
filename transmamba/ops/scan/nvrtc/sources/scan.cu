// The kernels by name. -D gives the variant: STATES, LANE_STATES, LANE_CHANNELS, WARPS, STEPS, PART,
// BLOCKS (resident per multiprocessor), DIRECTIONS (of a block), KIND, flags.
#include "device.h"
#include "steps.h"
#include "forward.h"
#include "backward.h"
#include "single.h"
#include "single_forward.h"
#include "single_backward.h"
#include "shared.h"
#include "shared_backward.h"
#include "chain.h"

#define CHAINS                                                                                                            \
  extern "C" __global__ void chain(const __grid_constant__ Arguments p) {                                                 \
    chain_block(p, STATES, false, blockIdx.x, blockIdx.y, threadIdx.x);                                                   \
  }                                                                                                                       \
  extern "C" __global__ void chain_adjoint(const __grid_constant__ Arguments p) {                                         \
    chain_block(p, STATES, true, blockIdx.x, blockIdx.y, threadIdx.x);                                                    \
  }
// shared memory of a kernel as `m`; the host asks for it
#define DYNAMIC(...)                                                         \
  typedef __VA_ARGS__ Shared;                                                \
  extern __shared__ __align__(16) char raw[];                                \
  static_assert(sizeof(Shared) == SHARED, "the host asks for another size"); \
  Shared& m = *(Shared*)raw
#define KERNEL extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
#if KIND == 0
#define FORWARD(NAME, MODE)                                                                      \
  KERNEL NAME(const __grid_constant__ Arguments p) {                                             \
    __shared__ __align__(16) ForwardShared<STATES, LANE_STATES, WARPS, STEPS> m;                               \
    forward_block<MODE, STATES, LANE_STATES, WARPS, STEPS>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x); \
  }
FORWARD(scan_forward, SCAN)
FORWARD(summarise, SUMMARY)
FORWARD(summarise_adjoint, ADJOINT)
CHAINS
#elif KIND == 1
KERNEL scan_backward(const __grid_constant__ Arguments p) {
  DYNAMIC(BackwardShared<STATES, LANE_STATES, LANE_CHANNELS, WARPS>);
  backward_block<STATES, LANE_STATES, LANE_CHANNELS, WARPS, PART>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, threadIdx.x);
}
#elif KIND == 2
#define FORWARD(NAME, MODE)                                                                   \
  KERNEL NAME(const __grid_constant__ Arguments p) {                                          \
    DYNAMIC(SingleForwardShared<DIRECTIONS>);                                                 \
    single_forward_block<MODE, DIRECTIONS, WARPS>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.y, threadIdx.x); \
  }
FORWARD(scan_forward, SCAN)
FORWARD(summarise, SUMMARY)
FORWARD(summarise_adjoint, ADJOINT)
CHAINS
#elif KIND == 3
KERNEL scan_backward(const __grid_constant__ Arguments p) {
  DYNAMIC(SingleBackwardShared<WARPS>);
  single_backward_block<WARPS>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, threadIdx.x);
}
#elif KIND == 4
KERNEL scan_forward(const __grid_constant__ Arguments p) {
  __shared__ __align__(16) SharedDecayShared<STATES, LANE_STATES, WARPS, STEPS, DIRECTIONS> m;
  shared_decay_block<STATES, LANE_STATES, WARPS, STEPS, DIRECTIONS>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
}
#elif KIND == 5
KERNEL scan_backward(const __grid_constant__ Arguments p) {
  DYNAMIC(SharedBackwardShared<STATES, LANE_STATES, WARPS, DIRECTIONS>);
  shared_backward_block<STATES, LANE_STATES, WARPS, DIRECTIONS, PART>(p, m, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, threadIdx.x);
}
#endif
