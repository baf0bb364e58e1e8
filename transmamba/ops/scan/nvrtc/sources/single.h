// One state per channel, as in VMamba: a warp walks along one direction or two, a lane has neighbouring channels, and a
// block has all directions, so that it can sum them. Nothing is shared between lanes but what a step has for all
// channels: its token, B and C, which the lanes read for 32 steps at a time. Step sizes are kept in units of ln 2.
struct alignas(16) Entry {  // of the backward; B in units of ln 2
  int token;
  float B, C, keep;
  static DEV Entry of(int token, Element B, Element C, float keep) { return {token, widen(B) * LN2, widen(C), keep}; }
};
// what the lanes know of the steps of two blocks of 32, and the tokens of the next block but one
template <int K, class E> struct RingShared {
  E ring[K][2 * 32 + 1];  // an odd number, so that lanes of two directions do not meet in a bank
  int looked[K][32];
};

// the entries of blocks of 32 steps of a direction, read two blocks ahead along `sign`; the ring holds a block and the next
template <class E> struct Ring {
  E* ring;
  int* looked;
  const int* order;
  const u8* restart;
  char *B, *C;
  u32 B_token, C_token;  // bytes
  int begin, count, lane, sign, token;
  Element rB, rC;  // as they are in memory: whoever converts them waits for the load
  u8 fresh;        // whether the state restarts
  DEV Ring() {}
  template <class Shared>
  DEV Ring(const Arguments& p, Shared& m, const Tensor& of_B, const Tensor& of_C, int slot, int b, int k, int begin_, int count_, int lane_, int sign_) {
    ring = m.ring[slot]; looked = &m.looked[slot][lane_];
    begin = begin_; count = count_; lane = lane_; sign = sign_;
    order = ORDERS ? p.orders + (i64)k * p.L : 0;
    restart = RESTART ? p.restart + ((i64)b * p.K + k) * p.L : 0;
    B = settled((char*)of_B.at + (b * of_B.batch + k * of_B.direction) * sizeof(Element));
    C = settled((char*)of_C.at + (b * of_C.batch + k * of_C.direction) * sizeof(Element));
    B_token = (u32)of_B.token * (u32)sizeof(Element);
    C_token = (u32)of_C.token * (u32)sizeof(Element);
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
    ring[(block & 1) * 32 + lane] = E::of(token, rB, rC, RESTART && fresh ? 0.f : 1.f);
    SYNC_WARP();
  }
  DEV void start(int block) {
    look(block); landed(); read(block); put(block);
    look(block + sign); landed(); read(block + sign);
    look(block + 2 * sign);
  }
  // to be called where `block` begins, when the last `look` has landed
  DEV void advance(int block) {
    put(block + sign);
    read(block + 2 * sign);
    look(block + 3 * sign);
  }
  // the entries of a chunk
  DEV const E* at(int i) const { return &ring[i & 63]; }
};

struct Single { float size, slope; };  // step size in units of ln 2, derivative by the raw one in natural units over ln 2
// x is the raw step size with its bias, times log2(e)
template <bool SLOPE> DEV Single single_step(float x) {
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

// what K directions add to a token that a block of C channels sums: float32 (b, blocks, l, k, C), so that all
// directions of a token lie side by side
template <int K, int C> DEV char* parts_of(const Tensor& parts, int L, int b, int by, int blocks, int column) {
  return settled((char*)parts.at + (((i64)b * blocks + by) * L * K * C + column) * (int)sizeof(float));
}
// four neighbouring channels of a row
struct alignas(2 * sizeof(Pair)) Pairs { Pair one, two; };
struct FourRows {
  Rows one, two;
  bool on, on2;
  DEV FourRows(const Tensor& x, int b, int k, int d, int channels, bool full = false)
      : one(x, b, k, d, channels, full), two(x, b, k, d + 2, channels, full), on(d < channels), on2(d + 2 < channels) {}
  DEV Pairs load(int t) const {
    if (WIDE) return *(const Pairs*)one.row(t);
    return {one.load(t), two.load(t)};
  }
  DEV void store(int t, float4 x, bool full) const {
    if (WIDE && !full) {
      Pairs v = {pack(x.x, x.y), pack(x.z, x.w)};
      if (on) *(Pairs*)one.row(t) = v;
      return;
    }
    if (on) one.store(t, x.x, x.y, full);
    if (on2) two.store(t, x.z, x.w, full);
  }
};
// four channels of a vector of constants or states, zero where there are none
DEV float4 four_of(const float* x, i64 at, int d, int channels) {
  float2 one = constants(x, at, d, channels), two = constants(x, at, d + 2, channels);
  return float4{one.x, one.y, two.x, two.y};
}
DEV float4 scaled(float4 x, float by) { return float4{x.x * by, x.y * by, x.z * by, x.w * by}; }

// the sum over K directions of what the warps of this block have written, in the order of the directions; and
// (sum of D) * u if there is D. All W warps take part; a lane has four of C channels of a token, and the next lanes others.
template <int K, int W, int C>
DEV void sum_directions(const Arguments& p, const Tensor& parts, bool skip, int b, int by, int blocks, int tid) {
  constexpr int LANES = C / 4, HOP = 32 * W / LANES, TOKEN = K * C * sizeof(float);
  const int ld = p.channels, column = tid % LANES * 4, d = by * C + column;
  float4 D = {0.f, 0.f, 0.f, 0.f};
  for (int k = 0; skip && k < K; k++) {
    float4 x = four_of(p.D, k * p.D_direction, d, ld);
    D.x += x.x; D.y += x.y; D.z += x.z; D.w += x.w;
  }
  SYNC();
  const FourRows to(p.sum, b, 0, d, ld), u(p.u, b, 0, d, ld);
  const char* from = parts_of<K, C>(parts, p.L, b, by, blocks, column);
  // as many tokens at a time as are read before the first is written, since no load moves above a store
  constexpr int MANY = 8;
  auto add = [&](int first, int tokens) {
    float4 x[MANY][K];
    Pairs y[MANY];
    const char* at = from + (i64)first * TOKEN;
#pragma unroll
    for (int i = 0; i < MANY; i++) {
      if (i >= tokens) continue;
#pragma unroll
      for (int k = 0; k < K; k++) x[i][k] = *(const float4*)(at + i * HOP * TOKEN + k * C * sizeof(float));
      if (skip) y[i] = u.load(first + i * HOP);
    }
#pragma unroll
    for (int i = 0; i < MANY; i++) {
      if (i >= tokens) continue;
      float4 total = x[i][0];
#pragma unroll
      for (int k = 1; k < K; k++) { total.x += x[i][k].x; total.y += x[i][k].y; total.z += x[i][k].z; total.w += x[i][k].w; }
      if (skip) {
        total.x += D.x * low(y[i].one); total.y += D.y * high(y[i].one);
        total.z += D.z * low(y[i].two); total.w += D.w * high(y[i].two);
      }
      to.store(first + i * HOP, total, false);
    }
  };
  int t = tid / LANES;
  for (; t + (MANY - 1) * HOP < p.L; t += MANY * HOP) add(t, MANY);
  for (; t < p.L; t += HOP) add(t, 1);
}
