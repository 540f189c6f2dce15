// The state of one launch. One threadgroup runs at a time, on one system thread, so that runs repeat exactly.
#pragma once
#include "abi.h"
#include "base.h"
#include "launch.h"

// --- memory ----------------------------------------------------------------------------------------------------------

// Who touched an element and when. Epochs count barriers, so equal epochs mean that none lies between.
struct Touch {
  u32 thread, epoch;  // 1 + the thread's number in the whole launch, 0 if nobody; threadgroup barriers so far
  u16 sub_epoch;      // simdgroup barriers so far, of the thread's simdgroup
  u16 line;           // the top bit marks an atomic
};
enum { ATOMIC = 0x8000 };

struct Element {
  Touch writer, atomic_writer;        // the last; the last atomic one before it from another thread
  Touch reader, reader2, foreign;     // the last; another one (see note_read); the last in another threadgroup
  u8 filled, loaded, stored, padding;
};

struct Region {
  u64 low, bytes;
  u32 granule, flags, space, shift;  // shift: log2 of the granule
  const char* name;
  Array<Element> elements;
};

// --- threads ---------------------------------------------------------------------------------------------------------

enum Status : u8 { READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct Fiber {
  void* stack_pointer;
  char* stack;
  emu_position position;
  u32 line, operation, detail;  // where it waits
  u32 trace, trace_line;        // a sum of the matrix loads and stores it came by, and the last one's line
};

struct Simdgroup {
  u32 lanes, arrived, parity;
  u16 epoch[4];  // by address space
  alignas(16) u8 slots[2][32 * EMU_SLOT];
};

struct State {
  Launch* launch;
  void** arguments;
  Array<Region> regions;
  Array<Region*> hot;  // [lines][SLOTS], the region that a line touched last
  Array<Fiber> fibers;
  Array<u8> status;
  Array<u32> order, groups;  // in which threads and threadgroups run
  Array<Simdgroup> simdgroups;
  u32 threads, live, cursor, first_thread;  // of this threadgroup; first_thread: its number in the launch
  u32 epoch[4], group_epoch[4];             // by address space: now, and when the threadgroup began
  u64 random;
  bool stopped;
  Fiber* fiber;
  void* main_stack;
  char* stacks;
  alignas(64) u8 spare[4096];
};
extern State S;

void report(const char* kind, u32 line, const char* buffer, const char* format, ...);
void stop();        // leave the launch; never returns to the thread
void wait_turn();   // let others run until this thread is READY again
void allocate_stacks(u32 count);
void start_fiber(Fiber& fiber, u32 index);
void run_fibers();  // until none is READY
Region* find_region(u64 address, int space);
