/** What a run says to questions about clips. */
import { openAnswering } from '../generation/answers.ts';
import type { Answers } from '../systems/system.ts';
import type { TrainedRun } from '../trained-run.ts';
import { inBatches, refuseUndecoded, type ClipSource } from './asked.ts';
import type { EvaluationFile } from './evaluation-file.ts';

/** What is asked of a clip. */
export interface Asked {
  /** Number of the sample in its source. */
  readonly sample: number;
  /** Empty where the system asks by itself. */
  readonly question: string;
}

/** Answers in the order of the questions; undefined about clips that do not decode. @throws where none does, what the first fails by */
export async function answersTo(
  { run, engine, params, frozen }: TrainedRun,
  answers: Answers,
  asked: readonly Asked[],
  { source, file }: { readonly source: ClipSource; readonly file: EvaluationFile },
): Promise<(string | undefined)[]> {
  const answering = openAnswering(engine, answers, { params, frozen });
  const said: (string | undefined)[] = asked.map(() => undefined);
  const batches = { source, file, batchSize: run.config.train.microbatchSize };
  try {
    const groups = new Map<string, number[]>();
    for (const [at, { question }] of asked.entries()) {
      const group = groups.get(question);
      if (group === undefined) groups.set(question, [at]);
      else group.push(at);
    }
    for (const [question, group] of groups) {
      const found = await inBatches(
        group.map((at) => asked[at]!.sample),
        { ...batches, name: `answers ${JSON.stringify(question)}` },
        async (rows) => (await answering.ask(rows, question)).map(({ text }) => text),
      );
      for (const [i, at] of group.entries()) said[at] = found[i];
    }
    const samples = asked.map(({ sample }) => sample);
    await refuseUndecoded(source, samples, said);
    return said;
  } finally {
    answering.close();
  }
}
