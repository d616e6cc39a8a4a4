// Rows of a batch in descending order of length: those that take part in a step come first.
#pragma once
#include <algorithm>

#include "cpu/thread_pool.h"

namespace seqkern::SEQKERN_ISA {

struct RowOrder {
  index_t* row = nullptr;     // [rows]: which of the caller's rows stands here
  index_t* live = nullptr;    // [steps]: rows that take part in step t
  index_t* before = nullptr;  // [steps + 1]: the sum of live over the steps before t

  // Counting sort, stable; lengths null: all rows are as long as the sequence.
  void take(Job& job, index_t rows, index_t steps, const index_t* lengths) {
    row = job.take<index_t>(rows);
    live = job.take<index_t>(steps + 1);
    before = job.take<index_t>(steps + 1);
    std::fill_n(live, steps + 1, lengths ? 0 : rows);
    for (index_t n = 0; n < rows; ++n)
      if (lengths) ++live[lengths[n]];
      else row[n] = n;
    if (lengths) {
      for (index_t t = steps, longer = 0; t >= 0; --t) {
        index_t same = live[t];
        live[t] = before[t] = longer;
        longer += same;
      }
      for (index_t n = 0; n < rows; ++n) row[before[lengths[n]]++] = n;
    }
    before[0] = 0;
    for (index_t t = 0; t < steps; ++t) before[t + 1] = before[t] + live[t];
  }
  index_t count(index_t begin, index_t end) const { return before[end] - before[begin]; }  // of live rows, those steps
};

}  // namespace seqkern::SEQKERN_ISA
