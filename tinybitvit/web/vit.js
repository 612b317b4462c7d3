"use strict";
// The forward pass of tinybitvit's VisionTransformer for one image. One function per operation, with the library's names
// and letters; the comment above it names the Python file to read beside it. An array is a typed array in C order whose
// last axis the weights tell: (T, K) tokens are x.length / K rows.
//
// NumPy computes in float32, JavaScript in float64. A code is a rounded number, so where an operation in front of a
// quantiser rounds in NumPy, it rounds here, by Math.fround or by storing into a Float32Array.

const f32 = Math.fround, EPS = 1e-5;

// --- quant/pack.py ----------------------------------------------------------------------------------------------------

/** Bytes to int8 codes (out, K). A byte is d_0 + d_1 base + d_2 base^2 + ..., digits of neighbours along K; each byte is
    looked up in a table of 256 rows. A row is padded to whole bytes. */
function unpack(packed, { base, weights_per_byte, codes }, [out, K]) {
  const n = weights_per_byte, table = new Int8Array(256 * n), width = Math.ceil(K / n), w = new Int8Array(out * K);
  for (let byte = 0; byte < 256; byte++) {
    for (let i = 0; i < n; i++) table[byte * n + i] = codes[Math.floor(byte / base ** i) % base];
  }
  for (let row = 0; row < out; row++) {
    for (let k = 0; k < K; k++) w[row * K + k] = table[packed[row * width + Math.floor(k / n)] * n + (k % n)];
  }
  return w;
}

function decode_base64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** The arrays of a model by their names in Python, { data, shape }: float32 as they are, packed weights as codes. */
function load_state_dict(model) {
  const bytes = decode_base64(model.bytes), state = {};
  for (const [name, [kind, shape, start, length]] of Object.entries(model.arrays)) {
    const data = kind === "float32" ? new Float32Array(bytes.buffer, start, length / 4)
      : unpack(bytes.subarray(start, start + length), model.layouts[kind], shape);
    state[name] = { data, shape };
  }
  return state;
}

// --- ops/ste.py and quant/integer.py --------------------------------------------------------------------------------

/** Round half to even, as NumPy's rint does; Math.round takes every half up. */
function rint(v) {
  const floor = Math.floor(v), rest = v - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Codes round(x s) with s = top / max(max |x|, eps) per token, and the step 1 / s. */
function absmax_codes(x, K, bits, eps = EPS) {
  const top = 2 ** (bits - 1) - 1, codes = new Float32Array(x.length), step = new Float32Array(x.length / K);
  for (let t = 0; t < step.length; t++) {
    let size = f32(eps);
    for (let k = t * K; k < (t + 1) * K; k++) size = Math.max(size, Math.abs(x[k]));
    const s = f32(top / size);
    for (let k = t * K; k < (t + 1) * K; k++) codes[k] = rint(f32(x[k] * s));
    step[t] = size / top;
  }
  return { codes, step };
}

/** Codes b = +1 where x >= 0 else -1, and beta = mean |x| per token. */
function binary_codes(x, K, eps = EPS) {
  const codes = x.map((v) => (v >= 0 ? 1 : -1)), step = new Float32Array(x.length / K);
  for (let t = 0; t < step.length; t++) {
    let sum = 0;
    for (let k = t * K; k < (t + 1) * K; k++) sum += Math.abs(x[k]);
    step[t] = Math.max(sum / K, eps);
  }
  return { codes, step };
}

/** The integer codes of norm(x), x (T, K), and their step (T,); without activation_bits norm(x) itself. The root of the
    norm cancels in the codes and is left in the step. */
function input_codes(x, K, activation_bits, norm = null) {
  if (activation_bits === null) return { codes: norm ? rms_norm(x, norm.weight, norm.eps) : x, step: null };
  const v = norm ? x.map((value, i) => value * norm.weight[i % K]) : x, eps = norm ? EPS * Math.sqrt(norm.eps) : EPS;
  const { codes, step } = activation_bits === 1 ? binary_codes(v, K, eps) : absmax_codes(v, K, activation_bits, eps);
  if (norm) step.forEach((s, t) => { step[t] = s * inverse_root(x.subarray(t * K, (t + 1) * K), norm.eps); });
  return { codes, step };
}

/** x w^T for rows x (T, K) and w (out, K): sums (T, out) in float64, where sums of whole numbers have no rounding error.
    Eight sums at a time, two tokens by four rows of w, so that each number is read once for several products. */
function accumulate(x, w, K) {
  const T = x.length / K, out = w.length / K, sums = new Float64Array(T * out);
  const rows = new Float64Array(K * 2 * Math.ceil(T / 2)), tile = new Float64Array(4 * K);
  rows.set(x);
  for (let o = 0; o < out; o += 4) {
    tile.fill(0).set(w.subarray(o * K, (o + 4) * K));
    for (let t = 0; t < T; t += 2) {
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let k = 0, i = t * K, j = i + K; k < K; k++, i++, j++) {
        const a = rows[i], b = rows[j], w0 = tile[k], w1 = tile[K + k], w2 = tile[2 * K + k], w3 = tile[3 * K + k];
        a0 += a * w0; a1 += a * w1; a2 += a * w2; a3 += a * w3;
        b0 += b * w0; b1 += b * w1; b2 += b * w2; b3 += b * w3;
      }
      [a0, a1, a2, a3, b0, b1, b2, b3].forEach((sum, n) => {
        const row = t + (n >> 2), column = o + (n & 3);
        if (row < T && column < out) sums[row * out + column] = sum;
      });
    }
  }
  return sums;
}

