/* A CUDA runtime whose device is the host's memory, for tests without a GPU. */
#include <stdlib.h>
#include <string.h>

static void *const STREAM = (void *)7;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDeviceProperties(void *properties, int device) {
  strcpy(properties, "stand-in");
  return device;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = STREAM; return flags != 1; }
int cudaStreamSynchronize(void *stream) { return stream == STREAM ? 0 : 400; }
int cudaMalloc(void **address, size_t size) { return !(*address = malloc(size)); }
int cudaFree(void *address) { free(address); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  memcpy(to, from, size);
  return kind != 1 && kind != 2 ? 21 : stream == STREAM ? 0 : 400;
}
const char *cudaGetErrorString(int code) { return code == 400 ? "invalid handle" : "wrong"; }
