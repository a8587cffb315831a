import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { reportFatal, UsageError, VideoloomError } from '../proto/errors.ts';
import {
  EXIT_RESUMABLE,
  GRACE_SECONDS,
  onLauncherGone,
  outliveTerminal,
  SAME_WISH_MS,
} from '../proto/parent-process.ts';
import { awaitRun } from './await-run.ts';
import type { PrepareOptions } from './prepare.ts';
import type { EvaluatedWhat } from './eval/evaluate.ts';
import type { Score } from './eval/scores/bootstrap.ts';
import type { SampleExample } from './look/sample.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { checkReach, type Security } from '../proto/security.ts';
import { userCacheDir } from '../proto/user-cache.mjs';
import { VERBS } from '../proto/verbs.ts';
import { parseVerb } from './parse-verb.ts';

/**
 * `prepare` makes a run folder and prints what to start as one JSON line, `resolve` what a recipe comes to; `train` is one
 * worker of a run; `schema` prints the config's JSON Schema.
 * People use the `videoloom` command, which starts both.
 */
async function main(argv: readonly string[]): Promise<void> {
  const [verb, ...rest] = argv;
  outliveTerminal();
  if (!rest.includes(FOLLOW)) onLauncherGone(leave);
  if (verb === 'prepare') await runPrepare(rest);
  else if (verb === 'train') await runTrain(rest);
  else if (verb === 'resolve') await runResolve(rest);
  else if (verb === 'plan') await runPlan(rest);
  else if (verb === 'look') await runLook(rest);
  else if (verb === 'sample') await runSample(rest);
  else if (verb === 'probe') await runProbe(rest);
  else if (verb === 'evaluate') await runEvaluate(rest);
  else if (verb === 'score') await runScore(rest);
  else if (verb === 'fetch') await runFetch(rest);
  else if (verb === 'export') await runExport(rest);
  else if (verb === 'schema') {
    const { configJsonSchema } = await import('./config.ts');
    process.stdout.write(`${JSON.stringify(configJsonSchema(), undefined, 2)}\n`);
  } else if (verb === 'engine') {
    const { engineCommand } = await import('./engine-command.ts');
    process.exitCode = await engineCommand(rest, process.env);
  } else
    throw new UsageError(
      'USAGE',
      `worker/main.ts prepare|resolve|train|plan|look|sample|probe|evaluate|score|fetch|export|engine, not ${verb ?? 'nothing'}`,
    );
}

/**
 * Flag of a worker that was started together with its coordinator: Ctrl-C and the end of the launcher concern the
 * coordinator, which ends the step and lets a checkpoint be written; the worker leaves with it.
 */
const FOLLOW = '--follow-coordinator';

/** A little more than a coordinator takes to end a run whose launcher is gone. */
const LEAVE_MS = 1000 * (GRACE_SECONDS + 10);

function leave(): never {
  process.exit(EXIT_RESUMABLE);
}

/** To whoever watches; stdout is for what was asked for. */
function sayLine(line: string): void {
  process.stderr.write(`${line}\n`);
}

async function runLook(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('look', argv);
  const [folder] = positionals;
  const clips = Number(values.clips);
  if (folder === undefined || !Number.isInteger(clips) || clips < 1) {
    throw new UsageError('USAGE', VERBS.look.usage);
  }
  const { look } = await import('./look/look.ts');
  const pluginPath = process.env['PJRT_PLUGIN_PATH'];
  const file = await look({
    folder,
    clips,
    out: values.out,
    pluginPath,
    cacheDir: userCacheDir(process.env),
    say: sayLine,
  });
  process.stdout.write(`${file}\n`);
}

async function runSample(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('sample', argv);
  const [folder, file, question = ''] = positionals;
  if (folder === undefined || file === undefined || positionals.length > 3) {
    throw new UsageError('USAGE', VERBS.sample.usage);
  }
  const { sample } = await import('./look/sample.ts');
  const { answers, sheet } = await sample({
    ...{ folder, file, question, out: values.out, examples: (values.example ?? []).map(exampleOf) },
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
    cacheDir: userCacheDir(process.env),
    say: sayLine,
  });
  for (const { startSeconds, text } of answers) {
    const place = answers.length > 1 ? `${startSeconds.toFixed(1)} s: ` : '';
    process.stdout.write(`${place}${text}\n`);
  }
  sayLine(sheet);
}

