// Fibers, barriers, collectives and copies behind runtime.h. One launch at a time; nothing here allocates while
// fibers run, and a failure abandons them where they stand: device code owns nothing that needs a destructor.
#include "runtime.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace hostcuda {
Config config;

namespace {

constexpr std::size_t kStack = 128 << 10, kGuard = 1024, kStaticShared = 48 << 10;
constexpr unsigned char kNaN = 0xff, kGuardByte = 0xa5;
constexpr int kCopies = 2048, kMaxThreads = 16 * 1024;

std::mutex launching;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<Block> blocks;
Meeting cluster_meeting;
std::vector<RemoteStore> stores;
std::vector<int> ready;  // a ring of kMaxThreads
std::size_t head = 0, count = 0;
Context main_context;
Fiber* current = nullptr;
int alive = 0, cluster = 1;  // cluster: the blocks that run together
bool strangers = false;      // and know nothing of each other
std::size_t shared_bytes = 0;
std::uint64_t random_state = 1, polls = 0, runs = 0;
Body body;
void* body_context;
std::string failure;
char before_cluster, after_cluster;  // tags

std::uint64_t next_random() {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state;
}

// ---- the scheduler ----

void make_ready(int fiber) { ready[(head + count++) % kMaxThreads] = fiber; }

// Behind all others, whichever end they are taken from.
void make_ready_last(int fiber) {
  if (config.order != Order::reverse) return make_ready(fiber);
  head = (head + kMaxThreads - 1) % kMaxThreads;
  ++count;
  ready[head] = fiber;
}

int take_ready() {
  if (config.order == Order::random) std::swap(ready[head], ready[(head + next_random() % count) % kMaxThreads]);
  --count;
  if (config.order == Order::reverse) return ready[(head + count) % kMaxThreads];
  int fiber = ready[head];
  head = (head + 1) % kMaxThreads;
  return fiber;
}

void enter(Fiber* f) {
  threadIdx = f->thread;
  blockIdx = blocks[f->block].index;
}

void resume_next(Context& from, bool dying = false) {
  Fiber* next = fibers[std::size_t(take_ready())].get();
  if (next == current) return;
  current = next;
  enter(next);
  switch_context(from, next->context, dying);
}

void report_waiting(std::string& text) {
  char line[160];
  for (auto& w : warps)
    for (auto& g : w.groups)
      if (g.arrived) {
        std::snprintf(line, sizeof line, "; warp %d: %s waits for lanes %08x", int(&w - warps.data()), g.what,
                      g.mask & ~g.arrived);
        text += line;
      }
  for (auto& b : blocks)
    for (auto& m : b.barriers)
      if (m.arrived) {
        std::snprintf(line, sizeof line, "; block %u barrier %d: %d arrived of %d", b.index.x, int(&m - b.barriers),
                      m.arrived, m.wanted ? m.wanted : b.alive);
        text += line;
      }
  if (cluster_meeting.arrived) {
    std::snprintf(line, sizeof line, "; cluster barrier: %d arrived of %d", cluster_meeting.arrived, alive);
    text += line;
  }
}

[[noreturn]] void fail_with_report(const char* what) {
  std::string text = what;
  report_waiting(text);
  fail("%s", text.c_str());
}

// The calling fiber stops here until somebody makes it ready.
void block_here(const char* what) {
  current->waits_in = what;
  if (!count) fail_with_report(("deadlock in " + std::string(what)).c_str());
  resume_next(current->context);
  current->waits_in = nullptr;
}

void release_if_full(Meeting& m, int everybody) {
  if (!m.arrived || m.arrived < (m.wanted ? m.wanted : everybody)) return;
  for (int f : m.waiting) make_ready(f);
  m.waiting.clear();
  m.arrived = 0;
  ++m.use;
  polls = 0;
}

int threads_per_block() { return int(blockDim.x * blockDim.y * blockDim.z); }
int index_of(const Fiber* f) {
  int threads = threads_per_block();
  return f->block * threads + f->warp % ((threads + 31) / 32) * 32 + f->lane;
}

void meet(Meeting& m, int wanted, int everybody, bool wait, const char* what) {
  if (m.arrived && m.wanted != wanted) fail("%s: threads disagree about its count: %d and %d", what, m.wanted, wanted);
  m.wanted = wanted;
  ++m.arrived;
  char* tag = &m.tags[m.use % 2];
  publish(tag);
  if (wanted && m.arrived > wanted) fail("%s: more arrivals than its count of %d", what, wanted);
  bool last = m.arrived == (wanted ? wanted : everybody);
  if (!last && wait) m.waiting.push_back(index_of(current));
  release_if_full(m, everybody);
  if (!last && wait) block_here(what);
  if (wait) observe(tag);
}

void check_guard(const unsigned char* p, const char* what) {
  for (std::size_t i = 0; i < kGuard; ++i)
    if (p[i] != kGuardByte) fail("%s", what);
}
void check_guards(Block& b) {
  check_guard(b.dynamic - kGuard, "a write before the start of dynamic shared memory");
  check_guard(b.dynamic + shared_bytes, "a write past the end of dynamic shared memory");
  for (auto& s : b.statics)
    if (s.key) check_guard(s.data + s.bytes, "a write past the end of a static shared array");
}

void run_copy(const Copy& c) {
  copy_bytes(c.to, c.from, std::size_t(c.from_bytes));
  set_bytes(c.to + c.from_bytes, 0, std::size_t(c.bytes - c.from_bytes));
  has_read(c.from, std::size_t(c.from_bytes));
  has_written(c.to, std::size_t(c.bytes));
}

MBarrier& state_of(std::uint64_t* bar) { return *reinterpret_cast<MBarrier*>(bar); }
void flip_if_complete(MBarrier& b) {
  if (b.pending || b.bytes) return;
  b.phase ^= 1u;
  b.pending = b.expected;
  polls = 0;
}
void run_store(const RemoteStore& s) {
  copy_bytes(s.to, s.value, std::size_t(s.bytes));
  has_written(s.to, std::size_t(s.bytes));
  publish(s.bar);
  MBarrier& b = state_of(s.bar);
  b.bytes -= s.bytes;
  flip_if_complete(b);
}

void thread_main() {
  entered_context();
  observe(&before_cluster);
  body(body_context);
  Fiber* f = current;
  for (auto& c : f->copies)
    if (!c.commit) run_copy(c);
  for (auto& g : warps[f->warp].groups)
    if (g.arrived && (g.mask >> f->lane & 1)) fail("a thread returned while its warp waits for it in %s", g.what);
  publish(&after_cluster);
  f->done = true;
  --alive;
  Block& b = blocks[f->block];
  --b.alive;
  for (auto& m : b.barriers)
    if (!m.wanted) release_if_full(m, b.alive);
  release_if_full(cluster_meeting, alive);
  if (count) resume_next(f->context, true);
  if (alive) fail_with_report("deadlock: the threads that are left wait for ever");
  current = nullptr;
  switch_context(f->context, main_context, true);
}

void prepare_block(Block& b, std::uint64_t i, int threads) {
  b.index = {unsigned(i % gridDim.x), unsigned(i / gridDim.x % gridDim.y), unsigned(i / gridDim.x / gridDim.y)};
  b.alive = threads;
  std::size_t size = kGuard + shared_bytes + kGuard + kStaticShared + 1024;
  if (!b.memory) b.memory.reset(new unsigned char[size]);
  auto base = reinterpret_cast<std::uintptr_t>(b.memory.get()) + kGuard;
  b.dynamic = reinterpret_cast<unsigned char*>((base + 1023) & ~std::uintptr_t(1023));
  set_bytes(b.dynamic - kGuard, kGuardByte, kGuard);
  set_bytes(b.dynamic, kNaN, shared_bytes);
  set_bytes(b.dynamic + shared_bytes, kGuardByte, kGuard);
  b.statics_used = 0;
  for (auto& s : b.statics) s = {};
  for (auto& m : b.barriers) m.arrived = m.wanted = 0, m.waiting.clear();
}

void run_cluster(std::uint64_t first, int threads) {
  head = count = 0, polls = 0, ++runs;
  alive = cluster * threads;
  for (auto& w : warps)
    for (auto& g : w.groups) g.arrived = 0;
  cluster_meeting.arrived = cluster_meeting.wanted = 0;
  cluster_meeting.waiting.clear();
  stores.clear();
  for (int c = 0; c < cluster; ++c) {
    prepare_block(blocks[std::size_t(c)], first + std::uint64_t(c), threads);
    for (int t = 0; t < threads; ++t) {
      Fiber& f = *fibers[std::size_t(c * threads + t)];
      unsigned u = unsigned(t);
      f.thread = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
      f.block = c, f.warp = c * ((threads + 31) / 32) + t / 32, f.lane = t % 32;
      f.done = false;
      f.copies.clear();
      reset_context(f.context, thread_main);
      make_ready(c * threads + t);
    }
  }
  forget_main_stack();
  main_context.fiber = this_fiber();
  publish(&before_cluster);
  resume_next(main_context);
  observe(&after_cluster);
  if (!failure.empty()) return;
  for (auto& s : stores) run_store(s);
  try {
    for (auto& b : blocks) check_guards(b);
  } catch (const Error& e) {
    failure = e.what();
  }
}

}  // namespace

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string message = "hostcuda: " + std::string(text);
  if (!current) throw Error(message);
  char where[160];
  std::snprintf(where, sizeof where, " (block %u,%u,%u thread %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x, threadIdx.y, threadIdx.z);
  failure = message + where;
  Context& from = current->context;
  current = nullptr;
  switch_context(from, main_context, true);
  std::abort();  // an abandoned fiber is never resumed
}

