import type { Engine } from '../backend/engine.ts';
import { uploadBatch } from '../batches.ts';
import type { Answers, Row } from '../systems/system.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { openGenerator, type GeneratedText, type Strategy } from './generator.ts';

/** An answer in words, and how it came about. */
export interface Answer extends Omit<GeneratedText, 'ids'> {
  readonly text: string;
}

/** What answers are made of; the programs are compiled once for each number of rows. */
export interface Answering {
  /** A system's answer to a question about each row's clip; greedy unless a strategy is given. */
  ask(rows: readonly Row[], question: string, strategy?: Strategy): Promise<Answer[]>;
  /** Frees the compiled programs. Idempotent. */
  close(): void;
}

/** @param frozen the system's frozen arrays on the device, as `params` are */
export function openAnswering(
  engine: Engine,
  answers: Answers,
  { params, frozen }: { readonly params: TensorTree; readonly frozen: TensorTree },
): Answering {
  const { model, eosIds, maxNewTokens } = answers;
  const generator = openGenerator(engine, model, { maxNewTokens });
  return {
    async ask(rows, question, strategy = { kind: 'greedy' }) {
      const prompt = uploadBatch(engine, answers.assemble(rows, question));
      try {
        const texts = await generator.generate({ params, frozen }, prompt, { strategy, eosIds });
        return texts.map(({ ids, ...rest }) => ({ text: answers.decode(ids), ...rest }));
      } finally {
        disposeTree(prompt);
      }
    },
    close: () => {
      generator.close();
    },
  };
}
