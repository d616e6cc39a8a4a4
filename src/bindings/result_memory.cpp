#include "result_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace seqkern {
namespace {

namespace py = pybind11;

constexpr std::size_t kLeast = std::size_t(1) << 20;   // of an array: below, NumPy's memory does
constexpr std::size_t kMost = std::size_t(512) << 20;  // kept
constexpr std::size_t kHuge = std::size_t(4) << 20;    // in huge pages from here on
constexpr std::size_t kHeader = 128;                   // keeps the alignment
constexpr std::align_val_t kPage{4096};
constexpr std::uint64_t kAge = 1024;  // takings; a block that nobody wanted for so long is given up

// Freed blocks, in a ring from the oldest to the newest: to keep one allocates nothing.
class Store {
 public:
  void* take(std::size_t bytes) {
    std::size_t size = rounded(bytes);
    {
      std::lock_guard guard(lock_);
      ++now_;
      while (ends_.newer != &ends_ && ends_.newer->freed + kAge < now_) drop(ends_.newer);
      for (Block* block = ends_.older; block != &ends_; block = block->older)
        if (block->size == size) return data(unlinked(block));
    }
    void* memory = ::operator new(kHeader + size, kPage, std::nothrow);
    if (!memory) return nullptr;
#if defined(MADV_HUGEPAGE)
    if (size >= kHuge) madvise(memory, kHeader + size, MADV_HUGEPAGE);
#endif
    return data(new (memory) Block{size});
  }

  void give(void* p) {
    Block* block = block_of(p);
    std::lock_guard guard(lock_);
    block->freed = now_;
    block->older = ends_.older, block->newer = &ends_;
    block->older->newer = ends_.older = block;
    bytes_ += block->size;
    while (bytes_ > kMost) drop(ends_.newer);
  }

  static std::size_t capacity(void* p) { return block_of(p)->size; }

 private:
  struct Block {
    std::size_t size;
    std::uint64_t freed = 0;  // when
    Block *older = nullptr, *newer = nullptr;
  };
  static_assert(sizeof(Block) <= kHeader);

  // To eighths of a power of two, so that results of nearly the same size share blocks.
  static std::size_t rounded(std::size_t bytes) {
    std::size_t step = std::max(std::bit_floor(bytes) / 8, std::size_t(kPage));
    return (bytes + step - 1) / step * step;
  }
  static void* data(Block* b) { return reinterpret_cast<char*>(b) + kHeader; }
  static Block* block_of(void* p) { return reinterpret_cast<Block*>(static_cast<char*>(p) - kHeader); }

  Block* unlinked(Block* block) {
    block->older->newer = block->newer, block->newer->older = block->older;
    bytes_ -= block->size;
    return block;
  }
  void drop(Block* block) { ::operator delete(unlinked(block), kPage); }

  std::mutex lock_;
  Block ends_{0, 0, &ends_, &ends_};  // its neighbours: the newest, and the oldest
  std::size_t bytes_ = 0;
  std::uint64_t now_ = 0;
};

Store& store() {
  static Store& all = *new Store;  // arrays may outlive whatever is destroyed at exit
  return all;
}

void* take(void*, std::size_t bytes) { return store().take(std::max<std::size_t>(bytes, 1)); }
void* take_zeros(void*, std::size_t count, std::size_t size) {
  if (size && count > PTRDIFF_MAX / size) return nullptr;
  void* p = take(nullptr, count * size);
  if (p) std::memset(p, 0, count * size);
  return p;
}
void give(void*, void* p, std::size_t) {
  if (p) store().give(p);
}
void* resize(void*, void* p, std::size_t bytes) {
  if (!p || bytes > Store::capacity(p)) {
    void* larger = take(nullptr, bytes);
    if (!larger || !p) return larger;
    std::memcpy(larger, p, Store::capacity(p));
    give(nullptr, p, 0);
    return larger;
  }
  return p;
}

// NumPy's PyDataMem_Handler, whose declaration would bring NumPy's headers.
struct Handler {
  char name[127] = "seqkern";
  std::uint8_t version = 1;
  struct {
    void* context = nullptr;
    void* (*malloc)(void*, std::size_t) = take;
    void* (*calloc)(void*, std::size_t, std::size_t) = take_zeros;
    void* (*realloc)(void*, void*, std::size_t) = resize;
    void (*free)(void*, void*, std::size_t) = give;
  } functions;
};

// While it lives, NumPy's arrays have their memory from the store.
class FromStore {
 public:
  FromStore() : before_(set(handler())) {
    if (!before_) throw py::error_already_set();
  }
  ~FromStore() {
    Py_XDECREF(set(before_));
    Py_DECREF(before_);
  }
  FromStore(const FromStore&) = delete;
  FromStore& operator=(const FromStore&) = delete;

 private:
  static PyObject* handler() {
    static Handler table;
    static PyObject* capsule = PyCapsule_New(&table, "mem_handler", nullptr);
    return capsule;
  }
  static PyObject* set(PyObject* capsule) {
    constexpr int kSetHandler = 304;  // PyDataMem_SetHandler's place in NumPy's C interface
    static void** api = static_cast<void**>(
        PyCapsule_GetPointer(py::detail::import_numpy_core_submodule("multiarray").attr("_ARRAY_API").ptr(), nullptr));
    return reinterpret_cast<PyObject* (*)(PyObject*)>(api[kSetHandler])(capsule);
  }
  PyObject* before_;
};

}  // namespace

py::array result_array(const py::dtype& dtype, const std::vector<index_t>& shape) {
  std::size_t bytes = std::size_t(dtype.itemsize());
  for (index_t size : shape) bytes *= std::size_t(size);
  if (bytes < kLeast) return py::array(dtype, shape);
  FromStore scope;
  return py::array(dtype, shape);
}

}  // namespace seqkern
