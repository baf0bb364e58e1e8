// The arguments from Python: a scan, as `ScanInputs` in ../inputs.py describes it, by pointers and strides.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum Dtype : int64_t { FLOAT, DOUBLE, BFLOAT, HALF };

// A (batch, direction, row, column) array. Strides count elements; a direction stride of 0 means shared by all.
struct Array {
  void *data;
  int64_t dtype, batch, direction, row, column;
};

struct Scan {
  int64_t batch, directions, length, channels, state, chunk;
  int64_t part;                // channels per unit of work; a multiple of 32. Only the gradients of B and C depend on it
  int64_t wide;                // arithmetic in double
  int64_t softplus, by_step;   // by_step: dt, B, C are indexed by step
  int64_t together;            // dt, A and dt_bias serve all directions at the same step
  const int64_t *orders;       // (directions, length) or null
  const int64_t *segments;     // (batch, length) or null
  Array u, dt, B, C;           // activations
  Array A, D, bias, initial;   // compute dtype; column stride 1; null data where absent
  Array y, last, saved;        // saved: row stride counts chunks, then (state, channels) is dense
  Array grad_y, grad_last;
  Array du, ddt;               // activations, or the compute dtype where directions are summed into them
  Array dA, dD, dbias, dinitial;  // one slot per batch, zero at entry (dinitial is written)
  Array dB, dC;                // (part, batch, direction, row, state); `part_stride` apart, one slot per part
  int64_t dB_part, dC_part;
};

// A cross scan, as `CrossInputs` in ../../cross/inputs.py describes it: the context, without C, D, segments, initial
// states and `together`; y, grad_y and dC have a row per query, in the compute dtype. y is added to, dC zero at entry.
struct Cross : Scan {
  int64_t queries;
  const int64_t *queue;        // (batch, direction, query): numbers of queries in the order of the steps they read
  const int64_t *first;        // (batch, direction, length + 1): number of queries before each step
  Array readout;               // C of the queries in the compute dtype, column stride 1
};

// A depthwise causal convolution, as `ConvInputs` in ../../conv/inputs.py describes it.
struct Conv {
  int64_t batch, directions, length, channels, width;
  int64_t part;                // channels per unit of work; no result depends on it
  int64_t wide, silu;
  const int64_t *orders;       // (directions, length) or null
  const int64_t *segments;     // (batch, length) or null
  Array x, before, y, grad_y;  // activations, column stride 1; before (batch, direction, past token, column) may be null
  Array weight, bias;          // compute dtype, (direction, tap, column)
  Array dx, dbefore;           // activations; dx in the compute dtype where directions are summed into it
  Array dweight, dbias;        // (batch, direction, tap, column), one slot per batch
};

// One instruction set's build of the kernels.
struct Variant {
  const char *name;
  void (*forward)(const Scan &, int64_t batch, int64_t part, void *scratch);
  void (*backward)(const Scan &, int64_t batch, int64_t part, void *scratch);
  size_t (*forward_scratch)(const Scan &);
  size_t (*backward_scratch)(const Scan &);
  void (*conv_forward)(const Conv &, int64_t batch, int64_t part, void *scratch);
  void (*conv_backward)(const Conv &, int64_t batch, int64_t part, void *scratch);
  size_t (*conv_scratch)(const Conv &);
  void (*cross_forward)(const Cross &, int64_t batch, int64_t part, void *scratch);
  void (*cross_backward)(const Cross &, int64_t batch, int64_t part, void *scratch);
  size_t (*cross_forward_scratch)(const Cross &);
  size_t (*cross_backward_scratch)(const Cross &);
};