void check_aligned(const void* p, std::size_t bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes) fail("%s: address is not aligned to %zu bytes", what, bytes);
}

void launch(dim3 grid, dim3 block, int cluster_blocks, bool together, std::size_t shared, Body run, void* context) {
  std::lock_guard<std::mutex> lock(launching);
  int threads = int(block.x * block.y * block.z);
  if (threads < 1 || threads > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
    fail("invalid launch: grid %u,%u,%u, block %u,%u,%u", grid.x, grid.y, grid.z, block.x, block.y, block.z);
  if (shared > std::size_t(config.max_shared)) fail("invalid launch: %zu bytes of shared memory", shared);
  if (cluster_blocks < 1 || cluster_blocks > config.max_cluster || grid.x % unsigned(cluster_blocks))
    fail("invalid launch: clusters of %d blocks in a grid of %u", cluster_blocks, grid.x);
  if (together && (cluster_blocks > 1 || int(grid.x * grid.y * grid.z) > config.max_together))
    fail("invalid launch: %u blocks at the same time", grid.x * grid.y * grid.z);
  if ((together ? int(grid.x * grid.y * grid.z) : cluster_blocks) * threads > kMaxThreads)
    fail("more than %d threads at the same time", kMaxThreads);
  gridDim = grid, blockDim = block, body = run, body_context = context;
  cluster = together ? int(grid.x * grid.y * grid.z) : cluster_blocks, shared_bytes = shared, strangers = together;
  random_state = config.seed * 0x9E3779B97F4A7C15ull | 1;
  failure.clear();
  std::size_t all = std::size_t(cluster * threads);
  ready.resize(kMaxThreads);
  while (fibers.size() < all) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->copies.reserve(kCopies);
    make_context(fibers.back()->context, kStack);
  }
  warps.resize(std::size_t(cluster * ((threads + 31) / 32)));
  blocks.clear();
  blocks.resize(std::size_t(cluster));
  for (auto& b : blocks)
    for (auto& m : b.barriers) m.waiting.reserve(std::size_t(threads));
  cluster_meeting.waiting.reserve(all);
  stores.reserve(1 << 18);
  std::uint64_t total = std::uint64_t(grid.x) * grid.y * grid.z, clusters = total / std::uint64_t(cluster);
  for (std::uint64_t k = 0; k < clusters && failure.empty(); ++k)
    run_cluster((config.order == Order::reverse ? clusters - 1 - k : k) * std::uint64_t(cluster), threads);
  current = nullptr;
  if (!failure.empty()) throw Error(failure);
}

