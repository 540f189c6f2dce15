// Fibers: every simulated thread has a stack of its own, and gives up its turn only at barriers and simd operations.
#include "state.h"

// emu_switch(void** from, void* to): push the registers that a call keeps, swap stacks, pop them.
#if defined(__APPLE__)
#define SYMBOL(name) "_" #name
#else
#define SYMBOL(name) #name
#endif
extern "C" void emu_switch(void** from, void* to);

#if defined(__x86_64__)
enum { SAVED = 6, ENTRY = 6 };  // saved words below the entry address, and that address's place
__asm__(
    ".text\n.p2align 4\n.globl " SYMBOL(emu_switch) "\n" SYMBOL(emu_switch) ":\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");
#elif defined(__aarch64__)
enum { SAVED = 20, ENTRY = 11 };  // x19..x30 and d8..d15; x30 is where `ret` goes
__asm__(
    ".text\n.p2align 4\n.globl " SYMBOL(emu_switch) "\n" SYMBOL(emu_switch) ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
#else
#error "the Metal emulator knows x86-64 and arm64"
#endif

enum : u64 { STACK = 256 << 10, CANARY = 0x5ca1ab1e0ddba11 };

extern "C" void emu_entry(void** arguments);  // generated beside the kernel

static void check_stack(Fiber& fiber) {
  if (*reinterpret_cast<u64*>(fiber.stack) == CANARY) return;
  report("STACK", fiber.line, "", "a thread's variables do not fit %lu bytes", static_cast<unsigned long>(STACK));
  S.stopped = true;
}

static void fiber_main() {
  emu_entry(S.arguments);
  u32 index = S.fiber->position.index_in_threadgroup;
  S.status[index] = DONE;
  S.live--;
  check_stack(*S.fiber);
  wait_turn();
  abort();
}

void allocate_stacks(u32 count) {  // lent by the system page by page, as they are used
  free(S.stacks);
  if (!(S.stacks = static_cast<char*>(malloc(count * STACK)))) abort();
}

// A fresh stack looks as if fiber_main had been about to start when it was switched away from.
void start_fiber(Fiber& fiber, u32 index) {
  fiber.stack = S.stacks + index * STACK;
  *reinterpret_cast<u64*>(fiber.stack) = CANARY;
  u64* top = reinterpret_cast<u64*>(reinterpret_cast<u64>(fiber.stack + STACK) & ~63ul);
#if defined(__x86_64__)
  *--top = 0;  // so that the stack is aligned as after a call
  top -= SAVED + 1;
#else
  top -= SAVED;
#endif
  memset(top, 0, 8 * (SAVED + 1));
  top[ENTRY] = reinterpret_cast<u64>(fiber_main);
  fiber.stack_pointer = top;
}

// The next thread in order that can run, or none.
static Fiber* next_fiber() {
  for (u32 passes = 0; passes < 2; ++passes) {
    for (; S.cursor < S.threads; ++S.cursor)
      if (S.status[S.order[S.cursor]] == READY) return &S.fibers[S.order[S.cursor++]];
    S.cursor = 0;
  }
  return nullptr;
}

static void resume(void** from, Fiber* next) {
  S.launch->counters.switches++;
  S.fiber = next;
  emu_current = next ? &next->position : nullptr;
  emu_switch(from, next ? next->stack_pointer : S.main_stack);
}

void wait_turn() {
  Fiber* me = S.fiber;
  Fiber* next = S.stopped ? nullptr : next_fiber();
  if (next != me) resume(&me->stack_pointer, next);
}

void stop() {
  S.stopped = true;
  wait_turn();
  __builtin_unreachable();
}

void run_fibers() {
  S.cursor = 0;
  if (Fiber* next = next_fiber()) resume(&S.main_stack, next);
}
