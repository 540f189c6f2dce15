// Short type names, and the few functions of the C library that the runtime uses.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef __builtin_va_list va_list;

extern "C" {
void* calloc(decltype(sizeof 0) count, decltype(sizeof 0) bytes);
void* malloc(decltype(sizeof 0) bytes);
void free(void* memory);
void* memcpy(void* to, const void* from, decltype(sizeof 0) bytes);
void* memset(void* to, int value, decltype(sizeof 0) bytes);
int strcmp(const char* a, const char* b);
int vsnprintf(char* out, decltype(sizeof 0) bytes, const char* format, va_list arguments);
[[noreturn]] void abort();
}

// An array of zeros, for plain structures. It is never destroyed: the state of a launch lives as long as the process.
template <class T> struct Array {
  T* items = nullptr;
  u64 count = 0;
  void reset(u64 size) {
    free(items);
    items = static_cast<T*>(calloc(size ? size : 1, sizeof(T)));
    if (!items) abort();
    count = size;
  }
  T& operator[](u64 i) { return items[i]; }
};
