// Backward: chunks in reverse. Each recomputes its decays and states from the saved one, then sweeps back.
#pragma once
#include "scan/native/single.h"

template <class F, int G, int U> struct BackwardBlock {
  typedef Vec<F> V;
  static constexpr int W = lanes<F>(), WIDTH = U * W, LINES = (U * BYTES + 63) / 64;
  const Group<F> &group;
  const BackwardTiles<F> &tiles;
  int64_t column, chunk;
  bool bounded = true;

  int64_t tile(int g) const { return g * group.s.chunk * WIDTH; }
  int64_t sums(int g) const { return g * (group.s.chunk * group.s.state + W) * W; }

  typedef Ahead<LINES, 2> Touch;
  Touch ahead(const Array &a, int g, int64_t line) const { return group.template to_come<LINES>(a, g, line, column + WIDTH); }

  // Bias and softplus; the tiles that gather sums start at zero.
  void prepare() {
    // the inputs of loops are copied to locals here and below, because stores to tiles might alias the members
    const Scan &s = group.s;
    const bool smooth = s.softplus;
    const int64_t steps = group.steps;
    const V limit = splat(group.limit);
    F *dt_tile = tiles.dt, *slope_tile = tiles.slope, *da = tiles.da;
    touch_states();
    V beyond{}, bias[U];
    for (int i = 0; i < U; ++i) bias[i] = load(group.bias + column + i * W);
    for (int64_t t = 0; t < steps; ++t)
      for (int i = 0; i < U; ++i) {
        const int64_t at = t * WIDTH + i * W;
        V dt = load(dt_tile + at) + bias[i], slope = splat((F)1);
        if (smooth) dt = softplus<true>(dt, slope);
        store(dt_tile + at, dt);
        store(slope_tile + at, slope);
        store(da + at, V{});
        if (!ANY_EXPONENT) beyond = (dt < 0 ? -dt : dt) <= limit ? beyond : splat((F)1);
      }
    for (int g = 0; g < G; ++g) memset(tiles.dx + tile(g), 0, steps * WIDTH * sizeof(F));
    bounded = ANY_EXPONENT || !any(beyond);
  }

  template <int S> void run(int64_t n) const {
    bounded ? recompute<S, true>(n) : recompute<S, ANY_EXPONENT>(n);
    for (int g = 0; g < G; ++g) {
      // states of one direction at a time, because those of all would not fit the first cache
      if (G > 1) states_of<S>(n, g);
      sweep<S>(n, g);
    }
  }

  template <int S, bool BOUNDED> void recompute(int64_t n) const {
    const Scan &s = group.s;
    const int64_t steps = group.steps, states = s.state;
    const uint8_t *reset = s.segments ? group.reset : nullptr;
    const F *B = group.B + n, *dt_at = tiles.dt, *u_at = tiles.u;
    F *e_at = tiles.e, *h_at = tiles.h;
    // the first states prefetch the next block's inputs, the last ones its outputs, because a core has few misses in flight
    const int64_t parameters = group.parameter_line(0);
    const bool inputs = n == 0, outputs = n + S == states;
    const Touch dt_ahead = ahead(s.dt, 0, parameters), ddt_ahead = ahead(s.ddt, 0, parameters);
    Touch u_ahead[G];
    for (int g = 0; g < G; ++g) u_ahead[g] = ahead(s.u, g, group.token_line(g));
    V h[S][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) A[j][i] = load(group.A + (n + j) * group.pad + column + i * W);
    if (G == 1) first_states<S>(n, 0, h);
    for (int64_t t = 0; t < steps; ++t, B += states, dt_at += WIDTH, u_at += WIDTH, e_at += S * WIDTH) {
      h_at += S * WIDTH;
      if (inputs) {
        dt_ahead.touch(t);
        for (int g = 0; g < G; ++g) u_ahead[g].touch(t);
      }
      if (outputs) ddt_ahead.touch(t);
      V dt[U], xu[U];
      for (int i = 0; i < U; ++i) {
        dt[i] = load(dt_at + i * W);
        if (G == 1) xu[i] = dt[i] * load(u_at + i * W);
      }
      const bool restart = reset && reset[t];
      for (int j = 0; j < S; ++j)
        for (int i = 0; i < U; ++i) {
          V e = exp2_product<BOUNDED>(dt[i], A[j][i]);
          if (restart) e = V{};
          store(e_at + j * WIDTH + i * W, e);
          if (G > 1) continue;
          if (restart) h[j][i] = V{};
          h[j][i] = e * h[j][i] + xu[i] * splat(B[j]);
          store(h_at + j * WIDTH + i * W, h[j][i]);
        }
    }
  }

  // Prefetches the states before the chunk.
  __attribute__((always_inline)) void touch_states() const {
    const Scan &s = group.s;
    for (int g = 0; g < G; ++g) {
      const F *from = place<F>(s.saved, group.b, group.first + g, group.range.begin + column) + chunk * s.saved.row;
      for (int64_t n = 0; n < s.state; ++n)
        for (int i = 0; i < LINES; ++i) __builtin_prefetch((const char *)(from + n * s.channels) + i * 64, 0, 2);
    }
  }

  // Loads the states before the chunk.
  template <int S> void first_states(int64_t n, int g, V (&h)[S][U]) const {
    const Scan &s = group.s;
    const F *from = place<F>(s.saved, group.b, group.first + g, group.range.begin + column) + chunk * s.saved.row;
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        h[j][i] = load_some<F>(from + (n + j) * s.channels + i * W, group.range.size() - column - i * W);
        store(tiles.h + j * WIDTH + i * W, h[j][i]);
      }
  }

  // Computes the states of one direction from decays computed before.
  template <int S> void states_of(int64_t n, int g) const {
    const int64_t steps = group.steps, states = group.s.state;
    const F *B = group.B + g * group.s.chunk * states + n, *dt_at = tiles.dt, *u_at = tiles.u + tile(g), *e = tiles.e;
    F *h_at = tiles.h + S * WIDTH;
    V h[S][U];
    first_states<S>(n, g, h);
    for (int64_t t = 0; t < steps; ++t, B += states, dt_at += WIDTH, u_at += WIDTH, e += S * WIDTH, h_at += S * WIDTH)
      for (int i = 0; i < U; ++i) {
        const V xu = load(dt_at + i * W) * load(u_at + i * W);
        for (int j = 0; j < S; ++j) {
          h[j][i] = load(e + j * WIDTH + i * W) * h[j][i] + xu * splat(B[j]);
          store(h_at + j * WIDTH + i * W, h[j][i]);
        }
      }
  }

  template <int S> void sweep(int64_t n, int g) const {
    const int64_t pad = group.pad, states = group.s.state, last = group.steps - 1;
    const int64_t in_tile = tile(g) + last * WIDTH, in_sums = sums(g) + (last * states + n) * W;
    const int64_t in_states = (g * group.s.chunk + last) * states + n;
    F *state = group.state + (g * states + n) * pad + column, *da_at = tiles.da + last * WIDTH, *dx_at = tiles.dx + in_tile;
    F *dB_at = tiles.dB + in_sums, *dC_at = tiles.dC + in_sums;
    const F *B = group.B + in_states, *C = group.C + in_states;
    const F *dt_at = tiles.dt + last * WIDTH, *u_at = tiles.u + in_tile, *dy_at = tiles.dy + in_tile;
    const F *e = tiles.e + last * S * WIDTH, *before = tiles.h + last * S * WIDTH;
    const int64_t tokens = group.token_line(g);
    const Touch dy_ahead = ahead(group.s.grad_y, g, tokens), du_ahead = ahead(group.s.du, g, tokens);
    V dh[S][U], dA[S][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * pad + column + i * W);
        dA[j][i] = V{};
        dh[j][i] = load(state + j * pad + i * W);
      }
    for (int64_t t = last; t >= 0; --t) {
      const F *after = before + S * WIDTH;
      if (n == 0) dy_ahead.touch(t);
      if (n + S == states) du_ahead.touch(t);
      V dt[U], da[U], xu[U], dy[U], dx[U];
      for (int i = 0; i < U; ++i) {
        dt[i] = load(dt_at + i * W);
        da[i] = load(da_at + i * W);
        xu[i] = dt[i] * load(u_at + i * W);
        dy[i] = load(dy_at + i * W);
        dx[i] = load(dx_at + i * W);
      }
      for (int j = 0; j < S; ++j) {
        V dB = load(dB_at + j * W), dC = load(dC_at + j * W);
        for (int i = 0; i < U; ++i) {
          const int64_t lane = j * WIDTH + i * W;
          const V q = dy[i] * splat(C[j]) + dh[j][i];
          dC += dy[i] * load(after + lane);
          dB += q * xu[i];
          dx[i] += q * splat(B[j]);
          dh[j][i] = q * load(e + j * WIDTH + i * W);
          const V through = dh[j][i] * load(before + lane);  // the gradient of log e
          da[i] += through * A[j][i];
          dA[j][i] += through * dt[i];
        }
        store(dB_at + j * W, dB);
        store(dC_at + j * W, dC);
      }
      for (int i = 0; i < U; ++i) {
        store(da_at + i * W, da[i]);
        store(dx_at + i * W, dx[i]);
      }
      B -= states, C -= states, dB_at -= states * W, dC_at -= states * W;
      dt_at -= WIDTH, u_at -= WIDTH, dy_at -= WIDTH, da_at -= WIDTH, dx_at -= WIDTH;
      e -= S * WIDTH, before -= S * WIDTH;
    }
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        F *to = tiles.dA + (n + j) * pad + column + i * W;
        store(to, load(to) + dA[j][i]);
        store(state + j * pad + i * W, dh[j][i]);
      }
  }

  // Turns the gradients of dt * u and of the decays into those of u and dt, in place of dx and da.
  void finish() {
    const int64_t steps = group.steps, next = tile(1);
    const F *dt_tile = tiles.dt, *slope_tile = tiles.slope, *u_tile = tiles.u, *dy_tile = tiles.dy;
    F *da_tile = tiles.da, *dx_tile = tiles.dx;
    for (int i = 0; i < U; ++i) {
      V dD[G] = {}, dbias{}, D[G];
      for (int g = 0; g < G; ++g) D[g] = load(group.D + g * group.pad + column + i * W);
      for (int64_t at = i * W; at < steps * WIDTH; at += WIDTH) {
        const V dt = load(dt_tile + at);
        V ddt = load(da_tile + at) * splat((F)LN2);
        for (int g = 0; g < G; ++g) {
          const V u = load(u_tile + g * next + at), dy = load(dy_tile + g * next + at), dx = load(dx_tile + g * next + at);
          store(dx_tile + g * next + at, dx * dt + dy * D[g]);
          ddt += dx * u;
          dD[g] += dy * u;
        }
        ddt *= load(slope_tile + at);
        store(da_tile + at, ddt);
        dbias += ddt;
      }
      const int64_t to = column + i * W;
      store(tiles.dbias + to, load(tiles.dbias + to) + dbias);
      for (int g = 0; g < G; ++g) store(tiles.dD + g * group.pad + to, load(tiles.dD + g * group.pad + to) + dD[g]);
    }
  }
};

