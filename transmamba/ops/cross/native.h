// The cross scan: tokens of a context advance the states, and a query reads them right after its step, from registers.
#pragma once
#include "scan/native/backward.h"
#include "scan/native/unit.h"

// The queries of one batch element and direction in the order in which their steps come.
struct Due {
  const int64_t *queue, *first;  // numbers of queries; where those of each step begin
  Due(const Cross &x, int64_t b, int64_t k, int64_t start) {
    const int64_t scan = b * x.directions + k;
    queue = x.queue + scan * x.queries;
    first = x.first + scan * (x.length + 1) + start;
  }
};

template <class F> struct CrossTiles {
  F *dt, *slope, *u, *dx, *da;  // (step, lane); forward: u is dt * u, and the others do not exist
  F *e, *h;                     // decays (step, state, lane), states (step + 1, state, lane) of a few states
  F *dB, *sums;                 // (step, state, lane of one vector), summed over blocks of channels
  F *dA, *dbias;
  CrossTiles(const Scan &s, int64_t pad, bool backward, Arena &arena) {
    const int64_t W = lanes<F>(), width = BLOCK * W, size = s.chunk * width, rows = s.chunk * s.state + W;
    dt = arena.take<F>(size);
    u = arena.take<F>(size);
    if (!backward) return;
    slope = arena.take<F>(size);
    dx = arena.take<F>(size);
    da = arena.take<F>(size);
    e = arena.take<F>(BACKWARD_STATES * size);
    h = arena.take<F>(BACKWARD_STATES * (size + width));
    dB = arena.take<F>(rows * W);
    sums = arena.take<F>(rows);
    dA = arena.take<F>(s.state * pad);
    dbias = arena.take<F>(pad);
  }
};

// One chunk of one block of U vectors of channels of one direction.
template <class F, int U> struct CrossBlock {
  typedef Vec<F> V;
  static constexpr int W = lanes<F>(), WIDTH = U * W, LINES = (U * BYTES + 63) / 64;
  const Cross &x;
  const Group<F> &group;
  const CrossTiles<F> &tiles;
  int64_t column, chunk;  // first channel, counted from the part's; number of the chunk
  bool bounded = true;

  int64_t channel() const { return group.range.begin + column; }
  int64_t columns() const { return group.range.size() - column; }
  Ahead<LINES, 2> ahead(const Array &a, int64_t line) const { return group.template to_come<LINES>(a, 0, line, column + WIDTH); }

  // Reads a chunk; bias and softplus.
  template <bool BACKWARD> void prepare() {
    const bool smooth = x.softplus;
    const int64_t steps = group.steps, wide = smaller(columns(), WIDTH);
    const V limit = splat(group.limit);
    F *dt_tile = tiles.dt, *u_tile = tiles.u;
    stage(dt_tile, WIDTH, x.dt, group.b, group.first, channel(), group.parameters(0), wide);
    stage(u_tile, WIDTH, x.u, group.b, group.first, channel(), group.tokens(0), wide);
    V beyond{}, bias[U];
    for (int i = 0; i < U; ++i) bias[i] = load(group.bias + column + i * W);
    for (int64_t t = 0; t < steps; ++t)
      for (int i = 0; i < U; ++i) {
        const int64_t at = t * WIDTH + i * W;
        V dt = load(dt_tile + at) + bias[i], slope = splat((F)1);
        if (smooth) dt = softplus<BACKWARD>(dt, slope);
        store(dt_tile + at, dt);
        if (BACKWARD)
          store(tiles.slope + at, slope);
        else
          store(u_tile + at, dt * load(u_tile + at));
        if (!ANY_EXPONENT) beyond = (dt < 0 ? -dt : dt) <= limit ? beyond : splat((F)1);
      }
    bounded = ANY_EXPONENT || !any(beyond);
    if (!BACKWARD) return;
    memset(tiles.da, 0, steps * WIDTH * sizeof(F));
    memset(tiles.dx, 0, steps * WIDTH * sizeof(F));
  }
};

