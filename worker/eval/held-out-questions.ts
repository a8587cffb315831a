/** What held-out samples are asked, and what people say to it. */
import { shownKey, type Sample, type SamplePart } from '../../video/index/sample.ts';
import { plainAnswer } from './scores/score.ts';

/** A question about a held-out sample's media. */
export interface HeldOutQuestion {
  readonly id: string;
  /** Number of the sample. */
  readonly sample: number;
  /** Empty where the system asks by itself. */
  readonly question: string;
  readonly references: readonly string[];
  /** A caption is scored by its words, an answer by being right. */
  readonly kind: 'caption' | 'answer';
}

/**
 * What held-out samples ask, in their order: each question of a conversation, by itself, with its answer; of anything else
 * the text is a caption. What is said of the same media, as captions of data sets that have five a picture, are references
 * of one question.
 * @param question asked in place of theirs: captions are its references, and of conversations the answers to that question
 */
export function questionsOf(samples: readonly Sample[], question: string): HeldOutQuestion[] {
  const questions = new Map<string, HeldOutQuestion>();
  const ids = new Set<string>();
  const add = (
    found: Omit<HeldOutQuestion, 'references'>,
    where: string,
    reference: string,
  ): void => {
    const key = JSON.stringify([where, plainAnswer(found.question)]);
    const known = questions.get(key);
    if (known !== undefined) {
      questions.set(key, { ...known, references: [...known.references, reference] });
      return;
    }
    // Of a conversation with several questions each has an id.
    let id = found.id;
    for (let turn = 2; ids.has(id); turn++) id = `${found.id}/${turn}`;
    ids.add(id);
    questions.set(key, { ...found, id, references: [reference] });
  };
  for (const [number, { id, media, text, parts = [] }] of samples.entries()) {
    const where = media.length === 0 ? id : shownKey({ media });
    const turns = turnsOf(parts);
    for (const turn of turns) {
      if (question !== '' && plainAnswer(turn.question) !== plainAnswer(question)) continue;
      add({ id, sample: number, question: turn.question, kind: 'answer' }, where, turn.answer);
    }
    if (turns.length === 0 && text.trim() !== '')
      add({ id, sample: number, question, kind: 'caption' }, where, text);
  }
  return [...questions.values()];
}

/** What a user asks, and the words that answer it. */
function turnsOf(parts: readonly SamplePart[]): { question: string; answer: string }[] {
  const turns: { question: string; answer: string }[] = [];
  let asked: string[] = [];
  for (const { role, text = '' } of parts) {
    if (role === 'user') asked.push(text);
    if (role !== 'assistant') continue;
    const question = asked.join(' ').replaceAll(/\s+/g, ' ').trim();
    if (question !== '') turns.push({ question, answer: text });
    asked = [];
  }
  return turns;
}
