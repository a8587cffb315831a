/** Kinds of demo worlds; see `data.demoWorld` in a recipe. */
export const WORLD_KINDS = ['stories', 'moves', 'slides'] as const;
export type WorldKind = (typeof WORLD_KINDS)[number];
