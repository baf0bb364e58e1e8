// The backward scan; two states or more. A block has W warps, a lane S states of C channels. Chunks go from the last
// to the first; the states of a chunk are recomputed from the one saved before it, P steps at a time in registers.
// A lane holds its states in an order of its own: register j of channel lane cl is state j ^ perm(cl). The sums of dB
// and dC over channel lanes then need no selects; B and C lie in shared memory in each of these orders.
template <int NS, int S, int C, int W> struct BackwardShape {
  static constexpr int T = CHUNK, N = padded(NS), SL = N / S, CL = 32 / SL, CW = CL * C, CB = CW * W, THREADS = 32 * W;
  static constexpr int ROW = CB / 2, HOP = THREADS / ROW, PAIRS = (T + HOP - 1) / HOP, COPIES = least(S, CL);
};
template <int NS, int S, int C, int W> struct BackwardShared {
  using F = BackwardShape<NS, S, C, W>;
  float x[F::T][F::CB * 2];  // per group of C channels: the step sizes, then these times u
  float gy[F::T][F::CB], slope[F::T][F::CB];
  float B[F::T][F::COPIES][F::N], Cm[F::T][F::COPIES][F::N];
  float through_B[F::T][F::CB + 8], through_A[F::T][F::CB + 8];
  float sums[F::T][W][2 * F::N];  // dB, then dC
  Pair raw[3][F::T][F::CB / 2], u[F::T][F::CB / 2], raw_bc[2][F::T][F::N / 2];
  float mark[S * C][F::THREADS], keep[F::T];
  // what registers have no room for: bias and D of each thread's two channels, and where it writes du and ddt
  float4 constant[F::THREADS];
  struct { char *du, *ddt; } out[F::THREADS];
  int token[F::T], place[F::PAIRS][F::THREADS];  // rows of dB and dC; rows of each thread's du
};
// bit j of cl reverses the j-th halving of `COPIES` orders
template <int S, int COPIES> DEV int order_of(int cl) {
  int r = 0;
#pragma unroll
  for (int v = S / 2, b = 1; b < COPIES; v >>= 1, b <<= 1) r |= cl & b ? v : 0;
  return r;
}

