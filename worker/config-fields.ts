/** The fields of a recipe that every system has, and what their descriptions are made of. */
import * as z from 'zod';
import { RUN_PLAN_BOUNDS } from '../proto/run-plan.ts';
import { WORLD_KINDS } from '../video/world/world-kinds.ts';
import { SOURCE_NAMES } from '../video/sources/names.ts';

/** What can compute a run. */
export const ENGINE_NAMES = ['xla', 'cpu', 'tensorflow'] as const;

export const count = (description: string, minimum = 1, maximum?: number): z.ZodInt => {
  const least = z.int().min(minimum);
  return (maximum === undefined ? least : least.max(maximum)).describe(description);
};
export const share = (description: string): z.ZodNumber =>
  z.number().min(0).max(1).describe(description);

/** Of 1 nothing new is ever taken, and the correction of the first steps divides by 1 - decay. */
const decay = (description: string): z.ZodNumber =>
  z.number().min(0).lt(1, 'expected less than 1').describe(description);

const axis = z.enum(['fsdp', 'tensor']);

/** All of a run's configuration but the model, whose fields each system has of its own. */
export const runFields = z.strictObject({
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
          .union([z.boolean(), z.literal('square')])
          .describe(
            'A random part of the picture, the same for all frames of a clip; square: the largest square',
          ),
        cropScale: z
          .tuple([z.number().positive().max(1), z.number().positive().max(1)])
          .refine(([least, most]) => least <= most, 'the least share is first, then the most')
          .describe('Share of its area that a crop has, least and most; of no square'),
        flip: z.boolean().describe('Mirrored at random, unless the words tell left from right'),
      })
      .describe('Random changes of the picture while training, another one each epoch'),
    windows: count('Visual tokens of a clip', 1, 65_536),
    framesPerWindow: count('Frames that make one visual token', 1, 65_536),
    frameSize: count('Height and width to which frames are scaled, pixels', 8, 4096),
    heldOutFraction: share(
      'Share of the files kept for evaluation where the folder has no held-out/',
    ),
    audio: z
      .strictObject({
        numMels: count('Bands of the log-mel spectrogram', 1, 4096),
        numFrames: count('Frames of it over the whole clip', 1, 65_536),
      })
      .nullable()
      .default(null)
      .describe('The sound of a clip, for systems that listen; null: none'),
    demoWorld: z
      .enum(WORLD_KINDS)
      .default('stories')
      .describe(
        'Demo data. stories: shots, objects and words as in a film; moves: one object, one motion, a sound and a word ' +
          'that nothing else tells; slides: four scenes in an order that only the words tell; places: one or two still objects, with ' +
          'questions about their boxes',
      ),
    demoTrainClips: count('Clips of the demo world to train on'),
    demoHeldOutClips: count('Clips of the demo world to evaluate on'),
    demoSeed: z.int().min(0).describe('Seed of the demo world'),
    decoders: count('Decoder processes a worker', 1, 1024),
    decodeTimeoutSeconds: z.number().positive().describe('A clip that takes longer is given up'),
    cacheMebibytes: count('Memory a worker keeps decoded frames in', 0),
    frameDiskGibibytes: z
      .number()
      .min(0)
      .describe('Disk that decoded frames may take on each host, for all runs; 0 keeps none'),
    prefetchSteps: count(
      'Most steps that are decoded ahead; it is fewer where fewer are enough',
      1,
      RUN_PLAN_BOUNDS.prefetchSteps - 1,
    ),
    prefetchMebibytes: count('Memory that batches made ahead may take; one is always made'),
  }),
  train: z.strictObject({
    seed: z.int().min(0).describe('Fixes initial weights, order, masks: everything that is random'),
    steps: count('Length of the run'),
    microbatches: z
      .int()
      .min(1)
      .max(RUN_PLAN_BOUNDS.microbatches)
      .refine((n) => (n & (n - 1)) === 0, 'a power of two: 1, 2, 4, 8, ...')
      .describe('Parts of a global batch; also the most workers that can share a step'),
    microbatchSize: count('Clips of a microbatch', 1, RUN_PLAN_BOUNDS.microbatchSize),
    frozen: z
      .array(z.string().min(1))
      .default([])
      .describe(
        'Paths of parameters, or of trees of them, that are not trained; * is any one part, ** any number',
      ),
  }),
  init: z
    .array(
      z.strictObject({
        from: z
          .string()
          .describe(
            'A run folder, an earlier stage of the same recipe, or a folder of a model of transformers (config.json and ' +
              'safetensors), whose weights are taken',
          ),
        take: z.string().default('').describe('Path of the tree that is taken there; empty: all'),
        as: z
          .string()
          .default('')
          .describe('Path at which the model has that tree; empty: its root'),
        skip: z
          .array(z.string())
          .default([])
          .describe('Paths within it that are not taken; * is any one part, ** any number'),
        firstRows: z
          .array(z.string())
          .default([])
          .describe(
            'Paths within it of tables, of positions for one, of which the model has fewer rows: the first are taken',
          ),
      }),
    )
    .default([])
    .describe('Weights to begin with in place of drawn ones; what none gives is drawn'),
  optimizer: z.strictObject({
    learningRate: z.number().positive().describe('Peak of the schedule'),
    warmupSteps: count('Steps of linear warm-up', 0),
    finalFraction: share('Share of the peak that is left at the last step'),
    beta1: decay('Decay of the first moment'),
    beta2: decay('Decay of the second moment'),
    epsilon: z.number().positive().describe('Added to the root of the second moment'),
    weightDecay: z.number().min(0).describe('Decoupled weight decay'),
    clipNorm: z.number().positive().describe('Longer gradients are scaled to this length'),
  }),
  checkpoint: z.strictObject({
    everySteps: count('Steps between checkpoints; the last step always has one'),
    keep: count('Most checkpoints that are kept'),
    keepHours: z
      .number()
      .positive()
      .nullable()
      .default(null)
      .describe('Older checkpoints go too, save the newest; null: none goes for its age'),
    store: z
      .string()
      .regex(/^s3:\/\/[^/]+/, 'expected s3://bucket or s3://bucket/prefix')
      .nullable()
      .default(null)
      .describe(
        'Where a copy of each checkpoint goes, below the id of the run, and where they come from when they are not on ' +
          'this disk: s3://bucket/prefix; null: nowhere',
      ),
  }),
  evaluate: z.strictObject({
    draws: count('Questions put to each held-out clip'),
    microbatches: count(
      'At most this many microbatches of held-out clips a draw, evenly drawn from all',
    ),
  }),
  engine: z.strictObject({
    name: z
      .enum(ENGINE_NAMES)
      .describe(
        'xla: compiled through PJRT; cpu: plain JavaScript, slow; tensorflow: op by op in the library of TensorFlow, ' +
          'after `videoloom engine install tensorflow`',
      ),
    pluginPath: z
      .string()
      .nullable()
      .describe(
        'cuda13, cuda12, rocm7 or the file of a PJRT plugin of your own; null: the one for CPUs',
      ),
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
    workers: count('Worker processes on this machine', 1, RUN_PLAN_BOUNDS.microbatches),
    detectWithin: z
      .number()
      .positive()
      .describe(
        'Seconds within which a process that stands still is found; all other limits on time follow from it. One that ' +
          'was killed is seen at once',
      ),
    allReduce: z
      .enum(['tree', 'ring', 'nccl'])
      .describe(
        'How workers sum gradients: tree, the same bits for every number of workers; ring, over one connection a ' +
          'worker, the same bits for one number of workers alone; or nccl, on the first GPU that each worker ' +
          'sees (another for each) over NCCL or RCCL, the bits of tree',
      ),
    gradientPrecision: z
      .enum(['float32', 'bfloat16'])
      .describe(
        'What gradients are summed and sent in. With bfloat16 every gradient and every sum of two is rounded to it, which ' +
          'halves what is sent; with tree the bits are still the same for every number of workers',
      ),
    sharedMemory: z
      .boolean()
      .describe(
        'Whether workers that are all on one host sum, with tree, in memory that they share (Linux); the bits are the same',
      ),
    events: z
      .union([z.string(), z.array(z.string()).min(1)])
      .nullable()
      .default(null)
      .describe(
        'NATS servers that what happens to the run is published to: nats://host:port or tls://host:port, or a list of ' +
          'them; null: nowhere. Training never waits for them',
      ),
  }),
});

/** A run's configuration without its model. */
export type RunConfig = z.infer<typeof runFields>;
