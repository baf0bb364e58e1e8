// Forward: states advance chunk by chunk; lanes are channels, time is sequential.
#pragma once
#include "scan/native/single.h"

// Writes rows of channels past the caches although they start anywhere in a cache line: the part of a row's last line that
// a chunk leaves waits for the next chunk. A chunk is at least as long as a line.
template <class F> struct Lines {
  static constexpr int W = lanes<F>(), LINE = 64 / sizeof(F);
  F *rows, *waiting;  // of W channels, with room for the waiting numbers before them; a line per channel
  int64_t pitch;
  Lines(const Scan &s, Arena &arena) : pitch(LINE + s.chunk) {
    rows = arena.take<F>(W * pitch);
    waiting = arena.take<F>(padded_part(s) * LINE);
  }

  // Writes the steps of a tile to memory, those of one channel `stride` from those of the next.
  void write(const F *tile, int64_t width, F *to, int64_t stride, int64_t count, int64_t column, int64_t columns, bool first, bool last) const {
    for (int64_t c = 0; c < columns; c += W) {
      scatter_transposed(tile + c, width, rows + LINE, pitch, count, W, PUT);
      for (int i = 0; i < W && c + i < columns; ++i)
        write_row(to + (c + i) * stride, rows + i * pitch + LINE, waiting + (column + c + i) * LINE, count, first, last);
    }
  }
  // Lines that rows share at their ends go through the caches.
  static void write_row(F *to, F *row, F *rest, int64_t count, bool first, bool last) {
    int64_t t = -(int64_t)((size_t)to % 64 / sizeof(F));  // the line under way began so many steps ago
    if (!first) copy_row(row - LINE, LINE, rest, LINE);
    if (first && t < 0) memcpy(to, row, smaller(t += LINE, count) * sizeof(F));
    for (; t + LINE <= count; t += LINE)
      for (int i = 0; i < LINE; i += W) stream<F>(to + t + i, load<F>(row + t + i));
    if (!last)
      copy_row(rest, LINE, row + count - LINE, LINE);
    else if (t < count)
      memcpy(to + t, row + t, (count - t) * sizeof(F));
  }
};

template <class F> struct ForwardTiles {
  F *dt, *xu, *y;  // (step, lane), xu and y per direction of the group; xu is dt * u
  F *B, *C;        // of several directions: (four states, step, direction, state of the four), so that a pass reads them in a row
  Lines<F> lines;
  ForwardTiles(const Scan &s, Arena &arena) : lines(s, arena) {
    const int64_t size = s.chunk * BLOCK * lanes<F>(), fours = GROUP * s.chunk * ((s.state + 3) / 4 * 4);
    dt = arena.take<F>(size);
    xu = arena.take<F>(GROUP * size);
    y = arena.take<F>(GROUP * size);
    B = arena.take<F>(fours);
    C = arena.take<F>(fours);
  }
};

// Copies B or C from (direction, step, state).
template <class F> static void by_fours(F *to, const F *from, const Scan &s, int64_t steps, int64_t directions) {
  for (int64_t g = 0; g < directions; ++g)
    for (int64_t t = 0; t < steps; ++t) {
      const F *row = from + (g * s.chunk + t) * s.state;
      F *four = to + (t * directions + g) * 4;
      int64_t n = 0;
      for (; n + 4 <= s.state; n += 4, four += s.chunk * directions * 4) memcpy(four, row + n, 4 * sizeof(F));
      for (; n < s.state; ++n) four[n % 4] = row[n];
    }
}

// Four directions take every register: each of their passes over the states has a loop of its own, with only what it needs.
enum Pass { ANY, FIRST, MIDDLE, LAST };

