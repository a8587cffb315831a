import { clip } from './clip.ts';
import { merlot } from './merlot.ts';
import { siglip } from './siglip.ts';
import type { SystemDefinition } from './system.ts';
import { videobert } from './videobert.ts';

/** Every system there is. A new one is a file beside this, a line here and a recipe. */
export const systems: readonly SystemDefinition[] = [videobert, clip, siglip, merlot];

/** @throws RangeError where the name is none that a checked config has */
export function systemNamed(name: string): SystemDefinition {
  const found = systems.find(({ schema }) => schema.shape.name.value === name);
  if (found === undefined) throw new RangeError(`there is no system ${name}`);
  return found;
}
