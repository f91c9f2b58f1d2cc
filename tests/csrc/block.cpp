// The block functions on the host, on random views: teams of threads against one thread, bit for bit.
//
//   block KIND THREADS LEFT_OUT SEED COUNT SHORT
//
// KIND is "possible", or "any" to include impossible parameters and too little memory. LEFT_OUT is
// the Site whose barrier all threads skip, kSites and kPlanned for those of the kernel, -1 for none.
// SHORT is the number of bytes missing from the end of every image. Exits with 1 if bits differ; with a
// barrier left out, only the sanitizer reports.
#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "shared/make_view.h"

namespace {

using namespace amdim;

constexpr int kViews = 2;
constexpr uint16_t kUnwritten = 0xFFFF;
constexpr int kPlanned = kSites + 1;
using Output = std::vector<uint16_t>;

// Threads sleep at it, so that teams larger than the cores lose no time.
class SleepingBarrier {
 public:
  explicit SleepingBarrier(int count) : count_(count) {}
  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  const int count_;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

struct Barriers {
  SleepingBarrier sleeping;
  std::barrier<> spinning;
};

struct Crew {
  int index, count;
  Barriers* barriers;
  int left_out;
  // With one left out the others spin: threads that sleep drift apart, and a race leads them astray unseen.
  void sync(int site) const {
    if (left_out < 0) {
      barriers->sleeping.arrive_and_wait();
    } else if (site != left_out) {
      barriers->spinning.arrive_and_wait();
    }
  }
};

struct Random {
  std::mt19937 engine;
  int64_t in(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  }
  bool one_in(int count) { return in(1, count) == 1; }
  float factor(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine);
  }
};

struct Job {
  std::unique_ptr<uint8_t[]> bytes;  // not one byte more than the strides reach
  Image image;
  View views[kViews];
  int size, tile_rows;
  bool channels_last;
};

int length(Random& random) {
  return static_cast<int>(random.one_in(20) ? random.in(1, 300) : random.in(1, 40));
}

void draw_image(Random& random, int64_t missing, Job& job) {
  const int64_t height = length(random), width = length(random), gap = random.in(0, 2);
  const int64_t strides[4][3] = {{3 * width + gap, 3, 1},
                                 {width + gap, 1, height * (width + gap)},
                                 {0, 3 + gap, 1},
                                 {1, height, height * width}};
  const auto& [row, column, channel] = strides[random.in(0, 3)];
  const int64_t reach = (height - 1) * row + (width - 1) * column + 2 * channel + 1;
  const int64_t count = reach > missing ? reach - missing : 1;
  job.bytes = std::make_unique<uint8_t[]>(count);
  for (int64_t i = 0; i < count; ++i) job.bytes[i] = static_cast<uint8_t>(random.in(0, 255));
  job.image = {job.bytes.get(), static_cast<int>(height), static_cast<int>(width),
               row,             column,                   channel};
}

View draw_view(Random& random, const Image& image, int size) {
  View view{};
  auto draw = [&](int64_t low, int64_t high) { return static_cast<int32_t>(random.in(low, high)); };
  view.top = draw(0, image.height - 1);
  view.left = draw(0, image.width - 1);
  view.height = draw(1, image.height - view.top);
  view.width = draw(1, image.width - view.left);
  view.resized_height = size + (random.one_in(4) ? draw(0, 2 * size) : 0);
  view.resized_width = size + (random.one_in(4) ? draw(0, 2 * size) : 0);
  view.window_top = draw(0, view.resized_height - size);
  view.window_left = draw(0, view.resized_width - size);
  if (random.one_in(2)) {
    view.dy = draw(1 - image.height, image.height - 1);
    view.dx = draw(1 - image.width, image.width - 1);
  }
  for (int i = 0; i < kOperations; ++i) view.order[i] = i;
  for (int i = kOperations - 1; i > 0; --i) std::swap(view.order[i], view.order[draw(0, i)]);
  for (int i = 0; i < kHue; ++i) view.factor[i] = random.factor(0.0f, 2.0f);
  view.factor[kHue] = random.factor(-0.5f, 0.5f);
  view.flags = draw(0, 7);
  return view;
}

void spoil(Random& random, View& view) {
  int32_t words[kViewWords];
  std::memcpy(words, &view, sizeof words);
  const int32_t lowest = std::numeric_limits<int32_t>::min();
  const int32_t bad[] = {lowest, lowest + 1, -1, 0, 1, 5, 0x7F800000, 0x7FC00000, 0x7FFFFFFF,
                         static_cast<int32_t>(random.engine())};
  for (int32_t& word : words) {
    if (random.one_in(4)) word = bad[random.in(0, std::size(bad) - 1)];
  }
  std::memcpy(&view, words, sizeof words);
}

Job draw_job(Random& random, bool any, int64_t missing) {
  Job job;
  draw_image(random, missing, job);
  job.size = static_cast<int>(random.one_in(20) ? random.in(1, 70) : random.in(1, 20));
  job.tile_rows = static_cast<int>(random.one_in(2) ? job.size : random.in(1, job.size));
  job.channels_last = random.one_in(2);
  for (View& view : job.views) {
    view = draw_view(random, job.image, job.size);
    if (any) spoil(random, view);
  }
  return job;
}

// Enough bytes for the tiles of this view to make ``strip`` rows at a time.
template <int LANES>
int64_t enough(const Job& job, const View& requested, int threads, int strip) {
  const View view = clamped(requested, job.image.height, job.image.width, job.size);
  return scratch_bytes<LANES>(view.height, view.width, view.resized_height, view.resized_width,
                              job.size, job.tile_rows, threads, strip);
}

int64_t elements(const Job& job) { return 3LL * job.size * job.size; }

Rows rows_of(const Job& job, int tile) {
  return {tile * job.tile_rows, smaller((tile + 1) * job.tile_rows, job.size)};
}

// What the phases leave for one another, and a block's own shared memory.
template <int LANES>
struct Launch {
  int tiles, pitch;
  std::vector<Lanes<LANES>> waiting;
  std::vector<long long> luma_totals;
  Plan plan;
  Scratch<LANES> scratch;

