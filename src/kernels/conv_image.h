// Zero-padded images in the accumulator's type, so that what a kernel tap reads for a run of output columns is
// contiguous and inside the copy, whatever the stride, padding, dilation and storage type.
//
// With a column stride s every row is split into s phases: column w lies in phase w % s at place w / s. The tap
// at column j of the kernel then reads output columns 0, 1, 2, ... of phase j*d % s from place j*d / s on. A copy
// is about as large as the image itself; an im2col matrix would be kernel-size times larger.
#pragma once
#include <algorithm>

#include "cpu/thread_pool.h"
#include "seqkern/conv.h"
#include "tile.h"

namespace seqkern::SEQKERN_ISA {

template <class A>
struct PaddedImages {
  static constexpr index_t kSlack = 4 * kPanel<A>;  // whole tiles are read beyond the last column

  index_t phases, phase_width, height;
  A* data = nullptr;

  // Rows and columns 0 .. rows-1, 0 .. columns-1 of the padded plane.
  PaddedImages(index_t rows, index_t columns, index_t stride = 1)
      : phases(std::min(stride, columns)), phase_width(ceil_div(columns, phases)), height(rows) {}

  index_t row() const { return phases * phase_width; }
  index_t plane() const { return height * row(); }
  index_t place(index_t h, index_t w) const { return h * row() + w % phases * phase_width + w / phases; }

  void take(Job& job, index_t planes) {
    data = job.take<A>(planes * plane() + kSlack);
    std::fill(data + planes * plane(), data + planes * plane() + kSlack, A{});
  }

  // `planes` planes of `size`, each moved down and right by `before`.
  template <class T>
  void fill(Job& job, const T* from, index_t planes, Size2 size, Size2 before) const {
    auto body = [&](int rank, int threads, Barrier&) {
      Range own = share(planes, rank, threads);
      for (index_t i = own.begin; i < own.end; ++i)
        fill_plane(from + i * size.height * size.width, size, before, A{}, data + i * plane());
    };
    job.run(threads_for(double(planes) * double(plane()), 1.0e5), body);
  }

  template <class T>
  void fill_plane(const T* from, Size2 size, Size2 before, A outside, A* to) const {
    for (index_t h = 0; h < height; ++h, to += row()) {
      index_t source = h - before.height;
      if (source < 0 || source >= size.height) std::fill(to, to + row(), outside);
      else
        for (index_t phase = 0; phase < phases; ++phase)
          fill_phase(from + source * size.width, size.width, before.width - phase, outside, to + phase * phase_width);
    }
  }

 private:
  // One phase of a row: place q holds column q * phases - lead.
  template <class T>
  void fill_phase(const T* from, index_t width, index_t lead, A outside, A* to) const {
    auto places = [&](index_t columns) {
      return columns > 0 ? std::min(ceil_div(columns, phases), phase_width) : index_t(0);
    };
    index_t begin = places(lead), end = places(lead + width);
    std::fill(to, to + begin, outside);
    if (phases == 1) {
      constexpr int L = kLanes<A>;
      index_t q = begin;
      for (; q + L <= end; q += L) store(to + q, load(from + q - lead));
      if (q < end) store_n(to + q, load_n(from + q - lead, int(end - q)), int(end - q));
    } else {
      for (index_t q = begin; q < end; ++q) to[q] = from_storage(from[q * phases - lead]);
    }
    std::fill(to + end, to + phase_width, outside);
  }
};

}  // namespace seqkern::SEQKERN_ISA
