/* What cuda_stub.py makes CUDA's libraries of: see there.  Kernels compute nothing, memory and copies are real. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
typedef int E;
static struct { long graphs, launches, streams, events, device_memory, pinned_memory, copies, captured_copies, refusals, kernels, strays, tf32; } n;
static int capturing; static void *captured;  /* the stream that is, and whether one is */
typedef struct { unsigned x, y, z; } dim3;
long stub_count(int which) { return ((long *)&n)[which]; }
static __thread int mine;  /* whether this thread captures, which is what mode 1 looks at */
#define REFUSED { n.refusals++; return 900; }
#define WAITS if (capturing) REFUSED  /* what waits for a device, from any thread */
#define UNSAFE if (mine) REFUSED  /* what allocates or frees */
#define STRAYS(t) (capturing && (mine ? (t) != captured : (t) == captured))  /* in no graph, or in another thread's */
#define WAITS_FOR(t) if (capturing && (t) == captured) REFUSED
static void *take(size_t size) { void *p = 0; return posix_memalign(&p, 256, size ? size : 1) ? 0 : p; }
static void *launchable(void) { long *x = take(8); *x = 5000; n.graphs++; return x; }
static E launch(long *x, void *t) { if (*x != 5000) { n.refusals++; return 400; } n.launches++; return 0; }
static E unlaunchable(long *x) { if (*x != 5000) { n.refusals++; return 400; } *x = 0; n.graphs--; return 0; }  /* kept: a later launch is told */
static E begin(void *t, int mode) { if (capturing || mode != 1) REFUSED capturing = mine = 1; captured = t; return 0; }
static E end(void **g) { if (!mine) REFUSED capturing = mine = 0; *g = take(8); n.graphs++; return 0; }

/* The driver's own, as far as edgemm calls it. */
E cuInit(unsigned f) { return 0; } E cuDriverGetVersion(int *v) { *v = 13000; return 0; }
E cuDeviceGetCount(int *c) { *c = 2; return 0; } E cuDeviceGet(int *d, int i) { *d = i; return i < 2 ? 0 : 101; }
E cuDeviceGetName(char *s, int l, int d) { strncpy(s, "stub", l); return 0; }
E cuDeviceTotalMem_v2(size_t *s, int d) { *s = 8l << 30; return 0; }
E cuDeviceGetUuid_v2(char *u, int d) { memset(u, d, 16); return 0; }
E cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? SM_MAJOR : a == 76 ? SM_MINOR : 1; return 0; }
E cuDevicePrimaryCtxRetain(void **c, int d) { *c = &n; return 0; } E cuCtxSetCurrent(void *c) { return 0; }
E cuGetErrorName(int e, const char **s) { *s = "stub"; return 0; }
E cuStreamCreate(void **t, unsigned f) { *t = take(8); n.streams++; return 0; }
E cuStreamSynchronize(void *t) { WAITS_FOR(t) return 0; }
E cuMemAllocManaged(void **p, size_t s, unsigned f) { UNSAFE *p = take(s); n.device_memory++; return 0; }
E cuMemAlloc_v2(void **p, size_t s) { UNSAFE *p = take(s); n.device_memory++; return 0; }
E cuMemHostAlloc(void **p, size_t s, unsigned f) { UNSAFE *p = take(s); n.pinned_memory++; return 0; }
E cuMemFree_v2(void *p) { UNSAFE free(p); n.device_memory--; return 0; }
E cuMemFreeHost(void *p) { UNSAFE free(p); n.pinned_memory--; return 0; }
E cuMemcpyAsync(void *d, const void *s, size_t c, void *t) { if (!mine) memmove(d, s, c); return 0; }
E cuStreamBeginCapture_v2(void *t, int mode) { return begin(t, mode); }
E cuStreamEndCapture(void *t, void **g) { return end(g); }
E cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) { *x = launchable(); return 0; }
E cuGraphDestroy(void *g) { free(g); n.graphs--; return 0; } E cuGraphExecDestroy(void *x) { return unlaunchable(x); }
E cuGraphLaunch(void *x, void *t) { n.strays += STRAYS(t); return launch(x, t); }

E cudaGetDeviceCount(int *c) { *c = 2; return 0; }
static int device; E cudaSetDevice(int d) { device = d; return d < 2 ? 0 : 101; } E cudaGetDevice(int *d) { *d = device; return 0; }
E cudaDriverGetVersion(int *v) { *v = 13000; return 0; } E cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
E cudaGetDeviceProperties(char *p, int d) {  /* CUDA 13's cudaDeviceProp */
  memset(p, 0, 1008); strcpy(p, "stub"); *(size_t *)(p + 288) = 8l << 30; *(size_t *)(p + 296) = 49152;
  *(int *)(p + 304) = 65536; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024;
  for (int i = 0; i < 3; i++) { ((int *)(p + 324))[i] = i < 2 ? 1024 : 64; ((int *)(p + 336))[i] = i ? 65535 : 1 << 30; }
  *(int *)(p + 360) = SM_MAJOR; *(int *)(p + 364) = SM_MINOR; *(int *)(p + 384) = 16; return 0; }
