// What runtime.cpp knows of the threads, warps and blocks of the cluster that runs.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime.h"
#include "switch.h"

namespace hostcuda {

inline constexpr int kGroups = 8, kStatics = 16, kBarriers = 16;

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes, from_bytes;
  bool commit;
};

struct Fiber {
  Context context;
  uint3 thread{};
  int block = 0, warp = 0, lane = 0;
  bool done = true;
  const char* waits_in = nullptr;
  std::vector<Copy> copies;
};

struct Group {  // a warp collective in flight; free when no lane has arrived
  std::uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  void *in[32], *out[32];
  int fiber[32];
  int use = 0;
  char tags[2];
};
struct Warp {
  Group groups[kGroups];
};

struct Meeting {  // a barrier in progress
  int arrived = 0, wanted = 0, use = 0;
  std::vector<int> waiting;
  char tags[2];  // of even and odd uses: a late leaver learns nothing of the next use
};

struct Static {
  const void* key = nullptr;
  unsigned char* data = nullptr;
  std::size_t bytes = 0;
};
struct Block {
  uint3 index{};
  int alive = 0;
  Meeting barriers[kBarriers];
  std::unique_ptr<unsigned char[]> memory;  // guard, dynamic, guard, then statics with a guard after each
  unsigned char* dynamic = nullptr;
  std::size_t statics_used = 0;
  Static statics[kStatics];
};

struct MBarrier {
  std::uint32_t phase : 1, expected : 15, pending : 16;
  std::int32_t bytes;
};
static_assert(sizeof(MBarrier) == 8);

struct RemoteStore {
  unsigned char* to;
  unsigned char value[16];
  int bytes;
  std::uint64_t* bar;
};

}  // namespace hostcuda