// grid: b * k, blocks of CB channels, spans. du, ddt (b, k, l, d); dB, dC (blocks, b, k, l, n); dA (spans, b, k, n, d);
// dD, dbias (spans, b, k, d); `last` receives the adjoint of the state before the first step
template <int NS, int S, int C, int W, int P>
DEV void backward_block(const Arguments& p, BackwardShared<NS, S, C, W>& m, int bx, int by, int bz, int groups, int tid) {
  using F = BackwardShape<NS, S, C, W>;
  constexpr int T = F::T, N = F::N, SL = F::SL, COPIES = F::COPIES, PAIRS = F::PAIRS, HOP = F::HOP;
  constexpr int HALF = T * N / 2, LOADS = (2 * HALF + F::THREADS - 1) / F::THREADS;
  constexpr int SUMS = (T * N + F::THREADS - 1) / F::THREADS;
  const int b = bx / p.K, k = bx % p.K, lane = tid & 31, warp = tid >> 5, sl = lane & (SL - 1), cl = lane / SL, copy_of = cl & (COPIES - 1);
  const int ch = warp * F::CW + cl * C, d = by * F::CB + ch, ld = p.channels, perm = order_of<S, COPIES>(copy_of);
  const int begin = bz * p.span, end = least(begin + p.span, p.L);
  const int row = tid / F::ROW, col = tid % F::ROW * 2, dc = by * F::CB + col;
  const int limit = dc < ld ? end : -1, limit2 = PAIRED || dc + 1 < ld ? limit : -1;
  const bool rows_fit = HOP * PAIRS == T || row < T;
  const Rows u(p.u, b, k, dc, ld), dt(p.dt, b, k, dc, ld), gy(p.y, b, k, dc, ld);
  Rows du(p.du, b, k, dc, ld, FULL), ddt(p.ddt, b, k, dc, ld, FULL);
  m.out[tid].du = du.at;
  m.out[tid].ddt = ddt.at;
  const i64 per_mark = (i64)NS * ld;
  const float* mark = p.saved + (i64)bx * ((p.L + T - 1) / T) * per_mark;
  const i64 part_at = ((i64)by * groups + bx) * p.L * NS;
  const int* order = ORDERS ? p.orders + (i64)k * p.L : 0;
  const u8* restart = RESTART ? p.restart + (i64)bx * p.L : 0;
  float A2[C][S], g[C][S], dA[C][S], h0[C][S];
  const int inside = least(d, ld - 1), beside = d + 1 < ld;  // C is at most 2
  auto entry = [&](int c, int s) { int n = sl * S + (s ^ perm); return (N == NS ? n : least(n, NS - 1)) * ld + inside + c * beside; };
  auto on = [&](int c, int s) { return (N == NS || sl * S + (s ^ perm) < NS) && d + c < ld; };
#pragma unroll
  for (int c = 0; c < C; c++)
#pragma unroll
    for (int s = 0; s < S; s++) {
      A2[c][s] = on(c, s) ? p.A[k * p.A_direction + entry(c, s)] * LOG2E : 0.f;
      g[c][s] = p.enter && on(c, s) ? p.enter[((i64)bx * p.spans + bz) * per_mark + entry(c, s)] : 0.f;
      dA[c][s] = 0.f;
    }
  float2 dD = {0.f, 0.f}, dbias = {0.f, 0.f};
  float4 constant = {0.f, 0.f, 0.f, 0.f};
  if (p.bias && limit > 0) constant.x = p.bias[k * p.bias_direction + dc];
  if (p.bias && limit2 > 0) constant.y = p.bias[k * p.bias_direction + dc + 1];
  if (p.D && limit > 0) constant.z = p.D[k * p.D_direction + dc];
  if (p.D && limit2 > 0) constant.w = p.D[k * p.D_direction + dc + 1];
  m.constant[tid] = constant;

  int tok[PAIRS], ntok[PAIRS], nbc[LOADS], own = 0, nown = 0;
  float rkeep = 1.f;
  auto time = [&](int t) { return most(least(t, end - 1), 0); };
  auto tokens = [&](int start) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) { int t = time(start + row + j * HOP); ntok[j] = ORDERS ? order[t] : t; }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int t = time(start + (tid + j * F::THREADS) % HALF * 2 / N);
      nbc[j] = ORDERS && !BY_STEP ? order[t] : t;
    }
    int t = time(start + (tid < T ? tid : 0));
    nown = ORDERS && !BY_STEP ? order[t] : t;
  };
  auto fetch = [&](int start) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      int r = row + j * HOP, steps = BY_STEP ? time(start + r) : ntok[j];
      tok[j] = ntok[j];
      if (!rows_fit) continue;
      u.fetch(&m.raw[0][r][col / 2], tok[j]);
      dt.fetch(&m.raw[1][r][col / 2], steps);
      gy.fetch(&m.raw[2][r][col / 2], tok[j]);
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int at = tid + j * F::THREADS, e = at % HALF, n = e * 2 % N;
      if (2 * HALF % F::THREADS && at >= 2 * HALF) continue;
      if (N == NS || n < NS) Rows(at >= HALF ? p.C : p.B, b, k, n, NS).fetch(&m.raw_bc[at >= HALF][0][0] + e, nbc[j]);
      else (&m.raw_bc[at >= HALF][0][0])[e] = join(0, 0);
    }
    const float* from = mark + most(start, 0) / T * per_mark;
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
      for (int c = 0; c < C; c++) copy<4>(&m.mark[s * C + c][tid], from + entry(c, s));
    if (RESTART) rkeep = start + tid < end && restart[time(start + (tid < T ? tid : 0))] ? 0.f : 1.f;
    own = nown;
    tokens(start - T);
  };
  auto stage = [&](int start) {
    landed();
    float2 bias = *(float2*)&m.constant[tid].x;
    if (ORDERS && !BY_STEP && tid < T) m.token[tid] = own;
    if (RESTART && tid < T) m.keep[tid] = rkeep;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      int r = row + j * HOP;
      if (ORDERS) m.place[j][tid] = tok[j];
      if (!rows_fit) continue;
      Pair ru = m.raw[0][r][col / 2], rdt = m.raw[1][r][col / 2], rgy = m.raw[2][r][col / 2];
      Step v = step_of(low(rdt) + bias.x, SOFTPLUS), w = step_of(high(rdt) + bias.y, SOFTPLUS);
      float2 z = {low(rgy), high(rgy)};
      if (start + r >= limit) v.size = v.slope = z.x = 0.f;
      if (start + r >= limit2) w.size = w.slope = z.y = 0.f;
      float2 drive = {v.size * low(ru), w.size * high(ru)};
      if constexpr (C == 1) { float4 q = {v.size, drive.x, w.size, drive.y}; *(float4*)&m.x[r][col * 2] = q; }
      else { int at = col / C * 2 * C + col % C; float2 q = {v.size, w.size}; *(float2*)&m.x[r][at] = q; *(float2*)&m.x[r][at + C] = drive; }
      float2 slope = {v.slope, w.slope};
      *(float2*)&m.slope[r][col] = slope;
      *(float2*)&m.gy[r][col] = z;
      m.u[r][col / 2] = ru;
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
      int at = tid + j * F::THREADS, e = at % HALF, t = e * 2 / N, n = e * 2 % N;
      if (2 * HALF % F::THREADS && at >= 2 * HALF) continue;
      Pair both = (&m.raw_bc[at >= HALF][0][0])[e];
      float2 v = {low(both), high(both)};
#pragma unroll
      for (int q = 0; q < COPIES; q++) {  // state n stands at n ^ order
        int o = order_of<S, COPIES>(q);
        float2 z = v;
        if (o & 1) { z.x = v.y; z.y = v.x; }
        *(float2*)((at >= HALF ? &m.Cm[t][q][0] : &m.B[t][q][0]) + (n ^ (o & ~1))) = z;
      }
    }
  };
  struct Steps { float v[2 * C]; };
  auto advance = [&](float (*h)[S], int t) {
    Steps x = *(Steps*)&m.x[t][ch * 2];
    float keep = RESTART ? m.keep[t] : 1.f;
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int s = 0; s < S; s++) {
        float a = ex2(x.v[c] * A2[c][s]);
        if (RESTART) a *= keep;
        h[c][s] = a * h[c][s] + x.v[C + c] * m.B[t][copy_of][sl * S + s];
      }
  };
  auto adjoint = [&](float (*before)[S], float (*after)[S], int t) {
    float v[S], y[S], w[2 * C], keep = RESTART ? m.keep[t] : 1.f;
#pragma unroll
    for (int s = 0; s < S; s++) v[s] = y[s] = 0.f;
    Steps x = *(Steps*)&m.x[t][ch * 2];
#pragma unroll
    for (int c = 0; c < C; c++) {
      float gyt = m.gy[t][ch + c], through_B = 0.f, through_A = 0.f;
#pragma unroll
      for (int s = 0; s < S; s++) {
        float G = g[c][s] + m.Cm[t][copy_of][sl * S + s] * gyt;
        y[s] += after[c][s] * gyt;
        v[s] += G * x.v[C + c];
        through_B += G * m.B[t][copy_of][sl * S + s];
        float kept = G * ex2(x.v[c] * A2[c][s]);
        if (RESTART) kept *= keep;
        float decay = kept * before[c][s];
        through_A += decay * A2[c][s];
        dA[c][s] += decay * x.v[c];
        g[c][s] = kept;
      }
      w[c] = through_B;
      w[C + c] = through_A;
    }
    int bit = SL;
#pragma unroll
    for (int half = S / 2; half >= S / COPIES && half > 0; half /= 2, bit *= 2)
#pragma unroll
      for (int s = 0; s < half; s++) { v[s] += swap(v[s + half], bit); y[s] += swap(y[s + half], bit); }
    constexpr int REST = 32 / (SL * COPIES);  // channel lanes left: dB on those with the next bit clear, dC on the others
#pragma unroll
    for (int s = 0; s < S / COPIES; s++) {
      float both[2] = {v[s], y[s]};
      Fold<2, REST, SL * COPIES>::run(both, lane);
      float* to = &m.sums[t][warp][sl * S + (s ^ perm)];
      if (REST > 1) to[lane & (SL * COPIES) ? N : 0] = both[0];
      else { to[0] = both[0]; to[N] = both[1]; }
    }
    Fold<2 * C, SL, 1>::run(w, lane);
    constexpr int LEFT = most(1, 2 * C / SL);
    int f = folded<2 * C, SL, 1>(lane);
#pragma unroll
    for (int r = 0; r < LEFT; r++) (f + r < C ? m.through_B : m.through_A)[t][ch + (f + r) % C] = w[r];
  };
  auto flush = [&](int start) {
    float2 D = *(float2*)&m.constant[tid].z;
    du.at = m.out[tid].du;
    ddt.at = m.out[tid].ddt;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      int r = row + j * HOP;
      if (!rows_fit || start + r >= limit) continue;
      float2 tb = *(float2*)&m.through_B[r][col], ta = *(float2*)&m.through_A[r][col], x;
      if constexpr (C == 1) { x.x = m.x[r][col * 2]; x.y = m.x[r][col * 2 + 2]; }
      else x = *(float2*)&m.x[r][col / C * 2 * C + col % C];
      Pair ru = m.u[r][col / 2];
      float2 w = {low(ru), high(ru)}, z = *(float2*)&m.gy[r][col], slope = *(float2*)&m.slope[r][col];
      float e0 = (ta.x * LN2 + tb.x * w.x) * slope.x, e1 = (ta.y * LN2 + tb.y * w.y) * slope.y;
      dD.x += z.x * w.x;
      dD.y += z.y * w.y;
      dbias.x += e0;
      dbias.y += e1;
      int t = ORDERS ? m.place[j][tid] : start + r;
      du.store(t, x.x * tb.x + D.x * z.x, x.y * tb.y + D.y * z.y, FULL);
      ddt.store(BY_STEP ? start + r : t, e0, e1, FULL);
    }
