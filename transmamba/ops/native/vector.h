// Vectors of `BYTES` bytes on the compiler's vector extensions, and the few functions a scan needs on them.
// variant.cpp includes this inside an unnamed namespace: each instruction set compiles its own copy.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float Vf __attribute__((vector_size(BYTES)));
typedef double Vd __attribute__((vector_size(BYTES)));
typedef int32_t Vi __attribute__((vector_size(BYTES)));
typedef uint32_t Vu __attribute__((vector_size(BYTES)));
typedef uint16_t Vh __attribute__((vector_size(BYTES / 2)));

template <class F> struct Lane;
template <> struct Lane<float> { typedef Vf vec; };
template <> struct Lane<double> { typedef Vd vec; };
template <class F> using Vec = typename Lane<F>::vec;
template <class F> constexpr int lanes() { return BYTES / sizeof(F); }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class F> INLINE Vec<F> load(const F *p) {
  Vec<F> v;
  memcpy(&v, p, BYTES);
  return v;
}
INLINE void store(float *p, Vf v) { memcpy(p, &v, BYTES); }
INLINE void store(double *p, Vd v) { memcpy(p, &v, BYTES); }
template <class F> INLINE Vec<F> splat(F x) { return x - Vec<F>{}; }

// Takes the larger number lane by lane; NaN in b survives.
INLINE Vf larger(Vf a, Vf b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
INLINE Vd larger(Vd a, Vd b) { return a > b ? a : b; }
INLINE Vf least(Vf a, Vf b) { return -larger(-a, -b); }
INLINE Vf magnitude(Vf a) { return (Vf)((Vi)a & 0x7fffffff); }

template <class V> INLINE bool any(V v) {
  bool found = false;
  for (unsigned i = 0; i < BYTES / sizeof v[0]; ++i) found |= v[i] != 0;
  return found;
}

// ---- exponentials -------------------------------------------------------------------------------------------------

// 2^f on [-1/2, 1/2], relative error 8e-8 and exactly 1 at 0: a decay close to 1 is applied thousands of times.
INLINE Vf exp2_fraction(Vf f) {
  Vf p = splat(1.327463337e-3f) * f + splat(9.671961680e-3f);
  p = p * f + splat(5.550678369e-2f);
  p = p * f + splat(2.402223532e-1f);
  p = p * f + splat(6.931470616e-1f);
  return p * f + splat(1.0f);
}

// 2^(a * b). BOUNDED promises |a * b| < 126; otherwise the result is 0 or infinity exactly where it should be.
template <bool BOUNDED> INLINE Vf exp2_product(Vf a, Vf b) {
#if defined(__AVX512F__)
  Vf x = a * b, f = _mm512_reduce_ps(x, 8);
  return _mm512_scalef_ps(exp2_fraction(f), x - f);
#else
  const Vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  Vf t, f;
  if (BOUNDED) {
    t = a * b + magic;
    f = a * b - (t - magic);
  } else {
    Vf x = least(splat(128.0f), larger(splat(-127.0f), a * b));
    t = x + magic;
    f = x - (t - magic);
  }
  return (Vf)((Vi)exp2_fraction(f) + ((Vi)t << 23));
#endif
}
template <bool BOUNDED> INLINE Vd exp2_product(Vd a, Vd b) {
  Vd x = a * b;
  for (int i = 0; i < lanes<double>(); ++i) x[i] = exp2(x[i]);
  return x;
}

INLINE Vf reciprocal(Vf x) {
#if defined(__AVX512F__)
  Vf r = _mm512_rcp14_ps(x);
  return r * (splat(2.0f) - x * r);
#else
  return 1.0f / x;
#endif
}

// log(1 + e) / e on [0, 1], relative error 3e-8; no division.
INLINE Vf log1p_slope(Vf e) {
  const Vf e2 = e * e, e4 = e2 * e2;
  Vf a = splat(-0.49999702f) * e + splat(1.0f), b = splat(-0.24866289f) * e + splat(0.33322412f);
  Vf c = splat(-0.13842642f) * e + splat(0.19192308f), d = splat(-0.03079412f) * e + splat(0.08032526f);
  return ((splat(0.00555519f) * e4 + (d * e2 + c)) * e4) + (b * e2 + a);
}

// softplus(x); SLOPE also gives its derivative.
template <bool SLOPE> INLINE Vf softplus(Vf x, Vf &slope) {
  const Vf e = exp2_product<false>(magnitude(x), splat(-1.44269504f));
  if (SLOPE) {
    const Vf r = reciprocal(e + 1.0f);
    slope = x >= 0 ? r : e * r;
  }
  return larger(Vf{}, x) + e * log1p_slope(e);
}
template <bool SLOPE> INLINE Vd softplus(Vd x, Vd &slope) {
  // torch's threshold, so that float64 agrees to the last digits
  for (int i = 0; i < lanes<double>(); ++i) {
    const double e = exp(-fabs(x[i]));
    if (SLOPE) slope[i] = x[i] > 20 ? 1.0 : (x[i] >= 0 ? 1.0 : e) / (1.0 + e);
    x[i] = x[i] > 20 ? x[i] : (x[i] > 0 ? x[i] : 0.0) + log1p(e);
  }
  return x;
}

INLINE Vf logistic(Vf x) {
  const Vf e = exp2_product<false>(magnitude(x), splat(-1.44269504f)), r = reciprocal(e + 1.0f);
  return x >= 0 ? r : e * r;
}
INLINE Vd logistic(Vd x) {
  for (int i = 0; i < lanes<double>(); ++i) x[i] = 1 / (1 + exp(-x[i]));
  return x;
}

// ---- memory formats -----------------------------------------------------------------------------------------------

struct Bfloat { uint16_t bits; };
struct Half { uint16_t bits; };

INLINE Vf load_as(const float *p) { return load<float>(p); }
INLINE Vd load_as(const double *p) { return load<double>(p); }
INLINE Vf load_as(const Bfloat *p) {
  Vh h;
  memcpy(&h, p, sizeof h);
  return (Vf)(__builtin_convertvector(h, Vu) << 16);
}
INLINE Vf load_as(const Half *p) {
  Vh h;
  memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)h);
