// Warpgroup matrix products, warp by warp: a rendezvous of the four would hide what is released too early. The
// registers hold NaN from the instruction to the wait; the product is taken at one of these, as copies are.
#include <cmath>

#include "runtime.h"

namespace hostcuda {
namespace {

constexpr int kOperations = 64, kTargets = 4, kWarps = 32, kColumns = 256;

struct Operation {
  Wgmma call;
  int group;
  std::uint32_t left[32][4];
  std::uint64_t seen;  // of the operands
};
struct Target {  // a warp's accumulators in flight; free when `d` is null
  float* d[32];
  float values[32][kColumns / 2];
  int last, columns;
};
struct State {
  std::uint64_t run = 0;
  int count, group;
  Operation operations[kOperations];
  Target targets[kTargets];
} states[kWarps];

State& state() {
  State& s = states[int(threadIdx.x) / 32];
  if (s.run != this_run()) {
    s.run = this_run(), s.count = 0, s.group = 0;
    for (auto& t : s.targets) t.d[0] = nullptr;
  }
  return s;
}

std::uint32_t field(std::uint64_t descriptor, int from) { return std::uint32_t(descriptor >> from & 0x3fff) << 4; }

// The element at (row, k) of a panel operand, rows being those of A or columns of B.
const std::uint16_t* element(const Wgmma& call, std::uint64_t descriptor, bool transposed, int row, int k) {
  std::uint32_t start = field(descriptor, 0), leading = field(descriptor, 16), stride = field(descriptor, 32);
  std::uint32_t at = transposed ? row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                                : row / 8 * stride + row % 8 * 128 + k * 2;
  at += start;
  at ^= (at >> 7 & 7) << 4;
  return reinterpret_cast<const std::uint16_t*>(call.shared + at);
}

Target& target_of(State& s, float* d) {
  for (auto& t : s.targets)
    if (t.d[0] == d) return t;
  fail("wgmma: no such accumulators");
}

void run(State& s, const Operation& o, int warp) {
  const Wgmma& call = o.call;
  Target& t = target_of(s, call.d);
  static float left[16][16], right[16][kColumns], sums[16][kColumns];
  auto place = [&](int m, int n) -> float& { return t.values[m % 8 * 4 + n % 8 / 2][n / 8 * 4 + m / 8 * 2 + n % 2]; };
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      left[m][k] = call.value(call.left ? std::uint16_t(o.left[m % 8 * 4 + k % 8 / 2][m / 8 + k / 8 * 2] >> k % 2 * 16)
                                        : *element(call, call.a, false, warp % 4 * 16 + m, k));
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < call.columns; ++n) right[k][n] = call.value(*element(call, call.b, call.transposed, n, k));
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < call.columns; ++n) sums[m][n] = call.accumulate ? place(m, n) : 0.0f;
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < call.columns; ++n) sums[m][n] += left[m][k] * right[k][n];
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < call.columns; ++n) place(m, n) = sums[m][n];
}

// What the instruction may read from here to the wait: a read of lane 0, whose word the others' waits go by, too.
void tell_of_reads(const Wgmma& call) {
  if (lane() != 0) return;
  int panels = call.transposed ? call.columns / 64 : 1;
  for (int i = 0; i < panels; ++i)
    read_shared(call.shared + field(call.b, 0) / 1024 * 1024 + std::uint32_t(i) * field(call.b, 16),
                call.transposed ? 2048 : std::size_t(call.columns) * 128);
  if (!call.left) read_shared(call.shared + field(call.a, 0) / 1024 * 1024, 64 * 128);
}

// A checksum of it.
std::uint64_t look_at_operands(const Operation& o, int warp) {
  const Wgmma& call = o.call;
  std::uint64_t sum = 0;
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < call.columns; ++n) sum = sum * 0x100000001b3u + *element(call, call.b, call.transposed, n, k);
    for (int m = 0; m < 16 && !call.left; ++m)
      sum = sum * 0x100000001b3u + *element(call, call.a, false, warp % 4 * 16 + m, k);
  }
  return sum;
}

}  // namespace

void wgmma(const Wgmma& mine) {
  Wgmma call = mine;
  call.shared = static_cast<const unsigned char*>(dynamic_shared());
  if (call.b >> 62 != 1 || (!call.left && call.a >> 62 != 1)) fail("wgmma: only the 128-byte swizzle is emulated");
  tell_of_reads(call);
  collective(~0u, "wgmma", &call, nullptr, [](std::uint32_t, void* const* in, void* const*) {
    State& s = state();
    const Wgmma& call = *static_cast<Wgmma*>(in[0]);
    if (s.count == kOperations) fail("wgmma: more than %d in flight", kOperations);
    Operation& o = s.operations[s.count++];
    o.call = call, o.group = s.group;
    Target* target = nullptr;
    for (auto& t : s.targets)
      if (t.d[0] == call.d) target = &t;
    bool fresh = !target;
    for (auto& t : s.targets)
      if (!target && !t.d[0]) target = &t;
    if (!target) fail("wgmma: too many accumulators in flight");
    target->last = o.group, target->columns = call.columns;
    for (int l = 0; l < 32; ++l) {
      auto& lane = *static_cast<Wgmma*>(in[l]);
      if (lane.a != call.a || lane.b != call.b) fail("wgmma: descriptors differ within the warp");
      for (int i = 0; i < 4 && lane.left; ++i) o.left[l][i] = lane.left[i];
      if (!fresh) continue;
      target->d[l] = lane.d;
      for (int i = 0; i < call.columns / 2; ++i) target->values[l][i] = lane.d[i], lane.d[i] = NAN;
    }
    o.seen = look_at_operands(o, int(threadIdx.x) / 32);
    if (!config.deferred) run(s, o, int(threadIdx.x) / 32);
  });
}

void wgmma_commit() {
  collective(~0u, "wgmma.commit_group", nullptr, nullptr, [](auto...) { ++state().group; });
}

void wgmma_wait(int pending) {
  State& s = state();
  for (int i = 0; i < s.count; ++i) tell_of_reads(s.operations[i].call);
  collective(~0u, "wgmma.wait_group", &pending, nullptr, [](std::uint32_t, void* const* in, void* const*) {
    State& s = state();
    int done = s.group - *static_cast<int*>(in[0]), kept = 0;  // groups before this one end here
    for (int i = 0; i < s.count; ++i) {
      Operation& o = s.operations[i];
      if (o.group >= done) {
        s.operations[kept++] = o;
        continue;
      }
      if (look_at_operands(o, int(threadIdx.x) / 32) != o.seen) fail("wgmma: an operand has changed under way");
      if (config.deferred) run(s, o, int(threadIdx.x) / 32);
    }
    s.count = kept;
    for (auto& t : s.targets) {
      if (!t.d[0] || t.last >= done) continue;
      for (int l = 0; l < 32; ++l)
        for (int i = 0; i < t.columns / 2; ++i) t.d[l][i] = t.values[l][i];
      t.d[0] = nullptr;
    }
  });
}

}  // namespace hostcuda
