// One state, one direction and time innermost, as in (batch, dim, length) tensors: lanes are steps, and the row of a channel
// is read and written where it lies. A vector of steps is a prefix scan of (decay, input) in log2(W) rounds, which costs less
// than bringing the channels of a step together.
#pragma once
#include "scan/native/backward.h"
#include "scan/native/forward.h"

// Steps whose intermediate results stay in the first cache; a multiple of every chunk and vector.
constexpr int64_t SPAN = 1024;
// Steps between a prefetch and its use.
constexpr int64_t DISTANCE = 256;

template <class F> struct SpanTiles {
  F *B, *C, *keep;        // (step); keep is 0 where a segment starts
  F *dt, *slope, *e, *h;  // of one channel; h starts a vector early, with the state before the span in that one's last lane
  F *dB, *dC;             // summed over channels
  explicit SpanTiles(Arena &arena) {
    F **const tiles[] = {&B, &C, &keep, &dt, &slope, &e, &h, &dB, &dC};
    for (F **tile : tiles) *tile = arena.take<F>(SPAN + lanes<F>());
  }
};

// Lane i is lane i - BY of v (BY may be negative), or `fill` where there is none.
template <int BY, class F> INLINE Vec<F> shifted(Vec<F> v, F fill) {
  constexpr int W = lanes<F>();
#if !defined(__clang__)
  if constexpr (sizeof(F) == sizeof(float)) {
    Vi from;
    for (int i = 0; i < W; ++i) from[i] = i - BY >= 0 && i - BY < W ? i - BY : W;
    return __builtin_shuffle(v, splat(fill), from);
  }
#endif
  Vec<F> out = splat(fill);
  for (int i = 0; i < W; ++i)
    if (i - BY >= 0 && i - BY < W) out[i] = v[i - BY];
  return out;
}
// Copies lane FROM of v to every lane.
template <int FROM, class F> INLINE Vec<F> spread(Vec<F> v) {
#if !defined(__clang__)
  if constexpr (sizeof(F) == sizeof(float)) return __builtin_shuffle(v, Vi{} + FROM);
#endif
  return splat(v[FROM]);
}

// x <- x + e * (x of the neighbour at -BY), solved along all lanes; e becomes the product of the decays.
template <int BY, class F> INLINE void solve(Vec<F> &e, Vec<F> &x) {
  x = e * shifted<BY, F>(x, 0) + x;
  e = e * shifted<BY, F>(e, 1);
  if constexpr (BY * BY * 4 < lanes<F>() * lanes<F>()) solve<2 * BY, F>(e, x);
}

// The steps of a span in one channel; `next` is the start of the row that is read after it.
template <class F> struct Row {
  char *at;
  const char *next;
  int64_t dtype, size, count;
  Row(const Array &a, const Group<F> &group, int64_t c, const Range &span) : dtype(a.dtype), count(span.size()) {
    size = element_size(a);
    const int64_t channel = a.batch * group.b + a.direction * group.first + a.column * (group.range.begin + c);
    at = (char *)a.data + (channel + span.begin) * size;
    next = at + a.column * size;
  }
  __attribute__((always_inline)) void touch(int64_t t) const {
    const int64_t then = t + DISTANCE;
    __builtin_prefetch(then < count ? at + then * size : next + (then - count) * size, 0, 3);
  }
  __attribute__((always_inline)) Vec<F> load(int64_t t) const {
    if constexpr (sizeof(F) == sizeof(float)) {
      if (dtype == BFLOAT) return load_some<F>((const Bfloat *)at + t, count - t);
      if (dtype == HALF) return load_some<F>((const Half *)at + t, count - t);
    }
    return load_some<F>((const F *)at + t, count - t);
  }
  __attribute__((always_inline)) void write(int64_t t, Vec<F> v, Write how) const {
    if (how == STREAM && t + lanes<F>() <= count) return stream((F *)at + t, v);
    if (how == ADD) v += load(t);
    if constexpr (sizeof(F) == sizeof(float)) {
      if (dtype == BFLOAT) return store_some<F>((Bfloat *)at + t, v, count - t);
      if (dtype == HALF) return store_some<F>((Half *)at + t, v, count - t);
    }
    store_some<F>((F *)at + t, v, count - t);
  }
};

