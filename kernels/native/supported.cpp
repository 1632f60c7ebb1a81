// Compiled for any x86-64: all else here needs the instructions that this looks for.

// Nothing else of this library may be called where this answers 0.
extern "C" __attribute__((visibility("default"))) int modelfleet_cpu_is_supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}
