// Philox4x32-10 (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): element e of a stream is word
// e % 4 of the counter (e / 4, offset), as in src/kernels/philox.h.
#pragma once
#include "cuda/device.cuh"

namespace seqkern::cuda {

struct Stream {
  std::uint64_t seed, offset;

  SEQKERN_INLINE std::uint32_t operator()(std::uint64_t element) const {
    std::uint64_t counter = element / 4;
    std::uint32_t c[4] = {std::uint32_t(counter), std::uint32_t(counter >> 32), std::uint32_t(offset),
                          std::uint32_t(offset >> 32)};
    std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
    SEQKERN_UNROLL
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c[0], p1 = std::uint64_t(0xCD9E8D57u) * c[2];
      c[0] = std::uint32_t(p1 >> 32) ^ c[1] ^ k0;
      c[1] = std::uint32_t(p1);
      c[2] = std::uint32_t(p0 >> 32) ^ c[3] ^ k1;
      c[3] = std::uint32_t(p0);
    }
    std::uint32_t low = element & 1 ? c[1] : c[0], high = element & 1 ? c[3] : c[2];
    return element & 2 ? high : low;
  }
};

// What dropout multiplies element e by: 1 / (1 - p) where it is kept, else 0.
template <class A>
struct Drop {
  Stream words;
  std::uint64_t threshold;
  A scale;

  Drop(double p, std::uint64_t seed, std::uint64_t offset)
      : words{seed, offset}, threshold(std::uint64_t(p * 4294967296.0)), scale(p < 1 ? A(1 / (1 - p)) : A(0)) {}
  SEQKERN_INLINE bool keeps(std::uint64_t element) const { return words(element) >= threshold; }
};

}  // namespace seqkern::cuda
