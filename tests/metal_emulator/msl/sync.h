// Barriers. The line of the call comes in as a default argument, which clang fills in at the call.
#pragma clang system_header

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags flags, uint line = __builtin_LINE()) { emu_barrier(int(flags), line); }
inline void simdgroup_barrier(mem_flags flags, uint line = __builtin_LINE()) {
  int lanes;
  emu_exchange(&flags, sizeof flags, EMU_SIMDGROUP_BARRIER, int(flags), line, &lanes);
}
}  // namespace metal
