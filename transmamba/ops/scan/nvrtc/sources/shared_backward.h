// The backward scan of K directions that share step sizes and decays at every step: a lane holds S states of one channel
// in each direction, so that one exponential serves K states, and so do the gradients of A and of the step size. As in
// backward.h, chunks go from the last to the first, P steps of states in registers; a lane holds its states in an order of
// its own. dt is read by step; u and gy by token.
template <int NS, int S, int W, int K> struct SharedBackwardShape {
  static constexpr int T = CHUNK, N = padded(NS), SL = N / S, CL = 32 / SL, CB = CL * W, THREADS = 32 * W, KP = padded(K);
  static constexpr int ROW = CB / 2, HOP = THREADS / ROW, PAIRS = (T + HOP - 1) / HOP, COPIES = least(S, CL);
};
template <int NS, int S, int W, int K, class F = SharedBackwardShape<NS, S, W, K>> struct SharedBackwardShared {
  float drive[F::T][F::CB][F::KP], gy[F::T][F::CB][F::KP], through_B[F::T][F::CB + 1][F::KP];  // of each direction
  float size[F::T][F::CB], slope[F::T][F::CB], through_A[F::T][F::CB + 8];
  float B[F::T][K][F::COPIES][F::N], Cm[F::T][K][F::COPIES][F::N];
  float sums[F::T][W][2][K][F::N];  // dB, then dC
  Pair raw_dt[F::T][F::CB / 2], raw_u[K][F::T][F::CB / 2], raw_gy[K][F::T][F::CB / 2], u[K][F::T][F::CB / 2];
  Pair raw_bc[2][K][F::T][F::N / 2];
  float mark[K * S][F::THREADS];
  float2 D[K][F::THREADS];  // of each thread's two channels
  int place[F::PAIRS][K][F::THREADS];  // rows of each thread's du
};

// grid: b, blocks of CB channels, spans. du (b, k, l, d); ddt (b, 1, l, d); dB, dC (blocks, b, k, l, n), with ONE a single
// dC for all directions; dA (spans, b, n, d); dD (spans, b, k, d), dbias (spans, b, d)
template <int NS, int S, int W, int K, int P>
DEV void shared_backward_block(const Arguments& p, SharedBackwardShared<NS, S, W, K>& m, int b, int by, int bz, int batches, int tid) {
  using F = SharedBackwardShape<NS, S, W, K>;
  constexpr int T = F::T, N = F::N, SL = F::SL, COPIES = F::COPIES, PAIRS = F::PAIRS, HOP = F::HOP, KP = F::KP;
  constexpr int HALF = K * T * N / 2, LOADS = (2 * HALF + F::THREADS - 1) / F::THREADS;
  const int lane = tid & 31, warp = tid >> 5, sl = lane & (SL - 1), cl = lane / SL, copy_of = cl & (COPIES - 1);
  const int ch = warp * F::CL + cl, d = by * F::CB + ch, ld = p.channels, perm = order_of<S, COPIES>(copy_of);
  const int begin = bz * p.span, end = least(begin + p.span, p.L), wanted = (K + (ONE ? 1 : K)) * T * N / 2;
  const int row = tid / F::ROW, col = tid % F::ROW * 2, dc = by * F::CB + col;
  const int limit = dc < ld ? end : -1, limit2 = PAIRED || dc + 1 < ld ? limit : -1;
  const bool rows_fit = HOP * PAIRS == T || row < T;
  const Rows u(p.u, b, 0, dc, ld), dt(p.dt, b, 0, dc, ld), gy(p.y, b, 0, dc, ld);
  const Rows du(p.du, b, 0, dc, ld, FULL), ddt(p.ddt, b, 0, dc, ld);
  const i64 u_further = p.u.direction * sizeof(Element), gy_further = p.y.direction * sizeof(Element);
  const i64 du_further = p.du.direction * (FULL ? sizeof(float) : sizeof(Element));
  const i64 per_mark = (i64)NS * ld, marks = (p.L + T - 1) / T * per_mark;
  auto of = [](Rows rows, i64 further) { rows.at += further; return rows; };
  auto entry = [&](int s) { int n = sl * S + (s ^ perm); return (N == NS ? n : least(n, NS - 1)) * ld + least(d, ld - 1); };
  auto on = [&](int s) { return (N == NS || sl * S + (s ^ perm) < NS) && d < ld; };
  float A2[S], dA[S], g[K][S], h0[K][S];
#pragma unroll
  for (int s = 0; s < S; s++) {
    A2[s] = on(s) ? p.A[entry(s)] * LOG2E : 0.f;
    dA[s] = 0.f;
#pragma unroll
    for (int k = 0; k < K; k++) g[k][s] = p.enter && on(s) ? p.enter[((i64)(b * K + k) * p.spans + bz) * per_mark + entry(s)] : 0.f;
  }
  float2 bias = {0.f, 0.f}, dbias = {0.f, 0.f}, dD[K];
  if (p.bias && limit > 0) bias.x = p.bias[dc];
  if (p.bias && limit2 > 0) bias.y = p.bias[dc + 1];
#pragma unroll
  for (int k = 0; k < K; k++) {
    float2 D = {0.f, 0.f};
    if (p.D && limit > 0) D.x = p.D[k * p.D_direction + dc];
    if (p.D && limit2 > 0) D.y = p.D[k * p.D_direction + dc + 1];
    m.D[k][tid] = D;
    dD[k] = {0.f, 0.f};
  }
  int tok[PAIRS][K], ntok[PAIRS][K];
  auto time = [&](int t) { return most(least(t, end - 1), 0); };
  auto tokens = [&](int start) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
#pragma unroll
      for (int k = 0; k < K; k++) { int t = time(start + row + j * HOP); ntok[j][k] = ORDERS ? p.orders[k * p.L + t] : t; }
  };
  auto fetch = [&](int start) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int r = row + j * HOP;
