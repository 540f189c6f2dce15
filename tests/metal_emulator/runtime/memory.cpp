// Shadow memory: bounds, initialisation and races of every access, by the element. Traffic by the line.
#include "state.h"

// --- regions ---------------------------------------------------------------------------------------------------------

Region* find_region(u64 address, int space) {
  for (u64 i = 0; i < S.regions.count; ++i) {
    Region& r = S.regions[i];
    if (static_cast<int>(r.space) == space && address - r.low < r.bytes) return &r;
  }
  return nullptr;
}

// Arguments lie a megabyte and more apart, so the nearest region is the one that was meant, unless none is near.
static void report_bounds(u64 address, u32 bytes, int space, bool write, u32 line) {
  const Region* nearest = nullptr;
  u64 best = ~0ul;
  for (u64 i = 0; i < S.regions.count; ++i) {
    Region& r = S.regions[i];
    u64 distance = address < r.low ? r.low - address : address + bytes - (r.low + r.bytes);
    if (static_cast<int>(r.space) == space && distance < best) best = distance, nearest = &r;
  }
  const char* what = write ? "store" : "load";
  if (!nearest || best > nearest->bytes + (1 << 20))
    report("OUT-OF-BOUNDS", line, "", "%s far from any memory", what);
  else if (address < nearest->low)
    report("OUT-OF-BOUNDS", line, nearest->name, "%s of %u bytes starts %lu bytes before it", what, bytes, best);
  else
    report("OUT-OF-BOUNDS", line, nearest->name, "%s of %u bytes ends %lu bytes past its end", what, bytes, best);
}

// --- races -----------------------------------------------------------------------------------------------------------

// Whether nothing orders an earlier touch before the access that happens now.
static inline bool unordered(const Touch& old, u32 thread, int space, bool atomic) {
  if (!old.thread || old.thread == thread || (atomic && (old.line & ATOMIC))) return false;
  if (old.epoch < S.group_epoch[space]) return space == EMU_DEVICE;  // another threadgroup, never ordered
  if (old.epoch < S.epoch[space]) return false;                      // a threadgroup barrier lies between
  u32 simdgroup = S.fiber->position.simdgroup;
  bool same = (old.thread - 1 - S.first_thread) / 32 == simdgroup;
  return !(same && old.sub_epoch < S.simdgroups[simdgroup].epoch[space]);
}

static void report_race(Region& r, u64 index, const Touch& old, int space, bool write, u32 line, const char* verb) {
  bool foreign = space == EMU_DEVICE && old.epoch < S.group_epoch[space];
  u32 other = foreign ? old.thread - 1 : old.thread - 1 - S.first_thread;
  const char* where = foreign ? " of the launch, in another threadgroup," : "";
  report("RACE", line, r.name, "element %lu is %s here, and %s by thread %u%s at line %u; no barrier lies between",
         index, write ? "written" : "read", verb, other, where, old.line & ~ATOMIC);
}

static inline bool same_simdgroup(const Touch& a, const Touch& b) {
  return (a.thread - 1 - S.first_thread) / 32 == (b.thread - 1 - S.first_thread) / 32;
}

// Two readers are enough to find every race inside a threadgroup: the last one, and the last one in another simdgroup
// since the barrier, or else the last other thread of the same simdgroup. A third one serves other threadgroups.
static inline void note_read(Element& e, const Touch& now, int space) {
  Touch last = e.reader;
  if (last.thread != now.thread) {
    bool kept = e.reader2.epoch == now.epoch && e.reader2.thread && !same_simdgroup(e.reader2, now);
    if (last.thread && last.epoch < S.group_epoch[space]) e.foreign = last;
    if (!kept || !same_simdgroup(last, now)) e.reader2 = last;
  }
  e.reader = now;
}

static inline void note_write(Element& e, const Touch& now, bool atomic) {
  if (atomic && (e.writer.line & ATOMIC) && e.writer.thread != now.thread) e.atomic_writer = e.writer;
  e.writer = now;
}

// --- one access ------------------------------------------------------------------------------------------------------

struct Access {
  u32 bytes, align;
  int space, ways;  // EMU_LOAD, EMU_STORE or both
  bool atomic;
  u32 line;
};

