import type {
  CommitStepRequest,
  ReportResultRequest,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import { spellNumbers } from './json-numbers.ts';

/** What one worker says, taken apart: each leaf under a name that can be printed. */
export type Statement = ReadonlyMap<string, number | string>;

/** What all workers must agree on, bit for bit, about a step. */
export function stepStatement({
  objectives,
  gradientNorm,
  learningRate,
}: CommitStepRequest): Statement {
  const leaves: [string, number][] = [
    ['gradient norm', gradientNorm],
    ['learning rate', learningRate],
  ];
  for (const { name, lossSum, count, correct } of objectives) {
    leaves.push(
      [`${name} loss sum`, lossSum],
      [`${name} count`, count],
      [`${name} correct`, correct],
    );
  }
  return new Map(leaves);
}

/** What all workers must agree on, bit for bit, about the end of the run. */
export function resultStatement({ figures, weightsSha256 }: ReportResultRequest): Statement {
  const leaves: [string, number | string][] = [['SHA-256 of the weights', weightsSha256]];
  for (const { name, value, chance, untrained, count } of figures) {
    leaves.push([`${name} value`, value], [`${name} chance`, chance]);
    leaves.push([`${name} untrained`, untrained], [`${name} count`, count]);
  }
  return new Map(leaves);
}

/**
 * The first thing that the workers do not agree on, with who says what, as text: `gradient norm: 1.5 by ranks 0, 2; 1.25
 * by rank 1`; undefined when all say the same. `statements` is in rank order.
 */
export function findDisagreement(statements: readonly Statement[]): string | undefined {
  const names = new Set(statements.flatMap((statement) => [...statement.keys()]));
  for (const name of names) {
    const ranksOf = new Map<string, number[]>();
    for (const [rank, statement] of statements.entries()) {
      const leaf = statement.get(name);
      const spelled = leaf === undefined ? 'nothing' : String(spellNumbers('', leaf));
      ranksOf.set(spelled, [...(ranksOf.get(spelled) ?? []), rank]);
    }
    if (ranksOf.size === 1) continue;
    const parts = [...ranksOf].map(
      ([spelled, ranks]) =>
        `${spelled} by ${ranks.length === 1 ? 'rank' : 'ranks'} ${ranks.join(', ')}`,
    );
    return `${name}: ${parts.join('; ')}`;
  }
  return undefined;
}