#pragma unroll
    for (int j = 0; j < SUMS; j++) {
      int e = (tid + j * F::THREADS) * 2, t = e / (2 * N), n = e % N;
      if (T * N % F::THREADS && e >= T * 2 * N) continue;
      float2 sum = *(float2*)&m.sums[t][0][e % (2 * N)];
#pragma unroll
      for (int w = 1; w < W; w++) { float2 o = *(float2*)&m.sums[t][w][e % (2 * N)]; sum.x += o.x; sum.y += o.y; }
      if (start + t >= end || (N != NS && n >= NS)) continue;
      float* to = (e % (2 * N) < N ? p.dB : p.dC) + part_at + (i64)(ORDERS && !BY_STEP ? m.token[t] : start + t) * NS + n;
      if (NS % 2 == 0) { *(float2*)to = sum; continue; }
      to[0] = sum.x;
      if (n + 1 < NS) to[1] = sum.y;
    }
  };
  int start = begin + (end - begin - 1) / T * T;
  tokens(start); fetch(start); stage(start); SYNC();
  for (; start >= begin; start -= T) {
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
      for (int c = 0; c < C; c++) h0[c][s] = m.mark[s * C + c][tid];
    fetch(start - T);
#pragma unroll 1
    for (int part = T / P - 1; part >= 0; part--) {
      float h[P + 1][C][S];
#pragma unroll
      for (int c = 0; c < C; c++)
#pragma unroll
        for (int s = 0; s < S; s++) h[0][c][s] = h0[c][s];
#pragma unroll 1
      for (int q = 0; q < part; q++)
#pragma unroll
        for (int i = 0; i < P; i++) advance(h[0], q * P + i);
#pragma unroll
      for (int i = 0; i < P; i++) {
#pragma unroll
        for (int c = 0; c < C; c++)
#pragma unroll
          for (int s = 0; s < S; s++) h[i + 1][c][s] = h[i][c][s];
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
  const i64 once = (i64)bz * groups + bx;
#pragma unroll
  for (int c = 0; c < C; c++)
#pragma unroll
    for (int s = 0; s < S; s++)
      if (on(c, s)) {
        p.dA[once * per_mark + entry(c, s)] = dA[c][s];
        if (bz == 0) p.last[bx * per_mark + entry(c, s)] = g[c][s];
      }
  float4* pool = (float4*)&m;  // rows of threads summed
  float4 mine = {dD.x, dD.y, dbias.x, dbias.y};
  pool[tid] = mine;
  SYNC();
  if (tid >= F::ROW) return;
  for (int r = 1; r < HOP; r++) { float4 o = pool[tid + r * F::ROW]; mine.x += o.x; mine.y += o.y; mine.z += o.z; mine.w += o.w; }
  if (limit > 0 && p.dD) p.dD[once * ld + dc] = mine.x;
  if (limit2 > 0 && p.dD) p.dD[once * ld + dc + 1] = mine.y;
  if (limit > 0 && p.dbias) p.dbias[once * ld + dc] = mine.z;
  if (limit2 > 0 && p.dbias) p.dbias[once * ld + dc + 1] = mine.w;
}
