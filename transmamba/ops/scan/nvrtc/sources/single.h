// One state per channel, as in VMamba: a warp walks along one direction, a lane has two neighbouring channels, and the
// warps of a block are directions, so that it can sum them. Nothing is shared between lanes but what a step has for all
// channels: its token, B and C, which the lanes read for 32 steps at a time. Step sizes are kept in units of ln 2.
struct alignas(16) Entry { int token; float B, C, keep; };  // B in units of ln 2
// what a lane copies for a step of this chunk and the next, and reads itself: registers would have to wait for the
// loads of both chunks, since ptxas counts them together
struct alignas(2 * sizeof(Pair)) ForwardStep { Pair u, dt; };
struct alignas(16) BackwardStep { Pair u, dt, gy; };
template <int W, class Step> struct SingleShared {
  Entry ring[W][2][32];
  int looked[W][32];      // of the ring, the tokens of the next block but one
  float2 mark[W][2][32];  // of the backward: the state before a chunk
  Step steps[W][2][CHUNK][32];
};

// the entries of blocks of 32 steps, read two blocks ahead along `sign`; a warp's ring holds a block and the next
struct Ring {
  Entry (*ring)[32];
  int* looked;
  const int* order;
  const u8* restart;
  char *B, *C;
  u32 B_token, C_token;  // bytes
  int begin, count, lane, sign, token;
  Element rB, rC;  // as they are in memory: whoever converts them waits for the load
  u8 fresh;        // whether the state restarts
  template <class Shared> DEV Ring(const Arguments& p, Shared& m, int warp, int b, int k, int begin_, int count_, int lane_, int sign_) {
    ring = m.ring[warp]; looked = &m.looked[warp][lane_];
    begin = begin_; count = count_; lane = lane_; sign = sign_;
    order = ORDERS ? p.orders + (i64)k * p.L : 0;
    restart = RESTART ? p.restart + ((i64)b * p.K + k) * p.L : 0;
    B = settled((char*)p.B.at + (b * p.B.batch + k * p.B.direction) * sizeof(Element));
    C = settled((char*)p.C.at + (b * p.C.batch + k * p.C.direction) * sizeof(Element));
    B_token = (u32)p.B.token * (u32)sizeof(Element);
    C_token = (u32)p.C.token * (u32)sizeof(Element);
  }
  DEV int time(int block) const { return begin + most(least(block * 32 + lane, count - 1), 0); }
  DEV void look(int block) { if (ORDERS) copy<sizeof(int)>(looked, order + time(block)); }
  DEV void read(int block) {
    int t = time(block);
    token = ORDERS ? *looked : t;
    int at = BY_STEP ? t : token;
    rB = *(const Element*)(B + wide(at, B_token));
    rC = *(const Element*)(C + wide(at, C_token));
    if (RESTART) fresh = restart[t];
  }
  DEV void put(int block) {
    SYNC_WARP();  // the others are done with the block that lay there
    Entry x = {token, widen(rB) * LN2, widen(rC), RESTART && fresh ? 0.f : 1.f};
    ring[block & 1][lane] = x;
    SYNC_WARP();
  }
  DEV void start(int block) {
    look(block); landed(); read(block); put(block);
    look(block + sign); landed(); read(block + sign);
    look(block + 2 * sign);
  }
  // to be called where `block` begins
  DEV void advance(int block) {
    landed();
    put(block + sign);
    read(block + 2 * sign);
    look(block + 3 * sign);
  }
  // the entries of a chunk
  DEV const Entry* at(int i) const { return &ring[i >> 5 & 1][i & 31]; }
};

struct Single { float size, slope; };  // step size in units of ln 2, derivative by the raw one in natural units over ln 2
template <bool SLOPE> DEV Single single_step(float raw, float bias2) {
  float x = raw * LOG2E + bias2;
  if (!SOFTPLUS) return {x, LOG2E};
  float e = ex2(-fabsf(x)), size = fmaxf(x, 0.f) + e * log1p_ratio(e, LOG2E);
  if (!SLOPE) return {size, 0.f};
  float r = rcp(1.f + e) * LOG2E;
  return {size, x >= 0.f ? r : e * r};
}

// two channels of a vector of constants, zero where there is none
DEV float2 constants(const float* x, i64 at, int d, int channels) {
  float2 r = {0.f, 0.f};
  if (x && d < channels) r.x = x[at + d];
  if (x && d + 1 < channels) r.y = x[at + d + 1];
  return r;
}

