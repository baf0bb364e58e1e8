// The library's C interface: the instruction sets that this machine runs, and the distribution of units of work over threads.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "scan/native/scan.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" const Variant variant_baseline;
#if defined(__x86_64__)
extern "C" const Variant variant_avx2, variant_avx512;
#endif

// Lists the variants that this machine runs, the fastest first.
static std::vector<const Variant *> runnable() {
  std::vector<const Variant *> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c, d;  // clang has no feature name "f16c" for __builtin_cpu_supports
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) found.push_back(&variant_avx512);
  if (avx2) found.push_back(&variant_avx2);
#endif
  found.push_back(&variant_baseline);
  return found;
}

EXPORT const char *variant_name(int64_t i) {
  const auto found = runnable();
  return i < (int64_t)found.size() ? found[i]->name : nullptr;
}
EXPORT int64_t scan_size() { return sizeof(Scan); }

// Checks that each row of `orders` visits every token once, because the kernels address memory by it.
EXPORT int64_t orders_are_permutations(const int64_t *orders, int64_t directions, int64_t length) {
  std::vector<char> seen(length);
  for (int64_t k = 0; k < directions; ++k) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t t = 0; t < length; ++t) {
      const int64_t row = orders[k * length + t];
      if (row < 0 || row >= length || seen[row]) return 0;
      seen[row] = 1;
    }
  }
  return 1;
}

// Asks for 2 MiB pages inside fresh memory, where the system grants them on request, because the kernels write outputs for the
// first time, and 4 KiB at a time those page faults cost as much as a scan with one state.
EXPORT void ask_for_large_pages(void *memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const size_t page = 2 << 20, begin = ((size_t)memory + page - 1) / page * page, end = ((size_t)memory + bytes) / page * page;
  if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

namespace {
template <class What> struct Job {
  const What &what;
  void (*unit)(const What &, int64_t, int64_t, void *);
  const size_t scratch;
  const int64_t parts = (what.channels + what.part - 1) / what.part, units = what.batch * parts;
  std::atomic<int64_t> next{0};
  std::atomic<bool> starved{false};
};

// Takes units until none is left; runs on every thread of a team.
template <class What> void work(void *data) {
  Job<What> &job = *(Job<What> *)data;
  void *memory = malloc(job.scratch + 64);
  if (!memory) {
    job.starved = true;
    return;
  }
  void *scratch = (void *)(((size_t)memory + 63) / 64 * 64);
  for (int64_t i; (i = job.next++) < job.units;) job.unit(job.what, i / job.parts, i % job.parts, scratch);
  free(memory);
}

typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);

template <class What> int64_t run(Job<What> &job, int64_t threads, Team team) {
  threads = threads < job.units ? threads : job.units;
  if (threads <= 1) {
    work<What>(&job);
  } else if (team) {
    team(work<What>, &job, (unsigned)threads, 0);
  } else {
    std::vector<std::thread> started;
    try {
      for (int64_t i = 1; i < threads; ++i) started.emplace_back(work<What>, &job);
    } catch (const std::exception &) {
      // no more threads can be started, so the running ones take all units
    }
    work<What>(&job);
    for (auto &thread : started) thread.join();
  }
  return job.next >= job.units && !job.starved;
}
}  // namespace

// Runs a scan's units on `threads` threads: a team of the OpenMP runtime whose GOMP_parallel is `team`, or, without
// one, threads started for this call. Returns 0 if memory for a thread's tiles ran out.
EXPORT int64_t run_scan(const Scan *scan, int64_t backward, int64_t variant, int64_t threads, Team team) {
  const Variant &v = *runnable()[variant];
  Job<Scan> job{*scan, backward ? v.backward : v.forward, (backward ? v.backward_scratch : v.forward_scratch)(*scan)};
  return run(job, threads, team);
}

// The same for a convolution.
EXPORT int64_t run_conv(const Conv *conv, int64_t backward, int64_t variant, int64_t threads, Team team) {
  const Variant &v = *runnable()[variant];
  Job<Conv> job{*conv, backward ? v.conv_backward : v.conv_forward, v.conv_scratch(*conv)};
  return run(job, threads, team);
}

// The same for a cross scan.
EXPORT int64_t run_cross(const Cross *cross, int64_t backward, int64_t variant, int64_t threads, Team team) {
  const Variant &v = *runnable()[variant];
  const auto scratch = backward ? v.cross_backward_scratch : v.cross_forward_scratch;
  Job<Cross> job{*cross, backward ? v.cross_backward : v.cross_forward, scratch(*cross)};
  return run(job, threads, team);
}
