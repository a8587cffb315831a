import { LineCounter, parseDocument, isNode, type Document } from 'yaml';
import { z } from 'zod';
import { UsageError } from '../proto/errors.ts';
import { SOURCE_NAMES } from '../video/sources/names.ts';

/** What can compute a run. */
export const ENGINE_NAMES = ['xla', 'cpu', 'tensorflow'] as const;

const count = (description: string, minimum = 1): z.ZodInt =>
  z.int().min(minimum).describe(description);
const share = (description: string): z.ZodNumber => z.number().min(0).max(1).describe(description);

const videobert = z.strictObject({
  name: z.literal('videobert').describe('Sun et al. 2019, arXiv:1904.01766'),
  width: count('Width of the encoder'),
  layers: count('Transformer blocks'),
  heads: count('Attention heads; divides the width'),
  mlpRatio: count('Width of the MLP over the width of the encoder'),
  maxTextTokens: count('Word pieces of a sequence; longer text is cut'),
  textVocabulary: count(
    'Most word pieces that the tokenizer is trained to, special tokens included',
    32,
  ),
  visualBranching: count('Branches of each level of the hierarchical k-means', 2),
  visualDepth: count('Levels of the hierarchical k-means; branching^depth visual words'),
  visualComponents: count('Principal components of the frame features'),
  textMaskRatio: share('Share of the word pieces that is hidden'),
  visualMaskRatio: share(
    'Share of the visual words that is hidden: up to this in training, this in evaluation',
  ),
  visualMaskSpan: count('Visual words are hidden in runs of this many'),
  textOnlyShare: share('Share of the samples shown as text alone'),
  videoOnlyShare: share('Share of the samples shown as video alone'),
  mismatchedShare: share("Share of the pairs that get another sample's text, for alignment"),
  modalities: z
    .enum(['both', 'text', 'video'])
    .describe('text and video train the one-modality model of the same size, for comparison'),
});

const axis = z.enum(['fsdp', 'tensor']);