#else
  // shift the fields into place and rescale; infinities and NaN need the larger exponent
  const Vu x = __builtin_convertvector(h, Vu), sign = (x & 0x8000) << 16, rest = (x & 0x7fff) << 13;
  const Vf scaled = (Vf)rest * splat(0x1p112f);
  const Vu special = (Vu)((x & 0x7c00) == 0x7c00);
  return (Vf)(((special & (rest | 0x7f800000)) | (~special & (Vu)scaled)) | sign);
#endif
}

INLINE void store_as(float *p, Vf v) { store(p, v); }
INLINE void store_as(double *p, Vd v) { store(p, v); }
INLINE void store_as(Bfloat *p, Vf v) {
  const Vu x = (Vu)v, rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16, nan = (Vu)(v != v);
  const Vh h = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Vh);
  memcpy(p, &h, sizeof h);
}
INLINE void store_as(Half *p, Vf v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph(v, 0);
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(v, 0);
#else
  // normal numbers round in the integer domain, subnormal ones by adding 1/2 (whose unit is theirs), large ones saturate
  const Vu x = (Vu)v, sign = (x >> 16) & 0x8000, rest = x & 0x7fffffff;
  const Vu normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  const Vu tiny = (Vu)((Vf)rest + splat(0.5f)) - 0x3f000000;
  const Vu is_tiny = (Vu)(rest < 0x38800000), is_large = (Vu)(rest >= 0x477ff000), is_nan = (Vu)(rest > 0x7f800000);
  Vu bits = (is_tiny & tiny) | (~is_tiny & normal);
  bits = (is_large & 0x7c00) | (~is_large & bits);
  bits = (is_nan & 0x7e00) | (~is_nan & bits);
  const Vh h = __builtin_convertvector(bits | sign, Vh);
#endif
  memcpy(p, &h, sizeof h);
}

// Stores past the caches, for outputs too large to stay there: their lines need not be read before they are written.
// p is aligned to BYTES; `flush_streams` makes the writes visible to other threads.
template <class F> INLINE void stream(F *p, Vec<F> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i *)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i *)p, (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i *)p, (__m128i)v);
#else
  store(p, v);
