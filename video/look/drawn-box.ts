/** A box on a picture, in hundredths of its sides. */
export interface ShownBox {
  readonly box: readonly [left: number, top: number, right: number, bottom: number];
  /** Whose: of the question, of the answer, right or wrong, or of the data where the answer is another. */
  readonly of: 'question' | 'answer' | 'right' | 'wrong' | 'data';
}

const LINES: Readonly<Record<ShownBox['of'], string>> = {
  question: 'stroke="#223"',
  answer: 'stroke="#d2690a"',
  right: 'stroke="#0a7d3c"',
  wrong: 'stroke="#c02639"',
  data: 'stroke="#223" stroke-dasharray="4 3"',
};

/** As SVG, on a picture whose corner is at x and y. */
export function drawnBox(
  { box: [left, top, right, bottom], of }: ShownBox,
  picture: {
    readonly x: number;
    readonly y: number;
    readonly width: number;
    readonly height: number;
  },
): string {
  const across = (share: number): number => (share / 100) * picture.width;
  const down = (share: number): number => (share / 100) * picture.height;
  const place =
    `x="${picture.x + across(left)}" y="${picture.y + down(top)}" ` +
    `width="${across(right - left)}" height="${down(bottom - top)}" fill="none"`;
  // Light below, so that it is seen on any picture.
  return (
    `<rect ${place} stroke="#fff" stroke-width="4"/>` +
    `<rect ${place} ${LINES[of]} stroke-width="2"/>`
  );
}