// the sum over the W directions of what the warps of this block have written, in their order; and (sum of D) * u if there is D
template <int W> DEV void sum_directions(const Arguments& p, const Tensor& parts, const Tensor& sum, bool skip, int b, int d, int tid) {
  const int warp = tid >> 5, ld = p.channels;
  float2 D = {0.f, 0.f};
  for (int k = 0; skip && k < p.K; k++) { float2 x = constants(p.D, k * p.D_direction, d, ld); D.x += x.x; D.y += x.y; }
  SYNC();
  const Rows to(sum, b, 0, d, ld), u(p.u, b, 0, d, ld);
  Rows from[W];
#pragma unroll
  for (int k = 0; k < W; k++) from[k] = Rows(parts, b, k, d, ld, FULL);
  // as many tokens at a time as are read before the first is written, since no load moves above a store
  constexpr int MANY = 16;
  auto part = [&](int t, int k) {
    if (FULL) return from[k].load_full(t);
    Pair x = from[k].load(t);
    return float2{low(x), high(x)};
  };
  auto add = [&](int first, int tokens) {
    float2 x[MANY][W];
    Pair y[MANY];
#pragma unroll
    for (int i = 0; i < MANY; i++) {
      if (i >= tokens) continue;
#pragma unroll
      for (int k = 0; k < W; k++) x[i][k] = part(first + i * W, k);
      if (skip) y[i] = u.load(first + i * W);
    }
#pragma unroll
    for (int i = 0; i < MANY; i++) {
      if (i >= tokens) continue;
      float2 total = x[i][0];
#pragma unroll
      for (int k = 1; k < W; k++) { total.x += x[i][k].x; total.y += x[i][k].y; }
      if (skip) { total.x += D.x * low(y[i]); total.y += D.y * high(y[i]); }
      to.store(first + i * W, total.x, total.y, false);
    }
  };
  int t = warp;
  for (; t + (MANY - 1) * W < p.L; t += MANY * W) add(t, MANY);
  for (; t < p.L; t += W) add(t, 1);
}

