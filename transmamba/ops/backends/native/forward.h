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
  int64_t count, column;  // steps; first channel, counted from the part's
  bool bounded = true;

  int64_t tile(int g) const { return g * group.s.chunk * WIDTH; }

  // Bias, softplus, and what does not depend on the state.
  void prepare() {
    const F *bias = group.bias + column, *D = group.D + column;
    V beyond{}, unused{};
    for (int64_t t = 0; t < count; ++t)
      for (int i = 0; i < U; ++i) {
        const int64_t at = t * WIDTH + i * W;
        V dt = load(tiles.dt + at) + load(bias + i * W);
        if (group.s.softplus) dt = softplus<false>(dt, unused);
        store(tiles.dt + at, dt);
        if (!ANY_EXPONENT) beyond = beyond_limit(dt, beyond);
        for (int g = 0; g < G; ++g) {
          const V u = load(tiles.xu + tile(g) + at);
          store(tiles.y + tile(g) + at, u * load(D + g * group.pad + i * W));
          store(tiles.xu + tile(g) + at, u * dt);
        }
      }
    bounded = ANY_EXPONENT || !any(beyond);
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
    for (int64_t t = 0; t < count; ++t) {
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

template <class F, int G, int U>
static void forward_block(const Group<F> &group, const ForwardTiles<F> &tiles, int64_t t, int64_t count, int64_t column) {
  const Scan &s = group.s;
  const int64_t channel = group.range.begin + column, columns = smaller(group.range.size() - column, U * lanes<F>());
  ForwardBlock<F, G, U> block{group, tiles, count, column};
  stage(tiles.dt, block.WIDTH, s.dt, group.b, group.first, channel, group.parameters(0, t, count), columns);
  for (int g = 0; g < G; ++g)
    stage(tiles.xu + block.tile(g), block.WIDTH, s.u, group.b, group.first + g, channel, group.tokens(g, t, count), columns);
  block.prepare();
  for_states<FORWARD_STATES / (G > 1 ? 2 : 1)>(s.state, block);
  for (int g = 0; g < G; ++g) {
    const bool add = s.y.direction == 0 && (G > 1 || group.first > 0);  // a group finds zeros
    unstage(tiles.y + block.tile(g), block.WIDTH, s.y, group.b, group.first + g, channel, group.tokens(g, t, count), columns, add);
  }
}

template <class F, int G> static void forward_group(Group<F> &group, const ForwardTiles<F> &tiles) {
  const Scan &s = group.s;
  constexpr int U = G > 2 ? 1 : BLOCK, W = lanes<F>();
  group.read_states(s.initial, 0);
  for (int64_t t = 0, chunk = 0; t < s.length; t += s.chunk, ++chunk) {
    const int64_t count = smaller(s.chunk, s.length - t);
    if (s.saved.data) group.write_states(s.saved, chunk);
    group.enter_chunk(t, count);
    int64_t column = 0;
    for (; column + W < group.range.size(); column += U * W) forward_block<F, G, U>(group, tiles, t, count, column);
    if (column < group.range.size()) forward_block<F, G, 1>(group, tiles, t, count, column);
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
