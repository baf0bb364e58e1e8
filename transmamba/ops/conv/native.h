// Depthwise causal convolution along orders: a few steps of all channels of a unit at a time, in the order's sequence.
// Taps, their gradients and the gradients due to earlier tokens stay in registers while a vector of channels walks the steps.
#pragma once
#include "scan/native/unit.h"

constexpr int64_t CONV_STEPS = 16;
constexpr int WIDEST = 32;

// The data of one batch element and part of the channels; T is the element type of activations.
template <class F, class T> struct ConvUnit {
  const Conv &c;
  const int64_t b, past;  // past: tokens before its own that an output reads
  const Range range;
  int64_t k = 0, steps = 0;
  F *dweight, *dbias, *pending;  // (tap, channel), (channel), (past, channel): due to tokens before the tile
  T *zeros;
  const T **seen;                // rows of x at the steps of the tile, after those at the `past` steps before it
  int64_t *token, *reach;        // of each step: the token visited, and the number of steps back that it may read

  ConvUnit(const Conv &conv, int64_t batch, int64_t part, Arena &arena)
      : c(conv), b(batch), past(conv.width - 1), range{part * conv.part, smaller(conv.channels, (part + 1) * conv.part)} {
    const int64_t pad = padded();
    dweight = arena.take<F>(c.width * pad);
    dbias = arena.take<F>(pad);
    pending = arena.take<F>(past * pad);
    zeros = arena.take<T>(pad);
    seen = arena.take<const T *>(past + CONV_STEPS);
    token = arena.take<int64_t>(CONV_STEPS);
    reach = arena.take<int64_t>(CONV_STEPS);
    if (arena.base) memset(zeros, 0, pad * sizeof(T));
  }
  int64_t padded() const { return (c.part + 63) / 64 * 64; }

  int64_t visited(int64_t step) const { return c.orders ? c.orders[k * c.length + step] : step; }

  const T *row(int64_t step) const {
    if (step >= 0) return place<T>(c.x, b, k, range.begin) + visited(step) * c.x.row;
    return c.before.data ? place<T>(c.before, b, k, range.begin) + (step + past) * c.before.row : zeros;
  }
  // Steps back from `step` until the sequence changes; tokens before the first one belong to its sequence.
  int64_t within_sequence(int64_t step) const {
    const int64_t *segment = c.segments + b * c.length;
    for (int64_t back = 0; back < past; ++back) {
      const int64_t earlier = step - back - 1;
      if (earlier < 0) break;
      if (segment[visited(earlier)] != segment[visited(earlier + 1)]) return back;
    }
    return past;
  }
  void enter(int64_t begin) {
    steps = smaller(CONV_STEPS, c.length - begin);
    for (int64_t i = -past; i < steps; ++i) seen[past + i] = row(begin + i);
    for (int64_t i = 0; i < steps; ++i) {
      token[i] = visited(begin + i);
      reach[i] = c.segments ? within_sequence(begin + i) : past;
    }
  }
};

// One vector of channels, from `column` of the part on; WIDTH taps, or any number if 0.
template <class F, class T, int WIDTH, bool FULL> struct ConvColumn {
  typedef Vec<F> V;
  static constexpr int TAPS = WIDTH ? WIDTH : WIDEST;
  const ConvUnit<F, T> &unit;
  const int64_t column, columns = FULL ? lanes<F>() : unit.range.size() - column;
  const int width = WIDTH ? WIDTH : (int)unit.c.width;
  V taps[TAPS], bias{};  // taps[0] is for the token itself

  template <class E> V read(const E *p) const { return FULL ? load_as(p) : load_some<F>(p, columns); }
  template <class E> void write(E *p, V v) const { FULL ? store_as(p, v) : store_some<F>(p, v, columns); }

  ConvColumn(const ConvUnit<F, T> &of, int64_t at) : unit(of), column(at) {
    const Conv &c = unit.c;
    const F *from = place<F>(c.weight, 0, unit.k, unit.range.begin + column);
    for (int o = 0; o < width; ++o) taps[o] = read(from + (width - 1 - o) * c.weight.row);
    if (c.bias.data) bias = read(place<F>(c.bias, 0, unit.k, unit.range.begin + column));
  }

  V convolve(int64_t t, int64_t reach, V *x) const {
    V z = bias;
    for (int o = 0; o < width && o <= reach; ++o) {
      x[o] = read(unit.seen[width - 1 + t - o] + column);
      z += taps[o] * x[o];
    }
    return z;
  }

  void forward() const {
    const Conv &c = unit.c;
    const bool silu = c.silu;
    const int64_t steps = unit.steps, row = c.y.row, *token = unit.token, *reach = unit.reach;
    T *y = place<T>(c.y, unit.b, unit.k, unit.range.begin + column);
    for (int64_t t = 0; t < steps; ++t) {
      V x[TAPS], z = convolve(t, reach[t], x);
      if (silu) z *= logistic(z);
      write(y + token[t] * row, z);
    }
  }

  // Steps backwards; X is the element type of dx. Gradients before the first step remain in `pending`.
  template <class X> void backward(bool add) const {
    const Conv &c = unit.c;
    const bool silu = c.silu;
    const int64_t pad = unit.padded(), row = c.dx.row, grad_row = c.grad_y.row, *token = unit.token, *reach = unit.reach;
    const T *grad = place<T>(c.grad_y, unit.b, unit.k, unit.range.begin + column);
    X *dx = place<X>(c.dx, unit.b, unit.k, unit.range.begin + column);
    V dtaps[TAPS], due[TAPS], dbias = load(unit.dbias + column);  // due[o]: to the token o steps back
    for (int o = 0; o < width; ++o) {
      dtaps[o] = load(unit.dweight + o * pad + column);
      due[o] = o + 1 < width ? load(unit.pending + o * pad + column) : V{};
    }
    for (int64_t t = unit.steps - 1; t >= 0; --t) {
      V x[TAPS], g = read(grad + token[t] * grad_row);
      const int64_t back = reach[t];
      const V z = convolve(t, back, x);
      if (silu) {
        const V gate = logistic(z);
        g *= gate * (z * (splat((F)1) - gate) + splat((F)1));
      }
      for (int o = 0; o < width && o <= back; ++o) {
        due[o] += taps[o] * g;
        dtaps[o] += g * x[o];
      }
      dbias += g;
      X *to = dx + token[t] * row;
      write(to, add ? due[0] + read(to) : due[0]);
      for (int o = 0; o + 1 < width; ++o) due[o] = due[o + 1];
      due[width - 1] = V{};
    }
    store(unit.dbias + column, dbias);
    for (int o = 0; o < width; ++o) {
      store(unit.dweight + o * pad + column, dtaps[o]);
      if (o + 1 < width) store(unit.pending + o * pad + column, due[o]);
    }
  }
};

