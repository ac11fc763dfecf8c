#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tenarai {
namespace {

constexpr auto kSpin = std::chrono::microseconds(100);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What is left of a thread's share, in grains: the first in the upper half, the end in the lower.
// A line of the cache to itself.
struct alignas(64) Share {
  std::atomic<uint64_t> left{0};

  void set(Range r) {
    left.store(static_cast<uint64_t>(r.begin) << 32 | static_cast<uint64_t>(r.end));
  }
  // Several from the front, for the owner, or one from the back.
  bool take(bool front, Range* taken) {
    uint64_t now = left.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = now >> 32, end = now & 0xffffffffu;
      if (begin >= end) return false;
      const uint64_t count = front ? 1 + (end - begin) / 8 : 1;
      const uint64_t rest = front ? (begin + count) << 32 | end : begin << 32 | (end - 1);
      if (!left.compare_exchange_weak(now, rest)) continue;
      *taken = {static_cast<int64_t>(front ? begin : end - 1),
                static_cast<int64_t>(front ? begin + count : end)};
      return true;
    }
  }
};

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }
};

}  // namespace

// Of a job each thread has a part. Its worker takes the part when it gets to run, or the caller
// does once its own is done: where other programs hold the cores a worker may come late, and would
// be waited for. Who computes a part makes no difference to its bits.
struct Pool::State {
  std::atomic<uint64_t> job{0};              // raised by one for each run
  std::vector<std::atomic<uint64_t>> taken;  // by thread: the last job whose part somebody took
  std::atomic<int> unfinished{0};            // parts of workers that are not done
  std::atomic<int> asleep{0};                // workers
  std::atomic<bool> caller_asleep{false};
  std::atomic<bool> stop{false};
  void (*work)(void*, int) = nullptr;
  void* context = nullptr;
  std::mutex mutex;
  std::condition_variable wake, done;
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;
  std::vector<Share> shares;
  std::vector<std::unique_ptr<Pool>> alone;
  int64_t shared = 0, grain = 1;

  explicit State(int threads) : taken(threads), scratch(threads), shares(threads), alone(threads) {}

  bool take(int thread, uint64_t of_job) {
    uint64_t before = of_job - 1;
    return taken[thread].compare_exchange_strong(before, of_job);
  }

  void serve(int thread) {
    uint64_t seen = 0;
    while (wait_for_job(seen)) {
      seen = job.load();
      if (!take(thread, seen)) continue;  // the caller has done it, or is about to
      work(context, thread);
      if (unfinished.fetch_sub(1) == 1 && caller_asleep.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        done.notify_one();
      }
    }
  }

  // False when the pool ends.
  bool wait_for_job(uint64_t seen) {
    if (!spin([&] { return job.load(std::memory_order_acquire) != seen; })) {
      std::unique_lock<std::mutex> lock(mutex);
      asleep.fetch_add(1);
      wake.wait(lock, [&] { return job.load() != seen; });
      asleep.fetch_sub(1);
    }
    return !stop.load();
  }

  void wait_for_workers() {
    const auto none_left = [&] { return unfinished.load() == 0; };
    if (spin(none_left)) return;
    std::unique_lock<std::mutex> lock(mutex);
    caller_asleep.store(true);
    done.wait(lock, none_left);
    caller_asleep.store(false);
  }

  // Waits for `kSpin` at most; true where what was waited for came.
  template <class F>
  bool spin(F ready) {
    const auto asked = std::chrono::steady_clock::now();
    for (int turn = 1; !ready(); ++turn) {
      pause();
      if (turn % 64 == 0 && std::chrono::steady_clock::now() - asked > kSpin) return false;
    }
    return true;
  }

  void start_job() {
    job.fetch_add(1);  // sequentially consistent, as is `asleep`: one of the two sees the other
    if (asleep.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex);
      }
      wake.notify_all();
    }
  }
};

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads), state_(new State(threads_)) {
  for (int thread = 1; thread < threads_; ++thread)
    state_->workers.emplace_back([this, thread] { state_->serve(thread); });
}

Pool::~Pool() {
  state_->stop = true;
  state_->start_job();
  for (auto& worker : state_->workers) worker.join();
  delete state_;
}

void Pool::run(void (*work)(void*, int), void* context) {
  if (threads_ == 1) return work(context, 0);
  state_->work = work;
  state_->context = context;
  state_->unfinished.store(threads_ - 1);
  state_->start_job();
  const uint64_t job = state_->job.load();
  work(context, 0);
  for (int thread = 1; thread < threads_; ++thread)
    if (state_->take(thread, job)) {
      work(context, thread);
      state_->unfinished.fetch_sub(1);
    }
  state_->wait_for_workers();
}

void Pool::share_out(int64_t n, int64_t parts, int64_t grain) {
  state_->shared = n;
  state_->grain = grain;
  for (int64_t thread = 0; thread < threads_; ++thread)
    state_->shares[thread].set(split((n + grain - 1) / grain, parts, thread % parts));
}

bool Pool::next_piece(int thread, Piece* piece) {
  for (int i = 0; i < threads_; ++i) {
    const int owner = (thread + i) % threads_;
    Range grains;
    if (!state_->shares[owner].take(i == 0, &grains)) continue;
    const int64_t end = grains.end * state_->grain;
    *piece = {{grains.begin * state_->grain, end < state_->shared ? end : state_->shared}, owner};
    return true;
  }
  return false;
}

Pool& Pool::alone(int thread) {
  std::unique_ptr<Pool>& pool = state_->alone[static_cast<size_t>(thread)];
  if (!pool) pool = std::make_unique<Pool>(1);
  return *pool;
}

static constexpr size_t kHugePage = 2 << 20;

void* Pool::scratch(int thread, size_t bytes) {
  Scratch& mine = state_->scratch[thread];
  if (mine.bytes < bytes) {
    const size_t page = bytes < kHugePage / 2 ? 4096 : kHugePage;
    const size_t rounded = (bytes + page - 1) / page * page;
    std::free(mine.memory);
    mine.bytes = 0;
    mine.memory = std::aligned_alloc(page, rounded);
    if (!mine.memory) throw std::bad_alloc();
#if defined(__linux__)
    if (page == kHugePage) madvise(mine.memory, rounded, MADV_HUGEPAGE);
#endif
    mine.bytes = rounded;
  }
  return mine.memory;
}

}  // namespace tenarai
