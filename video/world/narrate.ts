/** A clip in words: its caption, and subtitles as speech recognition would give them. A small closed language. Pure. */
import type { Rng } from '../../proto/random.ts';
import type { Clause, Subtitle, WorldEvent, WorldObject } from './ground-truth.ts';
import {
  BACKGROUND_COLOUR_NAMES,
  COLOUR_NAMES,
  PATTERNS,
  SHAPES,
  type Motion,
  type Side,
} from './palette.ts';
import { backgroundName, type Action } from './scene.ts';
import type { SceneTruth } from './truth.ts';

/** `{a}` and `{b}` are objects, `{to}` and `{from}` sides, `{wall}` what is bounced off. */
const CLAUSES: Readonly<Record<Motion, readonly string[]>> = {
  right: ['{a} moves right', '{a} slides to the right', '{a} moves from left to right'],
  left: ['{a} moves left', '{a} slides to the left', '{a} moves from right to left'],
  up: ['{a} moves up', '{a} rises', '{a} floats up'],
  down: ['{a} falls', '{a} drops down', '{a} falls down'],
  diagonal: ['{a} moves diagonally', '{a} crosses diagonally', '{a} moves from corner to corner'],
  zigzag: ['{a} zigzags to the {to}', '{a} moves {to} in a zigzag'],
  loop: ['{a} loops around', '{a} moves around in a loop', '{a} goes around and around'],
  bounce: [
    '{a} bounces off the {wall}',
    '{a} moves {to} and bounces off the {wall}',
    '{a} hits the {wall} and bounces back',
  ],
  stop: [
    '{a} comes in from the {from} and stops',
    '{a} moves {to} and stops in the middle',
    '{a} slides in from the {from} and stops',
  ],
  collide: ['{a} and {b} collide', '{a} bumps into {b}', '{a} hits {b}', '{a} crashes into {b}'],
};

const SIDE_WORDS: Readonly<
  Record<Side, { readonly to: string; readonly from: string; readonly wall: string }>
> = {
  left: { to: 'left', from: 'left', wall: 'left wall' },
  right: { to: 'right', from: 'right', wall: 'right wall' },
  top: { to: 'up', from: 'top', wall: 'ceiling' },
  bottom: { to: 'down', from: 'bottom', wall: 'floor' },
};
const OPPOSITE = { left: 'right', right: 'left', top: 'bottom', bottom: 'top' } as const;

const RELATIONS = {
  above: 'above it',
  below: 'below it',
  beside: 'next to it',
} as const;

/** First, middle and last of several clauses; the last opens a sentence of its own where there are three or more. */
const JOINTS = {
  first: ['', '', 'first '],
  then: ['then ', 'and then ', 'and after that '],
  last: ['finally ', 'at last ', 'in the end '],
} as const;

const SPOKEN_OPENINGS = ['', '', 'now ', 'look ', 'and ', 'so ', 'next ', 'here '] as const;
const SPOKEN_ARRIVALS = ['here comes {a}', 'we see {a}', 'there is {a}', 'now we see {a}'] as const;
/** Said of one event; `it` and `they` stand for what the cue before it named. */
const SPOKEN_EVENTS: Partial<Readonly<Record<WorldEvent['type'], readonly string[]>>> = {
  bounce: ['it bounces off the {wall}', 'it hits the {wall}'],
  stop: ['it stops', 'and it stops here'],
  collide: ['they collide', 'they hit each other', 'and they bump'],
  leave: ['it leaves', 'it is gone', 'and it goes away'],
};
const OVER = ' over ';

/** Every word that can occur in a caption or subtitle, sorted; commas and full stops of captions are apart from it. */
export function worldVocabulary(): string[] {
  const backgrounds = BACKGROUND_COLOUR_NAMES.flatMap((colour) =>
    PATTERNS.map((pattern) => backgroundName(colour, pattern)),
  );
  const texts = [
    ...Object.values(CLAUSES).flat(),
    ...Object.values(SIDE_WORDS).flatMap((words) => Object.values(words)),
    ...Object.values(RELATIONS),
    ...Object.values(JOINTS).flat(),
    ...SPOKEN_OPENINGS,
    ...SPOKEN_ARRIVALS,
    ...Object.values(SPOKEN_EVENTS).flat(),
    ...backgrounds,
    ...COLOUR_NAMES,
    ...SHAPES,
    `a an small big while ${OVER}`,
  ];
  const words = texts.flatMap((text) => text.replaceAll(/\{\w+\}/g, ' ').split(/\s+/));
  return [...new Set(words.filter((word) => word !== ''))].sort();
}

