// The forward scan of K directions that share step sizes and decays at every step, as PlainMamba's do: a lane holds S
// states of one channel in each direction, so that one exponential serves K states. dt is read by step; u and y by
// token. As in forward.h, T steps at a time are staged in shared memory, the next ones being under way.
template <int NS, int S, int W, int T, int K> struct SharedDecayShared {
  using F = ForwardShape<NS, S, W, T>;
  static constexpr int KP = padded(K);
  float drive[2][T][F::CB][KP];           // what drives the states of each direction
  float y[T][F::SL][F::CB + 8 / F::SL][KP];  // by state lane: fewer instructions than shuffles; without bank conflicts
  float size[2][T][F::CB], B[2][K][T][F::N], C[2][K][T][F::N];
};
template <int V> DEV void put(float* to, const float* v) {
  static_assert(V == 2 || V == 4, "a vector of shared memory");
  if constexpr (V == 4) *(float4*)to = float4{v[0], v[1], v[2], v[3]};
  else *(float2*)to = float2{v[0], v[1]};
}
template <int V> DEV void add(float* v, const float* from) {
  if constexpr (V == 4) { float4 x = *(const float4*)from; v[0] += x.x; v[1] += x.y; v[2] += x.z; v[3] += x.w; }
  else { float2 x = *(const float2*)from; v[0] += x.x; v[1] += x.y; }
}

// grid: b, blocks of CB channels, spans. With ONE, all directions read the same u and C.
template <int NS, int S, int W, int T, int K>
DEV void shared_decay_block(const Arguments& p, SharedDecayShared<NS, S, W, T, K>& m, int b, int by, int span, int tid) {
  using F = ForwardShape<NS, S, W, T>;
  constexpr int N = F::N, SL = F::SL, PAIRS = F::PAIRS, HOP = F::HOP, KP = padded(K);
  constexpr int HALF = T * N / 2, LOADS = (2 * K * HALF + F::THREADS - 1) / F::THREADS;
  const int lane = tid & 31, sl = lane & (SL - 1), ch = (tid >> 5) * F::CL + lane / SL, d = by * F::CB + ch, ld = p.channels;
  const int begin = span * p.span, count = least(p.span, p.L - begin), wanted = (K + (ONE ? 1 : K)) * HALF;
  const int row = tid / F::ROW, col = tid % F::ROW * 2, dc = by * F::CB + col;
  const int limit = dc < ld ? count : 0, limit2 = PAIRED || dc + 1 < ld ? limit : 0;  // steps of this thread's channels
  const Rows u(p.u, b, 0, dc, ld), dt(p.dt, b, 0, dc, ld), y(p.y, b, 0, dc, ld, FULL);
  const i64 u_further = p.u.direction * sizeof(Element), y_further = p.y.direction * (FULL ? sizeof(float) : sizeof(Element));
  float A2[S], h[K][S];
  auto entry = [&](int k, int j) { return ((i64)(b * K + k) * NS + sl * S + j) * ld + d; };
  auto on = [&](int j) { return (N == NS || sl * S + j < NS) && d < ld; };
#pragma unroll
  for (int j = 0; j < S; j++) {
    A2[j] = on(j) ? p.A[(sl * S + j) * ld + d] * LOG2E : 0.f;
#pragma unroll
    for (int k = 0; k < K; k++)
      h[k][j] = p.enter && on(j) ? p.enter[(((i64)(b * K + k) * p.spans + span) * NS + sl * S + j) * ld + d] : 0.f;
  }
  float2 bias = {0.f, 0.f}, D[K];
  if (p.bias && limit) bias.x = p.bias[dc];
  if (p.bias && limit2) bias.y = p.bias[dc + 1];
#pragma unroll
  for (int k = 0; k < K; k++) {
    D[k].x = p.D && limit ? p.D[k * p.D_direction + dc] : 0.f;
    D[k].y = p.D && limit2 ? p.D[k * p.D_direction + dc + 1] : 0.f;
  }
  Pair ru[PAIRS][K], rold[PAIRS][K], rdt[PAIRS], rbc[LOADS];
  int told[PAIRS][K], tok[PAIRS][K], ntok[PAIRS][K];
  auto time = [&](int i) { return begin + least(i, count - 1); };
  auto tokens = [&](int i) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
#pragma unroll
      for (int k = 0; k < K; k++) { int t = time(i + row + j * HOP); ntok[j][k] = ORDERS ? p.orders[k * p.L + t] : t; }
  };
  auto fetch = [&](int i) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      rdt[j] = dt.load(time(i + row + j * HOP));