const config = z.strictObject({
  model: z.discriminatedUnion('name', [videobert]),
  data: z.strictObject({
    folder: z
      .string()
      .nullable()
      .describe(
        'Folder or s3:// of the data in any of the forms that `source` lists, or an index of them; null: the demo world, made once',
      ),
    source: z
      .enum(SOURCE_NAMES)
      .nullable()
      .describe('Form that the data has; null: found out from the names of the files'),
    allowPrivateHosts: z
      .boolean()
      .describe('Whether data may be fetched from addresses of private networks'),
    mediaCacheGibibytes: z
      .number()
      .positive()
      .describe('Disk that copies of data from elsewhere may take on each host'),
    clipSeconds: z.number().positive().describe('Longest clip that makes one sample, seconds'),
    balance: z
      .enum(['none', 'decode'])
      .describe(
        'decode: the microbatches of a step get clips that together take equally long to decode; none: as the order has them',
      ),
    sampling: z
      .discriminatedUnion('policy', [
        z.strictObject({ policy: z.enum(['even', 'key-frames', 'scenes', 'cues']) }),
        z.strictObject({
          policy: z.literal('fps'),
          framesPerSecond: z
            .number()
            .positive()
            .describe('Frames a second, from the start of the clip'),
        }),
        z.strictObject({
          policy: z.literal('random-clip'),
          seconds: z.number().positive().describe('Length of the part that an epoch sees'),
        }),
      ])
      .describe(
        'Which frames of a clip are seen: spread evenly, key frames alone, one a scene, one a cue, at a fixed rate, or of ' +
          'another part of the clip each epoch',
      ),
    fit: z
      .enum(['stretch', 'cover', 'contain'])
      .describe('How a picture gets square: stretched, cut off, or with black bars'),
    augment: z
      .strictObject({
        crop: z
          .boolean()
          .describe('A random part of the picture, the same for all frames of a clip'),
        flip: z.boolean().describe('Mirrored at random, unless the words tell left from right'),
      })
      .describe('Random changes of the picture while training, another one each epoch'),
    windows: count('Visual tokens of a clip'),
    framesPerWindow: count('Frames that make one visual token', 2),
    frameSize: count('Height and width to which frames are scaled, pixels', 8),
    heldOutFraction: share(
      'Share of the files kept for evaluation where the folder has no held-out/',
    ),
    demoTrainClips: count('Clips of the demo world to train on'),
    demoHeldOutClips: count('Clips of the demo world to evaluate on'),
    demoSeed: z.int().min(0).describe('Seed of the demo world'),
    decoders: count('Decoder processes a worker'),
    decodeTimeoutSeconds: z.number().positive().describe('A clip that takes longer is given up'),
    cacheMebibytes: count('Memory a worker keeps decoded frames in', 0),
    frameDiskGibibytes: z
      .number()
      .min(0)
      .describe('Disk that decoded frames may take on each host, for all runs; 0 keeps none'),
    prefetchSteps: count('Most steps that are decoded ahead; it is fewer where fewer are enough'),
    prefetchMebibytes: count('Memory that batches made ahead may take; one is always made'),
  }),
  train: z.strictObject({
    seed: z.int().min(0).describe('Fixes initial weights, order, masks: everything that is random'),
    steps: count('Length of the run'),
    microbatches: z
      .int()
      .min(1)
      .refine((n) => (n & (n - 1)) === 0, 'a power of two: 1, 2, 4, 8, ...')
      .describe('Parts of a global batch; also the most workers that can share a step'),
    microbatchSize: count('Clips of a microbatch'),
  }),
  optimizer: z.strictObject({
    learningRate: z.number().positive().describe('Peak of the schedule'),
    warmupSteps: count('Steps of linear warm-up', 0),
    finalFraction: share('Share of the peak that is left at the last step'),
    beta1: share('Decay of the first moment'),
    beta2: share('Decay of the second moment'),
    epsilon: z.number().positive().describe('Added to the root of the second moment'),
    weightDecay: z.number().min(0).describe('Decoupled weight decay'),
    clipNorm: z.number().positive().describe('Longer gradients are scaled to this length'),
  }),
  checkpoint: z.strictObject({
    everySteps: count('Steps between checkpoints; the last step always has one'),
    keep: count('Checkpoints that are kept'),
  }),
  evaluate: z.strictObject({
    draws: count('Questions put to each held-out clip'),
    microbatches: count('At most this many microbatches of held-out clips a draw'),
  }),
  engine: z.strictObject({
    name: z
      .enum(ENGINE_NAMES)
      .describe(
        'xla: compiled through PJRT; cpu: plain JavaScript, slow; tensorflow: op by op in the library of TensorFlow, ' +
          'after `videoloom engine install tensorflow`',
      ),
    pluginPath: z.string().nullable().describe('A PJRT plugin of your own; null: the pinned one'),
    threads: z
      .int()
      .min(4)
      .describe(
        "Threads of a worker's plugin. Large products are cut by this number, so it is a part of the result: the " +
          'same bits need the same number on every worker',
      ),
    precision: z
      .enum(['float32', 'bfloat16'])
      .describe(
        'Of products of matrices and convolutions: their operands, results and what the backward pass keeps of them. ' +
          'Sums inside them, norms, softmax, losses, parameters and the optimiser are float32',
      ),
    devices: z
      .union([z.int().min(1), z.literal('all')])
      .describe(
        'Devices that a worker drives as one. A CPU can be any number of them. Sums are split by them, so the mesh is a ' +
          'part of the result too',
      ),
    memoryFraction: z
      .number()
      .gt(0)
      .lt(1)
      .describe(
        "Share of each GPU's memory that a worker takes at the start; a CPU has no use for it",
      ),
  }),
  parallel: z.strictObject({
    mesh: z
      .strictObject({
        data: z
          .int()
          .min(1)
          .nullable()
          .describe('Parts of a microbatch; null: the devices that the other axes leave'),
        fsdp: count('Parts of a microbatch and of the parameters, which are gathered for each use'),
        tensor: count('Parts of the parameters that the rules say, which compute with their part'),
      })
      .describe("How a worker's devices share a step; the product of the axes is engine.devices"),
    fsdpMinElements: count('Smaller parameters have a copy on every device of the axis fsdp', 0),
    rules: z
      .array(
        z.strictObject({
          path: z
            .string()
            .min(1)
            .describe('Path of a parameter or of a tree of them; * is any one part, ** any number'),
          axes: z
            .array(
              z.union(
                [axis, z.array(axis), z.null()],
                'expected fsdp, tensor, a list of them, or null',
              ),
            )
            .describe('What cuts each dimension; the last entry is for the last dimension'),
        }),
      )
      .describe('Which parameters are cut along which axis; the first rule that fits counts'),
  }),
  cluster: z.strictObject({
    workers: count('Worker processes on this machine'),
    stepTimeoutSeconds: z
      .number()
      .positive()
      .describe('A step that takes longer drops who is late'),
    heartbeatTimeoutSeconds: z
      .number()
      .positive()
      .describe('A silent worker is dropped after this'),
  }),
});

