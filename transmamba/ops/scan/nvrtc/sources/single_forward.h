// The forward scan with one state, and what a span of time adds and forgets. A lane has four channels of one direction;
// a warp takes two directions, which bit 1 of a lane tells apart, or one where there is but one.
// Of halves, tensor cores widen the activations, and scale them as they do: a lane holds the same channels in the left
// factor and in the product, the right factor is diagonal, and all products are exact in float32. What is not finite
// in one channel thus spoils the eight channels around it, at the same token.
// The states are kept in units of ln 2, as the step sizes are.
struct alignas(16) ForwardEntry {
  int token;
#if DTYPE
  u32 drive;  // B twice, or of the adjoint C
  static DEV u32 drive_of(Element x) { return x * 0x10001u; }
#else
  float drive;
  static DEV float drive_of(Element x) { return x; }
#endif
  float C, keep;  // C in units of ln 2
  static DEV ForwardEntry of(int token, Element B, Element C, float keep) {
    return {token, drive_of(B), widen(C) * LN2, keep};
  }
};
// K directions of a block
template <int K> struct SingleForwardShape {
  static constexpr int HALVES = K > 1 ? 2 : 1, W = (K + HALVES - 1) / HALVES, LANES = 32 / HALVES, CB = 4 * LANES;
  static constexpr int STAGES = DTYPE ? 4 : 2;  // chunks in shared memory: one is computed, the others are under way
};
template <int K, class F = SingleForwardShape<K>> struct SingleForwardShared : RingShared<F::W * F::HALVES, ForwardEntry> {
  // rows of one direction, and 64 bytes by which the banks of two differ
  struct alignas(16) Rows { Pair at[CHUNK][F::CB / 2]; char apart[64]; };
  Rows u[F::W][F::STAGES][F::HALVES], dt[F::W][F::STAGES][F::HALVES];
};

// the activations of a lane's four channels: times log2(e) plus a bias, and times a number that all channels share
struct Widen {
#if DTYPE
  u32 mask, scale[3];  // of a lane: where it has the diagonal, and there the parts of log2(e)
  DEV Widen(int lane) {
    const int row = lane >> 2, column = (lane & 3) * 2;
    mask = row == column ? 0xffffu : row == column + 1 ? 0xffff0000u : 0u;
    float rest = LOG2E;
#pragma unroll
    for (int i = 0; i < 3; i++) {
      u32 part = pack(rest, rest);
      scale[i] = part & mask;
      rest -= low(part);
    }
  }
  DEV float4 sizes(Pairs x, float4 bias) const {
    return product8(x.one, x.two, scale[0], product8(x.one, x.two, scale[1], product8(x.one, x.two, scale[2], bias)));
  }
  DEV float4 driven(Pairs x, u32 by) const { return product8(x.one, x.two, by & mask, float4{0.f, 0.f, 0.f, 0.f}); }
#else
  DEV Widen(int lane) {}
  DEV float4 sizes(Pairs x, float4 bias) const {
    return float4{x.one.x * LOG2E + bias.x, x.one.y * LOG2E + bias.y, x.two.x * LOG2E + bias.z, x.two.y * LOG2E + bias.w};
  }
  DEV float4 driven(Pairs x, float by) const { return float4{x.one.x * by, x.one.y * by, x.two.x * by, x.two.y * by}; }
#endif
};

