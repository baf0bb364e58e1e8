// What one core of this machine can do at most, by the functions of the native scan: element updates per second of the
// recurrence held in the L1 cache, for 16 states and for one (softplus included), and bytes copied per second.
// Compile with -I transmamba/ops and the flags of the instruction set; prints JSON.
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {
#include "native/vector.h"

constexpr int W = lanes<float>(), STEPS = 64, STATES = 16;
float dt[STEPS * 2 * W], u[STEPS * 2 * W], y[STEPS * 2 * W], B[STEPS * STATES], C[STEPS * STATES];

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
// The median, as for the scan itself: what this machine gives now, not what it could give alone.
template <class F> double usual(F run) {
  std::vector<double> taken;
  for (int i = 0; i < 9; ++i) {
    const double start = now();
    run();
    taken.push_back(now() - start);
  }
  std::sort(taken.begin(), taken.end());
  return taken[4];
}

// N states of two vectors of channels over STEPS steps; SMOOTH applies softplus to dt.
template <int N, bool SMOOTH> void recurrence() {
  Vf h[N][2] = {}, A[N], unused{};
  for (int n = 0; n < N; ++n) A[n] = splat(-1.0f - n);
  for (int t = 0; t < STEPS; ++t)
    for (int i = 0; i < 2; ++i) {
      const int at = (t * 2 + i) * W;
      Vf step = load(dt + at), out{};
      if (SMOOTH) step = softplus<false>(step, unused);
      const Vf x = step * load(u + at);
      for (int n = 0; n < N; ++n) {
        h[n][i] = exp2_product<true>(step, A[n]) * h[n][i] + x * splat(B[t * N + n]);
        out += h[n][i] * splat(C[t * N + n]);
      }
      store(y + at, out);
    }
  asm volatile("" ::: "memory");
}
template <int N, bool SMOOTH> double rate() {
  const int repeats = 160000 / (N + 4);
  const double took = usual([&] {
    for (int r = 0; r < repeats; ++r) recurrence<N, SMOOTH>();
  });
  return 1.0 * repeats * STEPS * 2 * W * N / took;
}
}  // namespace

int main() {
  for (int i = 0; i < STEPS * 2 * W; ++i) dt[i] = 0.01f + i * 1e-6f, u[i] = 1;
  for (int i = 0; i < STEPS * STATES; ++i) B[i] = C[i] = 0.1f;
  const size_t size = 16 << 20;
  std::vector<float> from(size, 1.0f), to(size);
  const double copy = usual([&] {
    memcpy(to.data(), from.data(), size * 4);
    asm volatile("" ::"r"(to.data()) : "memory");
  });
  printf("{\"n16\": %.4g, \"n1\": %.4g, \"copy\": %.4g}\n", rate<16, false>(), rate<1, true>(), 8.0 * size / copy);
}
