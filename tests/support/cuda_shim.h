// CUDA C on the CPU: enough of the language to run the unchanged text of kernels.cu, compiled by g++.
//
// The blocks of a grid run one after the other; every thread of a block is a fiber, a stack of its own that runs until
// the thread waits at a barrier or a warp operation. A scheduler then picks the next one, in the order that the caller
// asks for: a result that depends on this order is a race. Shared memory is filled with 0xFF bytes (NaN, -1) before
// each block. Threads that wait at different barriers, or that end while others wait, stop the launch with a sentence.
//
// What this cannot show: races between warps in flight, the memory model, anything between blocks, and speed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_UCONTEXT
#endif
#ifdef SHIM_UCONTEXT
#include <ucontext.h>
#endif

#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))
extern char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

struct uint3 {
    unsigned x, y, z;
};
static uint3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

namespace shim {

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
#ifdef SHIM_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
    uint3 index;
    State state;
    int line;           // of the barrier at which it waits
    uint64_t exchange;  // what it gives to the other threads of its warp
};

#ifdef __SANITIZE_ADDRESS__
static const size_t STACK = 1 << 18;
extern "C" void __asan_unpoison_memory_region(void const volatile*, size_t);
#else
static const size_t STACK = 1 << 15;
#endif
static std::vector<Fiber> fibers;
static std::vector<char> stacks, dynamic_memory;
static char* dynamic;  // the dynamic shared memory of the block
static int current, threads;
static char error[256];
static void (*body)(void**);
static void** arguments;

#ifdef SHIM_UCONTEXT
static ucontext_t scheduler;
static void enter() { swapcontext(&scheduler, &fibers[current].context); }
static void leave() { swapcontext(&fibers[current].context, &scheduler); }
#else
// Saves the registers that a called function must keep, changes the stack, and takes the registers from there.
// (swapcontext does the same and asks the operating system for the signal mask besides, which takes much longer.)
extern "C" void shim_switch(void** from, void* to);
asm(R"(
    .text
    .local shim_switch
    .type shim_switch, @function
shim_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
static void* scheduler;
static void enter() { shim_switch(&scheduler, fibers[current].stack_pointer); }
static void leave() { shim_switch(&fibers[current].stack_pointer, scheduler); }
#endif

static void run_thread() {
    body(arguments);
    fibers[current].state = DONE;
    leave();
}

static void prepare(Fiber& fiber, char* stack) {
    fiber.state = READY;
#ifdef SHIM_UCONTEXT
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, run_thread, 0);
#else
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15));
    *--top = nullptr;  // where run_thread would return to; it never does
    *--top = reinterpret_cast<void*>(run_thread);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
#endif
}

static void wait_at(State where, int line) {
    fibers[current].state = where;
    fibers[current].line = line;
    leave();
}

// Whether threads first .. last - 1 all wait at one barrier of that kind; writes an error where they never will.
static bool together(State where, int first, int last) {
    int waiting = 0, line = 0;
    for (int i = first; i < last; i++) {
        if (fibers[i].state != where) continue;
        if (waiting++ && fibers[i].line != line)
            snprintf(error, sizeof error, "threads of one %s wait at different barriers, in lines %d and %d",
                     where == AT_WARP ? "warp" : "block", line, fibers[i].line);
        line = fibers[i].line;
    }
    if (!waiting || error[0]) return false;
    for (int i = first; i < last; i++)
        if (fibers[i].state == DONE)
            snprintf(error, sizeof error, "thread %d has ended while others wait for it in line %d", i, line);
    return waiting == last - first && !error[0];
}

static bool release(State where, int size) {
    bool any = false;
    for (int first = 0; first < threads; first += size) {
        int last = first + size < threads ? first + size : threads;
        if (!together(where, first, last)) continue;
        for (int i = first; i < last; i++) fibers[i].state = READY;
        any = true;
    }
    return any;
}

enum Order { ASCENDING, DESCENDING, SHUFFLED };

static void arrange(std::vector<int>& order, int how, uint32_t& seed) {
    int n = int(order.size());
    for (int i = 0; i < n; i++) order[i] = how == DESCENDING ? n - 1 - i : i;
    for (int i = n - 1; how == SHUFFLED && i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(order[i], order[(seed >> 8) % unsigned(i + 1)]);
    }
}

__attribute__((no_sanitize("address"))) static void poison_shared_memory() {
    for (volatile char* p = __start_shared_memory; p < __stop_shared_memory; p++) *p = char(0xff);
    for (char& byte : dynamic_memory) byte = char(0xff);
}

static void run_block(int how, uint32_t& seed) {
    poison_shared_memory();
    for (int i = 0; i < threads; i++) prepare(fibers[i], &stacks[i * STACK]);
    std::vector<int> order(threads);
    for (int ended = 0; ended < threads;) {
        arrange(order, how, seed);
        for (int i : order) {
            if (fibers[i].state != READY) continue;
            current = i;
            threadIdx = fibers[i].index;
            enter();
            ended += fibers[i].state == DONE;
        }
        if (!release(AT_WARP, warpSize) && !error[0] && ended < threads) release(AT_BLOCK, threads);
        if (error[0]) return;
        bool stuck = ended < threads;
        for (const Fiber& fiber : fibers) stuck = stuck && fiber.state != READY;
        if (stuck) {
            snprintf(error, sizeof error, "some threads wait at a barrier that the others never reach");
            return;
        }
    }
}

