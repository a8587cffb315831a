import { bind } from './bind.ts';
import { blip2 } from './blip2.ts';
import { blip2Generation } from './blip2-generation.ts';
import { clip } from './clip.ts';
import { cm3leon } from './cm3leon.ts';
import { coca } from './coca.ts';
import { flava } from './flava.ts';
import { frozen } from './frozen.ts';
import { languageModel } from './language-model.ts';
import { llip } from './llip.ts';
import { merlot } from './merlot.ts';
import { miniGptV2 } from './minigpt-v2.ts';
import { miniGpt4 } from './minigpt4.ts';
import { miniGpt4Video } from './minigpt4-video.ts';
import { siglip } from './siglip.ts';
import type { SystemDefinition } from './system.ts';
import { videoLlama } from './video-llama.ts';
import { videoLlava } from './video-llava.ts';
import { videoOfa } from './video-ofa.ts';
import { videobert } from './videobert.ts';
import { visualBert } from './visual-bert.ts';

/** Every system there is. A new one is a file beside this, a line here and a recipe. */
export const systems: readonly SystemDefinition[] = [
  bind,
  blip2,
  blip2Generation,
  clip,
  cm3leon,
  coca,
  flava,
  frozen,
  languageModel,
  llip,
  merlot,
  miniGpt4,
  miniGpt4Video,
  miniGptV2,
  siglip,
  videobert,
  videoOfa,
  videoLlama,
  videoLlava,
  visualBert,
];

/** @throws RangeError where the name is none that a checked config has */
export function systemNamed(name: string): SystemDefinition {
  const found = systems.find(({ schema }) => schema.shape.name.value === name);
  if (found === undefined) throw new RangeError(`there is no system ${name}`);
  return found;
}
