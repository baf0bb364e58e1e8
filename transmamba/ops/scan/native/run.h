// Runs a unit, each group of directions by the function that fits it.
#pragma once
#include "scan/native/timewise.h"

template <class F> static size_t forward_unit(const Scan &s, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  Group<F> group(s, b, part, arena);
  const ForwardTiles<F> tiles(s, arena);
  const SpanTiles<F> span_tiles(arena);
  if (!scratch) return arena.used;
  for (int64_t k = 0; k < s.directions; k += group.size) {
    group.enter(k);
    if (fits_timewise(group))
      forward_timewise(group, span_tiles);
    else if (group.size == 4)
      forward_group<F, 4>(group, tiles);
    else if (group.size == 2)
      forward_group<F, 2>(group, tiles);
    else
      forward_group<F, 1>(group, tiles);
  }
  flush_streams();
  return arena.used;
}

template <class F> static size_t backward_unit(const Scan &s, int64_t b, int64_t part, void *scratch) {
  Arena arena{(char *)scratch};
  Group<F> group(s, b, part, arena);
  const BackwardTiles<F> tiles(s, group.pad, arena);
  const SpanTiles<F> span_tiles(arena);
  if (!scratch) return arena.used;
  for (int64_t k = 0; k < s.directions; k += group.size) {
    group.enter(k);
    if (fits_timewise(group))
      backward_timewise(group, tiles, span_tiles, part);
    else if (group.size == 4)
      backward_group<F, 4>(group, tiles, part);
    else if (group.size == 2)
      backward_group<F, 2>(group, tiles, part);
    else
      backward_group<F, 1>(group, tiles, part);
  }
  flush_streams();
  return arena.used;
}