/** @throws UsageError USAGE unless it is FILE=ANSWER */
function exampleOf(text: string): SampleExample {
  // A path may have the sign, and so may an answer: what is there tells.
  const places = [...text.matchAll(/=/g)].map(({ index }) => index).filter((at) => at > 0);
  const at = places.findLast((place) => existsSync(text.slice(0, place))) ?? places[0] ?? -1;
  const [file, answer] = [text.slice(0, at), text.slice(at + 1).trim()];
  if (at > 0 && answer !== '') return { file, answer };
  throw new UsageError(
    'USAGE',
    `--example is ${text}, expected FILE=ANSWER: ${VERBS.sample.usage}`,
  );
}

async function runProbe(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('probe', argv);
  const [folder] = positionals;
  if (folder === undefined) throw new UsageError('USAGE', VERBS.probe.usage);
  const { openTrainedRun } = await import('./trained-run.ts');
  const { probe, probeTable } = await import('./eval/probe.ts');
  const trained = await openTrainedRun({
    ...{ folder, hasReference: true },
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
    cacheDir: userCacheDir(process.env),
  });
  try {
    const probed = await probe(trained, new AbortController().signal);
    process.stdout.write(values.json ? `${JSON.stringify(probed)}\n` : probeTable(probed));
  } finally {
    await trained.close();
  }
}

async function runEvaluate(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('evaluate', argv);
  const [folder, question = ''] = positionals;
  const limit = Number(values.clips);
  const what = evaluatedWhat(values);
  const isCall = positionals.length <= 2 && Number.isInteger(limit) && limit >= 1;
  if (folder === undefined || what === undefined || !isCall)
    throw new UsageError('USAGE', VERBS.evaluate.usage);
  const { evaluate } = await import('./eval/evaluate.ts');
  const { scores, file, step } = await evaluate({
    ...{ folder, question, limit, what, out: values.out },
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
    cacheDir: userCacheDir(process.env),
    say: sayLine,
  });
  await printScores(scores, values.json);
  sayLine(`step ${step}; what was said or compared is in ${file}`);
}

/** Undefined where the options contradict one another. */
function evaluatedWhat({
  retrieval,
  pairs,
  questions,
  media,
}: {
  readonly retrieval: boolean;
  readonly pairs?: string | undefined;
  readonly questions?: string | undefined;
  readonly media?: string | undefined;
}): EvaluatedWhat | undefined {
  if (Number(retrieval) + Number(pairs !== undefined) + Number(questions !== undefined) > 1)
    return undefined;
  if (questions !== undefined) return { kind: 'questions', file: questions, media };
  if (pairs !== undefined && pairs !== 'demo') return { kind: 'pairs', file: pairs, media };
  if (media !== undefined) return undefined;
  if (pairs !== undefined) return { kind: 'pairs' };
  return { kind: retrieval ? 'retrieval' : 'held-out' };
}

async function runScore(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('score', argv);
  const { scoreFiles } = await import('./eval/scores/score-files.ts');
  await printScores(await scoreFiles(positionals, values), values.json);
}

async function printScores(scores: readonly Score[], asJson: boolean): Promise<void> {
  const { scoreTable } = await import('./eval/scores/bootstrap.ts');
  process.stdout.write(asJson ? `${JSON.stringify(scores)}\n` : scoreTable(scores));
}

async function runFetch(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('fetch', argv);
  const [url] = positionals;
  if (url === undefined || values.out === undefined)
    throw new UsageError('USAGE', VERBS.fetch.usage);
  const { fetchRun } = await import('./run-store/fetch-run.ts');
  const { openRunStore, splitRunUrl } = await import('./run-store/run-store.ts');
  const { store, runId } = splitRunUrl(url);
  const from = openRunStore(store, runId);
  const step = await fetchRun(from, values.out, sayLine);
  sayLine(`took the run from ${from.root} into ${values.out}, with the checkpoint of step ${step}`);
}

async function runExport(argv: string[]): Promise<void> {
  const { values, positionals } = parseVerb('export', argv);
  const [folder] = positionals;
  const step = values.step === undefined ? undefined : Number(values.step);
  const isStep = step === undefined || (Number.isInteger(step) && step >= 1);
  if (folder === undefined || values.out === undefined || !isStep)
    throw new UsageError('USAGE', VERBS.export.usage);
  const { exportRun } = await import('./export/export-run.ts');
  const { files, step: taken } = await exportRun({ folder, out: values.out, step });
  process.stdout.write(`step ${taken}: ${files.join(', ')} in ${values.out}\n`);
}

async function runPrepare(argv: string[]): Promise<void> {
  const { prepare } = await import('./prepare.ts');
  process.stdout.write(`${JSON.stringify(await prepare(prepareOptions(argv)))}\n`);
}

