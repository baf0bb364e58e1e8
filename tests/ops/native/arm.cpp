// Runs scans of fixed pseudo-random inputs with the library it is linked to, and prints for each output and gradient a
// weighted sum and the 2-norm: two processors can be compared by their lines.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "scan/native/scan.h"

typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);
extern "C" int64_t run_scan(const Scan *, int64_t backward, int64_t variant, int64_t threads, Team team);

static uint64_t seed;
static double uniform() {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (seed >> 33) / 1073741824.0 - 1;
}
template <class F> static std::vector<F> draw(int64_t count, double scale = 1, double offset = 0) {
  std::vector<F> values(count);
  for (F &x : values) x = (F)(uniform() * scale + offset);
  return values;
}

struct Kind {
  int64_t directions, state;
  bool time_first, orders, segments, merge, shared;
};

template <class F> static void run(const Kind &kind) {
  const int64_t b = 2, L = 75, D = 37, K = kind.directions, N = kind.state, chunks = 3, own = kind.shared ? 1 : K, out = kind.merge ? 1 : K;
  const int64_t type = sizeof(F) == 8 ? DOUBLE : FLOAT;
  seed = 7;
  auto u = draw<F>(b * L * D), dt = draw<F>(b * own * L * D), A = draw<F>(own * N * D, 0.5, -1), B = draw<F>(b * K * L * N);
  auto C = draw<F>(b * K * L * N), direct = draw<F>(K * D), bias = draw<F>(own * D, 1, -2), initial = draw<F>(b * K * N * D);
  auto grad_y = draw<F>(b * out * L * D), grad_last = draw<F>(b * K * N * D);
  std::vector<F> y(b * out * L * D), last(b * K * N * D), saved(b * K * chunks * N * D), du(b * L * D), ddt(b * own * L * D), dA(b * own * N * D);
  std::vector<F> dD(b * K * D), dbias(b * own * D), dinitial(b * K * N * D), dB(b * K * L * N), dC(b * K * L * N);
  std::vector<int64_t> orders(K * L), segments(b * L);
  for (int64_t i = 0; i < K * L; ++i) orders[i] = (i % L * (i / L % 2 ? 7 : 11) + 3) % L;
  for (int64_t i = 0; i < b * L; ++i) segments[i] = i % L / 30;

  const auto tokens = [&](std::vector<F> &x, int64_t k, int64_t width) {
    const int64_t direction = k == 1 ? 0 : L * width;
    return kind.time_first ? Array{x.data(), type, k * L * width, direction, 1, L} : Array{x.data(), type, k * L * width, direction, width, 1};
  };
  const auto states = [&](std::vector<F> &x, int64_t k, int64_t row) { return Array{x.data(), type, k * N * D, k == 1 ? 0 : N * D, row, 1}; };
  const auto vectors = [&](std::vector<F> &x, int64_t k) { return Array{x.data(), type, k * D, k == 1 ? 0 : D, 0, 1}; };
  Scan s;
  memset(&s, 0, sizeof s);
  s.batch = b, s.directions = K, s.length = L, s.channels = D, s.state = N, s.chunk = 32, s.part = 64;
  s.wide = sizeof(F) == 8, s.softplus = 1, s.by_step = !kind.orders || kind.shared, s.together = kind.shared;
  s.orders = kind.orders ? orders.data() : nullptr, s.segments = kind.segments ? segments.data() : nullptr;
  s.u = tokens(u, 1, D), s.dt = tokens(dt, own, D), s.B = tokens(B, K, N), s.C = tokens(C, K, N);
  s.A = states(A, own, D), s.D = vectors(direct, K), s.bias = vectors(bias, own), s.initial = states(initial, K, 0);
  s.y = tokens(y, out, D), s.last = states(last, K, 0), s.saved = {saved.data(), type, K * chunks * N * D, chunks * N * D, N * D, 1};
  if (!run_scan(&s, 0, 0, 1, nullptr)) puts("failed");
  s.grad_y = tokens(grad_y, out, D), s.grad_last = states(grad_last, K, 0), s.du = tokens(du, 1, D), s.ddt = tokens(ddt, own, D);
  s.dA = states(dA, own, D), s.dD = vectors(dD, K), s.dbias = vectors(dbias, own), s.dinitial = states(dinitial, K, 0);
  s.dB = {dB.data(), type, K * L * N, L * N, N, 1}, s.dC = {dC.data(), type, K * L * N, L * N, N, 1};
  if (!run_scan(&s, 1, 0, 1, nullptr)) puts("failed");

  const std::vector<F> *const results[] = {&y, &last, &du, &ddt, &dA, &dD, &dbias, &dinitial, &dB, &dC};
  for (const auto *result : results) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < result->size(); ++i) sum += (*result)[i] * ((double)(i % 13) - 6), squares += (double)(*result)[i] * (*result)[i];
    printf("%.9e %.9e ", sum, sqrt(squares));
  }
  puts("");
}

int main() {
  for (int64_t state : {1, 2, 5, 16})
    for (bool time_first : {false, true})
      for (bool segments : {false, true}) {
        run<float>({1, state, time_first, false, segments, false, false});
        run<double>({1, state, time_first, false, segments, false, false});
        run<float>({3, state, time_first, true, segments, true, false});
        run<float>({4, state, time_first, true, false, false, true});
        run<double>({2, state, false, true, segments, false, true});
      }
}
