import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  readManifest,
} from '../../proto/checkpoint-manifest.ts';
import { UsageError } from '../../proto/errors.ts';
import { checkOutputFile } from '../../proto/output-path.ts';
import { VERBS } from '../../proto/verbs.ts';
import { openClipsOfFiles, type ClipsOfFiles } from '../clips-of-files.ts';
import type { Answers, Similarity } from '../systems/system.ts';
import { openTrainedRun, type TrainedRun, type TrainedRunOptions } from '../trained-run.ts';
import { openEvaluationFile, partialPath, type EvaluationFile } from './evaluation-file.ts';
import { evaluateFileQuestions, evaluateHeldOutQuestions } from './evaluate-answers.ts';
import { evaluatePairs, evaluateRetrieval } from './evaluate-similarity.ts';
import type { Score } from './scores/bootstrap.ts';

export interface EvaluateOptions extends TrainedRunOptions {
  /** Asked of every held-out clip, in place of what the samples ask; empty: theirs, or what the system asks by itself. */
  readonly question: string;
  /** How many are asked at most, evenly drawn. */
  readonly limit: number;
  readonly what: EvaluatedWhat;
  /** JSON Lines with what was said or compared; undefined: in the run folder. */
  readonly out?: string | undefined;
  readonly say: (line: string) => void;
}

/**
 * What is evaluated. `held-out`: what the system writes about held-out clips; of one that writes nothing `retrieval`, which
 * finds held-out clips by their captions and the other way round. `pairs`: captions of a file that are to be told apart, or
 * without one those of the held-out clips. `questions`: those of a file. Files name media below a folder.
 */
export type EvaluatedWhat =
  | { readonly kind: 'held-out' | 'retrieval' }
  | {
      readonly kind: 'pairs';
      readonly file?: string | undefined;
      readonly media?: string | undefined;
    }
  | { readonly kind: 'questions'; readonly file: string; readonly media?: string | undefined };

export interface Evaluated {
  readonly scores: readonly Score[];
  readonly file: string;
  readonly step: number;
}

/** What all kinds of evaluation are given. */
export interface EvaluationContext {
  readonly trained: TrainedRun;
  readonly limit: number;
  readonly say: (line: string) => void;
  /** Opens the file with what is done, which is of these questions and no others. */
  readonly open: (asked: unknown) => Promise<EvaluationFile>;
  /** Opens files that are not of the run's data. */
  readonly openMedia: (root: string, paths: readonly string[]) => Promise<ClipsOfFiles>;
}

const FILES = {
  'held-out': 'answers.jsonl',
  retrieval: 'retrieval.jsonl',
  pairs: 'pairs.jsonl',
  questions: 'question-answers.jsonl',
} as const satisfies Record<EvaluatedWhat['kind'], string>;

/**
 * Has the newest checkpoint of a run caption its held-out clips, answer questions about clips, or compare clips with texts,
 * and scores what comes of it. What is done is kept from batch to batch: an evaluation that was killed goes on, and ends
 * in the same bytes.
 *
 * @throws UsageError `NO_CHECKPOINT`, `OUT_NOT_WRITABLE`, `EVALUATE_UNAVAILABLE` where the system writes no text or
 *   compares none, `USAGE` where a question is given and not asked, `NOTHING_HELD_OUT`, `EVALUATION_OTHER`,
 *   `EVALUATION_TOO_LARGE`, `SCORE_FILE_INVALID`, `MEDIA_MISSING`; errors of the data, where no clip decodes what the first
 *   failed by
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluated> {
  const { folder, limit, question, say } = options;
  if (question !== '' && options.what.kind !== 'held-out')
    throw new UsageError(
      'USAGE',
      `a question is for held-out clips alone, not for --${options.what.kind}: ${VERBS.evaluate.usage}`,
    );
  const trained = await openTrainedRun(options);
  const { step } = trained;
  let file: EvaluationFile | undefined;
  let media: ClipsOfFiles | undefined;
  try {
    const what = ofSystem(trained, options.what, question);
    const path = options.out ?? join(folder, FILES[what.kind]);
    await checkOutputFile(path);
    const context: EvaluationContext = {
      ...{ trained, limit, say },
      async open(asked) {
        file = await openEvaluationFile(path, await evaluationOf(trained, what.kind, asked));
        if (file.numKnown > 0)
          say(`going on: ${file.numKnown} batches are done in ${partialPath(path)}`);
        return file;
      },
      async openMedia(root, paths) {
        const { run } = trained;
        media = await openClipsOfFiles(run, { root, paths, cacheDir: options.cacheDir });
        return media;
      },
    };
    const { lines, scores } = await evaluated(context, what, question);
    await file!.finish(lines);
    return { scores, file: path, step };
  } finally {
    await file?.close();
    await media?.close();
    await trained.close();
  }
}

/** What there is to evaluate of a system. */
function ofSystem(
  { run: { system } }: TrainedRun,
  what: EvaluatedWhat,
  question: string,
): EvaluatedWhat {
  const isCompared = system.answers === undefined && system.similarity !== undefined;
  if (what.kind !== 'held-out' || !isCompared) return what;
  if (question !== '')
    throw new UsageError(
      'EVALUATE_UNAVAILABLE',
      `${system.name} compares clips with texts and answers no question: leave it out`,
    );
  return { kind: 'retrieval' };
}

/** Lines of the file, and the scores of them. */
export interface EvaluationResult {
  readonly lines: readonly unknown[];
  readonly scores: readonly Score[];
}

function evaluated(
  context: EvaluationContext,
  what: EvaluatedWhat,
  question: string,
): Promise<EvaluationResult> {
  switch (what.kind) {
    case 'held-out':
      return evaluateHeldOutQuestions(context, answersOf(context.trained), question);
    case 'questions':
      return evaluateFileQuestions(context, answersOf(context.trained), {
        file: what.file,
        root: what.media ?? dirname(what.file),
      });
    case 'retrieval':
      return evaluateRetrieval(context, similarityOf(context.trained));
    case 'pairs':
      return evaluatePairs(
        context,
        similarityOf(context.trained),
        what.file === undefined
          ? undefined
          : { file: what.file, root: what.media ?? dirname(what.file) },
      );
  }
}

function answersOf({ run: { system } }: TrainedRun): Answers {
  if (system.answers !== undefined) return system.answers;
  throw new UsageError(
    'EVALUATE_UNAVAILABLE',
    `${system.name} writes no text: its held-out figures are those of videoloom probe` +
      (system.similarity === undefined ? '' : ', and it has --retrieval and --pairs'),
  );
}

function similarityOf({ run: { system } }: TrainedRun): Similarity {
  if (system.similarity !== undefined) return system.similarity;
  throw new UsageError(
    'EVALUATE_UNAVAILABLE',
    `${system.name} has no vectors of clips and texts to compare: --retrieval and --pairs are for systems that have`,
  );
}

/** What the results are results of: the weights, how they are used, and what is asked. */
async function evaluationOf(
  { run, step }: TrainedRun,
  kind: EvaluatedWhat['kind'],
  asked: unknown,
): Promise<Record<string, string | number>> {
  const { files } = await readManifest(
    join(run.folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)),
  );
  const weights = [...files.map(({ sha256 }) => sha256), run.plan.initialSha256];
  return {
    ...{ kind, run: run.plan.runId, step, weights: digestOf(weights) },
    ...{ config: digestOf(run.config), data: run.index.digest, asked: digestOf(asked) },
  };
}

function digestOf(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16);
}
