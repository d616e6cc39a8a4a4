#include "frozen.h"

#include <new>
#include <utility>

#include "thread_pool.h"

namespace seqkern {
namespace {

constexpr std::align_val_t kAlign{128};

void* allocate(std::size_t bytes) {
  count_allocation();
  return ::operator new(bytes, kAlign);
}

}  // namespace

FrozenWeight::FrozenWeight(std::size_t bytes) : bytes_(bytes), data_(allocate(bytes)) {}

FrozenWeight::~FrozenWeight() {
  for (Form& f : forms_) ::operator delete(f.memory, kAlign);
  ::operator delete(data_, kAlign);
}

std::size_t FrozenWeight::kept_bytes() const {
  std::size_t total = 0;
  for (const Form& f : forms_) total += f.ready ? f.key.bytes : 0;
  return total;
}

FrozenWeight::Form& FrozenWeight::form(int kind, const Key& key) {
  Form& f = forms_[kind];
  if (f.memory && f.key == key) return f;
  f.ready = false;
  ::operator delete(std::exchange(f.memory, nullptr), kAlign);
  f.key = key;
  f.memory = allocate(key.bytes);
  return f;
}

}  // namespace seqkern