// Checks whether the group can run so. Steps are positive by softplus; rates must not be, or products of decays may overflow.
template <class F> static bool fits_timewise(const Group<F> &group) {
  const Scan &s = group.s;
  const Array *const arrays[] = {&s.u, &s.dt, &s.y, &s.grad_y, &s.du, &s.ddt};
  if (s.state > 1 || group.size > 1 || s.orders || !s.softplus || s.u.column == 1) return false;
  for (const Array *a : arrays)
    if (a->data && a->row != 1) return false;
  for (int64_t c = 0; c < group.range.size(); ++c)
    if (!(group.A[c] <= 0)) return false;
  return true;
}

// B or C of the span's steps, zero up to a whole vector.
template <class F> static void read_span(F *tile, const Array &from, const Group<F> &group, const Range &span) {
  with_type<F>(from, group.b, group.first, 0, [&](auto *p) {
    for (int64_t t = 0; t < span.size(); ++t) tile[t] = number_of(p[(span.begin + t) * from.row]);
  });
  for (int64_t t = span.size(); t % lanes<F>(); ++t) tile[t] = 0;
}
template <class F> static void enter_span(const Group<F> &group, const SpanTiles<F> &tiles, const Range &span) {
  const Scan &s = group.s;
  read_span(tiles.B, s.B, group, span);
  read_span(tiles.C, s.C, group, span);
  if (!s.segments) return;
  const int64_t *segment = s.segments + group.b * s.length + span.begin;
  for (int64_t t = 0; t < span.size(); ++t) tiles.keep[t] = span.begin + t == 0 || segment[t] == segment[t - 1];
}

// Step sizes and decays of a vector of steps, of which `count` exist; the others leave the state as it is.
template <bool SLOPE, class F> INLINE Vec<F> decays(Vec<F> &dt, Vec<F> &slope, F bias, F A, const F *keep, int64_t count) {
  dt = softplus<SLOPE>(dt + bias, slope);
  Vec<F> e = exp2_product<ANY_EXPONENT>(dt, splat(A));
  if (keep) e *= load(keep);
  for (int i = 0; count < lanes<F>() && i < lanes<F>(); ++i)
    if (i >= count) dt[i] = slope[i] = 0, e[i] = 1;
  return e;
}

template <class F> APART void forward_span(const Group<F> &group, const SpanTiles<F> &tiles, const Range &span, Write how) {
  typedef Vec<F> V;
  constexpr int W = lanes<F>();
  const Scan &s = group.s;
  const int64_t steps = span.size(), channels = group.range.size();
  const F *keep = s.segments ? tiles.keep : nullptr;
  F *saved = s.saved.data ? place<F>(s.saved, group.b, group.first, group.range.begin) + span.begin / s.chunk * s.saved.row : nullptr;
  for (int64_t c = 0; c < channels; ++c) {
    const Row<F> dt_row(s.dt, group, c, span), u_row(s.u, group, c, span), y_row(s.y, group, c, span);
    const F bias = group.bias[c], A = group.A[c];
    const V D = splat(group.D[c]);
    V h = splat(group.state[c]);
    for (int64_t t = 0, due = 0; t < steps; t += W) {
      dt_row.touch(t);
      u_row.touch(t);
      if (how != STREAM) y_row.touch(t);
      if (saved && t == due) {
        saved[t / s.chunk * s.saved.row + c] = h[0];
        due += s.chunk;
      }
      V dt = dt_row.load(t), slope{}, e = decays<false>(dt, slope, bias, A, keep ? keep + t : nullptr, steps - t);
      const V u = u_row.load(t);
      V x = dt * u * load(tiles.B + t);
      solve<1, F>(e, x);
      const V states = e * h + x;
      y_row.write(t, states * load(tiles.C + t) + u * D, how);
      h = spread<W - 1, F>(states);
    }
    group.state[c] = h[0];
  }
}

template <class F> static void forward_timewise(Group<F> &group, const SpanTiles<F> &tiles) {
  const Scan &s = group.s;
  const Write how = group.writing(s.y, 0, 1);
  group.read_states(s.initial, 0);
  for (int64_t begin = 0; begin < s.length; begin += SPAN) {
    const Range span{begin, smaller(s.length, begin + SPAN)};
    enter_span(group, tiles, span);
    forward_span(group, tiles, span, how);
  }
  group.write_states(s.last, 0);
}

