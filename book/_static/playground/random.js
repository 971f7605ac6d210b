// The two random generators of the package, so that a seed means the same here and there: PyTorch's draws the
// first weights, NumPy's shuffles the images.
//
// The worker gets the text of this function, so it uses nothing outside itself.
"use strict";

function playgroundRandom() {
  /**
   * PyTorch's generator, the Mersenne Twister, after torch.manual_seed(seed).
   * @param {number} seed a whole number, 0 to 2^32 - 1
   */
  function torchGenerator(seed) {
    const LENGTH = 624, MIDDLE = 397;
    const state = new Uint32Array(LENGTH);
    state[0] = seed;
    for (let i = 1; i < LENGTH; i += 1) {
      state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    }
    let next = LENGTH;

    function refill() {
      for (let i = 0; i < LENGTH; i += 1) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % LENGTH] & 0x7fffffff);
        state[i] = state[(i + MIDDLE) % LENGTH] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }

    /** 24 random bits as a number in [0, 1). */
    function uniform() {
      if (next === LENGTH) refill();
      let y = state[next];
      next += 1;
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      y ^= y >>> 18;
      return (y & 0xffffff) / 0x1000000;
    }

    /** Leave out so many draws. */
    function skip(count) {
      for (let i = 0; i < count; i += 1) uniform();
    }

    /** From 16 uniform numbers, in place, 16 normal ones (Box and Muller). */
    function toNormal(values, start, std) {
      for (let i = start; i < start + 8; i += 1) {
        const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
        const angle = 2 * Math.PI * values[i + 8];
        values[i] = std * radius * Math.cos(angle);
        values[i + 8] = std * radius * Math.sin(angle);
      }
    }

    /**
     * Fill an array of 16 values or more as torch.Tensor.normal_(0, std) does.
     * @param {Float32Array} values
     * @param {number} std
     */
    function fillNormal(values, std) {
      for (let i = 0; i < values.length; i += 1) values[i] = uniform();
      for (let i = 0; i + 16 <= values.length; i += 16) toNormal(values, i, std);
      if (values.length % 16) { // PyTorch draws the last 16 anew
        const last = values.length - 16;
        for (let i = last; i < values.length; i += 1) values[i] = uniform();
        toNormal(values, last, std);
      }
    }

    return { skip, fillNormal };
  }

  /**
   * The pool of numpy.random.SeedSequence(seed), as eight words of 32 bits.
   * @param {number} seed a whole number, 0 to 2^32 - 1
   */
  function seedWords(seed) {
    let constant = 0x43b0d7e5;
    function hash(value) {
      value ^= constant;
      constant = Math.imul(constant, 0x931e8875);
      value = Math.imul(value, constant);
      return (value ^ (value >>> 16)) >>> 0;
    }
    function mix(x, y) {
      const value = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
      return (value ^ (value >>> 16)) >>> 0;
    }
    const pool = [seed, 0, 0, 0].map(hash);
    for (let from = 0; from < 4; from += 1) {
      for (let to = 0; to < 4; to += 1) {
        if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
      }
    }
    let other = 0x8b51f9dd;
    return Array.from({ length: 8 }, (_, i) => {
      let value = pool[i % 4] ^ other;
      other = Math.imul(other, 0x58f38ded);
      value = Math.imul(value, other);
      return (value ^ (value >>> 16)) >>> 0;
    });
  }

  /**
   * NumPy's generator, PCG64, as numpy.random.default_rng(seed) makes it.
   * @param {number} seed
   */
  function numpyGenerator(seed) {
    const BITS_64 = (1n << 64n) - 1n, BITS_128 = (1n << 128n) - 1n;
    const FACTOR = 0x2360ed051fc65da44385df649fccf645n;
    const words = seedWords(seed).map(BigInt);
    const long = (i) => words[i] | (words[i + 1] << 32n); // the low word comes first
    const increment = (((long(4) << 64n) | long(6)) << 1n | 1n) & BITS_128;
    let state = 0n;
    const advance = () => { state = (state * FACTOR + increment) & BITS_128; };
    advance();
    state += (long(0) << 64n) | long(2);
    advance();

    /** @type {number[]} the half of a draw of 64 bits that is not used yet */
    const rest = [];
    function word() {
      if (rest.length) return rest.pop();
      advance();
      const folded = (state >> 64n) ^ (state & BITS_64);
      const turn = state >> 122n;
      const value = ((folded >> turn) | (folded << (64n - turn))) & BITS_64;
      rest.push(Number(value >> 32n));
      return Number(value & 0xffffffffn);
    }

    /** A whole number from 0 to `last`: draws of just enough bits, until one is not too large. */
    function upTo(last) {
      const bits = 2 ** (32 - Math.clz32(last)) - 1;
      let value;
      do value = (word() & bits) >>> 0; while (value > last);
      return value;
    }

    /** Generator.permutation(count). */
    function permutation(count) {
      const order = Int32Array.from({ length: count }, (_, i) => i);
      for (let i = count - 1; i > 0; i -= 1) {
        const j = upTo(i);
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    }

    return { permutation };
  }

  /**
   * Mini-batches without end, as bnbook.sgd.endless: shuffled epochs without their short last batch.
   * @param {number} examples
   * @param {number} batch how many examples a mini-batch has
   * @param {number} seed
   * @returns {() => Int32Array} gives the next mini-batch
   */
  function endless(examples, batch, seed) {
    const generator = numpyGenerator(seed);
    const usable = examples - examples % batch;
    let order = new Int32Array(0), next = usable;
    return () => {
      if (next === usable) {
        order = generator.permutation(examples);
        next = 0;
      }
      next += batch;
      return order.subarray(next - batch, next);
    };
  }

  return { torchGenerator, endless };
}
