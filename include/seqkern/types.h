// Storage types and small arithmetic shared by every kernel, CPU and CUDA.
#pragma once
#include <cstddef>
#include <cstdint>

namespace seqkern {

using index_t = std::int64_t;

enum class DType : std::uint8_t { f32, f64, bf16, f16 };

// How far a matrix product may be off, relative to the sum of |a||b| over its K terms: gamma_K, 3 * 2^-18 + gamma_K
// or 2^-8 + gamma_K. Where there is no faster way the more accurate one runs.
enum class Precision : std::uint8_t { highest, high, medium };

// Storage only: all arithmetic is done in fp32 after load<T> and before store<T>.
struct bf16 {
  std::uint16_t bits;
};
struct f16 {  // CUDA only
  std::uint16_t bits;
};

// The type arithmetic and accumulators use for values stored as T.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using acc_t = typename AccumulatorOf<T>::type;

constexpr index_t min_of(index_t a, index_t b) { return a < b ? a : b; }
constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

}  // namespace seqkern