/** A run's whole configuration; see the field descriptions in `recipes/config.schema.json`. */
export type Config = z.infer<typeof config>;
export type VideoBertConfig = z.infer<typeof videobert>;

/** The schema that editors use, as JSON Schema (draft 2020-12). */
export function configJsonSchema(): object {
  const { properties, ...rest } = z.toJSONSchema(config) as { properties: Record<string, object> };
  return {
    ...rest,
    properties: {
      ...properties,
      presets: {
        type: 'object',
        description: 'Named changes, chosen with --preset',
        additionalProperties: { type: 'object' },
      },
    },
  };
}

export interface ConfigSource {
  /** YAML text of a recipe and the name to report it by. */
  readonly text: string;
  readonly file: string;
  readonly preset?: string | undefined;
  /** Dotted overrides, `train.steps=100`; the value is YAML. Later ones win. */
  readonly overrides: readonly string[];
}

type Tree = { readonly [key: string]: unknown };

/**
 * The checked config of a recipe with its preset and overrides applied.
 *
 * @throws UsageError `CONFIG_INVALID`: names file and line or the override, the field, what was expected and, for an
 *   unknown key, the nearest valid one.
 */
export function resolveConfig({ text, file, preset, overrides }: ConfigSource): Config {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const [syntax] = document.errors;
  if (syntax !== undefined) throw invalid(`${file}: ${syntax.message}`);
  const whole: unknown = document.toJS();
  if (!isTree(whole))
    throw invalid(`${file}: expected a mapping of fields, as in recipes/videobert.yaml`);
  const { presets = {}, ...base } = whole as { presets?: Tree };

  let merged: Tree = base;
  if (preset !== undefined) {
    const chosen = presets[preset];
    if (!isTree(chosen)) {
      throw invalid(
        `${file} has no preset ${preset}; it has: ${Object.keys(presets).join(', ') || 'none'}`,
      );
    }
    merged = merge(merged, chosen);
  }
  for (const override of overrides) merged = merge(merged, parseOverride(override));

  const result = config.safeParse(merged);
  if (result.success) {
    checkAcross(result.data, file);
    return result.data;
  }
  const { issues } = result.error;
  // A misspelt field is both missing and unknown: the unknown one says more.
  const issue = issues.find(({ code }) => code === 'unrecognized_keys') ?? issues[0]!;
  const path = issue.path.map(String);
  const unknown = issue.code === 'unrecognized_keys' ? issue.keys.slice(0, 1) : [];
  const where = whereIs(document, lines, { file, preset, path: [...path, ...unknown], overrides });
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!;
    const valid = Object.keys(shapeAt(path) ?? {});
    const near = nearest(key, valid);
    throw invalid(
      `${where}: unknown field ${[...path, key].join('.')}` +
        (near === undefined
          ? `; known here: ${valid.join(', ')}`
          : `; did you mean ${[...path, near].join('.')}?`),
    );
  }
  const got = valueAt(merged, path);
  throw invalid(
    `${where}: ${path.join('.')} is ${got === undefined ? 'missing' : JSON.stringify(got)}: ${issue.message}`,
  );
}

function checkAcross(config: Config, file: string): void {
  const { model, train, cluster } = config;
  checkDevices(config);
  if (model.width % model.heads !== 0) {
    throw invalid(
      `${file}: model.width (${model.width}) is not a multiple of model.heads (${model.heads})`,
    );
  }
  if (cluster.workers > train.microbatches) {
    throw invalid(
      `cluster.workers is ${cluster.workers}, but a step has only ${train.microbatches} microbatches to share: ` +
        `raise train.microbatches (it changes the result) or start fewer workers`,
    );
  }
}