template <class F, int G, int U>
static void backward_block(const Group<F> &group, const BackwardTiles<F> &tiles, int64_t column, int64_t chunk) {
  const Scan &s = group.s;
  constexpr int WIDTH = U * lanes<F>();
  const int64_t b = group.b, k = group.first, channel = group.range.begin + column;
  const int64_t columns = smaller(group.range.size() - column, WIDTH);
  BackwardBlock<F, G, U> block{group, tiles, column, chunk};
  const bool single = G == 1 && s.state == 1;
  F *dt_tile = single ? tiles.da : tiles.dt;  // ddt replaces it there
  stage(dt_tile, WIDTH, s.dt, b, k, channel, group.parameters(0), columns);
  for (int g = 0; g < G; ++g) {
    stage(tiles.u + block.tile(g), WIDTH, s.u, b, k + g, channel, group.tokens(g), columns);
    stage(tiles.dy + block.tile(g), WIDTH, s.grad_y, b, k + g, channel, group.tokens(g), columns);
  }
  if (single) {
    const Rows<F> dt{tiles.da, group.iota, WIDTH}, du{tiles.dx, group.iota, WIDTH};
    const Rows<F> u{tiles.u, group.iota, WIDTH}, dy{tiles.dy, group.iota, WIDTH};
    backward_single(group, tiles, column, WIDTH, chunk, dt, u, dy, du, PUT, dt, PUT);
  } else {
    block.prepare();
    for_states<BACKWARD_STATES>(s.state, block);
    block.finish();
  }
  const Write add_dt = s.ddt.direction == 0 && k > 0 ? ADD : PUT;
  const Write add_u = s.du.direction == 0 && (G > 1 || k > 0) ? ADD : PUT;  // a group finds zeros
  unstage(tiles.da, WIDTH, s.ddt, b, k, channel, group.parameters(0), columns, add_dt);
  for (int g = 0; g < G; ++g) unstage(tiles.dx + block.tile(g), WIDTH, s.du, b, k + g, channel, group.tokens(g), columns, add_u);
}