template <class F, int U> struct CrossForward : CrossBlock<F, U> {
  typedef CrossBlock<F, U> Block;
  typedef Vec<F> V;
  using Block::x, Block::group, Block::tiles, Block::column, Block::chunk, Block::bounded, Block::W, Block::WIDTH;

  template <int S> void run(int64_t n) const { bounded ? advance<S, true>(n) : advance<S, ANY_EXPONENT>(n); }

  // Runs the recurrence of states [n, n + S), and adds their part of the outputs.
  template <int S, bool BOUNDED> void advance(int64_t n) const {
    const int64_t pad = group.pad, states = x.state, steps = group.steps, columns = this->columns(), row = x.y.row;
    const Due due(x, group.b, group.first, chunk * x.chunk);
    const int64_t *queue = due.queue, *first = due.first, far = n == 0 ? steps : 0;
    const F *B = group.B + n, *dt_at = tiles.dt, *xu_at = tiles.u;
    const F *C = place<F>(x.readout, group.b, group.first, n);
    F *y = place<F>(x.y, group.b, group.first, this->channel()), *state = group.state + n * pad + column;
    // the first states prefetch the next block, because their loop has time to spare
    const auto dt_ahead = this->ahead(x.dt, group.parameter_line(0)), u_ahead = this->ahead(x.u, group.token_line(0));
    V h[S][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * pad + column + i * W);
        h[j][i] = load(state + j * pad + i * W);
      }
    for (int64_t t = 0; t < steps; ++t, B += states, dt_at += WIDTH, xu_at += WIDTH) {
      if (t < far) {
        dt_ahead.touch(t);
        u_ahead.touch(t);
      }
      for (int i = 0; i < U; ++i) {
        const V dt = load(dt_at + i * W), xu = load(xu_at + i * W);
        for (int j = 0; j < S; ++j) h[j][i] = exp2_product<BOUNDED>(dt, A[j][i]) * h[j][i] + xu * splat(B[j]);
      }
      for (int64_t at = first[t]; at < first[t + 1]; ++at) {
        const F *weight = C + queue[at] * x.readout.row;
        F *to = y + queue[at] * row;
        for (int i = 0; i < U; ++i) {
          V sum = load_some<F>(to + i * W, columns - i * W);
          for (int j = 0; j < S; ++j) sum += h[j][i] * splat(weight[j]);
          store_some<F>(to + i * W, sum, columns - i * W);
        }
      }
    }
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) store(state + j * pad + i * W, h[j][i]);
  }
};