// grid: b * groups of K directions, blocks of CB channels, spans. Of the W warps of a block, those beyond F::W only sum.
template <Mode MODE, int K, int W>
DEV void single_forward_block(const Arguments& p, SingleForwardShared<K>& m, int bx, int by, int bz, int blocks, int tid) {
  using F = SingleForwardShape<K>;
  constexpr int P = CHUNK, STAGES = F::STAGES, AHEAD = STAGES - 1, HALVES = F::HALVES, CB = F::CB;
  const int groups = (p.K + K - 1) / K, b = bx / groups, lane = tid & 31, warp = tid >> 5, ld = p.channels;
  // lanes past the last channel or direction take the last ones too, and write the same
  const int first_k = bx % groups * K + warp * HALVES, half = HALVES > 1 ? lane >> 1 & 1 : 0;
  const int k = least(first_k + half, p.K - 1), group = HALVES > 1 ? lane >> 2 << 1 | (lane & 1) : lane;
  const int d = least(by * CB + group * 4, (ld - 1) / 4 * 4), place = d - by * CB;
  const int span = bz + p.first, begin = span * p.span, count = least(p.span, p.L - begin);
  if (warp < F::W && first_k < p.K) {
    const i64 bk = (i64)b * p.K + k, entry = (bk * p.spans + span) * ld;
    // where rows may be read by 16 bytes, the lanes share the rows of a chunk: half of them take one direction
    constexpr int PIECE = 16 / sizeof(Element), PIECES = CB / PIECE, AT_ONCE = F::LANES / PIECES, TURNS = P / AT_ONCE;
    const int of_half = lane / F::LANES, of_chunk = lane % F::LANES / PIECES, column = lane % PIECES * PIECE;
    const int copied_k = WIDE ? least(first_k + of_half, p.K - 1) : k, copied_d = WIDE ? by * CB + column : d;
    const FourRows u(MODE == ADJOINT ? p.y : p.u, b, copied_k, copied_d, ld), dt(p.dt, b, copied_k, copied_d, ld);
    const FourRows y(p.y, b, k, d, ld, FULL);
    char* part = parts_of<K, CB>(p.y, p.L, b, by, blocks, k % K * CB + place);
    const float4 A = four_of(p.A, k * p.A_direction, d, ld), D = four_of(MERGED ? 0 : p.D, k * p.D_direction, d, ld);
    const float4 bias = scaled(four_of(p.bias, k * p.bias_direction, d, ld), LOG2E);
    float4 h = scaled(four_of(MODE == SCAN ? p.enter : 0, entry, d, ld), LOG2E), total = {0.f, 0.f, 0.f, 0.f};
    float intact = 1.f;
    auto write = [&](float* to, float4 x) {
      if (WIDE) { *(float4*)(to + d) = x; return; }
      const float v[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (d + c < ld) to[d + c] = v[c];
    };
    auto decays = [&](float4 x) { return float4{ex2(x.x * A.x), ex2(x.y * A.y), ex2(x.z * A.z), ex2(x.w * A.w)}; };
    auto state = [&] { return MODE == ADJOINT ? h : scaled(h, LN2); };
    float* mark = p.saved + (bk * ((p.L + P - 1) / P) + begin / P) * ld;
    const int last_block = (count - 1) / 32;
    Ring<ForwardEntry> rings[HALVES];
#pragma unroll
    for (int q = 0; q < HALVES; q++)
      rings[q] = Ring<ForwardEntry>(
          p, m, MODE == ADJOINT ? p.C : p.B, p.C, warp * HALVES + q, b, least(first_k + q, p.K - 1), begin, count, lane,
          MODE == ADJOINT ? -1 : 1);
    auto start = [&](int block) {
#pragma unroll
      for (int q = 0; q < HALVES; q++) rings[q].start(block);
    };
    auto advance = [&](int block) {
#pragma unroll
      for (int q = 0; q < HALVES; q++) rings[q].advance(block);
    };
    const ForwardEntry *const own = m.ring[warp * HALVES + half], *const copied = m.ring[warp * HALVES + of_half];
    const Widen widened(lane);
    auto step = [&](int i, int token) { return BY_STEP ? begin + least(i, count - 1) : token; };
    auto fetch = [&](int s, int i) {
      if (WIDE) {
        int token[TURNS];
#pragma unroll
        for (int j = 0; j < TURNS; j++) token[j] = copied[(i + j * AT_ONCE & 63) + of_chunk].token;
        char* const to_u = (char*)&m.u[warp][s][of_half] + lane % F::LANES * 16;
        char* const to_dt = (char*)&m.dt[warp][s][of_half] + lane % F::LANES * 16;
#pragma unroll
        for (int j = 0; j < TURNS; j++) {
          copy<16>(to_u + j * F::LANES * 16, u.one.row(token[j]));
          copy<16>(to_dt + j * F::LANES * 16, dt.one.row(step(i + j * AT_ONCE + of_chunk, token[j])));
        }
      } else {
#pragma unroll
        for (int j = 0; j < P; j++) {
          const int token = own[i + j & 63].token, t = step(i + j, token);
          Pair* const to_u = &m.u[warp][s][half].at[j][place / 2];
          Pair* const to_dt = &m.dt[warp][s][half].at[j][place / 2];
          u.one.fetch(to_u, token); u.two.fetch(to_u + 1, token);
          dt.one.fetch(to_dt, t); dt.two.fetch(to_dt + 1, t);
        }
      }
      commit();
    };
    struct Loaded { Pairs u, dt; ForwardEntry e; };
    constexpr int LOADED = P / 2;
    // steps that a lane reads before copies into other rows begin, which the compiler could not tell from these
    auto load = [&](Loaded* to, int s, int i) {
#pragma unroll
      for (int j = 0; j < LOADED; j++) {
        to[j].u = *(const Pairs*)&m.u[warp][s][half].at[i % P + j][place / 2];
        to[j].dt = *(const Pairs*)&m.dt[warp][s][half].at[i % P + j][place / 2];
        to[j].e = own[(i & 63) + j];
      }
    };
    auto compute = [&](const Loaded* steps, int i, bool tail) {
#pragma unroll
      for (int jj = 0; jj < LOADED; jj++) {
        const int j = MODE == ADJOINT ? LOADED - 1 - jj : jj;
        if (tail && i + j >= count) continue;
        const ForwardEntry e = steps[j].e;
        const Pairs now = steps[j].u;
        const float4 x = widened.sizes(steps[j].dt, bias), in = widened.driven(now, e.drive);
        float4 v = {single_step<false>(x.x).size, single_step<false>(x.y).size, single_step<false>(x.z).size,
                    single_step<false>(x.w).size};
        float4 a = decays(v);
        if (RESTART) { a = scaled(a, e.keep); intact *= e.keep; }
        if (MODE == ADJOINT) {
          h.x = a.x * (h.x + in.x); h.y = a.y * (h.y + in.y); h.z = a.z * (h.z + in.z); h.w = a.w * (h.w + in.w);
        } else {
          h.x = a.x * h.x + v.x * in.x; h.y = a.y * h.y + v.y * in.y;
          h.z = a.z * h.z + v.z * in.z; h.w = a.w * h.w + v.w * in.w;
        }
        if (MODE != SCAN) { total.x += v.x; total.y += v.y; total.z += v.z; total.w += v.w; continue; }
        float4 out = scaled(h, e.C);
        if (MERGED) { *(float4*)(part + wide(e.token, K * CB * sizeof(float))) = out; continue; }
        out.x += D.x * low(now.one); out.y += D.y * high(now.one);
        out.z += D.z * low(now.two); out.w += D.w * high(now.two);
        y.store(e.token, out, FULL);
      }
    };
    if (MODE != ADJOINT) {
      start(0);
#pragma unroll
      for (int c = 0; c < AHEAD; c++) fetch(c, c * P);
      landed();
      auto turn = [&](int s, int i, bool tail) {
        landed_but<AHEAD - 1>();
        SYNC_WARP();  // whatever the others copied is there, and they are done with the chunk before
        Loaded steps[LOADED];
        load(steps, s, i);
        fetch((s + AHEAD) % STAGES, i + AHEAD * P);
        if (SAVE && MODE == SCAN) write(mark, state());
        mark += ld;
        compute(steps, i, tail);
        load(steps, s, i + LOADED);
        compute(steps, i + LOADED, tail);
      };
      int i = 0;
      for (; i + 32 <= count; i += 32) {
        advance(i / 32);
#pragma unroll
        for (int c = 0; c < 32 / P; c++) turn(c % STAGES, i + c * P, false);
      }
      for (int c = 0; i < count; i += P, c++) {
        if (c == 0) advance(i / 32);
        turn(c % STAGES, i, true);
      }
    } else {
      start(last_block);
      for (int i = (count - 1) / P * P, block = last_block + 1; i >= 0; i -= P) {
        landed();
        if (i / 32 < block) advance(block = i / 32);
        SYNC_WARP();
        fetch(0, i);
        landed();
        SYNC_WARP();
        Loaded steps[LOADED];
        load(steps, 0, i + LOADED);
        compute(steps, i + LOADED, i + P > count);
        load(steps, 0, i);
        compute(steps, i, i + P > count);
      }
    }
    if (MODE == SCAN && span == p.spans - 1) write(p.last + bk * ld, state());
    if (MODE != SCAN) {
      write(p.last + entry, state());
      write(p.saved + entry, scaled(decays(total), intact));
    }
  }
  if (MODE == SCAN && MERGED) sum_directions<K, W, CB>(p, p.y, true, b, by, blocks, tid);
}
