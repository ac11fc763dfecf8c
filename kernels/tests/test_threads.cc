// The pool: every part of every job is computed once, and all of them before `run` returns, also
// where there are more threads than cores and workers come late.
#include <atomic>

#include "test.h"

namespace tenarai::test {

void test_pool(int threads) {
  constexpr int kJobs = 3000;
  std::vector<std::atomic<int>> done(static_cast<size_t>(threads));
  Pool pool(threads);
  for (int job = 1; job <= kJobs; ++job) {
    parallel(pool, [&](int thread) {
      // Parts of unlike lengths, now the caller's and now a worker's the longest; some longer than
      // anybody waits awake.
      const int longest = job % 100 == 0 ? 1000000 : 2000;
      const int work = (thread + job) % 3 == 0 ? longest : 1;
      volatile int spent = 0;
      while (spent < work) spent = spent + 1;
      done[static_cast<size_t>(thread)].fetch_add(1);
    });
    for (int thread = 0; thread < threads; ++thread) {
      const int times = done[static_cast<size_t>(thread)].load();
      if (times == job) continue;
      expect(false, "pool", "jobs that a part was computed in", times, job);
      return;
    }
  }
  expect(true, "pool", "jobs", kJobs, kJobs);
}

}  // namespace tenarai::test