template <class F> APART void backward_span(const Group<F> &group, const BackwardTiles<F> &sums, const SpanTiles<F> &tiles, const Range &span,
                                            Write write_u, Write write_dt) {
  typedef Vec<F> V;
  constexpr int W = lanes<F>();
  const Scan &s = group.s;
  const int64_t steps = span.size(), channels = group.range.size();
  const F *keep = s.segments ? tiles.keep : nullptr;
  const F *saved = place<F>(s.saved, group.b, group.first, group.range.begin) + span.begin / s.chunk * s.saved.row;
  F *h_tile = tiles.h + W;
  for (int64_t c = 0; c < channels; ++c) {
    const Row<F> dt_row(s.dt, group, c, span), u_row(s.u, group, c, span), dy_row(s.grad_y, group, c, span);
    const Row<F> du_row(s.du, group, c, span), ddt_row(s.ddt, group, c, span);
    const F bias = group.bias[c], A = group.A[c];
    V h = splat(saved[c]);
    store(tiles.h, h);
    for (int64_t t = 0; t < steps; t += W) {
      dt_row.touch(t);
      u_row.touch(t);
      dy_row.touch(t);
      V dt = dt_row.load(t), slope{}, e = decays<true>(dt, slope, bias, A, keep ? keep + t : nullptr, steps - t);
      store(tiles.dt + t, dt);
      store(tiles.slope + t, slope);
      store(tiles.e + t, e);
      V x = dt * u_row.load(t) * load(tiles.B + t);
      solve<1, F>(e, x);
      const V states = e * h + x;
      store(h_tile + t, states);
      h = spread<W - 1, F>(states);
    }
    const V rate = splat(A * (F)LN2), D = splat(group.D[c]);
    V dh = splat(group.state[c]), dA{}, dD{}, dbias{};
    for (int64_t t = (steps - 1) / W * W; t >= 0; t -= W) {
      const V u = u_row.load(t), dy = dy_row.load(t), dt = load(tiles.dt + t), e = load(tiles.e + t);
      V q = dy * load(tiles.C + t), decay = shifted<-1, F>(e, 1);
      solve<-1, F>(decay, q);
      q = decay * dh + q;
      store(tiles.dC + t, load(tiles.dC + t) + dy * load(h_tile + t));
      store(tiles.dB + t, load(tiles.dB + t) + q * (dt * u));
      const V dx = q * load(tiles.B + t), before = q * e, through = before * load(h_tile + t - 1);  // the gradient of log e
      const V ddt = (dx * u + through * rate) * load(tiles.slope + t);
      dA += through * dt;
      dD += dy * u;
      dbias += ddt;
      du_row.write(t, dx * dt + dy * D, write_u);
      ddt_row.write(t, ddt, write_dt);
      dh = spread<0, F>(before);
    }
    group.state[c] = dh[0];
    sums.dA[c] += total(dA);
    sums.dD[c] += total(dD);
    sums.dbias[c] += total(dbias);
  }
}

// Writes a span's dB or dC, or adds it where directions share B or C.
template <class F> static void leave_span(const Group<F> &group, const F *tile, const Array &to, int64_t offset, const Range &span) {
  F *base = place<F>(to, group.b, group.first, 0) + offset;
  const bool add = to.direction == 0 && group.first > 0;
  for (int64_t t = 0; t < span.size(); ++t) {
    F &sum = base[(span.begin + t) * to.row];
    sum = add ? sum + tile[t] : tile[t];
  }
}

template <class F> static void backward_timewise(Group<F> &group, const BackwardTiles<F> &sums, const SpanTiles<F> &tiles, int64_t part) {
  const Scan &s = group.s;
  const Write write_u = group.writing(s.du, 0, 1);
  const Write write_dt = group.writing(s.ddt, 0, 1);
  group.read_states(s.grad_last, 0);
  sums.clear(s, group.pad);
  for (int64_t begin = s.length ? (s.length - 1) / SPAN * SPAN : -1; begin >= 0; begin -= SPAN) {
    const Range span{begin, smaller(s.length, begin + SPAN)};
    enter_span(group, tiles, span);
    memset(tiles.dB, 0, SPAN * sizeof(F));
    memset(tiles.dC, 0, SPAN * sizeof(F));
    backward_span(group, sums, tiles, span, write_u, write_dt);
    leave_span(group, tiles.dB, s.dB, part * s.dB_part, span);
    leave_span(group, tiles.dC, s.dC, part * s.dC_part, span);
  }
  if (s.dinitial.data) group.write_states(s.dinitial, 0);
  add_parameters(group, sums);
}
