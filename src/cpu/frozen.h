// A weight that nothing can write to, and what kernels have packed of it, kept from call to call.
//
// It is the memory of a read-only NumPy array (bindings/frozen.cpp): weights that change are another array, with forms
// of its own. Forms belong to the holder of a Job, so that no two calls fill one.
#pragma once
#include <cstddef>

#include "seqkern/types.h"

namespace seqkern {

class FrozenWeight {
 public:
  // Whose layout it is: another one in its place is packed anew.
  struct Key {
    const void* isa = nullptr;
    int gates = 0;
    index_t units = 0, depth = 0;
    std::size_t bytes = 0;
    bool operator==(const Key&) const = default;
  };
  struct Form {
    Key key;
    void* memory = nullptr;
    bool ready = false;  // a call has packed all of it
  };
  enum Kind { panels, stream, tiles };  // tiles + parts - 1
  static constexpr int kKinds = tiles + 3;

  explicit FrozenWeight(std::size_t bytes);
  ~FrozenWeight();
  FrozenWeight(const FrozenWeight&) = delete;
  FrozenWeight& operator=(const FrozenWeight&) = delete;

  std::size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  std::size_t kept_bytes() const;        // of all forms
  Form& form(int kind, const Key& key);  // 128-byte aligned; as it was left if of this key

 private:
  std::size_t bytes_;
  void* data_;
  Form forms_[kKinds];
};

}  // namespace seqkern