E cudaDeviceGetAttribute(int *v, int a, int d) {
  *v = a == 75 ? SM_MAJOR : a == 76 ? SM_MINOR : a == 16 ? 16 : a == 97 || a == 8 || a == 81 ? 98304 : 1; return 0; }
E cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = 8l << 30; return 0; }
E cudaMalloc(void **p, size_t s) { UNSAFE *p = take(s); n.device_memory++; return 0; }
E cudaFree(void *p) { UNSAFE if (p) n.device_memory--; free(p); return 0; }
E cudaMallocFromPoolAsync(void **p, size_t s, void *q, void *t) { *p = take(s); n.device_memory++; return 0; }
E cudaFreeAsync(void *p, void *t) { if (p) n.device_memory--; free(p); return 0; }
E cudaHostAlloc(void **p, size_t s, unsigned f) { UNSAFE *p = take(s); n.pinned_memory++; return 0; }
E cudaMallocHost(void **p, size_t s) { return cudaHostAlloc(p, s, 0); }
E cudaFreeHost(void *p) { UNSAFE if (p) n.pinned_memory--; free(p); return 0; }
static dim3 grid, block; static size_t shared; static void *on;  /* of the launch that is being put together */
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, void *t) { grid = g; block = b; shared = m; on = t; return 0; }
E __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void **t) { *g = grid; *b = block; *m = shared; *t = on; return 0; }
E __cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, void *t) {
  n.kernels++; n.strays += STRAYS(t); return 0; }
E cudaLaunchKernelExC(const char *c, const void *f, void **a) {  /* its stream is at byte 32 of cudaLaunchConfig_t */
  n.kernels++; n.strays += STRAYS(*(void **)(c + 32)); return 0; }
E cudaMemcpy(void *d, const void *s, size_t c, int k) { WAITS n.copies++; memmove(d, s, c); return 0; }
E cudaMemcpyAsync(void *d, const void *s, size_t c, int k, void *t) {
  n.strays += STRAYS(t); if (mine) { n.captured_copies += k == 1; return 0; } n.copies += k < 3; memmove(d, s, c); return 0; }
E cudaMemset(void *d, int v, size_t c) { WAITS memset(d, v, c); return 0; }
E cudaMemsetAsync(void *d, int v, size_t c, void *t) { if (!mine) memset(d, v, c); return 0; }
E cudaPointerGetAttributes(int *a, const void *p) { memset(a, 0, 40); a[0] = 2; *(const void **)(a + 2) = p; *(const void **)(a + 4) = p; return 0; }
E cudaStreamCreateWithFlags(void **t, unsigned f) { *t = take(8); n.streams++; return 0; }
E cudaStreamCreate(void **t) { return cudaStreamCreateWithFlags(t, 0); }
E cudaStreamDestroy(void *t) { WAITS_FOR(t) n.streams--; free(t); return 0; }
E cudaStreamSynchronize(void *t) { WAITS_FOR(t) return 0; } E cudaStreamQuery(void *t) { WAITS_FOR(t) return 0; } E cudaDeviceSynchronize(void) { WAITS return 0; }
E cudaEventCreateWithFlags(void **e, unsigned f) { *e = take(8); n.events++; return 0; }
E cudaEventCreate(void **e) { return cudaEventCreateWithFlags(e, 0); }
E cudaEventDestroy(void *e) { n.events--; free(e); return 0; }
E cudaEventSynchronize(void *e) { UNSAFE return 0; } E cudaEventQuery(void *e) { UNSAFE return 0; }
E cudaStreamIsCapturing(void *t, int *s) { *s = capturing && t == captured; return 0; }
E cudaStreamBeginCapture(void *t, int mode) { return begin(t, mode); }
E cudaStreamEndCapture(void *t, void **g) { return end(g); }
E cudaGraphInstantiate(void **x, void *g, unsigned long long f) { *x = launchable(); return 0; }
E cudaGraphDestroy(void *g) { n.graphs--; free(g); return 0; } E cudaGraphExecDestroy(void *x) { return unlaunchable(x); }
E cudaGraphLaunch(void *x, void *t) { return launch(x, t); }
E cudaLaunchHostFunc(void *t, void (*f)(void *), void *d) { if (!mine) f(d); return 0; }
E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *b, const void *f, int s, size_t m, unsigned g) { *b = 1; return 0; }
const char *cudaGetErrorString(E e) { return "stub"; } const char *cudaGetErrorName(E e) { return "stub"; }
E cudaMemPoolCreate(void **p, const void *q) { *p = take(8); return 0; }
void **__cudaRegisterFatBinary(void *f) { static void *h; return &h; }
E cublasCreate_v2(void **h) { *h = take(8); return 0; } E cublasDestroy_v2(void *h) { free(h); return 0; }
E cublasSetMathMode(void *h, int m) { n.tf32 += m == 3; return 0; } E cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
E cublasLtCreate(void **h) { *h = take(8); return 0; } E cublasLtDestroy(void *h) { free(h); return 0; }
E cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int w, void *r, int *c2) {
  memset(r, 0, 96); *c2 = 1; return 0; }
size_t cudnnGetVersion(void) { return 91400; } E cudnnCreate(void **h) { *h = take(8); return 0; }
const char *cudnnGetErrorString(E e) { return "stub"; } void cudnnGetLastErrorString(char *s, size_t m) { *s = 0; }
