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

static void check_traces(Fiber& me, Fiber& other) {
  if (other.trace == me.trace) return;
  report("DIVERGENT-SIMD", me.trace_line, "", "lane %u did not do the same matrix loads and stores (its last: line %u)",
         other.position.lane, other.trace_line);
}

// The lanes must have come the same way: same operation, same line, same matrix loads and stores before it.
static void check_agreement(Fiber& me, Fiber& other) {
  if (other.operation != me.operation || other.line != me.line)
    report(divergence_kind(me.operation), me.line, "", "this lane is at %s, lane %u at %s of line %u",
           operation_name(me.operation), other.position.lane, operation_name(other.operation), other.line);
  else
    check_traces(me, other);
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

static bool same_place(const Fiber& a, const Fiber& b) { return a.line == b.line && a.detail == b.detail; }

static const char* place_name(u32 index) {
  return S.status[index] == AT_BARRIER ? "threadgroup_barrier" : operation_name(S.fibers[index].operation);
}

// Nobody can run: name a thread that waits, best one in a simd operation, and one that is elsewhere.
static void report_stuck() {
  u32 waiting = 0, elsewhere = 0;
  for (u32 i = 0; i < S.threads; ++i)
    if (S.status[waiting] == DONE || (S.status[i] == AT_EXCHANGE && S.status[waiting] == AT_BARRIER)) waiting = i;
  Fiber& me = S.fibers[waiting];
  for (u32 i = 0; i < S.threads; ++i)
    if (S.status[i] != S.status[waiting] || !same_place(S.fibers[i], me)) elsewhere = i;
  bool barrier = S.status[waiting] == AT_BARRIER || me.operation == EMU_SIMDGROUP_BARRIER;
  S.fiber = &me;
  const char* kind = barrier ? "DIVERGENT-BARRIER" : "DIVERGENT-SIMD";
  if (S.status[elsewhere] == DONE)
    report(kind, me.line, "", "this thread waits at %s, and thread %u has returned, as %u of %u did",
           place_name(waiting), elsewhere, S.threads - S.live, S.threads);
  else
    report(kind, me.line, "", "this thread waits at %s, and thread %u at %s of line %u", place_name(waiting), elsewhere,
           place_name(elsewhere), S.fibers[elsewhere].line);
  S.stopped = true;
}

// Every live thread must be at the same threadgroup barrier; then they pass it together.
void pass_barrier() {
  bool together = S.live == S.threads;
  for (u32 i = 0; i < S.threads && together; ++i)
    together = S.status[i] == AT_BARRIER && same_place(S.fibers[i], S.fibers[0]);
  if (!together) return report_stuck();
  S.launch->counters.barriers++;
  if (S.fibers[0].detail & 1) S.epoch[EMU_DEVICE]++;
  if (S.fibers[0].detail & 2) S.epoch[EMU_THREADGROUP]++;
  for (u32 i = 0; i < S.threads; ++i) S.status[i] = READY;
}

// At the end of a threadgroup, for matrix loads and stores after the last meeting.
void check_traces() {
  for (u32 i = 0; i < S.threads; ++i) {
    S.fiber = &S.fibers[i & ~31u];
    check_traces(*S.fiber, S.fibers[i]);
  }
  S.fiber = nullptr;
}
