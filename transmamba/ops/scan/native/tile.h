// Tiles: a few steps of a few channels, gathered along the order into the cache in the compute dtype, and back.
// Layout, element type and order of the tensors end here; the recurrence works on dense rows of lanes.
#pragma once
#include "scan/native/scan.h"
#include "native/vector.h"

// Rows of a tensor that consecutive steps visit.
struct Steps {
  const int64_t *rows;
  int64_t count;
  bool consecutive;
};

// Where the lanes of each step lie, in a tensor or in a tile.
template <class T> struct Rows {
  T *base;
  const int64_t *rows;
  int64_t stride;
  T *at(int64_t t) const { return base + rows[t] * stride; }
};
template <class T> INLINE Rows<T> rows_of(T *base, const int64_t *rows, int64_t stride) { return {base, rows, stride}; }

// How a number is combined with the one in memory. STREAM overwrites it, past the caches; STREAM_LINES does so where rows
// of channels start anywhere in a cache line, for one direction at a time.
enum Write { PUT, ADD, STREAM, STREAM_LINES };

INLINE int64_t element_size(const Array &a) { return a.dtype == DOUBLE ? 8 : a.dtype == FLOAT ? 4 : 2; }

template <class T> INLINE T *place(const Array &a, int64_t b, int64_t k, int64_t column) {
  return (T *)a.data + b * a.batch + k * a.direction + column * a.column;
}

template <class T> INLINE T *place_like(T *, const Array &a, int64_t b, int64_t k, int64_t column) {
  return place<T>(a, b, k, column);
}

// Calls what(pointer of the array's element type) at (b, k, column); double compute knows double only.
template <class F, class G> INLINE void with_type(const Array &a, int64_t b, int64_t k, int64_t column, G what) {
  if constexpr (sizeof(F) == sizeof(float)) {
    if (a.dtype == BFLOAT) return what(place<Bfloat>(a, b, k, column));
    if (a.dtype == HALF) return what(place<Half>(a, b, k, column));
  }
  what(place<F>(a, b, k, column));
}

// Prefetches lanes of later steps, because the hardware prefetcher fails on rows in another order and on many short
// pieces of channels. Where time is innermost, a touch fetches steps of one channel instead of one step.
template <int LINES, int CACHE> struct Ahead {
  const char *base;
  const int64_t *rows;
  int64_t stride;  // bytes; 0 for layouts of neither kind, for which it has no effect
  bool slanted;    // time is innermost: rows start anywhere in a cache line
  Ahead() = default;
  Ahead(const Array &a, int64_t b, int64_t k, int64_t column, const int64_t *to_come, const int64_t *iota) {
    const int64_t size = element_size(a);
    const bool dense = a.column == 1, transposed = !dense && a.row == 1;
    base = (const char *)a.data + (dense || transposed ? (b * a.batch + k * a.direction + column * a.column) * size : 0);
    base += transposed ? to_come[0] * size : 0;
    slanted = transposed;
    rows = transposed ? iota : to_come;
    stride = dense ? a.row * size : transposed ? a.column * size : 0;
  }
  // inlined by force: gcc drops calls of a function that only prefetches
  __attribute__((always_inline)) void touch(int64_t t, int64_t offset) const {
    __builtin_prefetch(base + rows[t] * stride + offset, 0, 4 - CACHE);
  }
  __attribute__((always_inline)) void touch(int64_t t) const {
    for (int i = 0; i < LINES; ++i) touch(t, i * 64);
    if (slanted) touch(t, LINES * 64 - 1);
  }
};

