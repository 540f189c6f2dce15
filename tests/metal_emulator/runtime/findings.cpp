// Findings: the first of a kind and line is kept.
#include "state.h"

static int format(char* out, u64 bytes, const char* text, ...) {
  va_list arguments;
  __builtin_va_start(arguments, text);
  int length = vsnprintf(out, bytes, text, arguments);
  __builtin_va_end(arguments);
  return length;
}

void report(const char* kind, u32 line, const char* buffer, const char* text, ...) {
  Launch& launch = *S.launch;
  for (u32 i = 0; i < launch.finding_count; ++i)
    if (launch.findings[i].line == line && !strcmp(launch.findings[i].kind, kind)) return;
  if (launch.finding_count == MAX_FINDINGS) return;
  Finding& finding = launch.findings[launch.finding_count++];
  format(finding.kind, sizeof finding.kind, "%s", kind);
  format(finding.buffer, sizeof finding.buffer, "%s", buffer);
  finding.line = line;
  finding.has_thread = S.fiber != nullptr;
  if (S.fiber) {
    finding.thread = S.fiber->position.index_in_threadgroup;
    for (int i = 0; i < 3; ++i) finding.threadgroup[i] = S.fiber->position.group[i];
  }
  va_list arguments;
  __builtin_va_start(arguments, text);
  vsnprintf(finding.text, sizeof finding.text, text, arguments);
  __builtin_va_end(arguments);
}
