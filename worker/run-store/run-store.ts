/**
 * Where a run is kept a second time, below `s3://bucket/prefix/<run id>/`:
 *
 *     run/…                  what `prepare` made: plan, config, index, vocabularies; run/manifest.json last
 *     journals/step-N.jsonl.gz   the journal as it was when the checkpoint of step N was complete
 *     checkpoints/step-N/…   its files as on disk; manifest.json last
 *
 * What has no manifest does not exist. Manifests bear the SHA-256 of every file, which whoever fetches compares.
 */
import * as z from 'zod';
import {
  CheckpointFileName,
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  checkpointStepOf,
  MANIFEST_FILE,
} from '../../proto/checkpoint-manifest.ts';
import { UsageError, VideoloomError } from '../../proto/errors.ts';
import type { RunPlan } from '../../proto/run-plan.ts';
import { openS3Store, type S3Options } from '../../video/storage/s3.ts';
import {
  openS3Writer,
  type S3Writer,
  type S3WriterOptions,
} from '../../video/storage/s3-writer.ts';
import { StorageError, type Store } from '../../video/storage/store.ts';

/** The second place of one run. */
export interface RunStore {
  /** `s3://bucket/prefix/<run id>` */
  readonly root: string;
  readonly store: Store;
  readonly writer: S3Writer;
}

/** Opens the place of run `runId` below `url`; nothing is asked of the server yet. @throws StorageError URL_REFUSED */
export function openRunStore(
  url: string,
  runId: string,
  options: S3Options & S3WriterOptions = {},
): RunStore {
  const root = `${url.replace(/\/+$/, '')}/${runId}`;
  return { root, store: openS3Store(root, options), writer: openS3Writer(root, options) };
}

/** `s3://bucket/prefix/<run id>` in its two parts. @throws UsageError USAGE */
export function splitRunUrl(url: string): { readonly store: string; readonly runId: string } {
  const [, store, runId] = /^(s3:\/\/.+)\/([^/]+)\/*$/.exec(url) ?? [];
  if (store === undefined || runId === undefined)
    throw new UsageError('USAGE', `${url} names no run: expected s3://bucket/prefix/<run id>`);
  return { store, runId };
}

export const RUN_PREFIX = 'run/';
export const JOURNALS_PREFIX = 'journals/';
export const CHECKPOINTS_PREFIX = `${CHECKPOINTS_FOLDER}/`;

export function checkpointPrefix(step: number): string {
  return `${CHECKPOINTS_PREFIX}${checkpointFolderName(step)}/`;
}

export function journalPath(step: number): string {
  return `${JOURNALS_PREFIX}${checkpointFolderName(step)}.jsonl.gz`;
}

/** Step of the journal at a path of the store; undefined for anything else. */
export function journalStepOf(path: string): number | undefined {
  const name = /^journals\/(.+)\.jsonl\.gz$/.exec(path)?.[1];
  return name === undefined ? undefined : checkpointStepOf(name);
}

/** What `run/manifest.json` holds. */
export const RunManifest = z.object({
  formatVersion: z.literal(1),
  runId: z.string(),
  files: z.array(
    z.object({
      name: CheckpointFileName,
      sizeBytes: z.int().min(0),
      sha256: z.string().regex(/^[0-9a-f]{64}$/),
    }),
  ),
});
export type RunManifest = z.infer<typeof RunManifest>;

/** A file's name and where it is in a checkpoint of the store. */
export interface StoredCheckpointFile {
  readonly name: string;
  readonly path: string;
  readonly sizeBytes: number;
}

/** Files of all checkpoints in the store, by step, ascending; those without a manifest are half there. */
export async function listCheckpoints(
  { store }: RunStore,
  signal?: AbortSignal,
): Promise<Map<number, StoredCheckpointFile[]>> {
  const steps = new Map<number, StoredCheckpointFile[]>();
  for await (const { path, sizeBytes } of store.list(signal)) {
    if (!path.startsWith(CHECKPOINTS_PREFIX)) continue;
    const [folder, ...rest] = path.slice(CHECKPOINTS_PREFIX.length).split('/');
    const step = checkpointStepOf(folder!);
    if (step === undefined) continue;
    const files = steps.get(step) ?? [];
    files.push({ name: rest.join('/'), path, sizeBytes });
    steps.set(step, files);
  }
  return new Map([...steps].sort(([a], [b]) => a - b));
}

/** Whether it has its manifest; the files that this lists may be gone nevertheless. */
export function isComplete(files: readonly StoredCheckpointFile[]): boolean {
  return files.some(({ name }) => name === MANIFEST_FILE);
}

/** Fields of a plan that tell whether two runs are the same one. */
const SAME = [
  'runId',
  'seed',
  'configDigest',
  'datasetDigest',
  'initialSha256',
  'microbatches',
  'microbatchSize',
] as const satisfies readonly (keyof RunPlan)[];

/** @throws VideoloomError STORE_HOLDS_OTHER_RUN */
export function checkSameRun(root: string, there: RunPlan, here: RunPlan): void {
  const different = SAME.filter((field) => there[field] !== here[field]);
  if (different.length === 0) return;
  const fields = different.map(
    (field) => `${field} is ${there[field]} there and ${here[field]} here`,
  );
  throw new VideoloomError(
    'STORE_HOLDS_OTHER_RUN',
    `${root} holds another run of this name (${fields.join('; ')}): name another prefix in checkpoint.store, or --out ` +
      'another folder, whose name is the name of the run.',
  );
}

/** A small file of the store as text; undefined where it is not there. @throws StorageError */
export async function readIfThere(
  { store }: RunStore,
  path: string,
  signal?: AbortSignal,
): Promise<string | undefined> {
  try {
    const bytes = await store.read(path, signal === undefined ? {} : { signal });
    return Buffer.from(bytes).toString('utf8');
  } catch (error) {
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return undefined;
    throw error;
  }
}