// Runs one direction with one state on rows of the tensors, as far as possible; returns the number of channels done.
template <class F> static int64_t backward_rows(const Group<F> &group, const BackwardTiles<F> &tiles, int64_t chunk) {
  const Scan &s = group.s;
  constexpr int W = lanes<F>();
  const int64_t b = group.b, k = group.first, end = group.range.size() / W * W;
  const int64_t *tokens = group.visited, *parameters = tokens + group.parameter_line(0);
  if (s.state > 1 || s.du.dtype != s.A.dtype || s.ddt.dtype != s.A.dtype) return 0;
  const Array *const arrays[] = {&s.u, &s.dt, &s.grad_y, &s.du, &s.ddt};
  for (const Array *a : arrays)
    if (a->column != 1) return 0;
  for (int64_t column = 0; column < end; column += PANEL * W) {
    const int64_t channel = group.range.begin + column, wide = smaller(PANEL * W, end - column);
    const Rows<F> du{place<F>(s.du, b, k, channel), tokens, s.du.row}, ddt{place<F>(s.ddt, b, k, channel), parameters, s.ddt.row};
    const Write write_u = group.writing(s.du, column, wide);
    const Write write_dt = group.writing(s.ddt, column, wide);
    with_type<F>(s.dt, b, k, channel, [&](auto *dt) {
      const auto u = rows_of(place_like(dt, s.u, b, k, channel), tokens, s.u.row);
      const auto dy = rows_of(place_like(dt, s.grad_y, b, k, channel), tokens, s.grad_y.row);
      backward_single(group, tiles, column, wide, chunk, rows_of(dt, parameters, s.dt.row), u, dy, du, write_u, ddt, write_dt);
    });
  }
  return end;
}

