// Forward: states advance chunk by chunk; lanes are channels, time is sequential.
#pragma once
#include "unit.h"

template <class F> struct ForwardTiles {
  F *dt, *xu, *y;  // (step, lane), xu and y per direction of the group; xu is dt * u
  explicit ForwardTiles(const Scan &s, Arena &arena) {
    const int64_t size = s.chunk * BLOCK * lanes<F>();
    dt = arena.take<F>(size);
    xu = arena.take<F>(GROUP * size);
    y = arena.take<F>(GROUP * size);
  }
};

// One chunk of one block of U vectors of channels, for the G directions of a group.
template <class F, int G, int U> struct ForwardBlock {
  typedef Vec<F> V;
  static constexpr int W = lanes<F>(), WIDTH = U * W;
  const Group<F> &group;
  const ForwardTiles<F> &tiles;
  int64_t column;  // first channel, counted from the part's
  bool bounded = true;

  int64_t tile(int g) const { return g * group.s.chunk * WIDTH; }

  // Inlined by force: gcc drops calls of a function that only prefetches.
  __attribute__((always_inline)) void look_ahead(int64_t t) const {
    const Scan &s = group.s;
    const int64_t channel = group.range.begin + column;
    prefetch<0>(s.dt, group.b, group.first, channel, group.ahead[group.line(0) + t], WIDTH);
    for (int g = 0; g < G; ++g) {
      const int64_t row = group.ahead[g * s.chunk + t];
      prefetch<0>(s.u, group.b, group.first + g, channel, row, WIDTH);
      prefetch<1>(s.y, group.b, group.first + g, channel, row, WIDTH);
    }
  }

  // Bias, softplus, and what does not depend on the state.
  template <class T> void prepare(Rows<T> dt_rows, const Rows<T> (&u_rows)[G]) {
    const F *bias = group.bias + column, *D = group.D + column;
    V beyond{}, unused{};
    for (int64_t t = 0; t < group.steps; ++t) {
      look_ahead(t);
      for (int i = 0; i < U; ++i) {
        const int64_t at = t * WIDTH + i * W;
        V dt = load_as(dt_rows.at(t) + i * W) + load(bias + i * W);
        if (group.s.softplus) dt = softplus<false>(dt, unused);
        store(tiles.dt + at, dt);
        if (!ANY_EXPONENT) beyond = beyond_limit(dt, beyond);
        for (int g = 0; g < G; ++g) {
          const V u = load_as(u_rows[g].at(t) + i * W);
          store(tiles.y + tile(g) + at, u * load(D + g * group.pad + i * W));
          store(tiles.xu + tile(g) + at, u * dt);
        }
      }
    }
    bounded = ANY_EXPONENT || !any(beyond);
  }
  // All of it at once for one state: nothing is worth a tile then.
  template <class T> void single(Rows<T> dt_rows, Rows<T> u_rows, Rows<F> y_rows, bool add) const {
    V h[U], A[U], D[U], bias[U], unused{};
    F *state = group.state + column;
    for (int i = 0; i < U; ++i) {
      h[i] = load(state + i * W);
      A[i] = load(group.A + column + i * W);
      D[i] = load(group.D + column + i * W);
      bias[i] = load(group.bias + column + i * W);
    }
    for (int64_t t = 0; t < group.steps; ++t) {
      look_ahead(t);
      const V B = splat(group.B[t]), C = splat(group.C[t]);
      const bool reset = group.s.segments && group.reset[t];
      for (int i = 0; i < U; ++i) {
        V dt = load_as(dt_rows.at(t) + i * W) + bias[i];
        const V u = load_as(u_rows.at(t) + i * W);
        if (group.s.softplus) dt = softplus<false>(dt, unused);
        if (reset) h[i] = V{};
        h[i] = exp2_product<ANY_EXPONENT>(dt, A[i]) * h[i] + dt * u * B;
        V y = h[i] * C + u * D[i];
        if (add) y += load(y_rows.at(t) + i * W);
        store(y_rows.at(t) + i * W, y);
      }
    }
    for (int i = 0; i < U; ++i) store(state + i * W, h[i]);
  }
  V beyond_limit(V dt, V beyond) const {
    const V size = dt < 0 ? -dt : dt;
    return size <= splat(group.limit) ? beyond : splat((F)1);
  }
  static bool any(V v) {
    F sum = 0;
    for (int i = 0; i < W; ++i) sum += v[i];
    return sum > 0;
  }

  template <int S> void run(int64_t n) const { bounded ? advance<S, true>(n) : advance<S, ANY_EXPONENT>(n); }

  // The recurrence of states [n, n + S).
  template <int S, bool BOUNDED> void advance(int64_t n) const {
    const Scan &s = group.s;
    const int64_t pad = group.pad, every = s.state * pad, row = s.chunk * s.state;
    F *state = group.state + n * pad + column;
    V h[S][G][U], A[S][U];
    for (int j = 0; j < S; ++j)
      for (int i = 0; i < U; ++i) {
        A[j][i] = load(group.A + (n + j) * pad + column + i * W);
        for (int g = 0; g < G; ++g) h[j][g][i] = load(state + g * every + j * pad + i * W);
      }
    for (int64_t t = 0; t < group.steps; ++t) {
      const F *B = group.B + t * s.state + n, *C = group.C + t * s.state + n;
      V dt[U], xu[G][U], y[G][U];
      for (int i = 0; i < U; ++i) {
        dt[i] = load(tiles.dt + t * WIDTH + i * W);
        for (int g = 0; g < G; ++g) {
          xu[g][i] = load(tiles.xu + tile(g) + t * WIDTH + i * W);
          y[g][i] = load(tiles.y + tile(g) + t * WIDTH + i * W);
        }
      }
      if (s.segments && group.reset[t])
        for (int j = 0; j < S; ++j)
          for (int i = 0; i < U; ++i) h[j][0][i] = V{};
      for (int j = 0; j < S; ++j)
        for (int i = 0; i < U; ++i) {
          const V e = exp2_product<BOUNDED>(dt[i], A[j][i]);
          for (int g = 0; g < G; ++g) {
            h[j][g][i] = e * h[j][g][i] + xu[g][i] * splat(B[g * row + j]);
            y[g][i] += h[j][g][i] * splat(C[g * row + j]);
          }
        }
      for (int g = 0; g < G; ++g)
        for (int i = 0; i < U; ++i) store(tiles.y + tile(g) + t * WIDTH + i * W, y[g][i]);
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
  ForwardBlock<F, G, U> block{group, tiles, column};
  const bool add = s.y.direction == 0 && (G > 1 || k > 0);  // a group finds zeros
  const bool single = G == 1 && s.state == 1, direct_y = single && s.y.dtype == s.A.dtype && in_place<F, WIDTH>(s.y, columns);
  const Rows<F> y = direct_y ? Rows<F>{place<F>(s.y, b, k, channel), group.visited, s.y.row} : Rows<F>{tiles.y, group.iota, WIDTH};
  const auto run = [&](auto dt, const auto &u) {
    if (single) return block.single(dt, u[0], y, add && direct_y);
    block.prepare(dt, u);
    for_states<FORWARD_STATES / (G > 1 ? 2 : 1)>(s.state, block);
  };
  if (in_place<F, WIDTH>(s.u, columns) && in_place<F, WIDTH>(s.dt, columns)) {
    with_type<F>(s.dt, b, k, channel, [&](auto *dt) {
      decltype(rows_of(dt, nullptr, 0)) u[G];
      for (int g = 0; g < G; ++g)
        u[g] = rows_of(place_like(dt, s.u, b, k + g, channel), group.visited + g * s.chunk, s.u.row);
      run(rows_of(dt, group.visited + group.line(0), s.dt.row), u);
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
  for (int g = 0; g < G && !direct_y; ++g)
    unstage(tiles.y + block.tile(g), WIDTH, s.y, b, k + g, channel, group.tokens(g), columns, add);
}

template <class F, int G> static void forward_group(Group<F> &group, const ForwardTiles<F> &tiles) {
  const Scan &s = group.s;
  constexpr int U = G > 2 ? 1 : BLOCK, W = lanes<F>();
  group.read_states(s.initial, 0);
  for (int64_t t = 0, chunk = 0; t < s.length; t += s.chunk, ++chunk) {
    if (s.saved.data) group.write_states(s.saved, chunk);
    group.enter_chunk(t, t + s.chunk);
    int64_t column = 0;
    for (; column + W < group.range.size(); column += U * W) forward_block<F, G, U>(group, tiles, column);
    if (column < group.range.size()) forward_block<F, G, 1>(group, tiles, column);
  }
  group.write_states(s.last, 0);
}

template <class F> static size_t forward_unit(const Scan &s, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  Group<F> group(s, b, part, arena);
  ForwardTiles<F> tiles(s, arena);
  if (!scratch) return arena.used;
  for (int64_t k = 0; k < s.directions; k += group.size) {
    group.enter(k);
    if (group.size == 4)
      forward_group<F, 4>(group, tiles);
    else if (group.size == 2)
      forward_group<F, 2>(group, tiles);
    else
      forward_group<F, 1>(group, tiles);
  }
  return arena.used;
}