/** Accumulators (T, out) to outputs: y = s_x s_w y + b. One scale for each row of the weight, or one for all. */
function rescale(sums, step, scale, bias) {
  const out = bias.length, y = new Float32Array(sums);
  for (let t = 0, i = 0; i < y.length; t++) {
    for (let o = 0; o < out; o++, i++) {
      const scaled = step === null ? y[i] : f32(y[i] * step[t]);
      y[i] = f32(scaled * scale[scale.length === 1 ? 0 : o]) + bias[o];
    }
  }
  return y;
}

// --- ops --------------------------------------------------------------------------------------------------------------

/** ops/patch.py: an image (H, W, C) to its patches (T, ph pw C), row by row. */
function patchify(x, [H, W, C], [ph, pw]) {
  const y = new Float32Array(x.length);
  let i = 0;
  for (let top = 0; top < H; top += ph) {
    for (let left = 0; left < W; left += pw) {
      for (let row = top; row < top + ph; row++) {
        y.set(x.subarray((row * W + left) * C, (row * W + left + pw) * C), i);
        i += pw * C;
      }
    }
  }
  return y;
}

/** ops/norm.py: y = z w + b with z = (x - mean x) / s, s = sqrt(var x + eps) for each row. */
function layer_norm(x, weight, bias, eps) {
  const K = weight.length, y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += K) {
    const row = x.subarray(start, start + K), z = y.subarray(start, start + K);
    const mean = f32(row.reduce((sum, v) => sum + v, 0) / K);
    for (let k = 0; k < K; k++) z[k] = row[k] - mean;
    const inverse = inverse_root(z, eps);
    for (let k = 0; k < K; k++) z[k] = f32(f32(z[k] * inverse) * weight[k]) + bias[k];
  }
  return y;
}

/** y = z w with z = x / s, s = sqrt(mean(x^2) + eps) for each row. */
function rms_norm(x, weight, eps) {
  const K = weight.length, y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += K) {
    const inverse = inverse_root(x.subarray(start, start + K), eps);
    for (let k = 0; k < K; k++) y[start + k] = f32(x[start + k] * inverse) * weight[k];
  }
  return y;
}

/** 1 / sqrt(mean(x^2) + eps). */
function inverse_root(x, eps) {
  const mean_square = f32(x.reduce((sum, v) => sum + v * v, 0) / x.length);
  return f32(1 / f32(Math.sqrt(f32(mean_square + f32(eps)))));
}

/** e^(x_i - max x) / sum_j e^(x_j - max x) for each row of K numbers, in place. */
function softmax(x, K) {
  for (let start = 0; start < x.length; start += K) {
    const row = x.subarray(start, start + K), max = Math.max(...row);
    for (let k = 0; k < K; k++) row[k] = Math.exp(f32(row[k] - max));
    const sum = f32(row.reduce((a, b) => a + b, 0));
    for (let k = 0; k < K; k++) row[k] /= sum;
  }
  return x;
}

/** ops/activation.py: y = x (1 + t) / 2, t = tanh(sqrt(2/pi) (x + 0.044715 x^3)), or the exact x (1 + erf(x / sqrt 2)) / 2. */
function gelu(x, approximate) {
  if (approximate === "none") return x.map((v) => v * f32(0.5 * f32(1 + f32(erf(f32(v * f32(Math.sqrt(0.5))))))));
  const a = f32(Math.sqrt(2 / Math.PI)), b = f32(0.044715 * Math.sqrt(2 / Math.PI));
  return x.map((v) => v * f32(0.5 * f32(Math.tanh(f32(f32(f32(f32(v * v) * b) + a) * v))) + 0.5));
}