// Sums the lanes of a chunk's dB or dC and writes them, or adds them where directions share B or C.
template <class F>
static void reduce_states(const Group<F> &group, F *lanes_of, F *sums, const Array &to, int64_t offset) {
  const Scan &s = group.s;
  constexpr int W = lanes<F>();
  for (int64_t g = 0; g < group.size; ++g) {
    const F *from = lanes_of + g * (s.chunk * s.state + W) * W;
    for (int64_t i = 0; i < group.steps * s.state; i += W) {
      Vec<F> rows[W], sum{};
      for (int j = 0; j < W; ++j) rows[j] = load(from + (i + j) * W);
      transpose(rows);
      for (int j = 0; j < W; ++j) sum += rows[j];
      store(sums + i, sum);
    }
    const Steps steps = group.parameters(g);
    const bool add = to.direction == 0 && group.first + g > 0;
    F *base = place<F>(to, group.b, group.first + g, 0) + offset;
    for (int64_t i = 0; i < steps.count; ++i)
      if (add)
        add_row(base + steps.rows[i] * to.row, sums + i * s.state, s.state);
      else
        write_row(base + steps.rows[i] * to.row, sums + i * s.state, s.state);
  }
}

template <class F> static void add_parameters(const Group<F> &group, const BackwardTiles<F> &tiles) {
  const Scan &s = group.s;
  const int64_t wide = group.range.size(), from = group.range.begin;
  for (int64_t n = 0; n < s.state; ++n)
    add_row(place<F>(s.dA, group.b, group.first, from) + n * s.dA.row, tiles.dA + n * group.pad, wide);
  if (s.dbias.data) add_row(place<F>(s.dbias, group.b, group.first, from), tiles.dbias, wide);
  for (int64_t g = 0; g < group.size && s.dD.data; ++g)
    add_row(place<F>(s.dD, group.b, group.first + g, from), tiles.dD + g * group.pad, wide);
}

template <class F, int G> static void backward_group(Group<F> &group, const BackwardTiles<F> &tiles, int64_t part) {
  const Scan &s = group.s;
  constexpr int U = BLOCK, W = lanes<F>();
  const int64_t rows = G * (s.chunk * s.state + W) * W, chunks = (s.length + s.chunk - 1) / s.chunk;
  group.read_states(s.grad_last, 0);
  tiles.clear(s, group.pad);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    group.enter_chunk(chunk * s.chunk, (chunk - 1) * s.chunk);
    memset(tiles.dB, 0, rows * sizeof(F));
    memset(tiles.dC, 0, rows * sizeof(F));
    int64_t column = G == 1 ? backward_rows(group, tiles, chunk) : 0;
    for (; column + W < group.range.size(); column += U * W) backward_block<F, G, U>(group, tiles, column, chunk);
    if (column < group.range.size()) backward_block<F, G, 1>(group, tiles, column, chunk);
    reduce_states(group, tiles.dB, tiles.sums, s.dB, part * s.dB_part);
    reduce_states(group, tiles.dC, tiles.sums, s.dC, part * s.dC_part);
  }
  if (s.dinitial.data) group.write_states(s.dinitial, 0);
  add_parameters(group, tiles);
}
