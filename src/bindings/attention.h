// What the bindings of attention, padded, packed and paged, have in common.
#pragma once
#include "output.h"
#include "seqkern/attention.h"

namespace seqkern {

[[noreturn]] inline void bad(const std::string& op, const std::string& text) {
  throw py::value_error(op + ": " + text);
}

// The options that come as one tuple from Python.
struct AttentionOptions {
  double scale, softcap, dropout;
  std::string causal;
  index_t left, right;
  std::uint64_t seed;
  Precision precision;

  explicit AttentionOptions(const py::tuple& t)
      : scale(t[0].cast<double>()),
        softcap(t[1].cast<double>()),
        dropout(t[2].cast<double>()),
        causal(t[3].cast<std::string>()),
        left(t[4].cast<index_t>()),
        right(t[5].cast<index_t>()),
        seed(t[6].cast<std::uint64_t>()),
        precision(as_precision("scaled_dot_product_attention", t[7].cast<std::string>())) {}

  void put(AttentionInputs& p) const {
    p.scale = scale, p.softcap = softcap, p.dropout = dropout, p.seed = seed;
    p.causal = !causal.empty(), p.bottom_right = causal == "bottom_right";
    p.left = left, p.right = right, p.precision = precision;
  }
};

// Steps in elements between neighbours of every dimension but the last, 0 where there is one entry. The last is
// adjacent: what cannot be read so is copied.
inline Shape row_steps(const std::string& op, Array& a) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const py::array& x = a.array();
  py::ssize_t item = x.itemsize(), last = x.ndim() - 1;
  bool direct = (x.flags() & kAligned) && (x.shape(last) <= 1 || x.strides(last) == item);
  for (int i = 0; i < last; ++i) direct = direct && x.strides(i) % item == 0;
  if (!direct) a.data();
  const py::array& y = a.array();
  if (!direct && !(y.flags() & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_)) bad(op, "an input could not be copied");
  Shape steps;
  for (int i = 0; i < last; ++i) steps.push_back(y.shape(i) > 1 ? y.strides(i) / item : 0);
  return steps;
}

}  // namespace seqkern
