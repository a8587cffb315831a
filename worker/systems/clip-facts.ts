/** What all samples of a clip say of it together: questions about one film are samples of their own. */
import type { Sample } from '../../video/index/sample.ts';
import { turnsOf, type Turn } from './dialogue.ts';

export type Facts = ReadonlyMap<string, readonly Turn[]>;

/** All that is said of each clip, by {@link clipOf}. A yes or no says nothing without its question. */
export function factsByClip(samples: readonly Sample[], describe: string): Facts {
  const facts = new Map<string, Turn[]>();
  for (const sample of samples) {
    const own = facts.get(clipOf(sample)) ?? [];
    own.push(...turnsOf(sample, describe).filter(({ answer }) => !/^(?:yes|no)$/i.test(answer)));
    facts.set(clipOf(sample), own);
  }
  return facts;
}

/** A name for the media of a sample. */
export function clipOf({ media }: Sample): string {
  return media.map(({ file, startSeconds }) => `${file}@${startSeconds}`).join();
}

/** The caption, where there are several answers. */
export function longestOf(turns: readonly Turn[]): string {
  return turns.reduce((best, { answer }) => (answer.length > best.length ? answer : best), '');
}
