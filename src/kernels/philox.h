// Philox4x32-10 (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011), several counters at once.
#pragma once
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {

constexpr int kPhilox = 16;  // counters, one in each lane of the loops

struct Words {
  std::uint32_t w[4][kPhilox];
  std::uint32_t element(index_t i) const { return w[i % 4][i / 4]; }  // of the 4 * kPhilox drawn together
};

inline void philox(std::uint64_t counter, std::uint64_t offset, std::uint64_t seed, Words& out) {
  auto& c = out.w;
  for (int i = 0; i < kPhilox; ++i) {
    c[0][i] = std::uint32_t(counter + std::uint64_t(i)), c[1][i] = std::uint32_t((counter + std::uint64_t(i)) >> 32);
    c[2][i] = std::uint32_t(offset), c[3][i] = std::uint32_t(offset >> 32);
  }
  std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int i = 0; i < kPhilox; ++i) {
      std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c[0][i], p1 = std::uint64_t(0xCD9E8D57u) * c[2][i];
      c[0][i] = std::uint32_t(p1 >> 32) ^ c[1][i] ^ k0;
      c[1][i] = std::uint32_t(p1);
      c[2][i] = std::uint32_t(p0 >> 32) ^ c[3][i] ^ k1;
      c[3][i] = std::uint32_t(p0);
    }
}

// The factors of dropout for elements [first, first + count): 1 / (1 - p) where kept, else 0.
template <class A>
void dropout_factors(std::uint64_t first, index_t count, double p, std::uint64_t seed, A* out) {
  A scale = p < 1 ? A(1 / (1 - p)) : A(0);
  std::uint64_t threshold = std::uint64_t(p * 4294967296.0);
  index_t skip = index_t(first % 4);
  Words r;
  for (index_t done = -skip; done < count; done += 4 * kPhilox) {
    philox((first + std::uint64_t(done)) / 4, 0, seed, r);
    index_t end = count - done < 4 * kPhilox ? count - done : 4 * kPhilox;
    for (index_t i = done < 0 ? skip : 0; i < end; ++i) out[done + i] = r.element(i) >= threshold ? scale : A(0);
  }
}

}  // namespace seqkern::SEQKERN_ISA
