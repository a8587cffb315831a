/** Worlds of one or a few objects in which each fact is drawn by itself. */
export const CONTROLLED_KINDS = ['moves', 'slides', 'places'] as const;
export type ControlledKind = (typeof CONTROLLED_KINDS)[number];

/**
 * `stories`: several shots and objects, told in sentences. `moves`: one object, one motion, one sound and one spoken
 * word a clip, with questions. `slides`: four still scenes in random order, one sentence each. `places`: one still scene
 * of one or two objects, with questions about their boxes.
 */
export const WORLD_KINDS = ['stories', ...CONTROLLED_KINDS] as const;
export type WorldKind = (typeof WORLD_KINDS)[number];