template <class F, class T>
INLINE void gather_transposed(F *tile, int64_t width, const T *from, int64_t column, int64_t count, int64_t columns) {
  constexpr int W = lanes<F>();
  for (int64_t c = 0; c < width; c += W)
    for (int64_t t = 0; t < count; t += W) {
      Vec<F> rows[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        rows[i] = c + i < columns ? load_some<F>(from + (c + i) * column + t, count - t) : Vec<F>{};
      transpose(rows);
      for (int i = 0; i < W && t + i < count; ++i) store(tile + (t + i) * width + c, rows[i]);
    }
}

// tile[t][c] = array[rows[t]][c] for c < columns, zero up to the width.
template <class F, class T>
static void gather(F *tile, int64_t width, const T *from, const Array &a, const Steps &steps, int64_t columns) {
  constexpr int W = lanes<F>();
  if (a.column == 1) {
    for (int64_t t = 0; t < steps.count; ++t) {
      const T *p = from + steps.rows[t] * a.row;
      for (int64_t c = 0; c < width; c += W) store(tile + t * width + c, load_some<F>(p + c, columns - c));
    }
  } else if (a.row == 1 && steps.consecutive) {
    gather_transposed(tile, width, from + steps.rows[0], a.column, steps.count, columns);
  } else {
    for (int64_t t = 0; t < steps.count; ++t)
      for (int64_t c = 0; c < width; c += W) {
        T lane[W] = {};
        for (int64_t i = 0; i < W && c + i < columns; ++i) lane[i] = from[steps.rows[t] * a.row + (c + i) * a.column];
        store(tile + t * width + c, load_as(lane));
      }
  }
}

template <class F, class T>
INLINE void scatter_transposed(const F *tile, int64_t width, T *to, int64_t column, int64_t count, int64_t columns,
                               Write how) {
  constexpr int W = lanes<F>();
  for (int64_t c = 0; c < columns; c += W)
    for (int64_t t = 0; t < count; t += W) {
      Vec<F> rows[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) rows[i] = t + i < count ? load<F>(tile + (t + i) * width + c) : Vec<F>{};
      transpose(rows);
      for (int i = 0; i < W && c + i < columns; ++i) {
        T *p = to + (c + i) * column + t;
        if constexpr (sizeof(F) == sizeof(T))
          if (how == STREAM && t + W <= count) {
            stream<F>(p, rows[i]);
            continue;
          }
        store_some<F>(p, how == ADD ? rows[i] + load_some<F>(p, count - t) : rows[i], count - t);
      }
    }
}

// array[rows[t]][c] = or += tile[t][c].
template <class F, class T>
static void scatter(const F *tile, int64_t width, T *to, const Array &a, const Steps &steps, int64_t columns, Write how) {
  constexpr int W = lanes<F>();
  if constexpr (sizeof(F) == sizeof(T))
    if (how == STREAM && a.column == 1) {
      for (int64_t t = 0; t < steps.count; ++t)
        for (int64_t c = 0; c < columns; c += W) stream<F>(to + steps.rows[t] * a.row + c, load<F>(tile + t * width + c));
      return;
    }
  if (a.column == 1) {
    for (int64_t t = 0; t < steps.count; ++t) {
      T *p = to + steps.rows[t] * a.row;
      for (int64_t c = 0; c < columns; c += W) {
        const Vec<F> v = load<F>(tile + t * width + c);
        store_some<F>(p + c, how == ADD ? v + load_some<F>(p + c, columns - c) : v, columns - c);
      }
    }
  } else if (a.row == 1 && steps.consecutive) {
    scatter_transposed(tile, width, to + steps.rows[0], a.column, steps.count, columns, how);
  } else {
    for (int64_t t = 0; t < steps.count; ++t)
      for (int64_t c = 0; c < columns; c += W) {
        T lane[W];
        store_as(lane, load<F>(tile + t * width + c));
        if (how == ADD) {
          T old[W] = {};
          for (int64_t i = 0; i < W && c + i < columns; ++i) old[i] = to[steps.rows[t] * a.row + (c + i) * a.column];
          store_as(lane, load<F>(tile + t * width + c) + load_as(old));
        }
        for (int64_t i = 0; i < W && c + i < columns; ++i) to[steps.rows[t] * a.row + (c + i) * a.column] = lane[i];
      }
  }
}

template <class F>
static void stage(F *tile, int64_t width, const Array &a, int64_t b, int64_t k, int64_t column, const Steps &steps,
                  int64_t columns) {
  with_type<F>(a, b, k, column, [&](auto *from) { gather<F>(tile, width, from, a, steps, columns); });
}
template <class F>
static void unstage(const F *tile, int64_t width, const Array &a, int64_t b, int64_t k, int64_t column,
                    const Steps &steps, int64_t columns, Write how) {
  with_type<F>(a, b, k, column, [&](auto *to) { scatter<F>(tile, width, to, a, steps, columns, how); });
}

// A dense row of `columns` elements of the compute dtype (a state, a row of A); zero beyond.
template <class F> INLINE void copy_row(F *to, int64_t width, const F *from, int64_t columns) {
  for (int64_t c = 0; c < width; c += lanes<F>()) store(to + c, load_some<F>(from + c, columns - c));
}
template <class F> INLINE void write_row(F *to, const F *from, int64_t columns) { memcpy(to, from, columns * sizeof(F)); }
template <class F> INLINE void add_row(F *to, const F *from, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) to[c] += from[c];
}
