// Attention forward in plain arithmetic: what a warp does with eight rows of queries and the keys they see.
#pragma once
#include "attention_tile.cuh"

namespace seqkern::cuda {

// Eight rows of a warp on their way over the keys.
template <class T, int kColumns, class Keys = KeyRows<T>>
struct Walk {
  using A = acc_t<T>;
  const AttentionForward& p;
  const Score<T>& score;
  const QueryRow<A>* rows;  // of the team
  index_t b, kv_head, column;
  Softmax<A> state[kMine] = {};
  A out[kMine][kColumns] = {};

  template <class Team>
  SEQKERN_INLINE void scores(const Team& team, index_t key, A (&s)[kMine], unsigned (&live)[kMine]) const {
    QueryRows<T> queries{rows, static_cast<const T*>(p.q), p.q_strides, p.cu_q};
    team.product(queries, Keys(p.k, p.k_strides, p, b, kv_head, key), p.head_dim, s);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      A capped;
      s[m] = score(s[m], rows[team.first() + m], key + lane_id(), capped);
      live[m] = ballot(s[m] != -infinity<A>());
    }
  }

  // Keys [key, key + 32).
  template <class Team>
  SEQKERN_INLINE void step(const Team& team, index_t key) {
    A s[kMine];
    unsigned live[kMine];
    scores(team, key, s, live);
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      A factor = state[m].raise(reduce_warp(Max{}, s[m]));
      s[m] = power(s[m] - state[m].base());
      state[m].sum += reduce_warp(Sum{}, s[m]);
      if (p.dropout > 0) s[m] *= score.kept(rows[team.first() + m], key + lane_id());
      SEQKERN_UNROLL
      for (int c = 0; c < kColumns; ++c) out[m][c] *= factor;
    }
    team.put_weights(s);
    team.accumulate(Keys(p.v, p.v_strides, p, b, kv_head, key), column, p.value_dim, live, out);
  }

  // f(d, c): column d of the output, which this lane keeps at c.
  template <class F>
  SEQKERN_INLINE void for_own_columns(F f) const {
    SEQKERN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      index_t d = column + c * kSide + lane_id();
      if (d < p.value_dim) f(d, c);
    }
  }

  SEQKERN_INLINE void finish(int first) const {
    SEQKERN_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const QueryRow<A>& row = rows[first + m];
      if (row.i < 0) continue;
      T* to = row_of(static_cast<T*>(p.out), p.out_strides, p.cu_q, b, row.head, row.i);
      bool nothing = state[m].sum == 0;
      A inverse = state[m].inverse();
      for_own_columns([&](index_t d, int c) { store(to + d, nothing ? A(0) : out[m][c] * inverse); });
      if (column == 0 && lane_id() == 0) state[m].keep(p, row);
    }
  }

  // The probabilities of all keys, for who wants to see them.
  template <class Team>
  SEQKERN_INLINE void write_probs(const Team& team) const {
    for (index_t key = 0; key < p.key_len; key += kSide) {
      A s[kMine];
      unsigned live[kMine];
      scores(team, key, s, live);
      SEQKERN_UNROLL
      for (int m = 0; m < kMine; ++m) {
        const QueryRow<A>& row = rows[team.first() + m];
        if (row.i < 0 || key + lane_id() >= p.key_len) continue;
        T* to = static_cast<T*>(p.probs) + ((b * p.heads + row.head) * p.query_len + row.i) * p.key_len;
        bool on = live[m] >> lane_id() & 1;
        store(to + key + lane_id(), on ? power(s[m] - state[m].base()) * state[m].inverse() : A(0));
      }
    }
  }
};

}  // namespace seqkern::cuda