async function runResolve(argv: string[]): Promise<void> {
  const { resolveRecipe } = await import('./prepare.ts');
  process.stdout.write(`${JSON.stringify(await resolveRecipe(prepareOptions(argv)))}\n`);
}

async function runPlan(argv: string[]): Promise<void> {
  const { planCommand } = await import('./plan.ts');
  process.stdout.write(await planCommand(prepareOptions(argv)));
}

function prepareOptions(argv: string[]): PrepareOptions {
  const { values, positionals } = parseVerb('prepare', argv);
  const overrides = [...(values.set ?? [])];
  const pluginPath = process.env['PJRT_PLUGIN_PATH'];
  if (pluginPath !== undefined && pluginPath !== '')
    overrides.push(`engine.pluginPath=${JSON.stringify(pluginPath)}`);
  return {
    recipe: positionals[0] ?? 'videobert',
    preset: values.preset,
    stage: values.stage,
    overrides,
    out: values.out,
    cacheDir: userCacheDir(process.env),
    say: sayLine,
  };
}

async function runTrain(argv: string[]): Promise<void> {
  const { values } = parseVerb('train', argv);
  const { run: folder, coordinator, id, tls, insecure } = values;
  if (folder === undefined || coordinator === undefined || id === undefined) {
    throw new UsageError('USAGE', VERBS.train.usage);
  }
  const grace = numberIn(values['grace-seconds'], 86_400, '--grace-seconds');
  const waitHours = numberIn(values['wait-hours'], 24 * 365, '--wait-hours');
  if (values['follow-coordinator']) {
    process.on('SIGINT', () => undefined);
    onLauncherGone(() => setTimeout(leave, LEAVE_MS));
  }
  if (values['follow-stdin']) {
    // The launcher is on another machine, and gone when its end of the standard input is; the coordinator ends the run.
    // What it says is to leave at once.
    process.stdin.once('data', leave).once('close', () => setTimeout(leave, LEAVE_MS).unref());
    process.stdin.unref();
  }
  // A worker that is to go, because its machine is wanted for something else: the others lose nothing by it.
  const leaving = new AbortController();
  let askedMs = -Infinity;
  process.on('SIGTERM', () => {
    if (performance.now() - askedMs < SAME_WISH_MS) return;
    if (leaving.signal.aborted) leave();
    askedMs = performance.now();
    leaving.abort();
    setTimeout(leave, 1000 * grace).unref();
  });
  const { ENGINE_NAMES } = await import('./config-fields.ts');
  const engine = ENGINE_NAMES.find((name) => name === values.engine);
  if (engine === undefined) {
    throw new UsageError(
      'USAGE',
      `--engine is ${values.engine}, expected one of ${ENGINE_NAMES.join(', ')}`,
    );
  }
  const { runWorker } = await import('./worker.ts');
  const waitMs = 3_600_000 * waitHours;
  const open = async (): Promise<Security> => {
    const security = await openSecurity({
      as: { role: 'worker', workerId: id },
      ...{ tls, insecure, runFolder: folder, env: process.env },
    });
    checkReach(security, coordinator, `worker ${id} would join the run at`);
    return security;
  };
  const security = await awaitRun(folder, open, waitMs, leaving.signal);
  if (security === undefined) return;
  const end = await runWorker({
    folder,
    coordinatorAddress: coordinator,
    workerId: id,
    engine,
    pluginPath: values.plugin || (process.env['PJRT_PLUGIN_PATH'] ?? ''),
    listenHost: values.listen,
    metricsAddress: values.metrics,
    cacheDir: userCacheDir(process.env),
    logFile: join(folder, 'logs', `${id}.jsonl`),
    leaving: leaving.signal,
    waitMs,
    security,
  });
  // One that waits for its run waits until it goes on.
  if (end === 'stopped' && waitMs > 0) process.exitCode = EXIT_RESUMABLE;
}

/** @throws UsageError USAGE unless it is between 0 and `most` */
function numberIn(text: string, most: number, option: string): number {
  const value = Number(text);
  if (text.trim() !== '' && value >= 0 && value <= most) return value;
  throw new UsageError('USAGE', `${option} is ${text}, expected a number between 0 and ${most}`);
}

main(process.argv.slice(2)).then(
  () => process.exit(process.exitCode ?? 0),
  (error: unknown) => {
    // Who leaves in order has nothing to report.
    if (error instanceof VideoloomError && error.code === 'LEFT') process.exit(EXIT_RESUMABLE);
    const code = reportFatal(error);
    const mayGoWell = error instanceof VideoloomError && error.retryable;
    process.exit(mayGoWell && process.argv[2] === 'train' ? EXIT_RESUMABLE : code);
  },
);
