// Runs the scripts of tinybitvit/web outside a browser: node vit_runner.js FOLDER PAGE TASK < input.json > output.json.
// FOLDER holds vit.js and draw.js; PAGE is an exported page, whose models are loaded; a TASK is a function below.

const fs = require("fs");
const vm = require("vm");

const [folder, page, task] = process.argv.slice(2);
for (const name of ["vit.js", "draw.js"]) vm.runInThisContext(fs.readFileSync(`${folder}/${name}`, "utf8"), name);
const data = JSON.parse(fs.readFileSync(page, "utf8").match(/<script type="application\/json" id="data">(.*?)<\/script>/s)[1]);
for (const model of data.models) model.state = load_state_dict(model);

const images = (path) => {
  const length = data.shape.reduce((a, b) => a * b), bytes = fs.readFileSync(path);
  return Array.from({ length: bytes.length / length }, (_, i) => bytes.subarray(i * length, (i + 1) * length));
};

const tasks = {
  /** Logits of every image, and attention maps where asked for. */
  ask: ({ path, maps }) => images(path).map((image) => {
    const [model] = data.models, result = vision_transformer(normalize(image, model.normalize), model);
    return { logits: [...result.logits], maps: maps ? result.maps.map((p) => [...p]) : null };
  }),

  /** The same while every quantiser is given NumPy's codes, int8 (layer, image, token, feature) in a file. Where its own
      differ, `ties` gets how far its number lies from the half way between the two; the sums of products of codes go
      into a file as int32 (image, layer, token, feature). */
  replay: ({ path, codes, layers, sums }) => {
    const expected = new Int8Array(fs.readFileSync(codes).buffer), [model] = data.models, ties = [], collected = [];
    const all = images(path), starts = [];
    layers.reduce((start, size, i) => { starts[i] = start; return start + size * all.length; }, 0);
    const { input_codes: quantise, accumulate: multiply } = globalThis;
    let image, layer, counts;
    globalThis.input_codes = (x, K, bits, norm) => {
      const own = quantise(x, K, bits, norm), v = norm ? x.map((value, i) => value * norm.weight[i % K]) : x;
      counts = own.step !== null;
      if (!counts) return own;
      const start = starts[layer] + image * layers[layer], theirs = expected.subarray(start, start + layers[layer]);
      if (theirs.length !== own.codes.length) throw new Error(`${own.codes.length} codes, NumPy has ${theirs.length}`);
      own.codes.forEach((code, i) => {
        if (code === theirs[i]) return;
        const t = Math.floor(i / K), size = v.subarray(t * K, (t + 1) * K).reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
        ties.push(Math.abs((v[i] * (bits === 1 ? 1 : 2 ** (bits - 1) - 1)) / size - (code + theirs[i]) / 2));
      });
      layer++;
      return { codes: Float32Array.from(theirs), step: own.step };
    };
    globalThis.accumulate = (...a) => {
      const result = multiply(...a);
      if (counts) collected.push(Int32Array.from(result));
      counts = false;
      return result;
    };
    const logits = all.map((bytes, i) => {
      [image, layer] = [i, 0];
      return [...vision_transformer(normalize(bytes, model.normalize), model).logits];
    });
    fs.writeFileSync(sums, Buffer.concat(collected.map((a) => Buffer.from(a.buffer))));
    return { logits, ties };
  },

  /** The fastest run of the model, in milliseconds, after some that let the compiler see what is hot. */
  time: ({ path, runs }) => {
    const [model] = data.models, [image] = images(path), times = [];
    for (let i = 0; i < runs; i++) {
      const start = performance.now();
      vision_transformer(normalize(image, model.normalize), model);
      times.push(performance.now() - start);
    }
    return Math.min(...times);
  },

  /** Calls of single functions: [[name, ...arguments], ...]; lists of numbers arrive as Float32Array where `floats`. */
  call: ({ calls, floats }) => calls.map(([name, ...values]) => {
    const result = globalThis[name](...values.map((v) => (floats && Array.isArray(v) ? Float32Array.from(v) : v)));
    return ArrayBuffer.isView(result) ? [...result] : result;
  }),
};

process.stdout.write(JSON.stringify(tasks[task](JSON.parse(fs.readFileSync(0, "utf8")))));
