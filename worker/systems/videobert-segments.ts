/** Neighbouring segments of a film joined to longer ones. */
import { openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';

/** Segments further apart than this do not follow one another, seconds: a visual word of VideoBERT. */
const MOST_BETWEEN_SECONDS = 1.5;

/**
 * The same number of samples, of which a share reaches from its own start to the end of the one that follows in the
 * film, with the words of both: what is said need not be shown at the same time. Which ones is drawn by the sample's
 * place in the split. Source: Sun et al. 2019, arXiv:1904.01766, sec. 3.2.
 */
export function joinSegments(
  samples: readonly Sample[],
  { share, seed }: { readonly share: number; readonly seed: number },
): readonly Sample[] {
  if (share === 0) return samples;
  const next = followers(samples);
  return samples.map((sample, number) => {
    const other = next.get(sample);
    const isJoined = openRng(seed, 'videobert/join', number).uniform() < share;
    return isJoined && other !== undefined ? joined(sample, other) : sample;
  });
}

/** By sample, the one that follows it in its film. */
function followers(samples: readonly Sample[]): Map<Sample, Sample> {
  const byFile = new Map<number, Sample[]>();
  for (const sample of samples) {
    if (sample.media.length !== 1) continue;
    const { file } = sample.media[0]!;
    byFile.set(file, [...(byFile.get(file) ?? []), sample]);
  }
  const found = new Map<Sample, Sample>();
  for (const own of byFile.values()) {
    own.sort((a, b) => a.media[0]!.startSeconds - b.media[0]!.startSeconds);
    for (const [i, sample] of own.entries()) {
      const following = own[i + 1];
      if (following === undefined) continue;
      const between = following.media[0]!.startSeconds - sample.media[0]!.endSeconds;
      // Samples that say several things of one span do not follow one another.
      if (between > -1e-3 && between <= MOST_BETWEEN_SECONDS) found.set(sample, following);
    }
  }
  return found;
}

function joined(sample: Sample, following: Sample): Sample {
  const [{ file, startSeconds }, { endSeconds }] = [sample.media[0]!, following.media[0]!];
  return {
    ...sample,
    id: `${sample.id}+${following.id}`,
    media: [{ file, startSeconds, endSeconds }],
    text: [sample.text, following.text].filter((text) => text !== '').join(' '),
    cues: [...sample.cues, ...following.cues],
    decodeMegapixels: sample.decodeMegapixels + following.decodeMegapixels,
  };
}
