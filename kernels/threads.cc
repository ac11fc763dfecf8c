#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

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

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }
};

}  // namespace

struct Pool::State {
  std::atomic<uint64_t> job{0};    // raised by one for each run
  std::atomic<int> unfinished{0};  // workers that have not returned from it
  std::atomic<int> asleep{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> awake{false};
  void (*work)(void*, int) = nullptr;
  void* context = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;

  explicit State(int threads) : scratch(threads) {}

  void serve(int thread) {
    uint64_t seen = 0;
    while (true) {
      if (!wait_for_job(seen)) return;
      ++seen;
      work(context, thread);
      unfinished.fetch_sub(1, std::memory_order_release);
    }
  }

  // False when the pool ends.
  bool wait_for_job(uint64_t seen) {
    const auto asked = std::chrono::steady_clock::now();
    for (int turn = 1; job.load(std::memory_order_acquire) == seen; ++turn) {
      pause();
      if (turn % 64 == 0 && !awake.load(std::memory_order_relaxed) &&
          std::chrono::steady_clock::now() - asked > kSpin) {
        std::unique_lock<std::mutex> lock(mutex);
        asleep.fetch_add(1);
        wake.wait(lock, [&] { return job.load() != seen; });
        asleep.fetch_sub(1);
        break;
      }
    }
    return !stop.load();
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
  if (threads_ > 1) {
    state_->work = work;
    state_->context = context;
    state_->unfinished.store(threads_ - 1, std::memory_order_relaxed);
    state_->start_job();
  }
  work(context, 0);
  if (threads_ > 1)
    // A worker may have lost its core to another program: give ours away after a while.
    for (int turn = 1; state_->unfinished.load(std::memory_order_acquire) > 0; ++turn)
      turn % 4096 == 0 ? std::this_thread::yield() : pause();
}

void Pool::stay_awake(bool awake) { state_->awake.store(awake); }

void* Pool::scratch(int thread, size_t bytes) {
  Scratch& mine = state_->scratch[thread];
  if (mine.bytes < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(mine.memory);
    mine.bytes = 0;
    mine.memory = std::aligned_alloc(4096, rounded);
    if (!mine.memory) throw std::bad_alloc();
    mine.bytes = rounded;
  }
  return mine.memory;
}

}  // namespace tenarai
