// One state and one direction: a tile would cost more than the work per number. Both passes walk along whole rows of
// channels, where possible the tensors' own, because memory is read fastest so. The number of channels is a multiple of W.
#pragma once
#include "scan/native/unit.h"

// Inlined into a caller, the loops here would take registers from the caller's own.
#define APART __attribute__((noinline)) static

// Prefetches once per cache line.
template <class F, class T> INLINE bool starts_line(int64_t c) {
  return lanes<F>() * sizeof(T) >= 64 || c * sizeof(T) % 64 == 0;
}

template <class F> INLINE void write(F *p, Vec<F> v, Write how) {
  if (how == STREAM)
    stream(p, v);
  else
    store(p, how == ADD ? v + load(p) : v);
}

template <class F, class T>
APART void forward_single(const Group<F> &group, int64_t column, int64_t wide, Rows<T> dt_rows, Rows<T> u_rows, Rows<F> y_rows, Write how) {
  typedef Vec<F> V;
  constexpr int W = lanes<F>();
  const Scan &s = group.s;
  const bool smooth = s.softplus;
  const int64_t steps = group.steps;
  const uint8_t *reset = s.segments ? group.reset : nullptr;
  const F *A = group.A + column, *D = group.D + column, *bias = group.bias + column;
  F *state = group.state + column;
  const auto dt_ahead = group.template to_come<1>(s.dt, 0, group.parameter_line(0), column + wide);
  const auto u_ahead = group.template to_come<1>(s.u, 0, group.token_line(0), column + wide);
  const auto y_ahead = group.template to_come<1>(s.y, 0, group.token_line(0), column + wide);
  for (int64_t t = 0; t < steps; ++t) {
    const T *dt_at = dt_rows.at(t), *u_at = u_rows.at(t);
    F *y_at = y_rows.at(t);
    const V B = splat(group.B[t]), C = splat(group.C[t]);
    const bool restart = reset && reset[t];
    for (int64_t c = 0; c < wide; c += W) {
      if (starts_line<F, T>(c)) {
        dt_ahead.touch(t, c * sizeof(T));
        u_ahead.touch(t, c * sizeof(T));
      }
      if (how != STREAM && starts_line<F, F>(c)) y_ahead.touch(t, c * sizeof(F));
      V dt = load_as(dt_at + c) + load(bias + c), unused{};
      const V u = load_as(u_at + c), before = restart ? V{} : load(state + c);
      if (smooth) dt = softplus<false>(dt, unused);
      const V h = exp2_product<ANY_EXPONENT>(dt, load(A + c)) * before + dt * u * B, y = h * C + u * load(D + c);
      store(state + c, h);
      write(y_at + c, y, how);
    }
  }
}

// Two passes over a chunk: decays and states once more, then the sweep back. ddt may overwrite dt.
template <class F, class T>
APART void recompute_single(const Group<F> &group, const BackwardTiles<F> &tiles, int64_t column, int64_t wide, int64_t chunk,
                            Rows<T> dt_rows, Rows<T> u_rows) {
  typedef Vec<F> V;
  constexpr int W = lanes<F>();
  const Scan &s = group.s;
  const bool smooth = s.softplus;
  const int64_t steps = group.steps, columns = group.range.size() - column;
  const uint8_t *reset = s.segments ? group.reset : nullptr;
  const F *from = place<F>(s.saved, group.b, group.first, group.range.begin + column) + chunk * s.saved.row;
  const F *A = group.A + column, *bias = group.bias + column;
  F *dt_at = tiles.dt, *slope_at = tiles.slope, *e_at = tiles.e, *before = tiles.h;
  const auto dt_ahead = group.template to_come<1>(s.dt, 0, group.parameter_line(0), column + wide);
  const auto u_ahead = group.template to_come<1>(s.u, 0, group.token_line(0), column + wide);
  copy_row(before, wide, from, columns);
  for (int64_t t = 0; t < steps; ++t, dt_at += wide, slope_at += wide, e_at += wide, before += wide) {
    const T *dt_from = dt_rows.at(t), *u_from = u_rows.at(t);
    const V B = splat(group.B[t]);
    const bool restart = reset && reset[t];
    for (int64_t c = 0; c < wide; c += W) {
      if (starts_line<F, T>(c)) {
        dt_ahead.touch(t, c * sizeof(T));
        u_ahead.touch(t, c * sizeof(T));
      }
      V dt = load_as(dt_from + c) + load(bias + c), slope = splat((F)1);
      if (smooth) dt = softplus<true>(dt, slope);
      const V e = restart ? V{} : exp2_product<ANY_EXPONENT>(dt, load(A + c)), h = restart ? V{} : load(before + c);
      store(dt_at + c, dt);
      store(slope_at + c, slope);
      store(e_at + c, e);
      store(before + wide + c, e * h + dt * load_as(u_from + c) * B);
    }
  }
}

