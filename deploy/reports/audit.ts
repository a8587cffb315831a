import { join } from 'node:path';
import { exists } from '../../proto/exists.ts';
import pc from 'picocolors';
import { auditRun, type RunAudit } from '../../coordinator/audit/audit-run.ts';
import { printable } from '../../proto/printable.ts';
import { locationName } from '../../video/index/sample.ts';
import { INDEX_FILE, readIndex, type SampleIndex } from '../../video/index/sample-index.ts';
import { checkpointWeightsSha256 } from '../../worker/checkpoint/weights-digest.ts';

/** How many problems and substitutes the text has; `--json` has more. */
const MAX_LINES = 20;

/**
 * Compares the ledger of a run with its plan, its index and its checkpoints, and prints what it finds. Gives the exit
 * code: 1 when something is wrong.
 * @throws UsageError RUN_PLAN_MISSING, RUN_PLAN_INVALID; VideoloomError COSTS_MISSING, COSTS_CHANGED; DataError
 */
export async function showAudit(run: string, { json }: { json?: boolean }): Promise<number> {
  const { audit, index } = await auditFolder(run);
  process.stdout.write(
    json === true ? `${JSON.stringify(audit, undefined, 2)}\n` : auditText(audit, index),
  );
  return audit.isFaultless ? 0 : 1;
}

/** The audit of a run folder, and the index in it. @throws as {@link showAudit} */
export async function auditFolder(
  run: string,
): Promise<{ readonly audit: RunAudit; readonly index: SampleIndex | undefined }> {
  const indexFile = join(run, INDEX_FILE);
  const index = (await exists(indexFile)) ? await readIndex(indexFile) : undefined;
  const audit = await auditRun(run, {
    weightsDigest: checkpointWeightsSha256,
    ...(index === undefined
      ? {}
      : { dataset: { digest: index.digest, numTrainSamples: index.train.length } }),
  });
  return { audit, index };
}

/** An audit as people read it; files of samples are named where there is an index. */
export function auditText(audit: RunAudit, index: SampleIndex | undefined): string {
  const { journal, samples, checkpoints, weights } = audit;
  const { lost, doubled, substitutes } = samples;
  const whole = checkpoints.filter(({ isWhole }) => isWhole);
  const lines = [
    `run ${audit.runId}: ${audit.committedStep} of ${audit.totalSteps} steps committed` +
      (audit.isLive ? ', and going on' : ''),
    row(
      'journal',
      `${journal.numRecords} records of ${counted(journal.numEpochs, 'coordinator')}, ` +
        `${counted(audit.numGenerations, 'generation')}, ${counted(audit.numWorkersLost, 'worker')} lost`,
    ),
    row(
      'steps',
      audit.numRedone === 0
        ? 'none committed twice'
        : `${audit.numRedone} done again after the run went back ${counted(audit.numRestored, 'time')}`,
    ),
    row(
      'samples',
      `${samples.numPlaces} used, ${counted(samples.completeEpochs, 'complete epoch')}, ` +
        `${lost.length} lost, ${doubled.length} doubled, ${substitutes.length} substituted`,
    ),
    row(
      'checkpoints',
      `${whole.length} whole${whole.length === 0 ? '' : ` (step ${whole.map(({ step }) => step).join(', ')})`}, ` +
        `${checkpoints.length - whole.length} damaged`,
    ),
    row(
      'weights',
      weights === undefined
        ? 'no result yet'
        : `${weights.reported}${weights.kept === weights.reported ? ', as in the last checkpoint' : ''}`,
    ),
  ];
  const nameOf = (sample: number): string => {
    const media = index?.train[sample]?.media;
    const files = media?.map(({ file }) => locationName(index!.files[file]!));
    return files === undefined ? `sample ${sample}` : `sample ${sample} (${files.join(', ')})`;
  };
  const told = substitutes.map(
    ({ step, sample, substitute, reason }) =>
      `  step ${step}: ${nameOf(sample)} gave way to ${nameOf(substitute)}: ${reason}`,
  );
  const lostFiles = [...lost, ...doubled].map(
    ({ step, sample, epoch }) => `  step ${step}: ${nameOf(sample)} in epoch ${epoch}`,
  );
  lines.push(
    ...listed('substitutes', told),
    ...listed('samples lost or doubled', index === undefined ? [] : lostFiles),
    ...listed(
      'notes',
      audit.notes.map((note) => `  ${note}`),
    ),
    ...listed(
      pc.red(counted(audit.numProblems, 'problem')),
      audit.problems.map(({ code, message }) => `  ${code}: ${message}`),
      audit.numProblems,
    ),
    audit.isFaultless ? `${pc.green('✓')} nothing is wrong` : pc.red('✗ something is wrong'),
  );
  return lines.map((line) => `${printableLine(line)}\n`).join('');
}

function listed(title: string, lines: readonly string[], total = lines.length): string[] {
  if (lines.length === 0) return [];
  const rest = total - Math.min(lines.length, MAX_LINES);
  return [
    `${title}:`,
    ...lines.slice(0, MAX_LINES),
    ...(rest > 0 ? [`  and ${rest} more: --json`] : []),
  ];
}

function row(name: string, text: string): string {
  return `  ${name.padEnd(12)} ${text}`;
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

/** File names are somebody else's text; our own colours stay. */
function printableLine(line: string): string {
  return line.startsWith('  ') ? printable(line) : line;
}
