/**
 * Events of a run as they leave it over NATS: a copy of its journal for whoever subscribes, never the truth.
 *
 * Data flow: journal file -> `eventsOf` (a function of the journal alone) -> one message in flight -> NATS -> readers.
 * Each message is a CloudEvent, structured JSON. Source: CloudEvents 1.0.2, section 3.1, and its NATS binding, section 3.2.
 */

/** All that happens to a run, as the rest of a subject: `videoloom.<run>.<name>`. */
export const RUN_EVENT_NAMES = [
  // A coordinator took the run over: for the first time, or again.
  ...(['run.started', 'run.resumed'] as const),
  // The hundredth part of the steps is done.
  'run.progressed',
  // The run goes on from an earlier step.
  'run.restored',
  ...(['run.stop-requested', 'run.stopped', 'run.finished', 'run.failed'] as const),
  ...(['worker.joined', 'worker.left', 'worker.lost'] as const),
  'generation.opened',
  'epoch.finished',
  ...(['checkpoint.committed', 'checkpoint.failed', 'checkpoint.pruned'] as const),
  'checkpoint.damaged',
  // Samples could not be used, each told of once.
  'data.quarantined',
] as const;
export type RunEventName = (typeof RUN_EVENT_NAMES)[number];

/** Names after which nothing more happens until somebody starts the run again. */
export const LAST_EVENTS: ReadonlySet<string> = new Set<RunEventName>([
  ...(['run.finished', 'run.failed', 'run.stopped'] as const),
]);

/** One event, as the JSON of a message. */
export interface CloudEvent {
  readonly specversion: '1.0';
  /**
   * `<run>:<number of the journal's record>:<its checksum>`, and `.1` and so on for further events of one record; also
   * the header `Nats-Msg-Id`. The checksum tells a journal from another of the same name, or from one that was rewound.
   */
  readonly id: string;
  readonly source: string;
  /** `videoloom.` and a {@link RunEventName}. */
  readonly type: string;
  /** What it is about, where it is not the run: `worker/worker-0`, `checkpoint/300`. */
  readonly subject?: string;
  /** When the journal was told of it, ISO 8601. */
  readonly time: string;
  readonly datacontenttype: 'application/json';
  readonly data: Readonly<Record<string, unknown>>;
}

export const CLOUD_EVENT_TYPE = 'application/cloudevents+json';
/** The JetStream stream that is made where none takes the subjects. */
export const EVENT_STREAM = 'VIDEOLOOM';
export const EVENT_SUBJECTS = 'videoloom.>';

/** The subject of a run's events; all of them without a name. Dots in a run's id would be levels of their own. */
export function eventSubject(runId: string, name: RunEventName | '>' = '>'): string {
  return `videoloom.${runId.replaceAll('.', '_')}.${name}`;
}