template <class F, class T>
APART void sweep_single(const Group<F> &group, const BackwardTiles<F> &tiles, int64_t column, int64_t wide, Rows<T> u_rows, Rows<T> dy_rows,
                        Rows<F> du_rows, Write write_u, Rows<F> ddt_rows, Write write_dt) {
  typedef Vec<F> V;
  constexpr int W = lanes<F>();
  const Scan &s = group.s;
  const int64_t last = group.steps - 1;
  const F *A = group.A + column, *D = group.D + column, *dt_at = tiles.dt + last * wide, *slope_at = tiles.slope + last * wide;
  const F *e_at = tiles.e + last * wide, *before = tiles.h + last * wide;
  F *state = group.state + column, *dA = tiles.dA + column, *dD = tiles.dD + column, *dbias = tiles.dbias + column;
  const auto dy_ahead = group.template to_come<1>(s.grad_y, 0, group.token_line(0), column + wide);
  const auto du_ahead = group.template to_come<1>(s.du, 0, group.token_line(0), column + wide);
  const auto ddt_ahead = group.template to_come<1>(s.ddt, 0, group.parameter_line(0), column + wide);
  for (int64_t t = last; t >= 0; --t, dt_at -= wide, slope_at -= wide, e_at -= wide, before -= wide) {
    const T *u_from = u_rows.at(t), *dy_from = dy_rows.at(t);
    F *du_to = du_rows.at(t), *ddt_to = ddt_rows.at(t);
    const V B = splat(group.B[t]), C = splat(group.C[t]);
    V dB = load(tiles.dB + t * W), dC = load(tiles.dC + t * W);
    for (int64_t c = 0; c < wide; c += W) {
      if (starts_line<F, T>(c)) dy_ahead.touch(t, c * sizeof(T));
      if (write_u != STREAM && starts_line<F, F>(c)) du_ahead.touch(t, c * sizeof(F));
      if (write_dt != STREAM && starts_line<F, F>(c)) ddt_ahead.touch(t, c * sizeof(F));
      const V u = load_as(u_from + c), dy = load_as(dy_from + c), dt = load(dt_at + c);
      const V q = dy * C + load(state + c), dx = q * B, dh = q * load(e_at + c);
      dC += dy * load(before + wide + c);
      dB += q * (dt * u);
      store(state + c, dh);
      const V through = dh * load(before + c);  // the gradient of log e
      const V du = dx * dt + dy * load(D + c), ddt = (dx * u + through * load(A + c) * splat((F)LN2)) * load(slope_at + c);
      store(dA + c, load(dA + c) + through * dt);
      store(dD + c, load(dD + c) + dy * u);
      store(dbias + c, load(dbias + c) + ddt);
      write(du_to + c, du, write_u);
      write(ddt_to + c, ddt, write_dt);
    }
    store(tiles.dB + t * W, dB);
    store(tiles.dC + t * W, dC);
  }
}

template <class F, class T>
static void backward_single(const Group<F> &group, const BackwardTiles<F> &tiles, int64_t column, int64_t wide, int64_t chunk, Rows<T> dt,
                            Rows<T> u, Rows<T> dy, Rows<F> du, Write write_u, Rows<F> ddt, Write write_dt) {
  recompute_single(group, tiles, column, wide, chunk, dt, u);
  sweep_single(group, tiles, column, wide, u, dy, du, write_u, ddt, write_dt);
}