#endif
}
INLINE void flush_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

INLINE float number_of(float x) { return x; }
INLINE double number_of(double x) { return x; }
INLINE float number_of(Bfloat x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
INLINE float number_of(Half x) {
  Half lane[lanes<float>()] = {x};
  return load_as(lane)[0];
}

// Some lanes only, fewer than all; those of float by masks where there are masks.
template <class T> INLINE auto load_first(const T *p, int64_t count) {
  T whole[BYTES / sizeof(float)] = {};
  if (count > 0) memcpy(whole, p, count * sizeof(T));
  return load_as(whole);
}
template <class T, class V> INLINE void store_first(T *p, V v, int64_t count) {
  T whole[BYTES / sizeof(float)];
  store_as(whole, v);
  if (count > 0) memcpy(p, whole, count * sizeof(T));
}
#if defined(__AVX512F__)
INLINE __mmask16 mask_of(int64_t count) { return count > 0 ? (1u << count) - 1 : 0; }
INLINE Vf load_first(const float *p, int64_t count) { return _mm512_maskz_loadu_ps(mask_of(count), p); }
INLINE void store_first(float *p, Vf v, int64_t count) { _mm512_mask_storeu_ps(p, mask_of(count), v); }
#elif defined(__AVX2__)
INLINE __m256i mask_of(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE Vf load_first(const float *p, int64_t count) { return _mm256_maskload_ps(p, mask_of(count)); }
INLINE void store_first(float *p, Vf v, int64_t count) { _mm256_maskstore_ps(p, mask_of(count), v); }
#endif

// The first `count` elements; the rest is zero.
template <class F, class T> INLINE Vec<F> load_some(const T *p, int64_t count) {
  return count >= lanes<F>() ? load_as(p) : load_first(p, count);
}
template <class F, class T> INLINE void store_some(T *p, Vec<F> v, int64_t count) {
  count >= lanes<F>() ? store_as(p, v) : store_first(p, v, count);
}

// The sum of the lanes.
INLINE float total(Vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float lane[lanes<float>()];
  store(lane, v);
  for (int half = lanes<float>() / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
#endif
}
INLINE double total(Vd v) {
  double sum = v[0];
  for (int i = 1; i < lanes<double>(); ++i) sum += v[i];
  return sum;
}

// ---- transposition ------------------------------------------------------------------------------------------------

template <int DISTANCE> INLINE void exchange(Vf &a, Vf &b) {
  Vi low, high;
  for (int i = 0; i < lanes<float>(); ++i) {
    const bool first = !(i & DISTANCE);
    low[i] = first ? i : lanes<float>() + i - DISTANCE;
    high[i] = first ? i + DISTANCE : lanes<float>() + i;
  }
#if defined(__clang__)
  Vf x, y;
  for (int i = 0; i < lanes<float>(); ++i) x[i] = !(i & DISTANCE) ? a[i] : b[i - DISTANCE];
  for (int i = 0; i < lanes<float>(); ++i) y[i] = !(i & DISTANCE) ? a[i + DISTANCE] : b[i];
#else
  const Vf x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
#endif
  a = x;
  b = y;
}
template <int DISTANCE> INLINE void exchange_rows(Vf (&rows)[lanes<float>()]) {
  for (int i = 0; i < lanes<float>(); ++i)
    if (!(i & DISTANCE)) exchange<DISTANCE>(rows[i], rows[i + DISTANCE]);
}
INLINE void transpose(Vf (&rows)[lanes<float>()]) {
  exchange_rows<1>(rows);
  exchange_rows<2>(rows);
  if (lanes<float>() > 4) exchange_rows<(lanes<float>() > 4 ? 4 : 1)>(rows);
  if (lanes<float>() > 8) exchange_rows<(lanes<float>() > 8 ? 8 : 1)>(rows);
}
INLINE void transpose(Vd (&rows)[lanes<double>()]) {
  Vd out[lanes<double>()] = {};
  for (int i = 0; i < lanes<double>(); ++i)
    for (int j = 0; j < lanes<double>(); ++j) out[i][j] = rows[j][i];
  for (int i = 0; i < lanes<double>(); ++i) rows[i] = out[i];
}
