// The low-bit linear layer on an NVIDIA GPU: y = s_x s_w (c Q^T) + b, from packed bytes.
//
//     x (T, K) float --quantize--> c (T, K) int8 codes, s_x (T,) --gemm or gemv--> y (T, N) float
//     c (T, K) signs --pack_signs--> bits (T, K/32 words)        --xnor---------/
//
// T tokens, K input features, N output features; Q (N, K) the codes of the weight, as `quant.pack` lays them in bytes:
// "2bit" (digit = code + 1, four a byte) or "1bit" (digit 1 = +1, 0 = -1, eight a byte), each row in whole bytes.
//
// Why it is exact: codes are whole numbers and so are their sums, which int32 holds without rounding in any order. All
// float arithmetic is element by element, and written with the _rn functions (IEEE rounding to nearest): the compiler
// may turn a * b + c into one operation with one rounding, but not __fadd_rn(__fmul_rn(a, b), c). So the results are
// those of the NumPy code in `quant.integer`, to the bit. The two float *sums* of the layer, whose last bits do depend
// on the order, stay with the array module: mean x^2 of an RMSNorm and mean |x| of 1-bit activations.
//
// Activations travel in 32-bit words, four int8 codes or 32 sign bits each, the first in the lowest bits. A row of them
// is padded with zeros to whole tiles, so no loop over K below has a remainder: what stands in the padding of the
// weight is multiplied by 0, or, for signs, equal to it.
//
// Plain CUDA C++ without headers: NVRTC compiles it when the first packed layer runs (see cuda.py, which also reads
// the numbers of the following lines from this text).

#define TILE_TOKENS 32   // a block of gemm computes a tile of 32 tokens by 64 outputs ...
#define TILE_OUT 64
#define GEMM_THREADS 128 // ... with 8 x 16 threads, each of which owns 4 x 4 of these 2048 sums
#define GEMV_THREADS 128 // 4 warps, an output each
#define ROW_THREADS 256  // a block of quantize or pack_signs, which has one token
#define CODE_DEPTH 16    // words of a row in a tile: 64 int8 codes
#define SIGN_DEPTH 8     // or 256 sign bits

#define WARP 32
#define ALL_LANES 0xffffffffu

typedef unsigned int word;

// --- three ways to multiply -----------------------------------------------------------------------------------------
// A form says how 32 packed bits of the weight become WORDS words that match those of the activations (`unpack`), and
// what a pair of words adds to the sum (`dot`).

// sum + x_0 w_0 + x_1 w_1 + x_2 w_2 + x_3 w_3 of the four int8 codes in x and in w: one instruction since Pascal.
__device__ int dot4(word x, word w, int sum) {
#if __CUDA_ARCH__ >= 610
    return __dp4a((int)x, (int)w, sum);
#else
    for (int shift = 0; shift < 32; shift += 8) sum += (signed char)(x >> shift) * (signed char)(w >> shift);
    return sum;
#endif
}

// Four bytes 0, 1 or 2 to -1, 0 or 1, all at once. 127 is added, so that no byte overflows into its neighbour, and then
// 128 is taken away by turning the top bit over.
__device__ word minus_one(word digits) {
    return (digits + 0x7f7f7f7fu) ^ 0x80808080u;
}

