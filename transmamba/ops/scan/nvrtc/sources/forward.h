// The forward scan, and what a span of time adds and forgets; two states or more.
// A block has W warps. A lane holds S states of one channel: the low bits of its number choose the states, the high
// bits the channel. T steps at a time are staged in shared memory by all threads, the next ones being under way.
enum Mode { SCAN, SUMMARY, ADJOINT };  // ADJOINT: the summary of the adjoint, from the last step to the first

template <int NS, int S, int W, int T> struct ForwardShape {
  static constexpr int N = padded(NS), SL = N / S, CL = 32 / SL, CB = CL * W, THREADS = 32 * W;
  static constexpr int ROW = CB / 2, HOP = THREADS / ROW, PAIRS = (T + HOP - 1) / HOP;  // threads along a row, rows at once
  static constexpr int GROUP = least(SL, T);                                            // steps whose sums are folded together
};
template <int NS, int S, int W, int T> struct ForwardShared {
  using F = ForwardShape<NS, S, W, T>;
  float2 step[2][T][F::CB];  // step size, and what drives the state
  float B[2][T][F::N], C[2][T][F::N], keep[2][T], y[2][T][F::CB + 8];
};

// grid: b * k, blocks of CB channels, spans
template <Mode MODE, int NS, int S, int W, int T>
DEV void forward_block(const Arguments& p, ForwardShared<NS, S, W, T>& m, int bx, int by, int bz, int tid) {
  using F = ForwardShape<NS, S, W, T>;
  constexpr int N = F::N, SL = F::SL, GROUP = F::GROUP, PAIRS = F::PAIRS, HOP = F::HOP;
  constexpr int HALF = T * N / 2, WANTED = MODE == SCAN ? 2 * HALF : HALF, LOADS = (WANTED + F::THREADS - 1) / F::THREADS;
  const int b = bx / p.K, k = bx % p.K, lane = tid & 31, sl = lane & (SL - 1), ch = (tid >> 5) * F::CL + lane / SL;
  const int d = by * F::CB + ch, ld = p.channels, span = bz + p.first;
  const int begin = span * p.span, count = least(p.span, p.L - begin);
  const int row = tid / F::ROW, col = tid % F::ROW * 2, dc = by * F::CB + col;
  const int limit = dc < ld ? count : 0, limit2 = PAIRED || dc + 1 < ld ? limit : 0;  // steps of this thread's channels
  const Rows u(MODE == ADJOINT ? p.y : p.u, b, k, dc, ld), dt(p.dt, b, k, dc, ld);
  const Rows y(p.y, b, k, dc, ld, FULL);
  const Tensor& Bof = MODE == ADJOINT ? p.C : p.B;
  const int* order = ORDERS ? p.orders + (i64)k * p.L : 0;
  const u8* restart = RESTART ? p.restart + (i64)bx * p.L : 0;
  const i64 entry = ((i64)bx * p.spans + span) * NS;
  float A2[S], h[S], total = 0.f, intact = 1.f;
#pragma unroll
  for (int j = 0; j < S; j++) {
    int n = sl * S + j;
    bool on = (N == NS || n < NS) && d < ld;
    A2[j] = on ? p.A[k * p.A_direction + n * ld + d] * LOG2E : 0.f;
    h[j] = MODE == SCAN && on && p.enter ? p.enter[(entry + n) * ld + d] : 0.f;
  }
  float2 bias = {0.f, 0.f}, D = {0.f, 0.f};
  if (p.bias && limit) bias.x = p.bias[k * p.bias_direction + dc];
  if (p.bias && limit2) bias.y = p.bias[k * p.bias_direction + dc + 1];
  if (MODE == SCAN && p.D && limit) D.x = p.D[k * p.D_direction + dc];
  if (MODE == SCAN && p.D && limit2) D.y = p.D[k * p.D_direction + dc + 1];

  Pair ru[PAIRS], rdt[PAIRS], rold[PAIRS], rbc[LOADS];
  int told[PAIRS], tok[PAIRS], ntok[PAIRS], nbc[LOADS], nkeep = 0;
  float rkeep = 1.f;
  auto time = [&](int i) { i = least(i, count - 1); return MODE == ADJOINT ? begin + count - 1 - i : begin + i; };
  auto tokens = [&](int i) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) { int t = time(i + row + j * HOP); ntok[j] = ORDERS ? order[t] : t; }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int t = time(i + (tid + j * F::THREADS) % HALF * 2 / N);
      nbc[j] = ORDERS && !BY_STEP ? order[t] : t;
    }
    if (RESTART) nkeep = time(i + (tid < T ? tid : 0));
  };
  auto fetch = [&](int i) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      tok[j] = ntok[j];
      ru[j] = u.load(tok[j]);
      rdt[j] = dt.load(BY_STEP ? time(i + row + j * HOP) : tok[j]);
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int at = tid + j * F::THREADS, n = at % HALF * 2 % N;
      if (WANTED % F::THREADS && at >= WANTED) continue;
      rbc[j] = Rows(at >= HALF ? p.C : Bof, b, k, n, NS).load(nbc[j]);
      if (N != NS && n >= NS) rbc[j] = join(0, 0);
    }
    if (RESTART) rkeep = i + tid < count && restart[nkeep] ? 0.f : 1.f;
    tokens(i + T);
  };
  auto stage = [&](int i, int s) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      int r = row + j * HOP;
      float x = low(ru[j]), z = high(ru[j]);
      float a = step_of(low(rdt[j]) + bias.x, SOFTPLUS).size, c = step_of(high(rdt[j]) + bias.y, SOFTPLUS).size;
      if (i + r >= limit) a = x = 0.f;
      if (i + r >= limit2) c = z = 0.f;
      float4 v = {a, MODE == ADJOINT ? x : a * x, c, MODE == ADJOINT ? z : c * z};
      if (HOP * PAIRS == T || r < T) *(float4*)&m.step[s][r][col] = v;
      rold[j] = ru[j];
      told[j] = tok[j];
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int at = tid + j * F::THREADS, e = at % HALF * 2;
      if (WANTED % F::THREADS && at >= WANTED) continue;
      float2 v = {low(rbc[j]), high(rbc[j])};
      *(float2*)((at >= HALF ? &m.C[s][0][0] : &m.B[s][0][0]) + e) = v;
    }
    if (RESTART && tid < T) m.keep[s][tid] = rkeep;
  };
  auto write = [&](float* to, const float* x) {
#pragma unroll
    for (int j = 0; j < S; j++)
      if ((N == NS || sl * S + j < NS) && d < ld) to[(i64)(sl * S + j) * ld + d] = x[j];
  };
  float* mark = p.saved + ((i64)bx * ((p.L + CHUNK - 1) / CHUNK) + begin / CHUNK) * NS * ld;

  tokens(0); fetch(0); stage(0, 0); SYNC();
  for (int i = 0, s = 0; i < count; i += T, s ^= 1) {
    fetch(i + T);
#pragma unroll
    for (int t0 = 0; t0 < T; t0 += GROUP) {
      if (MODE == SCAN && (T < CHUNK ? (i + t0) % CHUNK == 0 : t0 % CHUNK == 0) && SAVE && i + t0 < count) {
        write(mark, h);
        mark += (i64)NS * ld;
      }
      float v[GROUP];
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        float2 x = m.step[s][t0 + g][ch];
        float sum = 0.f, keep = RESTART ? m.keep[s][t0 + g] : 1.f;
#pragma unroll
        for (int j = 0; j < S; j++) {
          float a = ex2(x.x * A2[j]), in = x.y * m.B[s][t0 + g][sl * S + j];
          if (RESTART) a *= keep;
          h[j] = MODE == ADJOINT ? a * (h[j] + in) : a * h[j] + in;
          if (MODE == SCAN) sum += h[j] * m.C[s][t0 + g][sl * S + j];
        }
        v[g] = sum;
        if (MODE != SCAN) { total += x.x; intact *= keep; }
      }
      if (MODE == SCAN) {
        Fold<GROUP, SL, 1>::run(v, lane);
        m.y[s][t0 + folded<GROUP, SL, 1>(lane)][ch] = v[0];
      }
    }
    Pair ou[PAIRS];
    int ot[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; j++) { ou[j] = rold[j]; ot[j] = told[j]; }
    stage(i + T, s ^ 1);
    SYNC();
    if (MODE == SCAN)
#pragma unroll
      for (int j = 0; j < PAIRS; j++) {
        int r = row + j * HOP;
        if ((HOP * PAIRS == T || r < T) && i + r < limit) {
          float2 v = *(float2*)&m.y[s][r][col];
          y.store(ot[j], v.x + D.x * low(ou[j]), v.y + D.y * high(ou[j]), FULL);
        }
      }
  }
  if (MODE == SCAN && span == p.spans - 1) write(p.last + (i64)bx * NS * ld, h);
  if (MODE != SCAN) {
    float decay[S];
#pragma unroll
    for (int j = 0; j < S; j++) decay[j] = ex2(total * A2[j]) * intact;
    write(p.last + entry * ld, h);
    write(p.saved + entry * ld, decay);
  }
}
