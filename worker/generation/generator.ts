/** Text from a language model: greedy, by beams, or drawn; a batch at a time, each step one compiled program. */
import * as tf from '@tensorflow/tfjs-core';
import type { CompiledFunction, Engine } from '../backend/engine.ts';
import type { LanguageModel, Next } from '../models/language-model.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { BeamSearch, NEVER, type BeamOptions, type Candidate } from './beam-search.ts';
import { GenerationError } from './generation-error.ts';
import { drawToken, filterLogits, type SamplingOptions } from './sampling.ts';

export type Strategy =
  | { readonly kind: 'greedy' }
  | ({ readonly kind: 'beam' } & BeamOptions)
  | ({
      readonly kind: 'sample';
      readonly seed: number;
      /** What keys each row's draws; its number in the batch unless given. */
      readonly rowKeys?: readonly number[];
    } & SamplingOptions);

export interface GenerateOptions {
  readonly strategy: Strategy;
  /** A text ends with any of these. */
  readonly eosIds: readonly number[];
  /** At most what the generator was opened with, which it is unless given. */
  readonly maxNewTokens?: number;
  readonly signal?: AbortSignal;
}

export interface GeneratedText {
  /** Without prompt and end. */
  readonly ids: readonly number[];
  /** Whether the model ended it; else it was cut. */
  readonly isFinished: boolean;
  /** Of beams: the sum of log probabilities, divided by length ** penalty. */
  readonly score?: number;
}

/** The programs of one model. */
export interface Generator<P extends TensorTree, Q extends TensorTree> {
  /**
   * A text for each row of the prompt, whose tensors stay the caller's.
   *
   * @throws GenerationError `GENERATION_BAD_SETTING`; what `signal` gives as its reason
   */
  generate(params: P, prompt: Q, options: GenerateOptions): Promise<GeneratedText[]>;
  /** Frees the compiled programs. Idempotent. */
  close(): void;
}

export interface GeneratorOptions {
  /** How many tokens a text may have: the room that is made for them. */
  readonly maxNewTokens: number;
}

export function openGenerator<P extends TensorTree, Q extends TensorTree, S extends TensorTree>(
  engine: Engine,
  model: LanguageModel<P, Q, S>,
  { maxNewTokens }: GeneratorOptions,
): Generator<P, Q> {
  checkAtLeastOne('maxNewTokens', maxNewTokens);
  const programs = new Programs(engine, model, maxNewTokens);
  return {
    generate: async (params, prompt, options) => {
      const wanted = options.maxNewTokens ?? maxNewTokens;
      checkOptions(options, { wanted, room: maxNewTokens });
      const { strategy } = options;
      switch (strategy.kind) {
        case 'greedy':
          return oneByOne(programs.greedy, params, prompt, { ...options, wanted });
        case 'sample':
          return oneByOne(programs.drawn(strategy), params, prompt, { ...options, wanted });
        case 'beam':
          return byBeams(programs, params, prompt, { ...options, strategy, wanted });
      }
    },
    close: () => {
      programs.close();
    },
  };
}

/** How tokens are chosen of what a model says. */
interface Choice<P extends TensorTree, Q extends TensorTree, S extends TensorTree> {
  readonly first: (params: P, prompt: Q) => Promise<{ state: S; chosen: tf.Tensor }>;
  readonly next: (
    params: P,
    state: S,
    tokens: tf.Tensor,
  ) => Promise<{ state: S; chosen: tf.Tensor }>;
  /** What the program made of the logits, with the number of the step, to one id a row. */
  pick(chosen: tf.Tensor, step: number): Promise<Int32Array>;
  readonly upload: Upload;
}

/** Each row's tokens one after another, until all rows have ended. */
async function oneByOne<P extends TensorTree, Q extends TensorTree, S extends TensorTree>(
  choice: Choice<P, Q, S>,
  params: P,
  prompt: Q,
  { eosIds, signal, wanted }: GenerateOptions & { readonly wanted: number },
): Promise<GeneratedText[]> {
  let { state, chosen } = await choice.first(params, prompt);
  const texts: { ids: number[]; isFinished: boolean }[] = [];
  try {
    for (let step = 0; ; step++) {
      const tokens = await choice.pick(chosen, step);
      chosen.dispose();
      for (const [row, token] of tokens.entries()) {
        const text = (texts[row] ??= { ids: [], isFinished: false });
        if (text.isFinished) continue;
        if (eosIds.includes(token)) text.isFinished = true;
        else text.ids.push(token);
      }
      if (step + 1 >= wanted || texts.every(({ isFinished }) => isFinished)) return texts;
      signal?.throwIfAborted();
      // A row that has ended goes on with whatever comes; nobody looks at it.
      const taken = choice.upload(tokens, [tokens.length]);
      ({ state, chosen } = await choice.next(params, state, taken));
      taken.dispose();
    }
  } finally {
    disposeTree(state);
    chosen.dispose();
  }
}