function checkDevices({ engine, parallel: { mesh }, train }: Config): void {
  const { devices } = engine;
  if (engine.name !== 'xla' && devices !== 1) {
    throw invalid(
      `engine.devices is ${devices}, but only the xla engine drives several: set it to 1`,
    );
  }
  if (engine.name !== 'xla' && engine.precision !== 'float32') {
    throw invalid(
      `engine.precision is ${engine.precision}, which only the xla engine computes in: set it to float32`,
    );
  }
  // Else the engine checks it, once it has counted them.
  if (devices === 'all') return;
  const fixed = mesh.fsdp * mesh.tensor;
  const data = mesh.data ?? devices / fixed;
  if (data * fixed !== devices || !Number.isInteger(data)) {
    throw invalid(
      `parallel.mesh (data ${mesh.data ?? 'null'}, fsdp ${mesh.fsdp}, tensor ${mesh.tensor}) does not come to ` +
        `engine.devices (${devices}): make their product equal, or data null`,
    );
  }
  if (train.microbatchSize % (data * mesh.fsdp) !== 0) {
    throw invalid(
      `train.microbatchSize (${train.microbatchSize}) is not a multiple of the ${data * mesh.fsdp} parts that ` +
        `parallel.mesh cuts it into (data ${data} x fsdp ${mesh.fsdp})`,
    );
  }
  if (devices > 1 && engine.threads < 2 * devices) {
    throw invalid(
      `engine.threads (${engine.threads}) is too few for engine.devices (${devices}): devices that wait for one ` +
        `another hold threads; set it to ${2 * devices} or more`,
    );
  }
}

/** `a.b=1` to `{ a: { b: 1 } }`. */
function parseOverride(override: string): Tree {
  const at = override.indexOf('=');
  if (at <= 0) {
    throw invalid(`${override}: expected an override such as train.steps=100`);
  }
  const document = parseDocument(override.slice(at + 1));
  const [syntax] = document.errors;
  if (syntax !== undefined) throw invalid(`${override}: ${syntax.message}`);
  return override
    .slice(0, at)
    .split('.')
    .reduceRight<unknown>(
      (value, key) => Object.fromEntries([[key, value]]),
      document.toJS(),
    ) as Tree;
}

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** `Object.fromEntries` makes own fields of all keys, `__proto__` too: nothing reaches a prototype. */
function merge(base: Tree, change: Tree): Tree {
  const merged = new Map(Object.entries(base));
  for (const [key, value] of Object.entries(change)) {
    const old = merged.get(key);
    merged.set(key, isTree(old) && isTree(value) ? merge(old, value) : value);
  }
  return Object.fromEntries(merged);
}

function valueAt(tree: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((at, key) => {
    if (Array.isArray(at)) return at[Number(key)] as unknown;
    return isTree(at) ? at[key] : undefined;
  }, tree);
}

/** The known fields at a path. */
function shapeAt(path: readonly string[]): Tree | undefined {
  let schema: unknown = config;
  for (const key of path) {
    schema = schema instanceof z.ZodObject ? schema.shape[key] : undefined;
    if (schema instanceof z.ZodDiscriminatedUnion) schema = schema.options[0];
  }
  return schema instanceof z.ZodObject ? schema.shape : undefined;
}

/** The override or the line that gave a field its value. */
function whereIs(
  document: Document,
  lines: LineCounter,
  {
    file,
    preset,
    path,
    overrides,
  }: {
    file: string;
    preset?: string | undefined;
    path: readonly string[];
    overrides: readonly string[];
  },
): string {
  const dotted = path.join('.');
  const override = overrides.findLast(
    (text) => text.startsWith(dotted) || dotted.startsWith(`${text.slice(0, text.indexOf('='))}.`),
  );
  if (override !== undefined) return override;
  for (const prefix of preset === undefined ? [[]] : [['presets', preset], []]) {
    for (let length = path.length; length > 0; length--) {
      const node = document.getIn([...prefix, ...path.slice(0, length)], true);
      if (isNode(node) && node.range) {
        const { line, col } = lines.linePos(node.range[0]);
        return `${file}:${line}:${col}`;
      }
    }
  }
  return file;
}

/** The candidate with the fewest edits, if they are few for its length. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const scored = candidates.map((candidate) => ({
    candidate,
    edits: editDistance(word, candidate),
  }));
  scored.sort((a, b) => a.edits - b.edits);
  const [best] = scored;
  return best !== undefined && best.edits <= Math.max(2, word.length / 2)
    ? best.candidate
    : undefined;
}

/** Levenshtein distance, upper and lower case alike. */
function editDistance(a: string, b: string): number {
  const [from, to] = [a.toLowerCase(), b.toLowerCase()];
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      next.push(
        Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1)),
      );
    }
    row = next;
  }
  return row.at(-1)!;
}

function invalid(message: string): UsageError {
  return new UsageError('CONFIG_INVALID', message);
}
