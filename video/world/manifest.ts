/** The file at a world's root that lists what is there, written when the world is complete. */
export const WORLD_MANIFEST = 'world.json';