template <class F, int U> struct CrossBackward : CrossBlock<F, U> {
  typedef CrossBlock<F, U> Block;
  typedef Vec<F> V;
  using Block::x, Block::group, Block::tiles, Block::column, Block::chunk, Block::bounded, Block::W, Block::WIDTH;
  int64_t part;

  template <int S> void run(int64_t n) const {
    bounded ? recompute<S, true>(n) : recompute<S, ANY_EXPONENT>(n);
    sweep<S>(n);
  }

  // Computes decays and states of the chunk from the states before it.
  template <int S, bool BOUNDED> void recompute(int64_t n) const {
    const int64_t steps = group.steps, states = x.state, columns = this->columns(), far = n == 0 ? steps : 0;
    const F *B = group.B + n, *dt_at = tiles.dt, *u_at = tiles.u;
    const F *from = place<F>(x.saved, group.b, group.first, this->channel()) + chunk * x.saved.row;
    F *e_at = tiles.e, *h_at = tiles.h;
    const int64_t parameters = group.parameter_line(0);
    const auto dt_ahead = this->ahead(x.dt, parameters), ddt_ahead = this->ahead(x.ddt, parameters);
    const auto u_ahead = this->ahead(x.u, group.token_line(0));
    V h[S][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * group.pad + column + i * W);
        h[j][i] = load_some<F>(from + (n + j) * x.channels + i * W, columns - i * W);
        store(h_at + j * WIDTH + i * W, h[j][i]);
      }
    for (int64_t t = 0; t < steps; ++t, B += states, dt_at += WIDTH, u_at += WIDTH, e_at += S * WIDTH) {
      h_at += S * WIDTH;
      if (t < far) {
        dt_ahead.touch(t);
        ddt_ahead.touch(t);
        u_ahead.touch(t);
      }
      for (int i = 0; i < U; ++i) {
        const V dt = load(dt_at + i * W), xu = dt * load(u_at + i * W);
        for (int j = 0; j < S; ++j) {
          const V e = exp2_product<BOUNDED>(dt, A[j][i]);
          h[j][i] = e * h[j][i] + xu * splat(B[j]);
          store(e_at + j * WIDTH + i * W, e);
          store(h_at + j * WIDTH + i * W, h[j][i]);
        }
      }
    }
  }

  // Adds the gradients of one step's queries to the adjoints, and computes their dC.
  template <int S>
  __attribute__((always_inline)) void ask(V (&dh)[S][U], const Due &due, int64_t t, const F *after, const F *C, const F *dy, F *dC) const {
    const int64_t columns = this->columns();
    for (int64_t at = due.first[t]; at < due.first[t + 1]; ++at) {
      const int64_t query = due.queue[at];
      const F *weight = C + query * x.readout.row, *from = dy + query * x.grad_y.row;
      F *to = dC + query * x.dC.row;
      V sum[S] = {};
      for (int i = 0; i < U; ++i) {
        const V g = load_some<F>(from + i * W, columns - i * W);
        for (int j = 0; j < S; ++j) {
          dh[j][i] += g * splat(weight[j]);
          sum[j] += g * load(after + j * WIDTH + i * W);
        }
      }
      for (int j = 0; j < S; ++j) to[j] += total(sum[j]);
    }
  }

  template <int S> void sweep(int64_t n) const {
    const int64_t pad = group.pad, states = x.state, last = group.steps - 1;
    const Due due(x, group.b, group.first, chunk * x.chunk);
    const bool asked = x.queries && x.grad_y.data;
    const F *C = place<F>(x.readout, group.b, group.first, n);
    const F *dy = asked ? place<F>(x.grad_y, group.b, group.first, this->channel()) : nullptr;
    F *dC = place<F>(x.dC, group.b, group.first, n) + part * x.dC_part;
    F *state = group.state + n * pad + column, *da_at = tiles.da + last * WIDTH, *dx_at = tiles.dx + last * WIDTH;
    F *dB_at = tiles.dB + (last * states + n) * W;
    const F *B = group.B + last * states + n, *dt_at = tiles.dt + last * WIDTH, *u_at = tiles.u + last * WIDTH;
    const F *e = tiles.e + last * S * WIDTH, *before = tiles.h + last * S * WIDTH;
    const auto du_ahead = this->ahead(x.du, group.token_line(0));
    V dh[S][U], dA[S][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * pad + column + i * W);
        dA[j][i] = V{};
        dh[j][i] = load(state + j * pad + i * W);
      }
    for (int64_t t = last; t >= 0; --t) {
      if (n == 0) du_ahead.touch(t);
      if (asked) ask<S>(dh, due, t, before + S * WIDTH, C, dy, dC);
      V dt[U], da[U], xu[U], dx[U];
      for (int i = 0; i < U; ++i) {
        dt[i] = load(dt_at + i * W);
        da[i] = load(da_at + i * W);
        xu[i] = dt[i] * load(u_at + i * W);
        dx[i] = load(dx_at + i * W);
      }
      for (int j = 0; j < S; ++j) {
        V dB = load(dB_at + j * W);
        for (int i = 0; i < U; ++i) {
          const int64_t lane = j * WIDTH + i * W;
          const V q = dh[j][i];
          dB += q * xu[i];
          dx[i] += q * splat(B[j]);
          dh[j][i] = q * load(e + lane);
          const V through = dh[j][i] * load(before + lane);  // the gradient of log e
          da[i] += through * A[j][i];
          dA[j][i] += through * dt[i];
        }
        store(dB_at + j * W, dB);
      }
      for (int i = 0; i < U; ++i) {
        store(da_at + i * W, da[i]);
        store(dx_at + i * W, dx[i]);
      }
      B -= states, dB_at -= states * W, dt_at -= WIDTH, u_at -= WIDTH, da_at -= WIDTH, dx_at -= WIDTH;
      e -= S * WIDTH, before -= S * WIDTH;
    }
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        F *to = tiles.dA + (n + j) * pad + column + i * W;
        store(to, load(to) + dA[j][i]);
        store(state + j * pad + i * W, dh[j][i]);
      }
  }

  // Turns the gradients of dt * u and of the decays into those of u and dt, in place of dx and da, and writes them.
  void finish() const {
    const int64_t steps = group.steps, wide = smaller(this->columns(), WIDTH);
    for (int i = 0; i < U; ++i) {
      V dbias{};
      for (int64_t at = i * W; at < steps * WIDTH; at += WIDTH) {
        const V dx = load(tiles.dx + at);
        const V ddt = (load(tiles.da + at) * splat((F)LN2) + dx * load(tiles.u + at)) * load(tiles.slope + at);
        store(tiles.dx + at, dx * load(tiles.dt + at));
        store(tiles.da + at, ddt);
        dbias += ddt;
      }
      F *to = tiles.dbias + column + i * W;
      store(to, load(to) + dbias);
    }
    const int64_t k = group.first, channel = this->channel();
    unstage(tiles.da, WIDTH, x.ddt, group.b, k, channel, group.parameters(0), wide, x.ddt.direction == 0 && k > 0 ? ADD : PUT);
    unstage(tiles.dx, WIDTH, x.du, group.b, k, channel, group.tokens(0), wide, x.du.direction == 0 && k > 0 ? ADD : PUT);
  }
};