#pragma unroll
      for (int k = 0; k < K; k++) {
        tok[j][k] = ntok[j][k];
        if (!rows_fit) continue;
        of(u, ONE ? 0 : k * u_further).fetch(&m.raw_u[k][r][col / 2], tok[j][k]);
        of(gy, k * gy_further).fetch(&m.raw_gy[k][r][col / 2], tok[j][k]);
      }
      if (rows_fit) dt.fetch(&m.raw_dt[r][col / 2], time(start + r));
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      const int at = tid + j * F::THREADS, e = at % (T * N / 2), k = at / (T * N / 2), n = e * 2 % N;
      if (at >= wanted) continue;
      Pair* to = &m.raw_bc[0][0][0][0] + at;
      if (N == NS || n < NS) Rows(k < K ? p.B : p.C, b, k < K ? k : k - K, n, NS).fetch(to, time(start + e * 2 / N));
      else *to = join(0, 0);
    }
    const float* from = p.saved + b * K * marks + most(start, 0) / T * per_mark;
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int s = 0; s < S; s++) copy<4>(&m.mark[k * S + s][tid], from + k * marks + entry(s));
    tokens(start - T);
  };
  auto stage = [&](int start) {
    landed();
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int r = row + j * HOP;
#pragma unroll
      for (int k = 0; k < K; k++) m.place[j][k][tid] = tok[j][k];
      if (!rows_fit) continue;
      const Pair rdt = m.raw_dt[r][col / 2];
      Step v = step_of(low(rdt) + bias.x, SOFTPLUS), w = step_of(high(rdt) + bias.y, SOFTPLUS);
      float drive[2 * KP] = {}, z[2 * KP] = {};
      if (start + r >= limit) v.size = v.slope = 0.f;
      if (start + r >= limit2) w.size = w.slope = 0.f;
#pragma unroll
      for (int k = 0; k < K; k++) {
        const Pair ru = m.raw_u[k][r][col / 2], rgy = m.raw_gy[k][r][col / 2];
        m.u[k][r][col / 2] = ru;
        drive[k] = v.size * low(ru);
        drive[KP + k] = w.size * high(ru);
        z[k] = start + r < limit ? low(rgy) : 0.f;
        z[KP + k] = start + r < limit2 ? high(rgy) : 0.f;
      }
      *(float2*)&m.size[r][col] = float2{v.size, w.size};
      *(float2*)&m.slope[r][col] = float2{v.slope, w.slope};
#pragma unroll
      for (int c = 0; c < 2; c++) { put<KP>(m.drive[r][col + c], drive + c * KP); put<KP>(m.gy[r][col + c], z + c * KP); }
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      const int at = tid + j * F::THREADS, e = at % (T * N / 2), k = at / (T * N / 2), t = e * 2 / N, n = e * 2 % N;
      if (at >= wanted) continue;
      const Pair both = (&m.raw_bc[0][0][0][0])[at];
#pragma unroll
      for (int q = 0; q < COPIES; q++) {  // state n stands at n ^ order
        const int o = order_of<S, COPIES>(q);
        const float2 z = o & 1 ? float2{high(both), low(both)} : float2{low(both), high(both)};
        *(float2*)((k < K ? m.B[t][k][q] : m.Cm[t][k - K][q]) + (n ^ (o & ~1))) = z;
      }
    }
  };
  auto advance = [&](float (*h)[S], int t) {
    const float x = m.size[t][ch];
#pragma unroll
    for (int s = 0; s < S; s++) {
      const float a = ex2(x * A2[s]);
#pragma unroll
      for (int k = 0; k < K; k++) h[k][s] = a * h[k][s] + m.drive[t][ch][k] * m.B[t][k][copy_of][sl * S + s];
    }
  };
  // sums over channel lanes of S values in the order of each, to one value that REST lanes still share
  auto over_channels = [&](float* v) {
    int bit = SL;
#pragma unroll
    for (int half = S / 2; half > 0; half /= 2, bit *= 2)
#pragma unroll
      for (int s = 0; s < half; s++) v[s] += swap(v[s + half], bit);
    return v[0];
  };
  static_assert(COPIES == S, "every state of a lane has an order of its own");
  constexpr int REST = 32 / (SL * COPIES), LEFT = most(1, KP / REST), LEFT_B = most(1, KP / SL);
  auto add_up = [&](float* v, float (*to)[N]) {
    Fold<KP, REST, SL * COPIES>::run(v, lane);
    const int f = folded<KP, REST, SL * COPIES>(lane);
#pragma unroll
    for (int r = 0; r < LEFT; r++)
      if (f + r < K) to[f + r][sl * S + perm] = v[r];
  };
  auto adjoint = [&](float (*before)[S], float (*after)[S], int t) {
    float a[S], decay[S], dB[KP] = {}, dC[KP] = {}, y[S], through_B[KP] = {}, through_A[1] = {0.f};
    const float x = m.size[t][ch];
#pragma unroll
    for (int s = 0; s < S; s++) { a[s] = ex2(x * A2[s]); decay[s] = y[s] = 0.f; }
#pragma unroll
    for (int k = 0; k < K; k++) {
      const float gyt = m.gy[t][ch][k], drive = m.drive[t][ch][k];
      float v[S];
#pragma unroll
      for (int s = 0; s < S; s++) {
        const float G = g[k][s] + m.Cm[t][ONE ? 0 : k][copy_of][sl * S + s] * gyt;
        y[s] = (ONE || k == 0 ? y[s] : 0.f) + after[k][s] * gyt;
        v[s] = G * drive;
        through_B[k] += G * m.B[t][k][copy_of][sl * S + s];
        g[k][s] = G * a[s];
        decay[s] += g[k][s] * before[k][s];
      }
      dB[k] = over_channels(v);
      if (!ONE) dC[k] = over_channels(y);
    }
#pragma unroll
    for (int s = 0; s < S; s++) { through_A[0] += decay[s] * A2[s]; dA[s] += decay[s] * x; }
    add_up(dB, m.sums[t][warp][0]);
    if (ONE) {
      float total[1] = {over_channels(y)};
      Fold<1, REST, SL * COPIES>::run(total, lane);
      m.sums[t][warp][1][0][sl * S + perm] = total[0];
    } else {
      add_up(dC, m.sums[t][warp][1]);
    }
    Fold<KP, SL, 1>::run(through_B, lane);
    const int f = folded<KP, SL, 1>(lane);
#pragma unroll
    for (int r = 0; r < LEFT_B; r++) m.through_B[t][ch][f + r] = through_B[r];
    Fold<1, SL, 1>::run(through_A, lane);
    m.through_A[t][ch] = through_A[0];
  };
  auto write_sums = [&](int start, int of, float* all, int directions) {
    constexpr int SUMS = (K * T * N / 2 + F::THREADS - 1) / F::THREADS;
#pragma unroll
    for (int j = 0; j < SUMS; j++) {
      const int e = tid + j * F::THREADS, n = e * 2 % N, t = e / (N / 2) % T, k = e / (N / 2 * T);
      if (k >= directions || start + t >= end || (N != NS && n >= NS)) continue;
      float2 sum = *(float2*)&m.sums[t][0][of][k][n];
#pragma unroll
      for (int w = 1; w < W; w++) { float2 o = *(float2*)&m.sums[t][w][of][k][n]; sum.x += o.x; sum.y += o.y; }
      float* to = all + ((((i64)by * batches + b) * directions + k) * p.L + start + t) * NS + n;
      if (NS % 2 == 0) { *(float2*)to = sum; continue; }
      to[0] = sum.x;
      if (n + 1 < NS) to[1] = sum.y;
    }
  };
  auto flush = [&](int start) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int r = row + j * HOP;
      if (!rows_fit || start + r >= limit) continue;
      const float2 x = *(float2*)&m.size[r][col], ta = *(float2*)&m.through_A[r][col], slope = *(float2*)&m.slope[r][col];
      float2 e = {ta.x * LN2, ta.y * LN2};