// grid: b * groups of W directions, blocks of 64 channels, spans
template <Mode MODE, int W> DEV void single_forward_block(const Arguments& p, SingleShared<W, ForwardStep>& m, int bx, int by, int bz, int tid) {
  constexpr int P = CHUNK;
  const int groups = (p.K + W - 1) / W, b = bx / groups, lane = tid & 31, warp = tid >> 5, k = bx % groups * W + warp;
  // lanes past the end take the last channels too, and write the same
  const int ld = p.channels, d = least(by * 64 + lane * 2, (ld - 1) / 2 * 2), span = bz + p.first, begin = span * p.span, count = least(p.span, p.L - begin);
  const int backwards = MODE == ADJOINT;
  if (k < p.K) {
    const i64 bk = (i64)b * p.K + k, entry = (bk * p.spans + span) * ld + d;
    const Rows u(MODE == ADJOINT ? p.y : p.u, b, k, d, ld), dt(p.dt, b, k, d, ld), y(p.y, b, k, d, ld, FULL);
    const float2 A = constants(p.A, k * p.A_direction, d, ld), D = constants(MERGED ? 0 : p.D, k * p.D_direction, d, ld);
    float2 bias = constants(p.bias, k * p.bias_direction, d, ld), h = {0.f, 0.f}, total = {0.f, 0.f};
    bias.x *= LOG2E; bias.y *= LOG2E;
    if (MODE == SCAN && p.enter) h = constants(p.enter, entry - d, d, ld);
    float intact = 1.f;
    auto write = [&](float* to, float2 x) {
      if (PAIRED) { *(float2*)to = x; return; }
      to[0] = x.x;
      if (d + 1 < ld) to[1] = x.y;
    };
    const bool saves = p.saved && MODE == SCAN;
    float* mark = p.saved + (bk * ((p.L + P - 1) / P) + begin / P) * ld + d;
    const int last_block = (count - 1) / 32, sign = backwards ? -1 : 1;
    Ring ring(p, m, warp, b, k, begin, count, lane, sign);
    struct Loaded { Entry e[P]; ForwardStep (*at)[32]; } even, odd;
    even.at = m.steps[warp][0]; odd.at = m.steps[warp][1];
    auto fetch = [&](Loaded& to, int i) {
      i = most(least(i, (count - 1) / P * P), 0);
      const Entry* e = ring.at(i);
#pragma unroll
      for (int j = 0; j < P; j++) to.e[j] = e[j];
#pragma unroll
      for (int j = 0; j < P; j++) {
        u.fetch(&to.at[j][lane].u, to.e[j].token);
        dt.fetch(&to.at[j][lane].dt, BY_STEP ? begin + least(i + j, count - 1) : to.e[j].token);
      }
      commit();
    };
    auto chunk = [&](Loaded& x, int i, bool tail) {
      if (saves) write(mark, h);
      mark += ld;
#pragma unroll
      for (int jj = 0; jj < P; jj++) {
        int j = backwards ? P - 1 - jj : jj;
        if (tail && i + j >= count) continue;
        const ForwardStep now = x.at[j][lane];
        float v = single_step<false>(low(now.dt), bias.x).size, w = single_step<false>(high(now.dt), bias.y).size;
        float a = ex2(v * A.x), c = ex2(w * A.y), drive = MODE == ADJOINT ? x.e[j].C : x.e[j].B;
        if (RESTART) { a *= x.e[j].keep; c *= x.e[j].keep; intact *= x.e[j].keep; }
        float in = low(now.u) * drive, jn = high(now.u) * drive;
        if (MODE == ADJOINT) { h.x = a * (h.x + in); h.y = c * (h.y + jn); }
        else { h.x = a * h.x + v * in; h.y = c * h.y + w * jn; }
        if (MODE != SCAN) { total.x += v; total.y += w; continue; }
        float2 out = {h.x * x.e[j].C, h.y * x.e[j].C};
        if (!MERGED) { out.x += D.x * low(now.u); out.y += D.y * high(now.u); }
        y.store(x.e[j].token, out.x, out.y, FULL);
      }
    };
    if (!backwards) {
      ring.start(0);
      fetch(even, 0);
      int i = 0;
      for (; i + 32 <= count; i += 32) {
        ring.advance(i / 32);
#pragma unroll
        for (int j = 0; j < 32; j += 2 * P) {
          fetch(odd, i + j + P);
          landed_but<1>();
          chunk(even, i + j, false);
          fetch(even, i + j + 2 * P);
          landed_but<1>();
          chunk(odd, i + j + P, false);
        }
      }
      for (; i < count; i += P) {
        if (i % 32 == 0) ring.advance(i / 32);
        fetch(even, i);
        landed_but<0>();
        chunk(even, i, true);
      }
    } else {
      ring.start(last_block);
      for (int i = (count - 1) / P * P, block = last_block + 1; i >= 0; i -= P) {
        if (i / 32 < block) ring.advance(block = i / 32);
        fetch(even, i);
        landed_but<0>();
        chunk(even, i, i + P > count);
      }
    }
    if (MODE == SCAN && span == p.spans - 1) write(p.last + bk * ld + d, h);
    if (MODE != SCAN) {
      float2 decay = {ex2(total.x * A.x) * intact, ex2(total.y * A.y) * intact};
      write(p.last + entry, h);
      write(p.saved + entry, decay);
    }
  }
  if (MODE == SCAN && MERGED) sum_directions<W>(p, p.y, p.sum, true, b, d, tid);
}

// as backward_block: du, ddt (b, k, l, d); dB, dC (blocks, b, k, l); dA, dD, dbias (spans, b, k, d)
template <int W> DEV void single_backward_block(const Arguments& p, SingleShared<W, BackwardStep>& m, int bx, int by, int bz, int batches, int tid) {
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
    const bool on = by * 64 + lane * 2 < ld, on2 = on && d + 1 < ld;  // whether sums over channels count them
    const float* mark = p.saved + (bk * ((p.L + P - 1) / P) + begin / P) * ld;
    const i64 part = (((i64)by * (batches / groups) + b) * p.K + k) * p.L;
    const int last_block = (count - 1) / 32;
    Ring ring(p, m, warp, b, k, begin, count, lane, -1);
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
        v[j] = single_step<true>(low(step.dt), bias.x);
        w[j] = single_step<true>(high(step.dt), bias.y);
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
        du.store(e.token, out.x, out.y, FULL);
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
      if (i / 32 < block) ring.advance(block = i / 32);
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
  if (MERGED) sum_directions<W>(p, p.du, p.sum, false, b, d, tid);
}
