import type { TimedText } from '../text/captions.ts';
import type { MediaLocation, SamplePart, SkippedRecord } from '../index/sample.ts';
import type { Store, StoredFile } from '../storage/store.ts';

/** A picture or a span of video that a source names; what it holds is found out later. */
export interface SourceMedia extends MediaLocation {
  readonly kind: 'video' | 'image';
  /** Of a video: the span to take; absent: from its start, to its end. */
  readonly startSeconds?: number;
  readonly endSeconds?: number;
}

/** A sample as a source tells it, before its media are looked at. */
export interface SourceSample {
  /** Unique in the source. */
  readonly id: string;
  readonly media: readonly SourceMedia[];
  readonly text: string;
  /** Whether the text tells of all of the video, and is not the words of the cues. */
  readonly isCaption?: boolean;
  /** Words with their times, of the first medium. */
  readonly cues: readonly TimedText[];
  readonly parts?: readonly SamplePart[];
  /** Where the source says it; what shares a medium with a sample that is held out is held out with it. */
  readonly split?: 'train' | 'heldOut';
  /** Times left out of the cues because they are faulty. */
  readonly numCaptionWarnings?: number;
}

/** What a source gives: samples, and records that give none. */
export type SourceRecord = { readonly sample: SourceSample } | { readonly skipped: SkippedRecord };

/** One form in which people keep data. */
export interface Source {
  /** As the config and the command name it. */
  readonly name: string;
  /** Whether these files look like this form, by their names and the beginning of a few of them. */
  matches(store: Store, files: readonly StoredFile[], signal?: AbortSignal): Promise<boolean>;
  /**
   * The samples in a fixed order, a pure function of the files' content. A faulty record is told and costs itself
   * alone. Beside the list of files and the ids, memory does not grow with the number of records.
   * @throws StorageError if the store itself fails; DataError DATA_EMPTY if there is nothing of this form
   */
  read(
    store: Store,
    files: readonly StoredFile[],
    signal?: AbortSignal,
  ): AsyncIterable<SourceRecord>;
}