#pragma unroll
      for (int k = 0; k < K; k++) {
        const Pair ru = m.u[k][r][col / 2];
        const float2 z = {m.gy[r][col][k], m.gy[r][col + 1][k]}, D = m.D[k][tid];
        const float2 tb = {m.through_B[r][col][k], m.through_B[r][col + 1][k]};
        e.x += tb.x * low(ru); e.y += tb.y * high(ru);
        dD[k].x += z.x * low(ru);
        dD[k].y += limit2 > 0 ? z.y * high(ru) : 0.f;
        of(du, k * du_further).store(m.place[j][k][tid], x.x * tb.x + D.x * z.x, x.y * tb.y + D.y * z.y, FULL);
      }
      e.x *= slope.x; e.y *= slope.y;
      dbias.x += e.x; dbias.y += e.y;
      ddt.store(start + r, e.x, e.y, false);
    }
    write_sums(start, 0, p.dB, K);
    write_sums(start, 1, p.dC, ONE ? 1 : K);
  };
  int start = begin + (end - begin - 1) / T * T;
  tokens(start); fetch(start); stage(start); SYNC();
  for (; start >= begin; start -= T) {
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int s = 0; s < S; s++) h0[k][s] = m.mark[k * S + s][tid];
    fetch(start - T);
#pragma unroll
    for (int part = T / P - 1; part >= 0; part--) {
      float h[P + 1][K][S];
#pragma unroll
      for (int k = 0; k < K; k++)
#pragma unroll
        for (int s = 0; s < S; s++) h[0][k][s] = h0[k][s];
#pragma unroll
      for (int q = 0; q < part; q++)
#pragma unroll
        for (int i = 0; i < P; i++) advance(h[0], q * P + i);
#pragma unroll
      for (int i = 0; i < P; i++) {
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
          for (int s = 0; s < S; s++) h[i + 1][k][s] = h[i][k][s];
        advance(h[i + 1], part * P + i);
      }
#pragma unroll
      for (int i = P - 1; i >= 0; i--) adjoint(h[i], h[i + 1], part * P + i);
    }
    SYNC();
    flush(start);
    SYNC();
    stage(start - T);
    SYNC();
  }
  const i64 once = (i64)bz * batches + b;
#pragma unroll
  for (int s = 0; s < S; s++)
    if (on(s)) {
      p.dA[once * per_mark + entry(s)] = dA[s];
#pragma unroll
      for (int k = 0; k < K; k++)
        if (bz == 0) p.last[(b * K + k) * per_mark + entry(s)] = g[k][s];
    }
  // rows of threads summed
  float2(*pool)[F::THREADS] = (float2(*)[F::THREADS])&m;
#pragma unroll
  for (int k = 0; k < K; k++) pool[k][tid] = dD[k];
  pool[K][tid] = dbias;
  SYNC();
  if (tid >= F::ROW) return;
  for (int k = 0; k <= K; k++) {
    float2 sum = pool[k][tid];
    for (int r = 1; r < HOP; r++) { float2 o = pool[k][tid + r * F::ROW]; sum.x += o.x; sum.y += o.y; }
    float* to = k < K ? (p.dD ? p.dD + (once * K + k) * ld + dc : 0) : (p.dbias ? p.dbias + once * ld + dc : 0);
    if (to && limit > 0) to[0] = sum.x;
    if (to && limit2 > 0) to[1] = sum.y;
  }
}