// One chunk of one block of U vectors of channels, for the G directions of a group.
template <class F, int G, int U> struct ForwardBlock {
  typedef Vec<F> V;
  static constexpr int W = lanes<F>(), WIDTH = U * W, LINES = (U * BYTES + 63) / 64;
  const Group<F> &group;
  const ForwardTiles<F> &tiles;
  int64_t column;  // first channel, counted from the part's
  Write how;       // y is written
  bool bounded = true;

  int64_t tile(int g) const { return g * group.s.chunk * WIDTH; }

  // Inputs and outputs of several directions are prefetched into the second cache, because they would crowd the first.
  static constexpr int CACHE = G == 1 ? 1 : 2;
  typedef Ahead<LINES, CACHE> Touch;
  Touch ahead(const Array &a, int g, int64_t line) const {
    return group.template to_come<LINES, CACHE>(a, g, line, column + WIDTH);
  }

  // Computes bias, softplus, and all else that does not depend on the state.
  template <class T> void prepare(Rows<T> dt_rows, const Rows<T> (&u_rows)[G]) {
    // the inputs of loops are copied to locals here and below, because stores to tiles might alias the members
    const Scan &s = group.s;
    const bool smooth = s.softplus;
    const int64_t steps = group.steps, next = tile(1);
    const V limit = splat(group.limit);
    F *dt_tile = tiles.dt, *xu_tile = tiles.xu, *y_tile = tiles.y;
    V beyond{}, unused{}, bias[U], D[G][U];
    Rows<T> from[G];
    for (int g = 0; g < G; ++g) {
      from[g] = u_rows[g];
      for (int i = 0; i < U; ++i) D[g][i] = load(group.D + g * group.pad + column + i * W);
    }
    for (int i = 0; i < U; ++i) bias[i] = load(group.bias + column + i * W);
    // one loop: while softplus computes, u arrives
    for (int64_t t = 0; t < steps; ++t)
      for (int i = 0; i < U; ++i) {
        const int64_t at = t * WIDTH + i * W;
        V dt = load_as(dt_rows.at(t) + i * W) + bias[i];
        if (smooth) dt = softplus<false>(dt, unused);
        store(dt_tile + at, dt);
        if (!ANY_EXPONENT) beyond = (dt < 0 ? -dt : dt) <= limit ? beyond : splat((F)1);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const V u = load_as(from[g].at(t) + i * W);
          store(y_tile + g * next + at, u * D[g][i]);
          store(xu_tile + g * next + at, u * dt);
        }
      }
    bounded = ANY_EXPONENT || !any(beyond);
  }

  // Checks whether the last pass writes y in its final place. Adding is left to `unstage`, one direction after the other,
  // because loads of one direction's rows right behind stores to another's took longer.
  bool direct() const {
    const Array &y = group.s.y;
    const bool fours = G == GROUP && group.s.state > 4 && group.s.state % 4 == 0, same = y.dtype == group.s.A.dtype;
    return fours && same && how != ADD && in_place<F, WIDTH>(y, smaller(group.range.size() - column, WIDTH));
  }
  template <int S> void run(int64_t n) const {
    if (G > 1 && group.s.C.direction == 0)
      bounded ? pass<S, true, true>(n) : pass<S, ANY_EXPONENT, true>(n);
    else
      bounded ? pass<S, true, false>(n) : pass<S, ANY_EXPONENT, false>(n);
  }
  template <int S, bool BOUNDED, bool ONE_READOUT> void pass(int64_t n) const {
    if constexpr (G == GROUP && S == 4) {
      const bool last = n + S == group.s.state;
      if (!last) return n ? advance<S, BOUNDED, ONE_READOUT, MIDDLE>(n) : advance<S, BOUNDED, ONE_READOUT, FIRST>(n);
      if (direct()) return advance<S, BOUNDED, ONE_READOUT, LAST>(n);
    }
    advance<S, BOUNDED, ONE_READOUT, ANY>(n);
  }

  // Runs the recurrence of states [n, n + S).
  template <int S, bool BOUNDED, bool ONE_READOUT, Pass PASS> void advance(int64_t n) const {
    const int64_t pad = group.pad, states = group.s.state, every = states * pad;
    const int64_t steps = group.steps, next = tile(1);
    const uint8_t *reset = group.s.segments ? group.reset : nullptr;
    const int64_t B_step = G > 1 ? G * 4 : states, C_step = ONE_READOUT ? 4 : B_step, four = n / 4 * group.s.chunk;
    const F *B = G > 1 ? tiles.B + four * B_step + n % 4 : group.B + n;
    const F *C = G > 1 ? tiles.C + four * C_step + n % 4 : group.C + n;
    const F *dt_at = tiles.dt, *xu_at = tiles.xu;
    F *y_at = tiles.y, *state = group.state + n * pad + column;
    // the first states prefetch the next block's inputs, the last ones its outputs, because a core has few misses in flight
    const bool inputs = PASS == FIRST || (PASS == ANY && n == 0), outputs = PASS == ANY && n + S == states && how < STREAM;
    const Touch dt_ahead = ahead(group.s.dt, 0, group.parameter_line(0));
    Touch u_ahead[G], y_ahead[G];
    for (int g = 0; g < G; ++g) {
      u_ahead[g] = ahead(group.s.u, g, group.token_line(g));
      y_ahead[g] = ahead(group.s.y, g, group.token_line(g));
    }
    const int64_t y_row = group.s.y.row, *y_rows = group.visited;
    F *y_to[G];
    for (int g = 0; g < G; ++g) y_to[g] = place<F>(group.s.y, group.b, group.first + g, group.range.begin + column);
    V h[S][G][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * pad + column + i * W);
        for (int g = 0; g < G; ++g) h[j][g][i] = load(state + g * every + j * pad + i * W);
      }
    for (int64_t t = 0; t < steps; ++t, B += B_step, C += C_step, dt_at += WIDTH, xu_at += WIDTH, y_at += WIDTH) {
      if (inputs) {
        dt_ahead.touch(t);
        for (int g = 0; g < G; ++g) u_ahead[g].touch(t);
      }
      for (int g = 0; outputs && g < G; ++g) y_ahead[g].touch(t);
      V dt[U], xu[G][U], y[G][U];
      for (int i = 0; i < U; ++i) {
        dt[i] = load(dt_at + i * W);
        for (int g = 0; g < G; ++g) {
          xu[g][i] = load(xu_at + g * next + i * W);
          y[g][i] = load(y_at + g * next + i * W);
        }
      }
      if (reset && reset[t])
        for (int j = 0; j < S; ++j)
          for (int i = 0; i < U; ++i) h[j][0][i] = V{};
#pragma GCC unroll 16
      for (int j = 0; j < S; ++j)
#pragma GCC unroll 2
        for (int i = 0; i < U; ++i) {
          const V e = exp2_product<BOUNDED>(dt[i], A[j][i]);
          for (int g = 0; g < G; ++g) {
            h[j][g][i] = e * h[j][g][i] + xu[g][i] * splat(B[g * 4 + j]);
            y[g][i] += h[j][g][i] * splat(C[(ONE_READOUT ? 0 : g * 4) + j]);
          }
        }
      for (int g = 0; g < G; ++g)
        for (int i = 0; i < U; ++i)
          if (PASS == LAST)
            write(y_to[g] + y_rows[g * group.s.chunk + t] * y_row + i * W, y[g][i], how);
          else
            store(y_at + g * next + i * W, y[g][i]);
    }
    for (int j = 0; j < S; ++j)
      for (int g = 0; g < G; ++g)
        for (int i = 0; i < U; ++i) store(state + g * every + j * pad + i * W, h[j][g][i]);
  }
};

