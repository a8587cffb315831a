/** What an audit can find wrong; each is a fact that contradicts what the run promises. */
export type ProblemCode =
  | 'JOURNAL_MISSING'
  | 'JOURNAL_RECORD_DAMAGED'
  | 'JOURNAL_RECORD_MISSING'
  | 'JOURNAL_RECORD_DOUBLED'
  | 'PLAN_CHANGED'
  | 'GENERATION_INVALID'
  | 'COMMIT_MISSING'
  | 'COMMIT_DOUBLED'
  | 'COMMIT_WRONG_RANGE'
  | 'COMMIT_WRONG_GENERATION'
  | 'COMMIT_REDONE_DIFFERENTLY'
  | 'SAMPLE_LOST'
  | 'SAMPLE_DOUBLED'
  | 'SUBSTITUTE_WRONG'
  | 'CHECKPOINT_DAMAGED'
  | 'CHECKPOINT_MISSING'
  | 'CHECKPOINT_OF_ANOTHER_RUN'
  | 'DATASET_CHANGED'
  | 'RESULT_DIFFERS'
  | 'RESULT_NOT_KEPT';

/** Something that is wrong. */
export interface Problem {
  readonly code: ProblemCode;
  readonly message: string;
  /** The step that it is about, where it is about one. */
  readonly step?: number;
}

/** Where an audit puts what it finds: problems, and what is worth knowing but wrong with nothing. */
export interface Findings {
  problem(code: ProblemCode, message: string, step?: number): void;
  note(message: string): void;
}

/** Findings that are kept; of each code at most `maxEach` in full, of the rest only how many there were. */
export function collectFindings(maxEach = 1000): Findings & {
  readonly problems: readonly Problem[];
  readonly notes: readonly string[];
  readonly numProblems: () => number;
} {
  const problems: Problem[] = [];
  const notes: string[] = [];
  const counts = new Map<ProblemCode, number>();
  let total = 0;
  return {
    problems,
    notes,
    numProblems: () => total,
    problem(code, message, step) {
      total++;
      const count = (counts.get(code) ?? 0) + 1;
      counts.set(code, count);
      if (count <= maxEach)
        problems.push({ code, message, ...(step === undefined ? {} : { step }) });
    },
    note(message) {
      notes.push(message);
    },
  };
}
