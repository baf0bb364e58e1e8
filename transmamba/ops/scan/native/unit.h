// A unit of work is one batch element and one part of the channels; it runs all directions, one group after another.
// A group is one direction, or several that share dt and A step by step and so share their exponentials.
#pragma once
#include "scan/native/tile.h"

// Vectors per block of channels, and states carried together in registers (forward, backward).
#if defined(__AVX512F__)
constexpr int FORWARD_STATES = 8;
#else
constexpr int FORWARD_STATES = 4;
#endif
constexpr int BLOCK = 2, BACKWARD_STATES = 2;
constexpr int GROUP = 4;
// Vectors that the backward of a single state takes side by side: their tiles fit the second cache.
constexpr int PANEL = 768 / BYTES;

// AVX-512 scales by any exponent; elsewhere a tile whose decays stay within 2^+-126 takes a shorter way.
#if defined(__AVX512F__)
constexpr bool ANY_EXPONENT = true;
#else
constexpr bool ANY_EXPONENT = false;
#endif
// Bytes of an output that is too large for the caches close to a core to keep until it is read.
constexpr int64_t LARGE = 2 << 20;
constexpr double LARGEST_EXPONENT = 120, LOG2E = 1.4426950408889634, LN2 = 0.6931471805599453;

// Hands out aligned pieces of one allocation; with a null base it only adds up their size.
struct Arena {
  char *base;
  size_t used = 0;
  template <class F> F *take(int64_t count) {
    F *piece = (F *)(base + used);
    used += (count * sizeof(F) + 63) / 64 * 64;
    return piece;
  }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
static inline Range channels_of(const Scan &s, int64_t part) {
  return {part * s.part, smaller(s.channels, (part + 1) * s.part)};
}
// An odd number of cache lines: rows that a block visits one after the other then fall on different sets of the first cache.
static inline int64_t padded_part(const Scan &s) { return (s.part + 31) / 32 * 32 + 16; }

static inline int64_t group_size(const Scan &s, int64_t first) {
  if (!s.together || s.segments) return 1;
  const int64_t left = s.directions - first;
  return left >= GROUP ? GROUP : left >= 2 ? 2 : 1;
}

// The data of a group that forward and backward keep while they walk along its steps.
template <class F> struct Group {
  const Scan &s;
  const int64_t b, pad;
  Range range;
  int64_t first = 0, size = 1;  // directions
  struct {
    int64_t b, first, channel;
  } coming;  // where the next chunk lies
  int64_t steps = 0;            // of this chunk
  F limit = 0;                  // |dt| up to which every exponent is within bounds
  F *A, *D, *bias, *state, *B, *C;
  uint8_t *reset;
  int64_t *iota, *visited, *ahead;  // 0, 1, 2, ...; tokens of this chunk's steps and of the next one's, per direction

  Group(const Scan &scan, int64_t batch, int64_t part, Arena &arena)
      : s(scan), b(batch), pad(padded_part(scan)), range(channels_of(scan, part)) {
    A = arena.take<F>(s.state * pad);
    D = arena.take<F>(GROUP * pad);
    bias = arena.take<F>(pad);
    state = arena.take<F>(GROUP * s.state * pad);
    B = arena.take<F>(GROUP * s.chunk * s.state);
    C = arena.take<F>(GROUP * s.chunk * s.state);
    reset = arena.take<uint8_t>(s.chunk);
    iota = arena.take<int64_t>(s.chunk);
    visited = arena.take<int64_t>((GROUP + 1) * s.chunk);
    ahead = arena.take<int64_t>((GROUP + 1) * s.chunk);
    for (int64_t t = 0; arena.base && t < s.chunk; ++t) iota[t] = t;
  }

  void enter(int64_t first_direction) {
    first = first_direction;
    size = group_size(s, first);
    for (int64_t n = 0; n < s.state; ++n) {
      F *row = A + n * pad;
      copy_row(row, pad, place<F>(s.A, 0, first, range.begin) + n * s.A.row, range.size());
      for (int64_t c = 0; c < pad; c += lanes<F>()) store(row + c, load(row + c) * splat((F)LOG2E));
    }
    if (!ANY_EXPONENT) limit = largest_step();
    copy_vector(bias, s.bias, first);
    for (int64_t g = 0; g < size; ++g) copy_vector(D + g * pad, s.D, first + g);
  }
  // Computed from all channels, not the part's alone, so that no result depends on the parts.
  F largest_step() const {
    Vec<F> largest = splat((F)1e-30);
    for (int64_t n = 0; n < s.state; ++n) {
      const F *row = place<F>(s.A, 0, first, 0) + n * s.A.row;
      for (int64_t c = 0; c < s.channels; c += lanes<F>()) {
        const Vec<F> a = load_some<F>(row + c, s.channels - c) * splat((F)LOG2E);
        largest = larger(largest, a < 0 ? -a : a);
      }
    }
    for (int i = 1; i < lanes<F>(); ++i) largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
    return (F)LARGEST_EXPONENT / largest[0];
  }
  void copy_vector(F *to, const Array &from, int64_t k) {
    if (from.data)
      copy_row(to, pad, place<F>(from, 0, k, range.begin), range.size());
    else
      memset(to, 0, pad * sizeof(F));
  }
  // The states of all directions: from an array of (batch, direction, [row], state, channel), or zero.
  void read_states(const Array &from, int64_t row) {
    for (int64_t i = 0; i < size * s.state; ++i) {
      F *to = state + i * pad;
      if (from.data)
        copy_row(to, pad, state_row(from, i, row), range.size());
      else
        memset(to, 0, pad * sizeof(F));
    }
  }
  void write_states(const Array &to, int64_t row) {
    for (int64_t i = 0; i < size * s.state; ++i) write_row(state_row(to, i, row), state + i * pad, range.size());
  }
  F *state_row(const Array &a, int64_t i, int64_t row) {
    return place<F>(a, b, first + i / s.state, range.begin) + row * a.row + i % s.state * s.channels;
  }

  // The last line of `visited` and `ahead` holds plain steps, for parameters indexed by them.
  int64_t token_line(int64_t g) const { return g * s.chunk; }
  int64_t parameter_line(int64_t g) const { return (s.by_step ? GROUP : g) * s.chunk; }
  Steps tokens(int64_t g) const { return {visited + token_line(g), steps, !s.orders}; }
  Steps parameters(int64_t g) const { return {visited + parameter_line(g), steps, s.by_step || !s.orders}; }

  // The rows visited after the columns before `column`: those next to them, or the next chunk. `line` is that of the rows.
  template <int LINES, int CACHE = 2> Ahead<LINES, CACHE> to_come(const Array &a, int g, int64_t line, int64_t column) const {
    if (column < range.size()) return {a, b, first + g, range.begin + column, visited + line, iota};
    return {a, coming.b, coming.first + g, coming.channel, ahead + line, iota};
  }

  // The way to write those columns of an output: where directions are summed, the first one overwrites; a group finds zeros.
  Write writing(const Array &a, int64_t column, int64_t columns) const {
    if (a.direction == 0 && (first > 0 || size > 1)) return ADD;
    const bool summed = a.direction == 0 && s.directions > 1;  // and soon read again
    const bool large = s.batch * s.directions * s.length * s.channels * (int64_t)sizeof(F) > LARGE;
    const bool dense = a.column == 1, transposed = a.row == 1 && !s.orders;
    if (summed || !large || !(dense || transposed) || a.dtype != s.A.dtype) return PUT;
    const size_t base = (size_t)place<F>(a, b, first, range.begin + column);
    const size_t step = (dense ? a.row | columns : a.column | s.chunk) | a.direction;
    const bool whole = (base | step * sizeof(F)) % 64 == 0;  // cache lines
    return whole ? STREAM : dense || size > 1 ? PUT : STREAM_LINES;
  }

  void follow(int64_t *to, int64_t t, int64_t from) const {
    for (int64_t g = 0; g <= GROUP; ++g) {
      if (g >= size && g < GROUP) continue;
      const int64_t *visit = s.orders && g < GROUP ? s.orders + (from + g) * s.length : nullptr;
      for (int64_t i = 0; i < s.chunk; ++i) {
        // beyond the end, the last step again, because only prefetches go there
        const int64_t step = smaller(t + i, s.length - 1);
        to[g * s.chunk + i] = visit ? visit[step] : step;
      }
    }
  }
  // Steps [t, t + count). The chunk to come starts at `next`; beyond either end, it is the first one that the group or unit
  // after this one visits.
  void enter_chunk(int64_t t, int64_t next) {
    steps = smaller(s.chunk, s.length - t);
    follow(visited, t, first);
    coming = {b, first, range.begin};
    const bool last = next < 0 || next >= s.length;
    if (last && first + 2 * size <= s.directions)
      coming.first += size;
    else if (last && range.end < s.channels)
      coming = {b, 0, range.end};
    else if (last && b + 1 < s.batch)
      coming = {b + 1, 0, 0};
    follow(ahead, !last ? next : next < 0 ? (s.length - 1) / s.chunk * s.chunk : 0, coming.first);
    for (int64_t g = 0; g < size; ++g) {
      stage_states(B + g * s.chunk * s.state, s.B, first + g, parameters(g));
      if (s.C.data) stage_states(C + g * s.chunk * s.state, s.C, first + g, parameters(g));
    }
    if (!s.segments) return;
    const int64_t *segment = s.segments + b * s.length, *visit = s.orders ? s.orders + first * s.length : nullptr;
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t now = t + i;
      reset[i] = now > 0 && segment[visit ? visit[now] : now] != segment[visit ? visit[now - 1] : now - 1];
    }
  }
  // B and C: dense rows of `state` numbers, ready to be spread over lanes.
  void stage_states(F *to, const Array &from, int64_t k, const Steps &steps) {
    with_type<F>(from, b, k, 0, [&](auto *p) {
      if (from.column == 1 && s.state % lanes<F>() == 0) {
        for (int64_t t = 0; t < steps.count; ++t)
          for (int64_t n = 0; n < s.state; n += lanes<F>()) store(to + t * s.state + n, load_as(p + steps.rows[t] * from.row + n));
        return;
      }
      if (from.row == 1 && steps.consecutive && s.state % lanes<F>() == 0)
        return gather_transposed(to, s.state, p + steps.rows[0], from.column, steps.count, s.state);
      for (int64_t t = 0; t < steps.count; ++t)
        for (int64_t n = 0; n < s.state; ++n) to[t * s.state + n] = number_of(p[steps.rows[t] * from.row + n * from.column]);
    });
  }
};