template <class F, int G, int U> static void forward_block(const Group<F> &group, const ForwardTiles<F> &tiles, int64_t column) {
  const Scan &s = group.s;
  constexpr int WIDTH = U * lanes<F>();
  const int64_t b = group.b, k = group.first, channel = group.range.begin + column;
  const int64_t columns = smaller(group.range.size() - column, WIDTH);
  ForwardBlock<F, G, U> block{group, tiles, column, group.writing(s.y, column, columns)};
  const auto run = [&](auto dt, const auto &u) {
    if (G == 1 && s.state == 1) return forward_single(group, column, WIDTH, dt, u[0], Rows<F>{tiles.y, group.iota, WIDTH}, PUT);
    block.prepare(dt, u);
    for_states<G == 1 ? FORWARD_STATES : 4>(s.state, block);
  };
  if (in_place<F, WIDTH>(s.u, columns) && in_place<F, WIDTH>(s.dt, columns)) {
    with_type<F>(s.dt, b, k, channel, [&](auto *dt) {
      decltype(rows_of(dt, nullptr, 0)) u[G];
      for (int g = 0; g < G; ++g)
        u[g] = rows_of(place_like(dt, s.u, b, k + g, channel), group.visited + g * s.chunk, s.u.row);
      run(rows_of(dt, group.visited + group.parameter_line(0), s.dt.row), u);
    });
  } else {
    Rows<F> u[G];
    stage(tiles.dt, WIDTH, s.dt, b, k, channel, group.parameters(0), columns);
    for (int g = 0; g < G; ++g) {
      stage(tiles.xu + block.tile(g), WIDTH, s.u, b, k + g, channel, group.tokens(g), columns);
      u[g] = {tiles.xu + block.tile(g), group.iota, WIDTH};
    }
    run(Rows<F>{tiles.dt, group.iota, WIDTH}, u);
  }
  if (block.direct()) return;
  for (int g = 0; g < G; ++g) {
    const Steps tokens = group.tokens(g);
    const F *y = tiles.y + block.tile(g);
    if (block.how == STREAM_LINES) {
      const int64_t t = tokens.rows[0];
      F *to = place<F>(s.y, b, k + g, channel) + t;
      tiles.lines.write(y, WIDTH, to, s.y.column, tokens.count, column, columns, t == 0, t + tokens.count == s.length);
    } else {
      unstage(y, WIDTH, s.y, b, k + g, channel, tokens, columns, block.how);
    }
  }
}