interface Told {
  readonly text: string;
  readonly shot: number;
  readonly objects: readonly WorldObject[];
  readonly events: readonly WorldEvent[];
}

/** The caption: one sentence, or two where it tells of three actions or more; in the order of the shots. */
export function caption(
  truth: SceneTruth,
  actions: readonly (readonly Action[])[],
  rng: Rng,
): { text: string; clauses: Clause[] } {
  const told = actions.flatMap((own, shot) => {
    const withBackground = rng.uniform() < 0.55 ? rng.integer(own.length) : -1;
    return own.map((action, i) => tell(truth, shot, i, action, i === withBackground, rng));
  });
  let text = '';
  const clauses = told.map((clause, i): Clause => {
    const isLast = i === told.length - 1;
    if (i === 0) {
      text += told.length > 2 ? pick(rng, JOINTS.first) : '';
    } else if (isLast && told.length > 2) {
      text += `. ${pick(rng, JOINTS.last)}`;
    } else {
      text += `, ${pick(rng, JOINTS.then)}`;
    }
    const start = text.length;
    text += clause.text;
    return {
      text: clause.text,
      start,
      end: text.length,
      shot: clause.shot,
      objects: clause.objects.map(({ id }) => id),
      events: clause.events.map(({ id }) => id),
    };
  });
  return { text: `${text}.`, clauses };
}

/** One action as a clause. */
function tell(
  truth: SceneTruth,
  shot: number,
  index: number,
  action: Action,
  withBackground: boolean,
  rng: Rng,
): Told {
  const ids = truth.actionObjects[shot]![index]!;
  const objects = ids.map((id) => truth.objects.find((object) => object.id === id)!);
  const events = truth.events.filter((event) => event.objects.some((id) => ids.includes(id)));
  const [a, b] = objects;
  let text: string;
  if (action.kind === 'collide') {
    text = pick(rng, CLAUSES.collide).replace('{a}', noun(a!, rng)).replace('{b}', noun(b!, rng));
  } else {
    text = solo(a!, rng);
    // The background right after the first verb: "over" is said of the scene, not of the second object.
    if (b !== undefined) text += ` while ${solo(b, rng)} ${relation(a!, b)}`;
  }
  if (withBackground) text += OVER + truth.shots[shot]!.background.name;
  return { text, shot, objects, events };
}

function solo(object: WorldObject, rng: Rng): string {
  return fill(pick(rng, CLAUSES[object.motion]), object).replace('{a}', noun(object, rng));
}

function fill(template: string, { directions }: WorldObject): string {
  const [side] = directions;
  if (side === undefined) return template;
  return template
    .replace('{to}', SIDE_WORDS[side].to)
    .replace('{wall}', SIDE_WORDS[side].wall)
    .replace('{from}', SIDE_WORDS[OPPOSITE[side]].from);
}

function noun({ size, colour, shape }: WorldObject, rng: Rng): string {
  const adjective = size === 'medium' || rng.uniform() < 0.6 ? '' : `${size} `;
  const words = `${adjective}${colour} ${shape}`;
  return `${/^[aeiou]/.test(words) ? 'an' : 'a'} ${words}`;
}

/** Where the second is, seen from the first. */
function relation(first: WorldObject, second: WorldObject): string {
  const [[ax, ay], [bx, by]] = [middle(first), middle(second)];
  if (
    Math.abs(bx - ax) > Math.abs(by - ay) &&
    first.directions[0] !== 'left' &&
    first.directions[0] !== 'right'
  ) {
    return RELATIONS.beside;
  }
  return by > ay ? RELATIONS.below : RELATIONS.above;
}

function middle({ track }: WorldObject): readonly [number, number] {
  return track.centers[track.centers.length >> 1]!;
}

const SECONDS_PER_WORD = 0.26;