void* dynamic_shared() { return blocks[std::size_t(current->block)].dynamic; }

void* static_shared(const void* key, std::size_t bytes) {
  Block& b = blocks[std::size_t(current->block)];
  for (auto& s : b.statics) {
    if (s.key == key) return s.data;
    if (s.key) continue;
    std::size_t padded = (bytes + 15) / 16 * 16;
    if (b.statics_used + padded + kGuard > kStaticShared) fail("too much static shared memory");
    s = {key, b.dynamic + shared_bytes + kGuard + b.statics_used, bytes};
    s.data = reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(s.data) + 15) & ~std::uintptr_t(15));
    b.statics_used += padded + 16 + kGuard;
    set_bytes(s.data, kNaN, bytes);
    set_bytes(s.data + bytes, kGuardByte, kGuard);
    return s.data;
  }
  fail("too many static shared arrays");
}

int lane() { return current->lane; }
std::uint64_t this_run() { return runs; }
unsigned cluster_rank() { return strangers ? 0 : unsigned(current->block); }
unsigned cluster_size() { return strangers ? 1 : unsigned(cluster); }

void* peer(const void* p, unsigned rank) {
  auto offset = static_cast<const unsigned char*>(p) - blocks[std::size_t(current->block)].dynamic;
  if (offset < 0 || std::size_t(offset) > shared_bytes) fail("mapa: not an address in this block's shared memory");
  if (rank >= cluster_size()) fail("mapa: rank %u in a cluster of %d", rank, cluster);
  if (blocks[rank].alive == 0) fail("distributed shared memory of a block that has exited");
  return blocks[rank].dynamic + offset;
}