static const char* launch(void (*kernel)(void**), void** args, const unsigned* shape, size_t dynamic_bytes, int how,
                          uint32_t seed) {
    body = kernel, arguments = args, error[0] = 0;
    gridDim = {shape[0], shape[1], shape[2]}, blockDim = {shape[3], shape[4], shape[5]};
    threads = int(blockDim.x * blockDim.y * blockDim.z);
    fibers.resize(threads);
    if (stacks.size() < threads * STACK) stacks.resize(threads * STACK);
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stacks.data(), stacks.size());
#endif
    std::vector<char>(dynamic_bytes).swap(dynamic_memory);  // exactly as large, so that the sanitizer sees its end
    dynamic = dynamic_memory.data();
    for (int i = 0; i < threads; i++)
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    std::vector<int> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z);
    arrange(blocks, how, seed);
    for (size_t i = 0; i < blocks.size() && !error[0]; i++) {
        unsigned b = blocks[i];
        blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
        run_block(how, seed);
    }
    return error[0] ? error : nullptr;
}

// The parameters of a kernel, one word each: "float", "const float*", ... as NumPy names the types.
template <class T>
const char* type_name() {
    if (std::is_same<T, float>::value) return "float32";
    if (std::is_same<T, double>::value) return "float64";
    if (std::is_same<T, bool>::value) return "bool";
    static const char* names[2][4] = {{"int8", "int16", "int32", "int64"}, {"uint8", "uint16", "uint32", "uint64"}};
    return names[std::is_unsigned<T>::value][sizeof(T) == 8 ? 3 : sizeof(T) / 2];
}
template <class T>
void describe(char*& out) {
    typedef typename std::remove_pointer<T>::type Item;
    out += sprintf(out, "%s%s%s ", std::is_pointer<T>::value && std::is_const<Item>::value ? "const:" : "",
                   type_name<typename std::remove_cv<Item>::type>(), std::is_pointer<T>::value ? "*" : "");
}
template <class... A>
const char* parameters(void (*)(A...)) {
    static char text[1024];
    char* out = text;
    int dummy[] = {0, (describe<A>(out), 0)...};
    (void)dummy;
    return text;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<typename std::remove_cv<A>::type*>(args[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** args) {
    call(kernel, args, std::index_sequence_for<A...>());
}

// All threads of the warp give a value, then each takes what it asks for.
template <class T>
T exchange(T value, int source, int line) {
    memcpy(&fibers[current].exchange, &value, sizeof value);
    wait_at(AT_WARP, line);
    int first = current / warpSize * warpSize, last = first + warpSize < threads ? first + warpSize : threads;
    if (source >= 0 && source < warpSize && first + source < last)
        memcpy(&value, &fibers[first + source].exchange, sizeof value);
    wait_at(AT_WARP, line);  // nobody may give the next value before all have taken this one
    return value;
}
static unsigned ballot(bool vote, int line) {
    fibers[current].exchange = vote;
    wait_at(AT_WARP, line);
    int first = current / warpSize * warpSize;
    unsigned votes = 0;
    for (int i = first; i < threads && i < first + warpSize; i++)
        votes |= unsigned(fibers[i].exchange & 1) << (i - first);
    wait_at(AT_WARP, line);
    return votes;
}
static int lane() { return current % warpSize; }

}  // namespace shim

#define __syncthreads() shim::wait_at(shim::AT_BLOCK, __LINE__)
#define __syncwarp(...) shim::wait_at(shim::AT_WARP, __LINE__)
#define __shfl_sync(mask, value, source) shim::exchange(value, source, __LINE__)
#define __shfl_xor_sync(mask, value, bits) shim::exchange(value, shim::lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, delta) shim::exchange(value, shim::lane() + (delta), __LINE__)
#define __shfl_up_sync(mask, value, delta) shim::exchange(value, shim::lane() - (delta), __LINE__)
#define __ballot_sync(mask, vote) shim::ballot(vote, __LINE__)

// A fiber runs undisturbed between two waits: any read and write in there is atomic.
#define SHIM_ATOMIC(name, expression)           \
    template <class T>                          \
    T name(T* address, T value) {               \
        T old = *address;                       \
        *address = expression;                  \
        return old;                             \
    }
SHIM_ATOMIC(atomicAdd, old + value)
SHIM_ATOMIC(atomicMax, old < value ? value : old)
SHIM_ATOMIC(atomicMin, value < old ? value : old)
SHIM_ATOMIC(atomicOr, old | value)
SHIM_ATOMIC(atomicAnd, old & value)
SHIM_ATOMIC(atomicXor, old ^ value)
SHIM_ATOMIC(atomicExch, value)

template <class T>
T atomicCAS(T* address, T expected, T value) {
    T old = *address;
    if (old == expected) *address = value;
    return old;
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int8_t(b >> i);
    return sum;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 32; i += 8) sum += ((a >> i) & 255) * ((b >> i) & 255);
    return sum;
}
static inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __int2float_rn(int x) { return float(x); }
static inline int __float2int_rn(float x) {  // saturates, and takes NaN to 0, as the GPU does
    return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : int(nearbyintf(x));
}
template <class T>
const T& min(const T& a, const T& b) {
    return b < a ? b : a;
}
template <class T>
const T& max(const T& a, const T& b) {
    return a < b ? b : a;
}