async function byBeams<P extends TensorTree, Q extends TensorTree, S extends TensorTree>(
  programs: Programs<P, Q, S>,
  params: P,
  prompt: Q,
  {
    strategy,
    eosIds,
    signal,
    wanted,
  }: GenerateOptions & { readonly strategy: BeamOptions; readonly wanted: number },
): Promise<GeneratedText[]> {
  const { first, next, upload } = programs.beams(strategy.numBeams, eosIds.length);
  let search: BeamSearch | undefined;
  let { state, ranked } = await first(params, prompt);
  try {
    for (;;) {
      const numRows = ranked.scores.shape[0];
      search ??= new BeamSearch(numRows, strategy, { eosIds, maxLength: wanted });
      const candidates = await candidatesOf(ranked);
      disposeTree(ranked);
      const { parents, tokens } = search.advance(candidates);
      if (search.isDone) break;
      signal?.throwIfAborted();
      const given = [
        upload(parents, [parents.length]),
        upload(tokens, [tokens.length]),
        upload(search.scores, [numRows, strategy.numBeams]),
      ] as const;
      ({ state, ranked } = await next(params, state, ...given));
      disposeTree(given);
    }
  } finally {
    disposeTree([state, ranked]);
  }
  return search.best().map(({ ids, score }) => {
    const isFinished = eosIds.includes(ids.at(-1)!);
    return { ids: isFinished ? ids.slice(0, -1) : ids, isFinished, score };
  });
}

async function candidatesOf({ scores, beams, tokens }: Ranked): Promise<Candidate[][]> {
  const [numRows, count] = scores.shape as [number, number];
  const read = await Promise.all([scores.data(), beams.data(), tokens.data()]);
  return Array.from({ length: numRows }, (_row, row) =>
    Array.from({ length: count }, (_candidate, k) => {
      const [score, beam, token] = read.map((values) => values[row * count + k]!) as [
        number,
        number,
        number,
      ];
      return { score, beam, token };
    }),
  );
}

type Upload = (data: Int32Array | Float32Array, shape: readonly number[]) => tf.Tensor;
type Step<S extends TensorTree> = { readonly state: S; readonly chosen: tf.Tensor };
type BeamStep<S extends TensorTree> = { readonly state: S; readonly ranked: Ranked };
/** The best continuations of each row, best first, [B, C] each. */
type Ranked = {
  readonly scores: tf.Tensor;
  readonly beams: tf.Tensor;
  readonly tokens: tf.Tensor;
};

/** What a generator compiles, once it is asked for. */
class Programs<P extends TensorTree, Q extends TensorTree, S extends TensorTree> {
  readonly #engine: Engine;
  readonly #model: LanguageModel<P, Q, S>;
  readonly #room: number;
  readonly #compiled = new Map<string, { close(): void }>();
  readonly #upload: Upload = (data, shape) => this.#engine.upload(data, shape);

  constructor(engine: Engine, model: LanguageModel<P, Q, S>, room: number) {
    this.#engine = engine;
    this.#model = model;
    this.#room = room;
  }

  /** Tokens are chosen within the program: a number a row leaves the device. */
  get greedy(): Choice<P, Q, S> {
    const likeliest = ({ logits, state }: Next<S>): Step<S> => ({
      state,
      chosen: tf.cast(tf.argMax(logits, -1), 'int32'),
    });
    return {
      ...this.#steps('greedy', likeliest),
      pick: async (chosen) => Int32Array.from(await chosen.data()),
    };
  }

  /** Logits leave the device: the draw is made in double precision, from counters. */
  drawn({ seed, rowKeys, ...options }: Extract<Strategy, { kind: 'sample' }>): Choice<P, Q, S> {
    return {
      ...this.#steps('sample', ({ logits, state }) => ({ state, chosen: logits })),
      pick: async (chosen, step) => {
        const [numRows, numWords] = chosen.shape as [number, number];
        const logits = (await chosen.data()) as Float32Array;
        return Int32Array.from({ length: numRows }, (_, row) =>
          drawToken(filterLogits(logits.subarray(row * numWords, (row + 1) * numWords), options), {
            seed,
            row: rowKeys?.[row] ?? row,
            step,
          }),
        );
      },
    };
  }