void barrier(int id, int threads, bool wait, const char* what) {
  if (id < 0 || id >= kBarriers || threads < 0 || threads % 32) fail("%s: invalid barrier %d of %d", what, id, threads);
  Block& b = blocks[std::size_t(current->block)];
  meet(b.barriers[id], threads, b.alive, wait, what);
}

void cluster_barrier() {
  if (strangers) barrier(0, 0, true, "cluster barrier");
  else meet(cluster_meeting, 0, alive, true, "cluster barrier");
}

void collective(std::uint32_t mask, const char* what, void* in, void* out, Combine combine) {
  Fiber* f = current;
  if (!(mask >> f->lane & 1)) fail("%s: lane %d is not in its own mask %08x", what, f->lane, mask);
  Group* g = nullptr;
  Group* unused = nullptr;
  for (auto& c : warps[std::size_t(f->warp)].groups) {
    if (!c.arrived) unused = &c;
    else if (c.mask == mask && !(c.arrived >> f->lane & 1)) g = &c;
    else if (c.mask & mask) fail("%s: lanes of mask %08x are already in %s", what, mask, c.what);
  }
  int first = index_of(f) - f->lane;
  if (!g) {
    if (!unused) fail("too many warp collectives in flight");
    for (int l = 0; l < 32; ++l)
      if ((mask >> l & 1) &&
          (first + l >= (f->block + 1) * threads_per_block() || fibers[std::size_t(first + l)]->done))
        fail("%s: mask %08x names lane %d, which has exited or does not exist", what, mask, l);
    g = unused;
    g->mask = mask, g->what = what;
  } else if (std::strcmp(g->what, what) != 0) {
    fail("divergent warp collective: lane %d is in %s, lanes %08x in %s", f->lane, what, g->arrived, g->what);
  }
  char* tag = combine ? nullptr : &g->tags[g->use % 2];  // __syncwarp orders memory, a shuffle does not
  if (tag) publish(tag);
  g->arrived |= 1u << f->lane;
  g->in[f->lane] = in, g->out[f->lane] = out, g->fiber[f->lane] = first + f->lane;
  if (g->arrived != mask) {
    block_here(what);
    if (tag) observe(tag);
    return;
  }
  if (tag) observe(tag);
  if (combine) combine(mask, g->in, g->out);
  for (int l = 0; l < 32; ++l)
    if ((mask >> l & 1) && l != f->lane) make_ready(g->fiber[l]);
  g->arrived = 0;
  ++g->use;
  polls = 0;
}

