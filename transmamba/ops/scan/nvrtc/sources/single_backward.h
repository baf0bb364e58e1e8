// The backward scan with one state.
struct alignas(16) BackwardStep { Pair u, dt, gy; };
// what a lane copies for a step of this chunk and the next, and reads itself: registers would have to wait for the
// loads of both chunks, since ptxas counts them together
template <int W> struct SingleBackwardShared : RingShared<W, Entry> {
  float2 mark[W][2][32];  // the state before a chunk
  BackwardStep steps[W][2][CHUNK][32];
};

// as backward_block: du, ddt (b, k, l, d); dB, dC (blocks, b, k, l); dA, dD, dbias (spans, b, k, d)
template <int W> DEV void single_backward_block(const Arguments& p, SingleBackwardShared<W>& m, int bx, int by, int bz, int batches, int blocks, int tid) {
  constexpr int P = CHUNK;
  const int groups = (p.K + W - 1) / W, b = bx / groups, lane = tid & 31, warp = tid >> 5, k = bx % groups * W + warp;
  const int ld = p.channels, d = least(by * 64 + lane * 2, (ld - 1) / 2 * 2), begin = bz * p.span, count = least(p.span, p.L - begin);
  if (k < p.K) {
    const i64 bk = (i64)b * p.K + k, once = ((i64)bz * batches / groups * p.K + bk) * ld + d;
    const Rows u(p.u, b, k, d, ld), dt(p.dt, b, k, d, ld), gy(p.y, b, k, d, ld), du(p.du, b, k, d, ld, FULL), ddt(p.ddt, b, k, d, ld, FULL);
    const float2 A = constants(p.A, k * p.A_direction, d, ld), D = constants(p.D, k * p.D_direction, d, ld);
    float2 bias = constants(p.bias, k * p.bias_direction, d, ld), g = {0.f, 0.f}, dA = g, dD = g, dbias = g;
    bias.x *= LOG2E; bias.y *= LOG2E;
    if (p.enter) g = constants(p.enter, (bk * p.spans + bz) * ld, d, ld);
    char* part_of_u = parts_of<W, 64>(p.du, p.L, b, by, blocks, (warp - by) * 64 + d);
    const bool on = by * 64 + lane * 2 < ld, on2 = on && d + 1 < ld;  // whether sums over channels count them
    const float* mark = p.saved + (bk * ((p.L + P - 1) / P) + begin / P) * ld;
    const i64 part = (((i64)by * (batches / groups) + b) * p.K + k) * p.L;
    const int last_block = (count - 1) / 32;
    Ring<Entry> ring(p, m, p.B, p.C, warp, b, k, begin, count, lane, -1);
    struct Loaded { BackwardStep (*at)[32]; float2* h; };
    const Loaded even = {m.steps[warp][0], &m.mark[warp][0][lane]}, odd = {m.steps[warp][1], &m.mark[warp][1][lane]};
    auto fetch = [&](const Loaded& to, int i) {
      i = most(i, 0);
      const Entry* e = ring.at(i);
      int tokens[P];
#pragma unroll
      for (int j = 0; j < P; j++) tokens[j] = e[j].token;
      if (PAIRED) copy<sizeof(float2)>(to.h, mark + (i64)(i / P) * ld + d);
      else *to.h = constants(mark, (i64)(i / P) * ld, d, ld);
#pragma unroll
      for (int j = 0; j < P; j++) {
        BackwardStep& step = to.at[j][lane];
        u.fetch(&step.u, tokens[j]);
        dt.fetch(&step.dt, BY_STEP ? begin + least(i + j, count - 1) : tokens[j]);
        gy.fetch(&step.gy, tokens[j]);
      }
      commit();
    };
    auto chunk = [&](const Loaded& x, int i, bool tail) {
      BackwardStep steps[P];
      float2 h[P + 1], a[P];
      Single v[P], w[P];
      float sums[2 * P];
      const Entry* entries = ring.at(i);
      h[0] = *x.h;
#pragma unroll
      for (int j = 0; j < P; j++) {
        Entry e = entries[j];
        const BackwardStep& step = steps[j] = x.at[j][lane];
        v[j] = single_step<true>(low(step.dt) * LOG2E + bias.x);
        w[j] = single_step<true>(high(step.dt) * LOG2E + bias.y);
        if (tail && i + j >= count) v[j].size = v[j].slope = w[j].size = w[j].slope = 0.f;
        a[j].x = ex2(v[j].size * A.x);
        a[j].y = ex2(w[j].size * A.y);
        if (RESTART && !(tail && i + j >= count)) { a[j].x *= e.keep; a[j].y *= e.keep; }
        h[j + 1].x = a[j].x * h[j].x + v[j].size * low(step.u) * e.B;
        h[j + 1].y = a[j].y * h[j].y + w[j].size * high(step.u) * e.B;
      }
#pragma unroll
      for (int j = P - 1; j >= 0; j--) {
        Entry e = entries[j];
        bool absent = tail && i + j >= count;
        const BackwardStep& step = steps[j];
        float2 z = {absent ? 0.f : low(step.gy), absent ? 0.f : high(step.gy)}, y = {low(step.u), high(step.u)};
        g.x += e.C * z.x;
        g.y += e.C * z.y;
        float2 of_B = {g.x * v[j].size * y.x, g.y * w[j].size * y.y}, of_C = {h[j + 1].x * z.x, h[j + 1].y * z.y};
        sums[j] = PAIRED ? (on ? of_B.x + of_B.y : 0.f) : (on ? of_B.x : 0.f) + (on2 ? of_B.y : 0.f);
        sums[P + j] = PAIRED ? (on ? of_C.x + of_C.y : 0.f) : (on ? of_C.x : 0.f) + (on2 ? of_C.y : 0.f);
        float2 through = {g.x * e.B, g.y * e.B};
        float2 out = {v[j].size * through.x + D.x * z.x, w[j].size * through.y + D.y * z.y};
        g.x *= a[j].x;
        g.y *= a[j].y;
        float2 decay = {g.x * h[j].x, g.y * h[j].y};
        float2 raw = {(through.x * y.x + decay.x * A.x * LN2) * v[j].slope, (through.y * y.y + decay.y * A.y * LN2) * w[j].slope};
        dA.x += decay.x * v[j].size;
        dA.y += decay.y * w[j].size;
        dD.x += z.x * y.x;
        dD.y += z.y * y.y;
        dbias.x += raw.x;
        dbias.y += raw.y;
        if (absent) continue;
        if (MERGED) *(float2*)(part_of_u + wide(e.token, W * 64 * sizeof(float))) = out;
        else du.store(e.token, out.x, out.y, FULL);
        ddt.store(BY_STEP ? begin + i + j : e.token, raw.x, raw.y, FULL);
      }
      Fold<2 * P, 32, 1>::run(sums, lane);
      int f = folded<2 * P, 32, 1>(lane), j = i + f % P;
      if (lane < 16 && j < count) {
        i64 at = part + (BY_STEP ? begin + j : entries[f % P].token);
        if (f < P) p.dB[at] = sums[0] * LN2;
        else p.dC[at] = sums[0];
      }
    };
    ring.start(last_block);
    int i = (count - 1) / P * P, block = last_block + 1;
    auto turn = [&](const Loaded& x, const Loaded& ahead, bool tail) {
      if (i / 32 < block) { landed(); ring.advance(block = i / 32); }
      fetch(ahead, i - P);
      landed_but<1>();
      chunk(x, i, tail);
      i -= P;
    };
    fetch(even, i);
    turn(even, odd, true);
    for (; i >= P;) {
      turn(odd, even, false);
      turn(even, odd, false);
    }
    if (i >= 0) turn(odd, even, false);
    auto write = [&](float* to, float2 x) { if (to) to[0] = x.x; if (to && d + 1 < ld) to[1] = x.y; };
    dA.x *= LN2; dA.y *= LN2;
    write(p.dA + once, dA);
    write(p.dD ? p.dD + once : 0, dD);
    write(p.dbias ? p.dbias + once : 0, dbias);
    if (bz == 0) write(p.last + bk * ld + d, g);
  }
  if (MERGED) sum_directions<W, W, 64>(p, p.du, false, b, by, blocks, tid);
}
