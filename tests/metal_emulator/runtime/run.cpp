// A launch from start to end: regions, threadgroups in order, and what is counted at the end.
#include "state.h"

extern "C" {
emu_position* emu_current;
// Of the kernel, made by instrument.py.
extern Variable emu_variables[];
extern u32 emu_variable_count, emu_threadgroup_granule;
}
State S;
void pass_barrier();
void check_traces();

// --- regions ---------------------------------------------------------------------------------------------------------

static u32 log2_of(u32 granule) { return 31 - __builtin_clz(granule | 1); }

static void add_region(Region& r, u64 low, u64 bytes, u32 granule, u32 space, u32 flags, const char* name) {
  r.low = low, r.bytes = bytes, r.granule = granule, r.shift = log2_of(granule);
  r.space = space, r.flags = flags, r.name = name;
  if (space != EMU_CONSTANT && S.launch->checked) r.elements.reset((bytes >> r.shift) + 1);
}

static void add_regions() {
  Launch& launch = *S.launch;
  for (u64 i = 0; i < S.regions.count; ++i) S.regions[i].elements.reset(0);
  S.regions.reset(launch.buffer_count + emu_variable_count);
  for (u32 i = 0; i < launch.buffer_count; ++i) {
    Buffer& b = launch.buffers[i];
    Region& r = S.regions[i];
    add_region(r, b.address, b.bytes, b.granule, b.flags & IN_CONSTANT ? EMU_CONSTANT : EMU_DEVICE, b.flags, b.name);
    if (r.elements.count && (b.flags & FILLED))
      for (u64 k = 0; k < b.bytes >> r.shift; ++k) r.elements[k].filled = b.initialised ? b.initialised[k] : 1;
  }
  for (u32 i = 0; i < emu_variable_count; ++i) {
    Variable& v = emu_variables[i];
    add_region(S.regions[launch.buffer_count + i], v.address, v.bytes, emu_threadgroup_granule, v.space, 0, v.name);
  }
}

static void count_unique() {
  for (u32 i = 0; i < S.launch->buffer_count; ++i) {
    Buffer& b = S.launch->buffers[i];
    Region& r = S.regions[i];
    b.first_unwritten = b.bytes >> r.shift;
    for (u64 k = b.bytes >> r.shift; r.elements.count && k-- > 0;) {
      b.loaded += r.elements[k].loaded ? r.granule : 0;
      b.stored += r.elements[k].stored ? r.granule : 0;
      if (!r.elements[k].stored) b.first_unwritten = k;
    }
  }
}

// --- order -----------------------------------------------------------------------------------------------------------

static u64 next_random() {  // xorshift64
  S.random ^= S.random << 13;
  S.random ^= S.random >> 7;
  return S.random ^= S.random << 17;
}

// Seed 0: ascending; 1: descending; else shuffled.
static void put_in_order(u32* order, u32 count) {
  for (u32 i = 0; i < count; ++i) order[i] = S.launch->seed == 1 ? count - 1 - i : i;
  if (S.launch->seed < 2) return;
  for (u32 i = count; i > 1; --i) {
    u32 k = next_random() % i, kept = order[i - 1];
    order[i - 1] = order[k], order[k] = kept;
  }
}

// --- threadgroups ----------------------------------------------------------------------------------------------------

struct Shape {
  u32 full[3], groups[3];  // threads of a whole threadgroup; threadgroups of the grid
};

static void place(Fiber& fiber, u32 index, const Shape& shape, const u32* group, const u32* size) {
  emu_position& p = fiber.position;
  p.index_in_threadgroup = index, p.lane = index % 32, p.simdgroup = index / 32;
  p.simdgroups = (S.threads + 31) / 32;
  p.dispatched_simdgroups = (shape.full[0] * shape.full[1] * shape.full[2] + 31) / 32;
  u32 inside[3] = {index % size[0], index / size[0] % size[1], index / size[0] / size[1]};
  for (int i = 0; i < 3; ++i) {
    p.in_threadgroup[i] = inside[i], p.group[i] = group[i], p.threads_per_threadgroup[i] = size[i];
    p.dispatched_threads[i] = shape.full[i], p.threadgroups[i] = shape.groups[i], p.grid[i] = S.launch->grid[i];
    p.in_grid[i] = group[i] * shape.full[i] + inside[i];
  }
}