struct TwoBit {  // 16 ternary weights in 32 bits; with int8 activations
    enum { WORDS = 4, DEPTH = CODE_DEPTH, TILE_K = 4 * DEPTH, BITS = 2 };
    static __device__ word unpack(word packed, int part) {
        word byte = packed >> (8 * part) & 0xff;  // d3 d2 d1 d0, two bits each, to be spread over four bytes
        return minus_one((byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303u);
    }
    static __device__ int dot(word x, word w, int sum) { return dot4(x, w, sum); }
    static __device__ int finish(int sum, int) { return sum; }
};

struct OneBit {  // 32 binary weights in 32 bits; with int8 activations
    enum { WORDS = 8, DEPTH = CODE_DEPTH, TILE_K = 4 * DEPTH, BITS = 1 };
    static __device__ word unpack(word packed, int part) {
        word half = packed >> (4 * part) & 0xf;
        word digits = (half | half << 7 | half << 14 | half << 21) & 0x01010101u;
        return minus_one(digits << 1);  // a bit d means 2 d - 1
    }
    static __device__ int dot(word x, word w, int sum) { return dot4(x, w, sum); }
    static __device__ int finish(int sum, int) { return sum; }
};

struct Xnor {  // binary weights and binary activations: count the signs that differ
    enum { WORDS = 1, DEPTH = SIGN_DEPTH, TILE_K = 32 * DEPTH, BITS = 1 };
    static __device__ word unpack(word packed, int) { return packed; }
    static __device__ int dot(word x, word w, int sum) { return sum + __popc(x ^ w); }
    // K products, of which `different` are -1 and the others +1 (XNOR-Net, Rastegari et al. 2016)
    static __device__ int finish(int different, int K) { return K - 2 * different; }
};

// --- what all products share ----------------------------------------------------------------------------------------

// Rows of the activations in words, and of the weight in bytes.
template <class Form>
__device__ int row_words(int K) {
    return (K + Form::TILE_K - 1) / Form::TILE_K * Form::DEPTH;
}
template <class Form>
__device__ int row_bytes(int K) {
    return (K * Form::BITS + 7) / 8;
}

// Bytes 4 i .. 4 i + 3 of a row of n bytes, 0 beyond its end. A GPU reads 32 bits only from a multiple of 4, and rows
// of a weight begin anywhere (K = 100 is 13 bytes at 1 bit): where the row does not fit, read byte by byte.
__device__ word four_bytes(const unsigned char* row, int i, int n) {
    const unsigned char* at = row + (size_t)4 * i;
    int left = n - 4 * i;
    if (left >= 4 && (size_t)at % 4 == 0) return *(const word*)at;
    word four = 0;
    for (int b = 0; b < 4; b++)
        if (b < left) four |= (word)at[b] << (8 * b);
    return four;
}

// From a sum of codes to an output: y = s_x s_w sum + b, rounded after every step as the NumPy code is.
struct Rescale {
    const float *step, *scale, *bias;  // (T,); (N,) or, with scale_stride 0, (1,); (N,) if has_bias
    int scale_stride, has_bias;
    __device__ float operator()(int sum, int token, int out) const {
        float y = __fmul_rn(__int2float_rn(sum), step[token]);
        y = __fmul_rn(y, scale[out * scale_stride]);
        return has_bias ? __fadd_rn(y, bias[out]) : y;
    }
};

// --- gemm: many tokens ----------------------------------------------------------------------------------------------
// A weight is needed by every token and a code by every output, so reading both from memory for each product would
// read everything T or N times. A block therefore walks along K in steps, and in each step
//
//     1. copies DEPTH words of its 32 tokens and of its 64 outputs to shared memory, unpacking the weights on the way:
//        once for 32 tokens, so unpacking costs little;
//     2. lets every thread multiply 4 rows of x with 4 rows of w: 8 reads for 16 products.
//
//                    w: 64 outputs                 A thread's tokens are 8 apart and its outputs 16 apart, so that
//                  +----------------+              in one read the threads of a warp ask for neighbouring words of w
//             DEPTH|                |              and for the same two of x: no two ask one bank of shared memory
//                  +----------------+              for different words, which would make them wait.
//     x:    +-----+----------------+
//     32    |     | y: 32 x 64     |               Tiles are stored [k][row] for that, each row of the table one word
//     tokens|     | 128 threads    |               longer than needed: while filling, neighbouring threads write
//           +-----+----------------+               neighbouring k, which without it would all be one bank.

template <int DEPTH>
struct Tile {
    word x[DEPTH][TILE_TOKENS + 1];
    word w[DEPTH][TILE_OUT + 1];
};

template <class Form>
__device__ void fill(Tile<Form::DEPTH>& tile, const word* x, const unsigned char* packed, int step, int T, int N,
                     int K) {
    enum { DEPTH = Form::DEPTH, PACKED = Form::DEPTH / Form::WORDS };
    const int words = row_words<Form>(K), bytes = row_bytes<Form>(K);
    for (int i = threadIdx.x; i < TILE_TOKENS * DEPTH; i += GEMM_THREADS) {
        int row = i / DEPTH, k = i % DEPTH, token = blockIdx.x * TILE_TOKENS + row;
        tile.x[k][row] = token < T ? x[(size_t)token * words + step * DEPTH + k] : 0;
    }
    for (int i = threadIdx.x; i < TILE_OUT * PACKED; i += GEMM_THREADS) {
        int row = i / PACKED, p = i % PACKED, out = blockIdx.y * TILE_OUT + row;
        word four = out < N ? four_bytes(packed + (size_t)out * bytes, step * PACKED + p, bytes) : 0;
        for (int part = 0; part < Form::WORDS; part++) tile.w[p * Form::WORDS + part][row] = Form::unpack(four, part);
    }
}

template <class Form>
__device__ void gemm(Tile<Form::DEPTH>& tile, const word* x, const unsigned char* packed, Rescale rescale, float* y,
                     int T, int N, int K) {
    const int column = threadIdx.x % 16, line = threadIdx.x / 16;  // of the 16 x 8 threads
    int sum[4][4] = {};
    for (int step = 0; step < row_words<Form>(K) / Form::DEPTH; step++) {
        fill<Form>(tile, x, packed, step, T, N, K);
        __syncthreads();  // nobody reads the tile before all have written their part of it
#pragma unroll
        for (int k = 0; k < Form::DEPTH; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sum[i][j] = Form::dot(tile.x[k][line + 8 * i], tile.w[k][column + 16 * j], sum[i][j]);
        __syncthreads();  // nobody overwrites it before all have read it
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int token = blockIdx.x * TILE_TOKENS + line + 8 * i, out = blockIdx.y * TILE_OUT + column + 16 * j;
            if (token < T && out < N)
                y[(size_t)token * N + out] = rescale(Form::finish(sum[i][j], K), token, out);
        }
}

// --- gemv: few tokens -----------------------------------------------------------------------------------------------
// With one token every weight is used once: there is nothing to share, and the time is that of reading the weight. A
// warp takes one output; its 32 lanes read 128 neighbouring bytes at a time and sum their own part, and then the 32
// sums are added up in five steps: each lane adds the sum of the lane 16 away, then 8, 4, 2, 1.

template <class Form>
__device__ void gemv(const word* x, const unsigned char* packed, Rescale rescale, float* y, int N, int K) {
    const int lane = threadIdx.x % WARP, token = blockIdx.y;
    const int out = blockIdx.x * (GEMV_THREADS / WARP) + threadIdx.x / WARP;
    if (out >= N) return;  // a whole warp leaves, so the exchange below misses no lane
    const int bytes = row_bytes<Form>(K);
    const unsigned char* row = packed + (size_t)out * bytes;
    const word* codes = x + (size_t)token * row_words<Form>(K);
    int sum = 0;
    for (int i = lane; i < (bytes + 3) / 4; i += WARP) {
        word four = four_bytes(row, i, bytes);
#pragma unroll
        for (int part = 0; part < Form::WORDS; part++)
            sum = Form::dot(codes[(size_t)i * Form::WORDS + part], Form::unpack(four, part), sum);
    }
    for (int away = WARP / 2; away > 0; away /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, away);
    if (lane == 0) y[(size_t)token * N + out] = rescale(Form::finish(sum, K), token, out);
}

// --- the six products: gemm over a grid (T / 32, N / 64), gemv over (N / 4, T) --------------------------------------

#define PRODUCT_PARAMETERS \
    const word *x, const unsigned char *packed, const float *step, const float *scale, const float *bias, float *y, \
        int T, int N, int K, int scale_stride, int has_bias
#define RESCALE Rescale{step, scale, bias, scale_stride, has_bias}

extern "C" __global__ void __launch_bounds__(GEMM_THREADS) gemm_2bit(PRODUCT_PARAMETERS) {
    __shared__ Tile<TwoBit::DEPTH> tile;
    gemm<TwoBit>(tile, x, packed, RESCALE, y, T, N, K);
}

extern "C" __global__ void __launch_bounds__(GEMM_THREADS) gemm_1bit(PRODUCT_PARAMETERS) {
    __shared__ Tile<OneBit::DEPTH> tile;
    gemm<OneBit>(tile, x, packed, RESCALE, y, T, N, K);
}

extern "C" __global__ void __launch_bounds__(GEMM_THREADS) gemm_xnor(PRODUCT_PARAMETERS) {
    __shared__ Tile<Xnor::DEPTH> tile;
    gemm<Xnor>(tile, x, packed, RESCALE, y, T, N, K);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) gemv_2bit(PRODUCT_PARAMETERS) {
    gemv<TwoBit>(x, packed, RESCALE, y, N, K);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) gemv_1bit(PRODUCT_PARAMETERS) {
    gemv<OneBit>(x, packed, RESCALE, y, N, K);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) gemv_xnor(PRODUCT_PARAMETERS) {
    gemv<Xnor>(x, packed, RESCALE, y, N, K);
}

// --- quantize: floats to int8 codes, a block a token ----------------------------------------------------------------
// codes = round(v s), s = top / size, step = size / top, size = max(max |v|, smallest), as `ste.absmax_codes`, rounding
// half to even; v = x, or x times the weight of an RMSNorm, whose root cancels in the codes (see integer.py).

struct Plain {
    const float* x;
    __device__ float operator()(int k) const { return x[k]; }
};

struct Weighted {
    const float *x, *weight;
    __device__ float operator()(int k) const { return __fmul_rn(x[k], weight[k]); }
};

// The largest |v| of the row, in every thread. Floats that are not negative order as their bits do, and comparing the
// bits loses no NaN: it is larger than infinity, while fmaxf would drop it.
template <class Values>
__device__ float largest(Values value, int* of_warp, int K) {
    int most = 0;
    for (int k = threadIdx.x; k < K; k += ROW_THREADS) most = max(most, __float_as_int(value(k)) & 0x7fffffff);
    for (int away = WARP / 2; away > 0; away /= 2) most = max(most, __shfl_xor_sync(ALL_LANES, most, away));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = most;
    __syncthreads();  // all warps have written before anyone reads
    for (int warp = 0; warp < ROW_THREADS / WARP; warp++) most = max(most, of_warp[warp]);
    return __int_as_float(most);
}

// A row with NaN or infinity gets a step of NaN or infinity and code 0 where rounding gives NaN: its outputs are all
// NaN, as they are in NumPy, although an int8 cannot be NaN.
template <class Values>
__device__ void quantize_row(Values value, int* of_warp, signed char* codes, float* step, int K, int padded,
                             float top, float smallest) {
    float size = largest(value, of_warp, K);
    if (size < smallest) size = smallest;  // false for NaN
    const float s = __fdiv_rn(top, size);
    for (int k = threadIdx.x; k < padded; k += ROW_THREADS)
        codes[k] = k < K ? (signed char)__float2int_rn(__fmul_rn(value(k), s)) : 0;
    if (threadIdx.x == 0) *step = __fdiv_rn(size, top);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    quantize(const float* x, word* codes, float* step, int K, int words, float top, float smallest) {
    __shared__ int of_warp[ROW_THREADS / WARP];
    const size_t token = blockIdx.x;
    Plain value = {x + token * K};
    quantize_row(value, of_warp, (signed char*)(codes + token * words), step + token, K, 4 * words, top, smallest);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    norm_quantize(const float* x, const float* weight, word* codes, float* step, int K, int words, float top,
                  float smallest) {
    __shared__ int of_warp[ROW_THREADS / WARP];
    const size_t token = blockIdx.x;
    Weighted value = {x + token * K, weight};
    quantize_row(value, of_warp, (signed char*)(codes + token * words), step + token, K, 4 * words, top, smallest);
}

// --- pack_signs: floats to sign bits, a block a token ---------------------------------------------------------------
// A warp asks 32 neighbouring numbers at once whether they are >= 0 (so sign(0) is +1): the ballot *is* the word.

extern "C" __global__ void __launch_bounds__(ROW_THREADS) pack_signs(const float* x, word* bits, int K, int words) {
    const size_t token = blockIdx.x;
    for (int i = threadIdx.x / WARP; i < words; i += ROW_THREADS / WARP) {
        int k = i * WARP + threadIdx.x % WARP;
        word signs = __ballot_sync(ALL_LANES, k < K && x[token * K + k] >= 0);
        if (threadIdx.x % WARP == 0) bits[token * words + i] = signs;
    }
}
