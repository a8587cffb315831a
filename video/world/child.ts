/** The process that makes clips for `generate.ts`: settings come first, then one clip at a time; each is answered. */
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { writeClip, type ClipFile, type ClipPlace, type WorldParameters } from './clip.ts';
import { openEncoder, type Encoder, type EncoderName } from './encode.ts';

export interface ChildSettings {
  readonly dir: string;
  readonly parameters: WorldParameters;
  readonly encoder?: EncoderName;
}

export type ChildMessage =
  | { readonly type: 'ready' }
  | { readonly type: 'made'; readonly files: ClipFile[] }
  | { readonly type: 'failed'; readonly code: string; readonly message: string };

let opened: { readonly settings: ChildSettings; readonly encoder: Encoder } | undefined;

process.on('message', (message: ChildSettings | ClipPlace) => {
  void answer(message).then((reply) => process.send!(reply));
});
// The parent is gone: nobody waits for the clips.
process.on('disconnect', () => process.exit(0));

async function answer(message: ChildSettings | ClipPlace): Promise<ChildMessage> {
  try {
    if ('dir' in message) {
      opened = { settings: message, encoder: await openEncoder(message.encoder) };
      return { type: 'ready' };
    }
    const { settings, encoder } = opened!;
    return {
      type: 'made',
      files: await writeClip(settings.dir, settings.parameters, message, encoder),
    };
  } catch (error) {
    const code = error instanceof VideoloomError ? error.code : 'WORLD_CLIP_FAILED';
    const place = 'dir' in message ? '' : `${message.split} clip ${message.index}: `;
    const text =
      error instanceof VideoloomError ? messageOf(error) : String((error as Error).stack);
    return { type: 'failed', code, message: place + text };
  }
}