template <class F, int U> static void cross_block(const Cross &x, const Group<F> &group, const CrossTiles<F> &tiles, int64_t column, int64_t chunk) {
  CrossForward<F, U> block{{x, group, tiles, column, chunk}};
  block.template prepare<false>();
  for_states<FORWARD_STATES>(x.state, block);
}
template <class F, int U> static void cross_block_back(const Cross &x, const Group<F> &group, const CrossTiles<F> &tiles, int64_t column, int64_t chunk, int64_t part) {
  CrossBackward<F, U> block{{x, group, tiles, column, chunk}, part};
  block.template prepare<true>();
  for_states<BACKWARD_STATES>(x.state, block);
  block.finish();
}

template <class F> static size_t cross_forward_unit(const Cross &x, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  Group<F> group(x, b, part, arena);
  const CrossTiles<F> tiles(x, group.pad, false, arena);
  constexpr int W = lanes<F>();
  for (int64_t k = 0; scratch && k < x.directions; ++k) {
    group.enter(k);
    group.read_states(x.initial, 0);
    for (int64_t t = 0, chunk = 0; t < x.length; t += x.chunk, ++chunk) {
      if (x.saved.data) group.write_states(x.saved, chunk);
      group.enter_chunk(t, t + x.chunk);
      int64_t column = 0;
      for (; column + W < group.range.size(); column += BLOCK * W) cross_block<F, BLOCK>(x, group, tiles, column, chunk);
      if (column < group.range.size()) cross_block<F, 1>(x, group, tiles, column, chunk);
    }
    group.write_states(x.last, 0);
  }
  return arena.used;
}

template <class F> static size_t cross_backward_unit(const Cross &x, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  Group<F> group(x, b, part, arena);
  const CrossTiles<F> tiles(x, group.pad, true, arena);
  constexpr int W = lanes<F>();
  for (int64_t k = 0; scratch && k < x.directions; ++k) {
    group.enter(k);
    group.read_states(x.grad_last, 0);
    memset(tiles.dA, 0, x.state * group.pad * sizeof(F));
    memset(tiles.dbias, 0, group.pad * sizeof(F));
    for (int64_t chunk = (x.length + x.chunk - 1) / x.chunk - 1; chunk >= 0; --chunk) {
      group.enter_chunk(chunk * x.chunk, (chunk - 1) * x.chunk);
      memset(tiles.dB, 0, (x.chunk * x.state + W) * W * sizeof(F));
      int64_t column = 0;
      for (; column + W < group.range.size(); column += BLOCK * W) cross_block_back<F, BLOCK>(x, group, tiles, column, chunk, part);
      if (column < group.range.size()) cross_block_back<F, 1>(x, group, tiles, column, chunk, part);
      reduce_states(group, tiles.dB, tiles.sums, x.dB, part * x.dB_part);
    }
    const int64_t wide = group.range.size(), from = group.range.begin;
    for (int64_t n = 0; n < x.state; ++n) add_row(place<F>(x.dA, b, k, from) + n * x.dA.row, tiles.dA + n * group.pad, wide);
    if (x.dbias.data) add_row(place<F>(x.dbias, b, k, from), tiles.dbias, wide);
  }
  return arena.used;
}
