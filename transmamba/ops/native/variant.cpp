// The kernels for one instruction set; VARIANT is its name. Compiled once per set, with that set's flags.
#include <math.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include "scan/native/scan.h"

namespace {
#include "conv/native.h"
#include "cross/native.h"
#include "scan/native/run.h"

#if defined(__SSE2__)
// Treats numbers below 1e-38 as zero while a unit runs, because a decaying state would otherwise slow every later step.
struct FlushToZero {
  const unsigned before = _mm_getcsr();
  FlushToZero() { _mm_setcsr(before | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before); }
};
#else
struct FlushToZero {};
#endif

void forward(const Scan &s, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  s.wide ? forward_unit<double>(s, b, part, scratch) : forward_unit<float>(s, b, part, scratch);
}
void backward(const Scan &s, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  s.wide ? backward_unit<double>(s, b, part, scratch) : backward_unit<float>(s, b, part, scratch);
}
size_t forward_scratch(const Scan &s) { return s.wide ? forward_unit<double>(s, 0, 0, nullptr) : forward_unit<float>(s, 0, 0, nullptr); }
size_t backward_scratch(const Scan &s) { return s.wide ? backward_unit<double>(s, 0, 0, nullptr) : backward_unit<float>(s, 0, 0, nullptr); }
void conv_forward(const Conv &c, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  conv_unit<false>(c, b, part, scratch);
}
void conv_backward(const Conv &c, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  conv_unit<true>(c, b, part, scratch);
}
size_t conv_scratch(const Conv &c) { return conv_unit<true>(c, 0, 0, nullptr); }
size_t cross_forward_at(const Cross &x, int64_t b, int64_t part, void *scratch) {
  return x.wide ? cross_forward_unit<double>(x, b, part, scratch) : cross_forward_unit<float>(x, b, part, scratch);
}
size_t cross_backward_at(const Cross &x, int64_t b, int64_t part, void *scratch) {
  return x.wide ? cross_backward_unit<double>(x, b, part, scratch) : cross_backward_unit<float>(x, b, part, scratch);
}
void cross_forward(const Cross &x, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  cross_forward_at(x, b, part, scratch);
}
void cross_backward(const Cross &x, int64_t b, int64_t part, void *scratch) {
  [[maybe_unused]] const FlushToZero flush;
  cross_backward_at(x, b, part, scratch);
}
size_t cross_forward_scratch(const Cross &x) { return cross_forward_at(x, 0, 0, nullptr); }
size_t cross_backward_scratch(const Cross &x) { return cross_backward_at(x, 0, 0, nullptr); }
}  // namespace

#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)
#define TEXT(a) #a
#define QUOTED(a) TEXT(a)
extern "C" const Variant NAMED(variant_, VARIANT);
const Variant NAMED(variant_, VARIANT) = {
    QUOTED(VARIANT), forward, backward, forward_scratch, backward_scratch, conv_forward, conv_backward, conv_scratch,
    cross_forward, cross_backward, cross_forward_scratch, cross_backward_scratch};
