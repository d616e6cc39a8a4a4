// What ThreadSanitizer is told of the fibers, when the kernels are built with it and this runtime is not: a switch
// orders nothing, only what CUDA promises does. Without HOSTCUDA_THREAD_SANITIZER all of it is nothing.
#pragma once
#include <cstddef>
#include <cstring>

#if defined(HOSTCUDA_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace hostcuda {

#if defined(HOSTCUDA_THREAD_SANITIZER)
inline void publish(void* tag) { __tsan_release(tag); }
inline void observe(void* tag) { __tsan_acquire(tag); }
inline void has_read(const void* p, std::size_t n) { __tsan_read_range(const_cast<void*>(p), n); }
inline void has_written(void* p, std::size_t n) { __tsan_write_range(p, n); }
inline void* new_fiber() { return __tsan_create_fiber(0); }
// memset and memcpy would count as accesses of the fiber.
inline void set_bytes(void* to, int value, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) static_cast<volatile unsigned char*>(to)[i] = static_cast<unsigned char>(value);
}
inline void copy_bytes(void* to, const void* from, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    static_cast<volatile unsigned char*>(to)[i] = static_cast<const unsigned char*>(from)[i];
}
inline void* this_fiber() { return __tsan_get_current_fiber(); }
inline void continue_as(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
#else
inline void publish(void*) {}
inline void observe(void*) {}
inline void has_read(const void*, std::size_t) {}
inline void has_written(void*, std::size_t) {}
inline void* new_fiber() { return nullptr; }
inline void set_bytes(void* to, int value, std::size_t n) { std::memset(to, value, n); }
inline void copy_bytes(void* to, const void* from, std::size_t n) { std::memcpy(to, from, n); }
inline void* this_fiber() { return nullptr; }
inline void continue_as(void*) {}
#endif

}  // namespace hostcuda
