/** The forms of data that are read, as the config and the command name them. */
export const SOURCE_NAMES = [
  'folder',
  'webdataset',
  'webvid',
  'instructions',
  'preferences',
  'image-text',
  'documents',
  'parquet',
] as const;
export type SourceName = (typeof SOURCE_NAMES)[number];