/** erf x = 2/sqrt(pi) e^(-x^2) (x + 2 x^3 / 3 + 4 x^5 / (3 5) + ...), a series without cancellation. */
function erf(x) {
  if (Math.abs(x) > 4) return Math.sign(x); // but for 2e-8
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-9 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** ops/attention.py: y = p v with p = softmax(q k^T / sqrt d) for each head; qkv (T, 3 h d) to y (T, h d), p (h, T, T). */
function multi_head_attention(qkv, T, heads) {
  const width = qkv.length / T, d = width / (3 * heads), scale = f32(1 / Math.sqrt(d));
  const y = new Float32Array((T * width) / 3), p = new Float32Array(heads * T * T);
  const q = new Float32Array(T * d), k = new Float32Array(T * d), vT = new Float32Array(d * T);
  for (let h = 0; h < heads; h++) {
    for (let t = 0; t < T; t++) {
      for (let j = 0; j < d; j++) {
        const at = t * width + h * d + j;
        q[t * d + j] = qkv[at];
        k[t * d + j] = qkv[at + width / 3];
        vT[j * T + t] = qkv[at + (2 * width) / 3];
      }
    }
    const ph = p.subarray(h * T * T, (h + 1) * T * T);
    ph.set(accumulate(q, k, d).map((sum) => f32(sum) * scale));
    softmax(ph, T);
    const yh = accumulate(ph, vT, T);
    for (let t = 0; t < T; t++) y.set(yh.subarray(t * d, (t + 1) * d), t * heads * d + h * d);
  }
  return { y, p };
}

// --- nn and models/vit.py ---------------------------------------------------------------------------------------------

/** quant/packed.py, PackedLinear: y = Q_a(norm(x)) Q_w^T + b; a layer of 32 bits has neither Q nor norm. */
function linear(x, name, { state, config }) {
  const packed = state[`${name}.packed`], norm = state[`${name}.norm.weight`], bias = state[`${name}.bias`];
  const { data, shape: [, K] } = packed ?? state[`${name}.weight`];
  const { codes, step } = input_codes(x, K, packed ? config.activation_bits : null,
    norm && { weight: norm.data, eps: config.sub_norm_eps });
  return rescale(accumulate(codes, data, K), step, state[`${name}.scale`]?.data ?? [1], bias.data);
}

/** nn/embed.py, TokenEmbed: patch tokens with positions, after the class token and the registers, which have none. */
function token_embed(x, model) {
  const { dim, image_shape, patch_size, prefix } = model.config, at = (name) => model.state[`embed.${name}`]?.data ?? [];
  const patches = linear(patchify(x, image_shape, patch_size), "embed.patch.proj", model);
  const [cls, registers, positions] = [at("cls_token"), at("reg_token"), at("pos_embed")];
  const tokens = new Float32Array(prefix * dim + patches.length);
  tokens.set(cls);
  tokens.set(registers, cls.length);
  tokens.set(patches, prefix * dim);
  for (let i = 0; i < cls.length; i++) tokens[i] += positions[i];
  for (let i = 0; i < patches.length; i++) tokens[prefix * dim + i] += positions[cls.length + i];
  return tokens;
}

/** x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))); the attention probabilities are added to `maps`. */
function block(x, name, model, maps) {
  const { state, config } = model, T = x.length / config.dim;
  const norm = (n, v) => layer_norm(v, state[`${name}.${n}.weight`].data, state[`${name}.${n}.bias`].data, config.eps);
  const add = (v, y, gamma) => v.map((value, i) => value + (gamma ? f32(y[i] * gamma.data[i % config.dim]) : y[i]));

  const { y, p } = multi_head_attention(linear(norm("norm1", x), `${name}.attn.qkv`, model), T, config.heads);
  maps.push(p);
  x = add(x, linear(y, `${name}.attn.proj`, model), state[`${name}.ls1.gamma`]);
  const hidden = gelu(linear(norm("norm2", x), `${name}.mlp.fc1`, model), config.gelu);
  return add(x, linear(hidden, `${name}.mlp.fc2`, model), state[`${name}.ls2.gamma`]);
}

/** What the head reads of the tokens x (T, dim): the mean over patches, the class token, or DeiT's distillation token. */
function pooled(x, part, { dim, prefix }) {
  if (part !== "mean") return x.subarray(part === "dist" ? dim : 0).subarray(0, dim);
  const y = new Float32Array(dim);
  for (let i = prefix * dim; i < x.length; i++) y[i % dim] += x[i];
  return y.map((sum) => sum / (x.length / dim - prefix));
}

/** data/transforms.py, Normalize: bytes (H, W, C) as the network takes them, low + step byte being a pixel's value. */
function normalize(pixels, { low, step, offset, scale }) {
  return Float32Array.from(pixels, (v, i) => f32(f32(low + step * v) - offset[i % offset.length]) * scale[i % scale.length]);
}

/** A normalised image (H, W, C) to { logits, maps }, maps holding the attention probabilities (h, T, T) of each block. */
function vision_transformer(x, model) {
  const { state, config } = model, maps = [];
  x = token_embed(x, model);
  for (let i = 0; i < config.depth; i++) x = block(x, `blocks.${i}`, model, maps);
  x = layer_norm(x, state["norm.weight"].data, state["norm.bias"].data, config.eps);
  const parts = config.pool.split("+").map((part) => [...pooled(x, part, config)]);
  return { logits: linear(Float32Array.from(parts.flat()), "head", model), maps };
}
