// AMX for machines that lack it, for tests alone: the kernels' own instructions raise SIGILL, and the handler
// here decodes and carries them out as Intel's manual has it (Instruction Set Reference, chapter 3, "AMX"): tile
// state per thread, shapes checked against the configuration, products in pairs with subnormals taken for zero.
// Anything it does not know, or that a machine would refuse, ends the process with a message and SIGILL.
#include "emulator.h"

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace seqkern {
namespace {

using u8 = std::uint8_t;
using u16 = std::uint16_t;

constexpr int kTiles = 8, kMaxRows = 16, kMaxBytes = 64;

struct Config {  // as LDTILECFG reads it
  u8 palette, start_row, reserved[14];
  u16 row_bytes[16];
  u8 rows[16];
};
static_assert(sizeof(Config) == 64);

struct State {
  Config config{};
  alignas(64) u8 tile[kTiles][kMaxRows][kMaxBytes];
};
thread_local State state;
std::atomic<long> dots{0}, configurations{0}, releases{0};

[[noreturn]] void refuse(const char* why) {
  const char* text[] = {"AMX emulator: ", why, "\n"};
  for (auto t : text)
    if (write(2, t, std::strlen(t)) < 0) break;
  signal(SIGILL, SIG_DFL);
  raise(SIGILL);
  _exit(132);
}

void expect(bool good, const char* why) {
  if (!good) refuse(why);
}

greg_t& general(ucontext_t* context, int number) {
  static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context->uc_mcontext.gregs[order[number]];
}

// One VEX instruction: C4 [RXB.mmmmm] [W.vvvv.L.pp] opcode modrm [sib] [displacement]
struct Instruction {
  int prefix, opcode, reg, rm, vvvv, length;
  bool memory, sib;
  u8* base = nullptr;       // of the memory operand, displacement included
  std::int64_t stride = 0;  // its index register, scaled

  Instruction(const u8* code, ucontext_t* context) {
    expect(code[0] == 0xC4 && (code[1] & 31) == 2 && (code[2] & 0x84) == 0, "not an AMX instruction");
    int r = ~code[1] >> 7 & 1, x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1;
    prefix = code[2] & 3;
    vvvv = ~code[2] >> 3 & 15;
    opcode = code[3];
    int mod = code[4] >> 6;
    reg = (code[4] >> 3 & 7) + 8 * r;
    rm = code[4] & 7;
    length = 5;
    memory = mod != 3;
    sib = memory && rm == 4;
    if (!memory) {
      rm += 8 * b;
      return;
    }
    bool relative = mod == 0 && rm == 5, no_base = false;
    int base_register = rm;
    if (sib) {
      u8 s = code[length++];
      int index = (s >> 3 & 7) + 8 * x;
      if (index != 4) stride = general(context, index) << (s >> 6);
      base_register = s & 7;
      no_base = mod == 0 && base_register == 5;
    }
    std::int32_t displacement = 0;
    if (mod == 1) displacement = std::int8_t(code[length++]);
    if (mod == 2 || relative || no_base) {
      std::memcpy(&displacement, code + length, 4);
      length += 4;
    }
    std::int64_t from = relative ? std::int64_t(code) + length : no_base ? 0 : general(context, base_register + 8 * b);
    base = reinterpret_cast<u8*>(from + displacement);
  }
};

void load_config(const u8* from) {
  Config c;
  std::memcpy(&c, from, sizeof c);
  expect(c.palette == 1 && c.start_row == 0, "tile configuration: palette must be 1, start_row 0");
  for (u8 r : c.reserved) expect(r == 0, "tile configuration: reserved bytes must be 0");
  for (int t = 0; t < 16; ++t) {
    expect(c.row_bytes[t] <= kMaxBytes && c.rows[t] <= kMaxRows, "tile configuration: tile too large");
    expect(t < kTiles || (c.row_bytes[t] == 0 && c.rows[t] == 0), "tile configuration: no such tile");
    expect((c.row_bytes[t] == 0) == (c.rows[t] == 0), "tile configuration: half a shape");
  }
  state.config = c;
  std::memset(state.tile, 0, sizeof state.tile);
  ++configurations;
}

void expect_tile(int t) {
  expect(t < kTiles && state.config.palette == 1 && state.config.rows[t] > 0, "tile without a shape on this thread");
}

float widen(const u8* p) {
  u16 half;
  std::memcpy(&half, p, 2);
  std::uint32_t bits = std::uint32_t(half) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// Even and odd k are summed apart from zero, then together, then to C; every step rounds to nearest and flushes.
void dot(int c, int a, int b) {
  for (int t : {c, a, b}) expect_tile(t);
  const Config& f = state.config;
  expect(c != a && c != b && a != b, "TDPBF16PS: tiles must differ");
  expect(f.row_bytes[c] % 4 == 0 && f.row_bytes[a] % 4 == 0 && f.row_bytes[b] % 4 == 0, "TDPBF16PS: odd row size");
  expect(f.rows[a] == f.rows[c] && f.row_bytes[b] == f.row_bytes[c] && f.row_bytes[a] / 4 == f.rows[b],
         "TDPBF16PS: shapes do not fit");
  unsigned csr = _mm_getcsr();
  _mm_setcsr((csr & ~0x6000u) | 0x8040u | 0x1f80u);  // nearest, FTZ, DAZ, no exceptions
  int columns = f.row_bytes[c] / 4;
  float even[16][16], odd[16][16];  // B, widened
  for (int k = 0; k < f.rows[b]; ++k)
    for (int n = 0; n < columns; ++n) {
      even[k][n] = widen(state.tile[b][k] + 4 * n);
      odd[k][n] = widen(state.tile[b][k] + 4 * n + 2);
    }
  for (int m = 0; m < f.rows[c]; ++m) {
    float sum_even[16] = {}, sum_odd[16] = {}, total[16];
    for (int k = 0; k < f.rows[b]; ++k) {
      float a_even = widen(state.tile[a][m] + 4 * k), a_odd = widen(state.tile[a][m] + 4 * k + 2);
      for (int n = 0; n < 16; ++n) {
        sum_even[n] += a_even * even[k][n];
        sum_odd[n] += a_odd * odd[k][n];
      }
    }
    std::memcpy(total, state.tile[c][m], sizeof total);
    for (int n = 0; n < columns; ++n) total[n] += sum_even[n] + sum_odd[n];
    std::memcpy(state.tile[c][m], total, sizeof total);
  }
  _mm_setcsr(csr);
  ++dots;
}

void carry_out(const Instruction& i) {
  enum { kNone, k66, kF3, kF2 };
  State& s = state;
  auto is = [&](int prefix, int opcode, bool memory) {
    return i.prefix == prefix && i.opcode == opcode && i.memory == memory;
  };
  if (is(kNone, 0x49, true)) return load_config(i.base);
  if (is(kNone, 0x49, false)) {  // TILERELEASE
    expect(i.reg == 0 && i.rm == 0, "not an AMX instruction");
    s.config = {};
    ++releases;
    return;
  }
  if (is(kF3, 0x5C, false)) return dot(i.reg, i.rm, i.vvvv);
  expect_tile(i.reg);
  if (is(kF2, 0x49, false)) {  // TILEZERO
    std::memset(s.tile[i.reg], 0, sizeof s.tile[i.reg]);
  } else if (is(kF2, 0x4B, true) && i.sib) {  // TILELOADD
    std::memset(s.tile[i.reg], 0, sizeof s.tile[i.reg]);
    for (int r = 0; r < s.config.rows[i.reg]; ++r)
      std::memcpy(s.tile[i.reg][r], i.base + r * i.stride, s.config.row_bytes[i.reg]);
  } else if (is(kF3, 0x4B, true) && i.sib) {  // TILESTORED
    for (int r = 0; r < s.config.rows[i.reg]; ++r)
      std::memcpy(i.base + r * i.stride, s.tile[i.reg][r], s.config.row_bytes[i.reg]);
  } else {
    refuse("an instruction it does not know");
  }
}

void on_illegal(int, siginfo_t*, void* context_) {
  auto context = static_cast<ucontext_t*>(context_);
  Instruction i(reinterpret_cast<const u8*>(context->uc_mcontext.gregs[REG_RIP]), context);
  carry_out(i);
  context->uc_mcontext.gregs[REG_RIP] += i.length;
}

}  // namespace

void install_amx_emulator() {
  static const bool once = [] {
    struct sigaction action{};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGILL, &action, nullptr) == 0;
  }();
  (void)once;
}

}  // namespace seqkern

// For tests/test_tiles.py: tile products, configurations loaded and given back so far.
extern "C" __attribute__((visibility("default"))) void seqkern_amx_counts(long* counts) {
  counts[0] = seqkern::dots, counts[1] = seqkern::configurations, counts[2] = seqkern::releases;
}
