// Spans one after another: from what each adds and forgets, the state before each, or the adjoint after each.
// grid: b * k, blocks of CHAIN entries; `last` holds the gains and `saved` the decays (b, k, spans, n, d), `dA` receives
// the borders, `enter` (b, k, n, d) is the first one or null
constexpr int CHAIN = 128;
DEV void chain_block(const Arguments& p, int states, bool adjoint, int bx, int by, int tid) {
  const i64 size = (i64)states * p.channels, at = (i64)by * CHAIN + tid;
  if (at >= size) return;
  float h = p.enter ? p.enter[bx * size + at] : 0.f;
  for (int i = 0; i < p.spans; i++) {
    const i64 row = ((i64)bx * p.spans + (adjoint ? p.spans - 1 - i : i)) * size + at;
    p.dA[row] = h;
    if (i + 1 < p.spans) h = p.saved[row] * h + p.last[row];
  }
}