  explicit Launch(const Job& job)
      : tiles((job.size + job.tile_rows - 1) / job.tile_rows),
        pitch((job.size + LANES - 1) / LANES),
        waiting(kViews * 3 * job.size * pitch),
        luma_totals(kViews * tiles) {}

  void plan_view(const Job& job, int view, int tile, int threads, char* memory, int64_t bytes) {
    plan = plan_of(job.image, job.views[view], job.size);
    scratch = split_scratch<LANES>(memory, bytes, plan.view, job.size, rows_of(job, tile).count(),
                                   threads);
  }
};

// The tiles of a job one after the other in the same memory, as a CUDA block makes them, each phase a
// launch.
template <int LANES, class Team>
void make_views(const Team& team, const Job& job, Launch<LANES>& launch, char* memory,
                int64_t bytes, uint16_t* out) {
  uint16_t table[3 * 256];
  for (int i = 0; i < 3 * 256; ++i) table[i] = static_cast<uint16_t>(i);
  for (int item = 0; item < 2 * kViews * launch.tiles; ++item) {
    const int tile = item % launch.tiles, view = item / launch.tiles % kViews;
    const bool first_phase = item < kViews * launch.tiles;
    const Rows rows = rows_of(job, tile);
    const Canvas<uint16_t> canvas{out + view * elements(job), table, job.size, job.channels_last};
    const Waiting<LANES> waiting{launch.waiting.data() + view * 3 * job.size * launch.pitch,
                                 job.size, launch.pitch};
    long long* totals = launch.luma_totals.data() + view * launch.tiles;
    if (team.index == 0) launch.plan_view(job, view, tile, team.count, memory, bytes);
    team.sync(static_cast<Site>(kPlanned));
    if (first_phase) {
      begin_rows<LANES>(team, launch.plan, rows, canvas, waiting, launch.scratch, totals + tile);
    } else {
      finish_rows<LANES>(team, launch.plan, rows, canvas, waiting, totals, launch.tiles);
    }
    team.sync(static_cast<Site>(kSites));
  }
}

Output by_one_thread(Job& job) {
  const int tile_rows = job.tile_rows;
  job.tile_rows = job.size;
  const int64_t bytes = scratch_bytes<16>(job.image.height, job.image.width, job.size, job.size,
                                          job.size, job.size, 1, job.size);
  const std::unique_ptr<char[]> memory(new char[bytes]());
  Launch<16> launch(job);
  Output out(kViews * elements(job), kUnwritten);
  make_views<16>(Solo{}, job, launch, memory.get(), bytes, out.data());
  job.tile_rows = tile_rows;
  return out;
}

template <int LANES>
bool team_agrees(Random& random, const Job& job, bool any, int threads, int left_out,
                 const Output& expected) {
  const int strip = static_cast<int>(random.in(1, job.size));
  int64_t bytes = 0;
  for (const View& view : job.views) {
    bytes = std::max(bytes, enough<LANES>(job, view, threads, random.one_in(2) ? 1 : strip));
  }
  if (any && random.one_in(3)) bytes = random.in(0, bytes);
  const std::unique_ptr<char[]> memory(new char[bytes]);
  std::memset(memory.get(), 0xA5, bytes);
  Output out(kViews * elements(job), kUnwritten);
  Launch<LANES> launch(job);
  // A thread that waits for no plan then reads this one, not what its memory held before.
  launch.plan_view(job, 0, 0, threads, memory.get(), bytes);
  Barriers barriers{SleepingBarrier(threads), std::barrier(threads)};
  std::vector<std::thread> team;
  for (int index = 0; index < threads; ++index) {
    team.emplace_back([&, index] {
      make_views<LANES>(Crew{index, threads, &barriers, left_out}, job, launch, memory.get(), bytes,
                        out.data());
    });
  }
  for (std::thread& thread : team) thread.join();
  for (int view = 0; view < kViews; ++view) {
    const auto begin = out.begin() + view * elements(job), end = begin + elements(job);
    if (bytes < enough<LANES>(job, job.views[view], threads, 1)) continue;  // it may refuse tiles
    if (!std::equal(begin, end, expected.begin() + view * elements(job))) return false;
  }
  return true;
}

}  // namespace

int main(int count, char** argument) {
  if (count != 7) return 2;
  const bool any = std::strcmp(argument[1], "any") == 0;
  const int threads = std::atoi(argument[2]), left_out = std::atoi(argument[3]);
  Random random{std::mt19937(static_cast<unsigned>(std::atoi(argument[4])))};
  for (int number = 0; number < std::atoi(argument[5]); ++number) {
    Job job = draw_job(random, any, std::atoi(argument[6]));
    const Output expected = by_one_thread(job);
    const bool whole = std::count(expected.begin(), expected.end(), kUnwritten) == 0;
    const bool four = team_agrees<4>(random, job, any, threads, left_out, expected);
    const bool sixteen = team_agrees<16>(random, job, any, threads, left_out, expected);
    if (left_out < 0 && !(whole && four && sixteen)) {
      std::fprintf(stderr, "job %d: %d threads differ from one, or a view is not whole\n", number,
                   threads);
      return 1;
    }
  }
  return 0;
}