/** Subtitles: lower case, no punctuation; one cue an action or, as often, one for each of its main events. */
export function subtitles(
  truth: SceneTruth,
  actions: readonly (readonly Action[])[],
  durationSeconds: number,
  rng: Rng,
): Subtitle[] {
  const spoken = actions.flatMap((own, shot) =>
    own.flatMap((action, i) => speak(truth, shot, i, action, rng)),
  );
  const starts: number[] = [];
  for (const { events } of spoken) {
    const about = events[0]!.timeSeconds + 0.12 + 0.12 * rng.normal();
    const earliest = starts.length === 0 ? 0 : starts.at(-1)! + 0.4;
    starts.push(milliseconds(Math.min(Math.max(about, earliest), durationSeconds - 0.2)));
  }
  return spoken.map(({ text, shot, objects, events }, i) => {
    const numWords = text.split(' ').length;
    const length = Math.max(0.5, numWords * SECONDS_PER_WORD * (0.9 + 0.25 * rng.uniform()));
    return {
      startSeconds: starts[i]!,
      endSeconds: milliseconds(Math.min(starts[i]! + length, starts[i + 1] ?? durationSeconds)),
      text,
      shot,
      objects: objects.map(({ id }) => id),
      events: events.map(({ id }) => id),
    };
  });
}

function speak(truth: SceneTruth, shot: number, index: number, action: Action, rng: Rng): Told[] {
  const whole = tell(truth, shot, index, action, rng.uniform() < 0.3, rng);
  const [a] = whole.objects;
  const opening = pick(rng, SPOKEN_OPENINGS);
  const main = whole.events.find(
    ({ type }) => type === 'bounce' || type === 'stop' || type === 'collide',
  );
  const bothArePresent = action.kind !== 'collide' || main !== undefined;
  if (action.kind === 'together' || main === undefined || !bothArePresent || rng.uniform() < 0.5) {
    return [{ ...whole, text: opening + whole.text }];
  }
  const arrivals = whole.objects.map((object): Told => {
    const first = whole.events.find(({ objects }) => objects.includes(object.id))!;
    const text = pick(rng, SPOKEN_ARRIVALS).replace('{a}', noun(object, rng));
    return { text, shot, objects: [object], events: [first] };
  });
  // Two that come at nearly the same time are named together.
  const cues =
    arrivals.length === 2
      ? [
          {
            text: `${arrivals[0]!.text} and ${noun(whole.objects[1]!, rng)}`,
            shot,
            objects: whole.objects,
            events: arrivals.flatMap(({ events }) => events),
          },
        ]
      : arrivals;
  cues.push({
    text: fill(pick(rng, SPOKEN_EVENTS[main.type]!), a!),
    shot,
    objects: whole.objects,
    events: [main],
  });
  const gone = whole.events.find(({ type }) => type === 'leave');
  if (action.kind === 'solo' && gone !== undefined && rng.uniform() < 0.4) {
    const text = pick(rng, SPOKEN_EVENTS.leave!);
    cues.push({ text, shot, objects: whole.objects, events: [gone] });
  }
  return cues;
}

/** WebVTT of the cues. */
export function toWebVtt(
  cues: readonly Pick<Subtitle, 'startSeconds' | 'endSeconds' | 'text'>[],
): string {
  const blocks = cues.map(
    ({ startSeconds, endSeconds, text }) =>
      `${stamp(startSeconds)} --> ${stamp(endSeconds)}\n${text}\n`,
  );
  return ['WEBVTT\n', ...blocks].join('\n');
}

function stamp(seconds: number): string {
  const total = Math.round(seconds * 1000);
  const pad = (value: number, digits: number): string => String(value).padStart(digits, '0');
  const [hours, minutes] = [Math.floor(total / 3_600_000), Math.floor(total / 60_000) % 60];
  return `${pad(hours, 2)}:${pad(minutes, 2)}:${pad(Math.floor(total / 1000) % 60, 2)}.${pad(total % 1000, 3)}`;
}

function milliseconds(seconds: number): number {
  return Math.floor(seconds * 1000) / 1000; // never past the end
}

function pick<T>(rng: Rng, items: readonly T[]): T {
  return items[rng.integer(items.length)]!;
}