template <class F> struct BackwardTiles {
  F *dt, *slope, *u, *dy;      // (step, lane); u, dy, dx per direction of the group, dt and slope for a PANEL
  F *dx, *da;                  // gradients of dt * u, and of dt through the decays
  F *e, *h;                    // decays (step, state, lane), states (step + 1, state, lane) of a few states or of a PANEL
  F *dB, *dC, *sums;           // (direction, step, state, lane of one vector), summed over blocks of channels
  F *dA, *dD, *dbias;
  BackwardTiles(const Scan &s, int64_t pad, Arena &arena) {
    static_assert(PANEL >= BLOCK * BACKWARD_STATES, "a block of states fits a panel");
    const int64_t W = lanes<F>(), size = s.chunk * BLOCK * W, rows = s.chunk * s.state + W;
    dt = arena.take<F>(s.chunk * PANEL * W);
    slope = arena.take<F>(s.chunk * PANEL * W);
    da = arena.take<F>(size);
    u = arena.take<F>(GROUP * size);
    dy = arena.take<F>(GROUP * size);
    dx = arena.take<F>(GROUP * size);
    e = arena.take<F>(s.chunk * PANEL * W);
    h = arena.take<F>((s.chunk + 1) * PANEL * W);
    dB = arena.take<F>(GROUP * rows * W);
    dC = arena.take<F>(GROUP * rows * W);
    sums = arena.take<F>(rows);
    dA = arena.take<F>(s.state * pad);
    dD = arena.take<F>(GROUP * pad);
    dbias = arena.take<F>(pad);
  }
  // Sets the sums over a group's steps to zero.
  void clear(const Scan &s, int64_t pad) const {
    memset(dA, 0, s.state * pad * sizeof(F));
    memset(dD, 0, GROUP * pad * sizeof(F));
    memset(dbias, 0, pad * sizeof(F));
  }
};

// Checks whether the lanes of a block can be read or written in place.
template <class F, int WIDTH> static bool in_place(const Array &a, int64_t columns) {
  return a.column == 1 && columns == WIDTH;
}

// Runs a block for LARGEST states at a time, then for fewer, until all are done.
template <int LARGEST, class G> INLINE void for_states(int64_t state, G what) {
  int64_t n = 0;
  for (; n + LARGEST <= state; n += LARGEST) what.template run<LARGEST>(n);
  if constexpr (LARGEST > 4) if (n + 4 <= state) what.template run<4>(n), n += 4;
  if constexpr (LARGEST > 2) if (n + 2 <= state) what.template run<2>(n), n += 2;
  for (; n < state; ++n) what.template run<1>(n);
}
