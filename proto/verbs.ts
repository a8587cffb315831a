/** What the verbs of `worker/main.ts` take: for parsing, for errors, and for the help of the `videoloom` command. */

/** An option as `parseArgs` takes it; those that people give say what they are for. */
interface OptionForm {
  readonly type: 'string' | 'boolean';
  readonly short?: string;
  readonly multiple?: boolean;
  readonly default?: string | boolean;
  /** What stands for its value in the help. */
  readonly value?: string;
  readonly about?: string;
}

/** How a verb is called. */
interface Verb {
  /** The whole call, as errors show it. */
  readonly usage: string;
  readonly takesPositionals: boolean;
  readonly options: Readonly<Record<string, OptionForm>>;
}

const OUT_FILE = 'file to write';

export const VERBS = {
  look: {
    usage: 'videoloom look RUN_FOLDER [--clips N] [--out FILE]',
    takesPositionals: true,
    options: {
      clips: { type: 'string', default: '6', value: 'n', about: 'held-out clips to draw' },
      out: { type: 'string', value: 'file', about: `${OUT_FILE} (default: RUN_FOLDER/look.svg)` },
    },
  },
  sample: {
    usage:
      'videoloom sample RUN_FOLDER VIDEO ["QUESTION"] [--example FILE=ANSWER ...] [--out FILE]',
    takesPositionals: true,
    options: {
      example: {
        type: 'string',
        multiple: true,
        value: 'file=answer',
        about: 'shown before with the right answer; again for several (few-shot)',
      },
      out: {
        type: 'string',
        value: 'file',
        about: `${OUT_FILE}, .svg, .html or .png (default: in the run folder)`,
      },
    },
  },
  probe: {
    usage: 'videoloom probe RUN_FOLDER [--json]',
    takesPositionals: true,
    options: { json: { type: 'boolean', default: false, about: 'the figures as JSON' } },
  },
  evaluate: {
    usage:
      'videoloom evaluate RUN_FOLDER ["QUESTION"] [--clips N] [--out FILE] [--json]\n' +
      '       videoloom evaluate RUN_FOLDER --retrieval|--pairs FILE|--pairs demo|--questions FILE [--media DIR] ...',
    takesPositionals: true,
    options: {
      clips: {
        type: 'string',
        default: '1000',
        value: 'n',
        about: 'held-out clips, pairs or questions to ask about at most',
      },
      retrieval: {
        type: 'boolean',
        default: false,
        about: 'find held-out clips by captions and captions by clips',
      },
      pairs: {
        type: 'string',
        value: 'file',
        about:
          "captions to be told apart: Winoground's, ARO's or SugarCrepe's file, or demo: made of the demo world's captions",
      },
      questions: {
        type: 'string',
        value: 'file',
        about: "answer questions of a file, as POPE's, about the pictures or films that it names",
      },
      media: {
        type: 'string',
        value: 'dir',
        about: 'folder that these names are below (default: that of the file)',
      },
      out: {
        type: 'string',
        value: 'file',
        about: `${OUT_FILE}, JSON Lines (default: RUN_FOLDER/answers.jsonl, retrieval.jsonl, pairs.jsonl, question-answers.jsonl)`,
      },
      json: { type: 'boolean', default: false, about: 'the scores as JSON' },
    },
  },
  score: {
    usage:
      'videoloom score captions|vqa|answers|pope|retrieval PREDICTIONS [REFERENCES] [--json]\n' +
      '       videoloom score chair CAPTIONS OBJECTS [REFERENCES] [--synonyms FILE] [--json]\n' +
      '       videoloom score pairs SCORES [--json]\n' +
      'of a matrix for retrieval REFERENCES names the media of its rows and the captions of its columns in their order;\n' +
      "of COCO's object these are images and annotations as they stand in the file",
    takesPositionals: true,
    options: {
      synonyms: {
        type: 'string',
        value: 'file',
        about: 'of chair: an object a line, all its names with commas between them',
      },
      json: { type: 'boolean', default: false, about: 'the scores as JSON' },
    },
  },
  export: {
    usage: 'videoloom export RUN_FOLDER [--step N] --out DIR',
    takesPositionals: true,
    options: {
      out: { type: 'string', value: 'dir', about: 'folder to write into' },
      step: { type: 'string', value: 'n', about: 'checkpoint of this step (default: the newest)' },
    },
  },
  fetch: {
    usage: 'worker/main.ts fetch s3://bucket/prefix/RUN --out DIR',
    takesPositionals: true,
    options: { out: { type: 'string' } },
  },
  prepare: {
    usage:
      'worker/main.ts prepare|plan RECIPE [--preset NAME] [--stage NAME] [--out DIR] [--set FIELD=VALUE ...]',
    takesPositionals: true,
    options: {
      preset: { type: 'string' },
      stage: { type: 'string' },
      out: { type: 'string' },
      set: { type: 'string', multiple: true },
    },
  },
  train: {
    usage: 'videoloom worker --run DIR --coordinator HOST:PORT --id NAME',
    takesPositionals: false,
    options: {
      run: { type: 'string', value: 'dir', about: 'run folder' },
      coordinator: { type: 'string', value: 'host:port', about: 'where the coordinator listens' },
      id: { type: 'string', value: 'name', about: 'name of this worker, another for each' },
      engine: {
        type: 'string',
        default: 'xla',
        value: 'name',
        about: 'xla, cpu or tensorflow (default: xla)',
      },
      plugin: { type: 'string', default: '', value: 'file', about: 'a PJRT plugin of your own' },
      listen: {
        type: 'string',
        value: 'host',
        about:
          'where other workers reach this one (default: its address on the way to the coordinator)',
      },
      metrics: {
        type: 'string',
        default: '127.0.0.1:0',
        value: 'host:port',
        about: "address of this worker's /metrics, plain HTTP: whoever reaches it reads it",
      },
      tls: {
        type: 'string',
        value: 'dir',
        about: 'certificates and token of `videoloom init --tls`',
      },
      insecure: { type: 'boolean', default: false, about: 'plain text, off the loopback too' },
      'grace-seconds': {
        type: 'string',
        default: '25',
        value: 'n',
        about: 'time to leave in order after SIGTERM (default: 25)',
      },
      'wait-hours': {
        type: 'string',
        default: '0',
        value: 'n',
        about: 'time to wait for somebody to lead the run (default: 0)',
      },
      'follow-coordinator': { type: 'boolean', default: false },
      'follow-stdin': { type: 'boolean', default: false },
    },
  },
  engine: {
    usage: 'videoloom engine list|install|doctor [NAME]',
    takesPositionals: true,
    options: {
      help: { type: 'boolean', short: 'h', default: false },
      gpu: { type: 'boolean', default: false, about: 'tensorflow for NVIDIA GPUs' },
      'with-libraries': {
        type: 'boolean',
        default: false,
        about: 'a PJRT plugin with the libraries of its vendor that it loads',
      },
    },
  },
} as const satisfies Readonly<Record<string, Verb>>;

/** The options of a verb that people may give, a line each. */
export function optionsHelp(name: keyof typeof VERBS): string {
  const options: Readonly<Record<string, OptionForm>> = VERBS[name].options;
  const rows = Object.entries(options).flatMap(([option, { value, about }]) =>
    about === undefined ? [] : [[`--${option}${value === undefined ? '' : ` <${value}>`}`, about]],
  );
  const width = Math.max(...rows.map(([call]) => call!.length));
  return rows.map(([call, about]) => `  ${call!.padEnd(width)}  ${about!}`).join('\n');
}
