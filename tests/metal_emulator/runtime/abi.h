// What a kernel's code and the runtime share. No system header is needed: zig's clang comes without any.
#pragma once

// What the attributes of a Metal kernel's arguments stand for, one copy a thread.
struct emu_position {
  unsigned index_in_threadgroup, lane, simdgroup;
  unsigned in_grid[3], in_threadgroup[3], group[3];
  unsigned threads_per_threadgroup[3], dispatched_threads[3], threadgroups[3], grid[3];
  unsigned simdgroups, dispatched_simdgroups;
};

// Address spaces of the compiled code, as numbers; 0 is a thread's own memory.
enum { EMU_DEVICE = 1, EMU_CONSTANT = 2, EMU_THREADGROUP = 3 };

enum { EMU_LOAD = 1, EMU_STORE = 2 };  // ways to access memory; both for an atomic update

// Operations that lanes do together; the lanes of a simdgroup must agree on the operation and its line.
enum {
  EMU_SIMDGROUP_BARRIER = 1, EMU_REDUCE, EMU_SHUFFLE, EMU_PREFIX, EMU_BALLOT, EMU_MULTIPLY, EMU_MATRIX_LOAD,
  EMU_MATRIX_STORE
};

extern "C" {
extern emu_position* emu_current;  // of the thread that runs now

// Accesses that instrument.py put into the kernel's code. They return the address to use: a spare page if it is bad.
unsigned long emu_load_device(unsigned long address, unsigned bytes, unsigned align, unsigned line);
unsigned long emu_store_device(unsigned long address, unsigned bytes, unsigned align, unsigned line);
unsigned long emu_load_constant(unsigned long address, unsigned bytes, unsigned align, unsigned line);
unsigned long emu_load_threadgroup(unsigned long address, unsigned bytes, unsigned align, unsigned line);
unsigned long emu_store_threadgroup(unsigned long address, unsigned bytes, unsigned align, unsigned line);
void emu_loop(unsigned line);        // the end of a loop's body
void emu_bad_index(unsigned line);   // an index outside an array whose length the compiler knows
void emu_bad_division(unsigned line);

// Accesses of the headers themselves.
unsigned long emu_access(unsigned long address, unsigned bytes, int space, int ways, unsigned line);
unsigned long emu_atomic(unsigned long address, unsigned bytes, int space, int ways, unsigned line);

void emu_barrier(int flags, unsigned line);
// Give this lane's bytes, wait for the others; returns the lanes' bytes, EMU_SLOT apart.
const unsigned char* emu_exchange(const void* mine, unsigned bytes, int operation, int detail, unsigned line,
                                  int* lanes);
void emu_matrix_memory(int operation, unsigned line);  // this lane came by a matrix load or store
void emu_count_multiply();
void emu_uninitialised_matrix(unsigned line);
}
enum { EMU_SLOT = 64 };
