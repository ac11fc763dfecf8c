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

// Pieces: each number is in one of them, which is of its owner's share and of whole grains; who is
// done takes from one that is slow.
void test_pieces(int threads) {
  constexpr int kJobs = 300;
  Pool pool(threads);
  int64_t taken = 0;
  for (int job = 0; job < kJobs; ++job) {
    const int64_t n = job * 37 % 1000, grain = 1 + job % 5, parts = job % 2 ? threads : 1;
    std::vector<std::atomic<int>> times(static_cast<size_t>(n));
    std::atomic<int64_t> others{0}, wrong{0};
    parallel_pieces(pool, n, parts, grain, [&](int thread, Pool::Piece piece) {
      const Range share = split(n, parts, piece.owner % parts, grain);
      const Range r = piece.range;
      if (r.begin < share.begin || r.end > share.end || r.begin >= r.end || r.begin % grain ||
          (r.end % grain && r.end != n))
        wrong.fetch_add(1);
      if (piece.owner != thread) others.fetch_add(1);
      for (int64_t i = r.begin; i < r.end; ++i) times[static_cast<size_t>(i)].fetch_add(1);
      volatile int spent = 0;
      while (thread == job % threads && spent < 20000) spent = spent + 1;
    });
    taken += others.load();
    expect(wrong.load() == 0, "pool", "pieces that are not of a share",
           static_cast<double>(wrong.load()), 0);
    const int copies = parts == 1 ? threads : 1;  // everybody's share is the whole
    for (const auto& seen : times)
      if (seen.load() != copies) {
        expect(false, "pool", "pieces that a number is in", seen.load(), copies);
        return;
      }
  }
  expect(threads == 1 || taken > 0, "pool", "pieces of others' shares", static_cast<double>(taken),
         1);
}

}  // namespace tenarai::test
