// What launch.py and the runtime share; launch.py has the same structures for ctypes.
#pragma once
#include "base.h"

struct Buffer {
  u64 address, bytes;
  u32 granule, flags;      // bytes of an element; Flag
  const char* name;
  const u8* initialised;   // null, or one byte an element: whether it holds a value before the launch
  u64 loaded, stored;      // out: distinct bytes
  u64 first_unwritten;     // out: an element
};
enum Flag { FILLED = 1, IN_CONSTANT = 2, READ_ONLY = 4 };

struct Variable {  // a threadgroup variable, or a table in program scope; rows come from instrument.py
  u64 address, bytes;
  u32 space, padding;
  const char* name;
};

struct Finding {
  char kind[24], buffer[64], text[320];
  u32 line, thread, threadgroup[3], has_thread;
};

struct Counters {
  u64 barriers, simdgroup_operations, multiplies, atomics, switches, threadgroups, threads, work;
};

struct Launch {
  Buffer* buffers;
  u32 buffer_count, grid[3], threadgroup[3], checked;
  u64 seed, budget;
  u32 lines, finding_count;  // lines of the source; out: findings
  u64 *line_bytes, *line_accesses;  // out: [lines][SLOTS]
  Finding* findings;                // out: [MAX_FINDINGS]
  Counters counters;                // out
};
enum { SLOTS = 8, MAX_FINDINGS = 64 };  // a line's slots: 2 * address space + write
