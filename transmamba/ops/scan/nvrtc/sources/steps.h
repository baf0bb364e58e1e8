// What all scans share: arguments, rows of tensors, the step size, sums over lanes.
// Flags of a variant are -D constants on a GPU (SOFTPLUS, ORDERS, BY_STEP, RESTART, PAIRED, MERGED, FULL, ONE, WIDE, SAVE; see variants.py).

#if DTYPE == 0
typedef float Element;
typedef float2 Pair;
DEV float low(Pair x) { return x.x; }
DEV float high(Pair x) { return x.y; }
DEV Pair pack(float a, float b) { return {a, b}; }
DEV Pair join(Element a, Element b) { return {a, b}; }
DEV Element first(Pair x) { return x.x; }
DEV Element second(Pair x) { return x.y; }
#else
typedef u16 Element;
typedef u32 Pair;
DEV Pair join(Element a, Element b) { return a | (u32)b << 16; }
DEV Element first(Pair x) { return (u16)x; }
DEV Element second(Pair x) { return (u16)(x >> 16); }
#endif
DEV float widen(Element x) { return low(join(x, 0)); }
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
constexpr int CHUNK = 8;  // steps between two saved states

// strides of a (b, k, l, columns) tensor, in elements; zero along a direction that all share
struct Tensor { void* at; i64 batch, direction, token, column; };

struct Arguments {
  Tensor u, dt, B, C, y, du, ddt, sum;  // y is the output, in the backward its gradient; sum is y or du over directions
  const float *A, *D, *bias;       // (1|k, n, d), (1|k, d), (1|k, d); D and bias may be null
  const int* orders;               // (k, l)
  const u8* restart;               // (b, k, l): one where the state restarts before a step
  const float* enter;              // (b, k, spans, n, d): states before the spans, or adjoints after them; null is zero
  float *saved, *last, *dA, *dB, *dC, *dD, *dbias;
  i64 A_direction, D_direction, bias_direction;  // zero if all directions share one
  int K, L, channels, span, spans, first, flags; // first: the first span of this launch
};

// one row of a tensor per token, from the point of view of a thread that takes the columns `from` and `from + 1`
struct Rows {
  char* at;
  u32 token;  // bytes from one row to the next: times a token one instruction, and 64 bits wide
  i64 column;
  bool both;
  DEV Rows() {}
  DEV Rows(const Tensor& x, int b, int k, int from, int columns, bool full = false) {
    const int size = full ? sizeof(float) : sizeof(Element);
    from = from < columns ? from : 0;  // whoever is past the end reads what exists and is ignored
    column = PAIRED ? 1 : x.column;
    at = settled((char*)x.at + (b * x.batch + k * x.direction + from * column) * size);
    token = (u32)x.token * (u32)size;
    both = PAIRED || from + 1 < columns;
  }
  DEV char* row(int t) const { return at + wide(t, token); }
  DEV Pair load(int t) const {
    const Element* from = (const Element*)row(t);
    if (PAIRED) return *(const Pair*)from;
    return join(from[0], both ? from[column] : Element(0));
  }
  // to shared memory: asynchronous where two columns lie side by side
  DEV void fetch(Pair* to, int t) const {
    if (PAIRED) copy<sizeof(Pair)>(to, row(t));
    else *to = load(t);
  }
  DEV void store(int t, float a, float b, bool full) const {
    if (full) return put((float*)row(t), float2{a, b}, a, b);
    Pair x = pack(a, b);
    put((Element*)row(t), x, first(x), second(x));
  }
  template <class One, class Two> DEV void put(One* to, Two x, One a, One b) const {
    if (PAIRED) { *(Two*)to = x; return; }
    to[0] = a;
    if (both) to[column] = b;
  }
};

// log(1 + e) / e for 0 <= e <= 1, fitted: relative error 8e-6 for half precision, 3e-8 for float32
DEV float log1p_ratio(float e, float scale) {
#if DTYPE
  const float c[] = {0.9999916f, -0.49936128f, 0.32520604f, -0.21004692f, 0.10122027f, -0.02386835f};
#else
  const float c[] = {1.f, -0.49999493f, 0.33319095f, -0.2484297f, 0.19105957f, -0.1366314f, 0.0782247f, -0.02950447f, 0.0052325f};
#endif
  constexpr int terms = sizeof(c) / sizeof(float);
  float r = c[terms - 1] * scale;
#pragma unroll
  for (int i = terms - 2; i >= 0; i--) r = r * e + c[i] * scale;
  return r;
}
struct Step { float size, slope; };
// the step size by raw + bias, and its derivative
DEV Step step_of(float x, bool softplus) {
  if (!softplus) return {x, 1.f};
  float e = ex2(-fabsf(x) * LOG2E), r = rcp(1.f + e);
  return {fmaxf(x, 0.f) + e * log1p_ratio(e, 1.f), x >= 0.f ? r : e * r};
}

// Sums over GROUP lanes that differ in the bits BIT, 2 BIT, ... of V values on each: halves the values at every level and
// ends with plain butterflies. Afterwards v[0] (V <= GROUP) of a lane is the total of value folded<V, GROUP, BIT>(lane).
template <int V, int GROUP, int BIT> struct Fold {
  static DEV void run(float* v, int lane) {
    if constexpr (GROUP > 1) {
      if constexpr (V > 1) {
        bool up = lane & BIT;
#pragma unroll
        for (int i = 0; i < V / 2; i++) {
          float keep = up ? v[i + V / 2] : v[i], send = up ? v[i] : v[i + V / 2];
          v[i] = keep + swap(send, BIT);
        }
        Fold<V / 2, GROUP / 2, BIT * 2>::run(v, lane);
      } else {
        v[0] += swap(v[0], BIT);
        Fold<1, GROUP / 2, BIT * 2>::run(v, lane);
      }
    }
  }
};
// the value, or the first of V / GROUP values, that a lane holds after Fold<V, GROUP, BIT>
template <int V, int GROUP, int BIT> DEV int folded(int lane) {
  int at = 0;
#pragma unroll
  for (int v = V / 2, bit = BIT, g = GROUP; v > 0 && g > 1; v >>= 1, bit <<= 1, g >>= 1) at += lane & bit ? v : 0;
  return at;
}
constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int most(int a, int b) { return a > b ? a : b; }
constexpr int padded(int n) { return n <= 1 ? 1 : 2 * padded((n + 1) / 2); }