// A threadgroup at the edge of the grid is smaller, as Metal's dispatchThreads has it.
static void set_up(const Shape& shape, u32 index) {
  u32 group[3] = {index % shape.groups[0], index / shape.groups[0] % shape.groups[1],
                  index / shape.groups[0] / shape.groups[1]}, size[3];
  for (int i = 0; i < 3; ++i) {
    u32 left = S.launch->grid[i] - group[i] * shape.full[i];
    size[i] = left < shape.full[i] ? left : shape.full[i];
  }
  S.threads = S.live = size[0] * size[1] * size[2];
  for (u32 g = 0; g < (S.threads + 31) / 32; ++g) {
    Simdgroup& simdgroup = S.simdgroups[g];
    simdgroup.lanes = S.threads - 32 * g < 32 ? S.threads - 32 * g : 32;
    simdgroup.arrived = simdgroup.parity = 0;
    for (u16& epoch : simdgroup.epoch) epoch = 1;
  }
  for (int space = 0; space < 4; ++space) S.group_epoch[space] = ++S.epoch[space];
  for (u32 i = 0; i < emu_variable_count; ++i)
    if (emu_variables[i].space == EMU_THREADGROUP)
      memset(reinterpret_cast<void*>(emu_variables[i].address), 0xff, emu_variables[i].bytes);
  for (u32 t = 0; t < S.threads; ++t) {
    Fiber& fiber = S.fibers[t];
    start_fiber(fiber, t);
    fiber.trace = fiber.trace_line = fiber.line = fiber.operation = 0;
    S.status[t] = READY;
    place(fiber, t, shape, group, size);
  }
}

static void run_threadgroup(const Shape& shape, u32 index) {
  set_up(shape, index);
  put_in_order(&S.order[0], S.threads);
  while (S.live && !S.stopped) {
    run_fibers();
    if (S.live && !S.stopped) pass_barrier();
    if (S.launch->seed > 1) put_in_order(&S.order[0], S.threads);
  }
  if (!S.stopped) check_traces();
  S.first_thread += S.threads;
  S.launch->counters.threads += S.threads;
  S.launch->counters.threadgroups++;
}

static void reset(Launch* launch, void** arguments, const Shape& shape) {
  S.launch = launch, S.arguments = arguments;
  S.random = launch->seed * 0x9e3779b97f4a7c15ul + 1;
  S.first_thread = 0, S.stopped = false, S.fiber = nullptr;
  for (int space = 0; space < 4; ++space) S.epoch[space] = S.group_epoch[space] = 1;
  u32 most = shape.full[0] * shape.full[1] * shape.full[2];
  S.hot.reset(u64(launch->lines) * SLOTS);
  S.fibers.reset(most), S.status.reset(most), S.order.reset(most), S.simdgroups.reset((most + 31) / 32);
  S.groups.reset(u64(shape.groups[0]) * shape.groups[1] * shape.groups[2]);
  allocate_stacks(most);
  add_regions();
}

extern "C" __attribute__((visibility("default"))) void emu_run(Launch* launch, void** arguments) {
  Shape shape;
  for (int i = 0; i < 3; ++i) {  // as MLX: a threadgroup is never larger than the grid
    shape.full[i] = launch->threadgroup[i] < launch->grid[i] ? launch->threadgroup[i] : launch->grid[i];
    shape.groups[i] = (launch->grid[i] + shape.full[i] - 1) / shape.full[i];
  }
  reset(launch, arguments, shape);
  put_in_order(&S.groups[0], S.groups.count);
  for (u64 i = 0; i < S.groups.count && !S.stopped; ++i) run_threadgroup(shape, S.groups[i]);
  S.fiber = nullptr;
  count_unique();
  allocate_stacks(0);
  for (u64 i = 0; i < S.regions.count; ++i) S.regions[i].elements.reset(0);
}
