import { readdirSync } from 'node:fs';
import { join } from 'node:path';

/** Where the recipes are that come with Videoloom. */
export const RECIPES_FOLDER = join(import.meta.dirname, '..', 'worker', 'recipes');

/** What all of them begin with; it is no recipe. */
const DEFAULTS = 'defaults';

/** Names of the built-in recipes, sorted. */
export const RECIPE_NAMES: readonly string[] = readdirSync(RECIPES_FOLDER)
  .filter((name) => name.endsWith('.yaml'))
  .map((name) => name.slice(0, -'.yaml'.length))
  .filter((name) => name !== DEFAULTS)
  .sort();
