// One pool of threads for every kernel. Sums are divided by a fixed partition, so the same thread
// count gives the same bits; a part whose worker has not begun when the caller is done with its own
// is computed by the caller. What is no sum can be shared out piece by piece (share_out), since
// cores differ in speed from one moment to the next where others use them too. Workers spin for
// some 100 µs after a job, because the next one usually comes at once, and sleep after that, as the
// caller does while a part is not done.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tenarai {

struct Range {
  int64_t begin, end;
};

// Part `index` of `parts` of [0, n), in whole multiples of `grain` but for the last.
static inline Range split(int64_t n, int64_t parts, int64_t index, int64_t grain = 1) {
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t begin = blocks * index / parts * grain;
  const int64_t end = blocks * (index + 1) / parts * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls work(context, thread) once for each thread 0 .. threads-1 (0 by the caller, some of the
  // others perhaps too) and returns when all have returned. No call may wait for another one's.
  // Not to be nested.
  void run(void (*work)(void*, int), void* context);

  // Shares [0, n) out for the next job, in whole multiples of `grain`, of which there are less than
  // 2^32: thread t has part t % parts. `parts` divides the threads.
  void share_out(int64_t n, int64_t parts, int64_t grain);
  struct Piece {
    Range range;
    int owner;  // the thread whose share it is of
  };
  // For this thread, or false: a few grains from the front of its own share, and when that is gone
  // a grain from the back of another's.
  bool next_piece(int thread, Piece* piece);

  // Memory of thread `thread`'s own, 64-byte aligned, kept from call to call. A second call may
  // move it: take everything that a kernel needs in one. Where that can fail is before a job: what
  // a worker throws ends the process.
  void* scratch(int thread, size_t bytes);

  // A pool of one thread, with memory of its own, for what thread `thread` calls within a job. Made
  // by the first call.
  Pool& alone(int thread);

 private:
  struct State;
  int threads_;
  State* state_;
};

// parallel(pool, [&](int thread) { ... })
template <class F>
static inline void parallel(Pool& pool, F&& f) {
  pool.run([](void* context, int thread) { (*static_cast<F*>(context))(thread); }, &f);
}

// parallel_pieces(pool, n, parts, grain, [&](int thread, Pool::Piece piece) { ... })
template <class F>
static inline void parallel_pieces(Pool& pool, int64_t n, int64_t parts, int64_t grain, F&& f) {
  if (pool.threads() == 1) {
    if (n > 0) f(0, Pool::Piece{{0, n}, 0});
    return;
  }
  pool.share_out(n, parts, grain);
  parallel(pool, [&](int thread) {
    for (Pool::Piece piece; pool.next_piece(thread, &piece);) f(thread, piece);
  });
}

}  // namespace tenarai