// Runs one direction with one state on whole rows of the tensors, as far as possible; returns the number of channels done.
template <class F> static int64_t forward_rows(const Group<F> &group) {
  const Scan &s = group.s;
  const int64_t b = group.b, k = group.first, channel = group.range.begin, wide = group.range.size() / lanes<F>() * lanes<F>();
  if (s.state > 1 || s.u.column != 1 || s.dt.column != 1 || s.y.column != 1 || s.y.dtype != s.A.dtype) return 0;
  with_type<F>(s.dt, b, k, channel, [&](auto *dt) {
    const auto u = rows_of(place_like(dt, s.u, b, k, channel), group.visited, s.u.row);
    const Rows<F> y{place<F>(s.y, b, k, channel), group.visited, s.y.row};
    const Write how = group.writing(s.y, 0, wide);
    forward_single(group, 0, wide, rows_of(dt, group.visited + group.parameter_line(0), s.dt.row), u, y, how);
  });
  return wide;
}

template <class F, int G> static void forward_group(Group<F> &group, const ForwardTiles<F> &tiles) {
  const Scan &s = group.s;
  constexpr int U = G > 2 ? 1 : BLOCK, W = lanes<F>();
  group.read_states(s.initial, 0);
  for (int64_t t = 0, chunk = 0; t < s.length; t += s.chunk, ++chunk) {
    if (s.saved.data) group.write_states(s.saved, chunk);
    group.enter_chunk(t, t + s.chunk);
    if (G > 1) by_fours(tiles.B, group.B, s, group.steps, G);
    if (G > 1) by_fours(tiles.C, group.C, s, group.steps, s.C.direction ? G : 1);
    int64_t column = G == 1 ? forward_rows(group) : 0;
    for (; column + W < group.range.size(); column += U * W) forward_block<F, G, U>(group, tiles, column);
    if (column < group.range.size()) forward_block<F, G, 1>(group, tiles, column);
  }
  group.write_states(s.last, 0);
}