void read_shared(const void* p, std::size_t bytes) { has_read(p, bytes); }

void copy_async(void* to, const void* from, int bytes, int from_bytes) {
  check_aligned(to, std::size_t(bytes), "cp.async");
  if (from_bytes) check_aligned(from, std::size_t(bytes), "cp.async");
  Copy c{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, from_bytes, false};
  if (!config.deferred) return run_copy(c);
  if (current->copies.size() == kCopies) fail("cp.async: more than %d copies in flight", kCopies);
  current->copies.push_back(c);
}
void commit_async() {
  if (config.deferred) current->copies.push_back({nullptr, nullptr, 0, 0, true});
}
void wait_async(int pending) {
  auto& q = current->copies;
  int groups = 0;
  for (auto& c : q) groups += c.commit;
  std::size_t done = 0;
  while (groups > pending) {
    if (q[done].commit) --groups;
    else run_copy(q[done]);
    ++done;
  }
  q.erase(q.begin(), q.begin() + std::ptrdiff_t(done));
}

void mbarrier_init(std::uint64_t* bar, int n) {
  check_aligned(bar, 8, "mbarrier");
  state_of(bar) = {0, std::uint32_t(n), std::uint32_t(n), 0};
}
void mbarrier_arrive(std::uint64_t* bar, int expected_bytes) {
  publish(bar);
  MBarrier& b = state_of(bar);
  if (!b.pending) fail("mbarrier: more arrivals than expected in one phase");
  b.bytes += expected_bytes;
  b.pending -= 1;
  flip_if_complete(b);
}
void publish_to_all(void* word) {
  publish(word);
  polls = 0;
}
void observe_all(const void* word) { observe(const_cast<void*>(word)); }
void let_others_run() {
  if (++polls > 64 + 16 * std::uint64_t(alive)) fail_with_report("livelock: every thread polls");
  make_ready_last(index_of(current));
  block_here("poll");
}
bool mbarrier_done(std::uint64_t* bar, int parity) {
  auto done = [&] {
    bool over = state_of(bar).phase != unsigned(parity & 1);
    if (over) observe(bar);
    return over;
  };
  if (done()) return true;
  if (!stores.empty()) {  // deferred stores land while somebody waits for them
    for (auto& s : stores) run_store(s);
    stores.clear();
    return done();
  }
  if (++polls > 64 + 16 * std::uint64_t(alive)) fail_with_report("livelock: every thread polls an mbarrier");
  make_ready_last(index_of(current));
  block_here("mbarrier wait");
  return done();
}
void store_async(void* to, const void* value, int bytes, std::uint64_t* bar) {
  check_aligned(to, std::size_t(bytes), "st.async");
  RemoteStore s{static_cast<unsigned char*>(to), {}, bytes, bar};
  copy_bytes(s.value, value, std::size_t(bytes));
  if (!config.deferred) return run_store(s);
  if (stores.size() == stores.capacity()) fail("st.async: too many stores in flight");
  stores.push_back(s);
}

}  // namespace hostcuda