#pragma unroll
      for (int k = 0; k < K; k++) {
        Rows from = u;
        if (!ONE) from.at += k * u_further;
        tok[j][k] = ntok[j][k];
        ru[j][k] = from.load(tok[j][k]);
      }
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      const int at = tid + j * F::THREADS, n = at % HALF * 2 % N, k = at / HALF;
      if (at >= wanted) continue;
      rbc[j] = Rows(k < K ? p.B : p.C, b, k < K ? k : k - K, n, NS).load(time(i + at % HALF * 2 / N));
      if (N != NS && n >= NS) rbc[j] = join(0, 0);
    }
    tokens(i + T);
  };
  auto stage = [&](int i, int s) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int r = row + j * HOP;
      float2 x = {step_of(low(rdt[j]) + bias.x, SOFTPLUS).size, step_of(high(rdt[j]) + bias.y, SOFTPLUS).size};
      float drive[2 * KP] = {};
      if (i + r >= limit) x.x = 0.f;
      if (i + r >= limit2) x.y = 0.f;
#pragma unroll
      for (int k = 0; k < K; k++) {
        drive[k] = x.x * low(ru[j][k]);
        drive[KP + k] = i + r < limit2 ? x.y * high(ru[j][k]) : 0.f;
        if (i + r >= limit) drive[k] = 0.f;
        rold[j][k] = ru[j][k];
        told[j][k] = tok[j][k];
      }
      if (HOP * PAIRS != T && r >= T) continue;
      *(float2*)&m.size[s][r][col] = x;
#pragma unroll
      for (int c = 0; c < 2; c++) put<KP>(m.drive[s][r][col + c], drive + c * KP);
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      const int at = tid + j * F::THREADS;
      if (at >= wanted) continue;
      float2 v = {low(rbc[j]), high(rbc[j])};
      *(float2*)((at >= K * HALF ? &m.C[s][0][0][0] - 2 * K * HALF : &m.B[s][0][0][0]) + at * 2) = v;
    }
  };
  float* mark = p.saved + ((i64)b * K * ((p.L + CHUNK - 1) / CHUNK) + begin / CHUNK) * NS * ld + sl * S * ld + d;
  const i64 per_direction = (i64)((p.L + CHUNK - 1) / CHUNK) * NS * ld;

  tokens(0); fetch(0); stage(0, 0); SYNC();
  for (int i = 0, s = 0; i < count; i += T, s ^= 1) {
    fetch(i + T);
#pragma unroll
    for (int t = 0; t < T; t++) {
      if (t % CHUNK == 0 && SAVE && d < ld && i + t < count) {
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
          for (int j = 0; j < S; j++)
            if (N == NS || sl * S + j < NS) mark[k * per_direction + j * ld] = h[k][j];
        mark += (i64)NS * ld;
      }
      const float x = m.size[s][t][ch];
      float a[S], v[KP];
#pragma unroll
      for (int j = 0; j < S; j++) a[j] = ex2(x * A2[j]);
#pragma unroll
      for (int k = 0; k < KP; k++) {
        v[k] = 0.f;
        if (k >= K) continue;
        const float drive = m.drive[s][t][ch][k];
#pragma unroll
        for (int j = 0; j < S; j++) {
          h[k][j] = a[j] * h[k][j] + drive * m.B[s][k][t][sl * S + j];
          v[k] += h[k][j] * m.C[s][ONE ? 0 : k][t][sl * S + j];
        }
      }
      put<KP>(m.y[t][sl][ch], v);
    }
    Pair ou[PAIRS][K];
    int ot[PAIRS][K];
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
#pragma unroll
      for (int k = 0; k < K; k++) { ou[j][k] = rold[j][k]; ot[j][k] = told[j][k]; }
    stage(i + T, s ^ 1);
    SYNC();
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int r = row + j * HOP;
      if ((HOP * PAIRS != T && r >= T) || i + r >= limit) continue;
      float v[2][KP] = {};
#pragma unroll
      for (int n = 0; n < SL; n++) { add<KP>(v[0], m.y[r][n][col]); add<KP>(v[1], m.y[r][n][col + 1]); }
#pragma unroll
      for (int k = 0; k < K; k++) {
        Rows to = y;
        to.at += k * y_further;
        to.store(ot[j][k], v[0][k] + D[k].x * low(ou[j][k]), v[1][k] + D[k].y * high(ou[j][k]), FULL);
      }
    }
    SYNC();
  }
  if (span == p.spans - 1)
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int j = 0; j < S; j++)
        if (on(j)) p.last[entry(k, j)] = h[k][j];
}
