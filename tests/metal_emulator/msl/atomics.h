// <metal_atomic>, relaxed only, as in Metal. A threadgroup's atomics have no float, as on Apple GPUs.
#pragma clang system_header

namespace metal {
enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T emu_value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
template <class T> struct emu_same { typedef T type; };  // keeps an argument out of deduction

#define EMU_ATOMIC_UPDATE(SPACE, NUMBER, name, next)                                                             \
  template <class T>                                                                                             \
  inline T name(SPACE atomic<T>* object, typename emu_same<T>::type value, memory_order,                         \
                uint line = __builtin_LINE()) {                                                                  \
    static_assert(NUMBER == EMU_DEVICE || !is_floating_point_v<T>, "no float atomics in threadgroup memory");    \
    T* at = (T*)emu_atomic(ulong(object), sizeof(T), NUMBER, EMU_LOAD | EMU_STORE, line);                        \
    T old = *at;                                                                                                 \
    *at = next;                                                                                                  \
    return old;                                                                                                  \
  }
#define EMU_ATOMICS(SPACE, NUMBER)                                                                               \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_exchange_explicit, value)                                              \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_add_explicit, T(old + value))                                    \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_sub_explicit, T(old - value))                                    \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_max_explicit, emu_integral(old < value ? value : old))           \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_min_explicit, emu_integral(value < old ? value : old))           \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_and_explicit, T(old & value))                                    \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_or_explicit, T(old | value))                                     \
  EMU_ATOMIC_UPDATE(SPACE, NUMBER, atomic_fetch_xor_explicit, T(old ^ value))                                    \
  template <class T>                                                                                             \
  inline void atomic_store_explicit(SPACE atomic<T>* object, typename emu_same<T>::type value, memory_order,     \
                                    uint line = __builtin_LINE()) {                                              \
    *(T*)emu_atomic(ulong(object), sizeof(T), NUMBER, EMU_STORE, line) = value;                                  \
  }                                                                                                              \
  template <class T>                                                                                             \
  inline T atomic_load_explicit(const SPACE atomic<T>* object, memory_order, uint line = __builtin_LINE()) {     \
    return *(const T*)emu_atomic(ulong(object), sizeof(T), NUMBER, EMU_LOAD, line);                              \
  }                                                                                                              \
  template <class T>                                                                                             \
  inline bool atomic_compare_exchange_weak_explicit(SPACE atomic<T>* object, thread T* expected,                 \
                                                    typename emu_same<T>::type desired, memory_order,            \
                                                    memory_order, uint line = __builtin_LINE()) {                \
    T* at = (T*)emu_atomic(ulong(object), sizeof(T), NUMBER, EMU_LOAD | EMU_STORE, line);                        \
    bool equal = *at == *expected;                                                                               \
    if (equal) *at = desired; else *expected = *at;                                                              \
    return equal;                                                                                                \
  }
template <class T> inline T emu_integral(T x) {
  static_assert(!is_floating_point_v<T>, "no float maximum or minimum among Metal's atomics");
  return x;
}
EMU_ATOMICS(device, EMU_DEVICE)
EMU_ATOMICS(threadgroup, EMU_THREADGROUP)
}  // namespace metal