static inline void touch(Region& r, u64 index, const Access& a, const Touch& now) {
  Element& e = r.elements[index];
  bool write = a.ways & EMU_STORE;
  bool filled = a.space == EMU_THREADGROUP ? e.writer.epoch >= S.group_epoch[a.space] : e.filled;
  if ((a.ways & EMU_LOAD) && !filled) report("UNINITIALISED", a.line, r.name, "element %lu was never written", index);
  if (unordered(e.writer, now.thread, a.space, a.atomic))
    report_race(r, index, e.writer, a.space, write, a.line, "written");
  else if (unordered(e.atomic_writer, now.thread, a.space, a.atomic))
    report_race(r, index, e.atomic_writer, a.space, write, a.line, "written");
  if (write) {
    const Touch* readers[] = {&e.reader, &e.reader2, &e.foreign};
    for (const Touch* old : readers)
      if (unordered(*old, now.thread, a.space, a.atomic)) report_race(r, index, *old, a.space, write, a.line, "read");
    note_write(e, now, a.atomic);
    e.filled = e.stored = 1;
  } else {
    note_read(e, now, a.space);
  }
  if (a.ways & EMU_LOAD) e.loaded = 1;
}

static inline void spend(u32 line) {
  if (++S.launch->counters.work <= S.launch->budget) return;
  report("BUDGET", line, "", "the budget of %lu accesses and loop turns is used up: an endless loop?",
         S.launch->budget);
  stop();
}

static inline void count(u32 slot, u32 bytes) {
  S.launch->line_bytes[slot] += bytes;
  S.launch->line_accesses[slot]++;
}

static inline u64 access(u64 address, const Access& a) {
  if (!S.launch->checked) return address;
  u32 slot = (a.line < S.launch->lines ? a.line : 0) * SLOTS + 2 * a.space;
  if (a.ways & EMU_LOAD) count(slot, a.bytes);
  if (a.ways & EMU_STORE) count(slot + 1, a.bytes);
  spend(a.line);
  Region* r = S.hot[slot];
  if (!r || address - r->low >= r->bytes) S.hot[slot] = r = find_region(address, a.space);
  if (!r || address - r->low + a.bytes > r->bytes) {
    report_bounds(address, a.bytes, a.space, a.ways & EMU_STORE, a.line);
    return reinterpret_cast<u64>(S.spare);
  }
  if (address & (a.align - 1)) report("MISALIGNED", a.line, r->name, "the address must be a multiple of %u", a.align);
  if ((a.ways & EMU_STORE) && (r->flags & READ_ONLY)) report("READ-ONLY", a.line, r->name, "a store to an input");
  if (a.space == EMU_CONSTANT) return address;
  const emu_position& me = S.fiber->position;
  u16 line = static_cast<u16>(a.line | (a.atomic ? ATOMIC : 0));
  Touch now = {S.first_thread + me.index_in_threadgroup + 1, S.epoch[a.space],
               S.simdgroups[me.simdgroup].epoch[a.space], line};
  u64 last = (address - r->low + a.bytes - 1) >> r->shift;
  for (u64 i = (address - r->low) >> r->shift; i <= last; ++i) touch(*r, i, a, now);
  return address;
}

extern "C" {
u64 emu_load_device(u64 address, u32 bytes, u32 align, u32 line) {
  return access(address, {bytes, align, EMU_DEVICE, EMU_LOAD, false, line});
}
u64 emu_store_device(u64 address, u32 bytes, u32 align, u32 line) {
  return access(address, {bytes, align, EMU_DEVICE, EMU_STORE, false, line});
}
u64 emu_load_constant(u64 address, u32 bytes, u32 align, u32 line) {
  return access(address, {bytes, align, EMU_CONSTANT, EMU_LOAD, false, line});
}
u64 emu_load_threadgroup(u64 address, u32 bytes, u32 align, u32 line) {
  return access(address, {bytes, align, EMU_THREADGROUP, EMU_LOAD, false, line});
}
u64 emu_store_threadgroup(u64 address, u32 bytes, u32 align, u32 line) {
  return access(address, {bytes, align, EMU_THREADGROUP, EMU_STORE, false, line});
}
u64 emu_access(u64 address, u32 bytes, int space, int ways, u32 line) {
  return access(address, {bytes, 1, space, ways, false, line});
}
u64 emu_atomic(u64 address, u32 bytes, int space, int ways, u32 line) {
  S.launch->counters.atomics++;
  return access(address, {bytes, bytes, space, ways, true, line});
}

void emu_loop(u32 line) { spend(line); }
void emu_bad_index(u32 line) { report("INDEX", line, "", "an index outside its array"); }
void emu_bad_division(u32 line) {
  report("DIVISION", line, "", "an integer is divided by zero");
  stop();
}
}