template <bool BACKWARD, class F, class T, int WIDTH> static void conv_tile(const ConvUnit<F, T> &unit) {
  const auto run = [&](const auto &column) {
    if constexpr (BACKWARD) {
      const bool add = unit.k > 0 && unit.c.dx.direction == 0;
      if (unit.c.dx.dtype == unit.c.x.dtype)
        column.template backward<T>(add);
      else
        column.template backward<F>(add);
    } else {
      column.forward();
    }
  };
  int64_t at = 0;
  for (; at + lanes<F>() <= unit.range.size(); at += lanes<F>()) run(ConvColumn<F, T, WIDTH, true>(unit, at));
  if (at < unit.range.size()) run(ConvColumn<F, T, WIDTH, false>(unit, at));
}

template <bool BACKWARD, class F, class T> static void conv_tiles(const ConvUnit<F, T> &unit) {
  switch (unit.c.width) {
    case 2: return conv_tile<BACKWARD, F, T, 2>(unit);
    case 3: return conv_tile<BACKWARD, F, T, 3>(unit);
    case 4: return conv_tile<BACKWARD, F, T, 4>(unit);
    default: return conv_tile<BACKWARD, F, T, 0>(unit);
  }
}

// Gradients of one direction that do not belong to a token of x.
template <class F, class T> static void write_sums(const ConvUnit<F, T> &unit) {
  const Conv &c = unit.c;
  const int64_t pad = unit.padded(), wide = unit.range.size(), from = unit.range.begin;
  for (int64_t o = 0; o < c.width; ++o)
    write_row(place<F>(c.dweight, unit.b, unit.k, from) + (c.width - 1 - o) * c.dweight.row, unit.dweight + o * pad, wide);
  if (c.dbias.data) write_row(place<F>(c.dbias, unit.b, unit.k, from), unit.dbias, wide);
  if (!c.dbefore.data) return;
  for (int64_t o = 0; o < unit.past; ++o)
    for (int64_t i = 0; i < wide; i += lanes<F>())
      store_some<F>(place<T>(c.dbefore, unit.b, unit.k, from + i) + (unit.past - 1 - o) * c.dbefore.row,
                    load(unit.pending + o * pad + i), wide - i);
}

template <bool BACKWARD, class F, class T> static size_t conv_unit(const Conv &c, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  ConvUnit<F, T> unit(c, b, part, arena);
  const int64_t tiles = (c.length + CONV_STEPS - 1) / CONV_STEPS, pad = unit.padded();
  for (unit.k = 0; scratch && unit.k < c.directions; ++unit.k) {
    if (BACKWARD) {
      memset(unit.dweight, 0, c.width * pad * sizeof(F));
      memset(unit.dbias, 0, pad * sizeof(F));
      memset(unit.pending, 0, unit.past * pad * sizeof(F));
    }
    for (int64_t i = 0; i < tiles; ++i) {
      unit.enter((BACKWARD ? tiles - 1 - i : i) * CONV_STEPS);
      conv_tiles<BACKWARD>(unit);
    }
    if (BACKWARD) write_sums(unit);
  }
  return arena.used;
}

template <bool BACKWARD> static size_t conv_unit(const Conv &c, int64_t b, int64_t part, void *scratch) {
  switch (c.x.dtype) {
    case DOUBLE: return conv_unit<BACKWARD, double, double>(c, b, part, scratch);
    case BFLOAT: return conv_unit<BACKWARD, float, Bfloat>(c, b, part, scratch);
    case HALF: return conv_unit<BACKWARD, float, Half>(c, b, part, scratch);
    default: return conv_unit<BACKWARD, float, float>(c, b, part, scratch);
  }
}
