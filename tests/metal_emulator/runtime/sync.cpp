// Barriers, and operations in which the lanes of a simdgroup meet.
#include "state.h"

static const char* operation_name(u32 operation) {
  switch (operation) {
    case EMU_SIMDGROUP_BARRIER: return "simdgroup_barrier";
    case EMU_MULTIPLY: return "a simdgroup matrix multiplication";
    default: return "a simd operation";
  }
}

static const char* divergence_kind(u32 operation) {
  return operation == EMU_SIMDGROUP_BARRIER ? "DIVERGENT-BARRIER" : "DIVERGENT-SIMD";
}

// The lanes must have come the same way: same operation, same line, same matrix loads and stores before it.
static void check_agreement(Fiber& me, Fiber& other) {
  if (other.operation != me.operation || other.line != me.line)
    report(divergence_kind(me.operation), me.line, "", "this lane is at %s, lane %u at %s of line %u",
           operation_name(me.operation), other.position.lane, operation_name(other.operation), other.line);
  else if (other.trace != me.trace)
    report("DIVERGENT-SIMD", me.trace_line, "", "lane %u did not do the same matrix loads and stores (its last: line %u)",
           other.position.lane, other.trace_line);
}

static void release(Simdgroup& group, u32 first, Fiber& me) {
  for (u32 i = first; i < first + group.lanes; ++i) {
    check_agreement(me, S.fibers[i]);
    S.status[i] = READY;
  }
  group.arrived = 0;
  group.parity ^= 1;
  if (me.operation != EMU_SIMDGROUP_BARRIER) return;
  if (me.detail & 1) group.epoch[EMU_DEVICE]++;
  if (me.detail & 2) group.epoch[EMU_THREADGROUP]++;
}

extern "C" {
const u8* emu_exchange(const void* mine, u32 bytes, int operation, int detail, u32 line, int* lanes) {
  Fiber& me = *S.fiber;
  Simdgroup& group = S.simdgroups[me.position.simdgroup];
  u8* slots = group.slots[group.parity];
  memcpy(slots + EMU_SLOT * me.position.lane, mine, bytes);
  me.operation = operation, me.detail = detail, me.line = line;
  *lanes = group.lanes;
  S.launch->counters.simdgroup_operations += operation != EMU_SIMDGROUP_BARRIER && me.position.lane == 0;
  S.status[me.position.index_in_threadgroup] = AT_EXCHANGE;
  if (++group.arrived == group.lanes)
    release(group, 32 * me.position.simdgroup, me);
  else
    wait_turn();
  return slots;
}

void emu_barrier(int flags, u32 line) {
  Fiber& me = *S.fiber;
  me.operation = 0, me.detail = flags, me.line = line;
  S.status[me.position.index_in_threadgroup] = AT_BARRIER;
  wait_turn();
}

void emu_matrix_memory(int operation, u32 line) {
  Fiber& me = *S.fiber;
  me.trace = 31 * me.trace + operation + 16 * line;
  me.trace_line = line;
  if (S.simdgroups[me.position.simdgroup].lanes < 32)
    report("PARTIAL-SIMDGROUP", line, "", "a matrix operation in a simdgroup of fewer than 32 threads");
}

void emu_count_multiply() {
  S.launch->counters.multiplies++;
  if (S.simdgroups[S.fiber->position.simdgroup].lanes < 32)
    report("PARTIAL-SIMDGROUP", S.fiber->line, "", "a matrix operation in a simdgroup of fewer than 32 threads");
}

void emu_uninitialised_matrix(u32 line) {
  if (S.launch->checked) report("UNINITIALISED", line, "", "a simdgroup matrix that was never set");
}
}

// Nobody can run: tell who waits where.
static void report_stuck() {
  u32 done = S.threads - S.live, first = 0;
  while (S.status[first] == DONE) first++;
  Fiber& one = S.fibers[first];
  S.fiber = &one;
  bool barrier = S.status[first] == AT_BARRIER;
  u32 other = first;
  for (u32 i = first; i < S.threads && other == first; ++i) {
    Fiber& f = S.fibers[i];
    if (S.status[i] != DONE && (f.line != one.line || f.operation != one.operation)) other = i;
  }
  u32 simd = first;  // a lane that waits for its simdgroup names the mistake best
  for (u32 i = first; i < S.threads; ++i)
    if (S.status[i] == AT_EXCHANGE && S.fibers[i].operation != EMU_SIMDGROUP_BARRIER) simd = i;
  bool diverged = S.status[simd] == AT_EXCHANGE;
  Fiber& named = diverged ? S.fibers[simd] : one;
  report(diverged ? divergence_kind(named.operation) : "DIVERGENT-BARRIER", named.line, "",
         "thread %u waits at %s here for ever; thread %u is at line %u%s, and %u of %u threads returned",
         named.position.index_in_threadgroup,
         diverged ? operation_name(named.operation) : barrier ? "threadgroup_barrier" : "a barrier",
         S.fibers[other].position.index_in_threadgroup, S.fibers[other].line, other == first ? " too" : "", done, S.threads);
  S.stopped = true;
}

// Every live thread must be at the same threadgroup barrier; then they pass it together.
void pass_barrier() {
  bool together = S.live == S.threads;
  for (u32 i = 0; i < S.threads && together; ++i)
    together = S.status[i] == AT_BARRIER && S.fibers[i].line == S.fibers[0].line && S.fibers[i].detail == S.fibers[0].detail;
  if (!together) return report_stuck();
  S.launch->counters.barriers++;
  if (S.fibers[0].detail & 1) S.epoch[EMU_DEVICE]++;
  if (S.fibers[0].detail & 2) S.epoch[EMU_THREADGROUP]++;
  for (u32 i = 0; i < S.threads; ++i) S.status[i] = READY;
}

// At the end of a threadgroup, for matrix loads and stores after the last meeting.
void check_traces() {
  for (u32 i = 0; i < S.threads; ++i) {
    Fiber &one = S.fibers[i & ~31u], &other = S.fibers[i];
    S.fiber = &one;
    if (one.trace != other.trace)
      report("DIVERGENT-SIMD", one.trace_line, "", "lane %u did not do the same matrix loads and stores (its last: line %u)",
             other.position.lane, other.trace_line);
  }
  S.fiber = nullptr;
}