  /** The best continuations of each row's beams. */
  beams(numBeams: number, numEnds: number) {
    const numCandidates = Math.max(2, 1 + numEnds) * numBeams;
    const rank = ({ logits, state }: Next<S>, scores: tf.Tensor): BeamStep<S> => {
      const numWords = logits.shape[1]!;
      const reached = tf.add(
        tf.reshape(tf.logSoftmax(logits), [-1, numBeams, numWords]),
        tf.expandDims(scores, -1),
      );
      const { values, indices } = tf.topk(
        tf.reshape(reached, [-1, numBeams * numWords]),
        numCandidates,
      );
      const beams = tf.floorDiv(indices, tf.scalar(numWords, 'int32'));
      const tokens = tf.sub(indices, tf.mul(beams, tf.scalar(numWords, 'int32')));
      return { state, ranked: { scores: values, beams, tokens } };
    };
    const label = `${numBeams} beams of ${numEnds} ends`;
    const first = this.#once(`prefill, ${label}`, [], (params: P, prompt: Q) => {
      const { logits, state } = this.#model.prefill(params, prompt, this.#room);
      const numRows = logits.shape[0];
      // Every beam begins as a copy of its row.
      const rows = tf.cast(
        tf.reshape(
          tf.tile(tf.reshape(tf.range(0, numRows, 1, 'int32'), [-1, 1]), [1, numBeams]),
          [-1],
        ),
        'int32',
      );
      const initial = Float32Array.from({ length: numRows * numBeams }, (_, i) =>
        i % numBeams === 0 ? 0 : NEVER,
      );
      return rank(
        { logits: tf.gather(logits, rows), state: this.#model.select(state, rows) },
        tf.tensor2d(initial, [numRows, numBeams]),
      );
    });
    const next = this.#once(
      `step, ${label}`,
      [1],
      (params: P, state: S, parents: tf.Tensor, tokens: tf.Tensor, scores: tf.Tensor) =>
        rank(this.#model.step(params, this.#model.select(state, parents), tokens), scores),
    );
    return { first, next, upload: this.#upload };
  }

  close(): void {
    for (const compiled of this.#compiled.values()) compiled.close();
    this.#compiled.clear();
  }

  #steps(kind: string, choose: (next: Next<S>) => Step<S>) {
    return {
      first: this.#once(`prefill, ${kind}`, [], (params: P, prompt: Q) =>
        choose(this.#model.prefill(params, prompt, this.#room)),
      ),
      next: this.#once(`step, ${kind}`, [1], (params: P, state: S, tokens: tf.Tensor) =>
        choose(this.#model.step(params, state, tokens)),
      ),
      upload: this.#upload,
    };
  }

  #once<A extends readonly TensorTree[], R extends TensorTree>(
    what: string,
    donate: readonly number[],
    fn: (...args: A) => R,
  ): CompiledFunction<A, R> {
    const name = `${this.#model.name} ${what}`.replace(/\W+/g, '_');
    const known = this.#compiled.get(name) as CompiledFunction<A, R> | undefined;
    if (known !== undefined) return known;
    const compiled = this.#engine.compile(fn, { name, donate });
    this.#compiled.set(name, compiled);
    return compiled;
  }
}

function checkOptions(
  { strategy }: GenerateOptions,
  { wanted, room }: { readonly wanted: number; readonly room: number },
): void {
  checkAtLeastOne('maxNewTokens', wanted);
  if (wanted > room) {
    throw badSetting(
      `maxNewTokens is ${wanted}, and the generator was opened with room for ${room}`,
    );
  }
  if (strategy.kind === 'beam') checkAtLeastOne('numBeams', strategy.numBeams);
  if (strategy.kind !== 'sample') return;
  const { temperature = 1, topK = 1, topP = 1 } = strategy;
  if (!(temperature > 0)) {
    throw badSetting(
      `temperature is ${temperature}; it is above 0 (for the likeliest token, ask for greedy)`,
    );
  }
  checkAtLeastOne('topK', topK);
  if (!(topP > 0 && topP <= 1)) throw badSetting(`topP is ${topP}; it is above 0 and at most 1`);
}

function checkAtLeastOne(name: string, value: number): void {
  if (!Number.isInteger(value) || value < 1)
    throw badSetting(`${name} is ${value}; it is a whole number of at least 1`);
}

function badSetting(what: string): GenerationError {
  return new GenerationError('GENERATION_BAD_SETTING', `Generation cannot begin: ${what}.`);
}
