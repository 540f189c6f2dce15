// The runtime as one translation unit, so that the way to an element's shadow is inlined.
#include "findings.cpp"
#include "fiber.cpp"
#include "memory.cpp"
#include "numbers.cpp"
#include "sync.cpp"
#include "run.cpp"
